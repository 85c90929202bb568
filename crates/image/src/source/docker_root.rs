//! The data root of a Docker daemon as a source of images: the data of its overlay2 driver, read in
//! place and never changed.
//!
//! ```text
//! image/overlay2/repositories.json                 names
//! image/overlay2/imagedb/content/sha256/<id>       configurations; the file's digest is its name
//! image/overlay2/layerdb/sha256/<chain>/           cache-id, diff, parent, size, tar-split.json.gz
//! image/overlay2/layerdb/mounts/<container>/       mount-id, init-id, parent
//! overlay2/<cache-id>/diff                         a layer's tree
//! overlay2/l/<short name>                          a link to ../<cache-id>/diff
//! ```
//!
//! [`crate::tar_split`] writes a layer as the tar it originally came as. The code that unpacks it
//! compares the digest, so a tree that was changed without the daemon is detected. Everything here
//! is a name or number from files that anyone with access to the data root may have written: names
//! are checked before they become part of a path, paths are resolved beneath the root without
//! following links, sizes are limited. [`orphans`] lists what is not needed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use vellum_format::Digest;
use vellum_sys::{Dir, FileKind};

mod orphans;

pub use orphans::{DockerContainer, Orphan};

use super::{ImageSource, SourceError, SourceImage};
use crate::config::ImageConfig;
use crate::json;
use crate::manifest::MAX_CONFIG_BYTES;
use crate::reference::Reference;
use crate::tar_split::Joined;

/// Largest file of the layer database, and of the names, that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// An opened data root.
#[derive(Debug)]
pub struct DockerRoot {
    path: PathBuf,
    dir: Dir,
    images: Vec<SourceImage>,
    /// Images that can't be used: their names, and why.
    broken: Vec<(String, String)>,
    /// By the hexadecimal digits of the chain id.
    layers: BTreeMap<String, LayerEntry>,
    /// Invalid entries of the layer database.
    bad_layers: Vec<(PathBuf, String)>,
    /// The top chain of every image, including the broken ones.
    image_chains: Vec<String>,
}

/// What the layer database says about a layer.
#[derive(Clone, Debug)]
struct LayerEntry {
    cache_id: String,
    diff_id: Digest,
    /// The chain below, hexadecimal digits.
    parent: Option<String>,
}

#[derive(Default)]
struct Repositories {
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

json::fields!(Repositories { "Repositories" => repositories });

impl DockerRoot {
    /// Reads the contents of the data root at `path`. Layers are not read yet.
    ///
    /// Errors: `NotADataRoot` if the overlay2 driver has kept no images here.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let dir =
            Dir::open(path).map_err(|e| SourceError::io(path.display().to_string(), e.source))?;
        let mut root = Self {
            path: path.to_path_buf(),
            dir,
            images: Vec::new(),
            broken: Vec::new(),
            layers: BTreeMap::new(),
            bad_layers: Vec::new(),
            image_chains: Vec::new(),
        };
        let drivers = root.names_in(Path::new("image"));
        if !drivers.iter().any(|driver| driver == "overlay2") {
            let why = match drivers.is_empty() {
                true => "it is not a Docker data root (it has no image/overlay2)".to_owned(),
                false => format!("its driver is {}, not overlay2", drivers.join(", ")),
            };
            let path = path.display().to_string();
            return Err(SourceError::NotADataRoot { path, why });
        }
        root.read_layers();
        root.read_images()?;
        Ok(root)
    }

    /// Returns the images that can't be used: their names, and why.
    pub fn broken(&self) -> &[(String, String)] {
        &self.broken
    }

    fn read_layers(&mut self) {
        let home = self.layerdb("sha256");
        for name in self.names_in(&home) {
            let path = home.join(&name);
            if name.ends_with("-removing") {
                self.bad_layers
                    .push((path, "a removal that was cut short".to_owned()));
                continue;
            }
            match self.read_layer(&path, &name) {
                Ok(layer) => {
                    self.layers.insert(name, layer);
                }
                Err(why) => self.bad_layers.push((path, why)),
            }
        }
    }

    fn read_layer(&self, path: &Path, name: &str) -> Result<LayerEntry, String> {
        if !is_hex_id(name) {
            return Err("not the name of a layer".to_owned());
        }
        let text = |file: &str| {
            self.read_text(&path.join(file))
                .map_err(|e| format!("{file}: {e}"))
        };
        let cache_id = text("cache-id")?;
        // Docker's ids have 64 digits; from here on it is part of a path.
        if !is_hex_id(&cache_id) {
            return Err("its cache-id is not the name of a tree".to_owned());
        }
        let diff_id = text("diff")?
            .parse()
            .map_err(|_| "its diff is not a digest".to_owned())?;
        let parent = match self.exists(&path.join("parent")) {
            false => None,
            true => {
                let parent: Digest = text("parent")?
                    .parse()
                    .map_err(|_| "its parent is not a digest".to_owned())?;
                Some(hex_of(&parent))
            }
        };
        Ok(LayerEntry {
            cache_id,
            diff_id,
            parent,
        })
    }

    fn read_images(&mut self) -> Result<(), SourceError> {
        let mut names = self.read_names()?;
        let home = Path::new("image/overlay2/imagedb/content/sha256");
        for id in self.names_in(home) {
            let references = names.remove(&format!("sha256:{id}")).unwrap_or_default();
            let called = references
                .first()
                .map_or_else(|| id.clone(), Reference::familiar);
            match self.read_image(&home.join(&id), &id, references) {
                Ok(image) => self.images.push(image),
                Err(why) => self.broken.push((called, why)),
            }
        }
        for (id, references) in names {
            let called = references.first().map_or(id, Reference::familiar);
            let why = "its configuration is missing".to_owned();
            self.broken.push((called, why));
        }
        Ok(())
    }

    fn read_image(
        &mut self,
        path: &Path,
        id: &str,
        names: Vec<Reference>,
    ) -> Result<SourceImage, String> {
        let raw = self
            .read_limited(path, MAX_CONFIG_BYTES)
            .map_err(|e| e.to_string())?;
        let config = ImageConfig::parse(raw).map_err(|e| e.to_string())?;
        if hex_of(&config.id) != id {
            return Err("its configuration doesn't match its id".to_owned());
        }
        let chain = config.chain_ids();
        self.image_chains
            .extend(chain.last().map(|top| hex_of(top.digest())));
        let mut below: Option<String> = None;
        for (chain, diff_id) in chain.iter().zip(&config.diff_ids) {
            let name = hex_of(chain.digest());
            let layer = self
                .layers
                .get(&name)
                .ok_or_else(|| format!("layer {chain} is missing", chain = chain.digest()))?;
            if layer.diff_id != *diff_id || layer.parent != below {
                return Err(format!("layer {} contradicts itself", chain.digest()));
            }
            if !self.exists(&tree_of(layer)) {
                return Err(format!("the tree of layer {} is missing", chain.digest()));
            }
            below = Some(name);
        }
        SourceImage::new(config, None, names).map_err(|e| e.to_string())
    }

    /// Returns the names by the id of their image. Registry digests are not names that anyone gave.
    fn read_names(&self) -> Result<BTreeMap<String, Vec<Reference>>, SourceError> {
        let path = Path::new("image/overlay2/repositories.json");
        let mut names: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
        if !self.exists(path) {
            return Ok(names);
        }
        let raw = self
            .read(path)
            .map_err(|e| SourceError::io(self.path.join(path).display().to_string(), e))?;
        let all: Repositories = json::read(&raw)
            .map_err(|e| SourceError::Malformed(format!("{}: {e}", path.display())))?;
        for (name, id) in all.repositories.into_values().flatten() {
            if !name.contains('@') {
                names.entry(id).or_default().push(Reference::parse(&name)?);
            }
        }
        Ok(names)
    }

    fn layerdb(&self, part: &str) -> PathBuf {
        Path::new("image/overlay2/layerdb").join(part)
    }

    /// Returns the names in a directory, sorted; none if it can't be read. Names that are not UTF-8
    /// are not Docker's, and are left out.
    fn names_in(&self, path: &Path) -> Vec<String> {
        let Ok(dir) = self.dir.open_dir(path) else {
            return Vec::new();
        };
        let mut names: Vec<String> = dir
            .entries()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.name.into_string().ok())
            .collect();
        names.sort();
        names
    }

    fn exists(&self, path: &Path) -> bool {
        self.dir.open_path(path).is_ok()
    }

    fn open_file(&self, path: &Path) -> std::io::Result<File> {
        let handle = self.dir.open_path(path).map_err(|e| e.source)?;
        if vellum_sys::stat::stat_fd(&handle)
            .map_err(|e| e.source)?
            .kind
            != FileKind::File
        {
            return Err(std::io::Error::other("it is not a file"));
        }
        vellum_sys::rooted::reopen(&handle).map_err(|e| e.source)
    }

    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        self.read_limited(path, MAX_FILE_BYTES)
    }

    fn read_limited(&self, path: &Path, limit_bytes: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(path)?
            .take(limit_bytes + 1)
            .read_to_end(&mut bytes)?;
        match bytes.len() as u64 > limit_bytes {
            true => Err(std::io::Error::other("it is too long")),
            false => Ok(bytes),
        }
    }

    fn read_text(&self, path: &Path) -> std::io::Result<String> {
        String::from_utf8(self.read_limited(path, 4096)?).map_err(std::io::Error::other)
    }
}

impl ImageSource for DockerRoot {
    fn describe(&self) -> String {
        format!("docker-root:{}", self.path.display())
    }

    fn images(&self) -> &[SourceImage] {
        &self.images
    }

    fn open_layer(&self, image: usize, layer: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let chain = self.images[image].config.chain_ids();
        let name = hex_of(chain[layer].digest());
        let missing = |path: &Path| SourceError::Missing {
            path: path.display().to_string(),
            source_name: self.describe(),
        };
        let record = self.layerdb("sha256").join(&name).join("tar-split.json.gz");
        let Some(entry) = self.layers.get(&name) else {
            return Err(missing(&record));
        };
        let recipe = self.open_file(&record).map_err(|_| missing(&record))?;
        let tree = tree_of(entry);
        let tree = self.dir.open_dir(&tree).map_err(|_| missing(&tree))?;
        Ok(Box::new(Joined::new(recipe, tree)))
    }

    fn layer_tree(&self, image: usize, layer: usize) -> Option<Dir> {
        let chain = self.images[image].config.chain_ids();
        let entry = self.layers.get(&hex_of(chain[layer].digest()))?;
        self.dir.open_dir(tree_of(entry)).ok()
    }
}

fn tree_of(layer: &LayerEntry) -> PathBuf {
    Path::new("overlay2").join(&layer.cache_id).join("diff")
}

fn hex_of(digest: &Digest) -> String {
    let text = digest.to_string();
    text.strip_prefix("sha256:").unwrap_or(&text).to_owned()
}

fn is_hex_id(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

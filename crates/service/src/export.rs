//! `export containers-storage`: images of the store as an additional image store that Podman, Buildah and CRI-O read in place.
//!
//! Nothing is unpacked or copied: the layers there are symbolic links to the trees of the store, beside records and tar-splits of their own making.
//! A lease without end keeps the layers meanwhile; it ends with the export. Why links: docs/decisions/0029-exported-stores.md.
//!
//! Order on disk: a staged directory beside the target, in it a note with the lease's name; the lease; everything else; sync; exchanged with
//! what was there; the old one's lease ended, its tree removed. A crash leaves the target as it was or as it is to be, and perhaps a staged directory,
//! whose note tells the next export or removal which lease to end. [`target`] has these steps, [`layers`] what is linked to.

mod layers;
mod target;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum_image::containers_storage::{ImageEntry, LayerEntry, LayerId, layers_json};
use vellum_image::sink::{LayerSupply, OutImage};
use vellum_image::tar_split::TarSplit;
use vellum_image::{Digest, Reference};
use vellum_store::{Held, LeaseId, Store};
use vellum_sys::rooted::Dir;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::exported;
use layers::{Linked, choose, in_order, layer_ids, no_records, privileged};
use target::Target;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// The directory that Podman is told of (`additionalimagestores`). It is made, or replaced if it is an export of this store.
    pub dir: PathBuf,
    /// The images, by name or id; none means all that have a name.
    pub images: Vec<String>,
    /// Only say what would be written.
    pub dry_run: bool,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// Where, readable.
    pub dir: String,
    /// The images.
    pub images: Vec<ExportedImage>,
    /// How many layers they have together.
    pub layers: usize,
}

/// One image.
#[derive(Clone, Debug, Serialize)]
pub struct ExportedImage {
    /// Its id.
    pub id: String,
    /// The names it has there.
    pub names: Vec<String>,
    /// The digest of its manifest there.
    pub manifest: String,
}

/// Writes the export, or replaces it. Durable on return; what was there before is there until then.
pub fn containers_storage(context: &Context, request: &ExportRequest) -> Result<Exported> {
    let store = context.store()?;
    let target = Target::open(context, &request.dir)?;
    let mut images = exported::collect(context, &request.images)?;
    if request.dry_run {
        let layers = choose(store, &mut images)?;
        target.check(store)?;
        return Ok(told(request, &images, &layers));
    }
    let staged = target.stage(store)?;
    let done = hold(store, &staged.lease, &images)
        .and_then(|()| choose(store, &mut images))
        .and_then(|layers| {
            write(context, &staged.root, &images, &layers)?;
            Ok(told(request, &images, &layers))
        });
    match done {
        Ok(done) => target.publish(store, staged).map(|()| done),
        Err(error) => {
            if let Err(error) = target.clear(store) {
                tracing::warn!(%error, "what was staged stays; the next export removes it");
            }
            Err(error)
        }
    }
}

/// Takes an export away, and what a killed one left. What Podman runs from it goes on, since mounts keep what they show.
pub fn remove(context: &Context, dir: &Path) -> Result<()> {
    Target::open(context, dir)?.remove(context.store()?)
}

fn told(
    request: &ExportRequest,
    images: &[OutImage],
    layers: &BTreeMap<LayerId, Linked>,
) -> Exported {
    Exported {
        dir: request.dir.display().to_string(),
        images: images
            .iter()
            .map(|image| ExportedImage {
                id: image.config.id.to_string(),
                names: image.names.iter().map(Reference::familiar).collect(),
                manifest: image
                    .manifest
                    .as_ref()
                    .map(|m| m.digest.to_string())
                    .unwrap_or_default(),
            })
            .collect(),
        layers: layers.len(),
    }
}

fn hold(store: &Store, lease: &LeaseId, images: &[OutImage]) -> Result<()> {
    for layer in images.iter().flat_map(|image| &image.layers) {
        store.hold(lease, &Held::Snapshot(exported::key(&layer.chain_id)))?;
        store.hold(lease, &Held::Recipe(exported::to_store(&layer.diff_id)))?;
    }
    Ok(())
}

fn write(
    context: &Context,
    root: &Dir,
    images: &[OutImage],
    layers: &BTreeMap<LayerId, Linked>,
) -> Result<()> {
    let supply = exported::supply(context, context.store()?, images)?;
    let trees = root.create_dir_all("overlay", 0o700)?;
    let links = trees.create_dir_all("l", 0o700)?;
    let records = root.create_dir_all("overlay-layers", 0o700)?;
    for (id, layer) in layers {
        context.go_on()?;
        let own = trees.create_dir_all(id.as_str(), 0o700)?;
        own.symlink(&layer.tree, "diff")?;
        text(&own, "link", id.link().as_bytes())?;
        if !layer.below.is_empty() {
            text(&own, "lower", layer.below.join(":").as_bytes())?;
        }
        if !privileged() {
            no_records(&layer.tree)?;
        }
        links.symlink(format!("../{}/diff", id.as_str()), id.link())?;
        let file = records.create_file(format!("{}.tar-split.gz", id.as_str()), 0o600)?;
        let mut checked = Checked::new(TarSplit::new(file));
        supply
            .write_tar(&layer.source, &mut checked)
            .map_err(|why| Error::Damaged {
                what: format!("layer {}", layer.source.diff_id),
                why: why.to_string(),
            })?;
        checked.finish(&layer.source.diff_id)?;
    }
    let entries: Vec<LayerEntry> = in_order(layers);
    json(&records, "layers.json", &layers_json(&entries))?;
    text(&records, "layers.lock", b"")?;
    let records = root.create_dir_all("overlay-images", 0o700)?;
    let mut all = Vec::new();
    for image in images {
        let Some(manifest) = &image.manifest else {
            continue;
        };
        let ids = layer_ids(image);
        let entry = ImageEntry {
            config: &image.config,
            manifest,
            names: &image.names,
            top: ids.last(),
        };
        let own = records.create_dir_all(image.config.id.hex(), 0o700)?;
        for (name, content) in entry.files() {
            text(&own, &name, content)?;
        }
        all.push(entry.json());
    }
    json(&records, "images.json", &all)?;
    text(&records, "images.lock", b"")?;
    // Podman asks for it although it runs no container from here.
    root.create_dir_all("overlay-containers", 0o700)?;
    text(root, "storage.lock", b"")
}

/// Compares what passes with a diff ID.
struct Checked<W: Write> {
    out: TarSplit<W>,
    hasher: vellum_image::digest::Hasher,
}

impl<W: Write> Checked<W> {
    fn new(out: TarSplit<W>) -> Self {
        Self {
            out,
            hasher: vellum_image::digest::Hasher::default(),
        }
    }

    fn finish(self, diff_id: &Digest) -> Result<()> {
        let found = self.hasher.finish();
        if found != *diff_id {
            return Err(Error::Damaged {
                what: format!("layer {diff_id}"),
                why: format!("its tree gives a tar with the digest {found}"),
            });
        }
        self.out
            .finish()
            .map(drop)
            .map_err(Error::io("write", "a tar-split"))
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let taken = self.out.write(buf)?;
        self.hasher.update(&buf[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn text(dir: &Dir, name: &str, content: &[u8]) -> Result<()> {
    let mut file = dir.create_file(name, 0o600)?;
    file.write_all(content).map_err(Error::io("write", name))
}

fn json(dir: &Dir, name: &str, value: &impl Serialize) -> Result<()> {
    let content = serde_json::to_vec(value).map_err(|e| Error::io("write", name)(e.into()))?;
    text(dir, name, &content)
}

//! OCI image layouts: a directory, or a tar archive of one, of blobs named by digest.
//!
//! `index.json` points to manifests (or to further indexes, one entry for each platform); every
//! other file is `blobs/sha256/<hex>`. A digest becomes part of a path only after it has been
//! parsed. Everything read is checked against its digest, so a layout can be wrong but can't
//! mislead us. Names come from the annotations that tools write; a bare tag, as `skopeo` and
//! `umoci` write it, names no repository and therefore no image. What is not an image (a statement
//! about one, an artifact, an unknown type) is ignored if there are images.
//!
//! The format is the image specification's `image-layout.md`.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vellum_format::Digest;

use super::archive::Archive;
use super::{ImageSource, SourceError, SourceImage, docker_archive, tags};

use crate::config::ImageConfig;
use crate::hash::VerifyRead;
use crate::json;
use crate::manifest::{
    Descriptor, Document, Index, IndexEntry, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest,
    ManifestError, check_size,
};
use crate::platform::Platform;
use crate::reference::Reference;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Indexes may point to indexes; no tool nests them deeper than this.
const MAX_DEPTH: usize = 16;

/// An opened OCI layout.
#[derive(Debug)]
pub struct OciLayout {
    files: Files,
    images: Vec<SourceImage>,
}

/// Where the layout's files are.
#[derive(Debug)]
enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

impl OciLayout {
    /// Returns the images of the layout in the directory `path`, for platform `wanted`.
    pub fn from_directory(path: &Path, wanted: &Platform) -> Result<Self, SourceError> {
        Self::open(Files::Directory(path.to_owned()), wanted)
    }

    /// Returns the images of the layout in a tar archive, for platform `wanted`.
    pub fn from_archive(archive: Archive, wanted: &Platform) -> Result<Self, SourceError> {
        Self::open(Files::Archive(archive), wanted)
    }

    fn open(files: Files, wanted: &Platform) -> Result<Self, SourceError> {
        check_version(&files)?;
        let raw = files.read("index.json", "index.json", MAX_MANIFEST_BYTES)?;
        let first = json::first(&raw).map_err(|source| ManifestError::Json {
            what: "index.json",
            source,
        });
        let index = Index::parse(first?.to_vec())?;
        let mut images: Vec<SourceImage> = Vec::new();
        let mut artifact = None;
        for (entry, (names, odd_names)) in select(&files, &index, wanted)? {
            let manifest = resolve(&files, &entry.manifest, wanted, 0)?;
            // One image under several names is several entries with one digest.
            let same = |i: &&mut SourceImage| {
                i.manifest
                    .as_ref()
                    .is_some_and(|m| m.digest == manifest.digest)
            };
            if let Some(known) = images.iter_mut().find(same) {
                known.names.extend(names);
                known.odd_names.extend(odd_names);
                continue;
            }
            match image(&files, manifest, names) {
                Ok(image) => images.push(SourceImage { odd_names, ..image }),
                Err(SourceError::Manifest(ManifestError::Artifact(kind))) => artifact = Some(kind),
                Err(e) => return Err(e),
            }
        }
        if let (Some(kind), []) = (artifact, &images[..]) {
            return Err(ManifestError::Artifact(kind).into());
        }
        add_archive_names(&files, &mut images)?;
        Ok(Self { files, images })
    }
}

impl ImageSource for OciLayout {
    fn describe(&self) -> String {
        match &self.files {
            Files::Directory(path) => format!("oci:{}", path.display()),
            Files::Archive(archive) => format!("oci-archive:{}", archive.name()),
        }
    }

    fn images(&self) -> &[SourceImage] {
        &self.images
    }

    fn open_layer(&self, image: usize, layer: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let layer = &self.images[image].layers[layer];
        let blob = layer.described()?;
        match self.files.open_blob(&blob.blob.digest) {
            Err(SourceError::Missing { .. }) if blob.is_foreign() => {
                Err(ManifestError::ForeignLayer(blob.blob.digest).into())
            }
            opened => opened,
        }
    }
}

/// Returns the image of a manifest. Errors: [`ManifestError::Artifact`] if it states that it is
/// something else.
fn image(
    files: &Files,
    mut manifest: Manifest,
    names: Vec<Reference>,
) -> Result<SourceImage, SourceError> {
    const WHAT: &str = "the image configuration";
    let artifact = manifest.artifact.clone();
    // The sizes in a manifest are useless, and often wrong: the digests protect the blobs.
    for layer in &mut manifest.layers {
        if let Ok((_, size_bytes)) = files.open(&blob_path(&layer.blob.digest)) {
            layer.blob.size_bytes = size_bytes;
        }
    }
    let config = files.blob(&manifest.config, WHAT, MAX_CONFIG_BYTES)?;
    match (ImageConfig::parse(config), artifact) {
        (Err(ManifestError::Json { .. }), Some(kind)) => Err(ManifestError::Artifact(kind).into()),
        (config, _) => SourceImage::new(config?, Some(manifest), names),
    }
}

fn check_version(files: &Files) -> Result<(), SourceError> {
    #[derive(Default)]
    struct Layout {
        image_layout_version: String,
    }
    json::fields!(Layout { "imageLayoutVersion" => image_layout_version });
    let raw = files.read("oci-layout", "oci-layout", 1 << 16)?;
    let layout: Layout = crate::manifest::read_first("oci-layout", &raw)?;
    if layout.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    Err(SourceError::Malformed(format!(
        "{} has the unknown layout version {:?}",
        files.name(),
        layout.image_layout_version
    )))
}

/// The names of an entry: image names, and texts that are not.
type Names = (Vec<Reference>, Vec<String>);

/// Returns the entries of the top index that are images for `wanted`, with their names.
///
/// Entries with one name are one image for several platforms, and so are all entries without a name
/// if they state their platforms.
fn select<'a>(
    files: &Files,
    index: &'a Index,
    wanted: &Platform,
) -> Result<Vec<(&'a IndexEntry, Names)>, SourceError> {
    let mut groups: Vec<(Option<&str>, Vec<&IndexEntry>)> = Vec::new();
    for entry in index.images() {
        let name = called(entry).next();
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, entries)) => entries.push(entry),
            None => groups.push((name, vec![entry])),
        }
    }
    let mut selected = Vec::new();
    for (_, entries) in groups {
        if entries.len() > 1 && entries.iter().all(|e| e.platform.is_none()) {
            selected.extend(entries.into_iter().map(|e| (e, names(e))));
        } else {
            let entry = choose(files, &entries, wanted)?;
            selected.push((entry, names(entry)));
        }
    }
    if selected.is_empty() {
        return Err(SourceError::Malformed(format!(
            "{} holds no image",
            files.name()
        )));
    }
    Ok(selected)
}

/// The names in an entry's annotations, the full name first.
fn called(entry: &IndexEntry) -> impl Iterator<Item = &str> {
    let annotations = &entry.annotations;
    let said = [CONTAINERD_NAME, REF_NAME].into_iter();
    said.filter_map(|key| annotations.get(key).map(String::as_str))
        .filter(|name| !name.is_empty())
}

/// The first of an entry's names that is an image name. A bare tag, or anything else, is a name
/// only within this layout.
fn names(entry: &IndexEntry) -> Names {
    let full: Vec<&str> = called(entry)
        .filter(|name| name.contains(['/', ':']))
        .collect();
    // A digest in a name must be the entry's own.
    let kept = |name: &Reference| name.digest().is_none_or(|d| *d == entry.manifest.digest);
    let mut parsed = full.iter().filter_map(|name| Reference::parse(name).ok());
    match parsed.find(kept) {
        Some(name) => (vec![name], Vec::new()),
        None => (Vec::new(), full.into_iter().map(str::to_owned).collect()),
    }
}

/// Returns the entry for `wanted` among those whose blobs are present.
///
/// An archive of one platform of a multi-platform image still lists the others.
fn choose<'a>(
    files: &Files,
    entries: &[&'a IndexEntry],
    wanted: &Platform,
) -> Result<&'a IndexEntry, SourceError> {
    let present: Vec<&IndexEntry> = entries
        .iter()
        .copied()
        .filter(|e| files.has_blob(&e.manifest.digest))
        .collect();
    if let ([], Some(absent)) = (&present[..], entries.first()) {
        return Err(SourceError::Missing {
            path: blob_path(&absent.manifest.digest),
            source_name: files.name(),
        });
    }
    // A sole entry is the only choice: `load` says so if it is for another platform.
    if let [only] = present[..] {
        return Ok(only);
    }
    let offers: Vec<_> = present.iter().map(|e| e.platform.clone()).collect();
    match crate::platform::choose(wanted, &offers) {
        Some(at) => Ok(present[at]),
        None => Err(no_platform(files.name(), wanted, offers.iter().flatten())),
    }
}

pub(crate) fn no_platform<'a>(
    source_name: String,
    wanted: &Platform,
    offers: impl Iterator<Item = &'a Platform>,
) -> SourceError {
    let offered: Vec<String> = offers.map(Platform::to_string).collect();
    SourceError::NoPlatform {
        source_name,
        wanted: wanted.to_string(),
        offered: if offered.is_empty() {
            "none".to_owned()
        } else {
            offered.join(", ")
        },
    }
}

/// Follows indexes down to a manifest.
fn resolve(
    files: &Files,
    descriptor: &Descriptor,
    wanted: &Platform,
    depth: usize,
) -> Result<Manifest, SourceError> {
    if depth > MAX_DEPTH {
        return Err(SourceError::Malformed(format!(
            "{} nests indexes too deeply",
            files.name()
        )));
    }
    let raw = files.blob(descriptor, "the manifest", MAX_MANIFEST_BYTES)?;
    match Document::parse(raw, Some(&descriptor.media_type))? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(index) => {
            let entries: Vec<_> = index.images().collect();
            if entries.is_empty() {
                return Err(no_platform(files.name(), wanted, std::iter::empty()));
            }
            let entry = choose(files, &entries, wanted)?;
            resolve(files, &entry.manifest, wanted, depth + 1)
        }
    }
}

/// Docker's archives are layouts whose full names are in `manifest.json`.
fn add_archive_names(files: &Files, images: &mut [SourceImage]) -> Result<(), SourceError> {
    let Files::Archive(archive) = files else {
        return Ok(());
    };
    if !archive.contains("manifest.json") {
        return Ok(());
    }
    for entry in docker_archive::read_manifest(archive)? {
        let raw = archive.read(&entry.config, "the image configuration", MAX_CONFIG_BYTES)?;
        let id = Digest::of(&raw);
        let (names, odd_names) = tags::parse_tags(entry.repo_tags.into_vec());
        for image in images.iter_mut().filter(|i| i.config.id == id) {
            let known = image.names.clone();
            image
                .names
                .extend(names.iter().filter(|name| !known.contains(name)).cloned());
            image.odd_names.extend(odd_names.iter().cloned());
        }
    }
    Ok(())
}

/// Returns the path of a blob inside a layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Files {
    fn name(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Archive(archive) => archive.name().to_owned(),
        }
    }

    fn has_blob(&self, digest: &Digest) -> bool {
        let path = blob_path(digest);
        match self {
            Self::Directory(root) => root.join(path).is_file(),
            Self::Archive(archive) => archive.contains(&path),
        }
    }

    fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, SourceError> {
        self.open(&blob_path(digest)).map(|(reader, _)| reader)
    }

    fn open(&self, path: &str) -> Result<(Box<dyn Read + Send>, u64), SourceError> {
        match self {
            Self::Archive(archive) => {
                let section = archive.open(path)?;
                let size_bytes = section.left_bytes();
                Ok((Box::new(section), size_bytes))
            }
            Self::Directory(root) => {
                let full = root.join(path);
                let (file, size_bytes) = open_regular(&full).map_err(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => SourceError::Missing {
                        path: path.to_owned(),
                        source_name: self.name(),
                    },
                    _ => SourceError::io(full.display().to_string(), e),
                })?;
                Ok((Box::new(file), size_bytes))
            }
        }
    }

    fn read(
        &self,
        path: &str,
        what: &'static str,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let (reader, size_bytes) = self.open(path)?;
        check_size(what, size_bytes, limit_bytes)?;
        let mut bytes = Vec::new();
        reader
            .take(limit_bytes)
            .read_to_end(&mut bytes)
            .map_err(|e| SourceError::io(self.name(), e))?;
        Ok(bytes)
    }

    /// Reads and checks a small blob.
    fn blob(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let (inner, size_bytes) = self.open(&blob_path(&descriptor.digest))?;
        check_size(what, size_bytes, limit_bytes)?;
        let mut bytes = Vec::new();
        VerifyRead::new(inner, what, descriptor.digest, Some(size_bytes))
            .read_to_end(&mut bytes)
            .map_err(|e| SourceError::io(self.name(), e))?;
        Ok(bytes)
    }
}

/// Opens a regular file; a pipe or device in its place neither blocks nor is read.
fn open_regular(path: &Path) -> std::io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    Ok((file, metadata.len()))
}

//! What `docker save` and `podman save` write: a tar archive with a `manifest.json`.
//!
//! `manifest.json` lists images; each names the file of its configuration, the files of its layers
//! (bottom first, wherever they are in the archive, perhaps through links) and its tags. There is
//! no manifest in the registry's sense and no digest of anything: a layer is checked against its
//! diff ID when it is unpacked, and the configuration *is* the image's identity. Layer files may be
//! compressed. The format is Docker's `image/spec/v1.2.md`.

use std::io::Read;

use super::archive::Archive;
use super::tags::parse_tags;
use super::{ImageSource, SourceError, SourceImage, docker_legacy};
use crate::config::ImageConfig;
use crate::json::{self, List};
use crate::manifest::{MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, read_first};

/// An opened docker-archive.
#[derive(Debug)]
pub struct DockerArchive {
    archive: Archive,
    images: Vec<SourceImage>,
    /// For each image, the names of its layers' files.
    layer_files: Vec<Vec<String>>,
}

#[derive(Default)]
pub(super) struct ManifestEntry {
    pub(super) config: String,
    pub(super) repo_tags: List<String>,
    layers: List<String>,
}

json::fields!(ManifestEntry {
    "Config" => config,
    "RepoTags" => repo_tags,
    "Layers" => layers,
});

impl DockerArchive {
    /// Returns the images that `archive` lists.
    ///
    /// Errors if its `manifest.json` is missing, lists no image, or names files that aren't there.
    pub fn open(archive: Archive) -> Result<Self, SourceError> {
        let mut images = Vec::new();
        let mut layer_files = Vec::new();
        for entry in read_manifest(&archive)? {
            let raw = archive.read(&entry.config, "the image configuration", MAX_CONFIG_BYTES)?;
            let config = ImageConfig::parse(raw)?;
            let layers = entry.layers.into_vec();
            if layers.len() != config.diff_ids.len() {
                return Err(SourceError::Malformed(format!(
                    "{} lists {} layers for an image whose configuration has {}",
                    archive.name(),
                    layers.len(),
                    config.diff_ids.len()
                )));
            }
            for file in &layers {
                archive.open(file)?;
            }
            let (names, odd_names) = parse_tags(entry.repo_tags.into_vec());
            images.push(SourceImage {
                odd_names,
                ..SourceImage::new(config, None, names)?
            });
            layer_files.push(layers);
        }
        Self::of(archive, images, layer_files)
    }

    /// Returns the images of an archive that has no `manifest.json`, only `repositories`.
    pub fn open_legacy(archive: Archive) -> Result<Self, SourceError> {
        let (images, layer_files) = docker_legacy::images(&archive)?.into_iter().unzip();
        Self::of(archive, images, layer_files)
    }

    fn of(
        archive: Archive,
        images: Vec<SourceImage>,
        layer_files: Vec<Vec<String>>,
    ) -> Result<Self, SourceError> {
        if images.is_empty() {
            return Err(SourceError::Malformed(format!(
                "{} holds no image",
                archive.name()
            )));
        }
        Ok(Self {
            archive,
            images,
            layer_files,
        })
    }
}

impl ImageSource for DockerArchive {
    fn describe(&self) -> String {
        format!("docker-archive:{}", self.archive.name())
    }

    fn images(&self) -> &[SourceImage] {
        &self.images
    }

    fn open_layer(&self, image: usize, layer: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        Ok(Box::new(
            self.archive.open(&self.layer_files[image][layer])?,
        ))
    }
}

/// Reads and parses the archive's `manifest.json`.
pub(super) fn read_manifest(archive: &Archive) -> Result<Vec<ManifestEntry>, SourceError> {
    let raw = archive.read("manifest.json", "manifest.json", MAX_MANIFEST_BYTES)?;
    let entries: List<ManifestEntry> = read_first("manifest.json", &raw)?;
    Ok(entries.into_vec())
}

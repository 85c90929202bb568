//! Where images come from: archives, layouts and registries, behind one trait.
//!
//! A source is opened once, lists the images it holds, and hands out layers as byte streams, in any
//! order and several at a time. What it lists has been parsed and checked: digests are well formed,
//! manifests and configurations match their digests. Layers are handed out unchecked: a caller that
//! reads one hashes it anyway, since the diff ID must be known, and compares
//! ([`SourceLayer::check`]).
//!
//! A source must not know where layers go, and never uses text from an image as a path.

use std::fs::File;
use std::io::{self, Read};

use vellum_format::Digest;
use vellum_sys::Dir;

use crate::config::ImageConfig;
use crate::manifest::{LayerBlob, Manifest, ManifestError};
use crate::reference::{Reference, ReferenceError};
use crate::stream::BlobFacts;

mod archive;
pub mod docker_archive;
mod docker_legacy;
pub mod docker_root;
pub mod oci_layout;
mod spool;
mod tags;

pub use archive::Archive;
pub use spool::open_seekable;

/// One layer of an image in a source.
#[derive(Clone, Debug)]
pub struct SourceLayer {
    /// The digest of the uncompressed layer, from the image's configuration.
    pub diff_id: Digest,
    /// The blob, where the source has a manifest; `None` in an archive that names files only.
    pub blob: Option<LayerBlob>,
}

impl SourceLayer {
    /// Returns the blob. Errors: `Malformed` if the source doesn't name it.
    pub(crate) fn described(&self) -> Result<&LayerBlob, SourceError> {
        self.blob.as_ref().ok_or_else(|| {
            SourceError::Malformed(format!("layer {} has no descriptor", self.diff_id))
        })
    }

    /// Fails unless what was read is what the image promised: blob digest, blob size, diff ID.
    pub fn check(&self, found: &BlobFacts) -> Result<(), crate::Error> {
        if let Some(LayerBlob { blob, .. }) = &self.blob {
            let what = || format!("layer blob {}", blob.digest);
            if found.blob_bytes != blob.size_bytes {
                return Err(crate::Error::SizeMismatch {
                    what: what(),
                    expected: blob.size_bytes,
                    found: found.blob_bytes,
                });
            }
            if found.blob_digest != blob.digest {
                return Err(crate::Error::DigestMismatch {
                    what: what(),
                    expected: blob.digest,
                    found: found.blob_digest,
                });
            }
        }
        if found.diff_id != self.diff_id {
            return Err(crate::Error::DigestMismatch {
                what: format!("uncompressed layer {}", self.diff_id),
                expected: self.diff_id,
                found: found.diff_id,
            });
        }
        Ok(())
    }
}

/// One image in a source.
#[derive(Clone, Debug)]
pub struct SourceImage {
    /// The configuration; its digest has been checked where the source promised one.
    pub config: ImageConfig,
    /// The manifest, where the source has one; its layers match the configuration's in number.
    pub manifest: Option<Manifest>,
    /// The layers, bottom first.
    pub layers: Vec<SourceLayer>,
    /// The names the source gives it; may be empty.
    pub names: Vec<Reference>,
    /// Other names that the source gives it, which are not image names.
    pub odd_names: Vec<String>,
}

impl SourceImage {
    /// Returns the image, if manifest and configuration match.
    pub fn new(
        config: ImageConfig,
        manifest: Option<Manifest>,
        names: Vec<Reference>,
    ) -> Result<Self, SourceError> {
        if let Some(manifest) = &manifest
            && manifest.layers.len() != config.diff_ids.len()
        {
            if let Some(kind) = &manifest.artifact {
                return Err(ManifestError::Artifact(kind.clone()).into());
            }
            return Err(SourceError::Malformed(format!(
                "its manifest lists {} layers and its configuration {}",
                manifest.layers.len(),
                config.diff_ids.len()
            )));
        }
        let layers = config
            .diff_ids
            .iter()
            .enumerate()
            .map(|(at, diff_id)| SourceLayer {
                diff_id: *diff_id,
                blob: manifest.as_ref().map(|m| m.layers[at].clone()),
            })
            .collect();
        Ok(Self {
            config,
            manifest,
            layers,
            names,
            odd_names: Vec::new(),
        })
    }
}

/// Something that images can be read from.
///
/// Layers may be opened from several threads at once and in any order.
pub trait ImageSource: Send + Sync {
    /// Returns what a person would call this source, such as `docker-archive:debian.tar`.
    fn describe(&self) -> String;

    /// Returns the images it holds, at least one.
    fn images(&self) -> &[SourceImage];

    /// Returns the bytes of a layer as the source stores them, perhaps compressed.
    ///
    /// Nothing is checked yet: read it through [`crate::LayerStream`] and check it with
    /// [`SourceLayer::check`]. `image` and `layer` are positions in [`ImageSource::images`] and
    /// [`SourceImage::layers`].
    fn open_layer(&self, image: usize, layer: usize) -> Result<Box<dyn Read + Send>, SourceError>;

    /// Returns a tree that may have the layer's files, for sharing their blocks; its content is not
    /// guaranteed.
    fn layer_tree(&self, _image: usize, _layer: usize) -> Option<Dir> {
        None
    }
}

/// Why an image can't be read from a source or written to a sink.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file could not be read or written.
    #[error("{path}")]
    Io {
        /// The file, or a description (`standard input`).
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source violates its own format.
    #[error("the image is malformed: {0}")]
    Malformed(String),
    /// Neither an image archive nor a layout.
    #[error("{0} is neither a docker-archive nor an OCI layout")]
    NotAnImage(String),
    /// A directory to be adopted that is not Docker's data root, or belongs to another of its
    /// drivers.
    #[error("{path} can't be adopted: {why}")]
    NotADataRoot {
        /// The directory.
        path: String,
        /// What it is instead.
        why: String,
    },
    /// A file that the source's own index names is missing.
    #[error("{path} is missing in {source_name}")]
    Missing {
        /// The missing file.
        path: String,
        /// Where it should be.
        source_name: String,
    },
    /// No image for the wanted platform.
    #[error("{source_name} has no image for {wanted}; it has {offered}")]
    NoPlatform {
        /// The source.
        source_name: String,
        /// The platform asked for.
        wanted: String,
        /// The available ones, or `none`.
        offered: String,
    },
    /// A manifest, index or configuration is not usable.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A name in the source is not an image name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A registry answered with an error, or not at all.
    #[cfg(feature = "registry")]
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
    /// A layer to be written can't be produced.
    #[error("layer {diff_id} can't be written")]
    Supply {
        /// Which layer.
        diff_id: Digest,
        /// Its supply's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The user asked to stop.
    #[error("stopped")]
    Stopped(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A blob is not what was promised, or can't be decompressed.
    #[error(transparent)]
    Layer(#[from] crate::error::Error),
}

impl SourceError {
    /// Returns the error for input or output that failed at `path`.
    ///
    /// An error of this crate that passed through `Read` (a wrong digest, for example) becomes
    /// itself again.
    pub fn io(path: impl Into<String>, source: io::Error) -> Self {
        match source.downcast::<crate::Error>() {
            Ok(own) => Self::Layer(own),
            Err(source) => Self::Io {
                path: path.into(),
                source,
            },
        }
    }
}

/// Opens the archive or layout at `file`, in any supported format.
///
/// A file that holds both an OCI layout and a docker-archive (Docker writes both since version 25)
/// is read as the layout, which keeps the manifest; the archive's names are added.
pub fn open_archive(
    file: File,
    name: String,
    wanted: &crate::platform::Platform,
) -> Result<Box<dyn ImageSource>, SourceError> {
    let archive = Archive::index(file, name)?;
    if archive.contains("index.json") && archive.contains("oci-layout") {
        Ok(Box::new(oci_layout::OciLayout::from_archive(
            archive, wanted,
        )?))
    } else if archive.contains("manifest.json") {
        Ok(Box::new(docker_archive::DockerArchive::open(archive)?))
    } else if archive.contains("repositories") {
        Ok(Box::new(docker_archive::DockerArchive::open_legacy(
            archive,
        )?))
    } else {
        Err(SourceError::NotAnImage(archive.name().to_owned()))
    }
}

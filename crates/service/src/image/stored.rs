//! What the store keeps of an image in addition to its layers, read and parsed.
//!
//! Blobs are verified while they are read: a damaged one is an error, never a different image.

use vellum_image::manifest::{Document, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use vellum_image::{ImageConfig, Manifest};
use vellum_store::{ImageRecord, Store, StoreError};

use crate::error::{Error, Result};

/// Reads the configuration of a recorded image.
pub(super) fn config(store: &Store, image: &ImageRecord) -> Result<ImageConfig> {
    Ok(ImageConfig::parse(
        store.read_blob(&image.id, MAX_CONFIG_BYTES)?,
    )?)
}

/// Reads the manifest of a recorded image, with the real sizes of its layers' blobs: a manifest may
/// be wrong about them.
pub(super) fn manifest(store: &Store, image: &ImageRecord) -> Result<Manifest> {
    let raw = store.read_blob(&image.manifest, MAX_MANIFEST_BYTES)?;
    match Document::parse(raw, Some(&image.media_type))? {
        Document::Manifest(mut manifest) => {
            for (said, layer) in manifest.layers.iter_mut().zip(&image.layers) {
                if let Some(blob) = layer.blob.as_ref()
                    && blob.digest == said.blob.digest
                {
                    said.blob.size_bytes = blob.size_bytes;
                }
            }
            Ok(manifest)
        }
        Document::Index(_) => Err(Error::Store(StoreError::Damaged {
            what: format!("image {}", image.id),
            why: format!("its manifest {} is an index", image.manifest),
        })),
    }
}

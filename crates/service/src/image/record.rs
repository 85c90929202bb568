//! Turns an unpacked image into a recorded one: manifest, configuration, layers and names in one
//! transaction.

use vellum_image::manifest::LayerBlob;
use vellum_image::source::{ImageSource, SourceImage};
use vellum_image::{Compression, ImageConfig, Manifest, Platform, Reference};
use vellum_store::{ImageLayer, Lease, NewImage, Store, StoreError};

use super::key;
use super::unpack::{Unpacked, unpack};
use crate::context::Context;
use crate::error::Result;

/// An image that a verb has brought into the store.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BroughtIn {
    /// The image's id, `sha256:…`.
    pub id: String,
    /// The digest of its manifest.
    pub manifest: String,
    /// Its new names, in their short form.
    pub names: Vec<String>,
    /// Layers that were unpacked.
    pub new_layers: usize,
    /// Layers that the store already had.
    pub present_layers: usize,
    /// Names that were another image's, with the short id of that image.
    pub moved_names: Vec<(String, String)>,
}

/// Brings the image number `at` of `source` into the store under `names`.
pub(super) fn bring_in(
    context: &Context,
    source: &dyn ImageSource,
    at: usize,
    names: &[Reference],
    wanted: &Platform,
) -> Result<BroughtIn> {
    let store = context.store()?;
    let lease = store.lease(&format!("bringing in {}", source.describe()))?;
    let image = &source.images()[at];
    warn_of_platform(context, image, wanted);
    let layers = unpack(context, store, &lease, source, at)?;
    let manifest = match &image.manifest {
        Some(manifest) => manifest.clone(),
        None => manifest_for(store, &image.config, &layers)?,
    };
    record(store, lease, &image.config, &manifest, &layers, names)
}

/// Records the image and ends the lease; from now on the image keeps what it needs.
pub(super) fn record(
    store: &Store,
    lease: Lease,
    config: &ImageConfig,
    manifest: &Manifest,
    layers: &[Unpacked],
    names: &[Reference],
) -> Result<BroughtIn> {
    store.put_blob(&config.raw, Some(lease.id()))?;
    store.put_blob(&manifest.raw, Some(lease.id()))?;
    let new = NewImage {
        id: config.id,
        manifest: manifest.digest,
        media_type: manifest.media_type.clone(),
        layers: layers
            .iter()
            .zip(&manifest.layers)
            .map(|(layer, blob)| ImageLayer {
                snapshot: key(&layer.chain_id),
                diff_id: layer.diff_id,
                blob: Some(stored_blob(blob)),
            })
            .collect(),
        tags: names.iter().map(Reference::to_string).collect(),
    };
    let moved = store.put_image_and_end(&new, lease.id())?;
    let present_layers = layers.iter().filter(|l| l.present).count();
    Ok(BroughtIn {
        id: config.id.to_string(),
        manifest: manifest.digest.to_string(),
        names: names.iter().map(Reference::familiar).collect(),
        new_layers: layers.len() - present_layers,
        present_layers,
        moved_names: moved
            .into_iter()
            .map(|m| {
                (
                    super::names::familiar(&m.name),
                    crate::names::short(&m.from.to_string()).to_owned(),
                )
            })
            .collect(),
    })
}

pub(super) fn stored_blob(blob: &LayerBlob) -> vellum_store::LayerBlob {
    vellum_store::LayerBlob {
        media_type: blob.blob.media_type.clone(),
        digest: blob.blob.digest,
        size_bytes: blob.blob.size_bytes,
    }
}

/// Returns a manifest for an image that came without one.
///
/// If the store has one for the same image, that is kept: it may name the blobs of a registry.
/// Otherwise the layers are described as plain tars, which they are in an archive.
fn manifest_for(store: &Store, config: &ImageConfig, layers: &[Unpacked]) -> Result<Manifest> {
    match store.image(&config.id) {
        Ok(known) => return super::stored::manifest(store, &known),
        Err(StoreError::NotFound { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let blobs: Vec<LayerBlob> = layers
        .iter()
        .map(|l| LayerBlob::compose(l.diff_id, l.tar_bytes, Compression::None))
        .collect();
    Ok(Manifest::compose(
        &config.id,
        config.raw.len() as u64,
        &blobs,
    ))
}

fn warn_of_platform(context: &Context, image: &SourceImage, wanted: &Platform) {
    let found = image.config.platform();
    if found.os != wanted.os || found.architecture != wanted.architecture {
        context
            .progress
            .warn(&format!("the image is for {found}, not for {wanted}"));
    }
}

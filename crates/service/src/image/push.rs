//! `push`: pushes an image to a registry.

use std::path::PathBuf;

use vellum_image::registry;
use vellum_image::sink::SinkOptions;
use vellum_image::{Compression, Manifest, Reference};
use vellum_store::{ImageLayer, ImageRecord, NewImage, Store};

use super::pull::registry_options;
use super::record::stored_blob;
use super::supply::{StoreSupply, out_image};
use super::{parse_name, reference};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::progress::Unit;

/// What to push.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// The image in the store, by name or id.
    pub image: String,
    /// The name to push to; `None`: the name in `image`.
    pub destination: Option<String>,
    /// The compression of layers for which no manifest has a compressed blob.
    pub compression: Compression,
    /// Use plain HTTP with the registry, whatever is configured.
    pub insecure: bool,
    /// The file with logins, instead of the configured one.
    pub auth_file: Option<PathBuf>,
}

/// The result of a push.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PushedImage {
    /// The image's id.
    pub id: String,
    /// The name it now has in the registry.
    pub name: String,
    /// The digest of its manifest there.
    pub manifest: String,
    /// The number of layers sent.
    pub sent_layers: usize,
    /// The number of layers that the registry already had.
    pub present_layers: usize,
}

/// Pushes an image; blobs that the registry has are neither sent nor compressed.
pub fn push(context: &Context, request: &PushRequest) -> Result<PushedImage> {
    super::or_cancelled(context, run(context, request))
}

fn run(context: &Context, request: &PushRequest) -> Result<PushedImage> {
    let store = context.store()?;
    crate::names::with_image(context, &request.image, |record| {
        let to = destination(request, record)?;
        let names = record
            .tags
            .iter()
            .filter_map(|tag| Reference::parse(tag).ok())
            .collect();
        let mut image = out_image(store, record, names)?;
        // Plain layers come from archives; registries get compressed ones.
        image.manifest = image.manifest.filter(|m| {
            request.compression == Compression::None
                || m.layers.iter().all(|l| l.compression != Compression::None)
        });
        let options = registry_options(
            context,
            to.registry(),
            request.insecure,
            request.auth_file.clone(),
        );
        let sink = SinkOptions {
            compression: request.compression,
            spool_dir: store.root().join("staging"),
            jobs: context.config.jobs.value,
        };
        let supply = StoreSupply::new(context, store, std::slice::from_ref(&image))?;
        let total = image.layers.len();
        let meter = context.progress.meter(
            &format!("pushing {}", to.familiar()),
            Unit::Items,
            Some(total as u64),
        );
        let pushed = registry::push(
            &image,
            &to,
            &supply,
            &options,
            &sink,
            &context.cancel,
            &|_, _| meter.advance(1),
        )?;
        meter.finish("done");
        remember(store, record, &pushed.manifest)?;
        Ok(PushedImage {
            id: record.id.to_string(),
            name: to.familiar(),
            manifest: pushed.manifest.digest.to_string(),
            sent_layers: pushed.sent,
            present_layers: pushed.present,
        })
    })
}

fn destination(request: &PushRequest, record: &ImageRecord) -> Result<Reference> {
    if let Some(text) = &request.destination {
        return reference(text);
    }
    parse_name(&request.image)
        .filter(|name| record.tags.contains(&name.to_string()))
        .ok_or_else(|| Error::Invalid {
            what: format!("`{}` does not say where to push to", request.image),
            hint: Some("name the destination: `vellum push IMAGE HOST/NAME:TAG`".to_owned()),
        })
}

/// Keeps the manifest that the registry now has, so that the next push of these layers does not
/// compress them again.
fn remember(store: &Store, record: &ImageRecord, manifest: &Manifest) -> Result<()> {
    let digest = manifest.digest;
    if digest == record.manifest {
        return Ok(());
    }
    let lease = store.lease("recording a pushed manifest")?;
    store.put_blob(&manifest.raw, Some(lease.id()))?;
    let new = NewImage {
        id: record.id,
        manifest: digest,
        media_type: manifest.media_type.clone(),
        layers: record
            .layers
            .iter()
            .zip(&manifest.layers)
            .map(|(layer, blob)| ImageLayer {
                blob: Some(stored_blob(blob)),
                ..layer.clone()
            })
            .collect(),
        tags: Vec::new(),
    };
    store.put_image_and_end(&new, lease.id())?;
    Ok(())
}

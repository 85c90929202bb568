//! Supplies images of the store to sinks: layers byte for byte as they came.
//!
//! A layer's tree and its recipe together result in exactly the tar that was applied. The sink
//! hashes it and compares it with the diff ID, so a tree that was changed behind the store's back
//! is found and never sent.

use std::io::{Read, Write};

use vellum_format::Digest;
use vellum_image::config::chain_ids;
use vellum_image::sink::{LayerSupply, OutImage, OutLayer, SupplyError};
use vellum_image::{Reference, recipe};
use vellum_store::{ImageRecord, Lease, LeaseResource, Store, StoreError};
use vellum_sys::Dir;

use super::key;
use super::stored::{config, manifest};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::names::short;
use crate::progress::{Meter, Unit};

/// Supplies layers of the store to a sink.
pub(super) struct StoreSupply<'a> {
    pub(super) context: &'a Context,
    pub(super) store: &'a Store,
    /// Protects what is being written from a gc. `None` if the store is read-only: then no gc can
    /// run either.
    _lease: Option<Lease>,
}

impl<'a> StoreSupply<'a> {
    /// Returns the supply for `images`; their layers and blobs stay in the store as long as it
    /// lives.
    pub(super) fn new(context: &'a Context, store: &'a Store, images: &[OutImage]) -> Result<Self> {
        let lease = match store.lease("writing images") {
            Ok(lease) => Some(lease),
            Err(error) if error.leaves_only_reading() => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(lease) = &lease {
            hold(lease, images)?;
        }
        Ok(Self {
            context,
            store,
            _lease: lease,
        })
    }
}

fn hold(lease: &Lease, images: &[OutImage]) -> Result<()> {
    for image in images {
        if let Some(top) = image.layers.last() {
            lease.hold(&LeaseResource::Snapshot(key(&top.chain_id)))?;
        }
        for layer in image.manifest.iter().flat_map(|m| &m.layers) {
            lease.hold(&LeaseResource::Blob(layer.blob.digest))?;
        }
        for layer in &image.layers {
            lease.hold(&LeaseResource::Recipe(layer.diff_id))?;
        }
    }
    Ok(())
}

impl LayerSupply for StoreSupply<'_> {
    fn write_tar(&self, layer: &OutLayer, out: &mut dyn Write) -> Result<(), SupplyError> {
        let tree = self.store.tree(&key(&layer.chain_id))?;
        let mut recipe = self.store.open_recipe(&layer.diff_id)?.ok_or_else(|| {
            format!(
                "the store has no recipe of layer {}: it was not made from a tar",
                layer.diff_id
            )
        })?;
        let dirs = tree.layers();
        let top = dirs.first().ok_or("the layer has no tree")?;
        let what = format!("writing layer {}", short(&layer.diff_id.to_string()));
        let meter = self
            .context
            .progress
            .meter(&what, Unit::Bytes, Some(layer.tar_bytes));
        let mut out = Metered { out, meter };
        recipe::replay(
            &mut recipe,
            &Dir::open(&top.dir)?,
            &mut out,
            &self.context.cancel,
        )?;
        out.meter.finish("written");
        Ok(())
    }

    fn kept_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, SupplyError> {
        if self.store.blob(digest)?.is_none() {
            return Ok(None);
        }
        match self.store.open_blob(digest) {
            Ok(file) => Ok(Some(Box::new(file))),
            // Just collected: it is created again.
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn go_on(&self) -> Result<(), SupplyError> {
        Ok(self.context.go_on()?)
    }
}

/// Reports the bytes that pass to a meter.
struct Metered<'a> {
    out: &'a mut dyn Write,
    meter: Box<dyn Meter>,
}

impl Write for Metered<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(buf)?;
        self.meter.advance(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Returns a recorded image in the form for sinks, with the given names.
pub(super) fn out_image(
    store: &Store,
    image: &ImageRecord,
    names: Vec<Reference>,
) -> Result<OutImage> {
    let config = config(store, image)?;
    let chain = chain_ids(&config.diff_ids);
    let mut layers = Vec::with_capacity(chain.len());
    for (chain_id, diff_id) in chain.into_iter().zip(&config.diff_ids) {
        let info = store.stat(&key(&chain_id))?;
        let tar_bytes = info.tar_bytes.ok_or_else(|| Error::Unsupported {
            what: format!(
                "layer {chain_id} was not made from a tar, so there is no original tar to write"
            ),
            hint: "create a container from the image and commit it".to_owned(),
        })?;
        layers.push(OutLayer {
            chain_id,
            diff_id: *diff_id,
            tar_bytes,
        });
    }
    Ok(OutImage {
        config,
        manifest: Some(manifest(store, image)?),
        names,
        layers,
    })
}

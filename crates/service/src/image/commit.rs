//! `commit`: a container's changes become a layer, and together with its image a new image. The
//! container stays as it is.
//!
//! The changes are streamed as a tar from the container's own layer, hashed, and applied to a
//! staged layer. So the new layer is plain (no redirects or metacopies) whatever the upper has, and
//! every reader can use it. A copy of a directory has no image below: its whole tree becomes the
//! only layer of a new image.

use std::io::Read;

use serde_json::{Value, json};
use vellum_format::Digest;
use vellum_image::manifest::LayerBlob;
use vellum_image::{Compression, ImageConfig, Manifest, Platform};
use vellum_store::ContainerRecord;
use vellum_union::Form;

use super::record::{BroughtIn, record as record_image};
use super::unpack::{Unpacked, unpack_single};
use super::{apply_changes, chosen_name, or_cancelled, stored};
use crate::container::bundle;
use crate::container::diff;
use crate::container_record::Settings;
use crate::context::Context;
use crate::error::Result;
use crate::layer::layer_tar;
use crate::{container_record, names, stack};

/// What to commit, and as what.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// The container.
    pub container: String,
    /// The new image's name; `None`: it gets no name.
    pub name: Option<String>,
    /// Instructions that set fields of the configuration, as in a Dockerfile.
    pub changes: Vec<String>,
    /// The author.
    pub author: Option<String>,
    /// The comment in the history.
    pub message: Option<String>,
}

/// Creates an image from a container's changes. Durable on return; after an error there is no new
/// image.
pub fn commit(ctx: &Context, request: &CommitRequest) -> Result<BroughtIn> {
    or_cancelled(ctx, run(ctx, request))
}

fn run(ctx: &Context, request: &CommitRequest) -> Result<BroughtIn> {
    names::with_container(ctx, &request.container, |record| {
        let name = request.name.as_deref().map(chosen_name).transpose()?;
        let base = bundle::image_config(ctx, record)?;
        // Before anything is read: a mistake in an instruction is found at once.
        let mut configuration = configuration(base.as_ref())?;
        apply_changes(&mut configuration, &request.changes)?;
        let store = ctx.store()?;
        let lease = store.lease(&format!("committing container {}", record.name))?;
        let parents = parents(ctx, record)?;
        let tar = tar(ctx, record)?;
        let parent = parents.last().map(|p| &p.layer.chain_id);
        let layer = unpack_single(ctx, store, &lease, parent, Box::new(tar))?;
        // An image of an incomplete tree would be worse than none.
        names::still_there(ctx, record, &request.container)?;
        finish(
            &mut configuration,
            record,
            request,
            &layer.diff_id,
            &parents,
        )?;
        let config = ImageConfig::parse(configuration.to_string().into_bytes())?;
        let mut blobs: Vec<LayerBlob> = parents.iter().map(|p| p.blob.clone()).collect();
        blobs.push(LayerBlob::compose(
            layer.diff_id,
            layer.tar_bytes,
            Compression::None,
        ));
        let manifest = Manifest::compose(&config.id, config.raw.len() as u64, &blobs);
        let mut layers: Vec<_> = parents.into_iter().map(|p| p.layer).collect();
        layers.push(layer);
        ctx.go_on()?;
        record_image(store, lease, &config, &manifest, &layers, name.as_slice())
    })
}

/// Returns the changes of a container as a layer's tar, or its whole tree if there is no image
/// below.
pub fn tar(ctx: &Context, record: &ContainerRecord) -> Result<impl Read + Send + use<>> {
    let cancel = ctx.cancel.clone();
    if Settings::of(record)?.from.is_some() {
        let union = stack::of_tree(ctx.process, &container_record::parts(ctx, record)?)?;
        return layer_tar::piped(move |out| layer_tar::write_tree(&union, out, &cancel).map(drop));
    }
    let changes = diff::changes(ctx, record, Form::Layer)?;
    layer_tar::piped(move |out| layer_tar::write_changes(changes, out, &cancel).map(drop))
}

/// A layer of the image below, and the blob that its manifest names for it.
struct Parent {
    layer: Unpacked,
    blob: LayerBlob,
}

/// Returns the layers of the container's image, bottom first.
fn parents(ctx: &Context, record: &ContainerRecord) -> Result<Vec<Parent>> {
    let Some(id) = &record.image else {
        return Ok(Vec::new());
    };
    let store = ctx.store()?;
    let image = store.image(id)?;
    let config = stored::config(store, &image)?;
    let manifest = stored::manifest(store, &image)?;
    let mut parents = Vec::with_capacity(image.layers.len());
    for (((layer, blob), chain_id), diff_id) in image
        .layers
        .iter()
        .zip(&manifest.layers)
        .zip(config.chain_ids())
        .zip(&config.diff_ids)
    {
        let tar_bytes = store
            .stat(&layer.snapshot)?
            .tar_bytes
            .unwrap_or(blob.blob.size_bytes);
        let layer = Unpacked {
            chain_id,
            diff_id: *diff_id,
            tar_bytes,
            present: true,
        };
        parents.push(Parent {
            layer,
            blob: blob.clone(),
        });
    }
    Ok(parents)
}

/// Returns the initial configuration: the image's, unchanged, or a bare one for this machine.
fn configuration(base: Option<&ImageConfig>) -> Result<Value> {
    if let Some(base) = base {
        return Ok(base.tidy_value()?.into());
    }
    let platform = Platform::host();
    let mut bare =
        json!({ "architecture": platform.architecture, "os": platform.os, "config": {} });
    if let Some(variant) = platform.variant {
        bare["variant"] = variant.into();
    }
    Ok(bare)
}

/// Adds the new layer and its history entry.
fn finish(
    configuration: &mut Value,
    record: &ContainerRecord,
    request: &CommitRequest,
    diff_id: &Digest,
    parents: &[Parent],
) -> Result<()> {
    let now = jiff::Timestamp::now().to_string();
    configuration["created"] = now.clone().into();
    if let Some(author) = &request.author {
        configuration["author"] = author.clone().into();
    }
    let mut diff_ids: Vec<Value> = parents
        .iter()
        .map(|p| p.layer.diff_id.to_string().into())
        .collect();
    diff_ids.push(diff_id.to_string().into());
    configuration["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
    let mut line =
        json!({ "created": now, "created_by": format!("vellum commit {}", record.name) });
    if let Some(author) = &request.author {
        line["author"] = author.clone().into();
    }
    if let Some(message) = &request.message {
        line["comment"] = message.clone().into();
    }
    match configuration
        .get_mut("history")
        .and_then(Value::as_array_mut)
    {
        Some(history) => history.push(line),
        None => configuration["history"] = json!([line]),
    }
    // Docker writes there what created the image; for another image it would be wrong.
    if let Some(object) = configuration.as_object_mut() {
        for stale in [
            "container",
            "container_config",
            "docker_version",
            "id",
            "parent",
        ] {
            object.remove(stale);
        }
    }
    Ok(())
}

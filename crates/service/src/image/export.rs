//! `export containers-storage`: images of the store as an additional image store that Podman,
//! Buildah and CRI-O read in place.
//!
//! Nothing is unpacked or copied: the layers there are symbolic links to the trees of the store,
//! next to records and tar-splits that the export writes. A lease without expiry keeps the layers
//! as long as the export exists. Why links: docs/decisions/0029-exported-stores.md.
//!
//! Order on disk: a staged directory next to the target, with the lease's name in a note; the
//! lease; all other files; sync; exchange with what was there; end the old one's lease, remove its
//! tree. After a crash the target is either old or new, and there may be a staged directory, whose
//! note tells the next export or removal which lease to end. [`target`] has these steps, [`layers`]
//! the trees that are linked.

mod layers;
mod target;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread;

use serde::Serialize;
use vellum_image::containers_storage::{ImageEntry, LayerEntry, LayerId, layers_json};
use vellum_image::sink::{LayerSupply, OutImage, OutLayer, SupplyError};
use vellum_image::tar::TarReader;
use vellum_image::tar_split::split;
use vellum_image::{LayerStream, Limits, Reference};
use vellum_store::{LeaseId, LeaseResource, Store};
use vellum_sys::rooted::Dir;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::exported;
use crate::names;
use layers::{Linked, choose, in_order, layer_ids, no_records};
use target::Target;

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// The directory for Podman's `additionalimagestores`. It is created, or replaced if it is an
    /// export of this store.
    pub dir: PathBuf,
    /// The images, by name or id; empty: all that have a name.
    pub images: Vec<String>,
    /// Only report what would be written.
    pub dry_run: bool,
}

/// The export that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The path, readable.
    pub dir: String,
    /// The images.
    pub images: Vec<ExportedImage>,
    /// The number of their layers, each counted once.
    pub layers: usize,
}

/// One image.
#[derive(Clone, Debug, Serialize)]
pub struct ExportedImage {
    /// Its id.
    pub id: String,
    /// Its names in the export.
    pub names: Vec<String>,
    /// The digest of its manifest in the export.
    pub manifest: String,
}

/// Writes the export, or replaces it. Durable on return; until then the old one is there.
///
/// Errors: `NotFound`, also for an image that is removed, or replaced, during the export.
pub fn containers_storage(context: &Context, request: &ExportRequest) -> Result<Exported> {
    names::with_images(context, &request.images, || export(context, request))
}

fn export(context: &Context, request: &ExportRequest) -> Result<Exported> {
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
                tracing::warn!(%error, "the staged export stays; the next export removes it");
            }
            Err(error)
        }
    }
}

/// Removes an export, and what a killed one left. Containers that Podman runs from it continue,
/// since mounts keep their layers.
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
        store.hold(
            lease,
            &LeaseResource::Snapshot(exported::key(&layer.chain_id)),
        )?;
        store.hold(lease, &LeaseResource::Recipe(layer.diff_id))?;
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
        if !context.process.is_root() {
            no_records(&layer.tree)?;
        }
        links.symlink(format!("../{}/diff", id.as_str()), id.link())?;
        let file = records.create_file(format!("{}.tar-split.gz", id.as_str()), 0o600)?;
        record_tar(context, &supply, &layer.source, file)?;
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
    // Podman expects it although it runs no container from here.
    root.create_dir_all("overlay-containers", 0o700)?;
    text(root, "storage.lock", b"")
}

/// Writes the tar-split of `layer` to `file`, and compares the tar with the layer's diff ID.
fn record_tar(
    context: &Context,
    supply: &dyn LayerSupply,
    layer: &OutLayer,
    file: File,
) -> Result<()> {
    let damaged = |why: String| Error::Damaged {
        what: format!("layer {}", layer.diff_id),
        why,
    };
    let failed = |e| Error::io("write", "a tar-split")(e);
    let (tar, to) = io::pipe().map_err(failed)?;
    let limits = Limits::default();
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut out = BufWriter::with_capacity(256 << 10, to);
            supply.write_tar(layer, &mut out)?;
            Ok::<_, SupplyError>(out.flush()?)
        });
        let stream = LayerStream::open(Box::new(tar), &limits, &context.cancel)?;
        let mut reader = TarReader::new(stream, &limits);
        let read = split(&mut reader, file).and_then(|_| reader.into_source().finish());
        let written = writer
            .join()
            .unwrap_or_else(|_| Err("the writing thread panicked".into()));
        let facts = match (read, written) {
            (Err(vellum_image::Error::Write(e)), _) => return Err(failed(e)),
            (_, Err(why)) => return Err(damaged(why.to_string())),
            (read, Ok(())) => read.map_err(|why| damaged(why.to_string()))?,
        };
        match facts.diff_id == layer.diff_id {
            true => Ok(()),
            false => Err(damaged(format!(
                "its tree results in a tar with the digest {}",
                facts.diff_id
            ))),
        }
    })
}

fn text(dir: &Dir, name: &str, content: &[u8]) -> Result<()> {
    let mut file = dir.create_file(name, 0o600)?;
    file.write_all(content).map_err(Error::io("write", name))
}

fn json(dir: &Dir, name: &str, value: &impl Serialize) -> Result<()> {
    let content = serde_json::to_vec(value).map_err(|e| Error::io("write", name)(e.into()))?;
    text(dir, name, &content)
}

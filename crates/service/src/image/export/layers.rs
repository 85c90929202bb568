//! Which trees of the store an export links to, and in which order they are stacked.
//!
//! A layer of the driver `overlay2` has its own changes, and is stacked on the layers below. Under
//! `overlay` and `native` a layer's tree is complete: it has nothing below it, and its tar-split
//! still lists only the layer's own files. A plain user's trees can be exported if nothing in them
//! had to be replaced by a record.
//! nothing in them had to become a record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vellum_format::{OVERRIDE_STAT_NAMES, record};
use vellum_image::containers_storage::{LayerEntry, LayerId};
use vellum_image::manifest::LayerBlob;
use vellum_image::sink::{OutImage, OutLayer};
use vellum_image::{Compression, Manifest};
use vellum_store::{Shape, Store};
use vellum_sys::rooted::Dir;
use vellum_sys::{FileKind, xattr};

use crate::error::{Error, Result};
use crate::image::exported;

const COPY: &str = "`vellum save IMAGE | podman load` copies an image instead";

/// One layer to link to.
pub(super) struct Linked {
    pub entry: LayerEntry,
    /// The layers below that show through, nearest first, by their links.
    pub below: Vec<String>,
    /// The number of layers below it in the image.
    pub depth: usize,
    pub source: OutLayer,
    pub tree: PathBuf,
}

/// Chooses the manifests to export, and finds every layer's tree.
pub(super) fn choose(store: &Store, images: &mut [OutImage]) -> Result<BTreeMap<LayerId, Linked>> {
    let mut layers = BTreeMap::new();
    for image in images {
        let manifest = manifest(image, &layers)?;
        add_layers(store, image, &manifest, &mut layers)?;
        image.manifest = Some(manifest);
    }
    Ok(layers)
}

/// Returns the manifest to export. A layer has one blob there: an image that names a shared layer
/// by another blob gets a manifest of plain layers, and so does an image without a manifest.
fn manifest(image: &OutImage, known: &BTreeMap<LayerId, Linked>) -> Result<Manifest> {
    let ids = layer_ids(image);
    if let Some(own) = &image.manifest
        && own.layers.len() == ids.len()
        && own.layers.iter().zip(&ids).all(|(blob, id)| {
            known
                .get(id)
                .is_none_or(|known| known.entry.blob.blob.digest == blob.blob.digest)
        })
    {
        return Ok(own.clone());
    }
    let plain: Vec<LayerBlob> = image
        .layers
        .iter()
        .map(|layer| LayerBlob::compose(layer.diff_id, layer.tar_bytes, Compression::None))
        .collect();
    Ok(Manifest::compose(
        &image.config.id,
        image.config.raw.len() as u64,
        &plain,
    ))
}

pub(super) fn layer_ids(image: &OutImage) -> Vec<LayerId> {
    let mut ids: Vec<LayerId> = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        ids.push(LayerId::of(ids.last(), &layer.diff_id));
    }
    ids
}

fn add_layers(
    store: &Store,
    image: &OutImage,
    manifest: &Manifest,
    all: &mut BTreeMap<LayerId, Linked>,
) -> Result<()> {
    let ids = layer_ids(image);
    for (at, (id, layer)) in ids.iter().zip(&image.layers).enumerate() {
        if all.contains_key(id) {
            continue;
        }
        let parts = store.tree(&exported::key(&layer.chain_id))?;
        let dirs = parts.layers();
        let top = dirs.first().ok_or_else(|| Error::Damaged {
            what: format!("layer {}", layer.chain_id),
            why: "it has no tree".into(),
        })?;
        if top.features.is_some() {
            return Err(Error::Unsupported {
                what: format!(
                    "layer {} has marks that other programs don't follow",
                    layer.chain_id
                ),
                hint: COPY.into(),
            });
        }
        // If the driver keeps whole trees, nothing shows through them.
        let below = match parts.shape {
            Shape::Plain { .. } => Vec::new(),
            Shape::Overlay(_) => ids[..at]
                .iter()
                .rev()
                .map(|id| format!("l/{}", id.link()))
                .collect(),
        };
        let blob = manifest.layers.get(at).cloned().unwrap_or_else(|| {
            LayerBlob::compose(layer.diff_id, layer.tar_bytes, Compression::None)
        });
        let entry = LayerEntry {
            id: id.clone(),
            parent: at.checked_sub(1).map(|below| ids[below].clone()),
            diff_id: layer.diff_id,
            tar_bytes: layer.tar_bytes,
            blob,
        };
        all.insert(
            id.clone(),
            Linked {
                entry,
                below,
                depth: at,
                source: layer.clone(),
                tree: top.dir.clone(),
            },
        );
    }
    Ok(())
}

/// Parents first, as readers of the file expect.
pub(super) fn in_order(layers: &BTreeMap<LayerId, Linked>) -> Vec<LayerEntry> {
    let mut all: Vec<&Linked> = layers.values().collect();
    all.sort_by_key(|layer| layer.depth);
    all.into_iter().map(|layer| layer.entry.clone()).collect()
}

/// Fails with `Unsupported` if an owner, a type or an attribute in `tree` is a record, which Podman
/// does not know.
pub(super) fn no_records(tree: &Path) -> Result<()> {
    let root = Dir::open(tree)?;
    let mut dirs = vec![PathBuf::from(".")];
    while let Some(at) = dirs.pop() {
        let dir = root.open_dir(&at)?;
        for entry in dir.entries()? {
            let entry = entry?;
            let path = at.join(&entry.name);
            match entry.kind {
                FileKind::Dir => dirs.push(path.clone()),
                // Only files and directories can have records.
                FileKind::File => {}
                _ => continue,
            }
            let records = xattr::list(&dir, &entry.name)?.into_iter().find(|name| {
                record::original(name).is_some()
                    || OVERRIDE_STAT_NAMES.iter().any(|known| name == *known)
            });
            if let Some(record) = records {
                return Err(Error::Unsupported {
                    what: format!(
                        "{} in {} is kept as a record ({}), which Podman does not read: a plain user can't create the original",
                        path.display(),
                        tree.display(),
                        record.display()
                    ),
                    hint: COPY.into(),
                });
            }
        }
    }
    Ok(())
}

//! `export containers-storage`: images of the store as an additional image store that Podman, Buildah and CRI-O read in place.
//!
//! Nothing is unpacked or copied: the layers there are symbolic links to the trees of the store's `overlay2` driver, which have the form that those
//! programs expect, beside records and tar-splits of their own making. A lease without end keeps the layers meanwhile; it ends with the export.
//! Why links: docs/decisions/0029-exported-stores.md.
//!
//! Order on disk: lease; everything into a staged directory beside the target; sync; exchanged with what was there; the old one's lease ended, its tree
//! removed. A crash leaves a staged directory, which the next export removes, and perhaps a lease too many, which keeps some layers too long.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vellum_image::containers_storage::{ImageEntry, LayerEntry, LayerId, layers_json};
use vellum_image::manifest::LayerBlob;
use vellum_image::sink::{LayerSupply, OutImage, OutLayer};
use vellum_image::tar_split::TarSplit;
use vellum_image::{Compression, Digest, Manifest, Reference};
use vellum_store::{DriverKind, Held, LeaseId, Life, Store};
use vellum_sys::rooted::Dir;
use vellum_sys::{publish, userns};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::exported;

/// Says in an exported directory whose it is. JSON; fields are only added.
const NOTE: &str = "vellum.json";
const NOTE_VERSION: u32 = 1;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// The directory that Podman is told of (`additionalimagestores`). It is made, or replaced if it is an export of this store.
    pub dir: PathBuf,
    /// The images, by name or id; none means all that have a name.
    pub images: Vec<String>,
    /// Only say what would be written.
    pub dry_run: bool,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// Where, readable.
    pub dir: String,
    /// The images.
    pub images: Vec<ExportedImage>,
    /// How many layers they have together.
    pub layers: usize,
}

/// One image.
#[derive(Clone, Debug, Serialize)]
pub struct ExportedImage {
    /// Its id.
    pub id: String,
    /// The names it has there.
    pub names: Vec<String>,
    /// The digest of its manifest there.
    pub manifest: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    version: u32,
    /// The store that it shows.
    store: String,
    /// What keeps its layers.
    lease: String,
}

/// One layer to be linked to.
struct Linked {
    entry: LayerEntry,
    /// The layers below, nearest first, as their links.
    below: Vec<String>,
    source: OutLayer,
    tree: PathBuf,
}

/// Writes the export, or replaces it. Durable on return; what was there before is there until then.
pub fn containers_storage(context: &Context, request: &ExportRequest) -> Result<Exported> {
    let store = context.store()?;
    possible()?;
    let lease = match request.dry_run {
        true => None,
        false => Some(store.begin_lease(
            &format!("exported to {}", request.dir.display()),
            Life::Forever,
        )?),
    };
    let done = export(context, store, request, lease.as_ref());
    if let (Err(_), Some(lease)) = (&done, &lease) {
        store.end_lease(lease)?;
    }
    done
}

/// Takes an export away. What Podman runs from it goes on, since mounts keep what they show.
pub fn remove(context: &Context, dir: &Path) -> Result<()> {
    let store = context.store()?;
    let (above, name) = place(dir)?;
    let note = read_note(&above, &name)?.ok_or_else(|| Error::Invalid {
        what: format!("{} is no export of this program", dir.display()),
        hint: Some("if it is a store of Podman's, `podman system reset` removes it".into()),
    })?;
    whose(&note, store, dir)?;
    let mut staged = OsString::from(".vellum-staged.");
    staged.push(&name);
    if above.stat_opt(&staged)?.is_some() {
        above.remove_tree(&staged)?;
    }
    // Out of sight at once; then the layers may go.
    above.rename(&name, &above, &staged, rustix::fs::RenameFlags::NOREPLACE)?;
    publish::sync_dir(&above)?;
    store.end_lease(&LeaseId::new(note.lease))?;
    above.remove_tree(&staged)?;
    Ok(())
}

/// Podman mounts layers with marks of root's kind and without our records.
fn possible() -> Result<()> {
    if rustix::process::geteuid().is_root() && userns::is_initial() {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "the layers of a plain user's store can't be shown to Podman in place: what he can't make is kept in records that it does not know".into(),
        hint: "`vellum save IMAGE | podman load` copies an image".into(),
    })
}

fn export(
    context: &Context,
    store: &Store,
    request: &ExportRequest,
    lease: Option<&LeaseId>,
) -> Result<Exported> {
    let mut images = exported::collect(context, &request.images)?;
    let mut layers: BTreeMap<LayerId, Linked> = BTreeMap::new();
    for image in &mut images {
        if let Some(lease) = lease {
            hold(store, lease, image)?;
        }
        let manifest = manifest(image, &layers)?;
        add_layers(store, image, &manifest, &mut layers)?;
        image.manifest = Some(manifest);
    }
    let told = Exported {
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
    };
    let (above, name) = place(&request.dir)?;
    let old = read_note(&above, &name)?;
    match &old {
        Some(note) => whose(note, store, &request.dir)?,
        None if is_used(&above, &name)? => {
            return Err(Error::Invalid {
                what: format!(
                    "{} is there and no export of this program",
                    request.dir.display()
                ),
                hint: Some("name a directory that is not there yet".into()),
            });
        }
        None => {}
    }
    let Some(lease) = lease else { return Ok(told) };

    let mut staged = OsString::from(".vellum-staged.");
    staged.push(&name);
    if above.stat_opt(&staged)?.is_some() {
        above.remove_tree(&staged)?;
    }
    above.mkdir(&staged, 0o700)?;
    let root = above.open_dir(&staged)?;
    let written = write(
        context,
        &root,
        &images,
        &layers,
        &Note {
            version: NOTE_VERSION,
            store: store.uuid()?,
            lease: lease.as_str().to_owned(),
        },
    )
    .and_then(|()| {
        publish::sync_fs(&root)?;
        let flags = match above.stat_opt(&name)? {
            Some(_) => rustix::fs::RenameFlags::EXCHANGE,
            None => rustix::fs::RenameFlags::NOREPLACE,
        };
        above.rename(&staged, &above, &name, flags)?;
        Ok(publish::sync_dir(&above)?)
    });
    if above.stat_opt(&staged)?.is_some()
        && let Err(error) = above.remove_tree(&staged)
    {
        tracing::warn!(%error, "what was staged stays; the next export removes it");
    }
    written?;
    if let Some(old) = old {
        store.end_lease(&LeaseId::new(old.lease))?;
    }
    Ok(told)
}

fn hold(store: &Store, lease: &LeaseId, image: &OutImage) -> Result<()> {
    for layer in &image.layers {
        store.hold(lease, &Held::Snapshot(exported::key(&layer.chain_id)))?;
        store.hold(lease, &Held::Recipe(exported::to_store(&layer.diff_id)))?;
    }
    Ok(())
}

/// The manifest to show. A layer has one blob there: an image that names a shared layer by another one gets a manifest of plain layers, as has
/// one without.
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

fn layer_ids(image: &OutImage) -> Vec<LayerId> {
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
        if parts.driver != DriverKind::Overlay2 || top.features.is_some() {
            return Err(Error::Unsupported {
                what: match parts.driver {
                    DriverKind::Overlay2 => format!(
                        "layer {} has marks that other programs don't follow",
                        layer.chain_id
                    ),
                    driver => format!(
                        "layer {} is kept by the driver {driver}, in a form that Podman does not read",
                        layer.chain_id
                    ),
                },
                hint: "`vellum save IMAGE | podman load` copies an image".into(),
            });
        }
        let below = ids[..at]
            .iter()
            .rev()
            .map(|id| format!("l/{}", id.link()))
            .collect();
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
                source: layer.clone(),
                tree: top.dir.clone(),
            },
        );
    }
    Ok(())
}

fn write(
    context: &Context,
    root: &Dir,
    images: &[OutImage],
    layers: &BTreeMap<LayerId, Linked>,
    note: &Note,
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
        links.symlink(format!("../{}/diff", id.as_str()), id.link())?;
        let file = records.create_file(format!("{}.tar-split.gz", id.as_str()), 0o600)?;
        let mut checked = Checked::new(TarSplit::new(file));
        supply
            .write_tar(&layer.source, &mut checked)
            .map_err(|why| Error::Damaged {
                what: format!("layer {}", layer.source.diff_id),
                why: why.to_string(),
            })?;
        checked.finish(&layer.source.diff_id)?;
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
    // Podman asks for it although it runs no container from here.
    root.create_dir_all("overlay-containers", 0o700)?;
    text(root, "storage.lock", b"")?;
    json(root, NOTE, note)
}

/// Parents first: readers of the file expect it so.
fn in_order(layers: &BTreeMap<LayerId, Linked>) -> Vec<LayerEntry> {
    let mut all: Vec<&Linked> = layers.values().collect();
    all.sort_by_key(|layer| layer.below.len());
    all.into_iter().map(|layer| layer.entry.clone()).collect()
}

/// Compares what passes with a diff ID.
struct Checked<W: Write> {
    out: TarSplit<W>,
    hasher: vellum_image::digest::Hasher,
}

impl<W: Write> Checked<W> {
    fn new(out: TarSplit<W>) -> Self {
        Self {
            out,
            hasher: vellum_image::digest::Hasher::default(),
        }
    }

    fn finish(self, diff_id: &Digest) -> Result<()> {
        let found = self.hasher.finish();
        if found != *diff_id {
            return Err(Error::Damaged {
                what: format!("layer {diff_id}"),
                why: format!("its tree gives a tar with the digest {found}"),
            });
        }
        self.out
            .finish()
            .map(drop)
            .map_err(Error::io("write", "a tar-split"))
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let taken = self.out.write(buf)?;
        self.hasher.update(&buf[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn text(dir: &Dir, name: &str, content: &[u8]) -> Result<()> {
    let mut file = dir.create_file(name, 0o600)?;
    file.write_all(content).map_err(Error::io("write", name))
}

fn json(dir: &Dir, name: &str, value: &impl Serialize) -> Result<()> {
    let content = serde_json::to_vec(value).map_err(|e| Error::io("write", name)(e.into()))?;
    text(dir, name, &content)
}

/// The directory above, and the name in it.
fn place(dir: &Path) -> Result<(Dir, OsString)> {
    let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(Error::Invalid {
            what: format!("nothing can be exported to {}", dir.display()),
            hint: None,
        });
    };
    let above = match above.as_os_str().is_empty() {
        true => Path::new("."),
        false => above,
    };
    Ok((Dir::open(above)?, name.to_owned()))
}

/// Whether there is something that is not ours.
fn is_used(above: &Dir, name: &OsString) -> Result<bool> {
    match above.stat_opt(name)? {
        None => Ok(false),
        Some(found) if found.kind != vellum_sys::FileKind::Dir => Ok(true),
        Some(_) => Ok(above.open_dir(name)?.entries()?.next().is_some()),
    }
}

fn read_note(above: &Dir, name: &OsString) -> Result<Option<Note>> {
    use std::io::Read;
    if above
        .stat_opt(name)?
        .is_none_or(|found| found.kind != vellum_sys::FileKind::Dir)
    {
        return Ok(None);
    }
    let dir = above.open_dir(name)?;
    if dir.stat_opt(NOTE)?.is_none() {
        return Ok(None);
    }
    let mut content = Vec::new();
    dir.open_file(NOTE)?
        .take(1 << 16)
        .read_to_end(&mut content)
        .map_err(Error::io("read", NOTE))?;
    match serde_json::from_slice::<Note>(&content) {
        Ok(note) if note.version == NOTE_VERSION => Ok(Some(note)),
        _ => Err(Error::Damaged {
            what: format!("the note {NOTE} in it"),
            why: "it is none, or of a newer version".into(),
        }),
    }
}

fn whose(note: &Note, store: &Store, dir: &Path) -> Result<()> {
    if note.store == store.uuid()? {
        return Ok(());
    }
    Err(Error::Invalid {
        what: format!("{} is an export of another store", dir.display()),
        hint: Some("name another directory, or the other store with --root".into()),
    })
}

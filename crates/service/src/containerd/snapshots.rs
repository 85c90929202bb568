//! Snapshots that another program keeps account of: containerd, over the socket.
//!
//! The client names them, labels them, asks for their mounts and makes the mounts itself, in a
//! mount namespace of its choice. So answers are text that is valid on the whole host
//! ([`mod@mounts`]), and nothing here mounts anything. In the store their keys have a prefix of
//! their own: the client's garbage collection removes every listed snapshot that it does not know,
//! and must never see Vellum's own images and containers.
//!
//! The calls are the store's. Decided here is what the store has no terms for: which chains are
//! known already, how a tree is mounted for a program whose own differ reads the upper directory,
//! and what may be postponed because the client holds a lock of its own during the call. The order
//! of errors follows containerd's metadata store, since clients tell cases apart by them.

use vellum_store::{
    Commit, Count, Filter, Info, Keep, LabelChange, Labels, PrepareOptions, SnapshotKey,
    SnapshotKind, Store, StoreError, Sweep, TreeParts, Usage,
};
use vellum_sys::Dir;
use vellum_sys::quota::ProjectQuota;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::on_parents;
use asked::Asked;

mod adopt;
mod asked;
mod decide;
pub mod mounts;
mod own_labels;
mod writeback;

pub use mounts::MountEntry;

/// The prefix of such snapshots' keys in the store. On disk: another prefix loses them all.
const OWNER: &str = "containerd/";

/// The prefix of the client's keys for snapshots into which a layer is unpacked.
const EXTRACTION: &str = "extract-";

/// The label with the chain id of an extraction, and of a layer.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// On an extraction that gets its parent at the commit: the parent's chain id.
pub const PARENT_CHAIN: &str = "containerd.io/snapshot/parent-chain-id";

/// The ids as which the tree's owners are shown: `container:host:count`, several separated by
/// commas.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";

/// Like [`UID_MAPPING`], for groups.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// How much may be written, in bytes.
pub const MAX_SIZE: &str = "containerd.io/snapshot/max-size";

/// The path of a snapshot's upper directory; added to answers, never stored.
pub const UPPER_DIR: &str = "containerd.io/snapshot/overlay.upperdir";

/// The client's settings for this server, which it does not send: both must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientSettings {
    /// Answers carry the label [`UPPER_DIR`].
    pub upperdir_label: bool,
    /// The client accepts id mapping by mount options (the capability `remap-ids`).
    pub remap_ids: bool,
    /// A removal deletes the files before it returns.
    pub sync_remove: bool,
    /// Every client accepts a read-only extraction for a layer that is already there: containerd
    /// 2.4's unpacker.
    pub staged_layers: bool,
}

/// A snapshot to create.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Its key: any text except the empty one.
    pub key: String,
    /// The layer below it.
    pub parent: Option<String>,
    /// Its labels, stored unchanged.
    pub labels: Labels,
}

impl NewSnapshot {
    /// Tells whether a layer will be unpacked into it. A client that asks whether the layer is
    /// already there sets a label; one that does not can only be recognized by the key that it
    /// chose.
    fn is_extraction(&self) -> bool {
        // Namespace and number come first in the key.
        let of_client = self.key.splitn(3, '/').last();
        self.labels.contains_key(SNAPSHOT_REF)
            || of_client.is_some_and(|key| key.starts_with(EXTRACTION))
    }
}

/// The result of a request for a writable snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// It was created, with these mounts.
    New(Vec<MountEntry>),
    /// It was to unpack a layer that is already there: nothing was created. The listing has a layer
    /// with the same label and parent.
    Known {
        /// The chain id of the layer.
        chain: String,
    },
}

/// Creates a writable snapshot. Durable on return.
///
/// Errors: as [`vellum_store::Store::prepare`], and whatever prevents mounting it.
pub fn prepare(ctx: &Context, client: ClientSettings, new: &NewSnapshot) -> Result<Prepared> {
    let store = ctx.store()?;
    let (asked, options) = read(ctx, new)?;
    if let Some(chain) = &asked.chain
        && !store.exists(&key(&new.key))?
        && let Some(layer) = known(store, new, chain)?
    {
        tracing::debug!(chain, %layer, "known");
        return Ok(Prepared::Known {
            chain: chain.clone(),
        });
    }
    if client.staged_layers
        && new.parent.is_none()
        && let Some(staged) = adopt::staged(store, &asked, &options)?
    {
        match store.prepare(&key(&new.key), &staged) {
            Ok(parts) => {
                let entries = shown(ctx, client, new, &asked, &parts)?;
                return Ok(Prepared::New(adopt::read_only(entries)));
            }
            // Vellum's layer was removed just now: then it is unpacked.
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let parts = store.prepare(&key(&new.key), &options)?;
    let entries = shown(ctx, client, new, &asked, &parts)?;
    if new.is_extraction() {
        writeback::follow(store, &key(&new.key), &parts);
    }
    Ok(Prepared::New(entries))
}

/// Returns the client's layer of a chain: unpacked earlier, in any namespace, or adopted from
/// Vellum's own.
fn known(store: &Store, new: &NewSnapshot, chain: &str) -> Result<Option<SnapshotKey>> {
    let parent = new.parent.as_deref().map(key);
    match store.find_layer(parent.as_ref(), (SNAPSHOT_REF, chain), OWNER.as_bytes())? {
        Some(layer) => Ok(Some(layer.key)),
        None => adopt::adopt(store, new, chain),
    }
}

/// Notes that this process unpacks the store's snapshot `key` itself, so its files need no other
/// writeback.
pub(crate) fn unpacks_itself(key: &SnapshotKey) {
    writeback::leave(key);
}

/// Creates a read-only snapshot; otherwise like [`prepare`].
pub fn view(ctx: &Context, client: ClientSettings, new: &NewSnapshot) -> Result<Vec<MountEntry>> {
    let (asked, options) = read(ctx, new)?;
    let options = PrepareOptions {
        size_limit_bytes: None,
        ..options
    };
    let parts = ctx.store()?.view(&key(&new.key), &options)?;
    shown(ctx, client, new, &asked, &parts)
}

/// Returns the mounts of a new snapshot; if there are none, removes it again.
fn shown(
    ctx: &Context,
    client: ClientSettings,
    new: &NewSnapshot,
    asked: &Asked,
    parts: &TreeParts,
) -> Result<Vec<MountEntry>> {
    let key = key(&new.key);
    let shown = mounts::show(ctx, client, &key, parts, asked);
    if shown.is_err()
        && let Err(error) = ctx.store()?.remove(&key, Sweep::Later)
    {
        tracing::warn!(key = new.key, %error, "cannot remove a snapshot that can't be mounted");
    }
    shown
}

/// Returns the mounts of a writable snapshot or a view, after repairing what is derived from its
/// record.
///
/// Errors: `NotFound`, `Committed`, `Damaged`.
pub fn mounts(ctx: &Context, client: ClientSettings, name: &str) -> Result<Vec<MountEntry>> {
    let store = ctx.store()?;
    let key = key(name);
    let info = store.stat(&key)?;
    if info.kind == SnapshotKind::Committed {
        return Err(StoreError::Committed { key: visible(&key) }.into());
    }
    let parts = store.tree(&key)?;
    let entries = mounts::show(ctx, client, &key, &parts, &Asked::of(&info.labels)?)?;
    Ok(match adopt::is_staged(&info) {
        true => adopt::read_only(entries),
        false => entries,
    })
}

/// Turns the writable snapshot `name_now` into the layer `name`. Durable on return; see
/// [`vellum_store::Store::commit`].
///
/// The client holds a transaction of its own during the call, so the layer's size is counted
/// afterwards ([`count`]).
pub fn commit(
    ctx: &Context,
    name: &str,
    name_now: &str,
    labels: Labels,
    parent: Option<&str>,
) -> Result<()> {
    let store = ctx.store()?;
    let mut commit = Commit {
        labels: own_labels::strip(labels),
        parent: parent.map(key),
        settle: Some(on_parents::settle_foreign),
        count: Count::Later,
    };
    adopt::put_staged(store, &key(name_now), parent, &mut commit)?;
    store.commit(&key(name), &key(name_now), commit)?;
    Ok(())
}

/// Counts a new layer's size. If the layer is gone by then, that is not an error.
pub fn count(ctx: &Context, name: &str) -> Result<()> {
    match ctx.store()?.count(&key(name)) {
        Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a snapshot. [`cleanup`] frees its space.
pub fn remove(ctx: &Context, client: ClientSettings, name: &str) -> Result<()> {
    let sweep = match client.sync_remove {
        true => Sweep::Now,
        false => Sweep::Later,
    };
    let store = ctx.store()?;
    adopt::check_childless(store, name)?;
    Ok(store.remove(&key(name), sweep)?)
}

/// Deletes the trees of removed snapshots. Returns how many there were.
pub fn cleanup(ctx: &Context) -> Result<usize> {
    Ok(ctx.store()?.sweep()?.len())
}

/// Returns the record of a snapshot.
pub fn stat(ctx: &Context, client: ClientSettings, name: &str) -> Result<Info> {
    let info = ctx.store()?.stat(&key(name))?;
    Ok(made_visible(ctx, client, info))
}

/// Changes labels and returns the changed record.
pub fn update(
    ctx: &Context,
    client: ClientSettings,
    name: &str,
    changes: &[LabelChange],
) -> Result<Info> {
    let store = ctx.store()?;
    let changes = adopt::protect(changes, &store.stat(&key(name))?);
    let info = store.update(&key(name), &changes)?;
    Ok(made_visible(ctx, client, info))
}

/// Calls `each` for all snapshots that match one of the filters (all, if there are none). Holds no
/// lock in the meantime.
pub fn walk(
    ctx: &Context,
    client: ClientSettings,
    filters: &[String],
    mut each: impl FnMut(Info) -> Result<()>,
) -> Result<()> {
    let filters = Filter::parse_all(filters)?;
    ctx.store()?
        .walk_prefix(OWNER.as_bytes(), |info| -> Result<()> {
            let info = made_visible(ctx, client, info);
            match Filter::any(&filters, &info) {
                true => each(info),
                false => Ok(()),
            }
        })
}

/// Returns the disk usage of a snapshot's own layer.
pub fn usage(ctx: &Context, name: &str) -> Result<Usage> {
    let store = ctx.store()?;
    let info = store.stat(&key(name))?;
    Ok(store.count(adopt::shows(&info).unwrap_or(&info.key))?)
}

/// Totals of the client's snapshots of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindTotals {
    /// Their kind.
    pub kind: SnapshotKind,
    /// How many there are.
    pub count: u64,
    /// The layers' disk usage, as far as it has been counted.
    pub usage: Usage,
}

/// Returns the totals by kind.
pub fn held(ctx: &Context) -> Result<Vec<KindTotals>> {
    let totals = ctx.store()?.totals(OWNER.as_bytes())?;
    let held = |(kind, count, usage)| KindTotals { kind, count, usage };
    Ok(totals.into_iter().map(held).collect())
}

/// Reads a request: what its labels ask for, and the store's options for it.
fn read(ctx: &Context, new: &NewSnapshot) -> Result<(Asked, PrepareOptions)> {
    let labels = own_labels::strip(new.labels.clone());
    let asked = Asked::of(&labels)?;
    // If the file system can't enforce the limit, the engine does.
    let size_limit_bytes = match asked.limit_bytes {
        Some(bytes) => {
            let state = vellum_sys::quota::state(Dir::open(ctx.root())?)?;
            (state == ProjectQuota::Enforced).then_some(bytes)
        }
        None => None,
    };
    let options = PrepareOptions {
        parent: new.parent.as_deref().map(key),
        labels,
        keep: Keep::UntilRemoved,
        size_limit_bytes,
        ..PrepareOptions::default()
    };
    Ok((asked, options))
}

/// Returns the store's key for the client's. The empty one stays empty; the store refuses it.
fn key(name: &str) -> SnapshotKey {
    match name {
        "" => SnapshotKey::from(""),
        name => SnapshotKey::from(format!("{OWNER}{name}")),
    }
}

/// Returns the client's key for the store's.
fn visible(key: &SnapshotKey) -> SnapshotKey {
    let bytes = key.as_bytes();
    SnapshotKey::new(bytes.strip_prefix(OWNER.as_bytes()).unwrap_or(bytes))
}

fn made_visible(ctx: &Context, client: ClientSettings, mut info: Info) -> Info {
    if client.upperdir_label
        && info.kind != SnapshotKind::View
        && let Some(upper) = mounts::upper_dir(ctx, adopt::shows(&info).unwrap_or(&info.key))
    {
        info.labels.insert(UPPER_DIR.into(), upper);
    }
    adopt::make_visible(&mut info);
    info.key = visible(&info.key);
    info.parent = info.parent.as_ref().map(visible);
    info
}

/// Refuses a store whose paths can't be written into mount options that every client parses alike.
///
/// Errors: [`Error::Invalid`] with the offending character.
pub fn check_root(ctx: &Context) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::Invalid {
            what,
            hint: Some("containerd passes paths in option lists without escaping: move the store with --root".into()),
        })
    };
    let root = ctx.root();
    match root.to_str() {
        None => refuse(format!("the store's path {} is not UTF-8", root.display())),
        Some(text) => match text
            .chars()
            .find(|c| ",:\\\"'{}".contains(*c) || c.is_control())
        {
            None => Ok(()),
            Some(c) => refuse(format!("the store's path {text} contains {c:?}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extraction_is_known_by_its_label_or_its_key() {
        let new = |key: &str, labels: &[(&str, &str)]| NewSnapshot {
            key: key.into(),
            parent: None,
            labels: labels
                .iter()
                .map(|&(name, value)| (name.into(), value.into()))
                .collect(),
        };
        for (key, expected) in [
            ("default/7/extract-12-Ab/c sha256:00", true),
            ("extract-12-Abc sha256:00", true),
            ("extract-/7/box", false),
            ("default/7/box", false),
            ("default/7/box/extract-1", false),
        ] {
            assert_eq!(new(key, &[]).is_extraction(), expected, "{key}");
        }
        assert!(new("default/7/box", &[(SNAPSHOT_REF, "sha256:00")]).is_extraction());
    }
}

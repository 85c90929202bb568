//! Snapshots whose accounts somebody else keeps: containerd, over the socket.
//!
//! The client names them, labels them, asks for mounts and makes those itself, in a mount namespace
//! of its own choice; so what is answered is text that is good on the whole host ([`mod@mounts`]),
//! and nothing here mounts anything. Their keys lie in the store behind a prefix of their own: the
//! client's garbage collection removes whatever is listed that it does not know, and must never see
//! Vellum's own images and containers.
//!
//! The calls are the store's; what is decided here is what its words can't say: which chains are
//! known already, how a tree is shown to a program whose own differ reads the upper directory, and
//! what may be left for later because the client holds a lock of its own meanwhile. The order of
//! errors follows containerd's metadata store, since clients tell cases apart by them.

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

/// What the keys of such snapshots begin with in the store. On disk: another one loses them all.
const OWNER: &str = "containerd/";

/// What the client's keys of snapshots begin with that a layer is unpacked into.
const EXTRACTION: &str = "extract-";

/// The label with the chain id that an extraction is for, and that a layer has.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// On an extraction that gets its parent at the commit: what that will be.
pub const PARENT_CHAIN: &str = "containerd.io/snapshot/parent-chain-id";

/// The ids that the tree's owners are to be shown as: `container:host:count`, several separated by
/// commas.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";

/// As [`UID_MAPPING`], for groups.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// How much may be written, in bytes.
pub const MAX_SIZE: &str = "containerd.io/snapshot/max-size";

/// Where the upper directory of a snapshot is; put into answers, never stored.
pub const UPPER_DIR: &str = "containerd.io/snapshot/overlay.upperdir";

/// What the client's configuration says about this server, which it tells nobody: both must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Answers carry the label [`UPPER_DIR`].
    pub upperdir_label: bool,
    /// Mounts may ask for id mapping (the capability `remap-ids`).
    pub remap_ids: bool,
    /// A removal deletes before it returns.
    pub sync_remove: bool,
    /// Every client takes a read-only extraction for a layer that is there: containerd 2.4's
    /// unpacker.
    pub staged_layers: bool,
}

/// A snapshot to be made.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Its key: any text but none.
    pub key: String,
    /// The layer it stands on.
    pub parent: Option<String>,
    /// Its labels, kept as they are.
    pub labels: Labels,
}

impl NewSnapshot {
    /// Returns whether a layer is going to be unpacked into it. A client that wants to know whether
    /// the layer is there already says so with a label; one that does not, only with the key that
    /// it chose.
    fn is_extraction(&self) -> bool {
        // Namespace and number come first.
        let of_client = self.key.splitn(3, '/').last();
        self.labels.contains_key(SNAPSHOT_REF)
            || of_client.is_some_and(|key| key.starts_with(EXTRACTION))
    }
}

/// What became of a writable snapshot that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// It is there and is shown so.
    New(Vec<MountEntry>),
    /// It was to unpack a layer that is there: nothing was made. A layer with the same label and
    /// parent is listed.
    Known {
        /// The chain id of the layer.
        chain: String,
    },
}

/// Makes a writable snapshot. Durable on return.
///
/// Errors: as [`vellum_store::Store::prepare`], and what stands in the way of mounting it.
pub fn prepare(ctx: &Context, terms: Terms, new: &NewSnapshot) -> Result<Prepared> {
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
    if terms.staged_layers
        && new.parent.is_none()
        && let Some(staged) = adopt::staged(store, &asked, &options)?
    {
        match store.prepare(&key(&new.key), &staged) {
            Ok(parts) => {
                let entries = shown(ctx, terms, new, &asked, &parts)?;
                return Ok(Prepared::New(adopt::read_only(entries)));
            }
            // Vellum's layer was removed in this moment: then it is unpacked.
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let parts = store.prepare(&key(&new.key), &options)?;
    let entries = shown(ctx, terms, new, &asked, &parts)?;
    if new.is_extraction() {
        writeback::follow(store, &key(&new.key), &parts);
    }
    Ok(Prepared::New(entries))
}

/// Returns the client's layer of a chain: unpacked before, in whatever namespace, or adopted from
/// Vellum's own.
fn known(store: &Store, new: &NewSnapshot, chain: &str) -> Result<Option<SnapshotKey>> {
    let parent = new.parent.as_deref().map(key);
    match store.find_layer(parent.as_ref(), (SNAPSHOT_REF, chain), OWNER.as_bytes())? {
        Some(layer) => Ok(Some(layer.key)),
        None => adopt::adopt(store, new, chain),
    }
}

/// Says that this process unpacks the store's snapshot `key` itself, and needs nobody to send its
/// files to disk.
pub(crate) fn unpacks_itself(key: &SnapshotKey) {
    writeback::leave(key);
}

/// Makes a read-only snapshot. As [`prepare`] otherwise.
pub fn view(ctx: &Context, terms: Terms, new: &NewSnapshot) -> Result<Vec<MountEntry>> {
    let (asked, options) = read(ctx, new)?;
    let options = PrepareOptions {
        size_limit_bytes: None,
        ..options
    };
    let parts = ctx.store()?.view(&key(&new.key), &options)?;
    shown(ctx, terms, new, &asked, &parts)
}

/// Returns the mounts of a new snapshot, which goes again if there are none to be had.
fn shown(
    ctx: &Context,
    terms: Terms,
    new: &NewSnapshot,
    asked: &Asked,
    parts: &TreeParts,
) -> Result<Vec<MountEntry>> {
    let key = key(&new.key);
    let shown = mounts::show(ctx, terms, &key, parts, asked);
    if shown.is_err()
        && let Err(error) = ctx.store()?.remove(&key, Sweep::Later)
    {
        tracing::warn!(key = new.key, %error, "a snapshot without mounts stays");
    }
    shown
}

/// Returns how a writable snapshot or a view is mounted, after putting right what is only derived
/// from its record.
///
/// Errors: `NotFound`, `Committed`, `Damaged`.
pub fn mounts(ctx: &Context, terms: Terms, name: &str) -> Result<Vec<MountEntry>> {
    let store = ctx.store()?;
    let key = key(name);
    let info = store.stat(&key)?;
    if info.kind == SnapshotKind::Committed {
        return Err(StoreError::Committed { key: visible(&key) }.into());
    }
    let parts = store.tree(&key)?;
    let entries = mounts::show(ctx, terms, &key, &parts, &Asked::of(&info.labels)?)?;
    Ok(match adopt::is_staged(&info) {
        true => adopt::read_only(entries),
        false => entries,
    })
}

/// Turns the writable snapshot `name_now` into the layer `name`. Durable on return; see
/// [`vellum_store::Store::commit`].
///
/// The client holds a transaction of its own meanwhile: what the layer takes is counted afterwards
/// ([`count`]).
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

/// Counts what a new layer takes. A layer that is gone by then is no error.
pub fn count(ctx: &Context, name: &str) -> Result<()> {
    match ctx.store()?.count(&key(name)) {
        Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a snapshot. Its space comes back with [`cleanup`].
pub fn remove(ctx: &Context, terms: Terms, name: &str) -> Result<()> {
    let sweep = match terms.sync_remove {
        true => Sweep::Now,
        false => Sweep::Later,
    };
    let store = ctx.store()?;
    adopt::check_childless(store, name)?;
    Ok(store.remove(&key(name), sweep)?)
}

/// Deletes what removed snapshots left behind. Returns how many trees that were.
pub fn cleanup(ctx: &Context) -> Result<usize> {
    Ok(ctx.store()?.sweep()?.len())
}

/// Returns what is recorded about a snapshot.
pub fn stat(ctx: &Context, terms: Terms, name: &str) -> Result<Info> {
    let info = ctx.store()?.stat(&key(name))?;
    Ok(made_visible(ctx, terms, info))
}

/// Changes labels and returns what is recorded then.
pub fn update(ctx: &Context, terms: Terms, name: &str, changes: &[LabelChange]) -> Result<Info> {
    let store = ctx.store()?;
    let changes = adopt::protect(changes, &store.stat(&key(name))?);
    let info = store.update(&key(name), &changes)?;
    Ok(made_visible(ctx, terms, info))
}

/// Calls `each` for all snapshots that pass one of the filters (all, if there are none). Nothing is
/// locked meanwhile.
pub fn walk(
    ctx: &Context,
    terms: Terms,
    filters: &[String],
    mut each: impl FnMut(Info) -> Result<()>,
) -> Result<()> {
    let filters = Filter::parse_all(filters)?;
    ctx.store()?
        .walk_prefix(OWNER.as_bytes(), |info| -> Result<()> {
            let info = made_visible(ctx, terms, info);
            match Filter::any(&filters, &info) {
                true => each(info),
                false => Ok(()),
            }
        })
}

/// Returns what a snapshot takes by itself.
pub fn usage(ctx: &Context, name: &str) -> Result<Usage> {
    let store = ctx.store()?;
    let info = store.stat(&key(name))?;
    Ok(store.count(adopt::shows(&info).unwrap_or(&info.key))?)
}

/// What the client's snapshots of one kind are altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Their kind.
    pub kind: SnapshotKind,
    /// How many there are.
    pub count: u64,
    /// What layers take, as far as it is counted.
    pub usage: Usage,
}

/// Returns how much there is, kind by kind.
pub fn held(ctx: &Context) -> Result<Vec<Held>> {
    let totals = ctx.store()?.totals(OWNER.as_bytes())?;
    let held = |(kind, count, usage)| Held { kind, count, usage };
    Ok(totals.into_iter().map(held).collect())
}

/// Reads a request: what its labels ask for, and how the store is to make it.
fn read(ctx: &Context, new: &NewSnapshot) -> Result<(Asked, PrepareOptions)> {
    let labels = own_labels::strip(new.labels.clone());
    let asked = Asked::of(&labels)?;
    // Where the file system keeps no limit, the engine does.
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

/// The client's key as the store has it. The empty one stays empty, and is refused there.
fn key(name: &str) -> SnapshotKey {
    match name {
        "" => SnapshotKey::from(""),
        name => SnapshotKey::from(format!("{OWNER}{name}")),
    }
}

/// The store's key as the client knows it.
fn visible(key: &SnapshotKey) -> SnapshotKey {
    let bytes = key.as_bytes();
    SnapshotKey::new(bytes.strip_prefix(OWNER.as_bytes()).unwrap_or(bytes))
}

fn made_visible(ctx: &Context, terms: Terms, mut info: Info) -> Info {
    if terms.upperdir_label
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

/// Refuses a store whose paths can't be written into mount options that every client reads alike.
///
/// Errors: [`Error::Invalid`] with the character in the way.
pub fn check_root(ctx: &Context) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::Invalid {
            what,
            hint: Some("containerd passes paths on in lists of options and escapes nothing: keep the store elsewhere with --root".into()),
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
            Some(c) => refuse(format!("the store's path {text} has {c:?} in it")),
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

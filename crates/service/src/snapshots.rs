//! Snapshots whose accounts somebody else keeps: containerd, over the socket.
//!
//! The client names them, labels them, asks for mounts and makes those itself, in a mount namespace of its own choice; so what is answered is text
//! that is good on the whole host ([`mounts`]), and nothing here mounts anything. Their keys lie in the store behind a prefix of their own: the
//! client's garbage collection removes whatever is listed that it does not know, and must never see Vellum's own images and containers.
//!
//! The calls are the store's; what is decided here is what its words can't say: which chains are known already, how a tree is shown to a program
//! whose own differ reads the upper directory, and what may be left for later because the client holds a lock of its own meanwhile.
//! The order of errors follows containerd's metadata store, since clients tell cases apart by them.

use vellum_store::{
    Filter, Info, Keep, Kind, LabelChange, Labels, PrepareOptions, SnapshotKey, StoreError, Sweep,
    TreeParts, Usage,
};

use crate::context::Context;
use crate::error::{Error, Result};

pub mod mounts;

pub use mounts::MountEntry;

/// What the keys of such snapshots begin with in the store. On disk: another one loses them all.
const OWNER: &str = "containerd/";

/// The label with the chain id that an extraction is for, and that a layer has.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

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

/// What became of a writable snapshot that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// It is there and is shown so.
    New(Vec<MountEntry>),
    /// It was to unpack a layer that is there: nothing was made. A layer with the same label and parent is listed.
    Known {
        /// The chain id of the layer.
        chain: String,
    },
}

/// Makes a writable snapshot. Durable on return.
///
/// Errors: as [`vellum_store::Store::prepare`], and what stands in the way of mounting it.
pub fn prepare(ctx: &Context, new: &NewSnapshot) -> Result<Prepared> {
    let store = ctx.store()?;
    let parts = store.prepare(&key(&new.key), &options(new))?;
    shown(ctx, new, &parts).map(Prepared::New)
}

/// Makes a read-only snapshot. As [`prepare`] otherwise.
pub fn view(ctx: &Context, new: &NewSnapshot) -> Result<Vec<MountEntry>> {
    let parts = ctx.store()?.view(&key(&new.key), &options(new))?;
    shown(ctx, new, &parts)
}

/// Returns the mounts of a new snapshot, which goes again if there are none to be had.
fn shown(ctx: &Context, new: &NewSnapshot, parts: &TreeParts) -> Result<Vec<MountEntry>> {
    let shown = mounts::entries(ctx, &key(&new.key), parts, &new.labels);
    if shown.is_err()
        && let Err(error) = ctx.store()?.remove(&key(&new.key), Sweep::Later)
    {
        tracing::warn!(key = new.key, %error, "a snapshot without mounts stays");
    }
    shown
}

/// Returns how a writable snapshot or a view is mounted, after putting right what is only derived from its record.
///
/// Errors: `NotFound`, `Committed`, `Damaged`.
pub fn mounts(ctx: &Context, name: &str) -> Result<Vec<MountEntry>> {
    let store = ctx.store()?;
    let key = key(name);
    let info = store.stat(&key)?;
    if info.kind == Kind::Committed {
        return Err(StoreError::Committed { key: visible(&key) }.into());
    }
    let parts = store.tree(&key)?;
    mounts::entries(ctx, &key, &parts, &info.labels)
}

/// Turns the writable snapshot `name_now` into the layer `name`. Durable on return; see [`vellum_store::Store::commit`].
pub fn commit(
    ctx: &Context,
    name: &str,
    name_now: &str,
    labels: Labels,
    parent: Option<&str>,
) -> Result<()> {
    let parent = parent.map(key);
    ctx.store()?
        .commit(&key(name), &key(name_now), labels, parent.as_ref())?;
    Ok(())
}

/// Removes a snapshot. Its space comes back with [`cleanup`].
pub fn remove(ctx: &Context, name: &str) -> Result<()> {
    Ok(ctx.store()?.remove(&key(name), Sweep::Later)?)
}

/// Deletes what removed snapshots left behind.
pub fn cleanup(ctx: &Context) -> Result<()> {
    ctx.store()?.sweep()?;
    Ok(())
}

/// Returns what is recorded about a snapshot.
pub fn stat(ctx: &Context, name: &str) -> Result<Info> {
    let mut info = ctx.store()?.stat(&key(name))?;
    make_visible(&mut info);
    Ok(info)
}

/// Changes labels and returns what is recorded then.
pub fn update(ctx: &Context, name: &str, changes: &[LabelChange]) -> Result<Info> {
    let mut info = ctx.store()?.update(&key(name), changes)?;
    make_visible(&mut info);
    Ok(info)
}

/// Calls `each` for all snapshots that pass one of the filters (all, if there are none). Nothing is locked meanwhile.
pub fn walk(
    ctx: &Context,
    filters: &[String],
    mut each: impl FnMut(Info) -> Result<()>,
) -> Result<()> {
    let filters = Filter::parse_all(filters)?;
    ctx.store()?
        .walk_prefix(OWNER.as_bytes(), |mut info| -> Result<()> {
            make_visible(&mut info);
            match Filter::any(&filters, &info) {
                true => each(info),
                false => Ok(()),
            }
        })
}

/// Returns what a snapshot takes by itself.
pub fn usage(ctx: &Context, name: &str) -> Result<Usage> {
    Ok(ctx.store()?.usage(&key(name))?)
}

fn options(new: &NewSnapshot) -> PrepareOptions {
    PrepareOptions {
        parent: new.parent.as_deref().map(key),
        labels: new.labels.clone(),
        keep: Keep::UntilRemoved,
        ..PrepareOptions::default()
    }
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

fn make_visible(info: &mut Info) {
    info.key = visible(&info.key);
    info.parent = info.parent.as_ref().map(visible);
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

//! Layers that are in the store already, but belong to Vellum's own images.
//!
//! A client that is about to unpack a chain is told that it is already there, and then finds a
//! layer of its own, which is empty and has Vellum's layer below it, so it shows that layer's
//! content. So no record has two owners. The client's collection removes its layer; Vellum's gc
//! keeps the one below as long as a layer depends on it. A tree has one layer more than its chain,
//! however many layers of the chain were adopted.
//!
//! The client's layer has two parents: in the store Vellum's layer, for the client its own layer of
//! the chain below. That layer's key is kept in a label, [`STANDS_ON`], that no client sees or
//! changes. A digest of it begins the adopted layer's own key, so all layers on one parent can be
//! found.
//!
//! A client that unpacks in parallel names the parent at the commit. containerd 2.4 assumes that a
//! writable snapshot that is mounted read-only already holds the layer (a staged one), and commits
//! it without filling it. Such a snapshot has Vellum's layer below it from the beginning, is empty,
//! and has the label too; at its commit the label gets the client's parent. Its key is the
//! client's. See `docs/decisions/0039-layers-lent-to-containerd.md`.

use vellum_format::Digest;
use vellum_store::{
    Class, Commit, Info, Keep, LabelChange, LayerCommit, PrepareOptions, Registered, SnapshotKey,
    SnapshotKind, Store, StoreError,
};

use super::asked::Asked;
use super::{MountEntry, NewSnapshot, OWNER, SNAPSHOT_REF, key, own_labels};
use crate::error::{Error, Result};

/// The label with the key of the parent that the client sees, or [`NOTHING`]. On disk.
const STANDS_ON: &str = concat!(own_labels::prefix!(), "stands-on");

/// The label's value without a parent: the store drops empty labels.
const NOTHING: &str = "-";

/// The prefix of the client's keys of adopted layers: no namespace begins with a dot. On disk.
const ADOPTED: &str = ".vellum";

/// Returns the key of the client's layer for `chain` on the parent that `new` names; creates it if
/// Vellum has the chain and the client does not.
pub(super) fn adopt(store: &Store, new: &NewSnapshot, chain: &str) -> Result<Option<SnapshotKey>> {
    // Only keys that are chains belong to layers of images.
    if chain.parse::<Digest>().is_err() {
        return Ok(None);
    }
    let parent = new.parent.as_deref().unwrap_or_default();
    let name = SnapshotKey::new([children_of(parent).as_slice(), chain.as_bytes()].concat());
    if store.exists(&name)? {
        return Ok(Some(name));
    }
    let own = SnapshotKey::from(chain);
    let info = match store.stat(&own) {
        Ok(info) => info,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !fits(&info) || !stands_alike(store, new.parent.as_deref(), &info)? {
        return Ok(None);
    }
    let stands_on = match parent {
        "" => NOTHING,
        parent => parent,
    };
    let labels = [(SNAPSHOT_REF, chain), (STANDS_ON, stands_on)];
    let commit = LayerCommit {
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        keep: Keep::UntilRemoved,
        ..LayerCommit::new(name.clone(), Some(own.clone()))
    };
    let made = store
        .stage_layer_on(Some(&own))
        .and_then(|staged| store.commit_layer(staged, commit));
    match made {
        Ok(Registered::New(_) | Registered::Existing(_)) => Ok(Some(name)),
        Err(
            error @ (StoreError::Io { .. }
            | StoreError::Sys(_)
            | StoreError::Database { .. }
            | StoreError::Uncertain { .. }),
        ) if error.class() != Class::NotFound => Err(error.into()),
        // Vellum's layer was just removed, or replaced: then it is unpacked.
        Err(error) => {
            tracing::debug!(chain, %error, "not adopted");
            Ok(None)
        }
    }
}

/// Returns the options of a snapshot that already holds a layer of Vellum's, if the client unpacks
/// before it names the parent and Vellum has the chain.
pub(super) fn staged(
    store: &Store,
    asked: &Asked,
    options: &PrepareOptions,
) -> Result<Option<PrepareOptions>> {
    let (Some(chain), Some(below)) = (&asked.chain, &asked.parent_chain) else {
        return Ok(None);
    };
    if chain.parse::<Digest>().is_err() {
        return Ok(None);
    }
    let own = SnapshotKey::from(chain.as_str());
    let info = match store.stat(&own) {
        Ok(info) => info,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let on_that = info.parent.as_ref().map(SnapshotKey::as_bytes) == Some(below.as_bytes());
    if !fits(&info) || !on_that {
        return Ok(None);
    }
    let mut staged = PrepareOptions {
        parent: Some(own),
        size_limit_bytes: None,
        ..options.clone()
    };
    staged.labels.insert(STANDS_ON.into(), NOTHING.into());
    Ok(Some(staged))
}

/// Tells whether a snapshot holds a layer of Vellum's and is not committed yet.
pub(super) fn is_staged(info: &Info) -> bool {
    info.kind == SnapshotKind::Active && info.labels.contains_key(STANDS_ON)
}

/// Returns the mounts as read-only, which tells the client not to write there.
pub(super) fn read_only(mut entries: Vec<MountEntry>) -> Vec<MountEntry> {
    if let Some(last) = entries.last_mut()
        && !last.options.iter().any(|option| option == "ro")
    {
        last.options.retain(|option| option != "rw");
        last.options.push("ro".into());
    }
    entries
}

/// Makes the commit of a staged snapshot keep Vellum's layer as its parent, and show the client's
/// parent. Other commits stay as they are.
///
/// Errors: `Invalid` if the client's parent does not have the chain of the layer below Vellum's.
pub(super) fn put_staged(
    store: &Store,
    name_now: &SnapshotKey,
    parent: Option<&str>,
    commit: &mut Commit,
) -> Result<()> {
    // The commit reports this error itself.
    let Ok(info) = store.stat(name_now) else {
        return Ok(());
    };
    let Some(own) = info.parent.as_ref().filter(|_| is_staged(&info)) else {
        return Ok(());
    };
    if !stands_alike(store, parent, &store.stat(own)?)? {
        return Err(Error::Invalid {
            what: format!(
                "{} holds the layer {own}, whose parent is not {}",
                super::visible(name_now),
                parent.unwrap_or("nothing")
            ),
            hint: Some("remove the snapshot and pull the image again".into()),
        });
    }
    let stands_on = parent.unwrap_or(NOTHING);
    commit.labels.insert(STANDS_ON.into(), stands_on.into());
    // It is found by its chain, and recognized as the layer below.
    if let Some(chain) = info.labels.get(SNAPSHOT_REF) {
        commit.labels.insert(SNAPSHOT_REF.into(), chain.clone());
    }
    commit.parent = None;
    Ok(())
}

/// Tells whether a layer of Vellum's can be lent. With other drivers, a layer on it would be a
/// copy. The client's own differ can't read engines' marks.
fn fits(own: &Info) -> bool {
    own.kind == SnapshotKind::Committed && own.driver.stacks() && own.features.is_none()
}

/// Tells whether the parent that the client names has the chain of the layer below Vellum's layer
/// `own`.
fn stands_alike(store: &Store, parent: Option<&str>, own: &Info) -> Result<bool> {
    let Some(parent) = parent else {
        return Ok(own.parent.is_none());
    };
    let Some(below) = &own.parent else {
        return Ok(false);
    };
    match store.stat(&key(parent)) {
        Ok(info) => Ok(info.kind == SnapshotKind::Committed
            && info
                .labels
                .get(SNAPSHOT_REF)
                .is_some_and(|chain| chain.as_bytes() == below.as_bytes())),
        // The caller reports it when it prepares the snapshot.
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns the prefix of the store's keys of all adopted layers whose parent, for the client, is
/// `parent`.
fn children_of(parent: &str) -> Vec<u8> {
    let digest = Digest::of(parent.as_bytes()).hex();
    format!("{OWNER}{ADOPTED}/{}/", &digest[..32]).into_bytes()
}

/// Returns Vellum's layer that an adopted one shows.
pub(super) fn shows(info: &Info) -> Option<&SnapshotKey> {
    let adopted = info.labels.contains_key(STANDS_ON);
    info.parent.as_ref().filter(|_| adopted)
}

/// Gives the record of an adopted layer the client's view. The keys stay the store's.
pub(super) fn make_visible(info: &mut Info) {
    if let Some(parent) = info.labels.get(STANDS_ON) {
        info.parent = match parent.as_str() {
            NOTHING => None,
            parent => Some(key(parent)),
        };
    }
    own_labels::hide(info);
}

/// Removes from the changes whatever would alter how a layer was adopted. No client may change our
/// labels, nor the chain label of an adopted layer, by which the client finds it: the next request
/// for the chain would name a layer that can't be found.
pub(super) fn protect(changes: &[LabelChange], now: &Info) -> Vec<LabelChange> {
    let mut changes = own_labels::protect(changes, now);
    if now.labels.contains_key(STANDS_ON)
        && let Some(chain) = now.labels.get(SNAPSHOT_REF)
    {
        changes.push(LabelChange::Set(SNAPSHOT_REF.into(), chain.clone()));
    }
    changes
}

/// Refuses to remove a snapshot that, for the client, is the parent of adopted layers.
pub(super) fn check_childless(store: &Store, name: &str) -> Result<()> {
    let mut children = Vec::new();
    store.walk_prefix(&children_of(name), |info| -> Result<()> {
        children.push(info.key);
        Ok(())
    })?;
    match children.first() {
        None => Ok(()),
        Some(child) => Err(Error::Store(StoreError::HasChildren {
            key: super::visible(&key(name)),
            children: children.len() as u64,
            child: super::visible(child),
        })),
    }
}

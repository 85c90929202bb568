//! The calls on snapshots: prepare, view, commit, remove. Queries are in `ask`; `placed` puts a new
//! tree in place.
//!
//! Each call is the pure decision of `snapshot.rs` within the order of `tx.rs`. The decision is
//! made twice: once before any tree is touched, so that a refusal costs nothing, and once inside
//! the transaction that records, because another process may have come first. No tree is touched,
//! walked or synced while the database is locked.

mod ask;
mod placed;

use std::path::Path;

use rusqlite::Transaction;
use vellum_format::{Prefix, workdir};
use vellum_sys::plain;

use crate::{
    driver::{self, DriverKind, LayerDir, Shape, TreeParts, TreeRef},
    error::{Class, Result, StoreError, Subject},
    following::{self, Follower},
    layout,
    lease::LeaseId,
    parents,
    record::TreeRecord,
    record_lock::RecordLock,
    rows::{self, snapshots::SnapshotRow},
    snapshot::{
        Info, Keep, LabelChange, Labels, MountFeatures, Seen, SnapshotKey, SnapshotKind,
        apply_labels, policy_commit, policy_create, policy_remove,
    },
    store::Store,
    tx, walk,
};

pub(crate) use placed::{Placed, Undo};

/// The properties of a new writable snapshot or view.
#[derive(Clone, Debug, Default)]
pub struct PrepareOptions {
    /// Its parent, a committed snapshot; without one it begins empty.
    pub parent: Option<SnapshotKey>,
    /// Its labels.
    pub labels: Labels,
    /// What ends its life. With `WhileReferenced` and neither a lease nor a container, the next gc
    /// removes it.
    pub keep: Keep,
    /// A lease that holds it until a container or another record does.
    pub lease: Option<LeaseId>,
    /// The driver, if there is no parent to determine it; `None`: the store's default.
    pub driver: Option<DriverKind>,
    /// Size limit of the writable tree in bytes, as a project quota of the file system.
    pub size_limit_bytes: Option<u64>,
}

/// How a writable snapshot becomes a layer.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// The layer's labels; they replace the old ones.
    pub labels: Labels,
    /// The parent it has, or, if it has none, the layer to put it on.
    pub parent: Option<SnapshotKey>,
    /// What to do to a tree that gets its parent only now. Without it that is refused: the store
    /// itself doesn't know how layers combine.
    pub settle: Option<Settle>,
    /// When the layer's usage is counted.
    pub count: Count,
}

/// Adapts a tree that was filled without a parent, since the given time in nanoseconds after 1970,
/// to the layers below it, nearest first.
///
/// No other process uses the tree at that time. It may be called again for the same tree after a
/// crash. The store syncs the result.
pub type Settle = fn(&Path, &[LayerDir], i64) -> Result<()>;

/// When a new layer's usage is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Count {
    /// Before the call returns.
    #[default]
    Now,
    /// By [`Store::count`], or when it is first asked for: the cost of the commit doesn't depend on
    /// the tree's size.
    Later,
}

/// When the tree of a removed snapshot is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sweep {
    /// Before the call returns.
    #[default]
    Now,
    /// At the next [`Store::sweep`] or gc: removal costs a rename, whatever the tree's size.
    Later,
}

impl Store {
    /// Creates the writable snapshot `key`.
    ///
    /// Durable on return. Its tree shows the parent's, or an empty root directory of mode 0755
    /// whatever the umask. Errors: `AlreadyExists`, `NotFound` (parent), `ParentNotCommitted`,
    /// `Unsupported` (size limit), `Io`.
    pub fn prepare(&self, key: &SnapshotKey, options: &PrepareOptions) -> Result<TreeParts> {
        self.make(key, SnapshotKind::Active, options)
    }

    /// Creates the read-only snapshot `key`. Otherwise like [`Store::prepare`].
    pub fn view(&self, key: &SnapshotKey, options: &PrepareOptions) -> Result<TreeParts> {
        self.make(key, SnapshotKind::View, options)
    }

    fn make(
        &self,
        key: &SnapshotKey,
        kind: SnapshotKind,
        options: &PrepareOptions,
    ) -> Result<TreeParts> {
        let (placed, parents) = self.place(key, kind, options)?;
        let recorded = self.write(|tx| self.record_placed(tx, &placed.record, options).map(drop));
        let parts = self.placed_parts(&placed, &parents);
        placed.settle(recorded)?;
        Ok(parts)
    }

    /// Turns the writable snapshot `key` into the layer `name`; afterwards `key` is gone.
    ///
    /// Durable on return: the tree's data first, then the record. The caller ensures that nothing
    /// writes to the tree any more. Errors: `AlreadyExists` (name, checked first), `NotFound`,
    /// `NotActive`, `ParentMismatch`, `ParentNotCommitted`, `Io`; the snapshot is then unchanged.
    pub fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, commit: Commit) -> Result<Info> {
        let Commit {
            labels,
            parent,
            settle,
            count,
        } = commit;
        let parent = parent.as_ref();
        self.inner.database.refuse_if_rolled_back()?;
        let (now, _) = self.read(|tx| check_commit(tx, name, key, parent))?;
        let _lock = RecordLock::of_tree(self, &now.record.tree)?;
        let (row, parents, rebased) = self.read(|tx| {
            let (row, onto) = check_commit(tx, name, key, parent)?;
            match onto {
                Some(onto) if onto.driver() != row.driver() => Err(StoreError::Unsupported {
                    what: format!("committing {key} on {}", onto.record.key),
                    why: format!(
                        "one uses the driver {}, the other {}",
                        row.driver(),
                        onto.driver()
                    ),
                }),
                Some(onto) => Ok((row, chain(tx, &onto)?, true)),
                None => {
                    let parents = rows::snapshots::ancestors(tx, row.id)?;
                    Ok((row, parents, false))
                }
            }
        })?;
        if row.record.tree != now.record.tree {
            // Removed and created again under the same key since.
            return Err(StoreError::not_found(Subject::Snapshot, key));
        }
        if rebased && settle.is_none() {
            return Err(StoreError::Unsupported {
                what: format!("putting {key} on a parent"),
                why: "the caller gives no way to settle its tree there".to_owned(),
            });
        }
        let driver = driver::driver(row.driver());
        let dir = self.layout().tree(row.driver(), &row.record.tree);
        if rebased {
            driver.rebase(&dir, &parents)?;
        }
        let tree = row.tree_ref();
        let shape = driver.shape(self.layout(), &tree, &parents);
        if rebased
            && let Shape::Overlay(overlay) = &shape
            && let (Some(settle), Some(upper)) = (settle, &overlay.upper)
        {
            settle(&upper.dir, &overlay.lowers, row.record.created_ns)?;
        }
        let features = layer_features(row.record.features, &shape)?;
        if let Shape::Overlay(overlay) = &shape
            && let Some(work) = &overlay.work
            && is_unsettled(work)?
        {
            return Err(StoreError::Unsupported {
                what: format!("committing {key}"),
                why: "some of its files are only partly copied up; `vellum settle` completes them"
                    .to_owned(),
            });
        }
        driver.seal(self.layout(), &dir, &tree, &parents)?;
        let mut record = row.record.clone();
        record.features = features;
        record.kind = SnapshotKind::Committed;
        record.key = name.clone();
        record.labels = apply_labels(labels, &[]);
        record.parent = parents.first().map(|parent| parent.id.clone());
        record.created_ns = rows::now_ns();
        record.updated_ns = record.created_ns;
        record.usage = match count {
            Count::Now => Some(driver.usage(self.layout(), &dir, &own(&record), &parents)?),
            Count::Later => None,
        };
        let stamp = self.next_stamp()?;
        let file = record.replace(self.layout(), &stamp)?;
        vellum_sys::publish::sync_fs(&file)?;
        let committed = self.write(|tx| {
            let (now, onto) = check_commit(tx, name, key, parent)?;
            if now.record.tree != record.tree {
                // Removed and created again under the same key since.
                return Err(StoreError::not_found(Subject::Snapshot, key));
            }
            let parent = onto.map(|row| row.id).or(now.parent.map(|(id, _)| id));
            rows::snapshots::update(tx, now.id, &record, parent)?;
            rows::snapshots::by_id(tx, now.id)
        });
        let committed = match committed {
            Ok(committed) => committed,
            Err(error @ StoreError::Uncertain { .. }) => return Err(error),
            Err(error) => {
                // The record file is one step ahead. `check` would repair it, and so do we.
                if let Err(e) = row.record.replace(self.layout(), &stamp) {
                    tracing::debug!(error = %e, "record file left for `check`");
                }
                return Err(error);
            }
        };
        driver.settle(&dir)?;
        Ok(committed.info())
    }

    /// Removes a snapshot of any kind. The key is free at once.
    ///
    /// Durable on return. With `Sweep::Now` the space is free too, unless something is still
    /// mounted in the tree: then the rest waits in the trash for a later sweep, and the call
    /// succeeds. Errors: `NotFound`, `HasChildren`, `InUse` (an image or a container needs it).
    pub fn remove(&self, key: &SnapshotKey, sweep: Sweep) -> Result<()> {
        let (row, recipe) = self.write_freeing(|tx| {
            let row = rows::snapshots::get(tx, key)?;
            let (count, child) = rows::snapshots::children(tx, row.id)?;
            policy_remove(key, count, child)?;
            if let Some(by) = user_of(tx, row.id)? {
                return Err(StoreError::InUse {
                    subject: Subject::Snapshot,
                    name: key.to_string(),
                    by,
                });
            }
            rows::snapshots::remove(tx, row.id)?;
            let recipe = match row.record.diff_id {
                Some(diff_id) if rows::recipes::release(tx, &diff_id)? => Some(diff_id),
                _ => None,
            };
            Ok((row, recipe))
        })?;
        self.discard_or_leave(&row.record, sweep);
        if let Some(diff_id) = recipe {
            self.discard_recipe_or_leave(&diff_id);
        }
        Ok(())
    }

    /// Discards the tree of a removed record. The removal stands whatever happens here: gc removes
    /// what is left.
    pub(crate) fn discard_or_leave(&self, record: &TreeRecord, sweep: Sweep) {
        if let Err(error) = self.discard_tree(record, sweep) {
            tracing::warn!(tree = %record.tree, error = vellum_sys::with_causes(&error), "left for the next gc");
        }
    }

    /// Moves the tree of a removed record to the trash, and sweeps it if asked to.
    pub(crate) fn discard_tree(&self, record: &TreeRecord, sweep: Sweep) -> Result<()> {
        let layout = self.layout();
        driver::driver(record.driver).unlink(layout, record.link.as_ref())?;
        let path = layout.tree(record.driver, &record.tree);
        if record.size_limit_bytes.is_some() {
            crate::quota::lift(&path);
        }
        let trashed = match tx::to_trash(layout, &path) {
            // A new name in the trash may need a block that is not available: then it is deleted in
            // place, now.
            Err(error) if error.class() == Class::NoSpace => {
                tx::remove_in_place(&path)?;
                None
            }
            other => other?,
        };
        // An interrupted removal may have moved it already; then there is nothing to do.
        let _ = plain::unlink(&layout.record(&record.tree));
        if let (Sweep::Now, Some(trashed)) = (sweep, trashed) {
            tx::remove_trashed(layout, &trashed)?;
        }
        Ok(())
    }

    /// Changes labels; `updated` becomes now. Durable on return. Errors: `NotFound`.
    pub fn update(&self, key: &SnapshotKey, changes: &[LabelChange]) -> Result<Info> {
        self.change(key, |record| {
            record.labels = apply_labels(std::mem::take(&mut record.labels), changes);
            record.updated_ns = rows::now_ns();
            Ok(())
        })
    }

    fn change(
        &self,
        key: &SnapshotKey,
        change: impl FnOnce(&mut TreeRecord) -> Result<()>,
    ) -> Result<Info> {
        let tree = self.read(|tx| Ok(rows::snapshots::get(tx, key)?.record.tree))?;
        let _lock = RecordLock::of_tree(self, &tree)?;
        let row = self.write(|tx| {
            let mut row = rows::snapshots::get(tx, key)?;
            if row.record.tree != tree {
                // Removed and created again under the same key since.
                return Err(StoreError::not_found(Subject::Snapshot, key));
            }
            change(&mut row.record)?;
            let parent = row.parent.as_ref().map(|(id, _)| *id);
            rows::snapshots::update(tx, row.id, &row.record, parent)?;
            following::due(tx, &Follower::Tree(tree.clone()))?;
            Ok(row)
        })?;
        self.follow(&[Follower::Tree(tree)]);
        Ok(row.info())
    }

    /// Records what the upper of `key` is about to be mounted with for the first time, and returns
    /// the features in force.
    ///
    /// If some are recorded already, they are returned and nothing changes: a changed default
    /// applies to new trees only. The exception is the engine: once it has mounted an upper, that
    /// stays recorded. Durable on return. Errors: `NotFound`.
    pub fn record_features(
        &self,
        key: &SnapshotKey,
        features: MountFeatures,
    ) -> Result<MountFeatures> {
        if let Some(known) = self.stat(key)?.features
            && (known.engine || !features.engine)
        {
            return Ok(known);
        }
        let info = self.change(key, |record| {
            record.features.get_or_insert(features).engine |= features.engine;
            Ok(())
        })?;
        Ok(info.features.unwrap_or(features))
    }
}

/// Returns the tree of a record.
pub(crate) fn own(record: &TreeRecord) -> TreeRef {
    TreeRef {
        id: record.tree.clone(),
        kind: record.kind,
        link: record.link.clone(),
        diff_id: record.diff_id,
        features: record.features,
    }
}

/// Returns the ancestors of a child of `row`, nearest first.
pub(crate) fn chain(tx: &Transaction<'_>, row: &SnapshotRow) -> Result<Vec<TreeRef>> {
    let mut parents = vec![row.tree_ref()];
    parents.extend(rows::snapshots::ancestors(tx, row.id)?);
    match parents.len() <= parents::MOST {
        true => Ok(parents),
        false => Err(StoreError::Unsupported {
            what: format!("a child of {}", row.record.key),
            why: format!("a snapshot can have at most {} ancestors", parents::MOST),
        }),
    }
}

pub(crate) fn parent_row(
    tx: &Transaction<'_>,
    parent: Option<&SnapshotKey>,
) -> Result<Option<SnapshotRow>> {
    parent.map_or(Ok(None), |parent| rows::snapshots::find(tx, parent))
}

pub(crate) fn check_create(
    tx: &Transaction<'_>,
    key: &SnapshotKey,
    parent: Option<&SnapshotKey>,
    row: Option<&SnapshotRow>,
) -> Result<()> {
    let taken = rows::snapshots::find(tx, key)?.is_some();
    policy_create(
        key,
        taken,
        parent.map(|parent| (parent, row.map(|row| row.record.kind))),
    )
}

/// Returns the row to commit and, if it gets a parent only now, that parent's row.
fn check_commit(
    tx: &Transaction<'_>,
    name: &SnapshotKey,
    key: &SnapshotKey,
    parent: Option<&SnapshotKey>,
) -> Result<(SnapshotRow, Option<SnapshotRow>)> {
    let taken = rows::snapshots::find(tx, name)?.is_some();
    let row = rows::snapshots::find(tx, key)?;
    let asked = parent_row(tx, parent)?;
    policy_commit(
        name,
        taken,
        key,
        row.as_ref().map(|row| Seen {
            key,
            kind: row.record.kind,
        }),
        row.as_ref()
            .and_then(|row| row.parent.as_ref())
            .map(|(_, key)| key),
        parent.map(|parent| (parent, asked.as_ref().map(|row| row.record.kind))),
    )?;
    let row = row.ok_or_else(|| StoreError::not_found(Subject::Snapshot, key))?;
    let onto = if row.parent.is_none() { asked } else { None };
    Ok((row, onto))
}

/// Says what needs row `id`, apart from other snapshots and leases.
fn user_of(tx: &Transaction<'_>, id: i64) -> Result<Option<String>> {
    if let Some(name) = rows::containers::on_snapshot(tx, id)? {
        return Ok(Some(format!("container {name}")));
    }
    let image = rows::images::with_layer(tx, id)?;
    Ok(image.map(|id| format!("image {id}")))
}

/// Returns the features that a reader of a layer needs: those its tree was mounted with while it
/// was written to, if they left marks.
///
/// So mounts without redirects can show a layer in which nothing was renamed, and a layer that
/// needs them says so before the kernel answers EPERM.
fn layer_features(
    mounted_with: Option<MountFeatures>,
    shape: &Shape,
) -> Result<Option<MountFeatures>> {
    let (Some(features), Shape::Overlay(overlay)) = (mounted_with, shape) else {
        return Ok(mounted_with);
    };
    let Some(upper) = &overlay.upper else {
        return Ok(mounted_with);
    };
    let prefix = match features.userxattr {
        true => Prefix::User,
        false => Prefix::Trusted,
    };
    let found = walk::marks(&upper.dir, prefix)?;
    Ok(Some(MountFeatures {
        redirect_dir: found.redirects,
        metacopy: found.metacopies,
        ..features
    }))
}

/// Returns whether files of the upper layer with this work directory are only partly copied up,
/// which no layer's may be.
fn is_unsettled(work: &Path) -> Result<bool> {
    let maps = work.join(workdir::BLOCK_MAPS);
    match layout::dir(&maps) {
        Ok(dir) => Ok(dir.entries()?.next().is_some()),
        Err(StoreError::Sys(error)) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

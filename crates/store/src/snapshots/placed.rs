//! How a new tree is staged, published and recorded. What can't be finished is undone.

use std::path::PathBuf;

use rusqlite::Transaction;

use super::{PrepareOptions, chain, check_create, own, parent_row};
use crate::{
    driver::{self, Driver, DriverKind, LinkId, NewTree, TreeId, TreeParts, TreeRef},
    error::{Result, StoreError},
    record::{Identity, TreeRecord},
    rows,
    snapshot::{SnapshotKey, SnapshotKind},
    store::Store,
    tx::{self, Staged},
};

/// A tree in place, waiting to be recorded.
pub(crate) struct Placed {
    pub staged: Staged,
    pub record: TreeRecord,
    undo: Undo,
}

/// Removes what a tree has outside its own directory, unless it is recorded.
pub(crate) struct Undo {
    store: Store,
    tree: TreeId,
    driver: DriverKind,
    link: Option<LinkId>,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.armed {
            // Litter at worst: the next gc finds what stays.
            let _ = driver::driver(self.driver).unlink(self.store.layout(), self.link.as_ref());
            let _ = vellum_sys::plain::unlink(&self.store.layout().record(&self.tree));
        }
    }
}

impl Undo {
    pub fn new(store: &Store, record: &TreeRecord) -> Self {
        Self {
            store: store.clone(),
            tree: record.tree.clone(),
            driver: record.driver,
            link: record.link.clone(),
            armed: true,
        }
    }

    pub fn disarm(mut self) {
        self.armed = false;
    }
}

impl Placed {
    pub fn new(staged: Staged, record: TreeRecord, undo: Undo) -> Self {
        Self {
            staged,
            record,
            undo,
        }
    }

    /// Keeps the tree if it is recorded, or may be, and removes it if it is not.
    pub fn settle<T>(self, recorded: Result<T>) -> Result<T> {
        if matches!(recorded, Ok(_) | Err(StoreError::Uncertain { .. })) {
            self.keep();
        }
        recorded
    }

    /// The record is in the database: everything stays.
    pub fn keep(self) {
        self.undo.disarm();
        self.staged.keep();
    }
}

impl Store {
    pub(crate) fn placed_parts(&self, placed: &Placed, parents: &[TreeRef]) -> TreeParts {
        let record = &placed.record;
        self.parts(&own(record), record.driver, record, parents)
    }

    /// Stages and publishes the tree of a snapshot that is not recorded yet.
    pub(crate) fn place(
        &self,
        key: &SnapshotKey,
        kind: SnapshotKind,
        options: &PrepareOptions,
    ) -> Result<(Placed, Vec<TreeRef>)> {
        let (driver_kind, parents) = self.read(|tx| {
            let parent = parent_row(tx, options.parent.as_ref())?;
            check_create(tx, key, options.parent.as_ref(), parent.as_ref())?;
            match &parent {
                None => Ok((options.driver.unwrap_or(self.inner.driver), Vec::new())),
                Some(row) => Ok((row.driver(), chain(tx, row)?)),
            }
        })?;
        let driver = driver::driver(driver_kind);
        self.ensure_home(driver_kind)?;
        let (mut staged, mut record) = self.stage(driver, driver_kind, key, kind, &parents)?;
        record.labels = options.labels.clone();
        record.keep = options.keep;
        record.size_limit_bytes = options.size_limit_bytes;
        let new = NewTree {
            id: &record.tree,
            kind,
            link: record.link.as_ref(),
            parents: &parents,
        };
        if let Some(bytes) = options.size_limit_bytes {
            // Before anything is created in it: only what is created later inherits the project.
            crate::quota::limit(&self.layout().driver(driver_kind), staged.path(), bytes)?;
        }
        let copied = driver.stage(self.layout(), staged.path(), &new)?;
        let undo = self.publish(driver, &mut staged, &record, &parents, copied)?;
        Ok((Placed::new(staged, record, undo), parents))
    }

    /// Creates the empty staging directory of a new tree, and its record.
    pub(crate) fn stage(
        &self,
        driver: &dyn Driver,
        driver_kind: DriverKind,
        key: &SnapshotKey,
        kind: SnapshotKind,
        parents: &[TreeRef],
    ) -> Result<(Staged, TreeRecord)> {
        self.inner.database.refuse_if_rolled_back()?;
        let tree = TreeId::random();
        let staged = Staged::dir(self.layout(), tree.as_str())?;
        let record = TreeRecord::new(Identity {
            tree,
            driver: driver_kind,
            kind,
            key: key.clone(),
            parent: parents.first().map(|parent| parent.id.clone()),
            link: driver.links().map(|_| LinkId::random()),
            created_ns: rows::now_ns(),
        });
        Ok((staged, record))
    }

    /// Renames a staged tree into place, writes its record file and makes both durable.
    pub(crate) fn publish(
        &self,
        driver: &dyn Driver,
        staged: &mut Staged,
        record: &TreeRecord,
        parents: &[TreeRef],
        copied: bool,
    ) -> Result<Undo> {
        let layout = self.layout();
        let undo = Undo::new(self, record);
        let new = NewTree {
            id: &record.tree,
            kind: record.kind,
            link: record.link.as_ref(),
            parents,
        };
        staged.publish(&layout.tree(record.driver, &record.tree))?;
        driver.link(layout, &new)?;
        let file = record.create(layout, &self.next_stamp()?)?;
        if copied {
            vellum_sys::publish::sync_fs(&file)?;
        } else {
            let mut dirs: Vec<PathBuf> = vec![layout.driver(record.driver), layout.records()];
            let links = driver.links();
            dirs.extend(links.map(|links| layout.driver(record.driver).join(links)));
            tx::sync_small(
                self.inner.journal,
                staged.path(),
                &driver.staged_parts(&new),
                &file,
                &dirs,
            )?;
        }
        Ok(undo)
    }

    /// Inserts the row of a placed tree, checking the rules once more; returns its number.
    pub(crate) fn record_placed(
        &self,
        tx: &Transaction<'_>,
        record: &TreeRecord,
        options: &PrepareOptions,
    ) -> Result<i64> {
        let parent = parent_row(tx, options.parent.as_ref())?;
        check_create(tx, &record.key, options.parent.as_ref(), parent.as_ref())?;
        let id = rows::snapshots::insert(tx, record, parent.map(|row| row.id))?;
        if let Some(lease) = &options.lease {
            crate::lease::hold_snapshot(tx, lease, id)?;
        }
        Ok(id)
    }
}

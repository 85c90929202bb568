//! Queries about snapshots: what is recorded, what they take, which parts a tree has.
//!
//! Nothing is locked while an answer is used: the snapshot may have changed by then.

use crate::{
    driver::{self, DriverKind, Finding, TreeParts, TreeRef},
    error::{Result, StoreError, Subject},
    filter::Filter,
    record::TreeRecord,
    record_lock::RecordLock,
    rows::{self, snapshots::SnapshotRow},
    snapshot::{Info, SnapshotKey, SnapshotKind, Usage},
    snapshots::Sweep,
    store::Store,
};

impl Store {
    /// Returns all that is recorded about `key`. Errors: `NotFound`.
    pub fn stat(&self, key: &SnapshotKey) -> Result<Info> {
        self.read(|tx| Ok(rows::snapshots::get(tx, key)?.info()))
    }

    /// Returns whether `key` exists.
    pub fn exists(&self, key: &SnapshotKey) -> Result<bool> {
        self.read(|tx| Ok(rows::snapshots::find(tx, key)?.is_some()))
    }

    /// Returns one of the children of `key`, if it has any. Errors: `NotFound`.
    pub fn child(&self, key: &SnapshotKey) -> Result<Option<SnapshotKey>> {
        self.read(|tx| {
            let row = rows::snapshots::get(tx, key)?;
            Ok(rows::snapshots::children(tx, row.id)?.1)
        })
    }

    /// Calls `each` for every snapshot that passes one of `filters` (for all, if there are none),
    /// in key order.
    ///
    /// `each` may call the store: nothing is locked during the call, and snapshots created or
    /// removed by then may or may not be visited. An error of `each` ends the walk and is returned.
    pub fn walk<E: From<StoreError>>(
        &self,
        filters: &[Filter],
        mut each: impl FnMut(Info) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.walk_prefix(b"", |info| match Filter::any(filters, &info) {
            true => each(info),
            false => Ok(()),
        })
    }

    /// Calls `each` for every snapshot whose key begins with `prefix`, in key order; otherwise like
    /// [`Store::walk`].
    pub fn walk_prefix<E: From<StoreError>>(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(Info) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        const PAGE: i64 = 256;
        // The prefix itself is the smallest key that has it.
        let mut after = (!prefix.is_empty()).then(|| SnapshotKey::new(prefix));
        loop {
            let page = self.read(|tx| rows::snapshots::page(tx, after.as_ref(), PAGE))?;
            let full = page.len() as i64 == PAGE;
            after = page.last().map(|row| row.record.key.clone());
            for row in page {
                if !row.record.key.as_bytes().starts_with(prefix) {
                    return Ok(());
                }
                each(row.info())?;
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Returns what the snapshot itself takes: as fixed at commit, counted now if active, nothing
    /// for a view.
    pub fn usage(&self, key: &SnapshotKey) -> Result<Usage> {
        let known = |row: &SnapshotRow| match (row.record.kind, row.record.usage) {
            (SnapshotKind::View, _) => Some(Usage::default()),
            (SnapshotKind::Committed, usage) => usage,
            (SnapshotKind::Active, _) => None,
        };
        let (row, parents) = self.read(|tx| {
            let row = rows::snapshots::get(tx, key)?;
            let parents = match known(&row) {
                Some(_) => Vec::new(),
                None => rows::snapshots::ancestors(tx, row.id)?,
            };
            Ok((row, parents))
        })?;
        if let Some(usage) = known(&row) {
            return Ok(usage);
        }
        let dir = self.layout().tree(row.driver(), &row.record.tree);
        driver::driver(row.driver()).usage(self.layout(), &dir, &row.tree_ref(), &parents)
    }

    /// Counts what a layer takes, if its commit left that for later, and records it. Other
    /// snapshots are unchanged.
    ///
    /// A layer never changes, so a later count gives the same result. Errors: `NotFound`.
    pub fn count(&self, key: &SnapshotKey) -> Result<Usage> {
        let usage = self.usage(key)?;
        let info = self.stat(key)?;
        if info.kind == SnapshotKind::Committed && info.usage.is_none() {
            self.change(key, |record| {
                if record.kind == SnapshotKind::Committed && record.tree == info.tree {
                    record.usage = Some(usage);
                }
                Ok(())
            })?;
        }
        Ok(usage)
    }

    /// Counts the snapshots whose key begins with `prefix`, by kind, with what layers take where
    /// that is recorded. Kinds without snapshots are included.
    pub fn totals(&self, prefix: &[u8]) -> Result<Vec<(SnapshotKind, u64, Usage)>> {
        self.read(|tx| {
            [
                SnapshotKind::View,
                SnapshotKind::Active,
                SnapshotKind::Committed,
            ]
            .into_iter()
            .map(|kind| {
                let (count, usage) = rows::snapshots::total(tx, kind, prefix)?;
                Ok((kind, count, usage))
            })
            .collect()
        })
    }

    /// Returns a layer whose parent is `parent` (without one, if `None`), that has the label
    /// `label` with this value, and a key that begins with `prefix`.
    pub fn find_layer(
        &self,
        parent: Option<&SnapshotKey>,
        label: (&str, &str),
        prefix: &[u8],
    ) -> Result<Option<Info>> {
        self.read(|tx| {
            let on = match parent {
                None => None,
                Some(parent) => match rows::snapshots::find(tx, parent)? {
                    None => return Ok(None),
                    Some(row) => Some(row.id),
                },
            };
            let found = rows::snapshots::layers_with_text(tx, on, label.1)?;
            Ok(found.into_iter().map(SnapshotRow::info).find(|info| {
                info.key.as_bytes().starts_with(prefix)
                    && info
                        .labels
                        .get(label.0)
                        .is_some_and(|value| value == label.1)
            }))
        })
    }

    /// Returns the parts of the snapshot's tree, after repairing what is only derived from the
    /// record.
    ///
    /// Works for any kind; a committed one is returned read-only. Errors: `NotFound`, also if it is
    /// removed during the call; `Damaged` if a directory of the tree or of a layer under it is
    /// missing; `BrokenParents`.
    pub fn tree(&self, key: &SnapshotKey) -> Result<TreeParts> {
        let (row, parents) = self.with_parents(key)?;
        if !self
            .is_ready(&row, &parents, false)
            .is_ok_and(|found| found.is_empty())
        {
            self.mend_tree(key, &row)?;
        }
        Ok(self.parts(&row.tree_ref(), row.driver(), &row.record, &parents))
    }

    fn with_parents(&self, key: &SnapshotKey) -> Result<(SnapshotRow, Vec<TreeRef>)> {
        self.read(|tx| {
            let row = rows::snapshots::get(tx, key)?;
            let parents = rows::snapshots::ancestors(tx, row.id)?;
            Ok((row, parents))
        })
    }

    fn is_ready(&self, row: &SnapshotRow, parents: &[TreeRef], heal: bool) -> Result<Vec<Finding>> {
        let driver = driver::driver(row.driver());
        let mut found = driver.check(self.layout(), &row.tree_ref(), parents, heal)?;
        for parent in parents {
            found.extend(driver.ready(self.layout(), parent, heal)?);
        }
        Ok(found)
    }

    /// Repairs what a look at the tree `seen` found wrong, unless the tree was just being removed:
    /// a tree goes after its record.
    fn mend_tree(&self, key: &SnapshotKey, seen: &SnapshotRow) -> Result<()> {
        let _lock = RecordLock::of_tree(self, &seen.record.tree)?;
        let gone = || StoreError::not_found(Subject::Snapshot, key);
        let (row, parents) = self.with_parents(key)?;
        if row.record.tree != seen.record.tree {
            return Err(gone());
        }
        let found = self.is_ready(&row, &parents, true);
        if !self.exists(key)? {
            // Removes what the repair put back after the tree was removed.
            self.discard_or_leave(&row.record, Sweep::Later);
            return Err(gone());
        }
        for finding in found? {
            if !finding.healed {
                return Err(StoreError::Damaged {
                    what: finding.what,
                    why: finding.why,
                });
            }
            tracing::warn!(
                what = finding.what,
                why = finding.why,
                "repaired from the record"
            );
        }
        Ok(())
    }

    pub(super) fn parts(
        &self,
        tree: &TreeRef,
        driver: DriverKind,
        record: &TreeRecord,
        parents: &[TreeRef],
    ) -> TreeParts {
        TreeParts {
            tree: tree.id.clone(),
            driver,
            kind: tree.kind,
            shape: driver::driver(driver).shape(self.layout(), tree, parents),
            features: record.features,
            size_limit_bytes: record.size_limit_bytes,
        }
    }
}

//! Litter: what is in the store's directories without a record.
//!
//! The process that made it may be alive and about to record it. So it is removed only under the
//! lock that such a process holds, and after a second look at the database. `located.rs` says what
//! a name means; unknown names are left alone.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::{Garbage, Rebuilt, Thing};
use crate::{
    driver::{self, DriverKind, TreeId},
    error::Result,
    following, layout,
    located::{Located, Shelf},
    rebuild::rebuilt_leases,
    record_lock::RecordLock,
    rows,
    store::Store,
    tx::{self, Fate, Litter},
};

impl Store {
    /// Deletes what earlier removals left in the trash and what dead processes left in staging.
    /// Cheap if there is nothing.
    pub fn sweep(&self) -> Result<Vec<Garbage>> {
        self.inner.database.refuse_if_rolled_back()?;
        Ok(tx::sweep(self.layout(), false)?
            .into_iter()
            .map(Garbage::from)
            .collect())
    }

    /// Removes a file or directory whose name may be used again. Returns `None` if the process that
    /// made it is alive or a record of it has appeared; otherwise true if it is gone, false if part
    /// of it is mounted over.
    pub(crate) fn discard_named(&self, path: &Path, located: &Located) -> Result<Option<bool>> {
        let Some(_lock) = tx::try_own(path)? else {
            return Ok(None);
        };
        let trashed = self.write(|tx| {
            if rows::is_recorded(tx, located)? {
                Ok(None)
            } else {
                tx::to_trash(self.layout(), path)
            }
        })?;
        match trashed {
            None => Ok(None),
            Some(trashed) => tx::remove_trashed(self.layout(), &trashed).map(Some),
        }
    }

    pub(super) fn collect_litter(&self, dry_run: bool, rebuilt: Rebuilt) -> Result<Vec<Garbage>> {
        let mut found: Vec<Litter> = Vec::new();
        // What a rebuild could not restore is kept until an operator has looked.
        if rebuilt == Rebuilt::LetGo || self.read(rebuilt_leases)?.is_empty() {
            for shelf in Shelf::all() {
                // Trees that a dry run leaves in place but no longer counts as existing.
                let would = found.iter().filter(|litter| litter.fate == Fate::Would);
                let going: HashSet<PathBuf> = would.map(|litter| litter.path.clone()).collect();
                for (path, located) in self.unrecorded(shelf)? {
                    found.extend(self.take_unrecorded(path, &located, &going, dry_run)?);
                }
            }
        }
        found.extend(tx::sweep(self.layout(), dry_run)?);
        Ok(found.into_iter().map(Garbage::from).collect())
    }

    /// Returns what is on a shelf without a record, including unknown names and what is swept
    /// anyway.
    fn unrecorded(&self, shelf: Shelf) -> Result<Vec<(PathBuf, Located)>> {
        let held = self.layout().holds(shelf)?;
        self.read(|tx| {
            let names = match shelf {
                // All at once: a container can't be found by its file's name alone without looking
                // at every id.
                Shelf::Records => following::all_names(tx)?,
                _ => HashSet::new(),
            };
            let mut unrecorded = Vec::new();
            for (path, located) in held {
                let name = path.file_name().and_then(|name| name.to_str());
                let is_recorded = match shelf {
                    Shelf::Records => name.is_some_and(|name| names.contains(name)),
                    _ => rows::is_recorded(tx, &located)?,
                };
                if !is_recorded {
                    unrecorded.push((path, located));
                }
            }
            Ok(unrecorded)
        })
    }

    fn is_recorded(&self, located: &Located) -> Result<bool> {
        self.read(|tx| rows::is_recorded(tx, located))
    }

    /// Removes one thing that had no record a moment ago, if it still has none and no process is
    /// making it.
    fn take_unrecorded(
        &self,
        path: PathBuf,
        located: &Located,
        going: &HashSet<PathBuf>,
        dry_run: bool,
    ) -> Result<Option<Litter>> {
        let layout = self.layout();
        // What can't be looked at is assumed to be there.
        let stays = |kind, tree: &TreeId| {
            let path = layout.tree(kind, tree);
            !going.contains(&path) && layout::exists(&path).unwrap_or(true)
        };
        let take = |path, why| -> Result<_> { Ok(Some(tx::take_away(layout, path, why, dry_run))) };
        match located {
            Located::Tree(..) => {
                const WHY: &str = "a tree without a record";
                match tx::try_own(&path) {
                    Ok(None) => Ok(None),
                    Ok(Some(_)) if self.is_recorded(located)? => Ok(None),
                    Ok(Some(_lock)) => take(path, WHY),
                    Err(error) => Ok(Some(Litter::stuck(path, WHY, error))),
                }
            }
            Located::Link(kind, link) => {
                let tree = driver::driver(*kind).leads_to(layout, link);
                let leads_somewhere = tree.is_some_and(|tree| stays(*kind, &tree));
                match leads_somewhere || self.is_recorded(located)? {
                    true => Ok(None),
                    false => take(path, "a short name without a tree"),
                }
            }
            Located::Record(tree) => {
                let has_tree = DriverKind::ALL.into_iter().any(|kind| stays(kind, tree));
                match has_tree || self.is_recorded(located)? {
                    true => Ok(None),
                    false => take(path, "the record file of a tree that is gone"),
                }
            }
            Located::Sidecar(..) => {
                // Another process may be writing it just now, before its row or after.
                let _lock = RecordLock::of_sidecars(self)?;
                match tx::try_own(&path)? {
                    Some(_lock) if !self.is_recorded(located)? => {
                        take(path, "the record file of something that is gone")
                    }
                    _ => Ok(None),
                }
            }
            Located::Blob(_) => self.take_file(path, located, "a blob without a record", dry_run),
            Located::Recipe(_) => {
                self.take_file(path, located, "a recipe without a record", dry_run)
            }
            Located::Volume(_) => {
                self.take_file(path, located, "a volume without a record", dry_run)
            }
            // The sweep handles these.
            Located::Staged | Located::Trashed => Ok(None),
            Located::Shelf(_)
            | Located::Content
            | Located::Own
            | Located::Reserve
            | Located::OldDatabase
            | Located::LostFound
            | Located::Stranger => Ok(None),
        }
    }

    fn take_file(
        &self,
        path: PathBuf,
        located: &Located,
        why: &'static str,
        dry_run: bool,
    ) -> Result<Option<Litter>> {
        let fate = if dry_run {
            match tx::try_own(&path) {
                Ok(None) => return Ok(None),
                Ok(Some(_)) if self.is_recorded(located)? => return Ok(None),
                Ok(Some(_lock)) => Fate::Would,
                Err(e) => Fate::of(Err(e)),
            }
        } else {
            match self.discard_named(&path, located) {
                Ok(None) => return Ok(None),
                Ok(Some(gone)) => Fate::of(Ok(gone)),
                Err(e) => Fate::of(Err(e)),
            }
        };
        Ok(Some(Litter { path, why, fate }))
    }
}

impl From<Litter> for Garbage {
    fn from(litter: Litter) -> Self {
        Self {
            thing: Thing::Path(litter.path),
            why: litter.why.into(),
            usage: None,
            fate: litter.fate,
        }
    }
}

//! Record files that follow their rows: written right after the transaction, and never stale for
//! long.
//!
//! A transaction that changes what a record file says puts the file's name on a list in the
//! database (`records_due`). The file is written next, and synced before the command returns. A
//! later transaction takes the name off the list, so that keeping the list costs no sync of its
//! own. A command that dies in between leaves a name whose file may be stale: the next one to open
//! the store checks it and rewrites it if necessary. So nobody has to run `check --heal` after a
//! crash.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::Transaction;
use vellum_format::Digest;
use vellum_sys::{sync, with_causes};

use crate::{
    driver::TreeId,
    error::Result,
    generation,
    layout::Layout,
    located::{Located, Shelf, SidecarKind},
    record::TreeRecord,
    record_lock::RecordLock,
    records, rows,
    sidecar::{self, ContainerFile, ImageFile},
    stamp::{Stamp, contradiction},
    store::Store,
};

/// The object that a record file describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Follower {
    /// Of a tree.
    Tree(TreeId),
    /// Of an image.
    Image(Digest),
    /// Of a container, by id.
    Container(String),
}

impl Follower {
    fn name(&self) -> String {
        match self {
            Self::Tree(tree) => format!("{tree}.json"),
            Self::Image(id) => sidecar::image_name(id),
            Self::Container(id) => sidecar::container_name(id),
        }
    }
}

/// Notes, in the transaction that changes a record, that its file must be written. Call it after
/// the change.
pub(crate) fn due(tx: &Transaction<'_>, follower: &Follower) -> Result<()> {
    let next = generation::stamp(tx)?.generation + 1;
    rows::due::note(tx, &follower.name(), next)
}

/// Returns the names of all record files that should exist.
pub(crate) fn all_names(tx: &Transaction<'_>) -> Result<HashSet<String>> {
    let trees = rows::snapshots::trees(tx)?.into_iter().map(Follower::Tree);
    let images = rows::images::ids(tx)?.into_iter().map(Follower::Image);
    let containers = rows::containers::ids(tx)?;
    let containers = containers.into_iter().map(Follower::Container);
    let all = trees.chain(images).chain(containers);
    Ok(all.map(|follower| follower.name()).collect())
}

/// Files on the list that agree with the database.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Their names, with the generations they are correct for.
    files: Mutex<Vec<(String, u64)>>,
    /// Not known to be durable: their writer may have died before its sync.
    unsynced: AtomicBool,
}

impl Settled {
    fn add(&self, name: String, generation: u64, is_durable: bool) {
        sync::lock(&self.files).push((name, generation));
        if !is_durable {
            self.unsynced.store(true, Ordering::Relaxed);
        }
    }

    /// Makes them durable before a transaction takes them off the list. Those it can't sync stay on
    /// it.
    pub fn sync(&self, layout: &Layout) {
        if self.unsynced.swap(false, Ordering::Relaxed)
            && let Err(error) = records::sync(layout)
        {
            tracing::debug!(
                error = with_causes(&error),
                "record files will be checked again later"
            );
            sync::lock(&self.files).clear();
        }
    }

    /// Takes them off the list, inside a transaction that changes something anyway. Those that
    /// became due again stay on it.
    pub fn forget(&self, tx: &Transaction<'_>) -> Result<()> {
        // If the transaction fails, the next command to open the store checks them once more.
        for (name, generation) in sync::lock(&self.files).drain(..) {
            rows::due::forget(tx, &name, generation)?;
        }
        Ok(())
    }
}

impl Store {
    /// Looks for record files without a row that prove that the database has gone back in time.
    /// Returns the proof.
    ///
    /// The mark was checked when the store was opened. This finds what the mark can't show after a
    /// power loss.
    pub(crate) fn look_for_rollback(&self) -> Result<Option<String>> {
        if let Some(why) = self.inner.database.rolled_back() {
            return Ok(Some(why.to_owned()));
        }
        let files = records::files(self.layout())?;
        let known = self.read(all_names)?;
        for path in files {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| known.contains(name)) {
                continue;
            }
            // A file that can't be read proves nothing.
            let Ok(Some(written)) = records::read_stamp(&path) else {
                continue;
            };
            let now = self.read(generation::stamp)?;
            if let Some(why) = contradiction(&now, &written, 1) {
                return Ok(Some(format!("{}: {why}", path.display())));
            }
        }
        Ok(None)
    }

    /// Writes these record files from the database, or removes them if their objects are gone.
    /// Durable on return.
    ///
    /// The caller has held their locks since before the change. A failure here doesn't undo the
    /// change, which is durable: the next command rewrites the file.
    pub(crate) fn follow(&self, followers: &[Follower]) {
        if let Err(error) = self.try_follow(followers) {
            tracing::warn!(
                error = with_causes(&error),
                "cannot write a record file; the next command repairs it"
            );
        }
    }

    fn try_follow(&self, followers: &[Follower]) -> Result<()> {
        let written = followers
            .iter()
            .map(|follower| {
                self.write_follower(follower)
                    .map(|at| (follower.name(), at))
            })
            .collect::<Result<Vec<_>>>()?;
        records::sync(self.layout())?;
        for (name, generation) in written {
            self.inner.database.settled.add(name, generation, true);
        }
        Ok(())
    }

    /// Writes one record file from the database, and returns the generation it is correct for. Not
    /// synced.
    fn write_follower(&self, follower: &Follower) -> Result<u64> {
        let path = self.layout().records().join(follower.name());
        let (content, stamp) =
            self.read(|tx| Ok((content(tx, follower)?, generation::stamp(tx)?)))?;
        match content {
            Some(content) => content.replace(self.layout(), &path, &stamp)?,
            None => records::remove(&path)?,
        }
        Ok(stamp.generation)
    }

    /// Checks the record files on the list and rewrites the stale ones, which a command that died
    /// has left.
    ///
    /// Called when the store is opened. A file whose writer is still alive is skipped, and so is
    /// everything if nothing can be written: the list stays.
    pub(crate) fn catch_up(&self) {
        let caught = (|| -> Result<()> {
            let due = self.read(rows::due::all)?;
            for (name, generation) in due {
                if self.catch_up_with(&name)? {
                    self.inner.database.settled.add(name, generation, false);
                }
            }
            Ok(())
        })();
        if let Err(error) = caught {
            tracing::debug!(
                error = with_causes(&error),
                "stale record files are left for a later command"
            );
        }
    }

    /// Rewrites one record file if it is stale. Returns whether it is correct now.
    fn catch_up_with(&self, name: &str) -> Result<bool> {
        let Some(follower) = self.read(|tx| follower_of(tx, name))? else {
            // Its object is gone. So is the file, or gc removes it.
            return Ok(true);
        };
        let lock = match &follower {
            Follower::Tree(tree) => RecordLock::try_of_tree(self, tree)?,
            Follower::Image(_) | Follower::Container(_) => RecordLock::try_of_sidecars(self)?,
        };
        let Some(_lock) = lock else {
            return Ok(false);
        };
        if self.is_stale(&follower)? {
            self.write_follower(&follower)?;
            tracing::info!(name, "rewrote a record file that a crash had left stale");
        }
        Ok(true)
    }

    fn is_stale(&self, follower: &Follower) -> Result<bool> {
        let path = self.layout().records().join(follower.name());
        let content = self.read(|tx| content(tx, follower))?;
        Ok(content.is_some_and(|content| content.differs(&path).is_some()))
    }
}

/// What a record file should say.
enum Content {
    Tree(Box<TreeRecord>),
    Image(ImageFile),
    Container(ContainerFile),
}

impl Content {
    fn replace(&self, layout: &Layout, path: &Path, stamp: &Stamp) -> Result<()> {
        match self {
            Self::Tree(record) => records::replace(layout, path, record.as_ref(), stamp),
            Self::Image(file) => records::replace(layout, path, file, stamp),
            Self::Container(file) => records::replace(layout, path, file, stamp),
        }
        .map(drop)
    }

    fn differs(&self, path: &Path) -> Option<String> {
        match self {
            Self::Tree(record) => records::differs(path, record.as_ref()),
            Self::Image(file) => records::differs(path, file),
            Self::Container(file) => records::differs(path, file),
        }
    }
}

/// Returns what the database says about it; `None` if it is gone.
fn content(tx: &Transaction<'_>, follower: &Follower) -> Result<Option<Content>> {
    Ok(match follower {
        Follower::Tree(tree) => {
            rows::snapshots::by_tree(tx, tree)?.map(|row| Content::Tree(Box::new(row.record)))
        }
        Follower::Image(id) => {
            rows::images::find(tx, id)?.map(|image| Content::Image(ImageFile::from(&image)))
        }
        Follower::Container(id) => rows::containers::find(tx, id)?
            .map(|found| Content::Container(ContainerFile::from(&found))),
    })
}

/// Finds out which object a record file of this name describes; `None` if that is gone.
fn follower_of(tx: &Transaction<'_>, name: &str) -> Result<Option<Follower>> {
    let located = Shelf::Records.read(name);
    Ok(match located {
        Located::Sidecar(SidecarKind::Container, Some(digest)) => {
            rows::containers::by_digest(tx, &digest)?.map(Follower::Container)
        }
        _ if !rows::is_recorded(tx, &located)? => None,
        Located::Sidecar(SidecarKind::Image, Some(id)) => Some(Follower::Image(id)),
        Located::Record(tree) => Some(Follower::Tree(tree)),
        _ => None,
    })
}

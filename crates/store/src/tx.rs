//! The transaction that joins record and tree: a record never points at a missing or unsynced tree.
//!
//! Adding: the tree is staged under `staging/`, renamed into place, synced together with its own
//! record file, and only then recorded in the database. Removing: the record goes first, then the
//! tree is renamed to `trash/` and swept. So a crash leaves litter, never a lie: whatever is in
//! `staging/`, in `trash/` or in a driver's directory without a record belongs to nothing, and
//! [`sweep`] removes it.
//!
//! The exception is what a live process is creating: each staged tree is an flocked directory from
//! the moment it has a name until its record is committed, wherever it is renamed in between. A
//! sweep takes the lock before it takes the tree, and then asks the database once more. The lock
//! ends with the process, so a dead process never keeps anything.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use vellum_sys::{
    Dir, RenameFlags,
    plain::{self, Links},
    publish::{self, DataOrder},
    rooted::Removal,
};

use crate::{
    driver::TreeId,
    error::{Class, IoContext, Result, StoreError},
    hands,
    layout::{self, Layout, damaged, entries, open_to_lock, sync_dir},
};

/// How far one sync of a directory reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Journal {
    /// Changes of names are durable in the order they were made (XFS, ext4 with a journal): syncing
    /// the last one syncs all before it.
    Ordered,
    /// Nothing is known: each directory and file is synced on its own.
    Unordered,
}

impl Journal {
    /// If the file system can't be asked, the worse case is assumed.
    pub fn of(path: &Path) -> Self {
        match Dir::open(path).and_then(publish::data_order) {
            // What orders bytes orders names, by the same journal.
            Ok(DataOrder::WrittenOut) => Self::Ordered,
            Ok(DataOrder::InMemory | DataOrder::Synced) | Err(_) => Self::Unordered,
        }
    }
}

/// A directory or file being created: locked, and removed unless it is kept.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    layout: Layout,
    /// Holds the lock that tells sweepers that the creating process is alive.
    lock: File,
    kept: bool,
}

impl Staged {
    /// Creates an empty directory under `staging/`.
    pub fn dir(layout: &Layout, name: &str) -> Result<Self> {
        Self::make(layout, name, |staging, name| {
            staging.mkdir(name, 0o700)?;
            match staging.open_dir(name) {
                // A sweeper found it before it was locked.
                Err(e) if e.is_not_found() => Ok(None),
                opened => Ok(Some(File::from(std::os::fd::OwnedFd::from(opened?)))),
            }
        })
    }

    /// Creates an empty file under `staging/`; the returned handle reads and writes it.
    pub fn file(layout: &Layout, name: &str) -> Result<(Self, File)> {
        let staged = Self::make(layout, name, |staging, name| {
            staging.create_file(name, 0o600).map(Some)
        })?;
        let file = staged.lock.try_clone().on("open", &staged.path)?;
        Ok((staged, file))
    }

    fn make(
        layout: &Layout,
        name: &str,
        make: impl Fn(&Dir, &str) -> vellum_sys::Result<Option<File>>,
    ) -> Result<Self> {
        hands::own(layout)?;
        let staging = own_dir(layout, "staging")?;
        let path = layout.staging().join(name);
        loop {
            let Some(lock) = make(&staging, name)? else {
                continue;
            };
            lock.lock().on("lock", &path)?;
            // A sweeper may have come between creation and lock: then the name is gone, and we
            // start again.
            if same_file(&lock, &path)? {
                return Ok(Self {
                    path,
                    layout: layout.clone(),
                    lock,
                    kept: false,
                });
            }
        }
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to `target`, still locked and still to be removed when dropped.
    pub fn publish(&mut self, target: &Path) -> Result<()> {
        plain::rename(&self.path, target).map_err(damaged)?;
        self.path = target.to_owned();
        Ok(())
    }

    /// Renames it to `target`, a name that is not random and that other processes may publish or
    /// record too: dropping it doesn't remove it any more, since that could remove theirs. Without
    /// a record it is litter, which a sweep finds once the lock is gone.
    pub fn publish_shared(&mut self, target: &Path) -> Result<()> {
        self.publish(target)?;
        self.kept = true;
        Ok(())
    }

    /// Flushes it alone: a file's data, a directory's names.
    pub fn sync(&self) -> Result<()> {
        self.lock.sync_all().on("sync", &self.path)
    }

    /// Its record is committed: it stays.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // What can't be removed now is litter for the next sweep.
        if let Err(error) = discard(&self.layout, &self.path) {
            tracing::debug!(path = %self.path.display(), %error, "left for the next sweep");
        }
    }
}

/// Returns whether `path` is still the name of this open file.
pub(crate) fn same_file(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata().on("stat", path)?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).on("stat", path),
    }
}

/// Opens a directory directly under the root where things are created or deleted, if it is the
/// store's own.
fn own_dir(layout: &Layout, name: &str) -> Result<Dir> {
    let root = layout::dir(layout.root())?;
    let path = layout.root().join(name);
    let dir = layout::dir(&path)?;
    hands::on_the_store(&path, &root.stat_self()?, &dir.stat_self()?)?;
    Ok(dir)
}

/// Renames `path` into the trash under a new name, which is returned; `None` if nothing was there.
pub(crate) fn to_trash(layout: &Layout, path: &Path) -> Result<Option<PathBuf>> {
    let name = TreeId::random();
    let trash = own_dir(layout, "trash")?;
    let moved = plain::place("move to trash", path, Links::Nowhere)
        .and_then(|(from, old)| from.rename(old, &trash, name.as_str(), RenameFlags::empty()));
    match moved {
        Ok(()) => Ok(Some(layout.trash().join(name.as_str()))),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) if plain::is_wrong_kind(&e) => Err(damaged(e)),
        Err(e) => Err(e.source).on("move to trash", path),
    }
}

/// Moves `path` to the trash and removes it there. Returns false if part of it had to stay
/// (something is mounted in it).
pub(crate) fn discard(layout: &Layout, path: &Path) -> Result<bool> {
    match to_trash(layout, path) {
        Ok(None) => Ok(true),
        Ok(Some(trashed)) => remove_trashed(layout, &trashed),
        // A new name in the trash may need a block that is not available.
        Err(error) if error.class() == Class::NoSpace => remove_in_place(path),
        Err(error) => Err(error),
    }
}

/// Removes what [`to_trash`] put into the trash; what is mounted in it stays for a later sweep.
pub(crate) fn remove_trashed(layout: &Layout, trashed: &Path) -> Result<bool> {
    match trashed.file_name() {
        Some(name) => remove(&own_dir(layout, "trash")?, name),
        None => Ok(true),
    }
}

/// Removes `path` in place: for a disk without space for another name. Returns false if part of it
/// is mounted over.
pub(crate) fn remove_in_place(path: &Path) -> Result<bool> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => remove(&layout::dir(dir)?, name),
        _ => Ok(true),
    }
}

fn remove(dir: &Dir, name: &OsStr) -> Result<bool> {
    match dir.remove_tree(name)? {
        Removal::Gone => Ok(true),
        Removal::Mounted(places) => {
            tracing::warn!(?places, "something is still mounted in removed trees");
            Ok(false)
        }
    }
}

/// What a sweep found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Litter {
    pub path: PathBuf,
    pub why: &'static str,
    pub fate: Fate,
}

impl Litter {
    /// Something that can't even be examined.
    pub fn stuck(path: PathBuf, why: &'static str, error: StoreError) -> Self {
        let fate = Fate::of(Err(error));
        Self { path, why, fate }
    }
}

/// What happened to something that should be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Gone,
    /// It would be removed; this was a dry run.
    Would,
    /// Its record is gone, but something on disk could not be removed now; a later sweep tries
    /// again. The cause.
    Stuck(String),
}

impl Fate {
    /// Turns the result of a removal into a fate; `false`: part of it is mounted over.
    pub(crate) fn of(result: Result<bool>) -> Self {
        match result {
            Ok(true) => Self::Gone,
            Ok(false) => Self::Stuck("something is mounted in it".into()),
            Err(e) => Self::Stuck(vellum_sys::with_causes(&e)),
        }
    }
}

/// Removes what dead processes left in `staging/`, and all of `trash/`; with `dry_run` it only
/// lists it.
pub(crate) fn sweep(layout: &Layout, dry_run: bool) -> Result<Vec<Litter>> {
    const DEAD: &str = "staged by a process that has died";
    let mut found = Vec::new();
    hands::own(layout)?;
    for path in entries(&layout.staging())? {
        match try_own(&path) {
            Ok(None) => {}
            Ok(Some(_lock)) => found.push(take_away(layout, path, DEAD, dry_run)),
            Err(error) => found.push(Litter::stuck(path, DEAD, error)),
        }
    }
    for path in entries(&layout.trash())? {
        let gone = if dry_run {
            Fate::Would
        } else {
            Fate::of(remove_trashed(layout, &path))
        };
        found.push(Litter {
            path,
            why: "removed, but not yet swept",
            fate: gone,
        });
    }
    Ok(found)
}

/// Moves one piece of litter to the trash and removes it. The caller holds its lock.
pub(crate) fn take_away(
    layout: &Layout,
    path: PathBuf,
    why: &'static str,
    dry_run: bool,
) -> Litter {
    let fate = if dry_run {
        Fate::Would
    } else {
        Fate::of(discard(layout, &path))
    };
    Litter { path, why, fate }
}

/// What reserves an entry for the process that removes it: its lock, where it can have one.
#[must_use]
pub(crate) struct Owned {
    _lock: Option<File>,
}

/// Takes the lock of a staged or published entry; `None` if the process that created it is alive,
/// or it is gone by now.
///
/// What is neither a file nor a directory was not created by us: it can be removed without a lock.
pub(crate) fn try_own(path: &Path) -> Result<Option<Owned>> {
    let file = match open_to_lock(path) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(Some(Owned { _lock: None })),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    match file.try_lock() {
        Ok(()) => Ok(same_file(&file, path)?.then_some(Owned { _lock: Some(file) })),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(e).on("lock", path),
    }
}

/// Flushes the names that publishing a staged tree created or moved, and what was staged, unless
/// the file system's journal does it all at once. `parts` are names under `tree` that were written.
pub(crate) fn sync_small(
    journal: Journal,
    tree: &Path,
    parts: &[&str],
    record: &File,
    dirs: &[PathBuf],
) -> Result<()> {
    if journal == Journal::Unordered {
        for part in parts {
            layout::sync_any(&tree.join(part))?;
        }
        sync_dir(tree)?;
        for dir in dirs {
            sync_dir(dir)?;
        }
    }
    // The record file was created last: on an ordered journal syncing it makes everything durable.
    record.sync_all().on("sync", tree)
}

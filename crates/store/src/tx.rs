//! The transaction that joins record and tree: a record never points at a missing or unsynced tree.
//!
//! Adding: the tree is staged under `staging/`, renamed into place, synced together with its own record file, and only
//! then recorded in the database. Removing: the record goes first, then the tree is renamed to `trash/` and swept. So a
//! crash leaves litter, never a lie: whatever lies in `staging/`, in `trash/` or in a driver's directory without a record
//! is nobody's, and [`sweep`] takes it away.
//!
//! Nobody's, unless its maker still lives: each staged tree is an flocked directory from the moment it has a name until
//! its record is committed, wherever it is renamed to meanwhile. A sweep takes the lock before it takes the tree, and then
//! asks the database once more. The lock goes with the process, so a dead maker never keeps anything.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use vellum_sys::{
    Dir,
    publish::{self, DataOrder},
    rooted::Removal,
};

use crate::{
    driver::TreeId,
    error::{Class, IoContext, Result},
    layout::{Layout, sync_dir},
};

/// How far one sync of a directory reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Journal {
    /// Changes of names are durable in the order they were made (XFS, ext4 with a journal): syncing the last one syncs all
    /// before it.
    Ordered,
    /// Nothing is known: each directory and file is synced by itself.
    Unordered,
}

impl Journal {
    /// What can't be asked is taken for the worse.
    pub fn of(path: &Path) -> Self {
        match Dir::open(path).and_then(publish::data_order) {
            // What orders bytes orders names, by the same journal.
            Ok(DataOrder::WrittenOut) => Self::Ordered,
            Ok(DataOrder::InMemory | DataOrder::Synced) | Err(_) => Self::Unordered,
        }
    }
}

/// A directory or file being made: locked, and taken away again unless it is kept.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    trash: PathBuf,
    /// Holds the lock that tells sweepers its maker lives.
    lock: File,
    kept: bool,
}

impl Staged {
    /// Makes an empty directory under `staging/`.
    pub fn dir(layout: &Layout, name: &str) -> Result<Self> {
        Self::make(layout, name, |path| {
            std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700)
                .create(path)?;
            match File::open(path) {
                // A sweeper found it before it could be locked.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                opened => opened.map(Some),
            }
        })
    }

    /// Makes an empty file under `staging/`; the returned handle reads and writes it.
    pub fn file(layout: &Layout, name: &str) -> Result<(Self, File)> {
        let staged = Self::make(layout, name, |path| {
            let mut options = fs::OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(
                options.read(true).write(true).create_new(true),
                0o600,
            );
            options.open(path).map(Some)
        })?;
        let file = staged.lock.try_clone().on("open", &staged.path)?;
        Ok((staged, file))
    }

    fn make(
        layout: &Layout,
        name: &str,
        make: impl Fn(&Path) -> io::Result<Option<File>>,
    ) -> Result<Self> {
        let path = layout.staging().join(name);
        loop {
            let Some(lock) = make(&path).on("make", &path)? else {
                continue;
            };
            lock.lock().on("lock", &path)?;
            // A sweeper may have come between the making and the lock: then the name is gone, and we begin anew.
            if same_file(&lock, &path)? {
                return Ok(Self {
                    path,
                    trash: layout.trash(),
                    lock,
                    kept: false,
                });
            }
        }
    }

    /// Where it lies now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to `target`, still locked and still to be taken away.
    pub fn publish(&mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).on("publish", target)?;
        self.path = target.to_owned();
        Ok(())
    }

    /// Renames it to `target`, a name that is not random and that others may publish or record too: it is not taken away
    /// any more, since that could take theirs. Unrecorded it is litter, which a sweep finds once the lock is gone.
    pub fn publish_shared(&mut self, target: &Path) -> Result<()> {
        self.publish(target)?;
        self.kept = true;
        Ok(())
    }

    /// Flushes it alone: a file's data, a directory's names.
    pub fn sync(&self) -> Result<()> {
        self.lock.sync_all().on("sync", &self.path)
    }

    /// It has been recorded: it stays.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // What can't be taken away now is litter that the next sweep finds.
        if let Err(error) = discard(&self.trash, &self.path) {
            tracing::debug!(path = %self.path.display(), %error, "left for the next sweep");
        }
    }
}

/// Tells whether `path` is still the name of this open file.
pub(crate) fn same_file(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata().on("look at", path)?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).on("look at", path),
    }
}

/// Renames `path` into `trash` under a fresh name, which is returned; `None` if nothing was there.
pub(crate) fn to_trash(trash: &Path, path: &Path) -> Result<Option<PathBuf>> {
    let target = trash.join(TreeId::random().as_str());
    match fs::rename(path, &target) {
        Ok(()) => Ok(Some(target)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).on("move to trash", path),
    }
}

/// Moves `path` to the trash and removes it there. Returns false if part of it had to stay (something is mounted in it).
pub(crate) fn discard(trash: &Path, path: &Path) -> Result<bool> {
    match to_trash(trash, path) {
        Ok(None) => Ok(true),
        Ok(Some(trashed)) => remove(trash, &trashed),
        // A new name in the trash may need a block that there is not.
        Err(error) if error.class() == Class::NoSpace => remove_in_place(path),
        Err(error) => Err(error),
    }
}

/// Removes what [`to_trash`] put into the trash; what is mounted in it stays for a later sweep.
pub(crate) fn remove_trashed(layout: &Layout, trashed: &Path) -> Result<bool> {
    remove(&layout.trash(), trashed)
}

/// Removes `path` where it lies: for a disk without room for another name. False if part of it is mounted over.
pub(crate) fn remove_in_place(path: &Path) -> Result<bool> {
    match path.parent() {
        Some(dir) => remove(dir, path),
        None => Ok(true),
    }
}

fn remove(dir: &Path, path: &Path) -> Result<bool> {
    let Some(name) = path.file_name() else {
        return Ok(true);
    };
    match Dir::open(dir)?.remove_tree(name)? {
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

/// What became of something that was to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Gone,
    /// It would go; this was a dry run.
    Would,
    /// Its record is gone, but something on disk could not be removed now; a later sweep tries again. The cause.
    Stuck(String),
}

impl Fate {
    /// Makes a fate of a removal's outcome; `false`: part of it is mounted over.
    pub(crate) fn of(result: Result<bool>) -> Self {
        match result {
            Ok(true) => Self::Gone,
            Ok(false) => Self::Stuck("something is mounted in it".into()),
            Err(e) => Self::Stuck(crate::error::chain(&e)),
        }
    }
}

/// Takes away what dead makers left in `staging/` and all of `trash/`; with `dry_run` only tells.
pub(crate) fn sweep(layout: &Layout, dry_run: bool) -> Result<Vec<Litter>> {
    let mut found = Vec::new();
    for path in entries(&layout.staging())? {
        let Some(_lock) = try_own(&path)? else {
            continue;
        };
        found.push(take_away(
            layout,
            path,
            "staged by a process that has died",
            dry_run,
        ));
    }
    for path in entries(&layout.trash())? {
        let gone = if dry_run {
            Fate::Would
        } else {
            Fate::of(remove(&layout.trash(), &path))
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
        Fate::of(discard(&layout.trash(), &path))
    };
    Litter { path, why, fate }
}

/// Takes the lock of a staged or published entry; `None` if its maker lives, or it has gone meanwhile.
pub(crate) fn try_own(path: &Path) -> Result<Option<File>> {
    let file = match open_to_lock(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).on("open", path),
    };
    match file.try_lock() {
        Ok(()) => Ok(same_file(&file, path)?.then_some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(e).on("lock", path),
    }
}

/// Opens a file or directory to be locked, not what a link leads to: for writing where that is possible, since NFS gives no exclusive
/// lock of a file otherwise (EBADF). A directory's lock it leaves to this machine.
pub(crate) fn open_to_lock(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = |write: bool| {
        fs::OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
    };
    match open(true) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => open(false),
        other => other,
    }
}

/// Returns the paths of a directory's entries; none if it is not there.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).on("list", dir),
    };
    let mut paths = list
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .on("list", dir)?;
    paths.sort_unstable();
    Ok(paths)
}

/// Flushes the names that publishing a staged tree made or moved, and what was staged, as far as the file system's
/// journal does not do it in one go. `parts` are names under `tree` that were written.
pub(crate) fn sync_small(
    journal: Journal,
    tree: &Path,
    parts: &[&str],
    record: &File,
    dirs: &[PathBuf],
) -> Result<()> {
    if journal == Journal::Unordered {
        for part in parts {
            sync_dir(&tree.join(part))?;
        }
        sync_dir(tree)?;
        for dir in dirs {
            sync_dir(dir)?;
        }
    }
    // The record file was made after everything else: on an ordered journal this alone makes it all durable.
    record.sync_all().on("sync", tree)
}

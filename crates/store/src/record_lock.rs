//! Locks on the record files: a process that changes the database and a record file holds one, so
//! that no other process sees one changed without the other.
//!
//! A record file is written right before or right after its row changes. In between the two differ,
//! and a check would report what is only in progress, or undo it. There is a lock for each tree's
//! record and one for those of all images and containers. They also make changes of one record
//! reach the file in the order in which they reached the database.
//!
//! A lock is an flock and ends with its value, or its process. Order: a record lock before the
//! database's write transaction, and never two record locks at once, except on trees that no other
//! process knows yet. Nothing waits forever: a process that is stopped while it holds one makes
//! others `Busy`. On a network file system these locks work only between the processes of one
//! machine.

use std::{fs::File, io, os::fd::OwnedFd, path::Path, sync::MutexGuard, time::Duration};

use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::sync;

use crate::{
    driver::TreeId,
    error::{IoContext, Result, StoreError},
    layout,
    store::Store,
    tx,
};

/// How many times longer than for the database a call waits for the lock on one tree: a commit
/// holds it while the disk writes the tree's data.
const COMMITS_ARE_SLOW: u32 = 10;

/// A lock on record files; it is released when dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct RecordLock<'store> {
    lock: Lock,
    _queue: Option<MutexGuard<'store, ()>>,
}

impl<'store> RecordLock<'store> {
    /// Waits for the lock on one tree's record file. Errors: `Busy`.
    ///
    /// The file itself is locked; one that replaces it is locked before it has the name, and for as
    /// long as its writer keeps it open. Without a file, it is the lock on all of them.
    pub fn of_tree(store: &'store Store, tree: &TreeId) -> Result<Self> {
        let path = store.layout().record(tree);
        let patience = store.inner.database.patience() * COMMITS_ARE_SLOW;
        loop {
            let file = match layout::open_to_lock(&path) {
                Ok(Some(file)) => file,
                // Something else in its place: no process locks that.
                Ok(None) => return Self::of_sidecars(store),
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    let all = Self::of_sidecars(store)?;
                    if layout::exists(&path)? {
                        continue;
                    }
                    return Ok(all);
                }
                Err(e) => return Err(e),
            };
            let again = file.try_clone().on("open", &path)?;
            let lock = wait(file, &path, patience)?;
            // It may have been replaced while we waited.
            if tx::same_file(&again, &path)? {
                return Ok(Self { lock, _queue: None });
            }
        }
    }

    /// Waits for the lock on the record files of images and containers. Errors: `Busy`.
    pub fn of_sidecars(store: &'store Store) -> Result<Self> {
        let queue = sync::lock(&store.inner.sidecars);
        let path = store.layout().records();
        let dir = File::from(OwnedFd::from(layout::dir(&path)?));
        let lock = wait(dir, &path, store.inner.database.patience())?;
        Ok(Self {
            lock,
            _queue: Some(queue),
        })
    }
}

impl<'store> RecordLock<'store> {
    /// Takes the lock on one tree's record file if it is free; `None` if another process holds it,
    /// or there is no file.
    pub fn try_of_tree(store: &'store Store, tree: &TreeId) -> Result<Option<Self>> {
        let path = store.layout().record(tree);
        match layout::open_to_lock(&path) {
            Ok(Some(file)) => {
                let again = file.try_clone().on("open", &path)?;
                let Some(lock) = Lock::try_now(file, Sharing::Exclusive)? else {
                    return Ok(None);
                };
                // It was replaced: the lock is on the new file.
                Ok(tx::same_file(&again, &path)?.then_some(Self { lock, _queue: None }))
            }
            Ok(None) => Self::try_of_sidecars(store),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::try_of_sidecars(store)
            }
            Err(e) => Err(e),
        }
    }

    /// Takes the lock on the record files of images and containers if it is free.
    pub fn try_of_sidecars(store: &'store Store) -> Result<Option<Self>> {
        let Ok(queue) = store.inner.sidecars.try_lock() else {
            return Ok(None);
        };
        let path = store.layout().records();
        let dir = File::from(OwnedFd::from(layout::dir(&path)?));
        let lock = Lock::try_now(dir, Sharing::Exclusive)?;
        Ok(lock.map(|lock| Self {
            lock,
            _queue: Some(queue),
        }))
    }
}

impl RecordLock<'static> {
    /// The lock on a tree that no other process knows yet, whose record file was just created.
    pub fn of_new(file: File) -> Result<Self> {
        let lock = Lock::wait(file, Sharing::Exclusive)?;
        Ok(Self { lock, _queue: None })
    }
}

/// Waits for an exclusive lock. Errors: `Busy`, with `path`.
pub(crate) fn wait(file: File, path: &Path, patience: Duration) -> Result<Lock> {
    Lock::wait_at_most(file, Sharing::Exclusive, patience)?.ok_or_else(|| StoreError::Busy {
        path: path.to_owned(),
        waited_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
    })
}

impl Drop for RecordLock<'_> {
    fn drop(&mut self) {
        // Closing alone is not enough: a process that another thread is just starting has a copy
        // until it executes its own program. This can't fail on an open file.
        let _ = self.lock.release();
    }
}

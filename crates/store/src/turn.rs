//! Turns at the record files: whoever changes the database and a record file has one, so that
//! nobody else meets the one without the other.
//!
//! A record file is written right before its row is changed or right after; between the two they
//! differ, and a check that came then would report what is only under way, or heal it away. There
//! is a turn for each tree's record and one for those of all images and containers. Changes of one
//! record also come to the file in the order in which they came to the database.
//!
//! A turn is an flock and ends with its value, or its process. Order: a turn before the database's
//! write transaction, and never two turns at once, except of trees that nobody else has heard of
//! yet. Nobody waits for ever: a process that is stopped in its turn makes others `Busy`. On a
//! network file system turns hold among the processes of one machine only.

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

/// How many times longer than for the database one waits for the turn at one tree: a commit has it
/// while the disk takes in the tree's data.
const COMMITS_ARE_SLOW: u32 = 10;

/// A turn; it ends when dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn<'store> {
    lock: Lock,
    _queue: Option<MutexGuard<'store, ()>>,
}

impl<'store> Turn<'store> {
    /// Waits for the turn at one tree's record file. Errors: `Busy`.
    ///
    /// The file itself is locked; one that replaces it is locked before it has the name, and for as
    /// long as its writer keeps it open. Without a file, it is the turn at all of them.
    pub fn at_tree(store: &'store Store, tree: &TreeId) -> Result<Self> {
        let path = store.layout().record(tree);
        let patience = store.inner.database.patience() * COMMITS_ARE_SLOW;
        loop {
            let file = match layout::open_to_lock(&path) {
                Ok(Some(file)) => file,
                // Something else in its place: nobody locks that.
                Ok(None) => return Self::at_sidecars(store),
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    let all = Self::at_sidecars(store)?;
                    if layout::exists(&path)? {
                        continue;
                    }
                    return Ok(all);
                }
                Err(e) => return Err(e),
            };
            let again = file.try_clone().on("open", &path)?;
            let lock = wait(file, &path, patience)?;
            // It may have been replaced meanwhile.
            if tx::same_file(&again, &path)? {
                return Ok(Self { lock, _queue: None });
            }
        }
    }

    /// Waits for the turn at the record files of images and containers. Errors: `Busy`.
    pub fn at_sidecars(store: &'store Store) -> Result<Self> {
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

impl<'store> Turn<'store> {
    /// Has the turn at one tree's record file if nobody else has; `None` if it is another's, or
    /// there is no file.
    pub fn try_at_tree(store: &'store Store, tree: &TreeId) -> Result<Option<Self>> {
        let path = store.layout().record(tree);
        match layout::open_to_lock(&path) {
            Ok(Some(file)) => {
                let again = file.try_clone().on("open", &path)?;
                let Some(lock) = Lock::try_now(file, Sharing::Exclusive)? else {
                    return Ok(None);
                };
                // Replaced meanwhile: the turn is at the new file.
                Ok(tx::same_file(&again, &path)?.then_some(Self { lock, _queue: None }))
            }
            Ok(None) => Self::try_at_sidecars(store),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::try_at_sidecars(store)
            }
            Err(e) => Err(e),
        }
    }

    /// Has the turn at the record files of images and containers if nobody else has.
    pub fn try_at_sidecars(store: &'store Store) -> Result<Option<Self>> {
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

impl Turn<'static> {
    /// The turn at a tree that nobody else has heard of yet, whose record file was just made.
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

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Not only closed: a process that another thread is just starting has a copy until it runs
        // its own program. It can't fail on an open file.
        let _ = self.lock.release();
    }
}

//! The store as callers see it: opening it, and what concerns the store as a whole.

use std::{
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use vellum_sys::plain::{self, Links};

use crate::StoreError;
use crate::{
    database::Database,
    driver::{self, DriverKind},
    error::{Class, Result},
    generation, hands,
    layout::{self, Layout},
    rows,
    stamp::Stamp,
    tx::Journal,
};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The store's directory, 0700, preferably a file system of its own. Made absolute when opened.
    pub root: PathBuf,
    /// The driver for snapshots without a parent; others use their parent's.
    pub driver: DriverKind,
    /// The driver to use instead where `driver` can't work, unless `driver` has trees here; `None`
    /// to make that an error.
    pub fallback: Option<DriverKind>,
    /// Create the store if there is none. If false, a missing store is an error: for callers that
    /// expect a store, and may find the bare mount point of a disk that is not mounted.
    pub create: bool,
    /// How long a call waits while other processes write, in milliseconds, before it fails with
    /// `Busy`. For the record of a tree that another process is committing it waits ten times as
    /// long.
    pub busy_timeout_ms: u64,
    /// Layers will be merged by code that works on any file system. If false, drivers whose layers
    /// the kernel stacks are refused on a file system that doesn't return each entry's type in
    /// listings (d_type): the kernel's overlay can't use it.
    pub any_file_system: bool,
}

impl StoreOptions {
    /// Options for the store at `root`: overlay2, created if missing, with a wait of 30 seconds.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            driver: DriverKind::default(),
            fallback: None,
            create: true,
            busy_timeout_ms: 30_000,
            any_file_system: false,
        }
    }
}

/// An open store. Cheap to clone, and usable from many threads and many processes at once.
///
/// Every method that changes something is durable on return. After an error the store is as it was,
/// except for litter, which [`Store::gc`] removes.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub layout: Layout,
    pub database: Database,
    pub driver: DriverKind,
    pub any_file_system: bool,
    pub journal: Journal,
    pub reserve: Reserve,
    /// Threads of this process queue here for the lock on images and containers, instead of polling
    /// it.
    pub sidecars: Mutex<()>,
}

impl Store {
    /// Opens the store, creating or migrating it if necessary.
    ///
    /// One whose database has gone back in time opens too, for reading: see [`Store::rolled_back`].
    /// Errors: `NotAStore`, `NewerStore`, `Busy`; `NoDatabase` if it is gone or empty and the store
    /// has been used; `Io` with `NotFound` if there is none and it must not be created;
    /// `Unsupported` if the file system is unfit for the driver.
    pub fn open(options: &StoreOptions) -> Result<Self> {
        // Without symbolic links: the mount table, which says what is in use, contains none, and
        // none must be followed later.
        let layout = Layout::find(&options.root)?;
        if options.create && !layout::exists(&layout.database())? {
            layout.refuse_anothers()?;
            layout::make_dir(layout.root(), 0o700)?;
            hands::close_new_root(layout.root())?;
        }
        layout.check_database()?;
        let database = Database::open(&layout, options.create, options.busy_timeout_ms)?;
        let mut store = Self::on(layout, database, options);
        // What is not the store's own is neither used nor repaired: `check` reports it, and every
        // change is refused.
        if hands::warn(store.layout()) && store.inner.database.rolled_back().is_none() {
            store.catch_up();
            if !layout::exists(&store.layout().driver(options.driver))? {
                store.fill_reserve();
            }
            store.settle_driver(options)?;
        }
        Ok(store)
    }

    /// Creates the driver's directory, or the fallback driver's.
    fn settle_driver(&mut self, options: &StoreOptions) -> Result<()> {
        let (error, fallback) = match (self.ensure_home(options.driver), options.fallback) {
            (Err(error), Some(fallback)) => (error, fallback),
            (done, _) => return done,
        };
        let known = layout::exists(&self.layout().driver(fallback))?;
        match &error {
            StoreError::Unsupported { why, .. } if !known => {
                tracing::warn!("using the storage driver {fallback}: {why}");
            }
            StoreError::Unsupported { .. } => {}
            // A disk that became read-only can't be tested any more.
            error if known && error.is_read_only() => {}
            _ => return Err(error),
        }
        // Just created: no other thread has it yet.
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.driver = fallback;
        }
        self.ensure_home(fallback)
    }

    /// Returns the store on an open database.
    pub(crate) fn on(layout: Layout, database: Database, options: &StoreOptions) -> Self {
        Self {
            inner: Arc::new(Inner {
                journal: Journal::of(layout.root()),
                reserve: Reserve::new(layout.reserve()),
                layout,
                database,
                driver: options.driver,
                any_file_system: options.any_file_system,
                sidecars: Mutex::default(),
            }),
        }
    }

    /// Reserves as much space as a rebuild of the database takes, and a little more.
    pub(crate) fn fill_reserve(&self) {
        let database = std::fs::metadata(self.layout().database()).map_or(0, |facts| facts.len());
        self.inner.reserve.fill(database);
    }

    /// Says why the database can only be read, if it has gone back in time: nothing is changed in
    /// such a store.
    pub fn rolled_back(&self) -> Option<&str> {
        self.inner.database.rolled_back()
    }

    /// Returns the stamp for a record file that is written before its row.
    pub(crate) fn next_stamp(&self) -> Result<Stamp> {
        Ok(self.read(generation::stamp)?.next())
    }

    /// Returns the store's directory, absolute.
    pub fn root(&self) -> &std::path::Path {
        self.inner.layout.root()
    }

    /// Returns the driver for snapshots without a parent.
    pub fn default_driver(&self) -> DriverKind {
        self.inner.driver
    }

    /// Returns the directory of `driver`'s trees, absolute. It need not exist.
    pub fn driver_home(&self, driver: DriverKind) -> PathBuf {
        self.inner.layout.driver(driver)
    }

    /// Returns the random id that the store got at its creation: 32 hexadecimal digits.
    pub fn uuid(&self) -> Result<String> {
        self.read(generation::store_id)
    }

    /// Returns the schema version of the database.
    pub fn schema_version() -> i64 {
        crate::schema::VERSION
    }

    /// Returns the number of snapshots of each driver that has any, sorted by the driver's name.
    pub fn drivers_in_use(&self) -> Result<Vec<(DriverKind, u64)>> {
        self.read(rows::snapshots::by_driver)
    }

    /// Creates the directory of `driver`, and tests whether it can work here, unless that was done
    /// before.
    pub(crate) fn ensure_home(&self, driver: DriverKind) -> Result<()> {
        // What is created last says that everything exists: another process may be creating it, or
        // a crash may have come in between.
        let home = self.inner.layout.driver(driver);
        let last = match driver::driver(driver).links() {
            Some(links) => home.join(links),
            None => home,
        };
        if layout::exists(&last)? {
            return Ok(());
        }
        driver::driver(driver).create_home(&self.inner.layout, self.inner.any_file_system)?;
        layout::sync_dir(self.root())
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.inner.database.read(read)
    }

    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.inner.database.settled.sync(self.layout());
        self.inner.database.write(write)
    }
}

/// Space reserved so that things can be removed from a full disk: removal needs a few blocks too.
pub(crate) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Enough for a transaction that removes many records, and for the directory entries of the
    /// trash.
    const BYTES: u64 = 1 << 20;

    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reserves the space, if it isn't yet: enough for another database of `database_bytes`. A disk
    /// without that much space is not an error.
    pub fn fill(&self, database_bytes: u64) {
        let bytes = (Self::BYTES + database_bytes).next_multiple_of(Self::BYTES);
        let had = std::fs::symlink_metadata(&self.path).map_or(0, |facts| facts.blocks() * 512);
        if had >= bytes {
            return;
        }
        // Extended, never truncated first: on a full disk others would take what was given up.
        let filled = plain::open_or_create(&self.path, 0o600, Links::Nowhere)
            .map_err(std::io::Error::other)
            .and_then(|file| {
                let whole = rustix::fs::FallocateFlags::empty();
                Ok(rustix::fs::fallocate(&file, whole, 0, bytes)?)
            });
        if let Err(error) = filled {
            tracing::debug!(%error, "cannot reserve more space");
            if had == 0 {
                let _ = plain::unlink(&self.path); // an empty file would only look like a reserve
            }
        }
    }

    /// Frees the space, and the inode. Returns false if there was none.
    pub fn spend(&self) -> bool {
        let had = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|facts| facts.is_file() && facts.len() > 0);
        // Removed, not truncated: at the end of a quota btrfs has no space left for a truncation.
        if !had || !plain::unlink(&self.path).is_ok_and(|was| was) {
            return false;
        }
        // Some file systems release freed blocks only when a transaction has ended.
        let dir = self.path.parent().unwrap_or(&self.path);
        layout::dir(dir).is_ok_and(|dir| vellum_sys::publish::sync_fs(&dir).is_ok())
    }
}

impl Store {
    /// Like `write`, for what frees space: on a full disk the reserve is spent and the transaction
    /// tried again.
    pub(crate) fn write_freeing<T>(
        &self,
        write: impl Fn(&rusqlite::Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        hands::own(self.layout())?;
        match self.write(&write) {
            Err(error) if error.class() == Class::NoSpace && self.inner.reserve.spend() => {
                let freed = self.write(&write)?;
                // Before others take it: the next removal may need it too.
                self.fill_reserve();
                Ok(freed)
            }
            other => other,
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.root())
            .field("driver", &self.inner.driver)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_that_cannot_grow_is_unchanged() {
        if !vellum_testkit::needs_root("a small file system") {
            return;
        }
        let scratch = vellum_testkit::Scratch::new();
        let disk = match scratch.file_system("disk", vellum_testkit::FsKind::Tmpfs, 4) {
            Ok(disk) => disk,
            Err(why) => return vellum_testkit::untested("a small file system", why),
        };
        let reserve = Reserve::new(disk.join("reserve"));
        let taken =
            || std::fs::metadata(disk.join("reserve")).map_or(0, |facts| facts.blocks() * 512);
        reserve.fill(0);
        assert_eq!(taken(), Reserve::BYTES);
        reserve.fill(Reserve::BYTES / 2);
        assert_eq!(taken(), 2 * Reserve::BYTES);
        reserve.fill(64 * Reserve::BYTES);
        assert!(taken() >= 2 * Reserve::BYTES, "{}", taken());
        assert!(reserve.spend());
        assert!(!reserve.spend());
    }
}

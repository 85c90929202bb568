//! The store as callers see it: opening, and what belongs to all of it.

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
    /// The store's directory, 0700, its own file system preferred. Made absolute when opened.
    pub root: PathBuf,
    /// The driver for snapshots without a parent; others use their parent's.
    pub driver: DriverKind,
    /// The driver in its place where it can't work, if it has no trees here; `None` to have that as
    /// an error.
    pub fallback: Option<DriverKind>,
    /// Make the store if there is none. Off, opening a missing one is an error: what a caller wants
    /// that expects a store and may find the bare mount point of a disk that is not mounted.
    pub create: bool,
    /// How long a call waits while other processes write, in milliseconds, before it fails with
    /// `Busy`. For the record of a tree that somebody is committing it waits ten times as long.
    pub busy_timeout_ms: u64,
    /// Layers are put together by somebody who can do it on any file system. Off, drivers whose
    /// layers the kernel stacks are refused on one that does not say in listings what each entry is
    /// (d_type): its overlay takes none of those.
    pub any_file_system: bool,
}

impl StoreOptions {
    /// Options for the store at `root`: overlay2, made if missing, patient for 30 seconds.
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
/// Every method that changes something is durable on return, and after an error the store is as it
/// was (litter aside, which [`Store::gc`] takes away).
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
    /// Threads of this process queue here for the turn at images and containers, instead of polling
    /// its lock.
    pub sidecars: Mutex<()>,
}

impl Store {
    /// Opens the store, making or migrating it if need be.
    ///
    /// One whose database has gone back in time opens, too, for reading: see
    /// [`Store::rolled_back`]. Errors: `NotAStore`, `NewerStore`, `Busy`; `NoDatabase` if it is
    /// gone or empty and the store has been used; `Io` with `NotFound` if there is none and it is
    /// not to be made; `Unsupported` if the driver's own directory can't carry it.
    pub fn open(options: &StoreOptions) -> Result<Self> {
        // Without symbolic links: the mount table, which says what is in use, knows none, and none
        // is to be followed later.
        let layout = Layout::find(&options.root)?;
        if options.create && !layout::exists(&layout.database())? {
            layout::make_dir(layout.root(), 0o700)?;
            hands::close_new_root(layout.root())?;
        }
        layout.check_database()?;
        let database = Database::open(&layout, options.create, options.busy_timeout_ms)?;
        let mut store = Self::on(layout, database, options);
        // What is not the store's own is neither used nor mended: `check` tells about it, and every
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

    /// Makes the driver's directory, or that of the driver in its place.
    fn settle_driver(&mut self, options: &StoreOptions) -> Result<()> {
        let (error, fallback) = match (self.ensure_home(options.driver), options.fallback) {
            (Err(error), Some(fallback)) => (error, fallback),
            (done, _) => return done,
        };
        let known = layout::exists(&self.layout().driver(fallback))?;
        match &error {
            StoreError::Unsupported { why, .. } if !known => {
                tracing::warn!("the storage driver is {fallback} here: {why}");
            }
            StoreError::Unsupported { .. } => {}
            // On a disk that turned read-only what could be tried before can't be tried now.
            error if known && error.is_read_only() => {}
            _ => return Err(error),
        }
        // Just made: nobody else has it yet.
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

    /// Keeps back as much room as a rebuild of the database takes, and a little.
    pub(crate) fn fill_reserve(&self) {
        let database = std::fs::metadata(self.layout().database()).map_or(0, |facts| facts.len());
        self.inner.reserve.fill(database);
    }

    /// Says why the database can only be read, if it has gone back in time: nothing is changed in
    /// such a store.
    pub fn rolled_back(&self) -> Option<&str> {
        self.inner.database.rolled_back()
    }

    /// Returns what a record file is to carry that is written before its row.
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

    /// Returns the random id that the store got when it was made: 32 hexadecimal digits.
    pub fn uuid(&self) -> Result<String> {
        self.read(generation::store_id)
    }

    /// Returns the schema version of the database.
    pub fn schema_version() -> i64 {
        crate::schema::VERSION
    }

    /// Returns the number of snapshots of each driver that has any, in the order of the drivers'
    /// names.
    pub fn drivers_in_use(&self) -> Result<Vec<(DriverKind, u64)>> {
        self.read(rows::snapshots::by_driver)
    }

    /// Makes the directory of `driver`, and tries whether it can work here, unless that was done
    /// before.
    pub(crate) fn ensure_home(&self, driver: DriverKind) -> Result<()> {
        // What is made last tells that all is there: another process may be at it, or a crash have
        // come between.
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

/// Space kept back so that things can be removed from a full disk: forgetting needs a few blocks,
/// too.
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

    /// Takes the space, if it is not taken: enough for another database of `database_bytes`. A disk
    /// without room for it is no error.
    pub fn fill(&self, database_bytes: u64) {
        let bytes = (Self::BYTES + database_bytes).next_multiple_of(Self::BYTES);
        let had = std::fs::symlink_metadata(&self.path).map_or(0, |facts| facts.blocks() * 512);
        if had >= bytes {
            return;
        }
        // Extended, never cut first: on a full disk others would take what was given up.
        let filled = plain::open_or_create(&self.path, 0o600, Links::Nowhere)
            .map_err(std::io::Error::other)
            .and_then(|file| {
                let whole = rustix::fs::FallocateFlags::empty();
                Ok(rustix::fs::fallocate(&file, whole, 0, bytes)?)
            });
        if let Err(error) = filled {
            tracing::debug!(%error, "no more space is kept back");
            if had == 0 {
                let _ = plain::unlink(&self.path); // what is empty would only look like a reserve
            }
        }
    }

    /// Gives the space up, and the inode. Returns false if there was none.
    pub fn spend(&self) -> bool {
        let had = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|facts| facts.is_file() && facts.len() > 0);
        // Removed, not cut: at the end of a quota btrfs has no room left for a truncation.
        if !had || !plain::unlink(&self.path).is_ok_and(|was| was) {
            return false;
        }
        // Some file systems give freed blocks out only when a transaction has ended.
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
                // Before others take it: the next removal may need it as much.
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
    fn a_reserve_that_can_not_grow_stays_as_it_is() {
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

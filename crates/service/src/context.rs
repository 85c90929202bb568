//! What every verb is handed: settings, the store, where to work until the next boot, whether to
//! stop, and who listens.
//!
//! A context belongs to one command (or one daemon); it is shared by reference between its threads.
//! The store is opened at the first [`Context::store`], so that verbs that need none
//! (`config show`) neither make nor migrate one. Each later call looks again whether its
//! directories are where they were: a daemon lives long enough for somebody to mount something over
//! them, and its open database would then tell of trees that are made in, or deleted from, what
//! lies there now.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use vellum_store::{Store, StoreOptions};
use vellum_sys::{Cancel, Process};

use crate::config::{Config, Driver, Engine, Source};
use crate::error::{Error, Result};
use crate::home;
use crate::progress::Progress;

/// The surroundings of a verb.
pub struct Context {
    /// The settings that hold.
    pub config: Config,
    /// Set when the user wants to stop; ask [`Context::go_on`] between two steps.
    pub cancel: Cancel,
    /// Who this process is, since before there was a context.
    pub process: Process,
    /// Who is told what happens.
    pub progress: Arc<dyn Progress>,
    store: OnceLock<Opened>,
}

/// The store, and where its directories were when it was opened.
struct Opened {
    store: Store,
    seen: home::Seen,
}

impl Context {
    /// Returns a context without touching the disk. The process has entered the namespaces it works
    /// in.
    pub fn new(mut config: Config, cancel: Cancel, progress: Arc<dyn Progress>) -> Self {
        // What is mounted is looked up by paths below it.
        config.root.value = home::resolved(&config.root.value);
        Self {
            config,
            cancel,
            process: Process::read(),
            progress,
            store: OnceLock::new(),
        }
    }

    /// Returns the store, opening it (and making it, if there is none) the first time. Some ten
    /// stat(2) otherwise.
    ///
    /// Errors: [`Error::Covered`], [`Error::Unmounted`] and [`Error::Replaced`] as long as its
    /// directories can't be seen.
    pub fn store(&self) -> Result<&Store> {
        if let Some(opened) = self.store.get() {
            opened.seen.again(self.run_dir())?;
            return Ok(&opened.store);
        }
        let options = self.store_options();
        home::verify(self.root(), self.run_dir())?;
        let store = Store::open(&options)?;
        home::note(self.root(), self.run_dir(), &store.uuid()?)?;
        let seen = home::Seen::now(self.root());
        Ok(&self.store.get_or_init(|| Opened { store, seen }).store)
    }

    /// How the store is opened. Where Vellum's own engine can mount its layers they may be on any
    /// file system, and where nobody chose a driver, one that works everywhere may take its place.
    pub(crate) fn store_options(&self) -> StoreOptions {
        let driver = &self.config.storage_driver;
        StoreOptions {
            driver: driver.value,
            fallback: (driver.source == Source::Default).then_some(Driver::Native),
            any_file_system: self.config.engine.value != Engine::Kernel
                && vellum_sys::probe::has_fuse(),
            ..StoreOptions::new(self.root())
        }
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.config.root.value
    }

    /// The directory of what lives until the next boot. It need not be there.
    pub fn run_dir(&self) -> &Path {
        &self.config.run_dir.value
    }

    /// Errors with [`Error::Cancelled`] once the user wants to stop.
    pub fn go_on(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }
}

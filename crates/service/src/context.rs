//! What every verb gets: settings, the store, the run directory, the cancel flag, and the listener.
//!
//! A context belongs to one command (or one daemon) and is shared by reference between its threads.
//! The store is opened by the first [`Context::store`], so verbs that don't need it (`config show`)
//! neither create nor migrate one. Each later call checks that its directories are still where they
//! were: a daemon may live long enough for something to be mounted over them. Its open database
//! would then describe other trees than those it creates and deletes.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use vellum_store::{Store, StoreOptions};
use vellum_sys::{Cancel, Process};

use crate::config::{Config, Driver, Engine, Source};
use crate::error::{Error, Result, is_not_found};
use crate::home;
use crate::progress::Progress;

/// The surroundings of a verb.
pub struct Context {
    /// The resolved settings.
    pub config: Config,
    /// Set when the user wants to stop; check it with [`Context::go_on`] between two steps.
    pub cancel: Cancel,
    /// This process's identity, read before the context was created.
    pub process: Process,
    /// The listener to progress.
    pub progress: Arc<dyn Progress>,
    /// Whether the store is created if it is missing.
    creates: bool,
    store: OnceLock<Opened>,
}

/// The store, and where its directories were when it was opened.
struct Opened {
    store: Store,
    seen: home::Seen,
}

impl Context {
    /// Returns a context without touching the disk. The process is already in the namespaces it
    /// works in.
    pub fn new(mut config: Config, cancel: Cancel, progress: Arc<dyn Progress>) -> Self {
        // Mounts are looked up by paths below it.
        config.root.value = home::resolved(&config.root.value);
        Self {
            config,
            cancel,
            process: Process::read(),
            progress,
            creates: true,
            store: OnceLock::new(),
        }
    }

    /// The same, for work that makes no sense on a new store: a missing one is an error.
    pub fn on_an_existing_store(self) -> Self {
        Self {
            creates: false,
            ..self
        }
    }

    /// Returns the store. The first call opens it, and creates it if there is none; later ones cost
    /// about ten stat(2).
    ///
    /// Errors: [`Error::Covered`], [`Error::Unmounted`] and [`Error::Replaced`] as long as its
    /// directories can't be seen; [`Error::NoStore`].
    pub fn store(&self) -> Result<&Store> {
        if let Some(opened) = self.store.get() {
            opened.seen.again(self.run_dir())?;
            return Ok(&opened.store);
        }
        let options = self.store_options();
        home::verify(self.root(), self.run_dir())?;
        let is_new = !self.root().join("vellum.db").exists();
        let store = match Store::open(&options) {
            Err(error) if is_new && !self.creates && is_not_found(&error) => {
                return Err(Error::NoStore {
                    root: self.root().to_owned(),
                });
            }
            store => store?,
        };
        home::note(self.root(), self.run_dir(), &store.uuid()?)?;
        if is_new {
            let root = self.root().display();
            self.progress.say(&format!("created a new store in {root}"));
        }
        let seen = home::Seen::now(self.root());
        Ok(&self.store.get_or_init(|| Opened { store, seen }).store)
    }

    /// The options for opening the store. If Vellum's own engine can mount its layers, they may be
    /// on any file system; if no driver is configured, one that works everywhere may be used
    /// instead.
    pub(crate) fn store_options(&self) -> StoreOptions {
        let driver = &self.config.storage_driver;
        StoreOptions {
            create: self.creates,
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

    /// The directory for files that live until the next boot. It may not exist.
    pub fn run_dir(&self) -> &Path {
        &self.config.run_dir.value
    }

    /// Fails with [`Error::Cancelled`] once the user wants to stop.
    pub fn go_on(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }
}

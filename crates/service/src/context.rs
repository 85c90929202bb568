//! What every verb is handed: settings, the opened store, where to work until the next boot, whether to stop, and who listens.
//!
//! A context belongs to one command (or one daemon); it is shared by reference between its threads.

use std::path::Path;
use std::sync::Arc;

use vellum_sys::Cancel;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// The surroundings of a verb.
pub struct Context {
    /// The settings that hold.
    pub config: Config,
    /// Set when the user wants to stop; ask [`Context::go_on`] between two steps.
    pub cancel: Cancel,
    /// Who is told what happens.
    pub progress: Arc<dyn Progress>,
}

impl Context {
    /// Returns a context without touching the disk.
    pub fn new(config: Config, cancel: Cancel, progress: Arc<dyn Progress>) -> Self {
        Self {
            config,
            cancel,
            progress,
        }
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.config.root.value
    }

    /// The directory of what lives until the next boot.
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

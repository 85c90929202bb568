//! A wish to stop, passed down to everything that takes long.
//!
//! The command line sets it when the user presses Ctrl-C; loops over entries, blobs and layers ask
//! it between two steps and return their room's "cancelled" error. Nothing is undone by force:
//! whoever is asked to stop leaves what he staged for the sweep, exactly as after a crash. It knows
//! nothing of signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A shared flag that only ever goes from "go on" to "stop".
///
/// Clones share the flag. `Default` gives one that nobody has set.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Returns a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wraps a flag that somebody else sets, for example a signal handler.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Asks everyone who holds a clone to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns true once somebody has asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

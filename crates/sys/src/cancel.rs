//! A request to stop, passed down to everything that takes long.
//!
//! The command line sets it when the user presses Ctrl-C; loops over entries, blobs and layers
//! check it between two steps and return their crate's "cancelled" error. Nothing is undone by
//! force: cancelled work leaves what it staged for the sweep, exactly as after a crash. This module
//! knows nothing of signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A shared flag that only ever goes from "continue" to "stop".
///
/// Clones share the flag. `Default` gives a fresh one that is not set.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Returns a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wraps a flag that is set elsewhere, for example by a signal handler.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Asks all holders of a clone to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns true once cancellation was requested.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

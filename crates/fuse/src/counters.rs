//! How often each operation was requested: what a benchmark prints and SIGUSR1 shows.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::Opcode;

const SLOTS: usize = 64;

/// Live counts, shared by all workers.
#[derive(Debug)]
pub struct Counters {
    requests: [AtomicU64; SLOTS],
    errors: AtomicU64,
    notifications: AtomicU64,
}

/// A snapshot of the counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    requests: [u64; SLOTS],
    /// Replies that were errors other than "no such name".
    pub errors: u64,
    /// Notifications to the kernel that attributes changed.
    pub notifications: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            requests: [const { AtomicU64::new(0) }; SLOTS],
            errors: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
        }
    }
}

impl Counters {
    pub(crate) fn count(&self, opcode: u32) {
        let slot = (opcode as usize).min(SLOTS - 1);
        self.requests[slot].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_notification(&self) {
        self.notifications.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts now.
    pub fn now(&self) -> Counts {
        Counts {
            requests: std::array::from_fn(|slot| self.requests[slot].load(Ordering::Relaxed)),
            errors: self.errors.load(Ordering::Relaxed),
            notifications: self.notifications.load(Ordering::Relaxed),
        }
    }
}

impl Counts {
    /// Returns how often `opcode` was requested.
    pub fn of(&self, opcode: Opcode) -> u64 {
        self.requests[opcode as usize]
    }

    /// Returns the requests since `earlier`.
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            requests: std::array::from_fn(|slot| {
                self.requests[slot].wrapping_sub(earlier.requests[slot])
            }),
            errors: self.errors.wrapping_sub(earlier.errors),
            notifications: self.notifications.wrapping_sub(earlier.notifications),
        }
    }

    /// Returns the number of all requests.
    pub fn total(&self) -> u64 {
        self.requests.iter().sum()
    }
}

impl fmt::Display for Counts {
    /// One line with the requested operations by name: `Lookup=3 Read=1 notified=0 errors=0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &opcode in Opcode::ALL {
            match self.of(opcode) {
                0 => {}
                count => write!(f, "{}={count} ", opcode.name())?,
            }
        }
        write!(f, "notified={} errors={}", self.notifications, self.errors)
    }
}

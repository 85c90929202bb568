//! How a verb reports what it is doing, without knowing the listener.
//!
//! A verb opens a [`Meter`] for each long task and advances it; it sends single lines through
//! [`Progress::say`] and [`Progress::warn`]. The command line draws bars on a terminal and stays
//! quiet elsewhere; [`Silent`] drops everything and suits tests and libraries. Results don't come
//! this way: they are return values.

use std::sync::Arc;

/// What the numbers of a meter count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown with binary prefixes.
    Bytes,
    /// Things: layers, entries, containers.
    Items,
}

/// A listener to a verb's progress. Called from several threads at once.
pub trait Progress: Send + Sync {
    /// Opens a meter for a task called `what` ("layer 3/9 sha256:ab12...").
    ///
    /// `total` is `None` if the size isn't known beforehand. The meter ends when it is dropped.
    fn meter(&self, what: &str, unit: Unit, total: Option<u64>) -> Box<dyn Meter>;

    /// Tells the user what happens, in one line without a trailing newline.
    fn say(&self, line: &str);

    /// Tells the user something to act on or to know, in one line without a trailing newline.
    fn warn(&self, line: &str);
}

/// One running task.
pub trait Meter: Send + Sync {
    /// Adds `amount` to the work done.
    fn advance(&self, amount: u64);

    /// Sets the total once it becomes known.
    fn set_total(&self, total: u64);

    /// Ends the task with a word or two that stay on the screen ("already there", "done").
    fn finish(&self, outcome: &str);
}

/// Drops everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn meter(&self, _what: &str, _unit: Unit, _total: Option<u64>) -> Box<dyn Meter> {
        Box::new(Silent)
    }
    fn say(&self, _line: &str) {}
    fn warn(&self, _line: &str) {}
}

impl Meter for Silent {
    fn advance(&self, _amount: u64) {}
    fn set_total(&self, _total: u64) {}
    fn finish(&self, _outcome: &str) {}
}

/// Returns a shared listener that drops everything.
pub fn silent() -> Arc<dyn Progress> {
    Arc::new(Silent)
}

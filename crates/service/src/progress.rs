//! How a verb says what it is doing, without knowing who listens.
//!
//! A verb opens a [`Meter`] for each long task and advances it; it sends single lines through
//! [`Progress::say`] and [`Progress::warn`]. The command line draws bars on a terminal and stays
//! quiet elsewhere; [`Silent`] drops everything and suits tests and libraries. Results never go
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

/// Somebody who listens to a verb's progress. Called from several threads at once.
pub trait Progress: Send + Sync {
    /// Opens a meter for a task called `what` ("layer 3/9 sha256:ab12...").
    ///
    /// `total` is `None` where the size isn't known beforehand. The meter ends when it is dropped.
    fn meter(&self, what: &str, unit: Unit, total: Option<u64>) -> Box<dyn Meter>;

    /// Tells the user one line about what happens. Without trailing newline.
    fn say(&self, line: &str);

    /// Tells the user one line that he should act on or know of. Without trailing newline.
    fn warn(&self, line: &str);
}

/// One running task.
pub trait Meter: Send + Sync {
    /// Adds `amount` to what is done.
    fn advance(&self, amount: u64);

    /// Sets the total once it becomes known.
    fn set_total(&self, total: u64);

    /// Ends the task with a word or two that stay on the screen ("already there", "done").
    fn finish(&self, outcome: &str);
}

/// Listens to nothing.
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

//! This crate's only error: a mark whose bytes don't follow the format.
//!
//! It carries the mark's name and what is wrong, never the path: the caller knows where it read the
//! bytes and adds the path.

/// A mark's value that no engine writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {mark} mark: {reason}")]
pub struct MarkError {
    /// The mark's name in the table of [`crate`], e.g. `redirect`.
    pub mark: &'static str,
    /// What is wrong, as a phrase.
    pub reason: String,
}

impl MarkError {
    pub(crate) fn new(mark: &'static str, reason: impl Into<String>) -> MarkError {
        MarkError {
            mark,
            reason: reason.into(),
        }
    }
}

//! The one error of this room: a mark whose bytes are not what the format says.
//!
//! It carries the mark's name and what is wrong, never the path: the caller knows where it read the
//! bytes and adds it.

/// A mark's value that can't be what any engine writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {mark} mark: {reason}")]
pub struct MarkError {
    /// The mark as it is called in the table of [`crate`], e.g. `redirect`.
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

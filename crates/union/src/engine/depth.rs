//! How much a copy-up copies: an inode for its names, its attributes, its bytes.

use crate::engine::nodes::{Body, DataAt, State};

/// How much of a node must be in the upper layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// For directories: an inode, with the parents it needs.
    Names,
    /// An inode with all attributes; data may stay below. For a directory the same as `Names`.
    Meta,
    /// Everything: the bytes can be changed in place (or block by block, as `DataAt` then says).
    Data,
    /// As `Data`, for a file that is about to lose all its bytes: they are not copied, and its size
    /// is 0 afterwards.
    Truncated,
}

impl Depth {
    /// Returns whether that much is in the upper layer.
    pub(super) fn is_done(self, state: &State) -> bool {
        match (&state.body, self) {
            (Body::Dir(dir), _) => dir.upper.is_some(),
            (Body::File(file), Depth::Names | Depth::Meta) => file.upper.is_some(),
            (Body::File(file), Depth::Data | Depth::Truncated) => {
                file.upper.is_some() && !matches!(file.data, DataAt::Lower(_))
            }
        }
    }
}

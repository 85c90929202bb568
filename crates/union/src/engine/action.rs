//! One call that may change something, and the record of what it changed.
//!
//! A front that lets its users cache attributes (the kernel caches them without a time limit) must
//! learn of every attribute a call changed, also of nodes the call did not name: a copy-up changes
//! the directory it happens in and all directories that are copied up for it; a write clears
//! setuid. So everything that changes the union is a method of [`Action`], which notes every change
//! in the upper layer. Nothing that copies up can be reached without an action, so a new operation
//! can't forget to note what it changed.
//!
//! It must not know what a front tells its users on its own: it notes every change.

use std::cell::RefCell;
use std::ops::{BitOr, Deref};

use crate::engine::Engine;
use crate::engine::request::NodeId;

/// Attributes of a node, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attrs(u16);

impl Attrs {
    /// None.
    pub const NONE: Attrs = Attrs(0);
    /// Permission bits, setuid and setgid.
    pub const MODE: Attrs = Attrs(1 << 0);
    /// User and group.
    pub const OWNER: Attrs = Attrs(1 << 1);
    /// The number of hard links, if it changed by more than a name that the call itself created or
    /// removed.
    pub const NLINK: Attrs = Attrs(1 << 2);
    /// The size in bytes.
    pub const SIZE: Attrs = Attrs(1 << 3);
    /// The number of blocks.
    pub const BLOCKS: Attrs = Attrs(1 << 4);
    /// The time of the last access.
    pub const ATIME: Attrs = Attrs(1 << 5);
    /// The time of the last change of content.
    pub const MTIME: Attrs = Attrs(1 << 6);
    /// The time of the last change of anything.
    pub const CTIME: Attrs = Attrs(1 << 7);
    /// What changes on a file when the call creates, moves or removes a name of it: its ctime, and
    /// one link more or less.
    pub const NAME: Attrs = Attrs(1 << 8);
    /// All of them.
    pub const ALL: Attrs = Attrs((1 << 9) - 1);

    /// What changes when bytes are written.
    pub const CONTENT: Attrs = Attrs(Self::SIZE.0 | Self::BLOCKS.0 | Self::MTIME.0 | Self::CTIME.0);
    /// What changes on a directory when a name in it is created, moved or removed.
    pub const NAMES: Attrs = Attrs(Self::CONTENT.0 | Self::NLINK.0);
    /// What changes on a directory when an entry that it already had is copied up into it.
    const COPIED_INTO: Attrs = Attrs(Self::SIZE.0 | Self::BLOCKS.0 | Self::CTIME.0);

    /// Returns the set without those in `other`.
    #[must_use]
    pub const fn without(self, other: Attrs) -> Attrs {
        Attrs(self.0 & !other.0)
    }

    /// Returns whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether all of `other` are among them.
    pub const fn contains(self, other: Attrs) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Attrs {
    type Output = Attrs;

    fn bitor(self, other: Attrs) -> Attrs {
        Attrs(self.0 | other.0)
    }
}

/// The process on whose behalf something is changed. Asked only where the answer matters, which is
/// rare.
pub trait Asker {
    /// Returns whether setuid and setgid survive its changes to a file (CAP_FSETID).
    fn keeps_privileges(&self) -> bool;

    /// Returns whether it is in a group, given by the id that users of the union see.
    fn is_in_group(&self, gid: u32) -> bool;
}

/// An asker without restrictions.
struct Privileged;

impl Asker for Privileged {
    fn keeps_privileges(&self) -> bool {
        true
    }

    fn is_in_group(&self, _: u32) -> bool {
        true
    }
}

/// One call, or a few that belong together, that may change the union; see [`Engine::action`].
pub struct Action<'e> {
    engine: &'e Engine,
    pub(crate) asker: &'e dyn Asker,
    touched: RefCell<Vec<(NodeId, Attrs)>>,
}

impl Engine {
    /// Begins a call that changes the union. A front whose users cache attributes calls
    /// [`Action::touched`] afterwards, also after an error: copy-ups done by then are not undone.
    pub fn action<'e>(&'e self, asker: &'e dyn Asker) -> Action<'e> {
        Action {
            engine: self,
            asker,
            touched: RefCell::default(),
        }
    }

    /// Begins a call that no process asked for: one by a tool or a test.
    pub fn privileged(&self) -> Action<'_> {
        self.action(&Privileged)
    }
}

impl Deref for Action<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.engine
    }
}

impl Action<'_> {
    /// Returns each node with changed attributes once, with all attributes that may have changed.
    #[must_use]
    pub fn touched(self) -> Vec<(NodeId, Attrs)> {
        self.touched.into_inner()
    }

    /// Notes that attributes of a node changed, or may have changed.
    pub(crate) fn touch(&self, node: NodeId, attrs: Attrs) {
        let mut touched = self.touched.borrow_mut();
        match touched.iter_mut().find(|(other, _)| *other == node) {
            Some((_, before)) => *before = *before | attrs,
            None => touched.push((node, attrs)),
        }
    }

    /// Notes that an entry that a directory already showed was copied up into it.
    pub(crate) fn touch_copied_into(&self, dir: NodeId) {
        self.touch(dir, Attrs::COPIED_INTO);
    }
}

impl std::fmt::Debug for Action<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Action")
            .field("touched", &self.touched)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_attributes_are_sets() {
        let both = Attrs::MODE | Attrs::CTIME;
        assert!(both.contains(Attrs::CTIME) && !both.contains(Attrs::CONTENT));
        assert_eq!(both.without(Attrs::CONTENT), Attrs::MODE);
        assert!(both.without(Attrs::ALL).is_empty());
        assert!(Attrs::ALL.contains(Attrs::NAME | Attrs::OWNER | Attrs::NLINK | Attrs::CONTENT));
    }
}

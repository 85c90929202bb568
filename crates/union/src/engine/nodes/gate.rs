//! The rename gate and the other guards of the engine, as values: code that relies on a lock takes
//! its guard as an argument.
//!
//! Directories move only while one thread holds the gate exclusively. So the place of an inode in
//! the upper layer, which is a chain of names, stays the same while the gate is held, and only
//! [`Placed::at`] hands it out. A directory's names come after the gate in the lock order, so
//! locking them takes the gate as an argument. Changing one of them takes a [`Slot`], which proves
//! that the names are held and which directory they belong to. Inodes in lower layers never move
//! and need no gate.
//!
//! No thread waits for a node's gate while it holds the rename gate (`LiveNode::try_gate`), so a
//! thread that holds a node's gate may take the rename gate. A thread must not take the rename gate
//! twice: another may be waiting for it in between. Nor may it ask a layer for anything slow while
//! it holds the gate. [`assert_free`] checks both in debug builds, which includes the tests.

use std::cell::Cell;
use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vellum_sys::sync;

use crate::at::At;
use crate::engine::nodes::names::Names;
use crate::engine::nodes::{Body, LiveNode, NameInDir, State, UpperFile};

/// The gate of one engine.
#[derive(Debug, Default)]
pub(crate) struct RenameGate(RwLock<()>);

/// The gate, held.
#[derive(Debug)]
pub(crate) struct Gate<'a> {
    #[expect(dead_code, reason = "held, not used")]
    held: How<'a>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held, not used")]
enum How<'a> {
    Shared(RwLockReadGuard<'a, ()>),
    Alone(RwLockWriteGuard<'a, ()>),
}

thread_local! {
    /// Whether this thread holds a gate; in debug builds only.
    static HELD: Cell<bool> = const { Cell::new(false) };
}

/// Asserts that this thread does not hold the rename gate.
#[track_caller]
pub(crate) fn assert_free() {
    debug_assert!(!HELD.get(), "this thread holds the rename gate");
}

impl<'a> Gate<'a> {
    fn new(held: How<'a>) -> Gate<'a> {
        if cfg!(debug_assertions) {
            HELD.set(true);
        }
        Gate { held }
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            HELD.set(false);
        }
    }
}

impl RenameGate {
    /// Takes the gate shared, which keeps directories from moving: for everything that uses names,
    /// or the place of an inode in the upper layer.
    #[track_caller]
    pub fn shared(&self) -> Gate<'_> {
        assert_free();
        Gate::new(How::Shared(sync::read(&self.0)))
    }

    /// Takes the gate exclusively, which keeps other threads from using names: for moving
    /// directories.
    #[track_caller]
    pub fn alone(&self) -> Gate<'_> {
        assert_free();
        Gate::new(How::Alone(sync::write(&self.0)))
    }
}

/// The gate of a node, held: no other thread copies it up, changes where its data is, or moves or
/// removes its name.
#[derive(Debug)]
pub(crate) struct NodeGate<'a>(#[expect(dead_code, reason = "held, not used")] MutexGuard<'a, ()>);

impl<'a> NodeGate<'a> {
    pub(in crate::engine) fn new(held: MutexGuard<'a, ()>) -> NodeGate<'a> {
        NodeGate(held)
    }
}

/// A directory and its names, held.
#[derive(Debug)]
pub(crate) struct NamesHeld<'a> {
    dir: &'a Arc<LiveNode>,
    names: MutexGuard<'a, Names>,
}

impl<'a> NamesHeld<'a> {
    pub(in crate::engine) fn new(
        dir: &'a Arc<LiveNode>,
        names: MutexGuard<'a, Names>,
    ) -> NamesHeld<'a> {
        NamesHeld { dir, names }
    }

    /// Returns one name of the directory.
    pub fn slot<'s>(&'s mut self, name: &'s OsStr) -> Slot<'s> {
        Slot {
            parent: self.dir,
            names: &mut self.names,
            name,
        }
    }
}

impl Deref for NamesHeld<'_> {
    type Target = Names;

    fn deref(&self) -> &Names {
        &self.names
    }
}

impl DerefMut for NamesHeld<'_> {
    fn deref_mut(&mut self) -> &mut Names {
        &mut self.names
    }
}

/// One name of a directory whose names are held. Only [`NamesHeld::slot`] creates one.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    pub parent: &'a Arc<LiveNode>,
    pub names: &'a mut Names,
    pub name: &'a OsStr,
}

impl Slot<'_> {
    /// Returns the directory and name in the form that a node stores.
    pub fn place(&self) -> NameInDir {
        NameInDir {
            parent: Arc::clone(self.parent),
            name: self.name.to_owned(),
        }
    }
}

/// A node's state, locked, and the gate if its inode is in the upper layer and could be moved.
/// Lower inodes never move, so no request waits for a lower layer to answer.
#[derive(Debug)]
pub(crate) struct Unmoved<'a> {
    // In this order: the state is released first.
    state: RwLockReadGuard<'a, State>,
    gate: Option<Gate<'a>>,
}

impl<'a> Unmoved<'a> {
    pub fn new(gate: Gate<'a>, node: &'a LiveNode) -> Unmoved<'a> {
        let state = node.state();
        Unmoved {
            gate: state.in_upper().then_some(gate),
            state,
        }
    }

    /// Releases the gate, if only lower inodes are read from here on.
    pub fn let_go(&mut self) {
        self.gate = None;
    }

    pub fn placed(&self) -> Placed<'_> {
        Placed {
            state: &self.state,
            gate: self.gate.as_ref(),
        }
    }
}

impl Deref for Unmoved<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

/// A node's state while its inode can't move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed<'a> {
    state: &'a State,
    /// `None` for a node that is not in the upper layer.
    gate: Option<&'a Gate<'a>>,
}

impl State {
    /// Returns the state of a node that can't move.
    pub fn placed<'a>(&'a self, gate: &'a Gate<'_>) -> Placed<'a> {
        Placed {
            state: self,
            gate: Some(gate),
        }
    }

    /// Returns the state of a node that is only in lower layers.
    pub fn below(&self) -> Placed<'_> {
        debug_assert!(!self.in_upper(), "it could be moved");
        Placed {
            state: self,
            gate: None,
        }
    }
}

impl Deref for Placed<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state
    }
}

impl Placed<'_> {
    /// Returns the inode in the upper layer as a target of changes, if there is one.
    pub fn at(&self) -> vellum_sys::Result<Option<At>> {
        if self.gate.is_none() {
            return Ok(None);
        }
        Ok(match &self.state.body {
            Body::Dir(dir) => match &dir.upper {
                Some(upper) => Some(At::Dir(upper.dir()?)),
                None => None,
            },
            Body::File(file) => match &file.upper {
                Some(UpperFile::Named { dir, name }) => Some(At::Name(dir.dir()?, name.clone())),
                Some(UpperFile::Pinned(fd)) => Some(At::Fd(Arc::clone(fd))),
                None => None,
            },
        })
    }
}

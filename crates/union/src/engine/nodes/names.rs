//! The names in a directory that have live nodes, and those the layers are being asked about.
//!
//! Plain values: a `&mut` to them means that the directory's names are held (`nodes.rs`).
//! `lookup.rs` explains when an answer about a name counts. The type of the nodes is a parameter,
//! so that the model check can use its own.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Weak};

use crate::engine::nodes::LiveNode;

/// The names in a directory that have live nodes.
#[derive(Debug)]
pub(crate) struct Names<N = LiveNode> {
    live: HashMap<OsString, Weak<N>>,
    /// The last name looked up that no layer has, not even as a whiteout: a program often creates
    /// the name it has just looked up. True until the name is created.
    absent: Option<Box<OsStr>>,
    /// Every name, live or not, of a directory that this engine created and that is not too large:
    /// other names need no lookup on disk.
    all: Option<HashSet<Box<OsStr>>>,
    /// The questions that the layers are being asked now, see `lookup.rs`.
    sought: Vec<Question>,
    /// The number of the next question.
    next: u64,
}

/// A name for which the layers are being asked.
#[derive(Debug)]
struct Question {
    number: u64,
    name: Box<OsStr>,
    /// The name has changed, or may have, since: the layers' answer does not count.
    overtaken: bool,
}

/// Names of a directory with more names than this are looked up on disk.
const ALL_MAX: usize = 4096;

impl<N> Default for Names<N> {
    fn default() -> Names<N> {
        Names {
            live: HashMap::new(),
            absent: None,
            all: None,
            sought: Vec::new(),
            next: 0,
        }
    }
}

impl<N> Names<N> {
    /// Returns the live node with this name.
    pub fn get(&self, name: &OsStr) -> Option<Arc<N>> {
        self.live.get(name)?.upgrade()
    }

    /// Notes that no layer has this name.
    pub fn note_absent(&mut self, name: &OsStr) {
        if self.absent.as_deref() != Some(name) {
            self.absent = Some(name.into());
        }
    }

    /// Forgets the absent name: it may have been created without being noted.
    pub fn forget_absent(&mut self) {
        self.absent = None;
    }

    /// Returns whether it is known that no layer has this name.
    pub fn is_absent(&self, name: &OsStr) -> bool {
        let lacks = |all: &HashSet<Box<OsStr>>| !all.contains(name);
        self.absent.as_deref() == Some(name) || self.all.as_ref().is_some_and(lacks)
    }

    /// Notes that the layers are being asked about a name. Returns the number that ends the
    /// question.
    pub(in crate::engine) fn begin(&mut self, name: &OsStr) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sought.push(Question {
            number,
            name: name.into(),
            overtaken: false,
        });
        number
    }

    /// Ends what [`Names::begin`] began; true if the name has not changed since.
    pub(in crate::engine) fn end(&mut self, number: u64) -> bool {
        let at = self
            .sought
            .iter()
            .position(|sought| sought.number == number);
        at.is_some_and(|at| !self.sought.swap_remove(at).overtaken)
    }

    /// Notes that a name changes, or may have changed: questions about it are asked again.
    pub fn overtake(&mut self, name: &OsStr) {
        for sought in &mut self.sought {
            sought.overtaken |= *sought.name == *name;
        }
    }

    /// Lists a node. The caller updates the node's places.
    pub fn insert(&mut self, name: &OsStr, node: &Arc<N>) {
        self.overtake(name);
        if self.absent.as_deref() == Some(name) {
            self.absent = None;
        }
        self.live.insert(name.to_owned(), Arc::downgrade(node));
        if let Some(all) = &mut self.all {
            all.insert(name.into());
            if all.len() > ALL_MAX {
                self.all = None;
            }
        }
    }

    /// Notes that the directory is empty: from here on, all its names are known.
    pub(in crate::engine) fn begin_empty(&mut self) {
        self.all = Some(HashSet::new());
    }

    /// Removes a name that is gone from the list. The caller updates the node's places.
    pub fn remove(&mut self, name: &OsStr) {
        self.overtake(name);
        self.unlist(name);
        if let Some(all) = &mut self.all {
            all.remove(name);
        }
    }

    /// Removes an unused name from the list.
    pub(in crate::engine) fn unlist(&mut self, name: &OsStr) {
        self.live.remove(name);
        give_back(&mut self.live, MANY);
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

/// Shrinks a map that was eight times as large: after a million entries it does not keep their
/// memory. Returns whether it had space for more than `much`.
pub(in crate::engine) fn give_back<K: Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    much: usize,
) -> bool {
    let capacity = map.capacity();
    if capacity <= 64 || map.len() >= capacity / 8 {
        return false;
    }
    map.shrink_to(map.len() * 2);
    capacity > much
}

/// From this many freed nodes on, their memory is returned to the system.
pub(in crate::engine) const MANY: usize = 16 * 1024;

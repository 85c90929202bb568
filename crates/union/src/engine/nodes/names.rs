//! The names in a directory that have live nodes, and those the layers are being asked about.
//!
//! Plain values: a `&mut` to them means that the directory's names are held (`nodes.rs`). When an
//! answer about a name counts is said in `lookup.rs`. The type of the nodes is a parameter, so that
//! the model check can use its own.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Weak};

use crate::engine::nodes::LiveNode;

/// The names in a directory that have live nodes.
#[derive(Debug)]
pub(crate) struct Names<N = LiveNode> {
    live: HashMap<OsString, Weak<N>>,
    /// The last name that was looked up and of which no layer has anything, not even a whiteout:
    /// who looks a name up often makes it next. Until then it stays true.
    absent: Option<Box<OsStr>>,
    /// Every name there is, live or not, of a directory that was made by this engine and is not too
    /// large: what is not among them need not be looked for on disk.
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
    /// Something happened to the name since: what the layers answer does not count.
    overtaken: bool,
}

/// A directory with more names is looked up on disk.
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
    /// Returns the live node of this name.
    pub fn get(&self, name: &OsStr) -> Option<Arc<N>> {
        self.live.get(name)?.upgrade()
    }

    /// Notes that no layer has anything of this name.
    pub fn note_absent(&mut self, name: &OsStr) {
        if self.absent.as_deref() != Some(name) {
            self.absent = Some(name.into());
        }
    }

    /// Forgets what was absent: something may have been made and not be known.
    pub fn forget_absent(&mut self) {
        self.absent = None;
    }

    /// Returns whether it is known that no layer has anything of this name.
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

    /// Ends what [`Names::begin`] began; true if nothing happened to the name meanwhile.
    pub(in crate::engine) fn end(&mut self, number: u64) -> bool {
        let at = self
            .sought
            .iter()
            .position(|sought| sought.number == number);
        at.is_some_and(|at| !self.sought.swap_remove(at).overtaken)
    }

    /// Says that something happens to a name, or may have: questions about it are asked again.
    pub fn overtake(&mut self, name: &OsStr) {
        for sought in &mut self.sought {
            sought.overtaken |= *sought.name == *name;
        }
    }

    /// Lists a node. Its places are the caller's.
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

    /// Says that there is no name yet in the directory: from here on, all are known.
    pub(in crate::engine) fn begin_empty(&mut self) {
        self.all = Some(HashSet::new());
    }

    /// Takes a name that is gone out of the list. The node's places are the caller's.
    pub fn remove(&mut self, name: &OsStr) {
        self.overtake(name);
        self.unlist(name);
        if let Some(all) = &mut self.all {
            all.remove(name);
        }
    }

    /// Takes a name out of the list that nobody counts on.
    pub(in crate::engine) fn unlist(&mut self, name: &OsStr) {
        self.live.remove(name);
        give_back(&mut self.live, MANY);
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

/// Gives memory back that a map needed when it was eight times as large: what once held a million
/// does not go on doing so. Returns whether it was room for more than `much`.
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

/// So many nodes are worth telling the system that their memory is free.
pub(in crate::engine) const MANY: usize = 16 * 1024;

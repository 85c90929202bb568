//! The reference counts of nodes: by number, in shards, so that requests about different nodes
//! don't share a lock.
//!
//! A node is here while its count is not 0; in the step that makes it 0, the node is put aside for
//! a sweep. Its count changes only under the lock of its shard. So code that sees the count at 0,
//! while holding the only lock under which the node could be found, knows that it stays 0.
//!
//! It must not know what a node is. Locks: a shard's, then that of the nodes put aside; each is
//! held for a few instructions and comes after every other lock. This file is compiled a second
//! time for the model check (`model.rs`), with other locks and counters: they come from `sync`.

use std::collections::HashMap;

use super::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, lock};

/// The number of shards. Node numbers are consecutive, so neighbours are in different ones.
const SHARDS: usize = 32;

/// A reference-counted node.
pub(crate) trait Counted {
    /// Returns its number, which is unique and never changes.
    fn number(&self) -> u64;
    /// Returns its count, which only this file changes.
    fn count(&self) -> &AtomicU64;
}

/// The nodes in use.
#[derive(Debug)]
pub(crate) struct Counts<N> {
    shards: Vec<Shard<N>>,
    /// Nodes that are no longer in use.
    left: Mutex<Vec<Arc<N>>>,
    /// Whether there are any; may be read without the lock.
    any_left: AtomicBool,
    /// How many shards have shrunk since [`Counts::many_gone`] last returned true.
    shrunk: AtomicUsize,
}

/// Alone on its cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Shard<N>(Mutex<HashMap<u64, Arc<N>>>);

impl<N: Counted> Counts<N> {
    pub fn new() -> Counts<N> {
        Counts {
            shards: (0..SHARDS).map(|_| Shard(Mutex::default())).collect(),
            left: Mutex::default(),
            any_left: AtomicBool::new(false),
            shrunk: AtomicUsize::new(0),
        }
    }

    fn shard(&self, number: u64) -> MutexGuard<'_, HashMap<u64, Arc<N>>> {
        lock(&self.shards[number as usize % SHARDS].0)
    }

    /// Returns a node by its number, if it is in use.
    pub fn get(&self, number: u64) -> Option<Arc<N>> {
        self.shard(number).get(&number).cloned()
    }

    /// Returns all nodes in use, one shard after the other.
    pub fn all(&self) -> Vec<Arc<N>> {
        let nodes = |shard: &Shard<N>| lock(&shard.0).values().cloned().collect::<Vec<_>>();
        self.shards.iter().flat_map(nodes).collect()
    }

    /// Returns how many there are, counted one shard after the other.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(&shard.0).len()).sum()
    }

    /// Adds a reference to a node. The caller found it under a lock that it still holds, or already
    /// has a reference.
    pub fn hold(&self, node: &Arc<N>) {
        let number = node.number();
        let mut shard = self.shard(number);
        node.count().fetch_add(1, Ordering::Relaxed);
        shard.entry(number).or_insert_with(|| Arc::clone(node));
    }

    /// Drops `count` references. A node without references is put aside.
    pub fn release(&self, node: &Arc<N>, count: u64) {
        let mut shard = self.shard(node.number());
        let before = node.count().load(Ordering::Relaxed);
        // A front that forgets too often has a bug, but the count must not wrap around.
        let after = before.saturating_sub(count);
        node.count().store(after, Ordering::Relaxed);
        if after > 0 {
            return;
        }
        if let Some(node) = shard.remove(&node.number()) {
            lock(&self.left).push(node);
            self.any_left.store(true, Ordering::SeqCst);
            if super::give_back(&mut shard, super::MANY / SHARDS) {
                self.shrunk.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Returns whether a node is not in use.
    pub fn is_unused(node: &N) -> bool {
        node.count().load(Ordering::Relaxed) == 0
    }

    /// Returns whether nodes were put aside.
    pub fn has_left(&self) -> bool {
        self.any_left.load(Ordering::SeqCst)
    }

    /// Takes the nodes put aside. Some may be in use again by now.
    pub fn take_left(&self) -> Vec<Arc<N>> {
        let mut left = lock(&self.left);
        self.any_left.store(false, Ordering::SeqCst);
        std::mem::take(&mut *left)
    }

    /// Returns whether far fewer nodes are left than before: true once each time.
    pub fn many_gone(&self) -> bool {
        if self.shrunk.load(Ordering::Relaxed) < SHARDS {
            return false;
        }
        self.shrunk.swap(0, Ordering::Relaxed) >= SHARDS
    }
}

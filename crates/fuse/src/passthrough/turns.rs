//! Turns: threads that want the same key get it one at a time; threads that want different keys
//! don't wait for each other.
//!
//! How a file is opened depends on where its bytes are. Finding that out takes system calls, as
//! does registering a backing file. Meanwhile the deciding thread has the file's turn, and holds no
//! lock: only other opens of the same file wait.
//!
//! Lock: its own, never held across a system call. A thread that has a turn takes no other.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex};

use vellum_sys::sync;

/// The turns that are taken.
#[derive(Debug)]
pub(super) struct Turns<K> {
    taken: Mutex<HashSet<K>>,
    over: Condvar,
}

/// A turn; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a, K: Eq + Hash + Copy> {
    turns: &'a Turns<K>,
    key: K,
}

impl<K> Default for Turns<K> {
    fn default() -> Turns<K> {
        Turns {
            taken: Mutex::default(),
            over: Condvar::new(),
        }
    }
}

impl<K: Eq + Hash + Copy> Turns<K> {
    /// Waits for the turn at `key`.
    pub fn take(&self, key: K) -> Turn<'_, K> {
        let mut taken = sync::lock(&self.taken);
        while !taken.insert(key) {
            taken = sync::wait(&self.over, taken);
        }
        Turn { turns: self, key }
    }
}

impl<K: Eq + Hash + Copy> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        sync::lock(&self.turns.taken).remove(&self.key);
        // Threads that wait for other keys wake once in vain; they are few.
        self.turns.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_key_is_exclusive_and_others_run_in_parallel() {
        let turns = Turns::default();
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let other = turns.take(2);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _turn = turns.take(1);
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        drop(other);
        assert_eq!(most.into_inner(), 1);
        assert!(sync::lock(&turns.taken).is_empty());
    }
}

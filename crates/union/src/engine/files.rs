//! A bounded cache of open data descriptors: a new one replaces the oldest unused one.
//!
//! There is no open and close of a node: a read or write finds the descriptor here, or opens the
//! file and leaves the descriptor here. An entry says which layer it belongs to, so a lower file's
//! descriptor is never used once the node's bytes are in the upper layer. Entries are added while
//! the node's state is held, and removed by the code that changes it.
//!
//! Lock: the cache's own, innermost of all; never held during a system call (except a close).

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

use vellum_sys::sync;

use crate::engine::blocks::OpenBlocks;
use crate::engine::nodes::State;
use crate::engine::request::NodeId;

/// How many entries are kept. An entry of a file copied up block by block holds two descriptors.
/// With the directories of `dir_layer.rs` and the roots of 500 layers this stays below the usual
/// limit of 1024.
const ENTRIES_MAX: usize = 96;

/// A node's open descriptor.
#[derive(Debug, Clone)]
pub(crate) enum Opened {
    /// The lower file, for reading.
    Lower(Arc<File>),
    /// The upper inode, for reading only.
    UpperToRead(Arc<File>),
    /// The upper inode, for reading and writing.
    Upper(Arc<File>),
    /// Both, of a file copied up block by block.
    Blocks(Arc<OpenBlocks>),
}

/// The descriptors.
#[derive(Debug, Default)]
pub(crate) struct FileCache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<NodeId, Entry>,
    /// In the order of their opening, or of their second chance. May hold nodes without an entry.
    order: VecDeque<NodeId>,
}

#[derive(Debug)]
struct Entry {
    opened: Opened,
    /// Used since it was last at the front of the queue.
    used: bool,
}

impl FileCache {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A lost entry only costs another open, so the cache is usable even if a thread panicked
        // with the lock.
        sync::lock(&self.inner)
    }

    /// Returns a node's open descriptor, if there is one.
    pub fn get(&self, node: NodeId) -> Option<Opened> {
        let mut inner = self.lock();
        let entry = inner.entries.get_mut(&node)?;
        entry.used = true;
        Some(entry.opened.clone())
    }

    /// Keeps a node's descriptor in place of the one kept before. `_state` is the node's.
    pub fn put(&self, node: NodeId, opened: Opened, _state: &State) {
        let mut closed = Vec::new();
        let mut inner = self.lock();
        let inner = &mut *inner;
        let entry = Entry {
            opened,
            used: false,
        };
        match inner.entries.insert(node, entry) {
            Some(before) => closed.push(before),
            None => inner.order.push_back(node),
        }
        while inner.order.len() > ENTRIES_MAX {
            let Some(oldest) = inner.order.pop_front() else {
                break;
            };
            match inner.entries.get_mut(&oldest) {
                Some(entry) if entry.used && oldest != node => {
                    entry.used = false;
                    inner.order.push_back(oldest);
                }
                Some(_) => closed.extend(inner.entries.remove(&oldest)),
                None => {}
            }
        }
    }

    /// Drops a node's descriptor: its bytes are elsewhere now, or the node is forgotten.
    pub fn forget(&self, node: NodeId) {
        let gone = {
            let mut inner = self.lock();
            let gone = inner.entries.remove(&node);
            // The queue stays bounded: it is cut when it is too long, and holds no entry twice.
            if gone.is_some() {
                inner.order.retain(|&kept| kept != node);
            }
            gone
        };
        // Closed without the lock.
        drop(gone);
    }

    /// Drops every descriptor open for writing, and returns whether there was one.
    pub fn forget_written(&self) -> bool {
        let gone: Vec<Entry> = {
            let mut inner = self.lock();
            let inner = &mut *inner;
            let writable = |entry: &Entry| match entry.opened {
                Opened::Upper(_) | Opened::Blocks(_) => true,
                Opened::Lower(_) | Opened::UpperToRead(_) => false,
            };
            let gone = inner.entries.extract_if(|_, entry| writable(entry));
            let gone = gone.map(|(_, entry)| entry).collect();
            inner.order.retain(|node| inner.entries.contains_key(node));
            gone
        };
        // Closed without the lock, as above.
        !gone.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nodes::{Body, DataAt, FileBody};

    /// The state of a file whose bytes are in the upper layer.
    fn upper_file() -> State {
        State {
            place: None,
            links: None,
            body: Body::File(FileBody {
                upper: None,
                lower: None,
                data: DataAt::Upper,
            }),
        }
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_used_entries() {
        let cache = FileCache::default();
        let state = upper_file();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let favourite = NodeId(1);
        cache.put(favourite, Opened::Upper(Arc::clone(&file)), &state);
        for node in 2..1000 {
            cache.put(NodeId(node), Opened::Lower(Arc::clone(&file)), &state);
            assert!(cache.get(favourite).is_some(), "{node}");
        }
        assert_eq!(cache.lock().entries.len(), ENTRIES_MAX);
        assert_eq!(Arc::strong_count(&file), ENTRIES_MAX + 1);
        cache.forget(favourite);
        assert!(cache.get(favourite).is_none());
        assert!(matches!(cache.get(NodeId(999)), Some(Opened::Lower(_))));
    }

    #[test]
    fn files_open_for_writing_can_be_closed_at_once() {
        let cache = FileCache::default();
        let state = upper_file();
        let file = Arc::new(tempfile::tempfile().unwrap());
        cache.put(NodeId(1), Opened::Upper(Arc::clone(&file)), &state);
        cache.put(NodeId(2), Opened::Lower(Arc::clone(&file)), &state);
        assert!(cache.forget_written());
        assert_eq!(Arc::strong_count(&file), 2, "the other is only read");
        assert!(cache.get(NodeId(1)).is_none() && cache.get(NodeId(2)).is_some());
        assert_eq!(cache.lock().order, [NodeId(2)]);
        assert!(!cache.forget_written());
    }
}

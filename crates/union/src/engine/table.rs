//! The table of live nodes: by number, and by inode where a file has several names.
//!
//! A node is in it while somebody counts on it; its parent lists it as long as that is so, or as long as something in it is
//! listed. What nobody counts on any more is put aside, and taken out of its parents' lists by a sweep that holds no other
//! lock. Lock: the table's own comes after a node's state; nothing is asked of the disk under it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vellum_sys::FileKind;

use crate::engine::nodes::{Body, DirBody, LiveNode, Names, Place, give_back};
use crate::engine::request::NodeId;
use crate::{Refusal, Result};

/// All live nodes.
#[derive(Debug)]
pub(crate) struct NodeTable {
    inner: Mutex<Table>,
    next: AtomicU64,
    /// What tells the numbers given here from those of another opening.
    generation: AtomicU32,
    /// Numbers that a predecessor gave, for the node that is made next; nobody else makes one meanwhile.
    expected: Mutex<Option<(NodeId, u64)>>,
    expecting: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<NodeId, Arc<LiveNode>>,
    /// Files that have, or had, several names, by device and inode in the upper and in the lower layer.
    by_inode: HashMap<(u64, u64), Weak<LiveNode>>,
    /// Nobody counts on these any more: their names are to be taken out of their parents' lists.
    left: Vec<Arc<LiveNode>>,
    /// Far fewer are left than there were.
    many_gone: bool,
}

/// A node that can't be forgotten as long as this value lives.
///
/// It counts as one lookup. To hand that to the front, make an entry of it; dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    table: &'a NodeTable,
    node: Arc<LiveNode>,
}

impl Deref for Held<'_> {
    type Target = Arc<LiveNode>;

    fn deref(&self) -> &Arc<LiveNode> {
        &self.node
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.table.release(&self.node, 1);
    }
}

impl Held<'_> {
    /// Leaves the count to the front, which will forget the node.
    pub fn keep(self) -> Arc<LiveNode> {
        let node = Arc::clone(&self.node);
        let table = self.table.lock();
        node.lookups.fetch_add(1, Ordering::Relaxed);
        // Before the lock is taken again by giving back the count that this value stands for.
        drop(table);
        node
    }
}

impl NodeTable {
    /// Makes a table of a root alone, which is never forgotten.
    pub fn new(ino: u64, body: DirBody) -> (NodeTable, Arc<LiveNode>) {
        let table = NodeTable {
            inner: Mutex::default(),
            next: AtomicU64::new(NodeId::ROOT.0),
            generation: AtomicU32::new(random_generation()),
            expected: Mutex::default(),
            expecting: AtomicBool::new(false),
        };
        let body = Body::Dir(body);
        let root = table.node(ino, FileKind::Dir, None, body);
        root.lookups.store(1, Ordering::Relaxed);
        table.lock().by_id.insert(root.id, Arc::clone(&root));
        (table, root)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change to it is one insertion or removal, so it is good even if another thread panicked with it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, ino: u64, kind: FileKind, place: Option<Place>, body: Body) -> Arc<LiveNode> {
        if self.expecting.load(Ordering::Relaxed) {
            let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((id, ino)) = expected.take() {
                return LiveNode::new(id, ino, kind, place, body);
            }
        }
        let id = NodeId(self.next.fetch_add(1, Ordering::Relaxed));
        LiveNode::new(id, ino, kind, place, body)
    }

    /// Gives the node that is made next these numbers.
    pub fn expect(&self, id: NodeId, ino: u64) {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        *expected = Some((id, ino));
        self.expecting.store(true, Ordering::Relaxed);
    }

    /// Takes [`NodeTable::expect`] back, if no node was made.
    pub fn expect_nothing(&self) {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        *expected = None;
        self.expecting.store(false, Ordering::Relaxed);
    }

    /// Returns the number of the node that would be made next.
    pub fn next_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Goes on numbering from here.
    pub fn go_on_with(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// Returns the generation of every number given here: file handles that programs keep (`name_to_handle_at`, the origins of a kernel
    /// overlay on top) hold number and generation, and must not lead to another file after the next opening.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed).into()
    }

    /// Goes on with a predecessor's generation.
    pub fn go_on_in(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Returns all nodes that are counted on.
    pub fn all(&self) -> Vec<Arc<LiveNode>> {
        self.lock().by_id.values().cloned().collect()
    }

    /// Returns a node by its number. Errors: [`Refusal::Stale`].
    pub fn get(&self, id: NodeId) -> Result<Arc<LiveNode>> {
        let node = self.lock().by_id.get(&id).cloned();
        node.ok_or_else(|| Refusal::Stale.into())
    }

    /// Returns how many nodes are counted on, for tests and figures.
    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Holds a node that was found under its name or by its inode. The caller holds the lock under which he found it.
    pub fn hold(&self, node: &Arc<LiveNode>) -> Held<'_> {
        let mut table = self.lock();
        node.lookups.fetch_add(1, Ordering::Relaxed);
        table
            .by_id
            .entry(node.id)
            .or_insert_with(|| Arc::clone(node));
        Held {
            table: self,
            node: Arc::clone(node),
        }
    }

    /// Adds a node for something that has none, under its name. Whoever made the thing calls
    /// [`LiveNode::changed`] on the directory.
    pub fn add(
        &self,
        (parent, names, name): (&Arc<LiveNode>, &mut Names, &OsStr),
        ino: u64,
        kind: FileKind,
        body: Body,
    ) -> Held<'_> {
        let place = Place {
            parent: Arc::clone(parent),
            name: name.to_owned(),
        };
        let node = self.node(ino, kind, Some(place), body);
        names.insert(name, &node);
        self.hold(&node)
    }

    /// Adds a node for a file without a name.
    pub fn add_nameless(&self, ino: u64, kind: FileKind, body: Body) -> Held<'_> {
        let node = self.node(ino, kind, None, body);
        self.hold(&node)
    }

    /// Notes that a live node also has this name.
    pub fn add_name(
        &self,
        node: &Arc<LiveNode>,
        (parent, names, name): (&Arc<LiveNode>, &mut Names, &OsStr),
    ) {
        parent.changed();
        names.insert(name, node);
        let place = Place {
            parent: Arc::clone(parent),
            name: name.to_owned(),
        };
        node.state_mut().add_place(place);
    }

    /// Notes that a name is gone. What it was the last name of lives on until it is forgotten.
    pub fn drop_name(&self, (parent, names, name): (&Arc<LiveNode>, &mut Names, &OsStr)) {
        parent.changed();
        let node = names.get(name);
        names.remove(name);
        if let Some(node) = node {
            node.state_mut().remove_place(parent, name);
        }
    }

    /// Makes the node findable by an inode that may have other names.
    pub fn link_inode(&self, node: &Arc<LiveNode>, inode: (u64, u64)) {
        {
            let mut state = node.state_mut();
            let inodes = &mut state.links.get_or_insert_default().inodes;
            if inodes.contains(&inode) {
                return;
            }
            inodes.push(inode);
        }
        let mut table = self.lock();
        table.by_inode.insert(inode, Arc::downgrade(node));
    }

    /// Holds the node that has this inode, if there is one.
    pub fn hold_inode(&self, inode: (u64, u64)) -> Option<Held<'_>> {
        let mut table = self.lock();
        let node = table.by_inode.get(&inode)?.upgrade()?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        table
            .by_id
            .entry(node.id)
            .or_insert_with(|| Arc::clone(&node));
        Some(Held { table: self, node })
    }

    /// Takes back `count` lookups by the front. [`NodeTable::sweep`] does the rest.
    pub fn forget(&self, id: NodeId, count: u64) {
        if id == NodeId::ROOT {
            return;
        }
        let node = self.lock().by_id.get(&id).cloned();
        if let Some(node) = node {
            self.release(&node, count);
        }
    }

    fn release(&self, node: &Arc<LiveNode>, count: u64) {
        let mut table = self.lock();
        let before = node.lookups.load(Ordering::Relaxed);
        // A front that forgets more often than it was told is wrong, but no reason to wrap around.
        let after = before.saturating_sub(count);
        node.lookups.store(after, Ordering::Relaxed);
        if after == 0
            && let Some(node) = table.by_id.remove(&node.id)
        {
            table.left.push(node);
            table.many_gone |= give_back(&mut table.by_id);
        }
    }

    /// Takes names out of the lists that nobody counts on any more, and shows `nameless` each node that ends without one. The caller holds the
    /// rename gate, shared, or is alone with the table, and no other lock.
    pub fn sweep(&self, nameless: impl Fn(&LiveNode)) {
        let mut many_gone = false;
        loop {
            let left = {
                let mut table = self.lock();
                many_gone |= std::mem::take(&mut table.many_gone);
                match table.left.is_empty() {
                    true => break,
                    false => std::mem::take(&mut table.left),
                }
            };
            for node in left {
                self.unlist(node, &nameless);
            }
        }
        if many_gone {
            vellum_sys::memory::give_back();
        }
    }

    /// Takes a node out of its parents' lists unless it came back, or something in it is listed; then the parents, if it was
    /// the last in them.
    fn unlist(&self, node: Arc<LiveNode>, nameless: &impl Fn(&LiveNode)) {
        let mut pending = vec![node];
        while let Some(node) = pending.pop() {
            let unused = || node.lookups.load(Ordering::Relaxed) == 0;
            let (places, inodes) = {
                let state = node.state();
                let places: Vec<_> = state.places().cloned().collect();
                let inodes = state
                    .links
                    .as_ref()
                    .map_or(Vec::new(), |l| l.inodes.clone());
                (places, inodes)
            };
            if node.id == NodeId::ROOT {
                continue;
            }
            if places.is_empty() && unused() {
                nameless(&node);
            }
            for Place { parent, name } in places {
                let mut names = parent.names();
                let listed = names.get(&name).is_some_and(|at| Arc::ptr_eq(&at, &node));
                if listed && !node.lists_something() && unused() {
                    names.unlist(&name);
                    // The place stays with the node: it may be that it is still found by its inode.
                    let mut state = node.state_mut();
                    if state.links.is_some() {
                        state.remove_place(&parent, &name);
                    }
                }
                let last = names.is_empty();
                drop(names);
                if last && parent.lookups.load(Ordering::Relaxed) == 0 {
                    pending.push(parent);
                }
            }
            if !inodes.is_empty() {
                let mut table = self.lock();
                if unused() {
                    for inode in inodes {
                        let found = table.by_inode.get(&inode);
                        if found.is_some_and(|found| found.as_ptr() == Arc::as_ptr(&node)) {
                            table.by_inode.remove(&inode);
                        }
                    }
                    give_back(&mut table.by_inode);
                }
            }
        }
    }
}

/// The kernel keeps 32 bits of a generation; 0 is what others give.
fn random_generation() -> u32 {
    let bytes = vellum_sys::random::bytes(4);
    let number = bytes
        .first_chunk()
        .map_or(1, |bytes| u32::from_ne_bytes(*bytes));
    number.max(1)
}

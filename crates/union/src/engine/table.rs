//! The table of live nodes: by number, and by inode where a file has several names.
//!
//! A node is in it while somebody counts on it; its parent lists it as long as that is so, or as long as something in it is
//! listed. What nobody counts on any more is put aside, and taken out of its parents' lists by a sweep that holds no other
//! lock. Lock: the table's own comes after a node's state; nothing is asked of the disk under it.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vellum_sys::FileKind;

use crate::engine::gate::{Gate, Slot};
use crate::engine::nodes::{Body, DirBody, Links, LiveNode, Place, give_back};
use crate::engine::request::NodeId;
use crate::{Refusal, Result};

/// All live nodes.
#[derive(Debug)]
pub(crate) struct NodeTable {
    inner: Mutex<Table>,
    next: AtomicU64,
    /// What tells the numbers given here from those of another opening.
    generation: AtomicU32,
}

/// The numbers of a node that is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub id: NodeId,
    /// The inode number shown.
    pub ino: u64,
}

/// How a file with several names is found, and what was known of it then.
#[derive(Debug)]
pub(crate) struct FoundBy {
    /// Its inodes in the upper layer, the lower ones, or both.
    pub inodes: Vec<(u64, u64)>,
    /// How many names the lower inode has.
    pub lower_nlink: Option<u32>,
    /// See `flags.rs`.
    pub protection: u8,
}

/// What became of a file with several names that was to be added.
#[derive(Debug)]
pub(crate) enum Linked<'a> {
    /// It has a new node.
    Added(Held<'a>),
    /// It had one, which has this name too now.
    Known(Held<'a>),
    /// It has none, and what was known of it no longer counts.
    Changed,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<NodeId, Arc<LiveNode>>,
    /// Files that have, or had, several names, by device and inode in the upper and in the lower
    /// layer.
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
        };
        let body = Body::Dir(body);
        let root = LiveNode::new(table.number(ino), FileKind::Dir, None, None, body);
        root.lookups.store(1, Ordering::Relaxed);
        table.lock().by_id.insert(root.id, Arc::clone(&root));
        (table, root)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change to it is one insertion or removal, so it is good even if another thread panicked with it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns numbers for a new node that shows this inode number.
    pub fn number(&self, ino: u64) -> Numbered {
        let id = NodeId(self.next.fetch_add(1, Ordering::Relaxed));
        Numbered { id, ino }
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

    /// Holds a node that was found under its name. The caller still holds the names it was found
    /// among.
    pub fn hold(&self, node: &Arc<LiveNode>) -> Held<'_> {
        self.lock().hold(node);
        Held {
            table: self,
            node: Arc::clone(node),
        }
    }

    /// Adds a node for something that has none, under its name. Whoever made the thing calls
    /// [`LiveNode::changed`] on the directory.
    pub fn add(&self, at: Slot<'_>, numbers: Numbered, kind: FileKind, body: Body) -> Held<'_> {
        let node = LiveNode::new(numbers, kind, Some(at.place()), None, body);
        at.names.insert(at.name, &node);
        self.hold(&node)
    }

    /// Adds a node for a file without a name.
    pub fn add_nameless(&self, numbers: Numbered, kind: FileKind, body: Body) -> Held<'_> {
        let node = LiveNode::new(numbers, kind, None, None, body);
        self.hold(&node)
    }

    /// As [`NodeTable::add`], of a file that has, or had, several names and is found by several
    /// inodes. If it has a node already, that one gets the name.
    ///
    /// When several threads add one file under different names, one of them makes the node.
    /// `unchanged` says whether what is known of the file still counts; it is called while no other
    /// thread can give the file a node.
    pub fn add_linked(
        &self,
        at: Slot<'_>,
        numbers: Numbered,
        kind: FileKind,
        body: Body,
        FoundBy {
            inodes,
            lower_nlink,
            protection,
        }: FoundBy,
        unchanged: impl FnOnce() -> bool,
    ) -> Linked<'_> {
        let links = Links {
            places: Vec::new(),
            inodes: inodes.clone(),
            lower_nlink,
        };
        let node = LiveNode::new(numbers, kind, Some(at.place()), Some(Box::new(links)), body);
        node.protection.store(protection, Ordering::Relaxed);
        let known = {
            let mut table = self.lock();
            let known = inodes.iter().find_map(|inode| table.hold_inode(inode));
            if known.is_none() {
                if !unchanged() {
                    return Linked::Changed;
                }
                for inode in &inodes {
                    table.by_inode.insert(*inode, Arc::downgrade(&node));
                }
                table.hold(&node);
            }
            known
        };
        let Some(known) = known else {
            at.names.insert(at.name, &node);
            return Linked::Added(Held { table: self, node });
        };
        let known = Held {
            table: self,
            node: known,
        };
        self.add_name(&known, at);
        for inode in inodes {
            self.link_inode(&known, inode);
        }
        Linked::Known(known)
    }

    /// Notes that a live node also has this name.
    pub fn add_name(&self, node: &Arc<LiveNode>, at: Slot<'_>) {
        at.parent.changed();
        at.names.insert(at.name, node);
        node.state_mut().add_place(at.place());
    }

    /// Notes that a name is gone. What it was the last name of lives on until it is forgotten.
    pub fn drop_name(&self, at: Slot<'_>) {
        at.parent.changed();
        let node = at.names.get(at.name);
        at.names.remove(at.name);
        if let Some(node) = node {
            node.state_mut().remove_place(at.parent, at.name);
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
        let node = self.lock().hold_inode(&inode)?;
        Some(Held { table: self, node })
    }

    /// Returns whether there is a node that has this inode.
    pub fn has_inode(&self, inode: (u64, u64)) -> bool {
        let table = self.lock();
        let found = table.by_inode.get(&inode);
        found.is_some_and(|node| node.strong_count() > 0)
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

    /// Takes names out of the lists that nobody counts on any more, and shows `nameless` each node
    /// that ends without one. The caller holds no lock but the gate.
    pub fn sweep(&self, gate: &Gate<'_>, nameless: impl Fn(&LiveNode)) {
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
                self.unlist(node, gate, &nameless);
            }
        }
        if many_gone {
            vellum_sys::memory::give_back();
        }
    }

    /// Takes a node out of its parents' lists unless it came back, or something in it is listed; then the parents, if it was
    /// the last in them.
    fn unlist(&self, node: Arc<LiveNode>, gate: &Gate<'_>, nameless: &impl Fn(&LiveNode)) {
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
                let mut names = parent.names(gate);
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

impl Table {
    fn hold(&mut self, node: &Arc<LiveNode>) {
        node.lookups.fetch_add(1, Ordering::Relaxed);
        let entry = self.by_id.entry(node.id);
        entry.or_insert_with(|| Arc::clone(node));
    }

    fn hold_inode(&mut self, inode: &(u64, u64)) -> Option<Arc<LiveNode>> {
        let node = self.by_inode.get(inode)?.upgrade()?;
        self.hold(&node);
        Some(node)
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

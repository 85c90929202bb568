//! The table of live nodes: by number, and by inode where a file has several names.
//!
//! A node is in the table while its reference count is not zero; its parent lists it that long, or
//! as long as the node itself lists a child. A node without references is put aside, and a sweep
//! that holds no other lock removes it from its parents' lists. The counts are in `counted.rs`, in
//! shards; only files with several names share one list, of the inodes they are found by. Locks:
//! that list's comes after a node's state, a shard's after it; no system call is made under either.

mod counted;
#[cfg(test)]
mod model;

/// The locks and counters that `counted.rs` uses here.
mod sync {
    pub(in crate::engine) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(in crate::engine) use std::sync::{Arc, Mutex, MutexGuard};

    pub(in crate::engine) use vellum_sys::sync::lock;
}

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use vellum_sys::FileKind;

use crate::engine::nodes::gate::{Gate, Slot};
use crate::engine::nodes::names::{MANY, give_back};
use crate::engine::nodes::{Body, DirBody, Links, LiveNode, NameInDir};
use crate::engine::request::NodeId;
use crate::{Refusal, Result};

use counted::{Counted, Counts};

/// All live nodes.
#[derive(Debug)]
pub(crate) struct NodeTable {
    counts: Counts<LiveNode>,
    /// Files that have, or had, several names, by device and inode in the upper and in the lower
    /// layer.
    by_inode: Mutex<HashMap<(u64, u64), Weak<LiveNode>>>,
    next: AtomicU64,
    /// Distinguishes the numbers assigned here from those of another opening.
    generation: AtomicU32,
}

/// The numbers of a node about to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub id: NodeId,
    /// The inode number shown.
    pub ino: u64,
}

/// How a file with several names is found, and what was known of it at that time.
#[derive(Debug)]
pub(crate) struct FoundBy {
    /// Its inodes in the upper layer, the lower ones, or both.
    pub inodes: Vec<(u64, u64)>,
    /// The lower inode's link count.
    pub lower_nlink: Option<u32>,
    /// See `flags.rs`.
    pub protection: u8,
}

/// The result of adding a file with several names.
#[derive(Debug)]
pub(crate) enum Linked<'a> {
    /// It has a new node.
    Added(HeldNode<'a>),
    /// It already had one, which now has this name too.
    Known(HeldNode<'a>),
    /// It has no node, and what was known of it no longer counts.
    Changed,
}

impl Counted for LiveNode {
    fn number(&self) -> u64 {
        self.id.0
    }

    fn count(&self) -> &AtomicU64 {
        &self.lookups
    }
}

/// A reference to a node, which can't be forgotten as long as this value lives.
///
/// It counts as one lookup. Turn it into an entry to hand that to the front; dropping it gives the
/// lookup back.
#[derive(Debug)]
pub(crate) struct HeldNode<'a> {
    table: &'a NodeTable,
    /// `None` once the front has taken over its count.
    node: Option<Arc<LiveNode>>,
}

impl Deref for HeldNode<'_> {
    type Target = Arc<LiveNode>;

    fn deref(&self) -> &Arc<LiveNode> {
        match &self.node {
            Some(node) => node,
            None => unreachable!("only `keep` takes it, and the value with it"),
        }
    }
}

impl Drop for HeldNode<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            self.table.counts.release(&node, 1);
        }
    }
}

impl HeldNode<'_> {
    /// Hands the count to the front, which will forget the node. Returns the node's number.
    pub fn keep(mut self) -> NodeId {
        let id = self.id;
        self.node = None;
        id
    }
}

impl NodeTable {
    /// Creates a table with only a root, which is never forgotten.
    pub fn new(ino: u64, body: DirBody) -> (NodeTable, Arc<LiveNode>) {
        let table = NodeTable {
            counts: Counts::new(),
            by_inode: Mutex::default(),
            next: AtomicU64::new(NodeId::ROOT.0),
            generation: AtomicU32::new(random_generation()),
        };
        let body = Body::Dir(body);
        let root = LiveNode::new(table.number(ino), FileKind::Dir, None, None, body);
        table.counts.hold(&root);
        (table, root)
    }

    fn by_inode(&self) -> MutexGuard<'_, HashMap<(u64, u64), Weak<LiveNode>>> {
        sync::lock(&self.by_inode)
    }

    fn held(&self, node: Arc<LiveNode>) -> HeldNode<'_> {
        HeldNode {
            table: self,
            node: Some(node),
        }
    }

    /// Returns numbers for a new node that shows this inode number.
    pub fn number(&self, ino: u64) -> Numbered {
        let id = NodeId(self.next.fetch_add(1, Ordering::Relaxed));
        Numbered { id, ino }
    }

    /// Returns the number that the next node will have.
    pub fn next_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Continues numbering from here.
    pub fn continue_numbering(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// Returns the generation of every number assigned here. File handles that programs keep
    /// (`name_to_handle_at`, the origins of a kernel overlay on top) hold number and generation,
    /// and must not lead to another file after the next opening.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed).into()
    }

    /// Continues with a predecessor's generation.
    pub fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Returns all nodes in use.
    pub fn all(&self) -> Vec<Arc<LiveNode>> {
        self.counts.all()
    }

    /// Returns a node by its number. Errors: [`Refusal::Stale`].
    pub fn get(&self, id: NodeId) -> Result<Arc<LiveNode>> {
        self.counts.get(id.0).ok_or_else(|| Refusal::Stale.into())
    }

    /// Returns how many nodes are in use, for tests and metrics.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Holds a node that was found under its name. The caller still holds the directory's names.
    pub fn hold(&self, node: &Arc<LiveNode>) -> HeldNode<'_> {
        self.counts.hold(node);
        self.held(Arc::clone(node))
    }

    /// Adds a node for an inode without one, under its name. After creating an inode, the caller
    /// also calls [`LiveNode::changed`] on the directory.
    pub fn add(&self, at: Slot<'_>, numbers: Numbered, kind: FileKind, body: Body) -> HeldNode<'_> {
        let node = LiveNode::new(numbers, kind, Some(at.place()), None, body);
        at.names.insert(at.name, &node);
        self.hold(&node)
    }

    /// Adds a node for a file without a name.
    pub fn add_nameless(&self, numbers: Numbered, kind: FileKind, body: Body) -> HeldNode<'_> {
        let node = LiveNode::new(numbers, kind, None, None, body);
        self.hold(&node)
    }

    /// As [`NodeTable::add`], for a file that has, or had, several names and is found by several
    /// inodes. If it already has a node, that one gets the name.
    ///
    /// When several threads add one file under different names, one of them creates the node.
    /// `unchanged` returns whether what is known of the file still counts; it is called while no
    /// other thread can give the file a node.
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
            let mut by_inode = self.by_inode();
            let known = inodes
                .iter()
                .find_map(|inode| by_inode.get(inode)?.upgrade());
            match &known {
                Some(known) => self.counts.hold(known),
                None if !unchanged() => return Linked::Changed,
                None => {
                    for inode in &inodes {
                        by_inode.insert(*inode, Arc::downgrade(&node));
                    }
                    self.counts.hold(&node);
                }
            }
            known
        };
        let Some(known) = known else {
            at.names.insert(at.name, &node);
            return Linked::Added(self.held(node));
        };
        let known = self.held(known);
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

    /// Notes that a name is gone. A node that has lost its last name lives until it is forgotten.
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
        self.by_inode().insert(inode, Arc::downgrade(node));
    }

    /// Holds the node that has this inode, if there is one.
    pub fn hold_inode(&self, inode: (u64, u64)) -> Option<HeldNode<'_>> {
        let by_inode = self.by_inode();
        let node = by_inode.get(&inode)?.upgrade()?;
        self.counts.hold(&node);
        drop(by_inode);
        Some(self.held(node))
    }

    /// Returns whether there is a node that has this inode.
    pub fn has_inode(&self, inode: (u64, u64)) -> bool {
        let by_inode = self.by_inode();
        let found = by_inode.get(&inode);
        found.is_some_and(|node| node.strong_count() > 0)
    }

    /// Takes back `count` lookups by the front. [`NodeTable::sweep`] does the rest.
    pub fn forget(&self, id: NodeId, count: u64) {
        if id == NodeId::ROOT {
            return;
        }
        if let Some(node) = self.counts.get(id.0) {
            self.counts.release(&node, count);
        }
    }

    /// Returns whether a node that was in use has been forgotten.
    pub fn is_forgotten(&self, node: &LiveNode) -> bool {
        Counts::is_unused(node)
    }

    /// Returns whether a sweep has something to do.
    pub fn wants_sweep(&self) -> bool {
        self.counts.has_left()
    }

    /// Removes unused names from the lists, and passes `nameless` each node that ends without a
    /// name. The caller holds no lock except the gate.
    pub fn sweep(&self, gate: &Gate<'_>, nameless: impl Fn(&LiveNode)) {
        while self.counts.has_left() {
            for node in self.counts.take_left() {
                self.unlist(node, gate, &nameless);
            }
        }
        if self.counts.many_gone() {
            vellum_sys::memory::give_back();
        }
    }

    /// Removes a node from its parents' lists unless it is in use again or lists a child; then the
    /// parents, if it was their last child.
    fn unlist(&self, node: Arc<LiveNode>, gate: &Gate<'_>, nameless: &impl Fn(&LiveNode)) {
        let mut pending = vec![node];
        while let Some(node) = pending.pop() {
            let unused = || Counts::is_unused(&*node);
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
            for NameInDir { parent, name } in places {
                let mut names = parent.names(gate);
                let listed = names.get(&name).is_some_and(|at| Arc::ptr_eq(&at, &node));
                if listed && !node.lists_something() && unused() {
                    names.unlist(&name);
                    // The place stays with the node, which may still be found by its inode.
                    let mut state = node.state_mut();
                    if state.links.is_some() {
                        state.remove_place(&parent, &name);
                    }
                }
                let last = names.is_empty();
                drop(names);
                if last && Counts::is_unused(&*parent) {
                    pending.push(parent);
                }
            }
            if !inodes.is_empty() {
                let mut by_inode = self.by_inode();
                if unused() {
                    for inode in inodes {
                        let found = by_inode.get(&inode);
                        if found.is_some_and(|found| found.as_ptr() == Arc::as_ptr(&node)) {
                            by_inode.remove(&inode);
                        }
                    }
                    give_back(&mut by_inode, MANY);
                }
            }
        }
    }
}

/// The kernel keeps 32 bits of a generation; other file systems use 0.
fn random_generation() -> u32 {
    let bytes = vellum_sys::random::bytes(4);
    let number = bytes
        .first_chunk()
        .map_or(1, |bytes| u32::from_ne_bytes(*bytes));
    number.max(1)
}

//! Live nodes: the files and directories that the front knows by number, and where each is on disk.
//!
//! A node has its places (parent and name; several for a hard link), its inodes in the layers, and
//! an inode number that never changes. It holds handles, not descriptors; only a node without a
//! name pins a descriptor.
//!
//! A node is in the table while it has references: from the front, which looked it up, or from an
//! operation, which holds it (`table.rs`). Its parent lists it under its name that long, or as long
//! as the node itself lists a child. So every live node is found under its name, no file has two
//! nodes, and the front's references bound the memory. Lock order: see `engine.rs`.
//!
//! In the folder: `table.rs` has the nodes by number, `gate.rs` and `names.rs` the tokens without
//! which a node and its names can't be changed, `list.rs` what a listing has shown.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use vellum_sys::{FileKind, sync};

use crate::dir_layer::DirHandle;
use crate::engine::blocks::BlockFile;
use crate::engine::nodes::gate::{Gate, NamesHeld, NodeGate};
use crate::engine::nodes::list::Listings;
use crate::engine::nodes::names::Names;
use crate::engine::nodes::table::Numbered;
use crate::engine::request::NodeId;
use crate::layer::LayerDir;
use crate::marks::DirAt;
use crate::resolve::Part;

pub(crate) mod gate;
pub(crate) mod list;
pub(crate) mod names;
pub(crate) mod table;

/// One file or directory of a writable union, known by number.
#[derive(Debug)]
pub(crate) struct LiveNode {
    /// What is known of `chattr +i` and `+a`; see `flags.rs`.
    pub protection: AtomicU8,
    pub id: NodeId,
    /// The inode number shown.
    pub ino: u64,
    /// Its type, as shown.
    pub kind: FileKind,
    /// References: lookups that the front has not forgotten, and operations that hold the node.
    /// Changed only by `table/counted.rs`, and by a successor that is not in use yet.
    pub(super) lookups: AtomicU64,
    /// Locked while it is copied up, its data moves, or its name is moved or removed.
    gate: Mutex<()>,
    /// Where it is. Locked for reading while a file's place in the upper layer is in use; for
    /// writing while that place changes on disk.
    state: RwLock<State>,
    /// The fields that only directories have; boxed, since most nodes are files.
    dir: Option<Box<DirSide>>,
}

/// The fields that only directories have.
#[derive(Debug, Default)]
pub(crate) struct DirSide {
    /// The names in it that have live nodes. This lock is "a directory's names" in the lock order:
    /// it is held to add, remove or look up a name.
    names: Mutex<Names>,
    /// How often a name in it was created, removed or moved.
    pub changes: AtomicU64,
    /// What was listed.
    pub listings: Mutex<Option<Listings>>,
}

/// Where a node is.
#[derive(Debug)]
pub(crate) struct State {
    /// One of its names in the union; `None` for the root and for an unlinked node.
    pub place: Option<NameInDir>,
    /// The fields that only hard links need.
    pub links: Option<Box<Links>>,
    /// Its inodes in the layers.
    pub body: Body,
}

/// The further names of a file with several names.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// The other names that were looked up.
    pub places: Vec<NameInDir>,
    /// The inodes by which the table finds the node: upper and lower.
    pub inodes: Vec<(u64, u64)>,
    /// The lower inode's link count, for marks relative to it.
    pub lower_nlink: Option<u32>,
}

/// A directory and a name in it.
#[derive(Debug, Clone)]
pub(crate) struct NameInDir {
    pub parent: Arc<LiveNode>,
    pub name: OsString,
}

/// A node's inodes in the layers.
#[derive(Debug)]
pub(crate) enum Body {
    Dir(DirBody),
    File(FileBody),
}

/// A directory: its shares in the layers.
#[derive(Debug)]
pub(crate) struct DirBody {
    /// Top first. If it has a share in the upper layer, that is the first, and its handle is
    /// `upper`. The `stat` in a share dates from the lookup. Replaced as a whole when the directory
    /// is copied up or loses its lower shares.
    pub parts: Arc<[Part<DirAt>]>,
    pub upper: Option<Arc<DirHandle>>,
    /// Whether the share in the upper layer is marked as holding names whose inode numbers come
    /// from elsewhere; `None` until it is read.
    pub impure: Option<bool>,
}

/// Any other type.
#[derive(Debug)]
pub(crate) struct FileBody {
    /// The inode in the upper layer, once there is one.
    pub upper: Option<UpperFile>,
    /// The file in the topmost lower layer that had it when it was looked up, if any. Its
    /// attributes count as long as there is no inode in the upper layer.
    pub lower: Option<Arc<LowerFile>>,
    /// Where the bytes of a regular file are.
    pub data: DataAt,
}

/// How a file's inode in the upper layer is reached.
#[derive(Debug, Clone)]
pub(crate) enum UpperFile {
    /// By a name: its own, another hard link's, or the one in the index.
    Named { dir: Arc<DirHandle>, name: OsString },
    /// It has lost its name, or never had one.
    Pinned(Arc<OwnedFd>),
}

/// A file in a lower layer.
#[derive(Debug)]
pub(crate) struct LowerFile {
    /// The layer's number in the stack; data-only layers come after the others.
    pub layer: usize,
    pub dir: Arc<dyn LayerDir>,
    pub name: OsString,
    /// Hard links when it was looked up.
    pub nlink: u32,
}

/// Where the bytes of a regular file are.
#[derive(Debug, Clone)]
pub(crate) enum DataAt {
    /// In the upper inode (also for every other type of file in the upper layer).
    Upper,
    /// In this lower file: nothing has been written yet.
    Lower(Arc<LowerFile>),
    /// Some blocks in the upper inode, the rest in a lower file that its map names: the upper inode
    /// is unsettled.
    Blocks(Arc<BlockFile>),
}

impl LiveNode {
    /// Creates a node that is not in a table yet.
    pub(super) fn new(
        numbers: Numbered,
        kind: FileKind,
        place: Option<NameInDir>,
        links: Option<Box<Links>>,
        body: Body,
    ) -> Arc<LiveNode> {
        let state = State { place, links, body };
        Arc::new(LiveNode {
            id: numbers.id,
            ino: numbers.ino,
            kind,
            lookups: AtomicU64::new(0),
            gate: Mutex::default(),
            state: RwLock::new(state),
            dir: (kind == FileKind::Dir).then(Box::default),
            protection: AtomicU8::new(0),
        })
    }

    /// Notes that a name in this directory was created, removed or moved: the next listing reads it
    /// again.
    pub fn changed(&self) {
        self.dir().changes.fetch_add(1, Ordering::Release);
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    /// Takes the gate. A caller that holds a later lock must not wait here; see
    /// [`crate::engine::Engine::still`].
    pub fn gate(&self) -> NodeGate<'_> {
        NodeGate::new(sync::lock(&self.gate))
    }

    /// Takes the gate if it is free.
    pub fn try_gate(&self) -> Option<NodeGate<'_>> {
        match self.gate.try_lock() {
            Ok(guard) => Some(NodeGate::new(guard)),
            Err(TryLockError::Poisoned(poisoned)) => Some(NodeGate::new(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        sync::read(&self.state)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        sync::write(&self.state)
    }

    /// Takes the lock of the names in this directory, under the rename gate.
    pub fn names<'a>(self: &'a Arc<LiveNode>, _gate: &'a Gate<'_>) -> NamesHeld<'a> {
        NamesHeld::new(self, self.list())
    }

    /// Takes that lock for a moment in which the caller waits for no other.
    fn list(&self) -> MutexGuard<'_, Names> {
        sync::lock(&self.dir().names)
    }

    /// As [`Names::end`], for a dropped answer. Don't call it with the names held.
    pub(super) fn end_question(&self, number: u64) {
        self.list().end(number);
    }

    /// Notes for a directory just created that all its names are known from here on.
    pub(super) fn begin_empty(&self) {
        self.list().begin_empty();
    }

    /// Returns the fields that only directories have. Call it on directories only.
    pub fn dir(&self) -> &DirSide {
        match &self.dir {
            Some(dir) => dir,
            None => unreachable!("callers have checked the type, which never changes"),
        }
    }

    /// Returns whether it lists a child.
    pub(super) fn lists_something(&self) -> bool {
        self.dir.is_some() && !self.list().is_empty()
    }

    /// Returns the directory's share in the upper layer, if it has one.
    pub fn upper_dir(&self) -> Option<Arc<DirHandle>> {
        match &self.state().body {
            Body::Dir(dir) => dir.upper.clone(),
            Body::File(_) => None,
        }
    }

    /// Returns whether it has an inode in the upper layer.
    pub fn in_upper(&self) -> bool {
        self.state().in_upper()
    }

    /// Returns whether it has lost its last name. The root never has one and never loses it.
    pub fn is_gone(&self) -> bool {
        self.id != NodeId::ROOT && self.state().place.is_none()
    }
}

impl State {
    pub fn in_upper(&self) -> bool {
        match &self.body {
            Body::Dir(dir) => dir.upper.is_some(),
            Body::File(file) => file.upper.is_some(),
        }
    }

    /// Returns the number of the layer whose inode gives it its attributes.
    pub fn layer(&self) -> usize {
        let layer = match &self.body {
            Body::Dir(dir) => dir.parts.first().map(|part| part.layer),
            Body::File(file) => match file.upper {
                Some(_) => None,
                None => file.lower.as_ref().map(|lower| lower.layer),
            },
        };
        layer.unwrap_or_default()
    }

    /// Returns every known name.
    pub fn places(&self) -> impl Iterator<Item = &NameInDir> {
        let more = self.links.as_deref().map_or(&[][..], |links| &links.places);
        self.place.iter().chain(more)
    }

    pub(super) fn add_place(&mut self, place: NameInDir) {
        match &mut self.place {
            none @ None => *none = Some(place),
            Some(_) => self.links.get_or_insert_default().places.push(place),
        }
    }

    /// Notes that one of its names has changed.
    pub fn move_place(&mut self, (parent, name): (&Arc<LiveNode>, &OsStr), to: NameInDir) {
        let is = |place: &NameInDir| Arc::ptr_eq(&place.parent, parent) && place.name == name;
        let links = self.links.iter_mut().flat_map(|links| &mut links.places);
        match self.place.iter_mut().chain(links).find(|place| is(place)) {
            Some(place) => *place = to,
            None => self.add_place(to),
        }
    }

    /// Returns whether the name was known.
    pub fn remove_place(&mut self, parent: &Arc<LiveNode>, name: &OsStr) -> bool {
        let is = |place: &NameInDir| Arc::ptr_eq(&place.parent, parent) && place.name == name;
        if self.place.as_ref().is_some_and(is) {
            self.place = self.links.as_mut().and_then(|links| links.places.pop());
            return true;
        }
        let Some(links) = &mut self.links else {
            return false;
        };
        let before = links.places.len();
        links.places.retain(|place| !is(place));
        links.places.len() < before
    }
}

/// Drops the parents one by one: by default a chain of them is dropped recursively, and a deep
/// enough tree would overflow the stack.
impl Drop for LiveNode {
    fn drop(&mut self) {
        fn take(node: &mut LiveNode) -> Vec<Arc<LiveNode>> {
            let state = match node.state.get_mut() {
                Ok(state) => state,
                Err(poisoned) => poisoned.into_inner(),
            };
            let more = state.links.take().map_or(Vec::new(), |links| links.places);
            let places = state.place.take().into_iter().chain(more);
            places.map(|place| place.parent).collect()
        }
        let mut parents = take(self);
        while let Some(parent) = parents.pop() {
            if let Some(mut parent) = Arc::into_inner(parent) {
                parents.extend(take(&mut parent));
            }
        }
    }
}

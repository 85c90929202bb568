//! Live nodes: what the front knows by number, and where each one is on disk at the moment.
//!
//! A node is its places (parent and name, more than one for a hard link), what backs it in the
//! layers, and an inode number that never changes. It holds handles, not descriptors; only a node
//! without a name pins one.
//!
//! A node is in the table while somebody counts on it: the front, which looked it up, or an
//! operation, which holds it (`table.rs`). Its parent lists it under its name as long as that is
//! so, or as long as something in it is listed. So whatever is alive is found under its name, there
//! are never two nodes for one thing, and memory is bounded by what the front remembers. Lock
//! order: see `engine.rs`.
//!
//! In the folder: `table.rs` knows the nodes by number, `gate.rs` and `names.rs` are the tokens of
//! who may change one and its names, `list.rs` keeps what a listing has shown.

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
    /// What it is, as shown.
    pub kind: FileKind,
    /// How often the front was told of it and has not forgotten, and operations that hold it.
    /// Changed by `table/counted.rs` alone, and by a successor that nobody uses yet.
    pub(super) lookups: AtomicU64,
    /// Held by whoever copies it up, changes where its data is, or moves or removes its name.
    gate: Mutex<()>,
    /// Where it is. Who uses the place of a file in the upper layer holds this for reading
    /// meanwhile; who changes it on disk, for writing.
    state: RwLock<State>,
    /// What only directories have; beside the node, since most nodes are files.
    dir: Option<Box<DirSide>>,
}

/// What only directories have.
#[derive(Debug, Default)]
pub(crate) struct DirSide {
    /// The names in it that have live nodes. The lock is "a directory's names" of the lock order:
    /// who adds, removes or looks up a name holds it.
    names: Mutex<Names>,
    /// How often a name in it was made, removed or moved.
    pub changes: AtomicU64,
    /// What was listed.
    pub listings: Mutex<Option<Listings>>,
}

/// Where a node is.
#[derive(Debug)]
pub(crate) struct State {
    /// A name it has in the union; `None` for the root and for what was unlinked.
    pub place: Option<NameInDir>,
    /// What only hard links need.
    pub links: Option<Box<Links>>,
    /// What backs it.
    pub body: Body,
}

/// Of a file with several names.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// The other names that were looked up.
    pub places: Vec<NameInDir>,
    /// The inodes by which the table finds the node: upper, lower.
    pub inodes: Vec<(u64, u64)>,
    /// How many names the lower inode has, for marks that count from there.
    pub lower_nlink: Option<u32>,
}

/// A name.
#[derive(Debug, Clone)]
pub(crate) struct NameInDir {
    pub parent: Arc<LiveNode>,
    pub name: OsString,
}

/// What backs a node.
#[derive(Debug)]
pub(crate) enum Body {
    Dir(DirBody),
    File(FileBody),
}

/// A directory: its shares in the layers.
#[derive(Debug)]
pub(crate) struct DirBody {
    /// Top first. If it has a share in the upper layer, that is the first, and its handle is
    /// `upper`. The `stat` in a share is of the time it was looked up. Replaced whole when the
    /// directory is copied up or loses what is below.
    pub parts: Arc<[Part<DirAt>]>,
    pub upper: Option<Arc<DirHandle>>,
    /// Whether the share in the upper layer is marked as holding names whose inode numbers come
    /// from elsewhere; `None` as long as nobody asked.
    pub impure: Option<bool>,
}

/// Anything else.
#[derive(Debug)]
pub(crate) struct FileBody {
    /// The inode in the upper layer, once there is one.
    pub upper: Option<UpperFile>,
    /// The file in the topmost lower layer that has it, if any had when it was looked up. Its
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
    /// It has no name any more, or never had one.
    Pinned(Arc<OwnedFd>),
}

/// A file in a lower layer.
#[derive(Debug)]
pub(crate) struct LowerFile {
    /// The layer's number in the stack; data-only layers follow behind the others.
    pub layer: usize,
    pub dir: Arc<dyn LayerDir>,
    pub name: OsString,
    /// Hard links when it was looked up.
    pub nlink: u32,
}

/// Where the bytes of a regular file are.
#[derive(Debug, Clone)]
pub(crate) enum DataAt {
    /// In the upper inode (also for everything that is no regular file and is in the upper layer).
    Upper,
    /// In this lower file: nothing was written yet.
    Lower(Arc<LowerFile>),
    /// Some blocks in the upper inode, the rest in a lower file that its map names: the upper inode
    /// is unsettled.
    Blocks(Arc<BlockFile>),
}

impl LiveNode {
    /// Makes a node that is in no table yet.
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

    /// Says that a name in this directory was made, removed or moved: it is listed anew.
    pub fn changed(&self) {
        self.dir().changes.fetch_add(1, Ordering::Release);
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    /// Takes the gate. Nobody who holds a lock that comes later may wait here; see
    /// [`crate::engine::Engine::still`].
    pub fn gate(&self) -> NodeGate<'_> {
        NodeGate::new(sync::lock(&self.gate))
    }

    /// Takes the gate if nobody has it.
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

    /// Takes that lock for a moment in which no other is waited for.
    fn list(&self) -> MutexGuard<'_, Names> {
        sync::lock(&self.dir().names)
    }

    /// As [`Names::end`], where the answer is dropped. Not to be called with the names held.
    pub(super) fn end_question(&self, number: u64) {
        self.list().end(number);
    }

    /// Says of a directory that was just made that all its names are known from here on.
    pub(super) fn begin_empty(&self) {
        self.list().begin_empty();
    }

    /// Returns what only directories have. To be asked of directories alone.
    pub fn dir(&self) -> &DirSide {
        match &self.dir {
            Some(dir) => dir,
            None => unreachable!("who asks for names has looked at the kind, which never changes"),
        }
    }

    /// Returns whether something in it is listed.
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

    /// Notes that one of its names is another now.
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

/// Lets go of the parents one by one: left to itself, a chain of them is dropped by recursion, and
/// a tree made deep enough would overflow the stack.
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

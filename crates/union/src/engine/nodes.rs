//! Live nodes: what the front knows by number, and where each one is on disk at the moment.
//!
//! A node is a place (parent and name), what backs it in the layers, and an inode number that never changes. It holds
//! handles, not descriptors; only a node without a name pins one. Dropped when forgotten, so memory is bounded by what
//! the front remembers. Lock order: see `engine.rs`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock, Weak};

use vellum_sys::FileKind;

use crate::dir_layer::DirHandle;
use crate::engine::request::NodeId;
use crate::marks::{DirAt, FileAt};
use crate::resolve::Part;

/// One file or directory of a writable union, known by number.
#[derive(Debug)]
pub(crate) struct LiveNode {
    pub id: NodeId,
    /// The inode number shown.
    pub ino: u64,
    /// What it is, as shown.
    pub kind: FileKind,
    /// How often the front was told of it and has not forgotten.
    pub lookups: AtomicU64,
    /// Held by whoever copies it up or changes where its data is.
    pub gate: Mutex<()>,
    /// Where it is.
    pub state: RwLock<State>,
    /// For directories: the names in it that have live nodes. The lock is "a directory's names" of the lock order: who
    /// adds, removes or looks up a name holds it.
    pub children: Mutex<HashMap<OsString, Weak<LiveNode>>>,
}

/// Where a node is.
#[derive(Debug)]
pub(crate) struct State {
    /// A name it has in the union; `None` for the root and for what was unlinked.
    pub place: Option<Place>,
    /// What backs it.
    pub body: Body,
}

/// A name.
#[derive(Debug, Clone)]
pub(crate) struct Place {
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
    /// Top first. If it has a share in the upper layer, that is the first, and its handle is `upper`. The `stat` in a
    /// share is of the time it was looked up.
    pub parts: Vec<Part<DirAt>>,
    pub upper: Option<Arc<DirHandle>>,
}

/// Anything else.
#[derive(Debug)]
pub(crate) struct FileBody {
    /// The inode in the upper layer, once there is one.
    pub upper: Option<UpperFile>,
    /// The file in the topmost lower layer that has it, if any had when it was looked up.
    pub lower: Option<FileAt>,
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

/// Where the bytes of a regular file are.
#[derive(Debug, Clone)]
pub(crate) enum DataAt {
    /// In the upper inode (also for everything that is no regular file and is in the upper layer).
    Upper,
    /// In this lower file: nothing was written yet.
    Lower(FileAt),
}

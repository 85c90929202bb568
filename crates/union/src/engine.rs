//! The writing side: a union open for changes, as a table of live nodes.
//!
//! A front (a FUSE session, a test, a tool) calls [`Engine`]: one method for each thing a program
//! can do to a file, in terms of nodes, names and bytes. The engine knows nothing of FUSE, errno or
//! sockets. [`crate::resolve`] decides what a name means. What the engine writes follows the
//! kernel's overlayfs format, so that either can mount the other's work.
//!
//! Where things are:
//!
//! * `request.rs`: requests and answers; `action.rs`: a call that changes something, and what its
//!   front must be told; `options.rs`: an engine's options;
//! * `nodes.rs`, `names.rs`, `table.rs`: the live nodes, their names and their table; `gate.rs`:
//!   the locks that keep them in place; `lookup.rs`, `list.rs`, `attr.rs`, `shown.rs`: reading;
//! * `copy_up.rs`, `carry.rs`: from a lower layer to the upper; `create.rs`, `hide.rs`,
//!   `rename.rs`: names, and what changes with them in `links.rs`; `staging.rs`: where new inodes
//!   are prepared;
//! * `set_attr.rs`, `flags.rs`: attributes, xattrs and `chattr` flags; `acl.rs`, `owners.rs`,
//!   `records.rs`: how they are stored;
//! * `data.rs`, `place.rs`, `blocks.rs`: bytes, and files with some bytes above and some below;
//!   `files.rs`: open descriptors; `settle.rs`: copying what is left below; `limit.rs`: how much
//!   the upper may hold;
//! * `inode_numbers.rs`: inode numbers, origins, the index of hard links; `recovery.rs`: opening,
//!   locks, leftovers of a crash; `successor.rs`: what another process needs to continue.
//!
//! Lock order, outermost first: rename gate (shared for everything that uses names, exclusive for
//! moving directories) > a directory's names, parent before child > a node's gate (copying up,
//! changing where its data is) > a node's state > the node table > the cache of descriptors. No
//! lock is held while a reply is written. The copy-up of one file delays only requests for that
//! file, and no layer is asked about a name under a lock that requests for other names wait for
//! (`lookup.rs`).

pub(crate) mod acl;
pub mod action;
mod attr;
pub(crate) mod blocks;
mod carry;
pub(crate) mod copy_up;
mod create;
mod data;
mod depth;
mod files;
mod flags;
mod hide;
mod index;
mod inode_numbers;
pub(crate) mod limit;
mod links;
mod lookup;
pub(crate) mod nodes;
pub mod options;
mod owners;
mod place;
pub(crate) mod records;
mod recovery;
mod rename;
pub mod request;
mod set_attr;
pub mod settle;
mod shown;
pub(crate) mod staging;
mod successor;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use vellum_sys::lock::Lock;
use vellum_sys::publish::{self, DataOrder};

use crate::at::At;
use crate::dir_layer::{DirHandle, DirLayer};
use crate::engine::blocks::BlockStore;
use crate::engine::files::FileCache;
use crate::engine::inode_numbers::Numbers;
use crate::engine::limit::Usage;
use crate::engine::nodes::LiveNode;
use crate::engine::nodes::gate::{Gate, NodeGate, RenameGate, Unmoved};
use crate::engine::nodes::table::NodeTable;
use crate::engine::staging::Staging;
use crate::error::Site;
use crate::stack::Stack;
use crate::{Layer, Refusal, Result};

pub use action::{Action, Asker, Attrs};
pub use options::{Durability, EngineOptions, Holds, IdRules, Limit, ReaderIds, UpperOptions};
pub use request::{
    Attr, Backing, Caller, Entry, Listing, NewNode, NodeId, RenameMode, Room, SetAttr, SetTime,
    Whence,
};
pub use settle::{SettleOptions, SettleProgress, Settled, settle};
pub use successor::Legacy;

/// An open union. One value serves any number of threads.
#[derive(Debug)]
pub struct Engine {
    /// All layers; 0 is the upper one, if there is one.
    pub(crate) stack: Stack,
    pub(crate) upper: Option<Upper>,
    pub(crate) ids: IdRules,
    /// For a union without an upper layer.
    pub(crate) reader_ids: Option<ReaderIds>,
    static_nlink: bool,
    pub(crate) no_xattrs: bool,
    pub(crate) numbers: Numbers,
    pub(crate) table: NodeTable,
    pub(crate) root: Arc<LiveNode>,
    pub(crate) files: FileCache,
    /// The rename gate.
    names: RenameGate,
    /// How often a file, or its bytes, was copied up; see `lookup.rs`.
    pub(crate) copies: AtomicU64,
}

/// The writable part of an engine.
#[derive(Debug)]
pub(crate) struct Upper {
    pub layer: Arc<DirLayer>,
    pub root: Arc<DirHandle>,
    /// `work/work`.
    pub staging: Staging,
    /// `work/index`, if the union keeps hard links.
    pub index: Option<Arc<DirHandle>>,
    /// The maps of files copied up block by block.
    pub blocks: BlockStore,
    pub usage: Usage,
    /// How its file system writes data before names.
    pub data_order: DataOrder,
    pub options: UpperOptions,
    /// Files can be created without a name (`O_TMPFILE`).
    pub unnamed: bool,
    /// The file system clears setuid and setgid of any file this process writes to.
    pub strips: bool,
    /// The work directory already keeps kernels out.
    kernel_kept_out: AtomicBool,
    /// The mark that names the index's lower layer: set on the root before the index gets its first
    /// entry.
    unclaimed: Mutex<Option<Vec<u8>>>,
    /// Locks on the upper and the work directory: no other process may use them.
    locks: [Lock; 2],
}

impl Engine {
    /// Returns a live node. Errors: [`Refusal::Stale`].
    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<LiveNode>> {
        match id {
            NodeId::ROOT => Ok(Arc::clone(&self.root)),
            _ => self.table.get(id),
        }
    }

    /// Returns a live directory. Errors: [`Refusal::Stale`], [`Refusal::NotADirectory`].
    pub(crate) fn dir_node(&self, id: NodeId) -> Result<Arc<LiveNode>> {
        let node = self.node(id)?;
        match node.is_dir() {
            true => Ok(node),
            false => Err(Refusal::NotADirectory.into()),
        }
    }

    /// Returns the upper layer. Errors: [`Refusal::ReadOnly`].
    pub(crate) fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or_else(|| Refusal::ReadOnly.into())
    }

    /// Takes the rename gate shared: no directory moves while it is held.
    #[track_caller]
    pub(crate) fn shared(&self) -> Gate<'_> {
        self.names.shared()
    }

    /// Removes unused names from the lists. Call it with no lock held.
    ///
    /// Takes the rename gate shared: a move between two directories, perhaps neither above the
    /// other, locks both their names and relies on no other thread holding any.
    pub(crate) fn sweep(&self) {
        if !self.table.wants_sweep() {
            return;
        }
        let gate = self.shared();
        self.table.sweep(&gate, |node| self.file_gone(node));
    }

    /// Returns a node's state, for reading its inode, which can't move while the state is held.
    #[track_caller]
    pub(crate) fn unmoved<'a>(&'a self, node: &'a LiveNode) -> Unmoved<'a> {
        Unmoved::new(self.shared(), node)
    }

    /// Takes the rename gate exclusively: no other thread uses names while it is held.
    #[track_caller]
    pub(crate) fn alone(&self) -> Gate<'_> {
        self.names.alone()
    }

    /// Takes the rename gate shared, and the node's own gate. The node can't move while both are
    /// held. With the node's gate alone it can't either, if the caller uses only the parent's
    /// descriptor. Waits without holding either.
    pub(crate) fn still<'a>(&'a self, node: &'a LiveNode) -> (Gate<'a>, NodeGate<'a>) {
        loop {
            let shared = self.shared();
            if let Some(gate) = node.try_gate() {
                return (shared, gate);
            }
            drop(shared);
            drop(node.gate());
        }
    }

    /// Returns the layer with this number, as errors name it.
    pub(crate) fn layer(&self, number: usize) -> impl Site {
        Numbered {
            stack: &self.stack,
            number,
        }
    }

    /// Returns whether the upper layer has a size limit.
    pub fn is_limited(&self) -> bool {
        let limit = self.upper.as_ref().map(|upper| upper.options.limit);
        limit.is_some_and(|limit| limit != Limit::default())
    }

    /// Returns how many live nodes there are, including the root: for tests and metrics.
    pub fn live_nodes(&self) -> usize {
        self.table.len()
    }

    /// Syncs and releases the upper layer. Call it when the engine is no longer in use.
    pub fn close(self) -> Result<()> {
        self.release()
    }
}

impl Upper {
    /// Makes sure a staged file's bytes are on disk before a new name, or the removal of a mark,
    /// makes them visible.
    pub fn settle_data(&self, file: impl AsFd) -> vellum_sys::Result<()> {
        match self.options.durability {
            Durability::Full => publish::sync_file(file),
            Durability::Ordered => publish::order_data(file, self.data_order),
            Durability::Volatile => Ok(()),
        }
    }

    /// Makes sure an inode in its present state, with its marks, is on disk before a new name makes
    /// it visible.
    ///
    /// Does nothing where the file system keeps that order. Symbolic links, pipes, sockets and
    /// devices can't be synced, and are left as they are.
    pub fn settle_inode(&self, at: &At) -> vellum_sys::Result<()> {
        let volatile = self.options.durability == Durability::Volatile;
        if volatile || self.data_order != DataOrder::Synced {
            return Ok(());
        }
        match at.open_to_sync() {
            Ok(Some(inode)) => self.settle_open(inode),
            Ok(None) => Ok(()),
            // A plain user's own file, with a mode that keeps even its owner from opening it.
            Err(error) if error.is_denied() => publish::sync_fs(&**self.staging.dir()),
            Err(error) => Err(error),
        }
    }

    /// As [`Upper::settle_inode`], for an open file or directory.
    pub fn settle_open(&self, inode: impl AsFd) -> vellum_sys::Result<()> {
        match self.options.durability {
            Durability::Full | Durability::Ordered => publish::order_inode(inode, self.data_order),
            Durability::Volatile => Ok(()),
        }
    }
}

/// The upper or the work directory.
impl Site for Upper {
    fn site(&self) -> String {
        self.layer.name()
    }
}

/// A layer by its number in the stack; data-only ones come after the others.
struct Numbered<'a> {
    stack: &'a Stack,
    number: usize,
}

impl Site for Numbered<'_> {
    fn site(&self) -> String {
        match self.stack.layers().get(self.number) {
            Some(layer) => layer.name(),
            None => "data-only layer".to_owned(),
        }
    }
}

//! Passthrough mode: the kernel serves opens itself, from the file underneath and with its page
//! cache.
//!
//! The kernel has one rule and one trap. The rule: while a file is open through a backing file, all
//! its opens use that one. The trap: a lower file used for an open that writes would be written to.
//! So a lower file is only ever handed out for reading. An open for writing while the kernel reads
//! the lower file copies the bytes up first. The node gets a second number only if the bytes moved
//! while the old ones are open elsewhere: the open is answered ESTALE, the kernel looks the name up
//! again, and finds what it takes for another inode, with the same `st_ino`. A descriptor opened
//! earlier keeps the old bytes, but not old attributes: those of a node with two numbers are
//! requested each time (see docs/semantics/mounts.md). Nothing else gives a node a second number;
//! `table.rs` ensures that. Nor does the kernel keep attributes of a file that was ever open for
//! writing through it: stores through a mapping change its times without notice.
//!
//! A file without a name to look up (`/proc/self/fd/N`, a bind-mounted file) comes back with the
//! old number at once. Such an open is served by requests, past the cache. If it is for writing and
//! the lower file is still read through the kernel, it stays refused (ESTALE). Opens for writing
//! are served by requests as in coherent mode if the file is in a lower layer and not open through
//! the kernel, or if there is a size limit: the first write copies.
//!
//! A write through a backing file never comes here, but before it the kernel still asks for
//! set-user-id bits to be cleared: an empty SETATTR (`ops/attributes.rs`). It decides by the mode
//! it has cached, which may differ between the two numbers of a node; so privileges are never given
//! through an old number ([`Passthrough::is_old`]).
//!
//! Finding a file's bytes and registering a backing file happen with no lock held: a lower layer
//! may be slow to open one file while others are opened. An open holds its file's turn (`turns.rs`)
//! until it is counted, so the second of two opens of one file sees how the first was answered, and
//! only the holder of the turn opens a number that is not open yet. The table is consulted before
//! and after, for a few instructions each. A copy-up may happen in between, as it may right after
//! the answer: the next open sees that the bytes moved.
//!
//! Locks: no system call is made under the table's lock. A turn is taken before it, and before the
//! engine's locks. The append lock is never held together with either.

mod table;
mod turns;

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

use vellum_sys::{fuse_dev, sync};
use vellum_union::engine::{self, Engine, NodeId};

use crate::channel::Channel;
use crate::notify::Notifier;
use crate::wire::flags::open;
use table::{Asked, Backing, Bytes, How, Plan, Side, Table};
use turns::Turns;

/// Smaller files gain less from a shared page cache than their registration costs.
const SMALLEST_BYTES: u64 = 64 << 10;

/// An open that is counted in the table.
pub const COUNTED: u64 = 1;
/// An open served by requests, past the page cache, of a number that is no longer in use.
const DIRECT: u64 = 2;

/// How an open past the page cache is answered.
const PAST_CACHE: u32 = open::DIRECT_IO | open::NOFLUSH | open::PARALLEL_DIRECT_WRITES;

/// Returns the engine's number of a node on the wire.
pub fn node_of(wire: u64) -> NodeId {
    table::node_of(wire)
}

/// How an open is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub handle: u64,
    pub flags: u32,
    pub backing: i32,
}

/// What is open, and how.
#[derive(Debug)]
pub struct Passthrough {
    device: Arc<Channel>,
    notifier: Notifier,
    table: Mutex<Table>,
    /// The files that are being opened.
    opening: Turns<NodeId>,
    /// Held while appending by requests to a file with two numbers.
    appending: Mutex<()>,
}

/// Why an open is refused.
#[derive(Debug)]
pub enum Refused {
    /// The engine refused.
    Engine(vellum_union::Error),
    /// The kernel has to look the name up again.
    LookAgain,
}

impl From<vellum_union::Error> for Refused {
    fn from(error: vellum_union::Error) -> Refused {
        Refused::Engine(error)
    }
}

/// The outcome of an open.
#[derive(Debug)]
pub enum Open {
    Answered(Opened),
    /// Ask again when the bytes are in the upper layer. They never move back, so this happens once.
    CopyUpFirst,
}

impl Passthrough {
    /// `device` is where backing files are registered.
    pub fn new(device: Arc<Channel>, notifier: Notifier) -> Passthrough {
        Passthrough {
            device,
            notifier,
            table: Mutex::default(),
            opening: Turns::default(),
            appending: Mutex::default(),
        }
    }

    /// Returns the number by which the kernel should know a node from now on.
    pub fn wire(&self, node: NodeId) -> u64 {
        self.lock().wire(node)
    }

    /// Returns every number by which the kernel may know a node.
    pub fn wires(&self, node: NodeId) -> impl Iterator<Item = u64> {
        let second = self.lock().wire(node);
        std::iter::once(node.0).chain((second != node.0).then_some(second))
    }

    /// Returns whether the kernel may keep attributes of a node.
    pub fn may_keep_attributes(&self, node: NodeId) -> bool {
        self.lock().is_steady(node)
    }

    /// Returns whether a number was the node's before it got its second.
    pub fn is_old(&self, wire: u64) -> bool {
        !self.lock().is_current(wire)
    }

    /// Notes that the thread `pid` looked a node up.
    pub fn looked_up(&self, node: NodeId, pid: u32) {
        self.lock().came_back(node, pid);
    }

    /// Notes that a file was created and opened.
    pub fn created(&self, node: NodeId) {
        let mut table = self.lock();
        let wire = table.wire(node);
        table.add(wire, How::Cached, true);
    }

    /// Answers an open of `wire` by the thread `pid`. Copies nothing.
    pub fn open(&self, engine: &Engine, wire: u64, pid: u32, write: bool) -> Result<Open, Refused> {
        let node = node_of(wire);
        let _turn = self.opening.take(node);
        let used_through = {
            let mut table = self.lock();
            if !table.is_current(wire) {
                return Self::send_back(&mut table, wire, pid, write).map(Open::Answered);
            }
            table.was_written_through(wire)
        };
        let (bytes, file) = match engine.backing(node, write)? {
            engine::Backing::Lower(file) => (Bytes::Lower, Some(file)),
            engine::Backing::Upper(file) => (Bytes::Upper, Some(file)),
            engine::Backing::None => (Bytes::Requests, None),
        };
        let worth_it = used_through || file.as_deref().is_some_and(is_large);
        let asked = Asked { write, worth_it };
        // The last other open of this number may end before this one is counted, and take its
        // backing file with it. So an open that shares a backing file is counted in the same step.
        let mut table = self.lock();
        let (how, flags) = match (table::plan(table.how(wire), bytes, asked), file) {
            (Plan::CopyUpFirst, _) => return Ok(Open::CopyUpFirst),
            (Plan::Renumber(moved), _) => {
                table.renumber(node, moved);
                drop(table);
                self.notifier.attributes(wire);
                return Self::send_back(&mut self.lock(), wire, pid, write).map(Open::Answered);
            }
            (Plan::Share(backing), _) => (How::Through(backing), open::NOFLUSH),
            (Plan::ByRequests(backing), _) => (How::Through(backing), PAST_CACHE),
            (Plan::Register(side), Some(file)) => {
                // The number is not open, and stays closed until this turn is over.
                drop(table);
                let registered = self.register(&file, side);
                table = self.lock();
                let how = registered.map_or(How::Cached, How::Through);
                (how, open::NOFLUSH)
            }
            (Plan::Cached | Plan::Register(_), _) => (How::Cached, open::NOFLUSH),
        };
        let first_write = table.add(wire, how, write);
        let written = table.was_written_through(wire);
        drop(table);
        if first_write {
            self.notifier.attributes(wire);
        }
        Ok(Open::Answered(match how {
            How::Through(backing) => Opened {
                handle: COUNTED,
                flags: flags | open::PASSTHROUGH,
                backing: backing.id,
            },
            How::Cached => Opened {
                handle: COUNTED,
                flags: match written {
                    true => flags,
                    false => flags | open::KEEP_CACHE,
                },
                backing: 0,
            },
        }))
    }

    /// Makes the kernel look the node's name up again. If it did not the last time, there is no
    /// name, and the open is served by requests, past the cache.
    fn send_back(table: &mut Table, wire: u64, pid: u32, write: bool) -> Result<Opened, Refused> {
        if table.send_back(node_of(wire), pid) {
            return Err(Refused::LookAgain);
        }
        match table.how(wire) {
            // Every open of such a number must have its backing file, which mappings then use. For
            // writing that would be a way into the lower layer.
            Some(How::Through(_)) if write => Err(Refused::LookAgain),
            Some(how @ How::Through(backing)) => {
                table.add(wire, how, false);
                Ok(Opened {
                    handle: COUNTED,
                    flags: PAST_CACHE | open::PASSTHROUGH,
                    backing: backing.id,
                })
            }
            _ => Ok(Opened {
                handle: DIRECT,
                flags: PAST_CACHE,
                backing: 0,
            }),
        }
    }

    /// Notes that an open ended.
    pub fn release(&self, wire: u64, handle: u64) {
        if handle == DIRECT {
            return;
        }
        let unused = self.lock().release(wire);
        if let Some(backing) = unused
            && let Err(error) = fuse_dev::close_backing(self.device.device(), backing.id)
        {
            tracing::warn!(%error, "a backing file stays registered until the union is unmounted");
        }
    }

    /// Drops what is known of a node that the kernel has forgotten.
    pub fn forget(&self, node: NodeId) {
        self.lock().forget(node);
    }

    /// Calls `append` if the kernel may not know where the file ends, because the file has two
    /// numbers, and each inode has its own size. One call at a time.
    pub fn append<T>(&self, node: NodeId, append: impl FnOnce() -> T) -> Option<T> {
        if !self.lock().is_renumbered(node) {
            return None;
        }
        let _one_at_a_time = sync::lock(&self.appending);
        Some(append())
    }

    /// Registers a file; `None` if it can't be registered, and must be served by requests.
    fn register(&self, file: &File, side: Side) -> Option<Backing> {
        match fuse_dev::open_backing(self.device.device(), file) {
            Ok(id) => Some(Backing { id, side }),
            Err(error) => {
                tracing::debug!(%error, "no passthrough for this file");
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        sync::lock(&self.table)
    }
}

/// Returns whether registering a file is worthwhile. If its size can't be read, it is not.
fn is_large(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|stat| stat.len() >= SMALLEST_BYTES)
}

#[cfg(test)]
mod tests;

//! Passthrough mode: opens that the kernel serves itself, from the file underneath and with its page cache.
//!
//! The kernel has one rule and one trap. The rule: while a node is open through a backing file, all its opens go through that
//! one, or bypass the cache. The trap: a lower file's number, used for an open after the copy-up, would write into the lower
//! layer. So a lower file is only ever handed out for reading, and when a node's bytes have moved while somebody has the old ones open, the
//! node gets a new number: the open is answered ESTALE, the kernel looks the name up again, and what it finds then is
//! another inode to it, with the same `st_ino`. Who has the old one open keeps the old bytes (see docs/semantics.md).
//!
//! What has no name to look up (`/proc/self/fd/N`, a bind-mounted file) comes back with the old number at once; such an open
//! is served without the cache, by requests; if it is for writing and somebody reads the lower file through the kernel, it stays refused
//! (ESTALE). Opens for writing of what is still below, and everything below a size limit, are served by
//! requests as in coherent mode: the first write copies.
//!
//! A number on the wire is the engine's number and, above it, how often the node was renumbered. One lock, taken before any
//! of the engine's; the engine copies nothing up while it is held.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vellum_sys::fuse_dev;
use vellum_union::engine::{Engine, NodeId};

use crate::channel::Channel;
use crate::wire::flags::open;

/// So many bits of a number on the wire are the engine's.
const NODE_BITS: u32 = 40;
const SETUID_SETGID: u32 = 0o6000;
/// Smaller files gain less by a shared page cache than registering them costs.
const SMALLEST_BYTES: u64 = 64 << 10;

/// An open served by requests.
pub const CACHED: u64 = 1;
/// An open served by the kernel.
const THROUGH: u64 = 2;
/// An open served by requests, past the page cache, of a number that is not in use any more.
const DIRECT: u64 = 3;

/// Returns the engine's number of a node on the wire.
pub fn node_of(wire: u64) -> NodeId {
    NodeId(wire & ((1 << NODE_BITS) - 1))
}

/// How an open is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub handle: u64,
    pub flags: u32,
    pub backing: i32,
}

/// What is open how.
#[derive(Debug)]
pub struct Passthrough {
    device: Arc<Channel>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// How often a node was renumbered, if ever.
    renumbered: HashMap<NodeId, u64>,
    /// By number on the wire.
    open: HashMap<u64, Use>,
    /// Numbers whose cached pages may be older than what was written through.
    outdated: HashSet<u64>,
    /// Nodes that were open for writing through the kernel: what it writes, and what is stored through a mapping that outlives the open,
    /// changes attributes of which nobody hears.
    written: HashSet<NodeId>,
    /// Who was told to look a node up again and has not done so.
    sent_back: HashMap<NodeId, HashSet<u32>>,
}

/// How a node is open, and how often.
#[derive(Debug)]
enum Use {
    Cached(u64),
    Through(Backing, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Backing {
    id: i32,
    /// Device and inode.
    file: (u64, u64),
}

/// Why an open is refused.
#[derive(Debug)]
pub enum Refused {
    /// The engine says no.
    Engine(vellum_union::Error),
    /// The kernel is to look the name up again.
    LookAgain,
}

impl From<vellum_union::Error> for Refused {
    fn from(error: vellum_union::Error) -> Refused {
        Refused::Engine(error)
    }
}

impl Passthrough {
    pub fn new(device: Arc<Channel>) -> Passthrough {
        Passthrough {
            device,
            table: Mutex::default(),
        }
    }

    /// Returns the number by which the kernel is to know a node it looked up.
    pub fn wire(&self, node: NodeId) -> u64 {
        let mut table = self.lock();
        table.sent_back.remove(&node);
        table.wire(node)
    }

    /// Returns every number by which the kernel may know a node: those before stay in use as long as somebody has the file open.
    pub fn wires(&self, node: NodeId) -> impl Iterator<Item = u64> {
        let times = self.lock().renumbered.get(&node).copied().unwrap_or(0);
        (0..=times).map(move |times| node.0 | times << NODE_BITS)
    }

    /// Returns whether a node's attributes may change without a request, as long as the kernel knows it.
    pub fn is_written(&self, node: NodeId) -> bool {
        self.lock().written.contains(&node)
    }

    /// Notes that the kernel has forgotten a node.
    pub fn forgotten(&self, node: NodeId) {
        self.lock().written.remove(&node);
    }

    /// Notes that a file was made and opened.
    pub fn created(&self, node: NodeId) {
        let mut table = self.lock();
        let wire = table.wire(node);
        table.add_cached(wire);
    }

    /// Answers an open of `wire` by the thread `pid`.
    pub fn open(
        &self,
        engine: &Engine,
        wire: u64,
        pid: u32,
        write: bool,
    ) -> Result<Opened, Refused> {
        let node = node_of(wire);
        engine.open_check(node, write)?;
        let mut table = self.lock();
        if wire != table.wire(node) {
            return table.send_back(wire, pid, write);
        }
        if let Some(Use::Cached(_)) = table.open.get(&wire) {
            return Ok(table.add_cached(wire));
        }
        let wanted = wanted(engine, node, write)?;
        let now = match (table.open.get_mut(&wire), wanted) {
            (None, None) => return Ok(table.add_cached(wire)),
            (None, Some(file)) => match self.register(&file) {
                Some(backing) => {
                    table.open.insert(wire, Use::Through(backing, 1));
                    backing
                }
                None => return Ok(table.add_cached(wire)),
            },
            (Some(Use::Through(backing, count)), Some(file))
                if identity(&file) == Some(backing.file) =>
            {
                *count += 1;
                *backing
            }
            // The bytes are elsewhere now, or may not be written through.
            (Some(_), _) => {
                *table.renumbered.entry(node).or_default() += 1;
                return table.send_back(wire, pid, write);
            }
        };
        if write {
            table.outdated.insert(wire);
            table.written.insert(node);
        }
        Ok(Opened {
            handle: THROUGH,
            flags: open::PASSTHROUGH | open::NOFLUSH,
            backing: now.id,
        })
    }

    /// Notes that an open ended.
    pub fn release(&self, wire: u64, handle: u64) {
        if handle == DIRECT {
            return;
        }
        let mut table = self.lock();
        let left = match table.open.get_mut(&wire) {
            Some(Use::Cached(count) | Use::Through(_, count)) => {
                *count -= 1;
                *count
            }
            None => return,
        };
        if left == 0
            && let Some(Use::Through(backing, _)) = table.open.remove(&wire)
            && let Err(error) = fuse_dev::close_backing(self.device.device(), backing.id)
        {
            tracing::warn!(%error, "a backing file stays registered until the union is unmounted");
        }
    }

    /// Registers a file; `None` if this one can't be, and is to be served by requests.
    fn register(&self, file: &File) -> Option<Backing> {
        let identity = identity(file)?;
        match fuse_dev::open_backing(self.device.device(), file) {
            Ok(id) => Some(Backing { id, file: identity }),
            Err(error) => {
                tracing::debug!(%error, "a file is served by requests");
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn wire(&self, node: NodeId) -> u64 {
        let times = self.renumbered.get(&node).copied().unwrap_or(0);
        node.0 | times << NODE_BITS
    }

    fn add_cached(&mut self, wire: u64) -> Opened {
        match self.open.get_mut(&wire) {
            Some(Use::Cached(count)) => *count += 1,
            _ => {
                self.open.insert(wire, Use::Cached(1));
            }
        }
        let keep = match self.outdated.remove(&wire) {
            true => 0,
            false => open::KEEP_CACHE,
        };
        Opened {
            handle: CACHED,
            flags: keep | open::NOFLUSH,
            backing: 0,
        }
    }

    /// Has the kernel look the node's name up again. If it did not the last time, there is no name, and the open is served by requests,
    /// past the cache.
    fn send_back(&mut self, wire: u64, pid: u32, write: bool) -> Result<Opened, Refused> {
        let told = self.sent_back.entry(node_of(wire)).or_default();
        if told.insert(pid) {
            return Err(Refused::LookAgain);
        }
        told.remove(&pid);
        let past = open::DIRECT_IO | open::NOFLUSH | open::PARALLEL_DIRECT_WRITES;
        match self.open.get_mut(&wire) {
            // Every open of such a node has to have its backing file, which mappings then are of. For writing that would be a way into
            // the lower layer.
            Some(Use::Through(..)) if write => Err(Refused::LookAgain),
            Some(Use::Through(backing, count)) => {
                *count += 1;
                Ok(Opened {
                    handle: THROUGH,
                    flags: past | open::PASSTHROUGH,
                    backing: backing.id,
                })
            }
            _ => Ok(Opened {
                handle: DIRECT,
                flags: past,
                backing: 0,
            }),
        }
    }
}

/// Returns the file that an open may go through to, if any.
fn wanted(
    engine: &Engine,
    node: NodeId,
    write: bool,
) -> Result<Option<Arc<File>>, vellum_union::Error> {
    if write && !engine.has_data_above(node)? {
        return Ok(None);
    }
    let Some(file) = engine.backing(node, write)? else {
        return Ok(None);
    };
    let Ok(stat) = file.metadata() else {
        return Ok(None);
    };
    // The kernel leaves clearing setuid and setgid to us, and would write without asking.
    let keeps_privileges = !write || stat.mode() & SETUID_SETGID == 0;
    let usable = keeps_privileges && (write || stat.len() >= SMALLEST_BYTES);
    Ok(usable.then_some(file))
}

fn identity(file: &File) -> Option<(u64, u64)> {
    let stat = file.metadata().ok()?;
    Some((stat.dev(), stat.ino()))
}

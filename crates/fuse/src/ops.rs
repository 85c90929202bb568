//! Each kernel request: decoded, passed to the engine, its answer encoded.
//!
//! Only two things are decided here: how long the kernel may cache an answer, and which requests it
//! need not send again (those answered ENOSYS). Everything is keyed by node; open files have no
//! state (but see `passthrough.rs`), so an open needs no answer of its own, and the position in a
//! listing is the directory's cookie.
//!
//! Flow: [`Serve::serve`] picks the function; each returns [`Failure`] on error. It is logged once,
//! here, unless it is one that any file system may return.

mod attributes;
mod data;
mod known;
mod list;
mod names;
mod told;

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use vellum_sys::FileKind;
use vellum_union::engine::{self, Caller, Engine, NodeId};

use crate::channel::Channel;
use crate::counters::Counters;
use crate::errno::{errno, is_everyday, is_no_room};
use crate::negotiate::Agreed;
use crate::notify::Notifier;
use crate::options::MountOptions;
use crate::passthrough::{Passthrough, node_of};
use crate::tidy::Tidy;
use crate::wire::flags::open;
use crate::wire::reply::{self, Reply};
use crate::wire::{Header, Op, Request};
use crate::workers::Serve;
use data::Written;
use known::Call;

/// Answers the requests of one session.
#[derive(Debug)]
pub(crate) struct Ops {
    engine: Engine,
    agreed: Agreed,
    /// How long names and attributes may be cached.
    timeout: Duration,
    no_fsync: bool,
    /// Only this user and root are answered.
    only: Option<u32>,
    passthrough: Option<Passthrough>,
    notifier: Notifier,
    tidy: Tidy,
}

/// Why a request is answered with an error.
#[derive(Debug)]
enum Failure {
    /// The engine refused.
    Engine(vellum_union::Error),
    /// The request itself says why.
    Plain(Errno),
}

impl From<vellum_union::Error> for Failure {
    fn from(error: vellum_union::Error) -> Failure {
        Failure::Engine(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Plain(errno)
    }
}

type Answer<T = ()> = Result<T, Failure>;

impl Ops {
    /// `device` is where backing files are registered, and where notifications go. Errors: no
    /// further thread can be started.
    pub fn new(
        engine: Engine,
        agreed: Agreed,
        options: &MountOptions,
        device: &Arc<Channel>,
        counters: &Arc<Counters>,
    ) -> vellum_sys::Result<Ops> {
        let notifier = || Notifier::new(Arc::clone(device), Arc::clone(counters));
        let through = agreed.passthrough;
        Ok(Ops {
            passthrough: through.then(|| Passthrough::new(Arc::clone(device), notifier())),
            notifier: notifier(),
            engine,
            agreed,
            // The kernel asks us for every caller only if it does not cache what it told others.
            timeout: match options.only {
                Some(_) => Duration::ZERO,
                None => options.timeout,
            },
            no_fsync: options.no_fsync,
            only: options.only,
            tidy: Tidy::start(vellum_sys::memory::give_back)?,
        })
    }

    /// Gives the engine back, to be closed.
    pub fn into_engine(self) -> Engine {
        self.engine
    }

    fn answer(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Answer {
        let header = &request.header;
        let node = node_of(header.node);
        // What the kernel sends on its own account (write-back, RELEASE) comes as root.
        if self
            .only
            .is_some_and(|only| header.uid != only && header.uid != 0)
        {
            return Err(Errno::ACCESS.into());
        }
        let call = Call::new(self, request);
        match request.op {
            Op::Lookup { name } => self.lookup(header, name, reply),
            Op::GetAttr => self.get_attr(node, reply),
            Op::SetAttr(set) => self.set_attr(&call, &set, reply),
            Op::ReadLink => self.read_link(node, reply),
            Op::Symlink { name, target } => self.symlink(&call, name, target, reply),
            Op::MkNod {
                name,
                mode,
                rdev,
                umask,
            } => self.mknod(&call, name, (mode, rdev), umask, reply),
            Op::MkDir { name, mode, umask } => self.mkdir(&call, name, mode, umask, reply),
            Op::Unlink { name } => call.act(|to| to.unlink(node, name)),
            Op::RmDir { name } => call.act(|to| to.rmdir(node, name)),
            Op::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => self.rename(&call, (node, name), (node_of(new_parent), new_name), flags),
            Op::Link { node: old, name } => {
                let entry = call.act(|to| to.link(node_of(old), node, name))?;
                self.put_entry(entry, reply);
                Ok(())
            }
            Op::Create {
                name, mode, umask, ..
            } => self.create(&call, name, mode, umask, reply),
            Op::TmpFile { mode, umask, .. } => self.tmpfile(&call, mode, umask, reply),
            Op::Open { flags } => self.open(&call, flags, reply),
            Op::OpenDir { .. } => match self.agreed.no_opendir {
                true => Err(Errno::NOSYS.into()),
                false => {
                    reply.open(0, open::KEEP_CACHE | open::CACHE_DIR, 0);
                    Ok(())
                }
            },
            Op::Read(range) => self.read(node, range, reply),
            Op::Write {
                offset,
                data,
                flags,
                append,
                ..
            } => {
                let written = Written {
                    offset,
                    data,
                    flags,
                    append,
                };
                self.write(&call, &written, reply)
            }
            Op::ReadDir(range) => self.read_dir(node, range, reply),
            Op::ReadDirPlus(range) => self.read_dir_plus(node, range, reply),
            Op::StatFs => self.stat_fs(reply),
            Op::Release { handle } => {
                if let Some(passthrough) = &self.passthrough {
                    passthrough.release(header.node, handle);
                }
                Ok(())
            }
            Op::ReleaseDir { .. } | Op::Destroy => Ok(()),
            Op::FSync { data_only } | Op::FSyncDir { data_only } => match self.no_fsync {
                true => Err(Errno::NOSYS.into()),
                false => Ok(self.engine.sync(node, data_only)?),
            },
            Op::SetXattr {
                name,
                value,
                flags,
                acl_kills_setgid,
            } => self.set_xattr(&call, name, value, flags, acl_kills_setgid),
            Op::GetXattr { name, room } => self.get_xattr(node, name, room, reply),
            Op::ListXattr { room } => self.list_xattr(&call, room, reply),
            Op::RemoveXattr { name } => call.act(|to| to.remove_xattr(node, name)),
            Op::Ioctl(ioctl) => self.ioctl(&call, &ioctl, reply),
            Op::FAllocate {
                offset,
                length,
                mode,
            } => call.act(|to| to.fallocate(node, mode, offset, length)),
            Op::LSeek { offset, whence } => self.seek(node, offset, whence, reply),
            Op::CopyRange(copy) => self.copy_range(&call, &copy, reply),
            // Not sent again: the kernel does without, or does it itself.
            Op::Flush
            | Op::Access
            | Op::SyncFs
            | Op::Statx { .. }
            | Op::Interrupt { .. }
            | Op::Other => Err(Errno::NOSYS.into()),
            // The first message is answered before the workers start.
            Op::Init(_) => Err(Errno::IO.into()),
            // These take no reply and never arrive here.
            Op::Forget { .. } | Op::BatchForget(_) => Ok(()),
        }
    }

    /// Returns how long the kernel may cache attributes of a node.
    fn attr_valid(&self, node: NodeId) -> Duration {
        match &self.passthrough {
            Some(passthrough) if !passthrough.may_keep_attributes(node) => Duration::ZERO,
            _ => self.timeout,
        }
    }

    fn put_entry(&self, entry: engine::Entry, reply: &mut Reply<'_>) {
        reply.entry(&self.entry(&entry));
    }

    fn entry(&self, entry: &engine::Entry) -> reply::Entry {
        reply::Entry {
            node: match &self.passthrough {
                Some(passthrough) => passthrough.wire(entry.node),
                None => entry.node.0,
            },
            generation: entry.generation,
            entry_valid: self.timeout,
            attr_valid: self.attr_valid(entry.node),
            attr: attr(&entry.attr),
        }
    }
}

impl Serve for Ops {
    fn serve(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let mut answer = self.answer(request, reply);
        if let Err(Failure::Engine(error)) = &answer
            && is_no_room(error)
            && self.engine.give_room_back()
        {
            reply.clear();
            answer = self.answer(request, reply);
        }
        let answer = answer.map_err(|failure| match failure {
            Failure::Plain(errno) => errno,
            Failure::Engine(error) => {
                if !is_everyday(&error) {
                    let header = &request.header;
                    let op = crate::wire::Opcode::from_number(header.opcode);
                    let cause = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::error!(?op, node = header.node, %error, cause, "a request failed");
                }
                errno(&error)
            }
        });
        tracing::debug!("{}: {}", told::Asked(request), told::Answered(&answer));
        answer
    }

    fn note(&self, request: &Request<'_>) {
        let mut nodes = 0;
        let mut forget = |node, count| {
            let node = node_of(node);
            if self.engine.forget(node, count)
                && let Some(passthrough) = &self.passthrough
            {
                passthrough.forget(node);
            }
            nodes += 1;
        };
        match request.op {
            Op::Forget { count } => forget(request.header.node, count),
            Op::BatchForget(forgets) => forgets.for_each(|(node, count)| forget(node, count)),
            _ => {}
        }
        tracing::debug!("{}", told::Asked(request));
        self.tidy.freed(nodes);
    }
}

fn caller(header: &Header, umask: u32) -> Caller {
    Caller {
        uid: header.uid,
        gid: header.gid,
        umask: umask & 0o777,
    }
}

/// Returns attributes in wire form.
fn attr(attr: &engine::Attr) -> reply::Attr {
    let time = |time: vellum_sys::Timespec| (time.sec, time.nsec);
    reply::Attr {
        ino: attr.ino,
        size_bytes: attr.size_bytes,
        blocks_512: attr.blocks_512,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        mode: attr.kind.raw_mode() | attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: pack_device(attr.rdev),
        block_bytes: attr.block_bytes,
    }
}

/// Packs a device number as the kernel's `new_encode_dev`.
fn pack_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Unpacks a device number.
fn unpack_device(packed: u32) -> (u32, u32) {
    (
        (packed >> 8) & 0xfff,
        (packed & 0xff) | ((packed >> 12) & 0xfff00),
    )
}

/// Returns a file type as listings encode it.
fn kind_bits(kind: FileKind) -> u32 {
    kind.raw_mode() >> 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_survive_packing() {
        for device in [
            (0, 0),
            (1, 3),
            (8, 255),
            (259, 256),
            (4095, 1_048_575),
            (7, 4096),
        ] {
            assert_eq!(unpack_device(pack_device(device)), device);
        }
    }
}

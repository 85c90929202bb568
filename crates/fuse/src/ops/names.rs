//! Requests about names: lookup, creation, renaming.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use rustix::io::Errno;
use vellum_sys::FileKind;
use vellum_union::engine::{NewNode, NodeId, RenameMode};

use super::known::Call;
use super::{Answer, Ops, caller, unpack_device};
use crate::passthrough::{self, node_of};
use crate::wire::Header;
use crate::wire::flags::open;
use crate::wire::reply::{self, Reply};

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;
/// How a newly created file is opened: cached data stays, close does nothing.
const MADE: u32 = open::KEEP_CACHE | open::NOFLUSH;

impl Ops {
    pub(super) fn lookup(&self, header: &Header, name: &OsStr, reply: &mut Reply<'_>) -> Answer {
        match self.engine.lookup(node_of(header.node), name)? {
            Some(entry) => {
                if let Some(passthrough) = &self.passthrough {
                    passthrough.looked_up(entry.node, header.pid);
                }
                self.put_entry(entry, reply);
            }
            // The kernel may also cache that a name does not exist.
            None if self.timeout > Duration::ZERO => reply.entry(&reply::Entry {
                node: 0,
                generation: 0,
                entry_valid: self.timeout,
                attr_valid: Duration::ZERO,
                attr: reply::Attr::default(),
            }),
            None => return Err(Errno::NOENT.into()),
        }
        Ok(())
    }

    pub(super) fn read_link(&self, node: NodeId, reply: &mut Reply<'_>) -> Answer {
        let target = self.engine.read_link(node)?;
        reply.bytes(target.as_encoded_bytes());
        Ok(())
    }

    pub(super) fn symlink(
        &self,
        call: &Call<'_>,
        name: &OsStr,
        target: &OsStr,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let new = NewNode::Symlink(OsString::from(target));
        self.make(call, name, (&new, 0o777), 0, reply).map(drop)
    }

    pub(super) fn mkdir(
        &self,
        call: &Call<'_>,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: &mut Reply<'_>,
    ) -> Answer {
        self.make(call, name, (&NewNode::Dir, mode), umask, reply)
            .map(drop)
    }

    pub(super) fn mknod(
        &self,
        call: &Call<'_>,
        name: &OsStr,
        (mode, rdev): (u32, u32),
        umask: u32,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let (major, minor) = unpack_device(rdev);
        let new = match FileKind::from_raw_mode(mode) {
            Some(FileKind::File) => NewNode::File,
            Some(FileKind::Fifo) => NewNode::Fifo,
            Some(FileKind::Socket) => NewNode::Socket,
            Some(FileKind::Char) => NewNode::Char(major, minor),
            Some(FileKind::Block) => NewNode::Block(major, minor),
            Some(FileKind::Dir | FileKind::Symlink) | None => return Err(Errno::INVAL.into()),
        };
        self.make(call, name, (&new, mode), umask, reply).map(drop)
    }

    pub(super) fn create(
        &self,
        call: &Call<'_>,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: &mut Reply<'_>,
    ) -> Answer {
        // Where opens are never sent, the kernel sends MKNOD from then on, and no RELEASE for each
        // new file.
        if self.agreed.no_open {
            return Err(Errno::NOSYS.into());
        }
        let node = self.make(call, name, (&NewNode::File, mode), umask, reply)?;
        self.made_open(node, reply);
        Ok(())
    }

    pub(super) fn tmpfile(
        &self,
        call: &Call<'_>,
        mode: u32,
        umask: u32,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let caller = caller(call.header, umask);
        let dir = node_of(call.header.node);
        let entry = call.act(|to| to.tmpfile(dir, mode & 0o7777, &caller))?;
        let node = entry.node;
        self.put_entry(entry, reply);
        self.made_open(node, reply);
        Ok(())
    }

    /// Answers the open of a file that was just created.
    fn made_open(&self, node: NodeId, reply: &mut Reply<'_>) {
        let mut handle = 0;
        if let Some(passthrough) = &self.passthrough {
            passthrough.created(node);
            handle = passthrough::COUNTED;
        }
        reply.open(handle, MADE, 0);
    }

    fn make(
        &self,
        call: &Call<'_>,
        name: &OsStr,
        (new, mode): (&NewNode, u32),
        umask: u32,
        reply: &mut Reply<'_>,
    ) -> Answer<NodeId> {
        let caller = caller(call.header, umask);
        let dir = node_of(call.header.node);
        let entry = call.act(|to| to.create(dir, name, new, mode & 0o7777, &caller))?;
        let node = entry.node;
        self.put_entry(entry, reply);
        Ok(node)
    }

    pub(super) fn rename(
        &self,
        call: &Call<'_>,
        (parent, name): (NodeId, &OsStr),
        (new_parent, new_name): (NodeId, &OsStr),
        flags: u32,
    ) -> Answer {
        let mode = match flags {
            0 => RenameMode::Replace,
            NOREPLACE => RenameMode::NoReplace,
            EXCHANGE => RenameMode::Exchange,
            WHITEOUT => RenameMode::Whiteout,
            _ => return Err(Errno::INVAL.into()),
        };
        call.act(|to| to.rename(parent, name, new_parent, new_name, mode))
    }
}

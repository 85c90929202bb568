//! Requests about bytes.

use rustix::io::Errno;
use vellum_union::engine::{NodeId, Whence};

use super::known::Call;
use super::{Answer, Ops};
use crate::passthrough::{Refused, node_of};
use crate::wire::flags::{WRITE_KILL_SUIDGID, open};
use crate::wire::reply::Reply;
use crate::wire::request::{CopyRange, Range};
use crate::wire::{Header, Opcode};

const ACCESS_MODE: u32 = 3;
const READ_ONLY: u32 = 0;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Ops {
    pub(super) fn open(&self, header: &Header, flags: u32, reply: &mut Reply<'_>) -> Answer {
        if self.agreed.no_open {
            return Err(Errno::NOSYS.into());
        }
        let write = flags & ACCESS_MODE != READ_ONLY;
        if let Some(passthrough) = &self.passthrough {
            let node = node_of(header.node);
            let known = !write || passthrough.is_written(node);
            return match passthrough.open(&self.engine, header.node, header.pid, write) {
                Ok(opened) => {
                    if !known && passthrough.is_written(node) {
                        // From here on it asks each time.
                        self.tell(node);
                    }
                    reply.open(opened.handle, opened.flags, opened.backing);
                    Ok(())
                }
                Err(Refused::LookAgain) => Err(Errno::STALE.into()),
                Err(Refused::Engine(error)) => Err(error.into()),
            };
        }
        self.engine.open_check(node_of(header.node), write)?;
        reply.open(0, open::KEEP_CACHE | open::NOFLUSH, 0);
        Ok(())
    }

    pub(super) fn read(&self, node: NodeId, range: Range, reply: &mut Reply<'_>) -> Answer {
        let room = reply.room(range.size_bytes as usize);
        let length = self.engine.read(node, range.offset, room)?;
        reply.took(length);
        Ok(())
    }

    pub(super) fn write(
        &self,
        call: &Call<'_>,
        offset: u64,
        data: &[u8],
        flags: u32,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let node = node_of(call.header.node);
        let clear = flags & WRITE_KILL_SUIDGID != 0;
        let length = call.act(|to| to.write(node, offset, data, clear))?;
        reply.count(length as u32);
        Ok(())
    }

    pub(super) fn seek(
        &self,
        node: NodeId,
        offset: u64,
        whence: u32,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let whence = match whence {
            SEEK_DATA => Whence::Data,
            SEEK_HOLE => Whence::Hole,
            _ => return Err(Errno::INVAL.into()),
        };
        reply.u64(self.engine.seek(node, whence, offset)?);
        Ok(())
    }

    pub(super) fn copy_range(
        &self,
        call: &Call<'_>,
        copy: &CopyRange,
        reply: &mut Reply<'_>,
    ) -> Answer {
        if copy.flags != 0 {
            return Err(Errno::INVAL.into());
        }
        // The older reply counts in 32 bits.
        let length = copy.length_bytes.min(1 << 30);
        let from = (node_of(call.header.node), copy.from_offset);
        let to = (node_of(copy.to), copy.to_offset);
        let copied = call.act(|act| act.copy_range(from.0, from.1, to.0, to.1, length))?;
        match call.header.opcode == Opcode::CopyFileRange64 as u32 {
            true => reply.u64(copied),
            false => reply.count(copied as u32),
        }
        Ok(())
    }
}

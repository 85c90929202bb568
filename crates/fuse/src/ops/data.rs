//! Requests about bytes.

use rustix::io::Errno;
use vellum_union::engine::{NodeId, Whence};

use super::known::Call;
use super::{Answer, Ops};
use crate::passthrough::{Open, Refused, node_of};
use crate::wire::Opcode;
use crate::wire::flags::{WRITE_KILL_SUIDGID, open};
use crate::wire::reply::Reply;
use crate::wire::request::{CopyRange, Range};

const ACCESS_MODE: u32 = 3;
const READ_ONLY: u32 = 0;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// What a WRITE asks for.
pub(super) struct Written<'a> {
    pub offset: u64,
    pub data: &'a [u8],
    pub flags: u32,
    pub append: bool,
}

impl Ops {
    pub(super) fn open(&self, call: &Call<'_>, flags: u32, reply: &mut Reply<'_>) -> Answer {
        if self.agreed.no_open {
            return Err(Errno::NOSYS.into());
        }
        let write = flags & ACCESS_MODE != READ_ONLY;
        let (wire, pid) = (call.header.node, call.header.pid);
        let node = node_of(wire);
        self.engine.open_check(node, write)?;
        let Some(passthrough) = &self.passthrough else {
            reply.open(0, open::KEEP_CACHE | open::NOFLUSH, 0);
            return Ok(());
        };
        loop {
            match passthrough.open(&self.engine, wire, pid, write) {
                Ok(Open::Answered(opened)) => {
                    reply.open(opened.handle, opened.flags, opened.backing);
                    return Ok(());
                }
                Ok(Open::CopyUpFirst) => call.act(|to| to.copy_data_up(node))?,
                Err(Refused::LookAgain) => return Err(Errno::STALE.into()),
                Err(Refused::Engine(error)) => return Err(error.into()),
            }
        }
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
        written: &Written<'_>,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let node = node_of(call.header.node);
        let clear = written.flags & WRITE_KILL_SUIDGID != 0;
        let at = |offset| call.act(|to| to.write(node, offset, written.data, clear));
        let appended = match &self.passthrough {
            Some(passthrough) if written.append => {
                passthrough.append(node, || at(self.engine.attr(node)?.size_bytes))
            }
            _ => None,
        };
        let length = appended.unwrap_or_else(|| at(written.offset))?;
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

//! A request and its answer as one line, for `-d` and `VELLUM_LOG=debug`.

use std::fmt::{self, Display, Formatter};

use rustix::io::Errno;

use crate::wire::{Op, Opcode, Request};

/// The request: the operation, its caller, its node, and the name, offset or size that identifies
/// it.
pub(super) struct Asked<'a>(pub &'a Request<'a>);

/// The answer.
pub(super) struct Answered<'a>(pub &'a Result<(), Errno>);

impl Display for Asked<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let header = &self.0.header;
        match Opcode::from_number(header.opcode) {
            Some(op) => write!(f, "{}", op.name())?,
            None => write!(f, "operation {}", header.opcode)?,
        }
        write!(f, " node {}", header.node)?;
        match &self.0.op {
            Op::Lookup { name }
            | Op::Unlink { name }
            | Op::RmDir { name }
            | Op::RemoveXattr { name }
            | Op::GetXattr { name, .. } => write!(f, " {name:?}"),
            Op::Symlink { name, target } => write!(f, " {name:?} to {target:?}"),
            Op::MkNod { name, mode, .. }
            | Op::MkDir { name, mode, .. }
            | Op::Create { name, mode, .. } => write!(f, " {name:?} mode {mode:o}"),
            Op::Rename {
                name,
                new_parent,
                new_name,
                ..
            } => write!(f, " {name:?} to node {new_parent} {new_name:?}"),
            Op::Link { node, name } => write!(f, " {name:?} for node {node}"),
            Op::SetXattr { name, value, .. } => write!(f, " {name:?} of {} bytes", value.len()),
            Op::Open { flags } => write!(f, " flags {flags:#o}"),
            Op::Read(range) | Op::ReadDir(range) | Op::ReadDirPlus(range) => {
                write!(f, " {} bytes at {}", range.size_bytes, range.offset)
            }
            Op::Write { offset, data, .. } => write!(f, " {} bytes at {offset}", data.len()),
            Op::FAllocate { offset, length, .. } => write!(f, " {length} bytes at {offset}"),
            Op::LSeek { offset, .. } => write!(f, " from {offset}"),
            _ => Ok(()),
        }?;
        write!(f, " by {}:{}", header.uid, header.gid)
    }
}

impl Display for Answered<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(()) => write!(f, "done"),
            Err(Errno::NOSYS) => write!(f, "not supported; the kernel won't ask again"),
            // libc has no name for it, and its message says more.
            Err(errno) => write!(f, "{}", std::io::Error::from(*errno)),
        }
    }
}

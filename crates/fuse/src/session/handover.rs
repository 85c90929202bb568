//! Passes a live mount from one process to the next: the connection, its negotiated settings, and
//! the engine's legacy.
//!
//! The kernel keeps requests as long as any process has the device open, so a server can stop
//! between two of them and another can continue. [`Handover`] is all that the next one needs, as
//! descriptors: a record (in memory), the device, and the files without a name. They are sent over
//! a Unix socket, or inherited by a child.
//!
//! It must not know what is in the engine's part. Not included: a supervisor that survives a crash
//! of the server (`docs/decisions/0032-a-successor.md`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use vellum_union::engine::Legacy;

use super::place::Left;
use crate::negotiate::Agreed;
use crate::wire::reply;
use crate::{Error, Result};

const MAGIC: &[u8; 17] = b"vellum session 1\n";
/// The kernel takes 253 descriptors at a time.
const AT_A_TIME: usize = 200;
/// Usually more than a process can have open.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// A mounted union between two servers.
///
/// Processes that use the mount wait meanwhile. Dropping it ends the mount.
#[derive(Debug)]
pub struct Handover {
    pub(super) device: OwnedFd,
    pub(super) agreed: Agreed,
    pub(super) left: Left,
    pub(super) legacy: Legacy,
}

fn failed(what: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| vellum_sys::Error::new(what, "the successor", errno).into()
}

fn damaged() -> Error {
    Error::Handover {
        why: String::from("the data received is not a handover of this version"),
    }
}

impl Handover {
    /// Returns it as descriptors, for [`Handover::from_descriptors`]. Their order matters.
    pub fn into_descriptors(self) -> Result<Vec<OwnedFd>> {
        let mut record = MAGIC.to_vec();
        let init = &self.agreed.reply;
        for number in [
            u64::from(init.minor),
            u64::from(init.max_readahead_bytes),
            init.flags,
            u64::from(init.max_background),
            u64::from(init.congestion_threshold),
            u64::from(init.max_write_bytes),
            u64::from(init.time_granularity_ns),
            u64::from(init.max_pages),
            u64::from(init.max_stack_depth),
            self.left.mount_id,
            self.left.connection,
            u64::from(self.left.by_fusermount),
            self.left.target.as_os_str().len() as u64,
        ] {
            record.extend(number.to_le_bytes());
        }
        record.extend(self.left.target.as_os_str().as_bytes());
        record.extend(&self.legacy.record);
        let memory = rustix::fs::memfd_create("vellum-handover", MemfdFlags::CLOEXEC);
        let memory = File::from(memory.map_err(failed("write the record for"))?);
        let written = memory.write_all_at(&record, 0);
        written.map_err(|e| vellum_sys::Error::new("write the record for", "the successor", e))?;
        let mut all = vec![memory.into(), self.device];
        all.extend(self.legacy.files);
        Ok(all)
    }

    /// Takes what [`Handover::into_descriptors`] returned. Errors: [`Error::Handover`] if it is
    /// something else.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> Result<Handover> {
        let mut descriptors = descriptors.into_iter();
        let (Some(memory), Some(device)) = (descriptors.next(), descriptors.next()) else {
            return Err(damaged());
        };
        // The record was written at offsets, so the file position is still the start, unless
        // another process has read it; read from the start in any case.
        rustix::fs::seek(&memory, rustix::fs::SeekFrom::Start(0))
            .map_err(failed("read the record of"))?;
        let mut record = Vec::new();
        let read = File::from(memory).read_to_end(&mut record);
        read.map_err(|e| vellum_sys::Error::new("read the record of", "the predecessor", e))?;
        let rest = record.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (numbers, rest) = rest.split_at_checked(13 * 8).ok_or_else(damaged)?;
        let mut numbers = numbers.chunks_exact(8).map(|bytes| {
            let bytes = bytes.try_into().unwrap_or_default();
            u64::from_le_bytes(bytes)
        });
        let mut next = || numbers.next().ok_or_else(damaged);
        fn small<T: TryFrom<u64>>(number: Result<u64>) -> Result<T> {
            T::try_from(number?).map_err(|_| damaged())
        }
        let reply = reply::Init {
            minor: small(next())?,
            max_readahead_bytes: small(next())?,
            flags: next()?,
            max_background: small(next())?,
            congestion_threshold: small(next())?,
            max_write_bytes: small(next())?,
            time_granularity_ns: small(next())?,
            max_pages: small(next())?,
            max_stack_depth: small(next())?,
        };
        let (mount_id, connection) = (next()?, next()?);
        let by_fusermount = next()? != 0;
        let (target, record) = rest.split_at_checked(small(next())?).ok_or_else(damaged)?;
        Ok(Handover {
            device,
            agreed: Agreed::of(reply),
            left: Left {
                target: PathBuf::from(OsStr::from_bytes(target)),
                mount_id,
                connection,
                by_fusermount,
            },
            legacy: Legacy {
                record: record.to_vec(),
                files: descriptors.collect(),
            },
        })
    }

    /// Sends it over a connected Unix stream socket, to [`Handover::receive`].
    pub fn send(self, socket: impl AsFd) -> Result<()> {
        let descriptors = self.into_descriptors()?;
        let count = (descriptors.len() as u64).to_le_bytes();
        send_some(socket.as_fd(), &count, &[])?;
        for some in descriptors.chunks(AT_A_TIME) {
            let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            send_some(socket.as_fd(), &[some.len() as u8], &some)?;
        }
        Ok(())
    }

    /// Waits for what [`Handover::send`] sends.
    pub fn receive(socket: impl AsFd) -> Result<Handover> {
        let mut count = [0; 8];
        let mut descriptors = Vec::new();
        for byte in &mut count {
            receive_some(socket.as_fd(), std::slice::from_mut(byte), &mut descriptors)?;
        }
        let count = u64::from_le_bytes(count);
        if count > DESCRIPTORS_MAX || !descriptors.is_empty() {
            return Err(damaged());
        }
        while (descriptors.len() as u64) < count {
            let (before, mut byte) = (descriptors.len(), [0]);
            receive_some(socket.as_fd(), &mut byte, &mut descriptors)?;
            if descriptors.len() != before + usize::from(byte[0]) {
                return Err(Error::Handover {
                    why: String::from("descriptors were lost: is the open-file limit too low?"),
                });
            }
        }
        Handover::from_descriptors(descriptors)
    }
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_A_TIME))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let slices = [IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(socket, &slices, &mut ancillary, SendFlags::NOSIGNAL);
    match sent.map_err(failed("hand the mount over to"))? == bytes.len() {
        true => Ok(()),
        // So few bytes are sent completely or not at all.
        false => Err(damaged()),
    }
}

fn receive_some(socket: BorrowedFd<'_>, bytes: &mut [u8], into: &mut Vec<OwnedFd>) -> Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_A_TIME))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(bytes)];
    let received =
        rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    if received.map_err(failed("receive the mount from"))?.bytes == 0 {
        return Err(Error::Handover {
            why: String::from("the previous server closed the connection"),
        });
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            into.extend(received);
        }
    }
    Ok(())
}

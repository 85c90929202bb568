//! The device as a stream of messages: one read is a request, one write its reply.
//!
//! Each worker has its own descriptor, cloned from the session's, so that the kernel tracks its
//! requests separately, and its own buffers. No message is copied in this process and no lock is
//! taken here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::negotiate::MAX_TRANSFER_BYTES;
use crate::wire::Header;

/// Space for what precedes and follows the data of the largest request.
const ROOM_BESIDE_DATA_BYTES: usize = 8192;
const PAGE_BYTES: usize = 4096;
/// Length of what precedes a WRITE's data.
const BEFORE_WRITTEN_BYTES: usize = Header::BYTES + 40;

/// One descriptor of a connection.
#[derive(Debug)]
pub struct Channel {
    device: OwnedFd,
}

/// The result of reading the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A request of this many bytes.
    Request(usize),
    /// Nothing: another worker took it, or the caller gave up.
    Nothing,
    /// The file system was unmounted, or the connection was aborted.
    Gone,
}

impl Channel {
    /// Takes over a descriptor.
    pub fn new(device: OwnedFd) -> Channel {
        Channel { device }
    }

    /// Returns a new descriptor of the same connection.
    pub fn another(&self) -> vellum_sys::Result<Channel> {
        vellum_sys::fuse_dev::clone_of(&self.device).map(Channel::new)
    }

    /// Returns the descriptor and gives up the channel.
    pub fn into_device(self) -> OwnedFd {
        self.device
    }

    /// Returns the descriptor.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Waits for a request.
    pub fn receive(&self, buffer: &mut Buffer) -> rustix::io::Result<Received> {
        match rustix::io::read(&self.device, buffer.whole()) {
            Ok(length) => Ok(Received::Request(length)),
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => Ok(Received::Nothing),
            Err(Errno::NODEV | Errno::CONNABORTED) => Ok(Received::Gone),
            Err(other) => Err(other),
        }
    }

    /// Sends a reply. Returns false if nothing waits for it any more: the caller was killed, or the
    /// connection is gone.
    pub fn send(&self, reply: &[u8]) -> rustix::io::Result<bool> {
        loop {
            match rustix::io::write(&self.device, reply) {
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => return Ok(false),
                Err(other) => return Err(other),
            }
        }
    }

    /// Sends a message that the kernel did not ask for.
    pub fn notify(&self, message: &[u8]) -> rustix::io::Result<()> {
        loop {
            match rustix::io::write(&self.device, message) {
                Err(Errno::INTR) => {}
                other => return other.map(drop),
            }
        }
    }
}

/// Where a worker's requests arrive. Aligned so that the data of a WRITE begins at a page.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Creates a buffer for the largest request. Its pages are allocated only when a request needs
    /// them.
    pub fn new() -> Buffer {
        let bytes = vec![0; MAX_TRANSFER_BYTES as usize + ROOM_BESIDE_DATA_BYTES];
        let at = bytes.as_ptr().addr() + BEFORE_WRITTEN_BYTES;
        Buffer {
            start: at.next_multiple_of(PAGE_BYTES) - at,
            bytes,
        }
    }

    fn whole(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// Returns the first `length` bytes.
    pub fn first(&self, length: usize) -> &[u8] {
        &self.bytes[self.start..self.start + length]
    }
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer::new()
    }
}

/// Makes a buffer for the largest reply.
pub fn reply_buffer() -> Vec<u8> {
    vec![0; MAX_TRANSFER_BYTES as usize + ROOM_BESIDE_DATA_BYTES]
}

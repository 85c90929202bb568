//! The FUSE device's own calls, and how a process that serves a file system protects itself from
//! its own writeback.
//!
//! The messages on the device are not interpreted here. Numbers are from the kernel's
//! `include/uapi/linux/fuse.h`; they are ABI.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::{Error, Result};

/// The device's path.
pub const DEVICE: &str = "/dev/fuse";

const IOC_CLONE: libc::c_ulong = 0x8004_e500;
const IOC_BACKING_OPEN: libc::c_ulong = 0x4010_e501;
const IOC_BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Opens the device: a connection to be mounted.
pub fn open() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|e| Error::new("open", DEVICE, e))
}

/// Opens the device once more for the mounted connection of `session`, with its own queue of
/// requests being processed.
pub fn clone_of(session: impl AsFd) -> Result<OwnedFd> {
    let new = open()?;
    let old = session.as_fd().as_raw_fd() as u32;
    // SAFETY: FUSE_DEV_IOC_CLONE reads one u32 from the pointer, which lives through the call; both
    // descriptors are open.
    let done = unsafe { libc::ioctl(new.as_raw_fd(), IOC_CLONE, &raw const old) };
    match done {
        0 => Ok(new),
        _ => Err(last("share the connection of", DEVICE)),
    }
}

/// Registers `file` as a backing file for opens on the connection, and returns its id.
///
/// The kernel keeps its own reference: `file` may be closed. Errors: EPERM without CAP_SYS_ADMIN in
/// the first user namespace; ELOOP if the file's own file system is stacked too deep.
pub fn open_backing(session: impl AsFd, file: &File) -> Result<i32> {
    let map = BackingMap {
        fd: file.as_raw_fd(),
        flags: 0,
        padding: 0,
    };
    // SAFETY: FUSE_DEV_IOC_BACKING_OPEN reads a struct fuse_backing_map from the pointer, which
    // lives through the call.
    let id = unsafe {
        libc::ioctl(
            session.as_fd().as_raw_fd(),
            IOC_BACKING_OPEN,
            &raw const map,
        )
    };
    match id {
        id if id > 0 => Ok(id),
        _ => Err(last("register a backing file at", DEVICE)),
    }
}

/// Drops an id that [`open_backing`] returned. Files opened with it continue to work.
pub fn close_backing(session: impl AsFd, id: i32) -> Result<()> {
    let id = id as u32;
    // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads one u32 from the pointer, which lives through the
    // call.
    let done = unsafe {
        libc::ioctl(
            session.as_fd().as_raw_fd(),
            IOC_BACKING_CLOSE,
            &raw const id,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(last("drop a backing file at", DEVICE)),
    }
}

/// Marks this process (and what it starts) as an I/O flusher: its own memory must not wait for its
/// own writes. Errors: EPERM without CAP_SYS_RESOURCE; EINVAL before Linux 5.6.
pub fn serve_writeback() -> Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: prctl(PR_SET_IO_FLUSHER) takes numbers only; unused arguments must be zero.
    let done = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    match done {
        0 => Ok(()),
        _ => Err(last("become an I/O flusher for", "the page cache")),
    }
}

fn last(op: &'static str, path: impl AsRef<Path>) -> Error {
    Error::new(op, path.as_ref(), std::io::Error::last_os_error())
}

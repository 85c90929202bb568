//! File handles: what a file system calls an inode for good, across renames and remounts.
//!
//! `name_to_handle_at` needs no privilege; opening by handle does, and is not here. A handle is compared, stored and
//! printed, never looked into.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::{Error, Result};

/// A handle as the file system gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileHandle {
    /// The file system's own type of handle.
    pub kind: i32,
    /// At most 128 bytes.
    pub bytes: Vec<u8>,
}

const MAX_BYTES: usize = 128;

#[repr(C)]
struct Buffer {
    handle_bytes: u32,
    handle_type: i32,
    bytes: [u8; MAX_BYTES],
}

/// Returns the handle of an open file or directory (an `O_PATH` descriptor will do), or `None` if its file system has
/// none that fits 128 bytes.
pub fn of(fd: impl AsFd) -> Result<Option<FileHandle>> {
    let fd = fd.as_fd();
    let mut buffer = Buffer {
        handle_bytes: MAX_BYTES as u32,
        handle_type: 0,
        bytes: [0; MAX_BYTES],
    };
    let mut mount = 0;
    // SAFETY: the empty path is a NUL-terminated literal; `buffer` begins with the two fields of struct file_handle and
    // has behind them as many bytes as `handle_bytes` says; the kernel writes no further. All live through the call.
    let done = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut buffer).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if done == 0 {
        let length = (buffer.handle_bytes as usize).min(MAX_BYTES);
        return Ok(Some(FileHandle {
            kind: buffer.handle_type,
            bytes: buffer.bytes[..length].to_vec(),
        }));
    }
    let last = std::io::Error::last_os_error();
    match Errno::from_io_error(&last) {
        Some(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS) => Ok(None),
        errno => Err(Error::at(
            "ask for the handle of",
            fd,
            "",
            errno.unwrap_or(Errno::IO),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_the_inode_s_and_not_the_name_s() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a");
        let file = std::fs::File::create(&path).unwrap();
        let Some(handle) = of(&file).unwrap() else {
            return;
        };
        std::fs::rename(&path, tmp.path().join("b")).unwrap();
        let again = std::fs::File::open(tmp.path().join("b")).unwrap();
        assert_eq!(of(&again).unwrap(), Some(handle.clone()));
        let other = std::fs::File::create(&path).unwrap();
        assert_ne!(of(&other).unwrap(), Some(handle));
    }
}

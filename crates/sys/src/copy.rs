//! Copies the content of one file into another as cheaply as the file systems allow.
//!
//! In order: share the blocks (`FICLONE`), let the kernel copy each run of data and leave the holes
//! (`copy_file_range` between `SEEK_DATA` and `SEEK_HOLE`), read and write. Attributes are the
//! caller's business.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{Error, Result};

/// How the content was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Blocks are shared with the source until one side writes.
    Cloned,
    /// The kernel copied the data, holes were kept.
    Ranges,
    /// Read and written through this process, holes were kept.
    ReadWrite,
}

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// How the content was copied; the least efficient way used for any part.
    pub how: How,
    /// Size of the source in bytes, holes included.
    pub size_bytes: u64,
    /// Bytes that were actually moved: 0 if cloned.
    pub bytes: u64,
}

/// Makes `dst`, an empty file open for writing, hold the same bytes and holes as `src`.
///
/// Not durable on return. After an error `dst` holds part of the content. The file offsets of both
/// are unspecified afterwards.
pub fn copy_data(src: impl AsFd, dst: impl AsFd) -> Result<Copied> {
    let (src, dst) = (src.as_fd(), dst.as_fd());
    let size_bytes = crate::stat::stat_fd(src)?.size_bytes;
    if size_bytes == 0 {
        return Ok(Copied {
            how: How::Ranges,
            size_bytes,
            bytes: 0,
        });
    }
    if rustix::fs::ioctl_ficlone(dst, src).is_ok() {
        return Ok(Copied {
            how: How::Cloned,
            size_bytes,
            bytes: 0,
        });
    }
    copy_apart(src, dst, size_bytes)
}

/// The result of trying to share blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// The whole content is shared.
    Yes,
    /// This file's blocks can't be shared; the copy is empty.
    NotThis,
    /// No file's blocks can be shared here; the copy is empty.
    NotHere,
}

/// Makes `dst`, an empty file open for writing, share the blocks of `src` until one of the two is
/// written to.
///
/// File systems share run by run and may fail midway; what was shared until then is cut off again.
/// Errors: cutting it off failed, and `dst` holds part of `src`.
pub fn share_blocks(src: impl AsFd, dst: impl AsFd) -> Result<Shared> {
    let refused = match rustix::fs::ioctl_ficlone(&dst, &src) {
        Ok(()) => return Ok(Shared::Yes),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS | Errno::INVAL) => {
            Shared::NotHere
        }
        // It is locked, swap, or too much for the disk: an ordinary copy will report which.
        Err(_) => Shared::NotThis,
    };
    rustix::fs::ftruncate(&dst, 0).map_err(|e| Error::at("empty", dst.as_fd(), "", e))?;
    Ok(refused)
}

/// As [`copy_data`], for callers that already know that blocks can't be shared. `size_bytes` is the
/// size of `src`.
pub fn copy_apart(src: impl AsFd, dst: impl AsFd, size_bytes: u64) -> Result<Copied> {
    let (src, dst) = (src.as_fd(), dst.as_fd());
    copy_ranges(src, dst, size_bytes).map_err(|e| Error::at("copy data into", dst, "", e))
}

/// Smaller files are copied as one run.
const ONE_BLOCK_BYTES: u64 = 4096;

fn copy_ranges(
    src: BorrowedFd<'_>,
    dst: BorrowedFd<'_>,
    size_bytes: u64,
) -> rustix::io::Result<Copied> {
    let mut copied = Copied {
        how: How::Ranges,
        size_bytes,
        bytes: 0,
    };
    // A file that fits one block of most file systems has no hole worth looking for: it would
    // consist of nothing else.
    if size_bytes <= ONE_BLOCK_BYTES {
        copy_run(src, dst, 0, size_bytes, &mut copied)?;
        if copied.bytes < size_bytes {
            rustix::fs::ftruncate(dst, size_bytes)?;
        }
        return Ok(copied);
    }
    let mut at = 0;
    while at < size_bytes {
        let start = match rustix::fs::seek(src, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(e) => return Err(e),
        };
        let end = match rustix::fs::seek(src, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size_bytes),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => size_bytes,
            Err(e) => return Err(e),
        };
        copy_run(src, dst, start, end, &mut copied)?;
        at = end.max(start + 1);
    }
    rustix::fs::ftruncate(dst, size_bytes)?;
    Ok(copied)
}

/// Copies one run of data. A source that shrinks during the copy ends the run early and leaves a
/// hole.
fn copy_run(
    src: BorrowedFd<'_>,
    dst: BorrowedFd<'_>,
    start: u64,
    end: u64,
    copied: &mut Copied,
) -> rustix::io::Result<()> {
    const LARGEST_CALL: u64 = 1 << 30;
    let (mut from, mut to) = (start, start);
    while copied.how == How::Ranges && from < end {
        let want = (end - from).min(LARGEST_CALL) as usize;
        match rustix::fs::copy_file_range(src, Some(&mut from), dst, Some(&mut to), want) {
            Ok(0) => return Ok(()),
            Ok(n) => copied.bytes += n as u64,
            Err(Errno::INTR) => {}
            // The file systems can't do it together, or not at all: move the bytes ourselves from
            // here on.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                copied.how = How::ReadWrite;
            }
            Err(e) => return Err(e),
        }
    }
    if from >= end {
        return Ok(());
    }
    let mut buf = vec![0; 256 * 1024];
    while from < end {
        let want = (end - from).min(buf.len() as u64) as usize;
        let n = match rustix::io::pread(src, &mut buf[..want], from) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        let mut done = 0;
        while done < n {
            match rustix::io::pwrite(dst, &buf[done..n], from + done as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(k) => done += k,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        from += n as u64;
        copied.bytes += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn content_and_holes_arrive() {
        let tmp = tempfile::tempdir().unwrap();
        let mut src = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(tmp.path().join("src"))
            .unwrap();
        src.write_all(b"head").unwrap();
        src.seek(std::io::SeekFrom::Start(8 << 20)).unwrap();
        src.write_all(b"middle").unwrap();
        src.set_len(32 << 20).unwrap();
        let mut dst = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(tmp.path().join("dst"))
            .unwrap();
        let copied = copy_data(&src, &dst).unwrap();
        assert_eq!(copied.size_bytes, 32 << 20);
        assert!(copied.bytes < 1 << 20, "holes were copied: {copied:?}");
        let (mut a, mut b) = (Vec::new(), Vec::new());
        src.rewind().unwrap();
        src.read_to_end(&mut a).unwrap();
        dst.rewind().unwrap();
        dst.read_to_end(&mut b).unwrap();
        assert!(a == b);
        use std::os::unix::fs::MetadataExt;
        assert!(dst.metadata().unwrap().blocks() < 2048);
    }

    #[test]
    fn copies_cross_file_systems() {
        let tmp = tempfile::tempdir().unwrap();
        let Ok(mut dst) = tempfile::tempfile_in("/dev/shm") else {
            return;
        };
        std::fs::write(tmp.path().join("src"), vec![5; 700_000]).unwrap();
        let copied = copy_data(File::open(tmp.path().join("src")).unwrap(), &dst).unwrap();
        assert_eq!(copied.bytes, 700_000);
        let mut got = Vec::new();
        dst.rewind().unwrap();
        dst.read_to_end(&mut got).unwrap();
        assert!(got == vec![5; 700_000]);
    }

    #[test]
    fn what_was_shared_before_a_failure_is_cut_off() {
        let tmp = tempfile::tempdir().unwrap();
        // As a file system that fails midway leaves it.
        let halfway = || {
            let mut dst = tempfile::tempfile_in(tmp.path()).unwrap();
            dst.write_all(b"half of it").unwrap();
            dst
        };
        let dst = halfway();
        let directory = File::open(tmp.path()).unwrap();
        assert_eq!(share_blocks(directory, &dst).unwrap(), Shared::NotThis);
        assert_eq!(dst.metadata().unwrap().len(), 0);
        let Ok(src) = tempfile::tempfile_in("/dev/shm") else {
            return;
        };
        let dst = halfway();
        assert_eq!(share_blocks(src, &dst).unwrap(), Shared::NotHere);
        assert_eq!(dst.metadata().unwrap().len(), 0);
    }

    #[test]
    fn an_empty_file_copies_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let src = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(tmp.path().join("src"))
            .unwrap();
        let dst = File::create(tmp.path().join("dst")).unwrap();
        assert_eq!(copy_data(&src, &dst).unwrap().bytes, 0);
    }
}

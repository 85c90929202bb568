//! The bytes of open files: reading and writing at an offset, holes, disk space, and durability.
//!
//! Calls are repeated when a signal interrupts them and when a transfer stops half-way, so a short
//! count means the end of the file and nothing else.

use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::{Error, Result};

pub use rustix::fs::FallocateFlags as AllocateFlags;

/// Reads into `buffer` from `offset`, as much as there is; a shorter count than requested is the
/// end of the file.
pub fn read_at(file: impl AsFd, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let fd = file.as_fd();
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::at("read", fd, "", errno)),
        }
    }
    Ok(done)
}

/// Writes all of `bytes` at `offset`. After an error, some of them may be written.
pub fn write_at(file: impl AsFd, bytes: &[u8], offset: u64) -> Result<()> {
    let count = write_some_at(&file, bytes, offset)?;
    match count == bytes.len() {
        true => Ok(()),
        // Write the rest again, to learn why it was not written.
        false => {
            let rest = write_some_at(&file, &bytes[count..], offset + count as u64)?;
            match count + rest == bytes.len() {
                true => Ok(()),
                false => Err(Error::at("write", file.as_fd(), "", Errno::NOSPC)),
            }
        }
    }
}

/// Writes `bytes` at `offset` and returns how many were written: fewer only if the file system
/// stopped half-way.
pub fn write_some_at(file: impl AsFd, bytes: &[u8], offset: u64) -> Result<usize> {
    let fd = file.as_fd();
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(fd, &bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(errno) => return Err(Error::at("write", fd, "", errno)),
        }
    }
    Ok(done)
}

/// Truncates a file, or extends it by a hole.
pub fn truncate(file: impl AsFd, size_bytes: u64) -> Result<()> {
    let fd = file.as_fd();
    rustix::fs::ftruncate(fd, size_bytes)
        .map_err(|errno| Error::at("set the size of", fd, "", errno))
}

/// Changes the disk space of a file: see fallocate(2) for what each mode does.
///
/// Errors: EOPNOTSUPP where the file system can't.
pub fn allocate(file: impl AsFd, flags: AllocateFlags, offset: u64, length: u64) -> Result<()> {
    let fd = file.as_fd();
    loop {
        match rustix::fs::fallocate(fd, flags, offset, length) {
            Err(Errno::INTR) => {}
            other => return other.map_err(|errno| Error::at("allocate space in", fd, "", errno)),
        }
    }
}

/// Punches a hole of `length` bytes; the size stays. Errors: EOPNOTSUPP.
pub fn punch_hole(file: impl AsFd, offset: u64, length: u64) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    allocate(file, flags, offset, length)
}

/// Returns where data begins at or after `offset`, or `None` if there is none up to the end.
///
/// Where holes are not known, everything is data.
pub fn seek_data(file: impl AsFd, offset: u64) -> Result<Option<u64>> {
    match rustix::fs::seek(&file, SeekFrom::Data(offset)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            let size_bytes = crate::stat::stat_fd(&file)?.size_bytes;
            Ok((offset < size_bytes).then_some(offset))
        }
        Err(errno) => Err(Error::at("look for data in", file.as_fd(), "", errno)),
    }
}

/// Returns where a hole begins at or after `offset`; the end of the file counts as one. `None` if
/// `offset` is not before the end.
pub fn seek_hole(file: impl AsFd, offset: u64) -> Result<Option<u64>> {
    match rustix::fs::seek(&file, SeekFrom::Hole(offset)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            let size_bytes = crate::stat::stat_fd(&file)?.size_bytes;
            Ok((offset < size_bytes).then_some(size_bytes))
        }
        Err(errno) => Err(Error::at("look for a hole in", file.as_fd(), "", errno)),
    }
}

/// Makes a file's bytes durable, and its size, but not its times (fdatasync).
pub fn sync_data(file: impl AsFd) -> Result<()> {
    let fd = file.as_fd();
    rustix::fs::fdatasync(fd).map_err(|errno| Error::at("sync", fd, "", errno))
}

/// Makes `to`, an empty file, share all blocks of `from`; false where the file systems can't (then
/// nothing happened).
pub fn clone(from: impl AsFd, to: impl AsFd) -> bool {
    // Whatever the reason, the bytes can still be copied, and that reports any real error.
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Copies up to `length` bytes from one file into another within the kernel; returns how many, 0 at
/// the source's end.
///
/// Errors: EXDEV, EOPNOTSUPP, ENOSYS or EINVAL where the file systems can't do it together;
/// ETXTBSY, ENOSPC.
pub fn copy_range(
    from: impl AsFd,
    from_offset: u64,
    to: impl AsFd,
    to_offset: u64,
    length: usize,
) -> Result<usize> {
    let (mut at, mut into) = (from_offset, to_offset);
    loop {
        match rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), length) {
            Err(Errno::INTR) => {}
            other => {
                return other.map_err(|errno| Error::at("copy data into", to.as_fd(), "", errno));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn holes_are_found_and_made() {
        let tmp = tempfile::tempdir().unwrap();
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(tmp.path().join("f"))
            .unwrap();
        write_at(&file, &[1; 65536], 1 << 20).unwrap();
        truncate(&file, 4 << 20).unwrap();
        assert_eq!(seek_data(&file, 0).unwrap(), Some(1 << 20));
        assert_eq!(seek_hole(&file, 1 << 20).unwrap(), Some((1 << 20) + 65536));
        assert_eq!(seek_data(&file, 2 << 20).unwrap(), None);
        assert_eq!(seek_hole(&file, 4 << 20).unwrap(), None);
        if let Err(error) = punch_hole(&file, 1 << 20, 65536) {
            assert!(error.is_unsupported(), "{error}");
            return;
        }
        assert_eq!(seek_data(&file, 0).unwrap(), None);
        let mut buffer = vec![9; 65540];
        assert_eq!(read_at(&file, &mut buffer, 1 << 20).unwrap(), 65540);
        assert!(buffer.iter().all(|&byte| byte == 0));
        assert_eq!(read_at(&file, &mut buffer, (4 << 20) - 3).unwrap(), 3);
    }

    #[test]
    fn ranges_are_copied() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("from"), "0123456789").unwrap();
        let from = File::open(tmp.path().join("from")).unwrap();
        let to = File::create(tmp.path().join("to")).unwrap();
        match copy_range(&from, 2, &to, 1, 5) {
            Ok(count) => assert_eq!(count, 5),
            Err(error) => return assert!(error.is_unsupported() || error.is_cross_device()),
        }
        assert_eq!(std::fs::read(tmp.path().join("to")).unwrap(), b"\x0023456");
    }
}

//! The flags of `chattr` and of `fsxattr`: what a file system does with an inode beyond its mode.

use std::os::fd::AsFd;

use rustix::fs::IFlags;
use rustix::io::Errno;

use crate::{Error, Result};

/// `FS_IMMUTABLE_FL`: no process can change it.
pub const IMMUTABLE: u32 = IFlags::IMMUTABLE.bits();
/// `FS_APPEND_FL`: it is append-only.
pub const APPEND_ONLY: u32 = IFlags::APPEND.bits();
/// `FS_NODUMP_FL`: backups leave it out.
pub const NO_DUMP: u32 = IFlags::NODUMP.bits();
/// `FS_NOATIME_FL`: reading does not change the access time.
pub const NO_ATIME: u32 = IFlags::NOATIME.bits();
/// `FS_NOCOW_FL`: written in place where the file system copies on write. It can only be set on an
/// empty file.
pub const NO_COPY: u32 = 0x0080_0000;
/// `FS_SYNC_FL`: writes are synchronous.
pub const SYNC: u32 = 0x8;

/// Returns the `FS_*_FL` flags of an open file or directory. Errors: ENOTTY, EOPNOTSUPP where there
/// are none.
pub fn get(fd: impl AsFd) -> Result<u32> {
    let fd = fd.as_fd();
    rustix::fs::ioctl_getflags(fd)
        .map(|flags| flags.bits())
        .map_err(|errno| Error::at("read the flags of", fd, "", errno))
}

/// Sets all flags of an open file or directory: flags not given are cleared.
///
/// Errors: EPERM without CAP_LINUX_IMMUTABLE for two of them; EOPNOTSUPP for some or all, depending
/// on the file system.
pub fn set(fd: impl AsFd, flags: u32) -> Result<()> {
    let fd = fd.as_fd();
    let flags = IFlags::from_bits_retain(flags);
    match rustix::fs::ioctl_setflags(fd, flags) {
        Err(Errno::NOTTY) => Err(Errno::OPNOTSUPP),
        other => other,
    }
    .map_err(|errno| Error::at("set the flags of", fd, "", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_set_and_read() {
        let tmp = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(tmp.path().join("f")).unwrap();
        let Ok(before) = get(&file) else { return };
        set(&file, before | NO_DUMP).unwrap();
        assert_eq!(get(&file).unwrap() & NO_DUMP, NO_DUMP);
        set(&file, before).unwrap();
        assert_eq!(get(&file).unwrap(), before);
    }
}

//! File handles: a file system's permanent identifiers of inodes, valid across renames and
//! remounts.
//!
//! `name_to_handle_at` needs no privilege; opening by handle does. A handle is compared, stored and
//! printed, but never interpreted.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::rooted::{Dir, check_name};
use crate::{Error, Result, own_files};

/// A handle as returned by the file system.
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

/// Returns the handle of an open file or directory (an `O_PATH` descriptor will do). `None` if its
/// file system has no handle of at most 128 bytes, or none that lasts: a FUSE file system renumbers
/// its files at each mount.
pub fn of(fd: impl AsFd) -> Result<Option<FileHandle>> {
    ask(fd.as_fd(), c"", libc::AT_EMPTY_PATH)
}

/// Returns the handle of `name` in `dir`, without opening or following it; otherwise as [`of`].
pub fn at(dir: &Dir, name: &OsStr) -> Result<Option<FileHandle>> {
    check_name(dir.as_fd(), name)?;
    let path = CString::new(name.as_bytes())
        .map_err(|_| Error::at("get the file handle of", dir.as_fd(), name, Errno::INVAL))?;
    match ask(dir.as_fd(), &path, 0) {
        Err(error) if error.is(Errno::ACCESS) => {
            own_files::open_path(Errno::ACCESS, dir.as_fd(), Path::new(name)).map_or(Err(error), of)
        }
        asked => asked,
    }
}

fn ask(fd: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<Option<FileHandle>> {
    let mut buffer = Buffer {
        handle_bytes: MAX_BYTES as u32,
        handle_type: 0,
        bytes: [0; MAX_BYTES],
    };
    let mut mount = 0;
    // SAFETY: the path is NUL-terminated; `buffer` begins with the two fields of struct
    // file_handle, followed by as many bytes as `handle_bytes` says; the kernel writes no further.
    // All live through the call.
    let done = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            path.as_ptr(),
            (&raw mut buffer).cast(),
            &raw mut mount,
            flags,
        )
    };
    if done == 0 {
        const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
        let fs =
            rustix::fs::fstatfs(fd).map_err(|e| Error::at("get the file system of", fd, "", e))?;
        if fs.f_type as i64 == FUSE_SUPER_MAGIC {
            return Ok(None);
        }
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
            "get the file handle of",
            fd,
            OsStr::from_bytes(path.to_bytes()),
            errno.unwrap_or(Errno::IO),
        )),
    }
}

/// Opens what a handle refers to as `O_PATH`. `mount` is any open file of its file system.
///
/// Errors: EPERM without CAP_DAC_READ_SEARCH; ESTALE if that inode no longer exists.
pub fn open(mount: impl AsFd, handle: &FileHandle) -> Result<OwnedFd> {
    let mount = mount.as_fd();
    let mut buffer = Buffer {
        handle_bytes: handle.bytes.len().min(MAX_BYTES) as u32,
        handle_type: handle.kind,
        bytes: [0; MAX_BYTES],
    };
    let length = buffer.handle_bytes as usize;
    buffer.bytes[..length].copy_from_slice(&handle.bytes[..length]);
    // SAFETY: `buffer` begins with the two fields of struct file_handle, followed by as many bytes
    // as `handle_bytes` says; the kernel only reads it, and it lives through the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut buffer).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        let source = std::io::Error::last_os_error();
        return Err(Error::at("open by handle on", mount, "", source));
    }
    // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the UUID of the file system that holds an open file, or `None` if it has none or does
/// not report it.
pub fn file_system_uuid(fd: impl AsFd) -> Option<[u8; 16]> {
    uuid_by_kernel(fd.as_fd()).or_else(|| uuid_by_file_system(fd.as_fd()))
}

/// The generic request (Linux 6.9).
fn uuid_by_kernel(fd: BorrowedFd<'_>) -> Option<[u8; 16]> {
    /// `_IOR(0x15, 0, struct fsuuid2)`.
    const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500_u32 as libc::Ioctl;
    #[repr(C)]
    struct FsUuid2 {
        len: u8,
        uuid: [u8; 16],
    }
    let mut answer = FsUuid2 {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the request writes one struct fsuuid2, which `answer` is and which lives through the
    // call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut answer) };
    (done == 0 && answer.len == 16).then_some(answer.uuid)
}

/// The requests specific to file systems: older kernels have no other, and btrfs answers no other.
fn uuid_by_file_system(fd: BorrowedFd<'_>) -> Option<[u8; 16]> {
    match rustix::fs::fstatfs(fd).ok()?.f_type as u64 {
        0xef53 => ext4_uuid(fd),
        0x5846_5342 => xfs_uuid(fd),
        0x9123_683e => btrfs_uuid(fd),
        _ => None,
    }
}

/// Linux 6.0. The caller knows that the file system is ext4.
fn ext4_uuid(fd: BorrowedFd<'_>) -> Option<[u8; 16]> {
    /// `_IOR('f', 44, struct fsuuid)`, whose last member is an array of any length.
    const EXT4_IOC_GETFSUUID: libc::Ioctl = 0x8008_662c_u32 as libc::Ioctl;
    #[repr(C)]
    struct FsUuid {
        len: u32,
        flags: u32,
        uuid: [u8; 16],
    }
    let mut answer = FsUuid {
        len: 16,
        flags: 0,
        uuid: [0; 16],
    };
    // SAFETY: the file system is ext4, so the request is its own; it writes as many bytes after the
    // two numbers as `len` says, which `answer` has, and which live through the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), EXT4_IOC_GETFSUUID, &raw mut answer) };
    (done == 0 && answer.len == 16).then_some(answer.uuid)
}

/// The caller knows that the file system is XFS.
fn xfs_uuid(fd: BorrowedFd<'_>) -> Option<[u8; 16]> {
    /// `_IOR('X', 100, struct xfs_fsop_geom_v1)`.
    const XFS_IOC_FSGEOMETRY_V1: libc::Ioctl = 0x8070_5864_u32 as libc::Ioctl;
    #[repr(C)]
    struct Geometry {
        numbers: [u32; 8],
        blocks: [u64; 4],
        uuid: [u8; 16],
        rest: [u64; 4],
    }
    let mut answer = Geometry {
        numbers: [0; 8],
        blocks: [0; 4],
        uuid: [0; 16],
        rest: [0; 4],
    };
    // SAFETY: the file system is XFS, so the request is its own; it writes one struct of 112 bytes,
    // which `answer` is and which lives through the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), XFS_IOC_FSGEOMETRY_V1, &raw mut answer) };
    (done == 0).then_some(answer.uuid)
}

/// The caller knows that the file system is btrfs.
fn btrfs_uuid(fd: BorrowedFd<'_>) -> Option<[u8; 16]> {
    /// `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`.
    const BTRFS_IOC_FS_INFO: libc::Ioctl = 0x8400_941f_u32 as libc::Ioctl;
    #[repr(C)]
    struct FsInfo {
        max_id: u64,
        num_devices: u64,
        fsid: [u8; 16],
        rest: [u8; 992],
    }
    let mut answer = FsInfo {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        rest: [0; 992],
    };
    // SAFETY: the file system is btrfs, so the request is its own; it writes one struct of 1024
    // bytes, which `answer` is and which lives through the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), BTRFS_IOC_FS_INFO, &raw mut answer) };
    (done == 0).then_some(answer.fsid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_read_a_uuid_agree() {
        use vellum_testkit::{FsKind, Scratch, needs_root, untested};
        if !needs_root("creating file systems") {
            return;
        }
        let scratch = Scratch::new();
        for (name, kind) in [
            ("ext4", FsKind::Ext4),
            ("xfs", FsKind::Xfs),
            ("btrfs", FsKind::Btrfs),
        ] {
            let dir = match scratch.file_system(name, kind, 512) {
                Ok(dir) => std::fs::File::open(dir).unwrap(),
                Err(why) => {
                    untested("the UUID of a file system", format!("{name}: {why}"));
                    continue;
                }
            };
            let own = uuid_by_file_system(dir.as_fd());
            assert!(own.is_some_and(|uuid| uuid != [0; 16]), "{name}: {own:?}");
            if let Some(told) = uuid_by_kernel(dir.as_fd()) {
                assert_eq!(own, Some(told), "{name}");
            }
        }
    }

    #[test]
    fn a_handle_follows_the_inode_and_not_the_name() {
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

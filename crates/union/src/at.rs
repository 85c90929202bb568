//! One inode of the upper layer as the target of changes, whether reached by name or descriptor.
//!
//! A name costs no descriptor; a directory or a nameless file is its descriptor. Every change to
//! owner, mode, times and xattrs of the upper goes through here, as stored: no mapping, no
//! escaping, no records.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vellum_sys::rooted::{self, Access, NewTime};
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, FileKind, Result, Stat};

/// How the inode is reached.
#[derive(Debug, Clone)]
pub(crate) enum At {
    /// This very directory.
    Dir(Arc<Dir>),
    /// This name in it; never followed.
    Name(Arc<Dir>, OsString),
    /// A descriptor of it, usually `O_PATH`.
    Fd(Arc<OwnedFd>),
}

impl At {
    /// Opens the inode for syncing; `None` for types that can't be synced: symbolic links, pipes,
    /// sockets, devices.
    pub fn open_to_sync(&self) -> Result<Option<OwnedFd>> {
        Ok(match (self, self.stat()?.kind) {
            (At::Dir(dir), _) => Some(dir.dup()?.into()),
            (At::Name(dir, name), FileKind::Dir) => Some(dir.open_dir(name)?.into()),
            (At::Name(dir, name), FileKind::File) => {
                Some(dir.open_known_file(name, Access::Read)?.into())
            }
            (At::Fd(fd), FileKind::File) => Some(rooted::reopen(fd)?.into()),
            _ => None,
        })
    }

    pub fn stat(&self) -> Result<Stat> {
        match self {
            At::Dir(dir) => dir.stat_self(),
            At::Name(dir, name) => dir.stat(name),
            At::Fd(fd) => vellum_sys::stat::stat_fd(fd),
        }
    }

    /// Sets owner, group or both. The file system clears set-uid, set-gid and capabilities, except
    /// on a directory.
    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        match self {
            At::Dir(dir) => rooted::change_owner_fd(&**dir, uid, gid),
            At::Name(dir, name) => dir.change_owner(name, uid, gid),
            At::Fd(fd) => rooted::change_owner_fd(fd, uid, gid),
        }
    }

    pub fn set_mode(&self, mode: u32) -> Result<()> {
        match self {
            At::Dir(dir) => rooted::set_mode_fd(&**dir, mode),
            At::Name(dir, name) => dir.set_mode(name, mode),
            At::Fd(fd) => rooted::set_mode_fd(fd, mode),
        }
    }

    pub fn set_times(&self, atime: NewTime, mtime: NewTime) -> Result<()> {
        match self {
            At::Dir(dir) => rooted::change_times_fd(&**dir, atime, mtime),
            At::Name(dir, name) => dir.change_times(name, atime, mtime),
            At::Fd(fd) => rooted::change_times_fd(fd, atime, mtime),
        }
    }

    pub fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        match self {
            At::Dir(dir) => xattr::get_fd(&**dir, name),
            At::Name(dir, at) => xattr::get(dir, at, name),
            At::Fd(fd) => xattr::get_fd(fd, name),
        }
    }

    pub fn xattr_names(&self) -> Result<Vec<OsString>> {
        match self {
            At::Dir(dir) => xattr::list_fd(&**dir),
            At::Name(dir, at) => xattr::list(dir, at),
            At::Fd(fd) => xattr::list_fd(fd),
        }
    }

    pub fn set_xattr(&self, name: &OsStr, value: &[u8], mode: SetMode) -> Result<()> {
        match self {
            At::Dir(dir) => xattr::set_fd(&**dir, name, value, mode),
            At::Name(dir, at) => xattr::set(dir, at, name, value, mode),
            At::Fd(fd) => xattr::set_fd(fd, name, value, mode),
        }
    }

    /// Removes an xattr; false if it was not there.
    pub fn remove_xattr(&self, name: &OsStr) -> Result<bool> {
        match self {
            At::Dir(dir) => xattr::remove_fd(&**dir, name),
            At::Name(dir, at) => xattr::remove(dir, at, name),
            At::Fd(fd) => xattr::remove_fd(fd, name),
        }
    }
}

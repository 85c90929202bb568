//! Owner, mode and times: of a name in a directory, never followed, or of a descriptor's file.
//!
//! The order matters: a new owner clears set-uid, set-gid and capabilities, so the owner comes
//! before the mode.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timestamps, Uid};
use rustix::io::Errno;

use super::Dir;
use crate::stat::{FileKind, Stat, Timespec};
use crate::{Error, Result, own_files};

/// How to set a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// Leave it.
    Keep,
    /// The file system's current time.
    Now,
    /// This time.
    To(Timespec),
}

impl From<Option<Timespec>> for NewTime {
    fn from(time: Option<Timespec>) -> Self {
        time.map_or(NewTime::Keep, NewTime::To)
    }
}

impl Dir {
    /// Sets owner and group of `name` itself. Clears set-uid, set-gid and capabilities: do this
    /// before the mode.
    pub fn set_owner(&self, name: impl AsRef<OsStr>, uid: u32, gid: u32) -> Result<()> {
        self.change_owner(name, Some(uid), Some(gid))
    }

    /// Sets the owner, the group or both of `name` itself, in one call; `None` leaves one as it is.
    /// See [`Dir::set_owner`].
    pub fn change_owner(
        &self,
        name: impl AsRef<OsStr>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        let ids = owner_ids(uid, gid);
        ids.and_then(|(uid, gid)| {
            rustix::fs::chownat(&self.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).or_else(|e| {
                let found = own_files::open_path(e, self.as_fd(), name)?;
                rustix::fs::chownat(found, "", uid, gid, AtFlags::EMPTY_PATH)
            })
        })
        .map_err(|e| self.fail("change the owner of", name, e))
    }

    /// Sets the times of `name` itself.
    pub fn change_times(
        &self,
        name: impl AsRef<OsStr>,
        atime: NewTime,
        mtime: NewTime,
    ) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        let times = timestamps(atime, mtime);
        rustix::fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .or_else(|e| {
                let found = own_files::open_path(e, self.as_fd(), name)?;
                rustix::fs::utimensat(found, "", &times, AtFlags::EMPTY_PATH)
            })
            .map_err(|e| self.fail("set the times of", name, e))
    }

    /// Sets the twelve permission bits of `name` itself. Errors: EOPNOTSUPP for a symbolic link,
    /// which has none.
    pub fn set_mode(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        chmod_nofollow(self, name, mode)
            .or_else(|e| {
                let found = own_files::open_path(e, self.as_fd(), name)?;
                chmod_magic(&found, mode & 0o7777)
            })
            .map_err(|e| self.fail("change the mode of", name, e))
    }

    /// Sets the times of `name` itself; `None` leaves one as it is.
    pub fn set_times(
        &self,
        name: impl AsRef<OsStr>,
        atime: Option<Timespec>,
        mtime: Option<Timespec>,
    ) -> Result<()> {
        self.change_times(name, atime.into(), mtime.into())
    }
}

/// Sets owner and group of an open file; an `O_PATH` descriptor will do. See [`Dir::set_owner`].
pub fn set_owner_fd(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    change_owner_fd(fd, Some(uid), Some(gid))
}

/// Sets the twelve permission bits of an open file; an `O_PATH` descriptor will do.
pub fn set_mode_fd(fd: impl AsFd, mode: u32) -> Result<()> {
    let fd = fd.as_fd();
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match rustix::fs::fchmod(fd, mode) {
        Err(Errno::BADF) => rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode),
        other => other,
    }
    .map_err(|e| Error::at("change the mode of", fd, "", e))
}

/// Sets the times of an open file; `None` leaves one as it is; an `O_PATH` descriptor will do.
pub fn set_times_fd(fd: impl AsFd, atime: Option<Timespec>, mtime: Option<Timespec>) -> Result<()> {
    change_times_fd(fd, atime.into(), mtime.into())
}

/// Sets the owner, the group or both of an open file; `None` leaves one as it is; an `O_PATH`
/// descriptor will do.
pub fn change_owner_fd(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let fd = fd.as_fd();
    owner_ids(uid, gid)
        .and_then(|(uid, gid)| rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH))
        .map_err(|e| Error::at("change the owner of", fd, "", e))
}

/// Sets the times of an open file; an `O_PATH` descriptor will do.
pub fn change_times_fd(fd: impl AsFd, atime: NewTime, mtime: NewTime) -> Result<()> {
    let fd = fd.as_fd();
    let times = timestamps(atime, mtime);
    match rustix::fs::futimens(fd, &times) {
        Err(Errno::BADF) => rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH),
        other => other,
    }
    .map_err(|e| Error::at("set the times of", fd, "", e))
}

fn owner_ids(uid: Option<u32>, gid: Option<u32>) -> rustix::io::Result<(Option<Uid>, Option<Gid>)> {
    // The all-ones id means "leave alone" to the kernel, so it can't be an owner.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    Ok((uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
}

fn timestamps(atime: NewTime, mtime: NewTime) -> Timestamps {
    let one = |time| match time {
        NewTime::To(t) => rustix::fs::Timespec {
            tv_sec: t.sec,
            tv_nsec: t.nsec.into(),
        },
        NewTime::Now => rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        NewTime::Keep => rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    };
    Timestamps {
        last_access: one(atime),
        last_modification: one(mtime),
    }
}

/// Changes a mode without following: with `fchmodat2` since Linux 6.6, before that through an
/// `O_PATH` descriptor.
fn chmod_nofollow(dir: &Dir, name: &Path, mode: u32) -> rustix::io::Result<()> {
    let mode = mode & 0o7777;
    match fchmodat2(dir, name, mode) {
        Err(Errno::NOSYS) => {}
        other => return other,
    }
    chmod_through_path(dir, name, mode)
}

/// Changes a mode through an `O_PATH` descriptor. Some old kernels would change the mode of a
/// symbolic link, which we refuse.
pub(super) fn chmod_through_path(dir: &Dir, name: &Path, mode: u32) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    chmod_magic(&fd, mode)
}

fn chmod_magic(fd: &OwnedFd, mode: u32) -> rustix::io::Result<()> {
    if Stat::at(fd, Path::new(""), AtFlags::EMPTY_PATH)?.kind == FileKind::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    let magic = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::chmod(magic, Mode::from_raw_mode(mode))
}

fn fchmodat2(dir: &Dir, name: &Path, mode: u32) -> rustix::io::Result<()> {
    let name = std::ffi::CString::new(name.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    // SAFETY: fchmodat2 reads the NUL-terminated name, which lives until the call returns, and
    // writes no memory of ours; the descriptor is open as long as `dir` is borrowed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            mode as libc::mode_t,
            libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

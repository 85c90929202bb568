//! Copies everything that a directory has besides its names, in one go.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use crate::Result;
use crate::rooted::{set_mode_fd, set_owner_fd, set_times_fd};
use crate::stat::{Stat, stat_fd};
use crate::xattr::{self, SetMode};

/// Gives an open directory the owner, xattrs, mode and modification time of another, whose `stat`
/// and `xattrs` are given.
///
/// Uses the one order in which no step undoes an earlier one: xattrs may be settable only by the
/// owner and an ACL changes the mode, a mode may forbid xattrs, and all of these change times. A
/// correct owner is not set again: some file systems refuse to set any. Call it when nothing in the
/// directory changes any more. The access time stays, and so do xattrs that `xattrs` doesn't have.
pub fn dress(
    dir: impl AsFd,
    stat: &Stat,
    xattrs: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<[u8]>)>,
) -> Result<()> {
    let dir = dir.as_fd();
    let now = stat_fd(dir)?;
    if (now.uid, now.gid) != (stat.uid, stat.gid) {
        set_owner_fd(dir, stat.uid, stat.gid)?;
    }
    for (name, value) in xattrs {
        xattr::set_fd(dir, name.as_ref(), value.as_ref(), SetMode::Any)?;
    }
    set_mode_fd(dir, stat.mode)?;
    set_times_fd(dir, None, Some(stat.mtime))
}

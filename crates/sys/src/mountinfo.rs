//! What is mounted where.
//!
//! The table is a tree: every mount names its parent mount and its mount point there. Mounts can be
//! stacked on one mount point, and a mount high up can hide whole branches that are still in the
//! table. So "is something mounted at this path?" is answered by walking down from the root as a
//! lookup would ([`Table::chain`]), never by comparing only strings.
//!
//! There are two ways to read it, with the same answer. `/proc/PID/mountinfo` (`text`, see
//! proc_pid_mountinfo(5)) is available everywhere, and for every process. But the kernel prints
//! each file system's options with it, which for an overlay are the paths of all its layers; with
//! hundreds of deep overlays, that dominates the time to mount. listmount(2) and statmount(2)
//! (`statmount`, complete enough since Linux 6.13) return only what is requested. So [`read`] and
//! [`of`] try the second way and fall back to the first on an older kernel, or where a seccomp
//! filter refuses the calls. Options of a file system are requested mount by mount
//! ([`Mount::fs_options`]).
//!
//! Paths are bytes. A table is a snapshot: mounts may come and go right after it, so act on it and
//! check again.

mod holders;
mod servers;
mod statmount;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use self::text::unescape;
use crate::{Error, Result};

pub use holders::{Holder, find_holders, find_overlay_holders};
pub use servers::{FuseServer, find_fuse_servers};
pub use table::Table;
pub use text::parse;

/// One mount.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The mount's id; reused after it is gone.
    pub id: u64,
    /// The id of the mount it is attached to. The parent of the reader's root mount is not in the
    /// table, or is the mount itself.
    pub parent: u64,
    /// Major and minor number of the file system's device, as in `st_dev`.
    pub dev: (u32, u32),
    /// Which directory of the file system is shown; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Its mount point, as seen from the reading process's root.
    pub mount_point: PathBuf,
    /// Options of this mount (`rw`, `nosuid`, ...), comma-separated.
    pub options: OsString,
    /// `shared:N`, `master:N`, `propagate_from:N`, `unbindable`; empty for a private mount.
    pub propagation: Vec<OsString>,
    /// File system type, perhaps with a subtype (`fuse.sshfs`).
    pub fs_type: OsString,
    /// The source it was mounted from.
    pub source: OsString,
    /// The file system itself is read-only, through whichever mount.
    pub fs_is_read_only: bool,
    /// The options of the file system, or how to get them.
    fs_options: Known,
}

/// Where the options of a mount's file system are.
#[derive(Debug, Clone)]
enum Known {
    /// Read along with everything else.
    Told(FsOptions),
    /// Available from the kernel, by the mount's unique id.
    Ask(u64),
}

impl Mount {
    /// True if the mount was made read-only (the file system may be, too).
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.fs_is_read_only
    }

    /// True if it is an id-mapped mount.
    pub fn is_id_mapped(&self) -> bool {
        self.has_option("idmapped")
    }

    fn has_option(&self, name: &str) -> bool {
        let mut all = self.options.as_bytes().split(|&b| b == b',');
        all.any(|option| option == name.as_bytes())
    }

    /// True if mounts made in this mount propagate to other mounts and namespaces.
    pub fn is_shared(&self) -> bool {
        self.propagation
            .iter()
            .any(|p| p.as_bytes().starts_with(b"shared:"))
    }

    /// Returns the current options of the file system.
    ///
    /// Those of an overlay can be long, so ask only for those that are needed. Errors: not found if
    /// the mount is gone.
    pub fn fs_options(&self) -> Result<FsOptions> {
        match &self.fs_options {
            Known::Told(options) => Ok(options.clone()),
            Known::Ask(id) => statmount::options(*id)
                .map_err(|e| Error::new("read the options of the mount at", &self.mount_point, e)),
        }
    }
}

/// The options of a file system except `rw` and `ro`, comma-separated, still escaped as the file
/// system prints them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FsOptions(OsString);

impl FsOptions {
    /// Returns the value of option `name`, unescaped: `Some("")` if it has no value, `None` if it
    /// is absent.
    pub fn get(&self, name: &str) -> Option<OsString> {
        self.all(name).next()
    }

    /// Returns every value of option `name`, unescaped, in order (`lowerdir+` occurs many times).
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = OsString> + 'a {
        self.0
            .as_bytes()
            .split(|&b| b == b',')
            .filter_map(move |option| {
                let rest = option.strip_prefix(name.as_bytes())?;
                match rest.split_first() {
                    None => Some(OsString::new()),
                    Some((b'=', value)) => Some(OsString::from_vec(unescape(value))),
                    Some(_) => None,
                }
            })
    }
}

/// Reads the mounts this process sees, in the kernel's order.
pub fn read() -> Result<Table> {
    match statmount::read() {
        Ok(table) => Ok(table),
        Err(statmount::Unusable) => text::read(),
    }
}

/// Returns the mount that `fd` lies on (an `O_PATH` descriptor will do); `None` if it is not among
/// those this process sees.
///
/// On a recent kernel, the cost does not depend on the number of mounts.
pub fn of(fd: impl AsFd) -> Result<Option<Mount>> {
    let fd = fd.as_fd();
    match statmount::of(fd) {
        Ok(found) => Ok(found),
        Err(statmount::Unusable) => text::of(fd),
    }
}

/// Reads the mounts another process sees. Errors: not found if it is gone, denied if we may not
/// ask.
pub fn read_of(pid: u32) -> Result<Table> {
    text::read_of(pid)
}

fn os(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_os_string()
}

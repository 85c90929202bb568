//! Who is mounted where.
//!
//! The table is a tree: every mount names its parent mount and the place in it. One place can carry
//! a stack of mounts, and a mount high up can hide whole branches that are still in the table. So
//! "is something mounted at this path?" is answered by walking down from the root as a lookup would
//! ([`Table::chain`]), never by comparing strings alone.
//!
//! There are two ways to read it, with the same answer. `/proc/PID/mountinfo` (`text`, see
//! proc_pid_mountinfo(5)) can be had everywhere, and for every process; but the kernel prints each
//! file system's options with it, which for an overlay are the paths of all its layers, and beside
//! hundreds of deep overlays that is most of a mount's time. listmount(2) and statmount(2)
//! (`statmount`, Linux 6.13 for all that is needed here) tell only what is asked for. So [`read`]
//! and [`of`] ask in the second way and fall back to the first on an older kernel, or where a
//! seccomp filter refuses the calls; options of a file system are asked for mount by mount
//! ([`Mount::fs_options`]).
//!
//! Paths are bytes. A table is a moment's picture: mounts may come and go the moment after, so act
//! on it and check again.

mod holders;
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
pub use table::Table;
pub use text::parse;

/// One mount.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The mount's number; used again after it is gone.
    pub id: u64,
    /// The number of the mount it sits on. The parent of what the reader has for its root is not in
    /// the table, or is the mount itself.
    pub parent: u64,
    /// Major and minor number of the file system's device, as in `st_dev`.
    pub dev: (u32, u32),
    /// Which directory of the file system is shown; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where it shows, as seen from the reading process's root.
    pub mount_point: PathBuf,
    /// Options of this mount (`rw`, `nosuid`, ...), comma-separated.
    pub options: OsString,
    /// `shared:N`, `master:N`, `propagate_from:N`, `unbindable`; empty for a private mount.
    pub propagation: Vec<OsString>,
    /// File system type, perhaps with a subtype (`fuse.sshfs`).
    pub fs_type: OsString,
    /// What was given as source.
    pub source: OsString,
    /// The file system itself refuses writing, through whichever mount.
    pub fs_is_read_only: bool,
    /// The options of the file system, or how to learn them.
    fs_options: Known,
}

/// Where the options of a mount's file system are.
#[derive(Debug, Clone)]
enum Known {
    /// Read along with everything else.
    Told(FsOptions),
    /// The kernel has them, by the mount's own number that is never used again.
    Ask(u64),
}

impl Mount {
    /// True if the mount was made read-only (the file system may be, too).
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.fs_is_read_only
    }

    /// True if owners are shown through a mapping of ids.
    pub fn is_id_mapped(&self) -> bool {
        self.has_option("idmapped")
    }

    fn has_option(&self, name: &str) -> bool {
        let mut all = self.options.as_bytes().split(|&b| b == b',');
        all.any(|option| option == name.as_bytes())
    }

    /// True if changes in this mount's place spread to other mounts and namespaces.
    pub fn is_shared(&self) -> bool {
        self.propagation
            .iter()
            .any(|p| p.as_bytes().starts_with(b"shared:"))
    }

    /// Returns the options of the file system as they are now.
    ///
    /// Those of an overlay can be long: ask for those only that are needed. Errors: not found if
    /// the mount is gone.
    pub fn fs_options(&self) -> Result<FsOptions> {
        match &self.fs_options {
            Known::Told(options) => Ok(options.clone()),
            Known::Ask(id) => statmount::options(*id)
                .map_err(|e| Error::new("read the options of the mount at", &self.mount_point, e)),
        }
    }
}

/// The options of a file system but for `rw` and `ro`, comma-separated, still escaped as the file
/// system prints them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FsOptions(OsString);

impl FsOptions {
    /// Returns the value of option `name`, unescaped: `Some("")` if it has no value, `None` if it
    /// is not there.
    pub fn get(&self, name: &str) -> Option<OsString> {
        self.all(name).next()
    }

    /// Returns every value of option `name`, unescaped, in order (`lowerdir+` comes many times).
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
/// Costs the same beside any number of mounts, where the kernel is new enough.
pub fn of(fd: impl AsFd) -> Result<Option<Mount>> {
    let fd = fd.as_fd();
    match statmount::of(fd) {
        Ok(found) => Ok(found),
        Err(statmount::Unusable) => text::of(fd),
    }
}

/// Reads the mounts another process sees. Errors: not found if it is gone, denied if it is not ours
/// to ask.
pub fn read_of(pid: u32) -> Result<Table> {
    text::read_of(pid)
}

fn os(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_os_string()
}

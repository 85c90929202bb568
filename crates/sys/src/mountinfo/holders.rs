//! Which other processes have something mounted, in whichever mount namespace.
//!
//! Other processes' tables can only be read as text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{FsOptions, Mount, read_of};
use crate::{Error, Result};

/// A process (or the first found of several that share its mount namespace) that has something
/// mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id in our pid namespace.
    pub pid: u32,
    /// Its command name.
    pub command: OsString,
    /// The inode number of its mount namespace (`/proc/PID/ns/mnt`), 0 if we may not read it.
    pub namespace: u64,
    /// The mount point in that process's view.
    pub mount_point: PathBuf,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let command = self.command.to_string_lossy();
        write!(
            f,
            "process {} ({command}) has it mounted at {}",
            self.pid,
            self.mount_point.display()
        )
    }
}

/// Searches every process's mount table for mounts that `wanted` accepts, one answer for each
/// namespace and mount point.
///
/// Processes that end meanwhile or that we may not inspect are skipped, so an empty answer proves
/// nothing for a plain user.
pub fn find_holders(mut wanted: impl FnMut(&Mount, &FsOptions) -> bool) -> Result<Vec<Holder>> {
    let mut seen = Vec::new();
    let mut holders = Vec::new();
    let processes = std::fs::read_dir("/proc").map_err(|e| Error::new("list", "/proc", e))?;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let namespace = mount_namespace(pid);
        if namespace != 0 && seen.contains(&namespace) {
            continue;
        }
        let Ok(table) = read_of(pid) else { continue };
        seen.push(namespace);
        for mount in table.mounts() {
            // Read along with the table, so this can't fail; a mount without options can't be a
            // match.
            let Ok(options) = mount.fs_options() else {
                continue;
            };
            if !wanted(mount, &options) {
                continue;
            }
            let command = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            holders.push(Holder {
                pid,
                command: OsStr::from_bytes(command.trim_ascii_end()).to_os_string(),
                namespace,
                mount_point: mount.mount_point.clone(),
            });
        }
    }
    Ok(holders)
}

/// Searches every mount namespace for overlay mounts that use `upper` as upper or `work` as work
/// directory.
///
/// It finds what makes a mount of that upper fail with EBUSY while our own table shows nothing.
/// Mounts made with relative paths are recognised by the end of the path.
pub fn find_overlay_holders(upper: &Path, work: Option<&Path>) -> Result<Vec<Holder>> {
    find_holders(|mount, options| {
        mount.fs_type == "overlay"
            && (names(options, "upperdir", upper)
                || work.is_some_and(|work| names(options, "workdir", work)))
    })
}

fn names(options: &FsOptions, option: &str, path: &Path) -> bool {
    options.get(option).is_some_and(|value| {
        let value = PathBuf::from(value);
        !value.as_os_str().is_empty()
            && (value == path || value.is_relative() && path.ends_with(&value))
    })
}

fn mount_namespace(pid: u32) -> u64 {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap_or_default();
    let digits: String = link
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(0)
}

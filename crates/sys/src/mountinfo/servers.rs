//! Which processes serve a FUSE mount from a directory.
//!
//! Such a mount's entry in the mount table doesn't say what it shows. But its server has the
//! device and the directories open.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::{Error, Result};

/// A process that has `/dev/fuse` and some of the wanted directories open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseServer {
    /// Process id in our pid namespace.
    pub pid: u32,
    /// Its command name.
    pub command: OsString,
    /// Its arguments, without the program.
    pub arguments: Vec<OsString>,
    /// Device and inode number of the wanted directories that it has open; at least one.
    pub holds: Vec<(u64, u64)>,
}

impl FuseServer {
    /// Returns device and inode number of a path as the process sees it, if that can be told.
    pub fn identity_of(&self, path: &Path) -> Option<(u64, u64)> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        match path.strip_prefix("/") {
            Ok(path) => identity(&proc.join("root").join(path)),
            Err(_) => identity(&proc.join("cwd").join(path)),
        }
    }
}

/// Searches the processes for FUSE servers that have one of `dirs` (device and inode number) open.
///
/// Processes that end meanwhile or that we may not inspect are skipped, as is this one, so an empty
/// answer proves nothing for a plain user. Sends no request to a file system.
pub fn find_fuse_servers(dirs: &[(u64, u64)]) -> Result<Vec<FuseServer>> {
    let mut servers = Vec::new();
    let processes = std::fs::read_dir("/proc").map_err(|e| Error::new("list", "/proc", e))?;
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let open: Vec<_> = open.flatten().map(|entry| entry.path()).collect();
        let is_device = |fd: &PathBuf| std::fs::read_link(fd).is_ok_and(|to| is_fuse_device(&to));
        if !open.iter().any(is_device) {
            continue;
        }
        let found = open.iter().filter_map(|fd| identity(fd));
        let holds: Vec<_> = found.filter(|found| dirs.contains(found)).collect();
        if holds.is_empty() {
            continue;
        }
        let read = |file: &str| std::fs::read(process.path().join(file)).unwrap_or_default();
        let words = read("cmdline");
        let words = words.split(|&byte| byte == 0).skip(1);
        servers.push(FuseServer {
            pid,
            command: OsStr::from_bytes(read("comm").trim_ascii_end()).to_owned(),
            arguments: words
                .filter(|word| !word.is_empty())
                .map(|word| OsString::from_vec(word.to_vec()))
                .collect(),
            holds,
        });
    }
    Ok(servers)
}

/// A container may have the device elsewhere.
fn is_fuse_device(path: &Path) -> bool {
    path.file_name() == Some(OsStr::new("fuse")) && path.starts_with("/dev")
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let seen = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    let dev = rustix::fs::makedev(seen.stx_dev_major, seen.stx_dev_minor);
    Some((dev, seen.stx_ino))
}

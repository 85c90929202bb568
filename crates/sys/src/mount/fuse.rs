//! Mounting a connection of the FUSE device.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::{Error, Result};

/// A FUSE file system to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseMount {
    /// What mountinfo shows as its source.
    pub source: OsString,
    /// The file system type is `fuse.` and this; `fuse` without.
    pub subtype: Option<String>,
    /// The mounting user: without `allow_other`, only it may use the mount.
    pub owner: (u32, u32),
    /// File system options, as fsconfig(2) takes them: names with and without values.
    pub options: Vec<(String, Option<OsString>)>,
    /// Flags of the mount.
    pub attributes: MountAttrFlags,
}

/// A mount that is not attached yet. Closing it ends it.
#[derive(Debug)]
pub struct Detached {
    fd: OwnedFd,
    /// Its id in mountinfo, which it keeps when attached.
    pub id: u64,
}

/// Creates the file system that `device`, an open `/dev/fuse`, will serve. The kernel sends INIT at
/// once.
///
/// Errors: EPERM without CAP_SYS_ADMIN in the user namespace `device` was opened in; EINVAL for an
/// option the kernel does not know.
pub fn fuse_detached(device: impl AsFd, mount: &FuseMount) -> Result<Detached> {
    let failed = |op| move |e: rustix::io::Errno| Error::new(op, "fuse", e);
    let fs = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(failed("open the file system"))?;
    let set = |key: &str, value: &OsStr| {
        rustix::mount::fsconfig_set_string(&fs, key, value)
            .map_err(|e| Error::new("set the mount option", key, said(&fs, e)))
    };
    set("source", &mount.source)?;
    if let Some(subtype) = &mount.subtype {
        set("subtype", subtype.as_ref())?;
    }
    let number = device.as_fd().as_raw_fd().to_string();
    set("fd", number.as_ref())?;
    set("rootmode", "40000".as_ref())?;
    set("user_id", mount.owner.0.to_string().as_ref())?;
    set("group_id", mount.owner.1.to_string().as_ref())?;
    for (key, value) in &mount.options {
        match value {
            Some(value) => set(key, value)?,
            None => rustix::mount::fsconfig_set_flag(&fs, key.as_str())
                .map_err(|e| Error::new("set the mount option", key, said(&fs, e)))?,
        }
    }
    rustix::mount::fsconfig_create(&fs)
        .map_err(|e| Error::new("create the file system", "fuse", said(&fs, e)))?;
    let fd = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, mount.attributes)
        .map_err(failed("mount the file system"))?;
    // Reads the mount's id from fdinfo: the file system can't answer requests yet.
    let id = mount_id(&fd)?;
    Ok(Detached { fd, id })
}

impl Detached {
    /// Attaches the mount, without following a symbolic link.
    pub fn attach(self, target: &Path) -> Result<()> {
        super::attach(&self.fd, target)
    }
}

/// Reports what the kernel logged about a mount being created, with its errno.
fn said(fs: &OwnedFd, errno: rustix::io::Errno) -> std::io::Error {
    let error = std::io::Error::from(errno);
    let mut log = [0; 1024];
    match rustix::io::read(fs, &mut log) {
        Ok(length) if length > 2 => {
            let text = String::from_utf8_lossy(&log[2..length]);
            tracing::debug!(said = %text.trim(), "the kernel refused a mount");
            error
        }
        _ => error,
    }
}

fn mount_id(fd: &OwnedFd) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|e| Error::new("read", &path, e))?;
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| {
        let odd = std::io::Error::from(std::io::ErrorKind::InvalidData);
        Error::new("find the mount's id in", path, odd)
    })
}

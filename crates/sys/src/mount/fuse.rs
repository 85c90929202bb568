//! Mounting a connection of the FUSE device.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::{Error, Result};

/// A FUSE file system to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseMount {
    /// What mountinfo shows as its source.
    pub source: OsString,
    /// Its type is `fuse.` and this; `fuse` without.
    pub subtype: Option<String>,
    /// Who mounts: with `allow_other` absent, nobody else may use it.
    pub owner: (u32, u32),
    /// Options of the file system, as fsconfig(2) takes them: names with and without values.
    pub options: Vec<(String, Option<OsString>)>,
    /// Flags of the mount.
    pub attributes: MountAttrFlags,
}

/// A mount that is nowhere yet. Closing it ends it.
#[derive(Debug)]
pub struct Detached {
    fd: OwnedFd,
    /// Its number in mountinfo, also once it has a place.
    pub id: u64,
}

/// Makes the file system that `device`, an open `/dev/fuse`, will serve. The kernel sends INIT at
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
        .map_err(|e| Error::new("make the file system", "fuse", said(&fs, e)))?;
    let fd = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, mount.attributes)
        .map_err(failed("mount the file system"))?;
    // The mount's number without a request to a file system that answers none yet: fdinfo has it.
    let id = mount_id(&fd)?;
    Ok(Detached { fd, id })
}

impl Detached {
    /// Puts it in its place, which is not followed if it is a symbolic link.
    pub fn attach(self, target: &Path) -> Result<()> {
        super::attach(&self.fd, target)
    }
}

/// Returns what the kernel logged about a mount in the making, with its errno.
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
        Error::new("find the mount's number in", path, odd)
    })
}

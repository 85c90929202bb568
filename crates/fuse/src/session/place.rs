//! Creates a mount, attaches it, and removes exactly that mount again.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use vellum_sys::fuse_dev;
use vellum_sys::mount::{Detached, FuseMount, fuse_detached, unmount_id};
use vellum_sys::stat::{Whereabouts, whereabouts};

use super::fusermount;
use crate::options::{MountOptions, Mounter};
use crate::{Error, Result};

/// A connection that the kernel knows, and how it was mounted.
#[derive(Debug)]
pub(super) struct Connected {
    pub device: OwnedFd,
    pub mount: Mount,
}

/// A mount that is being created.
#[derive(Debug)]
pub(super) enum Mount {
    /// Not attached yet.
    Detached(Detached),
    /// Attached by the helper already.
    ByFusermount,
}

/// Opens the device and makes the kernel send INIT.
pub(super) fn connect(target: &Path, options: &MountOptions) -> Result<Connected> {
    let by_helper = || {
        Ok(Connected {
            device: fusermount::mount(target, options)?,
            mount: Mount::ByFusermount,
        })
    };
    if options.mounter == Mounter::Fusermount {
        return by_helper();
    }
    match by_kernel(options) {
        Err(error) if options.mounter == Mounter::Any && is_denied(&error) => {
            tracing::debug!(%error, "falling back to fusermount3");
            by_helper()
        }
        other => other,
    }
}

fn by_kernel(options: &MountOptions) -> Result<Connected> {
    let device = fuse_dev::open().map_err(|source| Error::NoDevice {
        missing: source.is_not_found() || source.is(Errno::NODEV),
        source,
    })?;
    let mount = fuse_detached(&device, &wanted(options))?;
    Ok(Connected {
        device,
        mount: Mount::Detached(mount),
    })
}

fn is_denied(error: &Error) -> bool {
    match error {
        Error::Sys(source) | Error::NoDevice { source, .. } => source.is_denied(),
        _ => false,
    }
}

fn wanted(options: &MountOptions) -> FuseMount {
    let flags = options.flags;
    let mut attributes = MountAttrFlags::empty();
    for (wanted, attribute) in [
        (flags.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (flags.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (flags.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (flags.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (flags.noatime, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (flags.nodiratime, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ] {
        attributes.set(attribute, wanted);
    }
    let mut wanted = Vec::new();
    for (name, is_wanted) in [
        ("default_permissions", options.default_permissions),
        ("allow_other", options.allow_other),
        ("ro", flags.read_only),
        ("sync", flags.sync),
        ("dirsync", flags.dirsync),
    ] {
        if is_wanted {
            wanted.push((String::from(name), None));
        }
    }
    for option in &options.extra {
        let text = option.to_string_lossy();
        match text.split_once('=') {
            Some((name, value)) => wanted.push((name.to_owned(), Some(OsString::from(value)))),
            None => wanted.push((text.into_owned(), None)),
        }
    }
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    FuseMount {
        source: options.source.clone(),
        subtype: options.subtype.clone(),
        owner: (uid.as_raw(), gid.as_raw()),
        options: wanted,
        attributes,
    }
}

impl Mount {
    /// Attaches the mount. After an error it is gone.
    ///
    /// No request is sent to the mount, neither here nor later (except to wake the workers for a
    /// handover): a process that is killed while it waits for an answer of its own never ends, and
    /// then nothing can answer others that wait for it.
    pub fn attach(self, target: &Path) -> Result<Unmounter> {
        let mut id = None;
        let made_by = match self {
            Mount::Detached(mount) => {
                id = Some(mount.id);
                mount.attach(target)?;
                MadeBy::Us
            }
            Mount::ByFusermount => MadeBy::Fusermount,
        };
        let unmounter = |id, connection| Unmounter {
            identity: Arc::new(MountIdentity {
                target: target.to_owned(),
                id,
                connection,
                made_by,
            }),
        };
        match look(target) {
            Ok(seen) => {
                // An anonymous device number: the minor part is all of it.
                let connection = u64::from(rustix::fs::minor(seen.dev));
                Ok(unmounter(id.unwrap_or(seen.mnt_id), connection))
            }
            Err(error) => {
                if let Some(id) = id {
                    // The first error is the one to report.
                    let _ = unmounter(id, 0).unmount();
                } else {
                    // As above; there is no mount id to go by.
                    let _ = fusermount::unmount(target);
                }
                Err(error.into())
            }
        }
    }
}

/// Looks at what is visible at a path, without a request to it.
fn look(target: &Path) -> vellum_sys::Result<Whereabouts> {
    look_at(&open(target)?, target)
}

fn look_at(fd: &OwnedFd, target: &Path) -> vellum_sys::Result<Whereabouts> {
    whereabouts(fd).map_err(|e| vellum_sys::Error::new("stat", target, e))
}

fn open(target: &Path) -> vellum_sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::empty())
        .map_err(|e| vellum_sys::Error::new("open", target, e))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MadeBy {
    Us,
    Fusermount,
}

#[derive(Debug)]
struct MountIdentity {
    target: PathBuf,
    id: u64,
    connection: u64,
    made_by: MadeBy,
}

/// A mount's identity as it is passed to a successor.
#[derive(Debug)]
pub(super) struct Left {
    pub target: PathBuf,
    pub mount_id: u64,
    pub connection: u64,
    pub by_fusermount: bool,
}

/// Removes one mount, and never another.
#[derive(Debug, Clone)]
pub struct Unmounter {
    identity: Arc<MountIdentity>,
}

impl Unmounter {
    /// Takes over a mount.
    pub(super) fn of(left: Left) -> Unmounter {
        Unmounter {
            identity: Arc::new(MountIdentity {
                target: left.target,
                id: left.mount_id,
                connection: left.connection,
                made_by: match left.by_fusermount {
                    true => MadeBy::Fusermount,
                    false => MadeBy::Us,
                },
            }),
        }
    }

    pub(super) fn leave(&self) -> Left {
        let identity = &*self.identity;
        Left {
            target: identity.target.clone(),
            mount_id: identity.id,
            connection: identity.connection,
            by_fusermount: identity.made_by == MadeBy::Fusermount,
        }
    }

    /// Opens the mount's root, if it is the mount visible at its path.
    pub(super) fn root(&self) -> Result<OwnedFd> {
        let identity = &*self.identity;
        let fd = open(&identity.target)?;
        match look_at(&fd, &identity.target)?.mnt_id == identity.id {
            true => Ok(fd),
            false => Err(Error::Handover {
                why: format!(
                    "another mount covers it at {}, or it is gone",
                    identity.target.display()
                ),
            }),
        }
    }

    /// Detaches the mount, if it is the one visible at its path; returns false if it is not: it is
    /// already gone, or something else was mounted over it. Its users can continue to use it.
    pub fn unmount(&self) -> Result<bool> {
        let identity = &*self.identity;
        match identity.made_by {
            MadeBy::Us => Ok(unmount_id(&identity.target, identity.id)?),
            MadeBy::Fusermount => match look(&identity.target) {
                Ok(seen) if seen.mnt_id == identity.id => {
                    fusermount::unmount(&identity.target)?;
                    Ok(true)
                }
                Ok(_) => Ok(false),
                Err(error) if error.is_not_found() => Ok(false),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Aborts the connection: all uses of the mount fail from now on. For a mount that must end
    /// although it is in use.
    pub fn abort(&self) -> Result<()> {
        let path = format!(
            "/sys/fs/fuse/connections/{}/abort",
            self.identity.connection
        );
        std::fs::write(&path, "1").map_err(|e| vellum_sys::Error::new("write", &path, e))?;
        Ok(())
    }

    /// Returns the number of the connection, which is the minor part of `st_dev` of everything in
    /// the mount (the major part is 0).
    pub fn connection(&self) -> u64 {
        self.identity.connection
    }

    /// Returns the mount's path.
    pub fn target(&self) -> &Path {
        &self.identity.target
    }

    /// Returns the mount's id, as in mountinfo.
    pub fn mount_id(&self) -> u64 {
        self.identity.id
    }
}

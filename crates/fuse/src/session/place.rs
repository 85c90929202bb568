//! Making a mount, putting it in its place, and taking that one away again.

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

/// A connection that the kernel knows, and how its mount came about.
#[derive(Debug)]
pub(super) struct Connected {
    pub device: OwnedFd,
    pub mount: Mount,
}

/// A mount in the making.
#[derive(Debug)]
pub(super) enum Mount {
    /// It is nowhere yet.
    Detached(Detached),
    /// The helper put it in its place already.
    ByFusermount,
}

/// Opens the device and has the kernel send INIT.
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
            tracing::debug!(%error, "mounting is left to fusermount3");
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
    /// Puts the mount in its place. After an error it is gone.
    ///
    /// The mount is asked nothing, neither here nor later (but to wake the workers for a handover):
    /// a process that is killed while it waits for an answer of its own never ends, and nobody can
    /// answer those who wait for it.
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
        let place = |id, connection| Unmounter {
            place: Arc::new(Place {
                target: target.to_owned(),
                id,
                connection,
                made_by,
            }),
        };
        match look(target) {
            Ok(seen) => {
                // A device number of no device: the minor part is all of it.
                let connection = u64::from(rustix::fs::minor(seen.dev));
                Ok(place(id.unwrap_or(seen.mnt_id), connection))
            }
            Err(error) => {
                if let Some(id) = id {
                    // The first error is the one to tell.
                    let _ = place(id, 0).unmount();
                } else {
                    // As above; there is no number to go by.
                    let _ = fusermount::unmount(target);
                }
                Err(error.into())
            }
        }
    }
}

/// Looks what shows at a place, without asking it.
fn look(target: &Path) -> vellum_sys::Result<Whereabouts> {
    look_at(&open(target)?, target)
}

fn look_at(fd: &OwnedFd, target: &Path) -> vellum_sys::Result<Whereabouts> {
    whereabouts(fd).map_err(|e| vellum_sys::Error::new("look at", target, e))
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
struct Place {
    target: PathBuf,
    id: u64,
    connection: u64,
    made_by: MadeBy,
}

/// A place as it is told to a successor.
#[derive(Debug)]
pub(super) struct Left {
    pub target: PathBuf,
    pub mount_id: u64,
    pub connection: u64,
    pub by_fusermount: bool,
}

/// Takes one mount away, and never another.
#[derive(Debug, Clone)]
pub struct Unmounter {
    place: Arc<Place>,
}

impl Unmounter {
    /// Takes over a place.
    pub(super) fn of(left: Left) -> Unmounter {
        Unmounter {
            place: Arc::new(Place {
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
        let place = &*self.place;
        Left {
            target: place.target.clone(),
            mount_id: place.id,
            connection: place.connection,
            by_fusermount: place.made_by == MadeBy::Fusermount,
        }
    }

    /// Opens the mount's root, if it is what shows at its place.
    pub(super) fn root(&self) -> Result<OwnedFd> {
        let place = &*self.place;
        let fd = open(&place.target)?;
        match look_at(&fd, &place.target)?.mnt_id == place.id {
            true => Ok(fd),
            false => Err(Error::Handover {
                why: format!("it does not show at {}", place.target.display()),
            }),
        }
    }

    /// Takes the mount out of sight, if it is what shows at its place; false if it is not: it is
    /// gone already, or something else was mounted over it. Those who use it go on using it.
    pub fn unmount(&self) -> Result<bool> {
        let place = &*self.place;
        match place.made_by {
            MadeBy::Us => Ok(unmount_id(&place.target, place.id)?),
            MadeBy::Fusermount => match look(&place.target) {
                Ok(seen) if seen.mnt_id == place.id => {
                    fusermount::unmount(&place.target)?;
                    Ok(true)
                }
                Ok(_) => Ok(false),
                Err(error) if error.is_not_found() => Ok(false),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Cuts the connection: whoever uses the mount gets errors from now on. For when it must end
    /// although it is in use.
    pub fn abort(&self) -> Result<()> {
        let path = format!("/sys/fs/fuse/connections/{}/abort", self.place.connection);
        std::fs::write(&path, "1").map_err(|e| vellum_sys::Error::new("write", &path, e))?;
        Ok(())
    }

    /// Returns the number of the connection, which is the minor part of `st_dev` of everything in
    /// the mount (the major part is 0).
    pub fn connection(&self) -> u64 {
        self.place.connection
    }

    /// Returns the mount's place.
    pub fn target(&self) -> &Path {
        &self.place.target
    }

    /// Returns the mount's number, as in mountinfo.
    pub fn mount_id(&self) -> u64 {
        self.place.id
    }
}

//! Where an origin leads: the lower inode that a copy was made from.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use vellum_format::Handle;
use vellum_sys::handle::{self, FileHandle};
use vellum_sys::stat::stat_fd;
use vellum_sys::{FileKind, Stat};

use crate::fsck::{Check, root_of};
use crate::layer::Layer;

/// The file system of a layer, as handles name it.
#[derive(Debug)]
pub(super) struct FileSystem {
    pub root: Option<OwnedFd>,
    /// `None`: it has none, or this kernel can't tell.
    uuid: Option<[u8; 16]>,
    dev: Option<u64>,
}

impl FileSystem {
    pub fn of(layer: &Arc<dyn Layer>) -> FileSystem {
        let root = root_of(layer);
        FileSystem {
            uuid: root.as_ref().and_then(handle::file_system_uuid),
            dev: root.as_ref().and_then(|root| Some(stat_fd(root).ok()?.dev)),
            root,
        }
    }

    /// Returns whether a handle may belong to this file system: some mounts leave the UUID out.
    fn may_have(&self, handle: &Handle) -> bool {
        handle.uuid == [0; 16] || self.uuid.is_none_or(|uuid| uuid == handle.uuid)
    }

    /// Returns whether a stored handle is that of the root.
    pub fn root_is(&self, stored: &Handle) -> Option<bool> {
        let own = handle::of(self.root.as_ref()?).ok()??;
        let same = i32::from(stored.kind) == own.kind && stored.bytes == own.bytes;
        Some(same && self.may_have(stored))
    }
}

/// The end of an origin.
#[derive(Debug)]
pub(super) enum Origin {
    /// The inode.
    At(Box<Stat>),
    /// No such inode exists any more.
    Gone,
    /// None of the layers below is on the handle's file system.
    Elsewhere,
    /// This process may not open handles, or the layer can't be asked.
    Unknown,
}

impl Check<'_> {
    /// Follows an origin of layer `layer`.
    pub(super) fn origin(&mut self, layer: usize, stored: &Handle) -> Origin {
        let wanted = FileHandle {
            kind: stored.kind.into(),
            bytes: stored.bytes.clone(),
        };
        let mut end = Origin::Elsewhere;
        let mut asked = Vec::new();
        for below in self.file_systems.iter().skip(layer + 1) {
            let Some(root) = &below.root else { continue };
            if !below.may_have(stored) || asked.contains(&below.dev) {
                continue;
            }
            asked.push(below.dev);
            match handle::open(root, &wanted).and_then(stat_fd) {
                Ok(stat) => return Origin::At(Box::new(stat)),
                Err(error) if error.is(Errno::PERM) => {
                    self.origins_unread = true;
                    return Origin::Unknown;
                }
                // A handle of another form than the file system's is stale or invalid.
                Err(error) if error.is(Errno::STALE) || error.is(Errno::INVAL) => {
                    end = Origin::Gone;
                }
                Err(_) => end = Origin::Unknown,
            }
        }
        end
    }
}

/// Names a type for messages.
pub(super) fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "regular file",
        FileKind::Dir => "directory",
        FileKind::Symlink => "symbolic link",
        FileKind::Char => "character device",
        FileKind::Block => "block device",
        FileKind::Fifo => "pipe",
        FileKind::Socket => "socket",
    }
}

//! A tree that can be read: what a union is made of.
//!
//! A layer shows what is on disk, marks and all; it understands none of them. What they mean is
//! said by its [`Dialect`] and decided in `marks.rs`. Directories are handles, so that nothing is
//! ever looked up by a long path twice; a handle may give its descriptor back at any time and get a
//! new one when asked again.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use vellum_format::Prefix;
use vellum_sys::handle::FileHandle;
use vellum_sys::room::Room;
use vellum_sys::{FileKind, Result, Stat};

use crate::layer::blocks::BlockMaps;

pub(crate) mod blocks;

/// Who made a layer, and so which of its marks are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTrust {
    /// An overlay engine (the kernel's or ours): all its marks are followed.
    Engine,
    /// An archive was unpacked. Whiteouts and opaque directories are followed; a redirect or
    /// metacopy mark, with which an image could read other files of the store, is an error.
    Archive,
}

/// Whether names such as `.wh.x` are marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhNames {
    /// They are names like any other, as in the kernel's overlayfs.
    Plain,
    /// They hide names, as in AUFS trees and those of fuse-overlayfs without privilege.
    Whiteouts,
}

/// Whether owners, modes and refused xattrs are recorded in xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Records {
    /// The inodes are as they are.
    None,
    /// `override_stat` replaces what the inode says, and records of xattrs are shown as those
    /// xattrs.
    Read,
}

/// How a layer writes its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// The namespace of its marks' xattrs; `None` if it has none, and devices 0:0 are devices.
    /// `Trusted` needs CAP_SYS_ADMIN in the initial user namespace to be seen at all.
    pub prefix: Option<Prefix>,
    /// What `.wh.` names are.
    pub wh_names: WhNames,
    /// What stat overrides are.
    pub records: Records,
    /// Who made it.
    pub trust: LayerTrust,
}

impl Dialect {
    /// The kernel's own dialect, in a tree that an overlay engine wrote.
    pub const fn kernel(prefix: Prefix) -> Dialect {
        Dialect {
            prefix: Some(prefix),
            wh_names: WhNames::Plain,
            records: Records::None,
            trust: LayerTrust::Engine,
        }
    }

    /// The kernel's own dialect, in a tree unpacked from an archive.
    pub const fn archive(prefix: Prefix) -> Dialect {
        Dialect {
            trust: LayerTrust::Archive,
            ..Dialect::kernel(prefix)
        }
    }

    /// A whole tree without marks: whatever looks like one is what it looks like.
    pub const fn plain() -> Dialect {
        Dialect {
            prefix: None,
            ..Dialect::archive(Prefix::Trusted)
        }
    }

    /// The same with records read.
    pub const fn with_records(self) -> Dialect {
        Dialect {
            records: Records::Read,
            ..self
        }
    }

    /// The same with `.wh.` names taken for whiteouts.
    pub const fn with_wh_names(self) -> Dialect {
        Dialect {
            wh_names: WhNames::Whiteouts,
            ..self
        }
    }
}

/// A readable tree.
pub trait Layer: Debug + Send + Sync {
    /// Returns what to call it in messages.
    fn name(&self) -> String;
    /// Returns its dialect.
    fn dialect(&self) -> Dialect;
    /// Returns the handle of its root directory.
    fn root(&self) -> Arc<dyn LayerDir>;
    /// Returns the maps of files copied up block by block, if it is an upper layer opened with its
    /// work directory. Without them such a file is an error.
    fn block_maps(&self) -> Option<Arc<BlockMaps>> {
        None
    }
}

/// One name in a directory of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// The name.
    pub name: OsString,
    /// What the inode is, marks not understood.
    pub kind: FileKind,
    /// The inode number the directory gives; under a mount point, that of the covered inode.
    pub ino: u64,
}

/// A handle of one directory of a layer.
///
/// Names are single components and are never followed. Where `name` is an `Option`, `None` is the
/// directory itself.
pub trait LayerDir: Debug + Send + Sync {
    /// Returns the path inside the layer, for messages.
    fn path(&self) -> PathBuf;
    /// Returns the attributes, or `None` if there is no such name.
    fn stat(&self, name: Option<&OsStr>) -> Result<Option<Stat>>;
    /// Returns a handle of the subdirectory `name`; nothing is opened or checked yet.
    fn subdir(&self, name: &OsStr) -> Arc<dyn LayerDir>;
    /// Returns all names, unsorted, without `.` and `..`.
    fn names(&self) -> Result<Vec<RawEntry>>;
    /// Returns the names of all xattrs, as stored.
    fn xattr_names(&self, name: Option<&OsStr>) -> Result<Vec<OsString>>;
    /// Returns the value of a stored xattr, or `None` if there is none.
    fn xattr(&self, name: Option<&OsStr>, xattr: &OsStr) -> Result<Option<Vec<u8>>>;
    /// Returns the target of a symbolic link.
    fn read_link(&self, name: &OsStr) -> Result<OsString>;
    /// Opens a regular file for reading. Errors if it is anything else.
    fn open_file(&self, name: &OsStr) -> Result<File>;
    /// Opens what `name` is without using it (`O_PATH`), or the directory itself.
    fn open_path(&self, name: Option<&OsStr>) -> Result<OwnedFd>;
    /// Returns what its file system calls an inode for good, or `None` if it has no such handles.
    fn handle(&self, name: Option<&OsStr>) -> Result<Option<FileHandle>>;
    /// Returns the room on the file system it is on.
    fn room(&self) -> Result<Room>;
    /// Returns the directory's `FS_*_FL` flags.
    fn flags(&self) -> Result<u32>;
    /// Gives the descriptor back, if one is held; the next question opens the directory again.
    fn release(&self);
}

//! A layer: a readable tree from which unions are built.
//!
//! A layer shows what is on disk, including marks, which it does not interpret. `marks.rs` does
//! that, by the layer's [`Dialect`]. Directories are handles, so that no long path is looked up
//! twice; a handle may close its descriptor at any time and open a new one when next used.

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

/// What wrote a layer, and therefore which of its marks are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTrust {
    /// An overlay engine (the kernel's or ours): all its marks are followed.
    Engine,
    /// An unpacked archive. Whiteouts and opaque directories are followed. A redirect or metacopy
    /// mark, with which an image could read other files of the store, is an error.
    Archive,
}

/// Whether names such as `.wh.x` are marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhNames {
    /// They are ordinary names, as in the kernel's overlayfs.
    Plain,
    /// They hide names, as in trees of AUFS and of unprivileged fuse-overlayfs.
    Whiteouts,
}

/// Whether owners, modes and refused xattrs are recorded in xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Records {
    /// No: the inodes' own attributes count.
    None,
    /// Yes: `override_stat` replaces the inode's attributes, and records of xattrs are shown as
    /// those xattrs.
    Read,
}

/// How a layer writes its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// The namespace of its marks' xattrs; `None` if it has no marks, and devices 0:0 are devices.
    /// Reading `Trusted` needs CAP_SYS_ADMIN in the initial user namespace.
    pub prefix: Option<Prefix>,
    /// Whether `.wh.` names are marks.
    pub wh_names: WhNames,
    /// Whether there are records.
    pub records: Records,
    /// What wrote it.
    pub trust: LayerTrust,
}

impl Dialect {
    /// Returns the kernel's dialect, for a tree that an overlay engine wrote.
    pub const fn kernel(prefix: Prefix) -> Dialect {
        Dialect {
            prefix: Some(prefix),
            wh_names: WhNames::Plain,
            records: Records::None,
            trust: LayerTrust::Engine,
        }
    }

    /// Returns the kernel's dialect, for a tree unpacked from an archive.
    pub const fn archive(prefix: Prefix) -> Dialect {
        Dialect {
            trust: LayerTrust::Archive,
            ..Dialect::kernel(prefix)
        }
    }

    /// Returns the dialect of a tree without marks: what looks like a mark is an ordinary file.
    pub const fn plain() -> Dialect {
        Dialect {
            prefix: None,
            ..Dialect::archive(Prefix::Trusted)
        }
    }

    /// Returns the same with records read.
    pub const fn with_records(self) -> Dialect {
        Dialect {
            records: Records::Read,
            ..self
        }
    }

    /// Returns the same with `.wh.` names read as whiteouts.
    pub const fn with_wh_names(self) -> Dialect {
        Dialect {
            wh_names: WhNames::Whiteouts,
            ..self
        }
    }
}

/// A readable tree.
pub trait Layer: Debug + Send + Sync {
    /// Returns its name for messages.
    fn name(&self) -> String;
    /// Returns its dialect.
    fn dialect(&self) -> Dialect;
    /// Returns the handle of its root directory.
    fn root(&self) -> Arc<dyn LayerDir>;
    /// Returns the maps of files copied up block by block, if this is an upper layer opened with
    /// its work directory. Without them such a file is an error.
    fn block_maps(&self) -> Option<Arc<BlockMaps>> {
        None
    }
}

/// One name in a directory of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// The name.
    pub name: OsString,
    /// The inode's type, with marks not interpreted.
    pub kind: FileKind,
    /// The inode number in the directory; for a mount point, that of the covered inode.
    pub ino: u64,
}

/// A handle of one directory of a layer.
///
/// Names are single components and are never followed. Where `name` is an `Option`, `None` is the
/// directory itself.
pub trait LayerDir: Debug + Send + Sync {
    /// Returns the path inside the layer, for messages.
    fn path(&self) -> PathBuf;
    /// Returns the attributes, or `None` if the name does not exist.
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
    /// Opens `name`, or the directory itself, as a mere reference (`O_PATH`).
    fn open_path(&self, name: Option<&OsStr>) -> Result<OwnedFd>;
    /// Returns the file system's permanent handle of an inode, or `None` if it has no handles.
    fn handle(&self, name: Option<&OsStr>) -> Result<Option<FileHandle>>;
    /// Returns the space on its file system.
    fn room(&self) -> Result<Room>;
    /// Returns the directory's `FS_*_FL` flags.
    fn flags(&self) -> Result<u32>;
    /// Closes the descriptor, if one is open; the next use opens the directory again.
    fn release(&self);
}

//! The engine's requests and answers: plain values.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;

use vellum_sys::{FileKind, Timespec};

/// A live node of an engine. Valid from the lookup that returned it until it has been forgotten as
/// often as it was returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory. Never forgotten.
    pub const ROOT: NodeId = NodeId(1);
}

/// The single file on disk that has a file's bytes at the moment.
#[derive(Debug, Clone)]
pub enum Backing {
    /// A lower layer's, for reading only. It has them until the file is copied up; later writes are
    /// not in it.
    Lower(Arc<File>),
    /// The file's own in the upper layer, which does not change any more.
    Upper(Arc<File>),
    /// None: the bytes are in more than one file, or every access needs a request.
    None,
}

/// The process that a request is for. Its permission was checked before (by the kernel); this says
/// who owns new files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user, as seen inside the union.
    pub uid: u32,
    /// Effective group, as seen inside the union.
    pub gid: u32,
    /// Bits to clear in the mode of new files, unless the directory has a default ACL.
    pub umask: u32,
}

/// Attributes as a user of the union sees them: ids mapped, records applied, inode number stable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// The inode number; copy-up, rename and remount don't change it.
    pub ino: u64,
    /// Its type.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid, sticky: 12 bits.
    pub mode: u32,
    /// Hard links in the union; 1 for every directory whose content is merged.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for devices.
    pub rdev: (u32, u32),
    /// Size in bytes.
    pub size_bytes: u64,
    /// Blocks of 512 bytes in use, in any layer.
    pub blocks_512: u64,
    /// Preferred I/O size.
    pub block_bytes: u32,
    /// Last access.
    pub atime: Timespec,
    /// Last change of content.
    pub mtime: Timespec,
    /// Last change of anything.
    pub ctime: Timespec,
}

/// A node that was looked up or created. The caller owes a forget for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Distinguishes nodes that had the same [`NodeId`], in this opening of the union or another.
    pub generation: u64,
    /// Its attributes now.
    pub attr: Attr,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This time.
    To(Timespec),
}

/// Attributes to change; `None` leaves one alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// 12 bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size_bytes: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Clear setuid, and setgid if the group may execute: the caller may not keep them.
    pub clear_privileges: bool,
}

/// What to create under a new name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewNode {
    /// An empty regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link to this.
    Symlink(OsString),
    /// A pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device; 0:0 is refused.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
}

/// How a rename treats what is at the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It is an error if the name exists.
    NoReplace,
    /// Both names are exchanged.
    Exchange,
    /// As `Replace`, but leaves a whiteout at the old name. Refused: whiteouts can't be created
    /// through a union.
    Whiteout,
}

/// One name in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The name.
    pub name: OsString,
    /// The inode number, the same as `Attr::ino` of this name.
    pub ino: u64,
    /// Its type.
    pub kind: FileKind,
    /// Where to continue after it: valid for this node until it is forgotten, whatever is created
    /// or removed in between.
    pub next: u64,
}

/// What to look for in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// Data.
    Data,
    /// A hole; the end of the file is one.
    Hole,
}

/// A file system's space, in blocks of `block_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Blocks free for users other than root.
    pub blocks_available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
    /// The longest name in bytes.
    pub name_max_bytes: u32,
}

//! How a union is mounted: plain values, already understood by whoever parsed them.

use std::ffi::OsString;
use std::time::Duration;

/// Where reads and writes of regular files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataMode {
    /// All through the engine: every descriptor and mapping follows its file over a copy-up.
    Coherent,
    /// Straight to the file underneath, with its page cache. Needs root in the first user
    /// namespace.
    Passthrough,
}

/// How an open is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// The kernel is told once that opens need no answer. What would refuse one refuses the first
    /// write instead.
    Free,
    /// Each open is looked at: immutable files and the like are refused there.
    Checked,
}

/// Who makes the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounter {
    /// This process if it may, else `fusermount3`.
    Any,
    /// This process, through the mount API.
    Kernel,
    /// The set-user-id helper of libfuse.
    Fusermount,
}

/// Flags of the mount itself, as in mount(8); the kernel looks after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountFlags {
    /// Refuse writing.
    pub read_only: bool,
    /// Ignore setuid and setgid bits.
    pub nosuid: bool,
    /// Devices can't be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Reading leaves the access time alone.
    pub noatime: bool,
    /// The same for directories only.
    pub nodiratime: bool,
    /// Every change is written at once.
    pub sync: bool,
    /// The same for changes of directories only.
    pub dirsync: bool,
}

/// Everything about a mount but what is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// The first column of /proc/mounts.
    pub source: OsString,
    /// The file system's type is `fuse.` and this; plain `fuse` without.
    pub subtype: Option<String>,
    /// Others than who mounts may use it.
    pub allow_other: bool,
    /// Of those who may use it, all but this user and root are refused by the server
    /// (`allow_root`). For that it has to be asked each time: nothing is believed longer than a
    /// moment, whatever `timeout` says.
    pub only: Option<u32>,
    /// The kernel checks permissions by mode, owner and ACL. Without it nobody does: only for a
    /// mount of one's own.
    pub default_permissions: bool,
    /// ACLs count.
    pub acl: bool,
    /// How long the kernel believes names and attributes it was told. Nobody but this daemon
    /// changes them.
    pub timeout: Duration,
    /// Where data goes.
    pub data: DataMode,
    /// How opens are answered.
    pub open: OpenMode,
    /// Let the kernel keep what is written for a while. Ignored with a size limit.
    pub writeback: bool,
    /// The most bytes of one WRITE, from a page to 1 MiB; others are made the nearest that can be,
    /// in whole pages. `None`: 1 MiB.
    pub max_write_bytes: Option<u32>,
    /// fsync(2) syncs nothing.
    pub no_fsync: bool,
    /// How many threads answer as a rule; more are started while all of them wait. `None`: as many
    /// as suit the machine.
    pub workers: Option<usize>,
    /// Take requests over io_uring where the kernel offers it.
    pub io_uring: bool,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Other options of the kernel, as `name` or `name=value`: `context` and its kin.
    pub extra: Vec<OsString>,
    /// Who makes the mount.
    pub mounter: Mounter,
}

impl Default for MountOptions {
    /// A private mount that behaves like any file system.
    fn default() -> MountOptions {
        MountOptions {
            source: OsString::from("vellum"),
            subtype: Some(String::from("vellum")),
            allow_other: false,
            only: None,
            default_permissions: true,
            acl: true,
            timeout: Duration::from_secs(1_000_000_000),
            data: DataMode::Coherent,
            open: OpenMode::Free,
            writeback: false,
            max_write_bytes: None,
            no_fsync: false,
            workers: None,
            io_uring: true,
            flags: MountFlags::default(),
            extra: Vec::new(),
            mounter: Mounter::Any,
        }
    }
}

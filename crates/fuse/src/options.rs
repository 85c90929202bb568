//! How a union is mounted: plain values, already parsed.

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
    /// The kernel is told once that opens need no answer. What would refuse an open refuses the
    /// first write instead.
    Free,
    /// Each open is checked: immutable files and the like are refused there.
    Checked,
}

/// Who makes the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounter {
    /// This process if it may, else `fusermount3`.
    Any,
    /// This process, through the mount API.
    Kernel,
    /// libfuse's set-user-id helper.
    Fusermount,
}

/// Flags of the mount itself, as in mount(8); the kernel enforces them.
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

/// Everything about a mount except what is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// The first column of /proc/mounts.
    pub source: OsString,
    /// The file system type is `fuse.` and this; plain `fuse` without.
    pub subtype: Option<String>,
    /// Users other than the mounting one may use it.
    pub allow_other: bool,
    /// The server answers only this user and root, out of all who may use the mount (`allow_root`).
    /// It must see each request to do so: nothing is cached for longer than a moment, whatever
    /// `timeout` says.
    pub only: Option<u32>,
    /// The kernel checks permissions by mode, owner and ACL. Without it nothing does: use that only
    /// for a private mount.
    pub default_permissions: bool,
    /// ACLs are enforced.
    pub acl: bool,
    /// How long the kernel caches names and attributes. Only this daemon changes them.
    pub timeout: Duration,
    /// Where data goes.
    pub data: DataMode,
    /// How opens are answered.
    pub open: OpenMode,
    /// Let the kernel keep written data for a while. Ignored with a size limit.
    pub writeback: bool,
    /// The most bytes of one WRITE, from a page to 1 MiB; other values are rounded to the nearest
    /// possible number of whole pages. `None`: 1 MiB.
    pub max_write_bytes: Option<u32>,
    /// fsync(2) syncs nothing.
    pub no_fsync: bool,
    /// How many threads normally answer; more are started while all of them wait. `None`: as many
    /// as suit the machine.
    pub workers: Option<usize>,
    /// Take requests over io_uring where the kernel offers it.
    pub io_uring: bool,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Other kernel options, as `name` or `name=value`: `context` and the like.
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

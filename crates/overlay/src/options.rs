//! What a mount of Vellum's own engine is asked for: plain values, whoever asked and however it was spelled.
//!
//! [`crate::parse`] makes them of `-o` strings, the mount plan makes them of a store's layers. Nothing here touches files.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use vellum_fuse::{DataMode, MountFlags, OpenMode};
use vellum_union::engine::{IdRules, Limit};

use crate::values::Toggle;

/// A file is copied up block by block from this size on.
///
/// Below it a whole copy costs about as much as the bookkeeping, and leaves a plain file that every reader understands.
pub const BLOCKS_FROM_BYTES: u64 = 4 << 20;

/// How long names and attributes are remembered by the kernel where nothing else is said: for ever, as far as a FUSE reply can say it.
/// The engine is the only writer, so nothing it told ever turns wrong by itself.
pub const CACHE_FOR: Duration = Duration::from_secs(1_000_000_000);

/// On whose terms the mount is made: how strictly options are read, and what holds where none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// Vellum's own: an option that isn't understood is an error.
    Own,
    /// fuse-overlayfs's: an option that isn't understood is told once and left out. Its callers hand an upper to other programs without
    /// knowing of marks, so nothing is written that the kernel's default mount can't read, and unmounting settles.
    FuseOverlayfs,
}

/// Whether directories of lower layers can be renamed, and marks of such renames are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirects {
    /// Written and followed.
    On,
    /// Followed where they are, none is written.
    Follow,
    /// Neither: a lower layer with one is refused.
    NoFollow,
}

/// Whose marks are followed in lower layers that are named on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Those of layers whose work directory says that an engine made them; of all others none: they may come from an archive.
    ByRecord,
    /// Everybody's: the caller knows that an overlay engine wrote every layer.
    Engine,
    /// Nobody's.
    Archive,
}

/// Whether names such as `.wh.x` hide other names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhFiles {
    /// In layers that may have been written that way.
    Auto,
    /// Nowhere: they are names like any other.
    Plain,
    /// In every layer.
    Whiteouts,
}

/// When files that are partly in lower layers are made whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// By `vellum settle`.
    Manual,
    /// At the unmount.
    Unmount,
}

/// Who may use the mount besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody.
    Owner,
    /// Root.
    Root,
    /// Everybody, as permissions say.
    All,
}

/// One mount of the engine. Paths are as given: see [`MountOptions::made_absolute`].
#[derive(Debug, Clone, PartialEq)]
pub struct MountOptions {
    /// Read-only layers, top first; at least one.
    pub lowers: Vec<PathBuf>,
    /// Layers below them whose files are reached by metacopies only.
    pub data_lowers: Vec<PathBuf>,
    /// Where changes go. `None`: the union is read-only.
    pub upper: Option<PathBuf>,
    /// Goes with the upper, on its file system.
    pub work: Option<PathBuf>,
    /// Owners inside and outside.
    pub ids: IdRules,
    /// Directories have link count 1.
    pub static_nlink: bool,
    /// Inode numbers have 32 bits.
    pub ino_32_bits: bool,
    /// Every call on xattrs is refused.
    pub no_xattrs: bool,
    /// POSIX ACLs are xattrs like any other.
    pub no_acl: bool,
    /// Owners, modes and devices that can't be set are recorded in xattrs. Off: read where a layer's root has such a record.
    pub records: bool,
    /// Nothing is synced.
    pub is_volatile: bool,
    /// A copy is durable before it shows, and not only in order.
    pub sync_copies: bool,
    /// Directories of lower layers.
    pub redirects: Redirects,
    /// Attributes change without a copy of the data.
    pub metacopy: bool,
    /// Hard links of lower files stay one file.
    pub index: bool,
    /// Inode numbers unique over all layers: `On` requires handles in every layer.
    pub xino: Toggle,
    /// Marks are `user.overlay.*`. `None`: wherever `trusted.overlay.*` can't be had.
    pub user_xattr: Option<bool>,
    /// Whose marks are followed in lower layers.
    pub trust: Trust,
    /// Besides those, the marks of these layers are followed: numbers of `lowers`, from 0.
    pub trusted: Vec<usize>,
    /// What `.wh.` names are.
    pub wh_files: WhFiles,
    /// How long the kernel remembers names and attributes.
    pub cache_for: Duration,
    /// The kernel collects writes before it hands them over.
    pub writeback: bool,
    /// How data travels.
    pub data: DataMode,
    /// When refusals are told.
    pub open: OpenMode,
    /// The most the upper may hold.
    pub limit: Limit,
    /// When partly copied files are made whole.
    pub settle: Settle,
    /// Files from this size on are copied block by block; `None`: none.
    pub blocks_from_bytes: Option<u64>,
    /// Kernel mount flags.
    pub flags: MountFlags,
    /// Who may use it. `None`: everybody if root mounts, else the owner.
    pub access: Option<Access>,
    /// How many threads serve. `None`: as many as suit the machine.
    pub threads: Option<usize>,
    /// Requests come over io_uring where the kernel offers it.
    pub io_uring: bool,
    /// The most bytes of one write request.
    pub max_write_bytes: Option<u32>,
    /// The SELinux label of the whole mount.
    pub context: Option<OsString>,
    /// What the mount table calls the source.
    pub source: Option<OsString>,
    /// Every request is told on stderr, and the program stays in the foreground.
    pub debug: bool,
}

impl MountOptions {
    /// Returns what holds where nothing is said.
    pub fn new(manners: Manners) -> MountOptions {
        let own = manners == Manners::Own;
        MountOptions {
            lowers: Vec::new(),
            data_lowers: Vec::new(),
            upper: None,
            work: None,
            ids: IdRules::default(),
            static_nlink: false,
            ino_32_bits: false,
            no_xattrs: false,
            no_acl: false,
            records: false,
            is_volatile: false,
            sync_copies: false,
            redirects: Redirects::On,
            metacopy: own,
            index: true,
            xino: Toggle::Auto,
            user_xattr: None,
            trust: Trust::ByRecord,
            trusted: Vec::new(),
            wh_files: WhFiles::Auto,
            cache_for: CACHE_FOR,
            writeback: false,
            data: DataMode::Coherent,
            open: OpenMode::Free,
            limit: Limit::default(),
            settle: if own { Settle::Manual } else { Settle::Unmount },
            blocks_from_bytes: Some(BLOCKS_FROM_BYTES),
            flags: MountFlags {
                noatime: true,
                ..MountFlags::default()
            },
            access: None,
            threads: None,
            io_uring: true,
            max_write_bytes: None,
            context: None,
            source: None,
            debug: false,
        }
    }

    /// Returns the same with every path absolute: `base` is where relative ones start. Links are not resolved.
    pub fn made_absolute(mut self, base: &std::path::Path) -> MountOptions {
        let all = self.lowers.iter_mut().chain(&mut self.data_lowers);
        for path in all.chain(&mut self.upper).chain(&mut self.work) {
            if path.is_relative() {
                *path = base.join(&*path);
            }
        }
        self
    }
}

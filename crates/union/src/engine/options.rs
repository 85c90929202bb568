//! An engine's options: its layers, and how it behaves.

use std::path::PathBuf;
use std::sync::Arc;

use vellum_format::{IdRun, Prefix};

use crate::layer::{Layer, Records, WhNames};

/// The union to open.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The lower layers, the top one first; at least one.
    pub lowers: Vec<Arc<dyn Layer>>,
    /// Data-only layers, below the others.
    pub data_lowers: Vec<Arc<dyn Layer>>,
    /// Where changes go; without it, the union is read-only.
    pub upper: Option<UpperOptions>,
    /// Owners inside and outside.
    pub ids: IdRules,
    /// Owners by layer, for a reader that maps each back to the owner in the layers. Used only
    /// without an upper layer.
    pub reader_ids: Option<ReaderIds>,
    /// Show 1 as the link count of every directory.
    pub static_nlink: bool,
    /// Shorten inode numbers to 32 bits.
    pub ino_32_bits: bool,
    /// Refuse all xattrs (ENOTSUP).
    pub no_xattrs: bool,
}

impl EngineOptions {
    /// Returns a read-only union of `lowers`, the top one first, that shows them as they are.
    pub fn new(lowers: Vec<Arc<dyn Layer>>) -> Self {
        Self {
            lowers,
            data_lowers: Vec::new(),
            upper: None,
            ids: IdRules::default(),
            reader_ids: None,
            static_nlink: false,
            ino_32_bits: false,
            no_xattrs: false,
        }
    }
}

/// How to show owners to a reader that maps each back by the same rules, and takes an id without a
/// counterpart as the one in the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderIds {
    /// Owners inside and outside, on disk.
    pub rules: IdRules,
    /// Which ids each lower layer holds, the top one first; layers not listed hold those of the
    /// outside.
    pub layers: Vec<Holds>,
}

/// Which side's ids a layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// The outside's: each is mapped. One without a counterpart never shows as another's.
    Outside,
    /// The inside's: they show as they are.
    Inside,
    /// The outside's, sometimes the inside's: an id without a counterpart shows as it is if other
    /// ids are mapped to it.
    Both,
}

/// The writable part of a union.
#[derive(Debug, Clone)]
pub struct UpperOptions {
    /// The upper directory.
    pub upper: PathBuf,
    /// The work directory, on the same file system.
    pub work: PathBuf,
    /// The namespace of the marks that are written.
    pub prefix: Prefix,
    /// Whether owners, modes and devices that can't be set are recorded in xattrs.
    pub records: Records,
    /// Whether `.wh.` names in the upper are marks or ordinary names. On a file system that takes
    /// neither devices 0:0 nor xattrs, whiteouts are written in this form.
    pub wh_names: WhNames,
    /// What is synced, and when.
    pub durability: Durability,
    /// Whether directories of lower layers may be renamed, with a redirect; if not, renaming them
    /// fails with EXDEV, as in the kernel.
    pub redirect_dir: bool,
    /// Whether attributes may change without copying the data up.
    pub metacopy: bool,
    /// Whether hard links of lower files stay one file.
    pub index: bool,
    /// Lower files of at least this many bytes are copied block by block when written to; `None`:
    /// never.
    pub blocks_from_bytes: Option<u64>,
    /// The most bytes and inodes the upper may hold.
    pub limit: Limit,
}

impl UpperOptions {
    /// Returns an upper that copies files whole, preserves all that the kernel's overlay preserves
    /// with every feature on, and has no limit.
    pub fn new(upper: PathBuf, work: PathBuf, prefix: Prefix) -> Self {
        Self {
            upper,
            work,
            prefix,
            records: Records::None,
            wh_names: WhNames::Plain,
            durability: Durability::Ordered,
            redirect_dir: true,
            metacopy: true,
            index: true,
            blocks_from_bytes: None,
            limit: Limit::default(),
        }
    }
}

/// What is synced, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A copy is on disk before it shows; fsync syncs.
    Full,
    /// A copy's bytes reach the disk before the copy does: a crash of the machine leaves the whole
    /// copy, or still the original. fsync syncs.
    Ordered,
    /// Nothing is synced; after a crash of the machine the upper can't be trusted.
    Volatile,
}

/// The most an upper may hold; `None`: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// Bytes on disk.
    pub size_bytes: Option<u64>,
    /// Inodes.
    pub inodes: Option<u64>,
}

/// How owners are shown and stored. Empty runs leave ids as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdRules {
    /// Users, on disk outside.
    pub uids: Vec<IdRun>,
    /// Groups, likewise.
    pub gids: Vec<IdRun>,
    /// Show every file as this user's.
    pub squash_uid: Option<u32>,
    /// Show every file as this group's.
    pub squash_gid: Option<u32>,
    /// The owner on disk of files created by a user without a counterpart; `None`: such a user
    /// can't create files. If this id itself has no counterpart, the last mapped id is used.
    pub strangers: Option<u32>,
}

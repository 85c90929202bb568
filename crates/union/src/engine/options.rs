//! What an engine is made of: layers, and how it behaves.

use std::path::PathBuf;
use std::sync::Arc;

use vellum_format::{IdRun, Prefix};

use crate::layer::{Layer, Records, WhNames};

/// A union to be opened for use.
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
    /// Owners by layer, for a reader that takes each back to what the layers hold. It counts only
    /// without an upper layer.
    pub reader_ids: Option<ReaderIds>,
    /// Show 1 as the link count of every directory.
    pub static_nlink: bool,
    /// Cut inode numbers to 32 bits.
    pub ino_32_bits: bool,
    /// Refuse all xattrs (ENOTSUP).
    pub no_xattrs: bool,
}

impl EngineOptions {
    /// Returns a union of `lowers`, the top one first, that shows them as they are and takes no
    /// changes.
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

/// How owners are shown to a reader that maps each back by the same rules, and takes what has no
/// counterpart for what the layers hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderIds {
    /// Owners inside and outside, on disk.
    pub rules: IdRules,
    /// What each lower layer holds, the top one first; those that are not listed hold what is on
    /// the outside.
    pub layers: Vec<Holds>,
}

/// Which side's ids a layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// The outside's: each is mapped. One that has no counterpart never shows as another's.
    Outside,
    /// The inside's: they show as they are.
    Inside,
    /// The outside's, and here and there the inside's: an id without a counterpart shows as it is
    /// if it is one that others show as.
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
    /// What `.wh.` names in the upper are: marks that are read there, or names like any other.
    /// Where the file system takes neither devices 0:0 nor xattrs, whiteouts are written so.
    pub wh_names: WhNames,
    /// What is synced before it counts.
    pub durability: Durability,
    /// Whether directories of lower layers may be renamed with a redirect; without it that is
    /// EXDEV, as in the kernel.
    pub redirect_dir: bool,
    /// Whether attributes may change without a copy of the data.
    pub metacopy: bool,
    /// Whether hard links of lower files stay one file.
    pub index: bool,
    /// Lower files of at least so many bytes are copied block by block when written to; `None`:
    /// never.
    pub blocks_from_bytes: Option<u64>,
    /// The most bytes and inodes the upper may hold.
    pub limit: Limit,
}

impl UpperOptions {
    /// Returns an upper that copies files whole, keeps all that the kernel's overlay keeps with
    /// every feature on, and has no limit.
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

/// What is synced before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A copy is on disk before it shows; fsync syncs.
    Full,
    /// A copy's bytes are on disk before the copy can be: after a crash of the machine there is all
    /// of it, or still what it was made of. fsync syncs.
    Ordered,
    /// Nothing is synced; after a crash of the machine the upper is worth nothing.
    Volatile,
}

/// The most an upper may hold; `None` is no limit.
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
    /// Who on disk owns what somebody without a counterpart makes; none: he makes nothing. If this
    /// one has no counterpart itself, it is the last on disk who has one.
    pub strangers: Option<u32>,
}

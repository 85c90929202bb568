//! Limits on what a layer may ask for, since layers are untrusted.
//!
//! Every limit has a name that appears in [`Error::Limit`]. The defaults are far above what real
//! images need and far below what would do harm. Memory use grows only with `max_entries` (about 40
//! bytes an entry), never with the size of files.

use std::path::Path;

use crate::error::Error;

/// The limits for one layer. Sizes are in bytes of the uncompressed tar unless stated otherwise.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries of the tar, whiteouts and links included.
    pub max_entries: u64,
    /// Components of a name.
    pub max_depth: u64,
    /// Bytes of a whole path in the tree, at most 4,095 on Linux: no program can name a longer one.
    pub max_path_bytes: u64,
    /// Bytes of one component, at most 255 on Linux.
    pub max_name_bytes: u64,
    /// Bytes of one extended header (PAX records, a long name). All those of one entry together may
    /// have 16 times as many.
    pub max_header_bytes: u64,
    /// Data ranges of one sparse file.
    pub max_sparse_ranges: u64,
    /// Apparent size of one file, holes included.
    pub max_file_bytes: u64,
    /// The whole tar.
    pub max_tar_bytes: u64,
    /// Uncompressed bytes per compressed byte, checked only once the tar is larger than 1 GiB. gzip
    /// can't exceed 1,032; zstd reaches about 33,000 on zeros.
    pub max_ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 2_000_000,
            max_depth: 512,
            max_path_bytes: 4095,
            max_name_bytes: 255,
            max_header_bytes: 1024 * 1024,
            max_sparse_ranges: 500_000,
            max_file_bytes: 8 << 40,
            max_tar_bytes: 1 << 40,
            max_ratio: 50_000,
        }
    }
}

/// Above this many bytes of tar the decompression ratio is checked: a small layer of zeros does no
/// harm.
pub(crate) const RATIO_COUNTS_FROM_BYTES: u64 = 1 << 30;

/// Returns `Error::Limit` if `value` is above `max`.
pub(crate) fn check(
    limit: &'static str,
    value: u64,
    max: u64,
    path: Option<&Path>,
) -> Result<(), Error> {
    if value <= max {
        return Ok(());
    }
    Err(Error::Limit {
        limit,
        max,
        path: path.map(Path::to_owned),
    })
}

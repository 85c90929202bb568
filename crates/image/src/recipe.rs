//! The recipe of a layer: everything in its tar that is not file content, so that tree and recipe
//! together reproduce the tar byte for byte.
//!
//! A tree can't say in which order its entries came, how their headers were spelled, or what the
//! padding contained. The recipe can, and it names the file for each run of content instead of
//! repeating it. Content that the tree does not hold in the end (a file that a later entry of the
//! same layer replaces or hides) is in the recipe itself. The recipe doesn't know why an entry is
//! where it is.
//!
//! On disk: eight bytes of magic and version, then one zstd frame with a checksum, which contains
//! segments one after the other. Numbers are LEB128. Changing any of it needs a new version byte.
//!
//! ```text
//! 0 END     tar_bytes, payload count, diff ID (32 bytes)
//! 1 RAW     length, bytes
//! 2 FILE    path length, path, length, CRC-32 (4 bytes, little-endian): the whole file's content
//! 3 SPARSE  path length, path, n, n times (gap, length), CRC-32: these ranges of the file
//! 4 KEPT    ordinal, file size, then (gap, length, bytes)* with length 0 last: content of payload
//!           `ordinal`, which the tree lost
//! ```
//!
//! Payloads (FILE and SPARSE) are counted from 0 in order. The checksum lets a changed file be
//! named; only the diff ID proves that the whole is right.

mod read;
mod write;

pub(crate) use write::next_data;

pub use read::{
    Alike, Content, Gather, Instead, Replayed, Survey, likenesses, prove, replay, survey, verify,
};
pub use write::RecipeWriter;

/// "VLMRCP", a zero, and the version. A reader refuses every other version.
const MAGIC: [u8; 8] = *b"VLMRCP\0\x01";

const END: u8 = 0;
const RAW: u8 = 1;
const FILE: u8 = 2;
const SPARSE: u8 = 3;
const KEPT: u8 = 4;

/// The longest RAW segment or piece of KEPT content; a reader needs no larger buffer.
const PIECE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;

//! Where each byte of a file copied up block by block is, and reading it from there.

use std::os::fd::AsFd;

use rustix::io::Errno;
use vellum_format::block_map::BlockMap;
use vellum_sys::{Error, Result, data};

/// The two files, and the map that says which of them has a byte.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub map: &'a BlockMap,
    pub upper: &'a std::fs::File,
    pub lower: &'a std::fs::File,
    /// The upper file's size, which is the file's size.
    pub size_bytes: u64,
}

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Upper,
    Lower,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    Data,
    Hole,
}

/// Returns which file has the byte at `at`, and up to where it has all bytes (at most `end`, which
/// is after `at`).
pub(crate) fn side(map: &BlockMap, at: u64, end: u64) -> (Side, u64) {
    if at >= map.limit_bytes {
        return (Side::Upper, end);
    }
    let block_bytes = u64::from(map.header.block_bytes);
    let first = at / block_bytes;
    let last = end.min(map.limit_bytes).div_ceil(block_bytes);
    let run = map.blocks.run_end(first, last).saturating_mul(block_bytes);
    match map.blocks.contains(first) {
        // The last written block may extend past the limit; from there on bytes are the upper's
        // anyway.
        true if run >= map.limit_bytes => (Side::Upper, end),
        true => (Side::Upper, end.min(run)),
        false => (Side::Lower, end.min(run).min(map.limit_bytes)),
    }
}

impl View<'_> {
    /// Reads from `offset` on; a short count means the end of the file.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let end = self
            .size_bytes
            .min(offset.saturating_add(buffer.len() as u64));
        let mut at = offset;
        while at < end {
            let (side, until) = side(self.map, at, end);
            let into = &mut buffer[(at - offset) as usize..(until - offset) as usize];
            match side {
                Side::Upper => {
                    let count = data::read_at(self.upper, into, at)?;
                    into[count..].fill(0);
                }
                Side::Lower => read_lower(self.lower, into, at)?,
            }
            at = until;
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    /// Returns where data, or a hole, begins at or after `offset`, as SEEK_DATA and SEEK_HOLE do:
    /// the end is a hole.
    pub fn seek(&self, offset: u64, piece: Piece) -> Result<Option<u64>> {
        let mut at = offset;
        while at < self.size_bytes {
            let (side, until) = side(self.map, at, self.size_bytes);
            let file = match side {
                Side::Upper => self.upper,
                Side::Lower => self.lower,
            };
            let found = match piece {
                Piece::Data => data::seek_data(file, at)?,
                // A file that ends here has a hole here.
                Piece::Hole => data::seek_hole(file, at)?.or(Some(at)),
            };
            if let Some(found) = found.filter(|&found| found < until) {
                return Ok(Some(found));
            }
            at = until;
        }
        match piece {
            Piece::Hole if offset < self.size_bytes => Ok(Some(self.size_bytes)),
            _ => Ok(None),
        }
    }
}

/// Fills `buffer` from the lower file. If that has become shorter, it is not the file that was
/// copied: an error, not zeros.
pub(crate) fn read_lower(lower: impl AsFd, buffer: &mut [u8], offset: u64) -> Result<()> {
    match data::read_at(&lower, buffer, offset)? == buffer.len() {
        true => Ok(()),
        false => Err(Error::at(
            "read the rest of the lower file",
            lower.as_fd(),
            "",
            Errno::IO,
        )),
    }
}

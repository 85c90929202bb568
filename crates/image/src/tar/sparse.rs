//! Which part of a regular file follows in the archive: all of it, or ranges with holes between them.
//!
//! GNU tar has written sparse files in four forms: ranges in the header and in blocks behind it ("old GNU"), pairs of PAX records (0.0), one
//! PAX record (0.1), decimal lines before the content (1.0). All end up as the same list, and all are held to the same rule: ranges
//! ascend, do not overlap, lie within the file and add up to the content.

use tar_core::{GnuSparseHeader, Header};

use super::number;
use super::pax;
use super::reader::{BLOCK, Entry, Range, TarReader, TarSource, padding};
use crate::error::{Error, Result};
use crate::limits::check;

impl<S: TarSource> TarReader<S> {
    /// Decides what of a regular file follows: all of it, or the ranges of a sparse one.
    pub(super) fn content(
        &mut self,
        entry: &mut Entry,
        offset: u64,
        header: &Header,
        size: u64,
        sparse: pax::Sparse,
    ) -> Result<()> {
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: why.to_owned(),
        };
        let mut payload = size;
        self.padding = padding(size);
        let (ranges, size_bytes) = if header.as_ustar().typeflag[0] == b'S' {
            if sparse.is_present() {
                return Err(bad("two sparse maps for one file"));
            }
            let real = number::field(&header.as_gnu().realsize)
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(|| bad("its real size is no number"))?;
            (self.gnu_ranges(header, offset)?, real)
        } else if sparse.is_present() {
            let real = sparse
                .size
                .ok_or_else(|| bad("a sparse file without a size"))?;
            match (sparse.major, sparse.minor) {
                (Some(1), Some(0)) if sparse.map.is_none() => {
                    let (ranges, map_bytes) = self.map_in_content(offset, size)?;
                    payload -= map_bytes;
                    (ranges, real)
                }
                (None, None) | (Some(0), Some(0 | 1)) => {
                    let ranges = sparse.map.unwrap_or_default();
                    if sparse
                        .count
                        .is_some_and(|count| count != ranges.len() as u64)
                    {
                        return Err(bad("a sparse map of another length than it says"));
                    }
                    (ranges, real)
                }
                _ => return Err(bad("a sparse file of an unknown version")),
            }
        } else {
            entry.size_bytes = size;
            entry.payload_bytes = size;
            self.payload_left = size;
            return Ok(());
        };
        let mut end = 0u64;
        let mut sum = 0u64;
        for range in &ranges {
            if range.offset < end {
                return Err(bad("a sparse map whose ranges overlap or go backwards"));
            }
            end = range
                .offset
                .checked_add(range.length)
                .filter(|end| *end <= size_bytes)
                .ok_or_else(|| bad("a sparse map that goes beyond the file's end"))?;
            sum += range.length;
        }
        if sum != payload {
            return Err(bad("a sparse map that does not add up to the content"));
        }
        entry.size_bytes = size_bytes;
        entry.payload_bytes = payload;
        entry.ranges = Some(
            ranges
                .into_iter()
                .filter(|range| range.length > 0)
                .collect(),
        );
        self.payload_left = payload;
        Ok(())
    }

    /// Reads the map of GNU tar's old sparse format: four ranges in the header, 21 in each block that follows.
    fn gnu_ranges(&mut self, header: &Header, offset: u64) -> Result<Vec<Range>> {
        let gnu = header.as_gnu();
        let mut ranges = Vec::new();
        let mut push = |descriptors: &[GnuSparseHeader], max: u64| -> Result<()> {
            for descriptor in descriptors {
                // An unused slot ends the list.
                if descriptor.numbytes[0] == 0 {
                    break;
                }
                let number = |bytes: &[u8]| {
                    number::field(bytes)
                        .and_then(|number| u64::try_from(number).ok())
                        .ok_or_else(|| Error::BadHeader {
                            offset,
                            why: "a sparse map with something that is no number".into(),
                        })
                };
                check(
                    "the ranges of a sparse file",
                    ranges.len() as u64 + 1,
                    max,
                    None,
                )?;
                ranges.push(Range {
                    offset: number(&descriptor.offset)?,
                    length: number(&descriptor.numbytes)?,
                });
            }
            Ok(())
        };
        push(&gnu.sparse, self.limits.max_sparse_ranges)?;
        let mut more = gnu.is_extended();
        let mut blocks = 0u64;
        while more {
            blocks += 1;
            check(
                "the ranges of a sparse file",
                blocks,
                self.limits.max_sparse_ranges,
                None,
            )?;
            let block = self.block("a sparse map")?;
            let (descriptors, again) = sparse_block(&block);
            push(&descriptors, self.limits.max_sparse_ranges)?;
            more = again;
        }
        Ok(ranges)
    }

    /// Reads the map of sparse format 1.0, which stands before the content as decimal lines, padded to a block.
    fn map_in_content(&mut self, offset: u64, size: u64) -> Result<(Vec<Range>, u64)> {
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: why.to_owned(),
        };
        let mut taken = 0u64;
        let mut line = Vec::new();
        let mut wanted: Option<u64> = None;
        let mut numbers: Vec<u64> = Vec::new();
        while wanted.is_none_or(|wanted| (numbers.len() as u64) < wanted) {
            taken += BLOCK as u64;
            if taken > size {
                return Err(bad("a sparse map that is longer than the content"));
            }
            for byte in self.block("a sparse map")? {
                if wanted.is_some_and(|wanted| numbers.len() as u64 == wanted) {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(bad("a sparse map with something that is no number"));
                    }
                    continue;
                }
                let number = number::decimal(&line)
                    .ok_or_else(|| bad("a sparse map with something that is no number"))?;
                line.clear();
                if wanted.is_some() {
                    numbers.push(number);
                } else {
                    check(
                        "the ranges of a sparse file",
                        number,
                        self.limits.max_sparse_ranges,
                        None,
                    )?;
                    wanted = Some(number * 2);
                }
            }
        }
        let ranges = numbers
            .chunks_exact(2)
            .map(|pair| Range {
                offset: pair[0],
                length: pair[1],
            })
            .collect();
        Ok((ranges, taken))
    }
}

/// Returns the 21 descriptors of a block that continues a sparse map, and whether another such block follows.
fn sparse_block(block: &[u8; BLOCK]) -> ([GnuSparseHeader; 21], bool) {
    let descriptors = std::array::from_fn(|i| {
        let (mut offset, mut numbytes) = ([0; 12], [0; 12]);
        offset.copy_from_slice(&block[i * 24..i * 24 + 12]);
        numbytes.copy_from_slice(&block[i * 24 + 12..i * 24 + 24]);
        GnuSparseHeader { offset, numbytes }
    });
    (descriptors, block[21 * 24] == 1)
}

//! Which part of a regular file follows in the archive: all of it, or ranges with holes between
//! them.
//!
//! GNU tar has written sparse files in four formats: ranges in the header and in blocks after it
//! ("old GNU"), pairs of PAX records (0.0), one PAX record (0.1), decimal lines before the content
//! (1.0). All become the same list, and all must satisfy the same rule: ranges ascend, do not
//! overlap, are within the file and add up to the content.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::header::{BLOCK, Block, Dialect, Header, field, padding};
use super::number;
use super::pax::{self, Records};
use super::reader::{Entry, EntryKind, Range, TarReader, TarSource};
use crate::error::{Error, Result};
use crate::limits::check;

/// A sparse map as read: pairs of offset and length.
type Map = Vec<(i64, i64)>;

impl<S: TarSource> TarReader<S> {
    /// Decides what follows an entry: `size` bytes of plain content, or the ranges of a sparse
    /// file.
    pub(super) fn content(
        &mut self,
        entry: &mut Entry,
        offset: u64,
        block: &Block,
        header: &Header,
        size: u64,
        records: &Records,
    ) -> Result<()> {
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: why.to_owned(),
        };
        self.padding = padding(size);
        entry.size_bytes = size;
        entry.payload_bytes = size;
        let mut real = i64::try_from(size).map_err(|_| bad("its size is out of range"))?;
        let map = if header.typeflag == b'S' {
            if header.dialect != Dialect::Gnu {
                return Err(bad("a sparse file of GNU tar in another dialect"));
            }
            real = number::field(&block[field::GNU_REAL_SIZE])
                .ok_or_else(|| bad("its real size is not a number"))?;
            self.gnu_map(block, offset)?
        } else {
            let Some(version) = Version::of(records) else {
                self.payload_left = size;
                return Ok(());
            };
            if let Some(name) = records.text(pax::NAME) {
                entry.name = OsString::from_vec(name.to_vec());
            }
            let key = match records.text(pax::SIZE) {
                Some(_) => pax::SIZE,
                None => pax::REAL_SIZE,
            };
            let said = records.number(key).map_err(|why| bad(&why))?;
            real = said.unwrap_or(real);
            match version {
                Version::InRecords => self.map_in_records(records, offset)?,
                Version::InContent => {
                    let (map, taken) = self.map_in_content(offset, size)?;
                    entry.payload_bytes -= taken;
                    map
                }
            }
        };
        if !matches!(entry.kind, EntryKind::File | EntryKind::Other(_)) {
            return Err(bad("holes in an entry that can't have any"));
        }
        entry.size_bytes = u64::try_from(real).map_err(|_| bad("its real size is negative"))?;
        let ranges = ranges(&map, entry.size_bytes, entry.payload_bytes).map_err(bad)?;
        entry.ranges = Some(ranges);
        self.payload_left = entry.payload_bytes;
        Ok(())
    }

    /// Reads the map of GNU tar's old sparse format: four pairs in the header, 21 in each block
    /// that follows.
    fn gnu_map(&mut self, header: &Block, offset: u64) -> Result<Map> {
        let bad = || Error::BadHeader {
            offset,
            why: NO_NUMBER.to_owned(),
        };
        let mut map = Map::new();
        let mut part = header[field::GNU_SPARSE].to_vec();
        for blocks in 1.. {
            let (pairs, more) = part.split_at(part.len() / 24 * 24);
            // An unused slot ends the list, though not those of further blocks.
            for pair in pairs.chunks_exact(24).take_while(|pair| pair[0] != 0) {
                let number = |bytes| number::field(bytes).ok_or_else(bad);
                map.push((number(&pair[..12])?, number(&pair[12..])?));
            }
            self.check_ranges(map.len() as u64)?;
            if more[0] == 0 {
                return Ok(map);
            }
            // A block without pairs counts too: there may be any number of them.
            self.check_ranges(blocks * BLOCK as u64 / 24)?;
            part = self.block("the rest of a sparse map")?[..505].to_vec();
        }
        Ok(map)
    }

    /// Reads the map of sparse formats 0.0 and 0.1, which is in the records.
    fn map_in_records(&self, records: &Records, offset: u64) -> Result<Map> {
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: why.to_owned(),
        };
        let number = |text| number::decimal(text).ok_or_else(|| bad(NO_NUMBER));
        let count = number(records.text(pax::COUNT).unwrap_or_default())?;
        let numbers = match records.text(pax::MAP) {
            None => Vec::new(),
            Some(text) => text
                .split(|&b| b == b',')
                .map(number)
                .collect::<Result<Vec<_>>>()?,
        };
        if usize::try_from(count).ok().and_then(|n| n.checked_mul(2)) != Some(numbers.len()) {
            return Err(bad("a sparse map whose stated length is wrong"));
        }
        self.check_ranges(count as u64)?;
        Ok(pairs(&numbers))
    }

    /// Reads the map of sparse format 1.0: decimal lines before the content, padded to a block.
    /// Also returns how many of the `size` bytes it took.
    fn map_in_content(&mut self, offset: u64, size: u64) -> Result<(Map, u64)> {
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: why.to_owned(),
        };
        let mut taken = 0u64;
        let mut line = Vec::new();
        let mut wanted: Option<u64> = None;
        let mut numbers: Vec<i64> = Vec::new();
        while wanted.is_none_or(|wanted| (numbers.len() as u64) < wanted) {
            taken += BLOCK as u64;
            if taken > size {
                return Err(bad("a sparse map that is longer than the content"));
            }
            self.check_ranges(taken / 24)?;
            for byte in self.block("the rest of a sparse map")? {
                if wanted.is_some_and(|wanted| numbers.len() as u64 == wanted) {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number = number::decimal(&line).ok_or_else(|| bad(NO_NUMBER))?;
                line.clear();
                if wanted.is_some() {
                    numbers.push(number);
                } else {
                    let count = u64::try_from(number).map_err(|_| bad(NO_NUMBER))?;
                    self.check_ranges(count)?;
                    wanted = Some(count * 2);
                }
            }
        }
        Ok((pairs(&numbers), taken))
    }

    fn check_ranges(&self, count: u64) -> Result<()> {
        let max = self.limits.max_sparse_ranges;
        check("the ranges of a sparse file", count, max, None)
    }
}

const NO_NUMBER: &str = "a sparse map with something that is not a number";

/// Where a sparse file's map is.
enum Version {
    /// 0.0 and 0.1.
    InRecords,
    /// 1.0.
    InContent,
}

impl Version {
    /// `None` if the records say nothing about holes, or have an unknown version: then the file is
    /// what it looks like.
    fn of(records: &Records) -> Option<Self> {
        match (records.text(pax::MAJOR), records.text(pax::MINOR)) {
            (Some(b"0"), Some(b"0" | b"1")) => Some(Version::InRecords),
            (Some(b"1"), Some(b"0")) => Some(Version::InContent),
            (None, None) if records.text(pax::MAP).is_some() => Some(Version::InRecords),
            _ => None,
        }
    }
}

fn pairs(numbers: &[i64]) -> Map {
    let pairs = numbers.chunks_exact(2);
    pairs.map(|pair| (pair[0], pair[1])).collect()
}

/// Returns the ranges of a map without empty ones, if it is valid for a file of `size` bytes of
/// which `payload` follow.
fn ranges(map: &Map, size: u64, payload: u64) -> Result<Vec<Range>, &'static str> {
    let mut ranges = Vec::new();
    let mut end = 0u64;
    let mut sum = 0u64;
    for &(offset, length) in map {
        let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
            return Err("a sparse map with a negative number");
        };
        if offset < end {
            return Err("a sparse map whose ranges overlap or go backwards");
        }
        // Neither exceeds 63 bits.
        end = offset + length;
        if end > size {
            return Err("a sparse map that extends beyond the file's end");
        }
        sum += length;
        if length > 0 {
            ranges.push(Range { offset, length });
        }
    }
    match sum == payload {
        true => Ok(ranges),
        false => Err("a sparse map that does not add up to the content"),
    }
}

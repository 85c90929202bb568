//! The map of a file that is copied up block by block: which blocks are in the upper layer, and
//! which are still read from the lower file.
//!
//! A map is a header that names the lower file, then 64-byte records, appended and never changed.
//! Each record has a CRC-32C over the map's id, the record's number and its content, so a changed,
//! moved or foreign record is detected. A *barrier* says that the data of everything before it is
//! on disk. It is written twice, so that damage to one copy can't pass for a crash before it.
//! Records after the last barrier count only in the [`Epoch`] they were written in: in another one
//! their data may never have reached the disk, so those blocks are read from the lower file again.
//! A crash therefore leaves old or new bytes, never zeros.
//!
//! Unreadable content is an error, except where a crash of the machine explains it. Changing the
//! layout makes the unsettled files of existing uppers unreadable.

mod record;
mod set;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

pub use record::{BlockRecord, Epoch, KeptAttributes, RECORD_BYTES};
pub use set::BlockSet;

use crate::MarkError;
use record::crc32c;

/// The first bytes of every map.
const MAGIC: &[u8; 8] = b"VLMBLOCK";
const VERSION: u32 = 1;
/// Magic, version, length, block size, layer, id, then ino, upper ino, size, mtime (12), handle
/// kind and length.
const FIXED_BYTES: usize = 8 + 4 * 4 + 16 + 8 * 3 + 12 + 8;
/// A path in a layer is as long as its depth allows; a union is read to 16 KiB.
const HEADER_MAX_BYTES: usize = 64 * 1024;

/// The smallest block, in bytes: a page, the block of most file systems.
pub const BLOCK_MIN_BYTES: u32 = 4096;
/// The largest block, in bytes.
pub const BLOCK_MAX_BYTES: u32 = 64 * 1024;

/// The most blocks of one file: 16 TiB of the largest, for which a set of blocks takes 32 MiB.
const BLOCKS_MAX: u64 = 1 << 28;

/// Returns whether a lower file of `size_bytes` can have a map. A larger one, as sparse files can
/// be, is copied whole.
pub fn fits(size_bytes: u64) -> bool {
    size_bytes.div_ceil(block_bytes_for(size_bytes).into()) <= BLOCKS_MAX
}

/// Returns the block size for a lower file of `size_bytes`: the smallest that gives at most a
/// million blocks, within the limits above.
pub fn block_bytes_for(size_bytes: u64) -> u32 {
    let wanted = (size_bytes >> 20).next_power_of_two();
    wanted.clamp(BLOCK_MIN_BYTES.into(), BLOCK_MAX_BYTES.into()) as u32
}

/// Returns the map's name from the value of a mark, or `None` if the value is not a name. See
/// [`BlockMapHeader::name`].
pub fn parse_name(value: &[u8]) -> Option<Box<str>> {
    let digits = value.len() == 32
        && value
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let name = std::str::from_utf8(value).ok()?;
    digits.then(|| name.into())
}

/// Identifies the lower file that a copy was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerIdentity {
    /// The layer it was in, counted from the bottom (data-only layers first); searched first.
    pub layer: u32,
    /// Its path in that layer.
    pub path: PathBuf,
    /// Its inode number.
    pub ino: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its last change: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Its file handle (type and bytes), if the file system has handles.
    pub handle: Option<(i32, Vec<u8>)>,
}

/// What a map is about. Never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMapHeader {
    /// The map's own id; its name in the work directory and the value of the file's mark, in hex.
    pub id: [u8; 16],
    /// Bytes of a block: a power of two.
    pub block_bytes: u32,
    /// The inode number of the upper file.
    pub upper_ino: u64,
    /// The lower file.
    pub lower: LowerIdentity,
}

impl BlockMapHeader {
    /// Returns the map's name: its id in hex.
    pub fn name(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the bytes of the header, a multiple of [`RECORD_BYTES`]. Errors if path or handle
    /// are too long.
    pub fn encode(&self) -> Result<Vec<u8>, MarkError> {
        let (kind, handle) = match &self.lower.handle {
            Some((kind, bytes)) => (*kind, bytes.as_slice()),
            None => (0, &[][..]),
        };
        let path = self.lower.path.as_os_str().as_bytes();
        let length = (FIXED_BYTES + handle.len() + path.len() + 4).next_multiple_of(RECORD_BYTES);
        if length > HEADER_MAX_BYTES || handle.len() > 128 {
            return Err(malformed(format!(
                "a path of {} bytes does not fit",
                path.len()
            )));
        }
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(MAGIC);
        for number in [VERSION, length as u32, self.block_bytes, self.lower.layer] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.id);
        for number in [self.lower.ino, self.upper_ino, self.lower.size_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.lower.mtime.0.to_le_bytes());
        out.extend_from_slice(&self.lower.mtime.1.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        // An empty handle differs from no handle.
        let handle_length = self
            .lower
            .handle
            .as_ref()
            .map_or(u16::MAX, |_| handle.len() as u16);
        out.extend_from_slice(&handle_length.to_le_bytes());
        out.extend_from_slice(&(path.len() as u16).to_le_bytes());
        out.extend_from_slice(handle);
        out.extend_from_slice(path);
        out.resize(length - 4, 0);
        out.extend_from_slice(&crc32c(&[&out]).to_le_bytes());
        Ok(out)
    }

    /// Recognises the header at the beginning of a map; returns it with its length in bytes.
    pub fn parse(map: &[u8]) -> Result<(BlockMapHeader, usize), MarkError> {
        if map.len() < FIXED_BYTES || &map[..8] != MAGIC {
            return Err(malformed("it does not begin like a map"));
        }
        let mut fields = Fields(&map[8..]);
        let version = fields.u32();
        if version != VERSION {
            return Err(malformed(format!("version {version}, expected {VERSION}")));
        }
        let length = fields.u32() as usize;
        if !(FIXED_BYTES..=HEADER_MAX_BYTES.min(map.len())).contains(&length)
            || !length.is_multiple_of(RECORD_BYTES)
        {
            return Err(malformed(format!("a header of {length} bytes")));
        }
        let (content, sum) = map[..length].split_at(length - 4);
        if crc32c(&[content]).to_le_bytes() != sum {
            return Err(malformed("the header's checksum is wrong"));
        }
        let block_bytes = fields.u32();
        let layer = fields.u32();
        let id = fields.take();
        let (ino, upper_ino, size_bytes) = (fields.u64(), fields.u64(), fields.u64());
        let mtime = (fields.u64() as i64, fields.u32());
        let kind = fields.u32() as i32;
        let handle_length = u16::from_le_bytes(fields.take());
        let path_length = usize::from(u16::from_le_bytes(fields.take()));
        let rest = &content[FIXED_BYTES..];
        let handle_bytes = match handle_length {
            u16::MAX => 0,
            length => usize::from(length),
        };
        let range = BLOCK_MIN_BYTES..=BLOCK_MAX_BYTES;
        if rest.len() < handle_bytes + path_length
            || !range.contains(&block_bytes)
            || !block_bytes.is_power_of_two()
            || size_bytes.div_ceil(block_bytes.into()) > BLOCKS_MAX
        {
            return Err(malformed("impossible numbers in the header"));
        }
        let path = rest[handle_bytes..handle_bytes + path_length].to_vec();
        let header = BlockMapHeader {
            id,
            block_bytes,
            upper_ino,
            lower: LowerIdentity {
                layer,
                path: PathBuf::from(OsString::from_vec(path)),
                ino,
                size_bytes,
                mtime,
                handle: (handle_length != u16::MAX).then(|| (kind, rest[..handle_bytes].to_vec())),
            },
        };
        Ok((header, length))
    }
}

/// A map's current content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMap {
    /// What it is about.
    pub header: BlockMapHeader,
    /// The blocks that are in the upper file.
    pub blocks: BlockSet,
    /// From this byte on, nothing of the lower file shows. Never rises.
    pub limit_bytes: u64,
    /// Attributes to restore on the upper file once it is settled, if settling has begun.
    pub kept: Option<KeptAttributes>,
    /// How many records there are.
    pub records: u64,
    /// There are records after the last barrier.
    pub pending: bool,
    /// Records after the last barrier were ignored because they belong to another epoch, or a
    /// barrier is damaged: the map must be rewritten before anything is appended.
    pub tail_left_out: bool,
}

impl BlockMap {
    /// Creates the map of a file of which nothing is copied yet.
    pub fn new(header: BlockMapHeader) -> BlockMap {
        let size_bytes = header.lower.size_bytes;
        BlockMap {
            blocks: BlockSet::new(size_bytes.div_ceil(header.block_bytes.into())),
            limit_bytes: size_bytes,
            kept: None,
            records: 0,
            pending: false,
            tail_left_out: false,
            header,
        }
    }

    /// Parses a whole map in the current epoch.
    ///
    /// Errors on damage that a crash can't explain: before the last barrier, and anywhere within
    /// the same epoch. An incomplete last record was never written and is ignored.
    pub fn parse(bytes: &[u8], now: Epoch) -> Result<BlockMap, MarkError> {
        let (header, length) = BlockMapHeader::parse(bytes)?;
        let records = bytes[length..].chunks_exact(RECORD_BYTES);
        let cut = !records.remainder().is_empty();
        let read: Vec<_> = records
            .enumerate()
            .map(|(number, bytes)| BlockRecord::parse(bytes, &header.id, number as u64))
            .collect();
        let is_barrier = |at: usize, second: bool| matches!(read.get(at), Some(Some(BlockRecord::Barrier { second: which })) if *which == second);
        let mut barriers = (0..read.len())
            .rev()
            .filter(|&at| is_barrier(at, false) || is_barrier(at, true));
        // After the last barrier and its second copy.
        let mut durable = match barriers.next() {
            None => 0,
            Some(last) if is_barrier(last, true) => last + 1,
            Some(last) => last + 2,
        };
        let mut map = BlockMap::new(header);
        map.tail_left_out = durable > read.len();
        durable = durable.min(read.len());
        let mut epoch = None;
        for (at, record) in read.iter().enumerate() {
            if at == durable && epoch != Some(now) {
                map.tail_left_out |= at < read.len() || cut;
                map.records = at as u64;
                return Ok(map);
            }
            match record {
                Some(BlockRecord::Opened(of)) => epoch = Some(*of),
                Some(record) => map.apply(record)?,
                // One of the two copies of a barrier.
                None if is_barrier(at + 1, true) || (at > 0 && is_barrier(at - 1, false)) => {
                    map.tail_left_out = true;
                }
                None => return Err(malformed(format!("record {at} is damaged"))),
            }
        }
        map.records = read.len() as u64;
        map.pending = durable < read.len();
        map.tail_left_out |= cut;
        Ok(map)
    }

    /// Applies a record that is about to be appended.
    pub fn apply(&mut self, record: &BlockRecord) -> Result<(), MarkError> {
        match record {
            BlockRecord::Opened(_) | BlockRecord::Barrier { .. } => {}
            BlockRecord::Written { first, count } => {
                let end = first.checked_add(*count);
                match end.is_some_and(|end| end <= self.blocks.len()) {
                    true => self.blocks.insert(*first, *count),
                    false => return Err(malformed("a block past the lower file's end")),
                }
            }
            BlockRecord::Bits { first, bits } => self.blocks.insert_bits(*first, bits)?,
            BlockRecord::Limit { bytes } => self.limit_bytes = self.limit_bytes.min(*bytes),
            BlockRecord::Kept(kept) => self.kept = Some(kept.clone()),
        }
        Ok(())
    }

    /// Returns how many blocks are still read from the lower file.
    pub fn blocks_below(&self) -> u64 {
        let shown = self
            .limit_bytes
            .div_ceil(self.header.block_bytes.into())
            .min(self.blocks.len());
        shown - self.blocks.count_before(shown)
    }

    /// Returns the fewest records that say the same, without `Opened` and barrier.
    pub fn compact(&self) -> Vec<BlockRecord> {
        let mut records = Vec::new();
        if self.limit_bytes < self.header.lower.size_bytes {
            records.push(BlockRecord::Limit {
                bytes: self.limit_bytes,
            });
        }
        records.extend(self.kept.clone().map(BlockRecord::Kept));
        records.extend(self.blocks.records());
        records
    }
}

/// Takes fields off the front. The caller has checked that there are enough bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (front, rest) = self.0.split_at(N);
        self.0 = rest;
        let mut field = [0; N];
        field.copy_from_slice(front);
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

fn malformed(reason: impl Into<String>) -> MarkError {
    MarkError::new("block map", reason)
}

#[cfg(test)]
mod tests;

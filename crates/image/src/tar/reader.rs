//! The walk through an archive: headers in, entries out, and every byte that is no file content kept for whoever wants it.
//!
//! The reader pulls bytes from a [`TarSource`] without copying content. What it consumed as headers, sparse maps, padding and end
//! marker since the last [`TarReader::raw`] lies in one buffer, so a recipe sees each byte of the archive exactly once, as raw bytes or as
//! content. Invariants: a size is decided once per entry (PAX before header); the map of a sparse file adds up to its content;
//! an archive that ends anywhere but behind its end marker is `Truncated`; no buffer grows beyond the limits.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar_core::Header;
use vellum_sys::Timespec;

use super::number;
use super::pax::{self, Records};
use crate::error::{Error, Result};
use crate::limits::{Limits, check};
use crate::stream::LayerStream;

/// The unit of a tar.
pub const BLOCK: usize = 512;

/// Bytes of an uncompressed tar, piece by piece.
pub trait TarSource {
    /// Returns the bytes at hand, at least one unless the archive has ended.
    fn chunk(&mut self) -> Result<&[u8]>;
    /// Takes the first `n` of them.
    fn consume(&mut self, n: usize);
    /// Returns how many were taken so far.
    fn offset(&self) -> u64;
}

impl TarSource for LayerStream {
    fn chunk(&mut self) -> Result<&[u8]> {
        LayerStream::chunk(self)
    }

    fn consume(&mut self, n: usize) {
        std::io::BufRead::consume(self, n);
    }

    fn offset(&self) -> u64 {
        LayerStream::offset(self)
    }
}

/// An archive in memory.
pub struct SliceSource<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> SliceSource<'a> {
    /// Reads `bytes` from the start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            offset: 0,
        }
    }
}

impl TarSource for SliceSource<'_> {
    fn chunk(&mut self) -> Result<&[u8]> {
        Ok(self.rest)
    }

    fn consume(&mut self, n: usize) {
        self.rest = &self.rest[n..];
        self.offset += n as u64;
    }

    fn offset(&self) -> u64 {
        self.offset
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, with or without holes.
    File,
    /// A further name of something in the same archive.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A run of a file's bytes that are not a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it starts in the file.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// One entry, as the archive means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its first header starts in the archive.
    pub offset: u64,
    /// The name as spelled: may be absolute, contain `..`, end in a slash. Never empty, no NUL.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timespec,
    /// Extended attributes in the archive's order, each name once.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Target of a link as spelled; empty for everything else.
    pub link: OsString,
    /// Device numbers; (0, 0) for everything but devices.
    pub rdev: (u32, u32),
    /// Size of the file, holes included.
    pub size_bytes: u64,
    /// Bytes of content that follow in the archive.
    pub payload_bytes: u64,
    /// Where the content belongs, ascending; `None` if it is the whole file.
    pub ranges: Option<Vec<Range>>,
}

impl Entry {
    /// Returns the name as a path, for messages.
    pub fn path(&self) -> &Path {
        Path::new(&self.name)
    }
}

/// Reads one archive.
pub struct TarReader<S> {
    source: S,
    pub(super) limits: Limits,
    defaults: Records,
    raw: Vec<u8>,
    pub(super) payload_left: u64,
    pub(super) padding: u64,
    entries: u64,
    ended: bool,
}

/// The extended headers in front of an entry.
#[derive(Default)]
struct Pending {
    offset: Option<u64>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Option<Records>,
    bytes: u64,
}

impl<S: TarSource> TarReader<S> {
    /// Starts at the archive's first byte.
    pub fn new(source: S, limits: &Limits) -> Self {
        Self {
            source,
            limits: limits.clone(),
            defaults: Records::default(),
            raw: Vec::new(),
            payload_left: 0,
            padding: 0,
            entries: 0,
            ended: false,
        }
    }

    /// Returns how many entries were read so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the raw bytes since the last call. Empty it (`clear`) once they are used.
    pub fn raw(&mut self) -> &mut Vec<u8> {
        &mut self.raw
    }

    /// Returns the bytes of content at hand; empty when the entry's content has been taken.
    pub fn payload(&mut self) -> Result<&[u8]> {
        if self.payload_left == 0 {
            return Ok(&[]);
        }
        let offset = self.source.offset();
        let chunk = self.source.chunk()?;
        if chunk.is_empty() {
            return Err(Error::Truncated {
                offset,
                expected: "the rest of a file",
            });
        }
        let n = usize::try_from(self.payload_left)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        Ok(&chunk[..n])
    }

    /// Takes `n` bytes of content, at most what [`TarReader::payload`] gave.
    pub fn advance(&mut self, n: usize) {
        debug_assert!(n as u64 <= self.payload_left);
        self.payload_left -= n as u64;
        self.source.consume(n);
    }

    /// Returns the next entry, or `None` at the end marker. Content that was not taken before is lost: it counts neither as raw
    /// bytes nor as content.
    ///
    /// Errors: `BadHeader`, `Limit`, `Truncated`, `UnsupportedEntry` and what the source says.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        self.finish_payload()?;
        let mut pending = Pending::default();
        loop {
            let offset = self.source.offset();
            let start = *pending.offset.get_or_insert(offset);
            let Some(header) = self.header(&pending)? else {
                self.ended = true;
                return Ok(None);
            };
            let typeflag = header.as_ustar().typeflag[0];
            let bad = |why: &str| Error::BadHeader {
                offset,
                why: why.to_owned(),
            };
            let size = |header: &Header| {
                number::field(&header.as_ustar().size)
                    .and_then(|size| u64::try_from(size).ok())
                    .ok_or_else(|| bad("its size is no number"))
            };
            match typeflag {
                b'L' | b'K' => {
                    let mut name = self.extension(size(&header)?, &mut pending)?;
                    // The terminating NUL is part of the data; old writers pad with several.
                    name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
                    let slot = match typeflag {
                        b'L' => &mut pending.long_name,
                        _ => &mut pending.long_link,
                    };
                    if slot.replace(name).is_some() {
                        return Err(bad("two long names for one entry"));
                    }
                }
                b'x' => {
                    let data = self.extension(size(&header)?, &mut pending)?;
                    let records = pax::parse(&data, self.limits.max_sparse_ranges).map_err(bad)?;
                    if pending.records.replace(records).is_some() {
                        return Err(bad("two PAX headers for one entry"));
                    }
                }
                b'g' => {
                    let data = self.extension(size(&header)?, &mut pending)?;
                    pax::parse_global(&data, &mut self.defaults).map_err(bad)?;
                }
                _ => {
                    self.entries += 1;
                    check(
                        "the number of entries",
                        self.entries,
                        self.limits.max_entries,
                        None,
                    )?;
                    return self.entry(start, offset, &header, pending).map(Some);
                }
            }
        }
    }

    /// Reads the bytes behind the end marker, in pieces, each as raw bytes.
    pub fn trailer(&mut self) -> Result<Option<&[u8]>> {
        let n = self.source.chunk()?.len();
        if n == 0 {
            return Ok(None);
        }
        self.raw.clear();
        self.raw.extend_from_slice(self.source.chunk()?);
        self.source.consume(n);
        Ok(Some(&self.raw))
    }

    /// Returns the source, wherever it stands.
    pub fn into_source(self) -> S {
        self.source
    }

    /// Skips content that nobody took, then takes the padding.
    fn finish_payload(&mut self) -> Result<()> {
        loop {
            let n = self.payload()?.len();
            if n == 0 {
                break;
            }
            self.advance(n);
        }
        let padding = std::mem::take(&mut self.padding);
        self.take(padding, "padding")
    }

    /// Takes `n` bytes as raw.
    fn take(&mut self, mut n: u64, expected: &'static str) -> Result<()> {
        while n > 0 {
            let offset = self.source.offset();
            let chunk = self.source.chunk()?;
            if chunk.is_empty() {
                return Err(Error::Truncated { offset, expected });
            }
            let part = usize::try_from(n).unwrap_or(usize::MAX).min(chunk.len());
            self.raw.extend_from_slice(&chunk[..part]);
            self.source.consume(part);
            n -= part as u64;
        }
        Ok(())
    }

    /// Takes one block as raw and returns it.
    pub(super) fn block(&mut self, expected: &'static str) -> Result<[u8; BLOCK]> {
        self.take(BLOCK as u64, expected)?;
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.raw[self.raw.len() - BLOCK..]);
        Ok(block)
    }

    /// Reads a header block; `None` is the end of the archive.
    fn header(&mut self, pending: &Pending) -> Result<Option<Header>> {
        let offset = self.source.offset();
        // Nothing at all is the empty layer; some builders make it so.
        if offset == 0 && self.source.chunk()?.is_empty() {
            return Ok(None);
        }
        let block = self.block("a header, or the end marker")?;
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: why.to_owned(),
        };
        if block == [0; BLOCK] {
            if pending.bytes > 0
                && (pending.records.is_some()
                    || pending.long_name.is_some()
                    || pending.long_link.is_some())
            {
                return Err(bad("an extended header that belongs to no entry"));
            }
            // One zero block and then nothing is an end, too, for every reader.
            if !self.source.chunk()?.is_empty() && self.block("the end marker")? != [0; BLOCK] {
                return Err(bad("a lone block of zeros in the middle of the archive"));
            }
            return Ok(None);
        }
        if !is_header(&block) {
            return Err(bad("its checksum is wrong"));
        }
        let header = *Header::from_bytes(&block);
        Ok(Some(header))
    }

    /// Reads the data of an extended header.
    fn extension(&mut self, size: u64, pending: &mut Pending) -> Result<Vec<u8>> {
        pending.bytes = pending
            .bytes
            .saturating_add(size)
            .saturating_add(BLOCK as u64);
        check(
            "the extended headers of one entry",
            pending.bytes,
            self.limits.max_header_bytes,
            None,
        )?;
        let start = self.raw.len();
        self.take(size, "an extended header")?;
        let data = self.raw[start..].to_vec();
        self.take(padding(size), "padding")?;
        Ok(data)
    }

    fn entry(
        &mut self,
        start: u64,
        offset: u64,
        header: &Header,
        pending: Pending,
    ) -> Result<Entry> {
        let ustar = header.as_ustar();
        let records = pending.records.unwrap_or_default();
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: why.to_owned(),
        };
        let field = |bytes: &[u8], what: &str| {
            number::field(bytes).ok_or_else(|| bad(&format!("its {what} is no number")))
        };

        let name = agreed(pending.long_name, records.path)
            .ok_or_else(|| bad("a long name and a PAX path that differ"))?
            .unwrap_or_else(|| header_name(header));
        let name = records.sparse.name.clone().unwrap_or(name);
        let link = agreed(pending.long_link, records.linkpath)
            .ok_or_else(|| bad("a long link target and a PAX linkpath that differ"))?
            .unwrap_or_else(|| c_string(&ustar.linkname).to_vec());
        if name.is_empty() {
            return Err(bad("it has no name"));
        }
        let path = PathBuf::from(OsStr::from_bytes(&name));
        for text in [&name, &link] {
            check(
                "the length of a name",
                text.len() as u64,
                self.limits.max_path_bytes,
                Some(&path),
            )?;
        }

        let kind = match ustar.typeflag[0] {
            // Before there were types, a directory was a name that ends in a slash.
            0 if name.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Character,
            b'4' => EntryKind::Block,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(Error::UnsupportedEntry {
                    path,
                    kind: other.escape_ascii().to_string(),
                });
            }
        };
        let size = match records.size {
            Some(size) => size,
            None => u64::try_from(field(&ustar.size, "size")?)
                .map_err(|_| bad("its size is negative"))?,
        };
        let mut entry = Entry {
            offset: start,
            kind,
            mode: (field(&ustar.mode, "mode")? & 0o7777) as u32,
            uid: self.id(records.uid.or(self.defaults.uid), &ustar.uid, offset, "uid")?,
            gid: self.id(records.gid.or(self.defaults.gid), &ustar.gid, offset, "gid")?,
            mtime: match records.mtime.or(self.defaults.mtime) {
                Some(mtime) => mtime,
                None => Timespec::new(field(&ustar.mtime, "mtime")?, 0),
            },
            xattrs: records.xattrs,
            link: OsString::new(),
            rdev: (0, 0),
            size_bytes: 0,
            payload_bytes: 0,
            ranges: None,
            name: OsStr::from_bytes(&name).to_owned(),
        };
        let xattr_bytes: usize = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        check(
            "the extended attributes of one entry",
            xattr_bytes as u64,
            self.limits.max_xattr_bytes,
            Some(&path),
        )?;

        match kind {
            EntryKind::File => {
                self.content(&mut entry, offset, header, size, records.sparse)?;
                check(
                    "the size of a file",
                    entry.size_bytes,
                    self.limits.max_file_bytes,
                    Some(&path),
                )?;
                return Ok(entry);
            }
            EntryKind::HardLink | EntryKind::Symlink => {
                if link.is_empty() {
                    return Err(bad("a link without a target"));
                }
                entry.link = OsStr::from_bytes(&link).to_owned();
            }
            EntryKind::Character | EntryKind::Block => {
                let number = |bytes: &[u8], max: i64| match field(bytes, "device number")? {
                    number if (0..=max).contains(&number) => Ok(number as u32),
                    _ => Err(bad("its device number is out of range")),
                };
                // The kernel has 12 bits of major and 20 of minor.
                entry.rdev = (
                    number(&ustar.dev_major, 0xfff)?,
                    number(&ustar.dev_minor, 0xf_ffff)?,
                );
            }
            EntryKind::Directory | EntryKind::Fifo => {}
        }
        // A hard link's size is that of the file it names, by custom, and every reader knows that no content follows. About others
        // they disagree.
        if size > 0 && kind != EntryKind::HardLink {
            return Err(bad("content behind an entry that can't have any"));
        }
        if records.sparse.is_present() {
            return Err(bad("holes in an entry that can't have any"));
        }
        Ok(entry)
    }

    fn id(&self, said: Option<u64>, bytes: &[u8], offset: u64, what: &str) -> Result<u32> {
        let bad = |why: &str| Error::BadHeader {
            offset,
            why: format!("its {what} {why}"),
        };
        let id = match said {
            Some(id) => id,
            None => number::field(bytes)
                .ok_or_else(|| bad("is no number"))
                .and_then(|id| u64::try_from(id).map_err(|_| bad("is negative")))?,
        };
        // The highest number means "nobody in particular" to the kernel.
        u32::try_from(id)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| bad("is too large"))
    }
}

/// Returns the one name that is said, `Some(None)` if none is, `None` if two are and differ.
fn agreed(long: Option<Vec<u8>>, pax: Option<Vec<u8>>) -> Option<Option<Vec<u8>>> {
    match (long, pax) {
        (Some(long), Some(pax)) if long != pax => None,
        (long, pax) => Some(pax.or(long)),
    }
}

/// Returns the name in the header's own fields.
fn header_name(header: &Header) -> Vec<u8> {
    let ustar = header.as_ustar();
    let bytes = header.as_bytes();
    let name = c_string(&ustar.name);
    let prefix: &[u8] = if &ustar.magic == b"ustar\0" {
        // star keeps times in the last 24 bytes of the prefix and says so at the very end.
        match &bytes[508..] {
            b"tar\0" => &bytes[345..476],
            _ => &bytes[345..500],
        }
    } else if &bytes[257..265] == b"ustar  \0" {
        // GNU tar keeps times here. Go before 1.8 wrote a prefix nevertheless, and images from then still exist; their text does not
        // read as numbers.
        let times = [&bytes[345..357], &bytes[357..369]];
        match times.iter().all(|time| number::field(time).is_some()) {
            true => &[],
            false => &bytes[345..500],
        }
    } else {
        &[]
    };
    let prefix = c_string(prefix);
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

fn c_string(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len())]
}

pub(super) fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Returns true if `bytes` start with a block whose checksum is a tar header's.
pub(crate) fn is_header(bytes: &[u8]) -> bool {
    let Some(block) = bytes.first_chunk::<BLOCK>() else {
        return false;
    };
    let header = Header::from_bytes(block);
    let stored = number::field(&header.as_ustar().cksum);
    let unsigned = i64::try_from(header.compute_checksum()).unwrap_or(i64::MAX);
    stored == Some(unsigned) || stored == Some(signed_checksum(block))
}

/// Some old writers summed signed bytes.
fn signed_checksum(block: &[u8; BLOCK]) -> i64 {
    block
        .iter()
        .enumerate()
        .map(|(i, &byte)| match i {
            148..156 => i64::from(b' '),
            _ => i64::from(byte as i8),
        })
        .sum()
}

#[cfg(test)]
#[path = "reader_tests.rs"]
pub(crate) mod tests;

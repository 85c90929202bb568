//! The walk through an archive: headers in, entries out, and every byte that is not file content
//! kept for callers that need it.
//!
//! The reader pulls bytes from a [`TarSource`] without copying content. The headers, sparse maps,
//! padding and end marker that it consumed since the last [`TarReader::raw`] are in one buffer, so
//! a recipe sees each byte of the archive exactly once, as raw bytes or as content. Go's
//! `archive/tar` decides what an archive means, and at which byte its next header is: layers come
//! with a digest, and what matters is that scanner, runtime and this program see the same tree in
//! them. An archive may end wherever a header may begin, and in padding.
//!
//! Invariants: a size is decided once per entry (PAX before header); the map of a sparse file adds
//! up to its content; an archive that ends within a header or within content is `Truncated`; no
//! buffer grows beyond the limits.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use vellum_sys::Timespec;

use super::header::{BLOCK, Block, Header, c_string, padding};
use super::pax::Records;
use crate::error::{Error, Result};
use crate::limits::{Limits, check};

/// Bytes of an uncompressed tar, piece by piece.
pub trait TarSource {
    /// Returns the available bytes, at least one unless the archive has ended.
    fn chunk(&mut self) -> Result<&[u8]>;
    /// Consumes the first `n` of them.
    fn consume(&mut self, n: usize);
    /// Returns how many were consumed so far.
    fn offset(&self) -> u64;
    /// Skips `n` bytes. Returns how many there were, which is less only if the archive ends.
    fn skip(&mut self, n: u64) -> Result<u64> {
        let mut left = n;
        while left > 0 {
            let here = self.chunk()?.len();
            if here == 0 {
                break;
            }
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(here);
            self.consume(part);
            left -= part as u64;
        }
        Ok(n - left)
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

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, with or without holes.
    File,
    /// Another name of something in the same archive.
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
    /// Anything else (a volume label, a part of a multi-volume file, ...), by its type byte.
    Other(u8),
}

/// How an archive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With two blocks of zeros, as it should.
    Marked,
    /// It just ended: what should have followed, if anything, is missing. Only a digest of the
    /// whole can show it.
    Unmarked,
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
    /// The name as spelled: may be empty, absolute, contain `..` or (of a sparse file) a NUL, end
    /// in a slash.
    pub name: OsString,
    /// Its type.
    pub kind: EntryKind,
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner: the low 32 bits of the number, which is also what other runtimes pass to the kernel.
    /// `u32::MAX` (-1) tells the kernel to change nothing.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timespec,
    /// Extended attributes by name, each name once.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// The target of a link as spelled, perhaps empty; empty for everything else.
    pub link: OsString,
    /// Device numbers, truncated to the kernel's size; (0, 0) for everything but devices.
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
    raw: Vec<u8>,
    pub(super) payload_left: u64,
    pub(super) padding: u64,
    entries: u64,
    ended: Option<Ending>,
}

/// The extended headers before an entry. Of two of one type the later one counts.
#[derive(Default)]
struct Pending {
    offset: Option<u64>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
    records: Records,
}

impl<S: TarSource> TarReader<S> {
    /// Starts at the archive's first byte.
    pub fn new(source: S, limits: &Limits) -> Self {
        Self {
            source,
            limits: limits.clone(),
            raw: Vec::new(),
            payload_left: 0,
            padding: 0,
            entries: 0,
            ended: None,
        }
    }

    /// Returns how many entries were read so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns how many bytes of the archive were consumed so far: after an entry, where its
    /// content starts.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }

    /// Returns the raw bytes since the last call. Empty it (`clear`) once they are used.
    pub fn raw(&mut self) -> &mut Vec<u8> {
        &mut self.raw
    }

    /// Returns the available bytes of content; empty when the entry's content has been consumed.
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

    /// Consumes `n` bytes of content, at most what [`TarReader::payload`] returned.
    pub fn advance(&mut self, n: usize) {
        debug_assert!(n as u64 <= self.payload_left);
        self.payload_left -= n as u64;
        self.source.consume(n);
    }

    /// Returns how the archive ended; `None` as long as there may be more entries.
    pub fn ending(&self) -> Option<Ending> {
        self.ended
    }

    /// Returns the next entry, or `None` at the archive's end. Content that was not consumed before
    /// is lost: it counts neither as raw bytes nor as content.
    ///
    /// Errors: `BadHeader`, `Limit`, `Truncated` and those of the source.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        if self.ended.is_some() {
            return Ok(None);
        }
        self.finish_payload()?;
        let mut pending = Pending::default();
        loop {
            let offset = self.source.offset();
            let Some(block) = self.header()? else {
                return Ok(None);
            };
            let bad = |why| Error::BadHeader { offset, why };
            let header = Header::read(&block).map_err(bad)?;
            if !matches!(header.typeflag, b'L' | b'K' | b'x' | b'g') {
                self.entries += 1;
                check(
                    "the number of entries",
                    self.entries,
                    self.limits.max_entries,
                    None,
                )?;
                return self.entry(offset, &block, header, pending).map(Some);
            }
            pending.offset.get_or_insert(offset);
            let size =
                u64::try_from(header.size).map_err(|_| bad("its size is negative".into()))?;
            let data = self.extension(size)?;
            let records = |data| Records::parse(data).map_err(|why| bad(why.into()));
            match header.typeflag {
                // The terminating NUL is part of the data; old writers pad with several.
                b'L' => pending.long_name = c_string(&data).to_vec(),
                b'K' => pending.long_link = c_string(&data).to_vec(),
                b'x' => pending.records = records(&data)?,
                // A global header is an entry of its own in Go, which everything skips. Its records
                // are ignored, and extended headers before it belong to it.
                _ => {
                    records(&data)?;
                    pending = Pending::default();
                }
            }
        }
    }

    /// Reads the bytes after the end marker, in pieces, each as raw bytes.
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

    /// Returns the source, at its current position.
    pub fn into_source(self) -> S {
        self.source
    }

    /// Skips content that was not consumed, then takes the padding, as much of it as there is.
    fn finish_payload(&mut self) -> Result<()> {
        let left = std::mem::take(&mut self.payload_left);
        if self.source.skip(left)? < left {
            return Err(self.truncated("the rest of a file"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.take(padding)?;
        Ok(())
    }

    fn truncated(&self, expected: &'static str) -> Error {
        Error::Truncated {
            offset: self.source.offset(),
            expected,
        }
    }

    /// Takes `n` bytes as raw, fewer if the archive ends. Returns how many.
    fn take(&mut self, n: u64) -> Result<u64> {
        let mut left = n;
        while left > 0 {
            let chunk = self.source.chunk()?;
            if chunk.is_empty() {
                break;
            }
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            self.raw.extend_from_slice(&chunk[..part]);
            self.source.consume(part);
            left -= part as u64;
        }
        Ok(n - left)
    }

    /// Takes one block as raw and returns it; `None` if the archive ends here.
    fn block_or_end(&mut self, expected: &'static str) -> Result<Option<Block>> {
        match self.take(BLOCK as u64)? {
            0 => Ok(None),
            n if n < BLOCK as u64 => Err(self.truncated(expected)),
            _ => Ok(self.raw.last_chunk().copied()),
        }
    }

    /// Takes one block as raw and returns it.
    pub(super) fn block(&mut self, expected: &'static str) -> Result<Block> {
        let block = self.block_or_end(expected)?;
        block.ok_or_else(|| self.truncated(expected))
    }

    /// Reads a header block; `None` is the end of the archive.
    fn header(&mut self) -> Result<Option<Block>> {
        let offset = self.source.offset();
        let ended = match self.block_or_end("the rest of a header")? {
            None => Ending::Unmarked,
            Some(block) if block != [0; BLOCK] => return Ok(Some(block)),
            Some(_) => match self.block_or_end("the rest of the end marker")? {
                // One block of zeros and then nothing is an end for every reader.
                None => Ending::Unmarked,
                Some(block) if block == [0; BLOCK] => Ending::Marked,
                Some(_) => {
                    return Err(Error::BadHeader {
                        offset,
                        why: "a lone block of zeros in the middle of the archive".into(),
                    });
                }
            },
        };
        self.ended = Some(ended);
        Ok(None)
    }

    /// Reads the data of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        check(
            "the size of an extended header",
            size,
            self.limits.max_header_bytes,
            None,
        )?;
        // Those that another one replaces are kept as raw bytes.
        check(
            "the extended headers of one entry",
            self.raw.len() as u64 + size,
            self.limits.max_header_bytes.saturating_mul(16),
            None,
        )?;
        let start = self.raw.len();
        if self.take(size)? < size {
            return Err(self.truncated("the rest of an extended header"));
        }
        let data = self.raw[start..].to_vec();
        self.take(padding(size))?;
        Ok(data)
    }

    fn entry(
        &mut self,
        offset: u64,
        block: &Block,
        mut header: Header,
        mut pending: Pending,
    ) -> Result<Entry> {
        let bad = |why| Error::BadHeader { offset, why };
        let records = &mut pending.records;
        let said = |long: Vec<u8>, key: &[u8], own: Vec<u8>| match records.text(key) {
            _ if !long.is_empty() => long,
            Some(text) => text.to_vec(),
            None => own,
        };
        let name = said(pending.long_name, b"path", std::mem::take(&mut header.name));
        let link = said(
            pending.long_link,
            b"linkpath",
            std::mem::take(&mut header.link),
        );
        let number = |key, own| {
            let said = records.number(key).map_err(bad)?;
            Ok::<_, Error>(said.unwrap_or(own))
        };
        let kind = match header.typeflag {
            // Before there were types, a directory was a name that ends in a slash.
            0 if name.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Character,
            b'4' => EntryKind::Block,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => EntryKind::Other(other),
        };
        let size = number(b"size", header.size)?;
        let times = [b"mtime", b"atime", b"ctime"].map(|key| records.time(key).map_err(bad));
        let [mtime, atime, ctime] = times;
        atime.and(ctime)?;
        let mut entry = Entry {
            offset: pending.offset.unwrap_or(offset),
            name: OsString::from_vec(name),
            kind,
            mode: (header.mode & 0o7777) as u32,
            uid: number(b"uid", header.uid)? as u32,
            gid: number(b"gid", header.gid)? as u32,
            mtime: mtime?.unwrap_or(Timespec::new(header.mtime, 0)),
            xattrs: records.take_xattrs(),
            link: OsString::new(),
            rdev: (0, 0),
            size_bytes: 0,
            payload_bytes: 0,
            ranges: None,
        };
        match kind {
            EntryKind::HardLink | EntryKind::Symlink => entry.link = OsString::from_vec(link),
            EntryKind::Character | EntryKind::Block => {
                // The kernel has 12 bits of major and 20 of minor.
                let bits = |number: i64, mask| (number & mask) as u32;
                entry.rdev = (
                    bits(header.dev_major, 0xfff),
                    bits(header.dev_minor, 0xf_ffff),
                );
            }
            _ => {}
        }
        // Links, directories, devices and pipes sometimes have a size (4096, the length of the
        // target), and never content.
        let typed = matches!(header.typeflag, b'1'..=b'6');
        let has_content = matches!(kind, EntryKind::File | EntryKind::Other(_));
        if !typed && header.size < 0 || has_content && size < 0 {
            return Err(bad("its size is negative".into()));
        }
        let size = if has_content { size as u64 } else { 0 };
        self.content(&mut entry, offset, block, &header, size, records)?;
        check(
            "the size of a file",
            entry.size_bytes,
            self.limits.max_file_bytes,
            Some(entry.path()),
        )?;
        Ok(entry)
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
pub(crate) mod tests;

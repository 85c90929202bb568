//! A tar archive as a read-only map from names to byte ranges.
//!
//! Image archives are small trees of big files. One pass over the headers notes where each file's
//! bytes are; after that, any file can be read at any time, by several threads at once, through one
//! descriptor. Symlinks and hard links among the entries (old `docker save`, `podman save`) are
//! followed inside the map: a name never reaches the file system. [`crate::tar`] knows what the
//! headers mean: a sparse file is read with its holes.
//!
//! Invariants: every range is inside the file; the number of entries is bounded.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::SourceError;
use crate::error::{Error, Result as TarResult};
use crate::limits::Limits;
use crate::tar::{EntryKind, Range, TarReader, TarSource};

/// More entries than any image archive has; limits the memory of the map.
const MAX_ENTRIES: u64 = 200_000;
/// More hops than any archive's links need.
const MAX_LINK_HOPS: usize = 16;
/// How much of the archive is read at once while looking for headers. Files are skipped without
/// being read.
const WINDOW_BYTES: usize = 16 << 10;

/// The files of a tar archive, by name.
#[derive(Debug)]
pub struct Archive {
    file: Arc<File>,
    name: String,
    entries: HashMap<Vec<u8>, Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    File(Extent),
    /// Another name of this archive, already made absolute to its root.
    Link(Vec<u8>),
}

/// Where the bytes of a file are in the archive.
#[derive(Clone, Debug)]
struct Extent {
    offset: u64,
    size_bytes: u64,
    /// Where in the file the bytes at `offset` belong, if it has holes.
    ranges: Option<Arc<[Range]>>,
}

impl Archive {
    /// Reads the headers of the tar archive in `file`, which `name` names in messages.
    ///
    /// A name that occurs twice means its last entry, as in unpacking. Errors: not a tar archive,
    /// cut short, or too many entries.
    pub fn index(file: File, name: String) -> Result<Self, SourceError> {
        let size_bytes = file
            .metadata()
            .map_err(|e| SourceError::io(name.as_str(), e))?
            .len();
        let limits = Limits {
            max_entries: MAX_ENTRIES,
            ..Limits::default()
        };
        let window = Window {
            file: &file,
            at: 0,
            size_bytes,
            buffer: Vec::new(),
            taken: 0,
        };
        let mut reader = TarReader::new(window, &limits);
        let mut entries = HashMap::new();
        loop {
            let entry = match reader.next_entry() {
                // Empty input is surely a mistake.
                Ok(None) if size_bytes == 0 => return Err(SourceError::NotAnImage(name)),
                Ok(None) => break,
                Ok(Some(entry)) => entry,
                Err(Error::Read(e)) => return Err(SourceError::io(name.as_str(), e)),
                // The first header decides whether this is a tar archive at all.
                Err(Error::BadHeader { offset: 0, .. }) => {
                    return Err(SourceError::NotAnImage(name));
                }
                Err(Error::Truncated { .. }) if size_bytes < 512 => {
                    return Err(SourceError::NotAnImage(name));
                }
                Err(e) => {
                    return Err(SourceError::Malformed(format!(
                        "{name} as a tar archive: {e}"
                    )));
                }
            };
            reader.raw().clear();
            let key = normalize(entry.name.as_bytes());
            let target = entry.link.as_bytes();
            let found = match entry.kind {
                EntryKind::Symlink => Entry::Link(resolve(&key, target)),
                EntryKind::HardLink => Entry::Link(normalize(target)),
                EntryKind::File => Entry::File(Extent {
                    offset: reader.offset(),
                    size_bytes: entry.size_bytes,
                    ranges: entry.ranges.map(Arc::from),
                }),
                _ => continue,
            };
            entries.insert(key, found);
        }
        Ok(Self {
            file: Arc::new(file),
            name,
            entries,
        })
    }

    /// Returns what messages call this archive.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether a file (or a link to one) is called `path`.
    pub fn contains(&self, path: &str) -> bool {
        self.find(path.as_bytes()).is_some()
    }

    /// Returns the bytes of the file called `path`, following links.
    pub fn open(&self, path: &str) -> Result<Section, SourceError> {
        let extent = self
            .find(path.as_bytes())
            .ok_or_else(|| SourceError::Missing {
                path: path.to_owned(),
                source_name: self.name.clone(),
            })?;
        Ok(Section {
            file: Arc::clone(&self.file),
            extent: extent.clone(),
            position: 0,
            range: 0,
        })
    }

    /// Returns all of a small file; more than `limit_bytes` is an error naming `what`.
    pub fn read(
        &self,
        path: &str,
        what: &'static str,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let mut section = self.open(path)?;
        crate::manifest::check_size(what, section.left_bytes(), limit_bytes)?;
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(|e| SourceError::io(self.name.as_str(), e))?;
        Ok(bytes)
    }

    fn find(&self, path: &[u8]) -> Option<&Extent> {
        let mut key = &normalize(path);
        for _ in 0..MAX_LINK_HOPS {
            match self.entries.get(key)? {
                Entry::File(extent) => return Some(extent),
                Entry::Link(target) => key = target,
            }
        }
        None
    }
}

/// A file of the archive, readable independently of all others.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    extent: Extent,
    /// How much of it was read. With holes, `extent.offset` is where the current range's bytes
    /// start.
    position: u64,
    /// The range that contains `position`, or the next one.
    range: usize,
}

impl Section {
    /// Returns how many bytes are left to read.
    pub fn left_bytes(&self) -> u64 {
        self.extent.size_bytes - self.position
    }

    /// Returns where the bytes at the position are (`None`: in a hole) and how many follow there,
    /// at most what is left.
    fn here(&mut self) -> (Option<u64>, u64) {
        let Some(ranges) = &self.extent.ranges else {
            return (Some(self.extent.offset + self.position), self.left_bytes());
        };
        while let Some(range) = ranges.get(self.range) {
            let end = range.offset + range.length;
            if self.position < range.offset {
                return (None, range.offset - self.position);
            }
            if self.position < end {
                let at = self.extent.offset + (self.position - range.offset);
                return (Some(at), end - self.position);
            }
            self.extent.offset += range.length;
            self.range += 1;
        }
        (None, self.left_bytes())
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (at, length) = self.here();
        let room = usize::try_from(length).unwrap_or(usize::MAX).min(buf.len());
        let got = match at {
            Some(at) => self.file.read_at(&mut buf[..room], at)?,
            None => {
                buf[..room].fill(0);
                room
            }
        };
        if got == 0 && room != 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive has become shorter",
            ));
        }
        self.position += got as u64;
        Ok(got)
    }
}

/// The part of the archive in memory.
struct Window<'a> {
    file: &'a File,
    /// Where in the file the buffer ends.
    at: u64,
    size_bytes: u64,
    buffer: Vec<u8>,
    /// How much of the buffer was consumed.
    taken: usize,
}

impl TarSource for Window<'_> {
    fn chunk(&mut self) -> TarResult<&[u8]> {
        if self.taken == self.buffer.len() {
            self.taken = 0;
            self.buffer.resize(WINDOW_BYTES, 0);
            let got = loop {
                match self.file.read_at(&mut self.buffer, self.at) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            self.buffer.truncate(got.as_ref().map_or(0, |got| *got));
            self.at += got.map_err(Error::Read)? as u64;
        }
        Ok(&self.buffer[self.taken..])
    }

    fn consume(&mut self, n: usize) {
        self.taken += n;
    }

    fn offset(&self) -> u64 {
        self.at - (self.buffer.len() - self.taken) as u64
    }

    fn skip(&mut self, n: u64) -> TarResult<u64> {
        // Sizes are untrusted: one near the largest number must not wrap around.
        let n = n.min(self.size_bytes.saturating_sub(self.offset()));
        let here = (self.buffer.len() - self.taken) as u64;
        match n <= here {
            true => self.taken += n as usize,
            false => {
                self.at += n - here;
                self.buffer.clear();
                self.taken = 0;
            }
        }
        Ok(n)
    }
}

/// Returns `path` without empty and `.` components, and with `..` resolved lexically, never above
/// the root.
fn normalize(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Returns the name that a symlink called `link` with this `target` refers to.
fn resolve(link: &[u8], target: &[u8]) -> Vec<u8> {
    if target.starts_with(b"/") {
        return normalize(target);
    }
    let directory = link
        .iter()
        .rposition(|b| *b == b'/')
        .map_or(&b""[..], |slash| &link[..slash]);
    normalize(&[directory, b"/", target].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A tar archive of (name, kind, link target, contents).
    fn archive(entries: &[(&str, u8, &str, &[u8])]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for (name, kind, target, data) in entries {
            let mut header = [0u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[100..107].copy_from_slice(b"0000644");
            header[108..115].copy_from_slice(b"0000000");
            header[116..123].copy_from_slice(b"0000000");
            header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
            header[136..147].copy_from_slice(b"00000000000");
            header[148..156].fill(b' ');
            header[156] = *kind;
            header[157..157 + target.len()].copy_from_slice(target.as_bytes());
            header[257..265].copy_from_slice(b"ustar\x0000");
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            file.write_all(&header).unwrap();
            file.write_all(data).unwrap();
            file.write_all(&vec![0; data.len().next_multiple_of(512) - data.len()])
                .unwrap();
        }
        file.write_all(&[0; 1024]).unwrap();
        file
    }

    fn text(archive: &Archive, path: &str) -> String {
        String::from_utf8(archive.read(path, "x", 1000).unwrap()).unwrap()
    }

    #[test]
    fn files_are_found_through_links_and_unusual_spellings() {
        let file = archive(&[
            ("./a/layer.tar", b'0', "", b"one"),
            ("b/layer.tar", b'2', "../a/layer.tar", b""),
            ("c/layer.tar", b'1', "a/layer.tar", b""),
            ("up", b'2', "../../../a/layer.tar", b""),
            ("loop", b'2', "loop", b""),
            ("twice", b'0', "", b"old"),
            ("twice", b'0', "", b"new"),
        ]);
        let archive = Archive::index(file, "test".to_owned()).unwrap();
        for name in [
            "a/layer.tar",
            "/a/./layer.tar",
            "b/layer.tar",
            "c/layer.tar",
            "up",
        ] {
            assert_eq!(text(&archive, name), "one", "{name}");
        }
        assert_eq!(text(&archive, "twice"), "new");
        assert!(!archive.contains("loop"));
        assert!(!archive.contains("a"));
        assert!(matches!(
            archive.open("nothing"),
            Err(SourceError::Missing { .. })
        ));
        assert!(
            archive.read("a/layer.tar", "x", 2).is_err(),
            "the limit holds"
        );
    }

    #[test]
    fn an_incomplete_archive_is_an_error() {
        let cut = archive(&[("a", b'0', "", &[1; 4000])]);
        cut.set_len(2000).unwrap();
        assert!(matches!(
            Archive::index(cut, "cut".to_owned()),
            Err(SourceError::Malformed(_))
        ));

        let empty = tempfile::tempfile().unwrap();
        assert!(matches!(
            Archive::index(empty, "e".to_owned()),
            Err(SourceError::NotAnImage(_))
        ));

        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&[b'x'; 5000]).unwrap();
        assert!(matches!(
            Archive::index(text, "t".to_owned()),
            Err(SourceError::NotAnImage(_))
        ));
    }

    #[test]
    fn sizes_that_would_wrap_around_are_errors() {
        for size in [[0xff; 12], *b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"] {
            let mut bytes = Vec::new();
            let mut file = archive(&[("a", b'0', "", b"x")]);
            io::Seek::rewind(&mut file).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes[124..136].copy_from_slice(&size);
            bytes[148..156].fill(b' ');
            let sum: u32 = bytes[..512].iter().map(|b| u32::from(*b)).sum();
            bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            let mut wrong = tempfile::tempfile().unwrap();
            wrong.write_all(&bytes).unwrap();
            assert!(Archive::index(wrong, "w".to_owned()).is_err());
        }
    }

    #[test]
    fn a_missing_end_marker_is_tolerated() {
        let file = archive(&[("a", b'0', "", b"x")]);
        file.set_len(1024).unwrap();
        assert_eq!(
            text(&Archive::index(file, "t".to_owned()).unwrap(), "a"),
            "x"
        );
    }
}

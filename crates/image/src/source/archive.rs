//! A tar archive as a read-only map from names to byte ranges.
//!
//! Image archives are small trees of big files. One pass over the headers notes where each file's
//! bytes lie; after that, any file can be read at any time, by several threads at once, through one
//! descriptor. Symlinks and hard links among the entries (old `docker save`, `podman save`) are
//! followed inside the map: a name never reaches the file system.
//!
//! Invariants: every range lies inside the file; the number of entries is bounded.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tar_core::EntryType;
use tar_core::parse::{Limits, ParseEvent, Parser};

use super::SourceError;

/// More entries than any image archive has; bounds the memory of the map.
const MAX_ENTRIES: usize = 200_000;
/// More hops than any archive's links need.
const MAX_LINK_HOPS: usize = 16;

/// The files of a tar archive, by name.
#[derive(Debug)]
pub struct Archive {
    file: Arc<File>,
    name: String,
    entries: HashMap<Vec<u8>, Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    File {
        offset: u64,
        size_bytes: u64,
    },
    /// Another name of this archive, already made absolute to its root.
    Link(Vec<u8>),
}

impl Archive {
    /// Reads the headers of the tar archive in `file`, which `name` names in messages.
    ///
    /// A name that occurs twice means its last entry, as when unpacking. Errors: not a tar archive,
    /// cut short, or too many entries.
    pub fn index(file: File, name: String) -> Result<Self, SourceError> {
        let size_bytes = file
            .metadata()
            .map_err(|e| SourceError::io(name.as_str(), e))?
            .len();
        let malformed =
            |why: String| SourceError::Malformed(format!("{name} as a tar archive: {why}"));
        let mut entries = HashMap::new();
        let mut parser = Parser::new(Limits {
            max_path_len: Some(4096),
            ..Limits::default()
        });
        let mut window = Window {
            file: &file,
            at: 0,
            buffer: Vec::new(),
        };
        let mut wanted = 512;
        loop {
            let available = window
                .fill(wanted)
                .map_err(|e| SourceError::io(name.as_str(), e))?;
            if available < wanted {
                if window.at == 0 && available < 512 {
                    return Err(SourceError::NotAnImage(name));
                }
                // Some writers leave out one or both of the closing zero blocks.
                if window.buffer.iter().all(|b| *b == 0) {
                    break;
                }
                return Err(malformed("it ends in the middle of a header".to_owned()));
            }
            let (consumed, data_bytes, found) = match parser.parse(&window.buffer) {
                Ok(ParseEvent::NeedData { min_bytes }) => {
                    wanted = min_bytes.max(available + 1);
                    continue;
                }
                Ok(ParseEvent::End { .. }) => break,
                Ok(ParseEvent::GlobalExtensions { consumed, .. }) => (consumed, 0, None),
                Ok(ParseEvent::SparseEntry { entry, .. }) => {
                    let path = String::from_utf8_lossy(&entry.path).into_owned();
                    return Err(malformed(format!("{path} is a sparse file")));
                }
                Ok(ParseEvent::Entry { consumed, entry }) => {
                    let key = normalize(&entry.path);
                    let target = entry.link_target.as_deref().unwrap_or_default();
                    let offset = window.at + consumed as u64;
                    let found = match entry.entry_type {
                        EntryType::Symlink => {
                            Some((key.clone(), Entry::Link(resolve(&key, target))))
                        }
                        EntryType::Link => Some((key, Entry::Link(normalize(target)))),
                        EntryType::Regular | EntryType::Continuous => Some((
                            key,
                            Entry::File {
                                offset,
                                size_bytes: entry.size,
                            },
                        )),
                        _ => None,
                    };
                    (consumed, entry.size, found)
                }
                // The first header decides whether this is a tar archive at all.
                Err(_) if window.at == 0 => return Err(SourceError::NotAnImage(name)),
                Err(e) => return Err(malformed(e.to_string())),
            };
            let data_start = window.at + consumed as u64;
            // Sizes come from strangers: one near the largest number must not wrap around.
            let data_end = data_start
                .checked_add(data_bytes)
                .filter(|end| *end <= size_bytes)
                .ok_or_else(|| malformed("it is cut short".to_owned()))?;
            if let Some((key, entry)) = found {
                entries.insert(key, entry);
            }
            if entries.len() > MAX_ENTRIES {
                return Err(malformed(format!("it has more than {MAX_ENTRIES} entries")));
            }
            // The end lies in a file, so rounding it up can't overflow.
            window.seek(data_start + (data_end - data_start).next_multiple_of(512));
            wanted = 512;
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

    /// Returns the bytes of the file called `path`, links followed.
    pub fn open(&self, path: &str) -> Result<Section, SourceError> {
        let (offset, left_bytes) =
            self.find(path.as_bytes())
                .ok_or_else(|| SourceError::Missing {
                    path: path.to_owned(),
                    source_name: self.name.clone(),
                })?;
        Ok(Section {
            file: Arc::clone(&self.file),
            offset,
            left_bytes,
        })
    }

    /// Returns the whole of a small file; more than `limit_bytes` is an error naming `what`.
    pub fn read(
        &self,
        path: &str,
        what: &'static str,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let mut section = self.open(path)?;
        crate::manifest::check_size(what, section.left_bytes, limit_bytes)?;
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(|e| SourceError::io(self.name.as_str(), e))?;
        Ok(bytes)
    }

    fn find(&self, path: &[u8]) -> Option<(u64, u64)> {
        let mut key = normalize(path);
        for _ in 0..MAX_LINK_HOPS {
            match self.entries.get(&key)? {
                Entry::File { offset, size_bytes } => return Some((*offset, *size_bytes)),
                Entry::Link(target) => key = target.clone(),
            }
        }
        None
    }
}

/// A range of the archive, readable independently of all others.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    offset: u64,
    left_bytes: u64,
}

impl Section {
    /// Returns how many bytes are left to read.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left_bytes)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let got = self.file.read_at(&mut buf[..room], self.offset)?;
        if got == 0 && room != 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive has become shorter",
            ));
        }
        self.offset += got as u64;
        self.left_bytes -= got as u64;
        Ok(got)
    }
}

/// The headers at hand: `buffer` holds the bytes of the file from `at` on.
struct Window<'a> {
    file: &'a File,
    at: u64,
    buffer: Vec<u8>,
}

impl Window<'_> {
    /// Makes at least `wanted` bytes available, unless the file ends; returns how many there are.
    fn fill(&mut self, wanted: usize) -> io::Result<usize> {
        while self.buffer.len() < wanted {
            let have = self.buffer.len();
            self.buffer.resize(wanted, 0);
            let got = self
                .file
                .read_at(&mut self.buffer[have..], self.at + have as u64);
            self.buffer
                .truncate(have + got.as_ref().map_or(0, |got| *got));
            match got {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.buffer.len())
    }

    fn seek(&mut self, at: u64) {
        self.at = at;
        self.buffer.clear();
    }
}

/// Returns `path` without empty and `.` components and with `..` taken lexically, never above the root.
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

/// Returns the name that a symlink called `link` with this `target` means.
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
    fn files_are_found_through_links_and_odd_spellings() {
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
    fn what_is_not_a_whole_archive_is_an_error() {
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

//! Writes a tar-split.
//!
//! [`split`] reads a tar and writes its tar-split. It must not know where tree or file are. Content
//! is never kept, so a layer of any size takes no memory; headers are kept up to the next entry.
//! Content that is not the content of a file in the tree (a sparse file's, which comes without its
//! holes, and that of types that nothing unpacks) is part of the stretches.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::{FILE, PIECE};
use crate::error::{Error, Result};
use crate::tar::{EntryKind, TarReader, TarSource};

/// Stretches are written at this size: a tar may end in any number of zeros.
const STRETCH_BYTES: usize = 1 << 20;

/// Reads the tar to its end and writes its tar-split to `out`, which is returned.
///
/// Errors: those of the reader, for a malformed tar or one that ends within an entry; `Write`.
pub fn split<S: TarSource, W: Write>(reader: &mut TarReader<S>, out: W) -> Result<W> {
    let mut split = TarSplit {
        out: GzEncoder::new(out, Compression::default()),
        position: 0,
        stretch: Vec::new(),
    };
    while let Some(entry) = reader.next_entry()? {
        split.take(reader.raw())?;
        let name = entry.name.as_bytes();
        if entry.kind == EntryKind::File && entry.ranges.is_none() && entry.size_bytes > 0 {
            split.end_stretch()?;
            let mut sum = !0;
            passing(reader, |piece| {
                sum = crc64(sum, piece);
                Ok(())
            })?;
            split.entry(name, entry.size_bytes, Some(!sum))?;
        } else if entry.payload_bytes > 0 {
            passing(reader, |piece| split.take(&mut piece.to_vec()))?;
        } else {
            split.end_stretch()?;
            split.entry(name, 0, None)?;
        }
    }
    split.take(reader.raw())?;
    while reader.trailer()?.is_some() {
        split.take(reader.raw())?;
    }
    split.end_stretch()?;
    split.out.finish().map_err(Error::Write)
}

/// Passes an entry's content to `each`, piece by piece.
fn passing<S: TarSource>(
    reader: &mut TarReader<S>,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    loop {
        let piece = reader.payload()?;
        let n = piece.len();
        if n == 0 {
            return Ok(());
        }
        each(piece)?;
        reader.advance(n);
    }
}

struct TarSplit<W: Write> {
    out: GzEncoder<W>,
    position: u64,
    /// What has passed since the last line.
    stretch: Vec<u8>,
}

impl<W: Write> TarSplit<W> {
    /// Adds `bytes` to the stretch and empties them.
    fn take(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        self.stretch.append(bytes);
        match self.stretch.len() >= STRETCH_BYTES {
            true => self.end_stretch(),
            false => Ok(()),
        }
    }

    fn end_stretch(&mut self) -> Result<()> {
        if self.stretch.is_empty() {
            return Ok(());
        }
        let payload = STANDARD.encode(&self.stretch);
        self.stretch.clear();
        self.line(json!({ "type": PIECE, "payload": payload }))
    }

    fn entry(&mut self, name: &[u8], size: u64, sum: Option<u64>) -> Result<()> {
        let payload = sum.map(|sum| STANDARD.encode(sum.to_be_bytes()));
        let mut line = json!({ "type": FILE, "payload": payload });
        match std::str::from_utf8(name) {
            Ok(name) => line["name"] = json!(name),
            Err(_) => line["name_raw"] = json!(STANDARD.encode(name)),
        }
        if size > 0 {
            line["size"] = json!(size);
        }
        self.line(line)
    }

    fn line(&mut self, mut line: Value) -> Result<()> {
        line["position"] = json!(self.position);
        self.position += 1;
        serde_json::to_writer(&mut self.out, &line)
            .map_err(io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(Error::Write)
    }
}

/// CRC-64 of ISO 3309, reflected, as in Go's `hash/crc64`. Starts and ends inverted.
fn crc64(begun: u64, bytes: &[u8]) -> u64 {
    const TABLE: [u64; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut value = at as u64;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    (value >> 1) ^ 0xD800_0000_0000_0000
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    bytes.iter().fold(begun, |sum, &byte| {
        TABLE[((sum as u8) ^ byte) as usize] ^ (sum >> 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::reader::tests::{Raw, archive, pax};
    use crate::{LayerWriter, TarEntry, TarKind};
    use flate2::read::GzDecoder;
    use std::io::Read;
    use vellum_sys::Timespec;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = LayerWriter::new(Vec::new());
        for (path, content) in files {
            let kind = TarKind::File {
                size_bytes: content.len() as u64,
            };
            let entry = TarEntry {
                path: path.into(),
                kind,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: Timespec::new(1, 0),
                xattrs: Vec::new(),
            };
            writer.append(&entry, &mut &content[..]).unwrap();
        }
        writer.finish().unwrap()
    }

    /// A source that hands out pieces of this size.
    struct Steps<'a>(&'a [u8], usize, u64);

    impl TarSource for Steps<'_> {
        fn chunk(&mut self) -> Result<&[u8]> {
            Ok(&self.0[..self.0.len().min(self.1)])
        }

        fn consume(&mut self, n: usize) {
            self.0 = &self.0[n..];
            self.2 += n as u64;
        }

        fn offset(&self) -> u64 {
            self.2
        }
    }

    fn split_of(tar: &[u8], step: usize) -> Result<Vec<Value>> {
        let mut reader = TarReader::new(Steps(tar, step, 0), &crate::Limits::default());
        let mut text = String::new();
        GzDecoder::new(&split(&mut reader, Vec::new())?[..])
            .read_to_string(&mut text)
            .unwrap();
        let lines = text.lines();
        Ok(lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect())
    }

    /// What a reader of the format does.
    fn join(lines: &[Value], content: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            assert_eq!(line["position"], at);
            let payload = line["payload"]
                .as_str()
                .map(|text| STANDARD.decode(text).unwrap());
            match line["type"].as_u64() {
                Some(2) => tar.extend(payload.unwrap()),
                Some(1) if line["size"].is_null() => assert!(payload.is_none()),
                Some(1) => {
                    let name = line["name"].as_str().unwrap();
                    let (_, found) = content.iter().find(|(known, _)| *known == name).unwrap();
                    assert_eq!(line["size"], found.len());
                    assert_eq!(payload.unwrap(), (!crc64(!0, found)).to_be_bytes());
                    tar.extend_from_slice(found);
                }
                _ => panic!("{line}"),
            }
        }
        tar
    }

    #[test]
    fn a_tar_comes_back_from_its_split_and_its_files() {
        let long = format!("{}/deep", "d".repeat(200));
        let block = [7; 512];
        let large = vec![1; 300_000];
        let files: [(&str, &[u8]); 5] = [
            ("a", b"content"),
            ("b", b""),
            ("c", &block),
            (&long, b"x"),
            ("e", &large),
        ];
        let tar = tar(&files);
        for step in [1, 511, 512, 4096, usize::MAX] {
            if step == 1 && tar.len() > 1 << 20 {
                continue;
            }
            assert!(
                join(&split_of(&tar, step.min(tar.len())).unwrap(), &files) == tar,
                "in steps of {step}"
            );
        }
    }

    #[test]
    fn content_that_no_file_has_stays_in_the_tar_split() {
        let sparse = [
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"0"),
                    ("GNU.sparse.minor", b"1"),
                    ("GNU.sparse.size", b"9"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.map", b"1,2"),
                ],
            ),
            Raw::new("sparse", b'0').data(b"xy"),
        ]
        .concat();
        let label = Raw::new("label", b'V').data(b"text");
        let sized = Raw::new("d/", b'5').size(4096).block();
        let plain = Raw::new("plain", b'0').data(b"plain");
        let tar = archive(&[sparse, label, sized, plain]);
        let lines = split_of(&tar, 700).unwrap();
        assert!(join(&lines, &[("plain", b"plain")]) == tar);
    }

    #[test]
    fn a_tar_that_ends_within_an_entry_is_refused() {
        let tar = tar(&[("a", b"content")]);
        for end in [1, 511, 513, 518, 1535, 2047] {
            assert!(split_of(&tar[..end], 700).is_err(), "{end}");
        }
        for end in [0, 512 + 7, 600, 1024, 1536, 2048] {
            let lines = split_of(&tar[..end], 700).unwrap();
            assert!(join(&lines, &[("a", b"content")]) == tar[..end], "{end}");
        }
    }

    #[test]
    fn sums_are_those_of_go() {
        // hash/crc64 with the ISO table, of "123456789".
        assert_eq!(!crc64(!0, b"123456789"), 0xb909_56c7_75a4_1001);
    }
}

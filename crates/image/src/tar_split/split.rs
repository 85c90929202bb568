//! Writes a tar-split.
//!
//! [`TarSplit`] is a writer that a tar is written into. It must not know where tree or file are.
//! Content is never kept, so a layer of any size takes no memory; headers are kept up to the next entry.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::{FILE, PIECE};

const BLOCK: usize = 512;
/// More than any name, link target or attribute set that Linux takes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Stretches are handed on at this size: a tar may end in any number of zeros.
const STRETCH_BYTES: usize = 1 << 20;

/// A writer that turns a tar into a tar-split.
#[derive(Debug)]
pub struct TarSplit<W: Write> {
    out: GzEncoder<W>,
    position: u64,
    /// What has passed since the last line.
    stretch: Vec<u8>,
    state: State,
    /// What the extension headers before the next entry said.
    said: Extension,
}

#[derive(Debug, Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

#[derive(Debug)]
enum State {
    /// Collecting a header.
    Header(Vec<u8>),
    /// In an extension header's content: its type, what there is of it, how much is to come.
    Extension(u8, Vec<u8>, u64),
    /// In an entry's content.
    Content {
        name: Vec<u8>,
        size: u64,
        left: u64,
        sum: u64,
    },
    /// Zeros up to the next block.
    Padding(u64),
    /// Behind the end mark.
    End,
}

impl<W: Write> TarSplit<W> {
    /// Begins one in `out`.
    pub fn new(out: W) -> Self {
        Self {
            out: GzEncoder::new(out, Compression::default()),
            position: 0,
            stretch: Vec::new(),
            state: State::Header(Vec::with_capacity(BLOCK)),
            said: Extension::default(),
        }
    }

    /// Ends it and returns the writer below. Errors if the tar ended within an entry.
    pub fn finish(mut self) -> io::Result<W> {
        match &self.state {
            State::Header(begun) if begun.is_empty() => {}
            State::End => {}
            _ => return Err(bad("the tar ends in the middle of an entry")),
        }
        self.end_stretch()?;
        self.out.finish()
    }

    fn line(&mut self, mut line: Value) -> io::Result<()> {
        line["position"] = json!(self.position);
        self.position += 1;
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.write_all(b"\n")
    }

    fn end_stretch(&mut self) -> io::Result<()> {
        if self.stretch.is_empty() {
            return Ok(());
        }
        let payload = STANDARD.encode(&self.stretch);
        self.stretch.clear();
        self.line(json!({ "type": PIECE, "payload": payload }))
    }

    fn entry(&mut self, name: &[u8], size: u64, sum: Option<u64>) -> io::Result<()> {
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

    /// Takes a whole header block, which is in the stretch already.
    fn header(&mut self, block: &[u8]) -> io::Result<State> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(State::End);
        }
        let size = number(&block[124..136]).ok_or_else(|| bad("a size is no number"))?;
        let kind = block[156];
        if matches!(kind, b'x' | b'g' | b'L' | b'K') {
            if size > MAX_EXTENSION_BYTES {
                return Err(bad("an extension header is too large"));
            }
            return Ok(State::Extension(kind, Vec::new(), padded(size)));
        }
        if kind == b'S' {
            return Err(bad("sparse entries of GNU tar have no tar-split"));
        }
        let said = std::mem::take(&mut self.said);
        let name = said.name.unwrap_or_else(|| header_name(block));
        let size = match kind {
            b'1'..=b'6' => 0,
            _ => said.size.unwrap_or(size),
        };
        self.end_stretch()?;
        if size == 0 {
            self.entry(&name, 0, None)?;
            return Ok(State::Header(Vec::with_capacity(BLOCK)));
        }
        Ok(State::Content {
            name,
            size,
            left: size,
            sum: !0,
        })
    }

    /// Takes the content of an extension header, its padding included.
    fn extension(&mut self, kind: u8, content: &[u8]) -> io::Result<()> {
        match kind {
            b'L' => {
                let end = content.iter().position(|&byte| byte == 0);
                self.said.name = Some(content[..end.unwrap_or(content.len())].to_vec());
            }
            b'x' => {
                for (key, value) in pax_records(content) {
                    match key {
                        b"path" => self.said.name = Some(value.to_vec()),
                        b"size" => {
                            let size = std::str::from_utf8(value)
                                .ok()
                                .and_then(|text| text.parse().ok());
                            self.said.size = Some(size.ok_or_else(|| bad("a size is no number"))?);
                        }
                        key if key.starts_with(b"GNU.sparse") => {
                            return Err(bad("sparse entries of GNU tar have no tar-split"));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a part of `buf` and returns how much.
    fn step(&mut self, buf: &[u8]) -> io::Result<usize> {
        let upto = |want: u64| buf.len().min(usize::try_from(want).unwrap_or(usize::MAX));
        match std::mem::replace(&mut self.state, State::End) {
            State::Header(mut begun) => {
                let take = upto((BLOCK - begun.len()) as u64);
                begun.extend_from_slice(&buf[..take]);
                self.stretch.extend_from_slice(&buf[..take]);
                self.state = match begun.len() {
                    BLOCK => self.header(&begun)?,
                    _ => State::Header(begun),
                };
                Ok(take)
            }
            State::Extension(kind, mut content, left) => {
                let take = upto(left);
                content.extend_from_slice(&buf[..take]);
                self.stretch.extend_from_slice(&buf[..take]);
                let left = left - take as u64;
                self.state = match left {
                    0 => {
                        self.extension(kind, &content)?;
                        State::Header(Vec::with_capacity(BLOCK))
                    }
                    _ => State::Extension(kind, content, left),
                };
                Ok(take)
            }
            State::Content {
                name,
                size,
                left,
                sum,
            } => {
                let take = upto(left);
                let sum = crc64(sum, &buf[..take]);
                let left = left - take as u64;
                self.state = match left {
                    0 => {
                        self.entry(&name, size, Some(!sum))?;
                        match padded(size) - size {
                            0 => State::Header(Vec::with_capacity(BLOCK)),
                            padding => State::Padding(padding),
                        }
                    }
                    _ => State::Content {
                        name,
                        size,
                        left,
                        sum,
                    },
                };
                Ok(take)
            }
            State::Padding(left) => {
                let take = upto(left);
                self.stretch.extend_from_slice(&buf[..take]);
                self.state = match left - take as u64 {
                    0 => State::Header(Vec::with_capacity(BLOCK)),
                    left => State::Padding(left),
                };
                Ok(take)
            }
            State::End => {
                let take = upto(STRETCH_BYTES as u64);
                self.stretch.extend_from_slice(&buf[..take]);
                if self.stretch.len() >= STRETCH_BYTES {
                    self.end_stretch()?;
                }
                Ok(take)
            }
        }
    }
}

impl<W: Write> Write for TarSplit<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match buf {
            [] => Ok(0),
            buf => self.step(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64)
}

/// A number of a header: octal, or base 256 with the top bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let bytes = field
            .iter()
            .enumerate()
            .map(|(at, &byte)| if at == 0 { byte & 0x7f } else { byte });
        return bytes.into_iter().try_fold(0u64, |value, byte| {
            value.checked_mul(256)?.checked_add(u64::from(byte))
        });
    }
    let text = field.split(|&byte| byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?.trim();
    match text {
        "" => Some(0),
        text => u64::from_str_radix(text, 8).ok(),
    }
}

/// The name in the header itself, with the prefix of a POSIX one.
fn header_name(block: &[u8]) -> Vec<u8> {
    let text = |field: &[u8]| -> Vec<u8> {
        field
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec()
    };
    let name = text(&block[..100]);
    let prefix = match &block[257..263] {
        b"ustar\0" => text(&block[345..500]),
        _ => Vec::new(),
    };
    match prefix.is_empty() {
        true => name,
        false => [&prefix[..], b"/", &name].concat(),
    }
}

/// `LENGTH KEY=VALUE\n`, one behind the other; ends at what is none.
fn pax_records(mut content: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    loop {
        let Some(space) = content.iter().position(|&byte| byte == b' ') else {
            return found;
        };
        let length = std::str::from_utf8(&content[..space])
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| content.get(space + 1..length.checked_sub(1)?))
        else {
            return found;
        };
        if let Some(equals) = record.iter().position(|&byte| byte == b'=') {
            found.push((&record[..equals], &record[equals + 1..]));
        }
        content = &content[space + record.len() + 2..];
    }
}

/// CRC-64 of ISO 3309, reflected, as Go's `hash/crc64` has it. Begins and ends inverted.
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

    fn split(tar: &[u8], step: usize) -> Vec<Value> {
        let mut split = TarSplit::new(Vec::new());
        for part in tar.chunks(step) {
            split.write_all(part).unwrap();
        }
        let mut text = String::new();
        GzDecoder::new(&split.finish().unwrap()[..])
            .read_to_string(&mut text)
            .unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// What a reader of the form does.
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
                join(&split(&tar, step.min(tar.len())), &files) == tar,
                "in steps of {step}"
            );
        }
    }

    #[test]
    fn a_tar_that_ends_early_is_refused() {
        let tar = tar(&[("a", b"content")]);
        for end in [1, 511, 513, 1023] {
            let mut split = TarSplit::new(Vec::new());
            split.write_all(&tar[..end]).unwrap();
            assert!(split.finish().is_err(), "{end}");
        }
    }

    #[test]
    fn sums_are_those_of_go() {
        // hash/crc64 with the ISO table, of "123456789".
        assert_eq!(!crc64(!0, b"123456789"), 0xb909_56c7_75a4_1001);
    }
}

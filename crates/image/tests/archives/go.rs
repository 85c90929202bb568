//! The two readers: Go's, compiled from `reader.go`, and ours. Both report what they find in the
//! same format.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::Crc;
use vellum_image::tar::{Entry, EntryKind, SliceSource, TarReader};
use vellum_image::{Error, Limits};
use vellum_testkit::{Scratch, untested};

/// What a reader finds in an archive.
pub struct Verdict {
    /// A line for each entry: where its content starts, and everything about it.
    pub entries: Vec<String>,
    /// How it ended.
    pub end: Result<(), String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.entries.join("\n"))?;
        match &self.end {
            Ok(()) => f.write_str("the end"),
            Err(why) => f.write_str(why),
        }
    }
}

/// True if both found the same. Error texts may differ. A file may be too large here where Go
/// continues.
pub fn same(ours: &Verdict, theirs: &Verdict) -> bool {
    match (&ours.end, theirs.entries.get(ours.entries.len())) {
        (Err(why), Some(next)) if why.starts_with("the size of a file exceeds the limit") => {
            let size: u64 = next.split(' ').nth(8).unwrap().parse().unwrap();
            size > Limits::default().max_file_bytes && theirs.entries.starts_with(&ours.entries)
        }
        (end, _) => ours.entries == theirs.entries && end.is_ok() == theirs.end.is_ok(),
    }
}

/// One version of Go, with the compiled reader.
pub struct Go {
    version: String,
    scratch: Scratch,
}

impl fmt::Display for Go {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.version)
    }
}

impl Go {
    /// Returns the machine's Go and, in the slow tier, the reference that
    /// `scripts/containerd-2-suite.sh make` fetches. Missing ones count as untested.
    pub fn all(what: &str) -> Vec<Go> {
        let mut found: Vec<Go> = Go::compile(Path::new("go")).into_iter().collect();
        if found.is_empty() {
            untested(&format!("{what} against Go"), "go is not installed");
        }
        if std::env::var_os("VELLUM_SLOW").is_some() {
            let fetched = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../.cache/containerd-2-suite/go/bin/go");
            match Go::compile(&fetched) {
                Some(go) => found.push(go),
                None => untested(
                    &format!("{what} against the newest Go"),
                    "scripts/containerd-2-suite.sh make fetches it",
                ),
            }
        }
        found
    }

    fn compile(go: &Path) -> Option<Go> {
        let version = Command::new(go).arg("version").output().ok()?;
        let scratch = Scratch::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/archives/reader.go");
        let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("go-cache");
        let output = Command::new(go)
            .args(["build", "-o"])
            .arg(scratch.join("reader"))
            .arg(source)
            .env("GO111MODULE", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOCACHE", cache)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        Some(Go { version, scratch })
    }

    /// Reads the archives.
    pub fn read<'a>(&self, archives: impl Iterator<Item = &'a [u8]>) -> Vec<Verdict> {
        let path = self.scratch.join("archives");
        let mut file = std::io::BufWriter::new(File::create(&path).unwrap());
        for bytes in archives {
            let length = bytes.len() as u64;
            file.write_all(&length.to_le_bytes()).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.flush().unwrap();
        drop(file);
        let output = Command::new(self.scratch.join("reader"))
            .stdin(Stdio::from(File::open(&path).unwrap()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut verdicts = Vec::new();
        let mut entries = Vec::new();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let end = match line.strip_prefix("error ") {
                Some(why) => Err(why.to_owned()),
                None if line == "end" => Ok(()),
                None => {
                    entries.push(line.to_owned());
                    continue;
                }
            };
            let entries = std::mem::take(&mut entries);
            verdicts.push(Verdict { entries, end });
        }
        verdicts
    }
}

/// Reads an archive with our reader.
pub fn ours(bytes: &[u8]) -> Verdict {
    let mut reader = TarReader::new(SliceSource::new(bytes), &Limits::default());
    let mut entries = Vec::new();
    let end = loop {
        match next(&mut reader) {
            Ok(Some(line)) => entries.push(line),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error.to_string()),
        }
    };
    Verdict { entries, end }
}

/// No more is read, as in `reader.go`.
const MOST: u64 = 64 << 20;

fn next(reader: &mut TarReader<SliceSource<'_>>) -> Result<Option<String>, Error> {
    let Some(entry) = reader.next_entry()? else {
        return Ok(None);
    };
    reader.raw().clear();
    let position = reader.offset();
    let content = match entry.size_bytes {
        size if size > MOST => "unread".to_owned(),
        size => format!("{size}:{:08x}", sum(&entry, reader)?),
    };
    let kind = match entry.kind {
        EntryKind::File => b'0',
        EntryKind::HardLink => b'1',
        EntryKind::Symlink => b'2',
        EntryKind::Character => b'3',
        EntryKind::Block => b'4',
        EntryKind::Directory => b'5',
        EntryKind::Fifo => b'6',
        EntryKind::Other(kind) => kind,
    };
    let attributes: Vec<_> = entry
        .xattrs
        .iter()
        .map(|(name, value)| format!("{}:{}", hex::encode(name.as_bytes()), hex::encode(value)))
        .collect();
    Ok(Some(format!(
        "{position} {kind} {} {} {:o} {} {} {}.{:09} {} {} {} {content} [{}]",
        hex::encode(entry.name.as_bytes()),
        hex::encode(entry.link.as_bytes()),
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime.sec,
        entry.mtime.nsec,
        entry.size_bytes,
        entry.rdev.0,
        entry.rdev.1,
        attributes.join(" "),
    )))
}

/// The checksum of an entry's content, including holes.
fn sum(entry: &Entry, reader: &mut TarReader<SliceSource<'_>>) -> Result<u32, Error> {
    let mut sum = Crc::new();
    let mut content = Vec::new();
    loop {
        let piece = reader.payload()?;
        let n = piece.len();
        if n == 0 {
            break;
        }
        content.extend_from_slice(piece);
        reader.advance(n);
    }
    let Some(ranges) = &entry.ranges else {
        sum.update(&content);
        return Ok(sum.sum());
    };
    let mut whole = vec![0; entry.size_bytes as usize];
    let mut taken = &content[..];
    for range in ranges {
        let (part, rest) = taken.split_at(range.length as usize);
        whole[range.offset as usize..][..part.len()].copy_from_slice(part);
        taken = rest;
    }
    sum.update(&whole);
    Ok(sum.sum())
}

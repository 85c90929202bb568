//! Writes a new layer's tar: one canonical form, so the same changes give the same bytes.
//!
//! ustar headers, preceded by a PAX header for what ustar can't hold: long names, nanoseconds and
//! times before 1970, ids above 2,097,151, files of 8 GiB and more, extended attributes
//! (`SCHILY.xattr.`). No user or group names, and no times but the modification time. Sparse files
//! are written in full: every reader agrees about plain data, while sparse formats differ in age
//! and quirks; compression makes up for it. dockerd, podman, skopeo, umoci and GNU tar read the
//! result.
//!
//! Invariant, checked: entries come in order of their paths, component by component, so a directory
//! precedes what is in it and nothing comes twice. The writer knows nothing of trees; the caller
//! says what changed.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use vellum_format::wh;
use vellum_sys::Timespec;

use crate::error::{Error, Result};
use crate::tar::header::{Block, field, new_ustar, padding, seal};
use crate::tar::pax::escaped;

/// The type of an entry, with what only that type has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarKind {
    /// A regular file with this many bytes of content.
    File {
        /// Its size, holes included.
        size_bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: OsString,
    },
    /// Another name of an entry written before.
    HardLink {
        /// That entry's path.
        target: PathBuf,
    },
    /// A character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One object of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// Its path in the tree: relative, without `.` and `..`. Not empty.
    pub path: PathBuf,
    /// Its type.
    pub kind: TarKind,
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timespec,
    /// Extended attributes with the names users see, in any order; written sorted.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// Writes one layer. It is complete only after [`LayerWriter::finish`].
pub struct LayerWriter<W: Write> {
    out: W,
    last: Option<Vec<OsString>>,
    entries: u64,
    buf: Vec<u8>,
    /// Names and devices may mean deletions.
    layer: bool,
}

/// The maximum in ustar's fields.
const MAX_ID: u64 = 0o777_7777;
const MAX_SIZE: u64 = 0o77_777_777_777;
const MAX_TIME: i64 = 0o77_777_777_777;
const NAME_BYTES: usize = 100;

impl<W: Write> LayerWriter<W> {
    /// Starts a layer in `out`. Wrap `out` to hash or compress on the way.
    pub fn new(out: W) -> Self {
        Self {
            out,
            last: None,
            entries: 0,
            buf: Vec::new(),
            layer: true,
        }
    }

    /// Starts a tar in `out` that is not a layer: names and devices that mean deletions in a layer
    /// have no special meaning.
    pub fn of_files(out: W) -> Self {
        Self {
            layer: false,
            ..Self::new(out)
        }
    }

    /// Returns how many entries were written, whiteouts included.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Writes `entry`; `data` returns a regular file's content, of which exactly `size_bytes` are
    /// read.
    ///
    /// Errors: `BadEntry` for names that a layer can't hold (`.wh.` is reserved, `..`), entries out
    /// of order, content that ends early, device 0:0; `Write`, `Read`.
    pub fn append(&mut self, entry: &TarEntry, data: &mut dyn Read) -> Result<()> {
        let components = components(&entry.path)?;
        if self.layer
            && components
                .iter()
                .any(|part| part.as_bytes().starts_with(wh::PREFIX.as_bytes()))
        {
            return Err(bad(
                &entry.path,
                "names that begin with .wh. mean deletions in a layer",
            ));
        }
        self.in_order(&entry.path, components)?;
        self.header(entry)?;
        if let TarKind::File { size_bytes } = entry.kind {
            self.content(&entry.path, size_bytes, data)?;
        }
        self.entries += 1;
        Ok(())
    }

    /// Writes that `path` of the layers below is deleted.
    ///
    /// Errors like [`LayerWriter::append`]; also for names that no whiteout can have.
    pub fn whiteout(&mut self, path: &Path) -> Result<()> {
        let components = components(path)?;
        let marker = components
            .last()
            .and_then(|name| wh::whiteout(name))
            .ok_or_else(|| bad(path, "a whiteout can't have that name"))?;
        self.in_order(path, components)?;
        self.marker(path.with_file_name(marker))
    }

    /// Writes that the layers below show nothing in the directory `path`, whose entry was just
    /// written.
    pub fn opaque(&mut self, path: &Path) -> Result<()> {
        if self.last.as_deref() != Some(&components(path)?) {
            return Err(bad(path, "an opaque mark must follow its directory"));
        }
        self.marker(path.join(wh::OPAQUE))
    }

    /// Writes the end marker and returns the writer below; nothing is synced.
    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(&[0; 1024]).map_err(Error::Write)?;
        self.out.flush().map_err(Error::Write)?;
        Ok(self.out)
    }

    fn marker(&mut self, path: PathBuf) -> Result<()> {
        self.header(&TarEntry {
            path,
            kind: TarKind::File { size_bytes: 0 },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timespec::new(0, 0),
            xattrs: Vec::new(),
        })?;
        self.entries += 1;
        Ok(())
    }

    fn in_order(&mut self, path: &Path, components: Vec<OsString>) -> Result<()> {
        if let Some(last) = &self.last
            && last.cmp(&components) != Ordering::Less
        {
            return Err(bad(path, "it comes out of order"));
        }
        self.last = Some(components);
        Ok(())
    }

    fn content(&mut self, path: &Path, size_bytes: u64, data: &mut dyn Read) -> Result<()> {
        self.buf.resize(128 * 1024, 0);
        let mut left = size_bytes;
        while left > 0 {
            let n = self
                .buf
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match data.read(&mut self.buf[..n]) {
                Ok(0) => return Err(bad(path, "it became shorter while it was read")),
                Ok(got) => got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Read(error)),
            };
            self.out.write_all(&self.buf[..got]).map_err(Error::Write)?;
            left -= got as u64;
        }
        self.pad(size_bytes)
    }

    fn pad(&mut self, size_bytes: u64) -> Result<()> {
        self.out
            .write_all(&[0; 512][..padding(size_bytes) as usize])
            .map_err(Error::Write)
    }

    fn header(&mut self, entry: &TarEntry) -> Result<()> {
        let mut records = Vec::new();
        let mut header = new_ustar();

        let mut name = entry.path.as_os_str().as_bytes().to_vec();
        if entry.kind == TarKind::Directory {
            name.push(b'/');
        }
        let mut binary = text(&mut header[field::NAME], &name, b"path", &mut records);
        let (typeflag, size, link, rdev) = match &entry.kind {
            TarKind::File { size_bytes } => (b'0', *size_bytes, None, (0, 0)),
            TarKind::HardLink { target } => {
                components(target)?;
                (b'1', 0, Some(target.as_os_str()), (0, 0))
            }
            TarKind::Symlink { target } => (b'2', 0, Some(target.as_os_str()), (0, 0)),
            TarKind::Character { major: 0, minor: 0 } if self.layer => {
                return Err(bad(&entry.path, "a character device 0:0 means a deletion"));
            }
            TarKind::Character { major, minor } => (b'3', 0, None, (*major, *minor)),
            TarKind::Block { major, minor } => (b'4', 0, None, (*major, *minor)),
            TarKind::Directory => (b'5', 0, None, (0, 0)),
            TarKind::Fifo => (b'6', 0, None, (0, 0)),
        };
        header[field::TYPEFLAG] = typeflag;
        if let Some(link) = link {
            let link = link.as_bytes();
            if link.is_empty() || link.contains(&0) {
                return Err(bad(&entry.path, "its target can't be written"));
            }
            binary |= text(&mut header[field::LINK], link, b"linkpath", &mut records);
        }
        octal(&mut header[field::MODE], u64::from(entry.mode & 0o7777));
        id(&mut header[field::UID], entry.uid, b"uid", &mut records);
        id(&mut header[field::GID], entry.gid, b"gid", &mut records);
        octal(&mut header[field::SIZE], size.min(MAX_SIZE));
        if size > MAX_SIZE {
            octal(&mut header[field::SIZE], 0);
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        octal(
            &mut header[field::MTIME],
            entry.mtime.sec.clamp(0, MAX_TIME) as u64,
        );
        if entry.mtime.nsec != 0 || !(0..=MAX_TIME).contains(&entry.mtime.sec) {
            record(&mut records, b"mtime", decimal_time(entry.mtime).as_bytes());
        }
        if matches!(
            entry.kind,
            TarKind::Character { .. } | TarKind::Block { .. }
        ) {
            octal(&mut header[field::DEV_MAJOR], u64::from(rdev.0));
            octal(&mut header[field::DEV_MINOR], u64::from(rdev.1));
        }
        let mut xattrs: Vec<_> = entry.xattrs.iter().collect();
        xattrs.sort();
        for (name, value) in xattrs {
            let key = [b"SCHILY.xattr.", escaped(name.as_bytes()).as_slice()].concat();
            record(&mut records, &key, value);
        }
        if binary {
            let mut first = Vec::new();
            record(&mut first, b"hdrcharset", b"BINARY");
            records.splice(0..0, first);
        }
        if !records.is_empty() {
            self.extended(&entry.path, &records)?;
        }
        self.sealed(header)
    }

    fn sealed(&mut self, mut header: Block) -> Result<()> {
        seal(&mut header);
        self.out.write_all(&header).map_err(Error::Write)
    }

    fn extended(&mut self, path: &Path, records: &[u8]) -> Result<()> {
        let mut header = new_ustar();
        // The path as which an old reader would extract it; never more than a hint.
        let base = path.file_name().unwrap_or_default().as_bytes();
        let name = [b"PaxHeaders.0/", &base[..base.len().min(NAME_BYTES - 13)]].concat();
        header[..name.len()].copy_from_slice(&name);
        header[field::TYPEFLAG] = b'x';
        octal(&mut header[field::MODE], 0o644);
        octal(&mut header[field::UID], 0);
        octal(&mut header[field::GID], 0);
        octal(&mut header[field::SIZE], records.len() as u64);
        octal(&mut header[field::MTIME], 0);
        self.sealed(header)?;
        self.out.write_all(records).map_err(Error::Write)?;
        self.pad(records.len() as u64)
    }
}

fn bad(path: &Path, why: &str) -> Error {
    Error::BadEntry {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

fn components(path: &Path) -> Result<Vec<OsString>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) if !part.as_bytes().contains(&0) => parts.push(part.to_owned()),
            _ => return Err(bad(path, "it is not a plain relative path")),
        }
    }
    // `components` ignores what a tar would spell out.
    let spelled = parts
        .iter()
        .map(|part| part.as_bytes())
        .collect::<Vec<_>>()
        .join(&b'/');
    if parts.is_empty() || OsStr::from_bytes(&spelled) != path.as_os_str() {
        return Err(bad(path, "it is not a plain relative path"));
    }
    Ok(parts)
}

/// Puts `value` into a field or, if it is too long, into a record. Returns true if the record is
/// not UTF-8.
fn text(field: &mut [u8], value: &[u8], key: &[u8], records: &mut Vec<u8>) -> bool {
    let n = value.len().min(NAME_BYTES);
    field[..n].copy_from_slice(&value[..n]);
    if value.len() <= NAME_BYTES {
        return false;
    }
    record(records, key, value);
    std::str::from_utf8(value).is_err()
}

fn id(field: &mut [u8], id: u32, key: &[u8], records: &mut Vec<u8>) {
    let id = u64::from(id);
    if id <= MAX_ID {
        octal(field, id);
    } else {
        octal(field, 0);
        record(records, key, id.to_string().as_bytes());
    }
}

/// Writes as many octal digits as fit, and a NUL. The caller has checked that the value fits.
fn octal(field: &mut [u8], value: u64) {
    let (last, digits) = field.split_last_mut().expect("fields are not empty");
    *last = 0;
    let mut value = value;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

/// Appends `<length> <key>=<value>\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn decimal_time(time: Timespec) -> String {
    let (sign, sec, nsec) = match (time.sec, time.nsec) {
        (sec, nsec) if sec >= 0 => ("", sec.unsigned_abs(), nsec),
        (sec, 0) => ("-", sec.unsigned_abs(), 0),
        // Seconds count down, nanoseconds up.
        (sec, nsec) => ("-", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
    };
    if nsec == 0 {
        return format!("{sign}{sec}");
    }
    let fraction = format!("{nsec:09}");
    format!("{sign}{sec}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;

//! The mount table as text: `/proc/PID/mountinfo`.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{FsOptions, Known, Mount, Table, os};
use crate::{Error, Result};

/// Reads the mounts this process sees.
pub(super) fn read() -> Result<Table> {
    read_file(Path::new("/proc/thread-self/mountinfo"))
}

/// Returns the mount that `fd` lies on; `None` if it is not in the table.
pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Option<Mount>> {
    let seen = crate::stat::whereabouts(fd).map_err(|e| Error::at("stat", fd, "", e))?;
    Ok(read()?.by_id(seen.mnt_id).cloned())
}

/// Reads the mounts another process sees.
pub(super) fn read_of(pid: u32) -> Result<Table> {
    read_file(Path::new(&format!("/proc/{pid}/mountinfo")))
}

fn read_file(path: &Path) -> Result<Table> {
    let bytes = std::fs::read(path).map_err(|e| Error::new("read the mount table", path, e))?;
    parse(&bytes).map_err(|e| Error::new("parse the mount table", path, e))
}

/// Parses the text of a mountinfo file. Errors: InvalidData naming the line.
pub fn parse(text: &[u8]) -> std::io::Result<Table> {
    let mut mounts = Vec::new();
    for (i, line) in text.split(|&b| b == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let mount = parse_line(line).ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("line {} is malformed", i + 1),
            )
        })?;
        mounts.push(mount);
    }
    Ok(Table::new(mounts))
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut dev = fields.next()?.split(|&b| b == b':');
    let dev = (number(dev.next()?)? as u32, number(dev.next()?)? as u32);
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = os(fields.next()?);
    let mut propagation = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => propagation.push(os(field)),
        }
    }
    let fs_type = OsString::from_vec(unescape(fields.next()?));
    let source = OsString::from_vec(unescape(fields.next()?));
    // A source may be empty and old kernels then leave the last field out.
    let of_fs = fields.next().unwrap_or_default();
    let (access, fs_options) = match of_fs.iter().position(|&b| b == b',') {
        Some(comma) => (&of_fs[..comma], &of_fs[comma + 1..]),
        None => (of_fs, &b""[..]),
    };
    Some(Mount {
        id,
        parent,
        dev,
        root,
        mount_point,
        options,
        propagation,
        fs_type,
        source,
        fs_is_read_only: access == b"ro",
        fs_options: Known::Told(FsOptions(os(fs_options))),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes `\ooo`, the only escape the kernel writes. Anything else after a backslash stays as it
/// is.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\'
            && let [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] = tail
        {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

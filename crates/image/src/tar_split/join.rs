//! A layer's tar, from Docker's own record of it (`tar-split.json.gz`) and the layer's tree.
//!
//! The record comes from a data root that anyone may have changed, so nothing in it is trusted:
//! lines and sizes are limited, names are resolved inside the tree, and the code that reads the tar
//! compares its digest.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use vellum_sys::in_root::{self, Last};
use vellum_sys::stat::{FileKind, stat_fd};
use vellum_sys::{Dir, rooted};

use super::{FILE, PIECE};

/// Longest line of a record: a piece between two files' contents, in base64. Headers are limited to
/// a fraction of it.
const MAX_LINE_BYTES: u64 = 32 << 20;

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u32,
    #[serde(default)]
    name: String,
    /// The name in base64, if it is not UTF-8.
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    payload: Option<String>,
}

/// The tar, as a reader. It ends without an error only if the record did.
pub(crate) struct Joined {
    lines: BufReader<flate2::read::MultiGzDecoder<File>>,
    tree: Dir,
    now: Now,
}

enum Now {
    Next,
    Piece(io::Cursor<Vec<u8>>),
    Content(Box<Content>),
    Ended,
}

struct Content {
    file: Take<File>,
    left: u64,
    name: PathBuf,
}

impl Joined {
    /// Reads the record `recipe` and takes contents from `tree`.
    pub(crate) fn new(recipe: File, tree: Dir) -> Self {
        Self {
            lines: BufReader::new(flate2::read::MultiGzDecoder::new(recipe)),
            tree,
            now: Now::Next,
        }
    }

    fn next(&mut self) -> io::Result<Now> {
        let mut text = Vec::new();
        let mut limited = (&mut self.lines).take(MAX_LINE_BYTES);
        limited.read_until(b'\n', &mut text)?;
        if text.trim_ascii().is_empty() {
            return Ok(match text.is_empty() {
                true => Now::Ended,
                false => Now::Next,
            });
        }
        if text.len() as u64 == MAX_LINE_BYTES {
            return Err(bad("a line of the tar-split record is too long".into()));
        }
        let line: Line = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("the tar-split record can't be read: {e}")))?;
        let decode = |text: &str| {
            STANDARD
                .decode(text)
                .map_err(|e| bad(format!("the tar-split record can't be read: {e}")))
        };
        match line.kind {
            PIECE => {
                let bytes = decode(line.payload.as_deref().unwrap_or_default())?;
                Ok(Now::Piece(io::Cursor::new(bytes)))
            }
            FILE if line.size == 0 => Ok(Now::Next),
            FILE => {
                let name = match &line.name_raw {
                    Some(raw) => OsString::from_vec(decode(raw)?),
                    None => line.name.into(),
                };
                self.open(PathBuf::from(name), line.size)
            }
            other => Err(bad(format!(
                "the tar-split record has an entry of unknown type {other}"
            ))),
        }
    }

    fn open(&self, name: PathBuf, size: u64) -> io::Result<Now> {
        let failed = |e: vellum_sys::Error| io::Error::other(e);
        let found = in_root::find(&self.tree, &name, Last::Keep).map_err(failed)?;
        let Some(handle) = found else {
            return Err(bad(format!("{} is missing in the layer", name.display())));
        };
        let stat = stat_fd(&handle).map_err(failed)?;
        if stat.kind != FileKind::File {
            // A directory or a link whose header had a size: there is no content, whatever the
            // record says.
            return Ok(Now::Next);
        }
        if stat.size_bytes != size {
            return Err(bad(format!(
                "{} has changed since the layer was created",
                name.display()
            )));
        }
        let file = rooted::reopen(&handle).map_err(failed)?.take(size);
        Ok(Now::Content(Box::new(Content {
            file,
            left: size,
            name,
        })))
    }
}

impl Read for Joined {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.now {
                Now::Ended => return Ok(0),
                Now::Next => self.now = self.next()?,
                Now::Piece(piece) => match piece.read(buf)? {
                    0 => self.now = Now::Next,
                    got => return Ok(got),
                },
                Now::Content(content) if content.left == 0 => self.now = Now::Next,
                Now::Content(content) => {
                    let got = content.file.read(buf)?;
                    if got == 0 {
                        let name = content.name.display();
                        return Err(bad(format!("{name} is shorter than it was")));
                    }
                    content.left -= got as u64;
                    return Ok(got);
                }
            }
        }
    }
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(record: &str, tree: &std::path::Path) -> io::Result<Vec<u8>> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(record.as_bytes())?;
        let mut file = tempfile::tempfile()?;
        file.write_all(&packed.finish()?)?;
        io::Seek::rewind(&mut file)?;
        let mut all = Vec::new();
        Joined::new(file, Dir::open(tree).unwrap()).read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn pieces_and_contents_come_in_order() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("f"), "content").unwrap();
        let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
        std::fs::write(tree.path().join(odd), "odd").unwrap();
        let record = format!(
            "{}\n{}\n{}\n{}\n{}\n",
            r#"{"type":2,"payload":"YWI=","position":0}"#,
            r#"{"type":1,"name":"./f","size":7,"payload":"AAAA","position":1}"#,
            r#"{"type":1,"name":"dir/","payload":null,"position":2}"#,
            r#"{"type":1,"name_raw":"b2Rk/w==","size":3,"payload":"","position":3}"#,
            r#"{"type":2,"payload":"eg==","position":4}"#
        );
        assert_eq!(read(&record, tree.path()).unwrap(), b"abcontentoddz");
        assert_eq!(read("", tree.path()).unwrap(), b"");
    }

    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_forged_record_reaches_nothing_outside() {
        let tree = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.path().join("link")).unwrap();
        std::fs::write(tree.path().join("short"), "x").unwrap();
        // What is not a file has nothing to read.
        let record = r#"{"type":1,"name":"link","size":9,"position":0}"#;
        assert_eq!(read(record, tree.path()).unwrap(), b"");
        for name in ["../../../../etc/passwd", "/etc/passwd", "short", "none"] {
            let record = format!(r#"{{"type":1,"name":"{name}","size":9,"position":0}}"#);
            let error = read(&record, tree.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}: {error}");
        }
        for nonsense in [
            "{",
            r#"{"type":7}"#,
            r#"{"type":2,"payload":"!"}"#,
            r#"{"type":1,"size":-1}"#,
        ] {
            assert!(read(nonsense, tree.path()).is_err(), "{nonsense}");
        }
    }
}

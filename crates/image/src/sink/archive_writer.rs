//! The tar archive around an image: a few small files and some huge ones, always the same bytes.
//!
//! Plain ustar headers without times, owners or anything else from this machine, so that saving an
//! image twice gives the same archive. This is only the outer archive; layers are tar files of
//! their own, which are copied unchanged.

use std::io::{self, Write};

const BLOCK: u64 = 512;
/// The largest size that fits eleven octal digits.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// Writes entries one after another; nothing is complete before [`ArchiveWriter::finish`].
pub(crate) struct ArchiveWriter<W: Write> {
    out: W,
}

impl<W: Write> ArchiveWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes a directory; `path` is at most 100 bytes and ends with a slash.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.out.write_all(&header(path, b'5', 0o755, 0))
    }

    /// Writes a file whose bytes are in memory.
    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(path, bytes.len() as u64)?;
        self.out.write_all(bytes)?;
        self.end(bytes.len() as u64)
    }

    /// Starts a file of exactly `size_bytes`, which the caller now writes to
    /// [`ArchiveWriter::body`].
    pub(crate) fn begin(&mut self, path: &str, size_bytes: u64) -> io::Result<()> {
        self.out.write_all(&header(path, b'0', 0o644, size_bytes))
    }

    /// Where to write the bytes of the current file.
    pub(crate) fn body(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends the current file, which was begun with the same size.
    pub(crate) fn end(&mut self, size_bytes: u64) -> io::Result<()> {
        let padding = size_bytes.next_multiple_of(BLOCK) - size_bytes;
        self.out.write_all(&[0; BLOCK as usize][..padding as usize])
    }

    /// Writes the end of the archive and returns the writer below, flushed.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn header(path: &str, kind: u8, mode: u32, size_bytes: u64) -> [u8; BLOCK as usize] {
    debug_assert!(
        path.len() <= 100,
        "paths of this archive are our own and short"
    );
    let mut header = [0u8; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size_bytes <= MAX_OCTAL {
        put(124, format!("{size_bytes:011o}\0").as_bytes());
    } else {
        // GNU's form for large numbers: a set high bit, then the number in base 256.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size_bytes.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{SliceSource, TarReader};

    #[test]
    fn sizes_above_eight_gibibytes_are_read_by_other_tools() {
        for size in [0, 1, MAX_OCTAL, MAX_OCTAL + 1, 1 << 40] {
            let bytes = header("blobs/x", b'0', 0o644, size);
            let mut reader = TarReader::new(SliceSource::new(&bytes), &crate::Limits::default());
            let entry = reader.next_entry().unwrap().unwrap();
            assert_eq!(entry.size_bytes, size);
            assert_eq!(entry.name, "blobs/x");
        }
    }
}

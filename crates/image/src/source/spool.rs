//! One file that can be read at any offset, whatever the input was.
//!
//! Archives list their layers in a file that may come last, so they need seeking. A plain file can
//! seek. Standard input, a pipe, or a compressed archive (`docker save | gzip`) is copied once into
//! an unnamed temporary file, which vanishes with the process however that ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use vellum_sys::Cancel;

use super::SourceError;
use crate::compression;
use crate::packing::Packing;

/// Returns `input` as a file of plain (not compressed) bytes that can be read at any offset.
///
/// `name` is for messages. `spool_dir` is a directory with space for a copy; it is used only if
/// `input` can't seek or is compressed; copying ends with an error once `cancel` is set.
pub fn open_seekable(
    mut input: File,
    name: &str,
    spool_dir: &Path,
    cancel: &Cancel,
) -> Result<File, SourceError> {
    let failed = |e| SourceError::io(name, e);
    let regular = input.metadata().map_err(failed)?.is_file();
    let mut head = [0u8; compression::DETECT_BYTES];
    let got = read_up_to(&mut input, &mut head).map_err(failed)?;
    let packing = compression::detect(&head[..got]);
    if regular && packing == Packing::NONE {
        input.seek(SeekFrom::Start(0)).map_err(failed)?;
        return Ok(input);
    }
    let mut spool = tempfile::tempfile_in(spool_dir)
        .map_err(|e| SourceError::io(spool_dir.display().to_string(), e))?;
    let whole = io::Cursor::new(head[..got].to_vec()).chain(input);
    let mut plain =
        compression::Decoder::new(packing, io::BufReader::with_capacity(256 << 10, whole))
            .map_err(failed)?;
    copy(&mut plain, &mut spool, cancel).map_err(failed)?;
    spool.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(spool)
}

fn copy(from: &mut dyn Read, to: &mut File, cancel: &Cancel) -> io::Result<()> {
    let mut buffer = vec![0u8; 256 << 10];
    loop {
        if cancel.is_cancelled() {
            return Err(io::Error::other("cancelled by the user"));
        }
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(got) => to.write_all(&buffer[..got])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

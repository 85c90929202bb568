//! Writes a recipe while a layer passes through.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use vellum_format::Digest;

use super::{END, FILE, KEPT, MAGIC, PIECE_BYTES, RAW, SPARSE};
use crate::error::{Error, Result};
use crate::tar::Range;

/// Collects one layer's recipe. It is complete only after [`RecipeWriter::finish`].
pub struct RecipeWriter<'w> {
    out: zstd::stream::write::Encoder<'static, &'w mut dyn Write>,
    /// Raw bytes not written yet, so that headers and padding become one segment.
    raw: Vec<u8>,
    payloads: u32,
}

impl<'w> RecipeWriter<'w> {
    /// Starts a recipe in `out`, which the caller makes durable.
    pub fn new(out: &'w mut dyn Write) -> Result<Self> {
        let start = || -> io::Result<_> {
            out.write_all(&MAGIC)?;
            let mut encoder = zstd::stream::write::Encoder::new(out, 3)?;
            encoder.include_checksum(true)?;
            Ok(encoder)
        };
        Ok(Self {
            out: start().map_err(Error::Write)?,
            raw: Vec::new(),
            payloads: 0,
        })
    }

    /// Adds bytes of the tar that are not content of the tree.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            if self.raw.len() + piece.len() > PIECE_BYTES {
                self.flush_raw()?;
            }
            self.raw.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Adds content that the tree holds: `length` bytes, all of the file `path` or its `ranges`.
    /// Returns the payload's ordinal.
    pub fn payload(
        &mut self,
        path: &[u8],
        length: u64,
        ranges: Option<&[Range]>,
        crc: u32,
    ) -> Result<u32> {
        self.flush_raw()?;
        let mut segment = Vec::with_capacity(path.len() + 32);
        segment.push(if ranges.is_some() { SPARSE } else { FILE });
        number(&mut segment, path.len() as u64);
        segment.extend_from_slice(path);
        match ranges {
            None => number(&mut segment, length),
            Some(ranges) => {
                number(&mut segment, ranges.len() as u64);
                let mut end = 0;
                for range in ranges {
                    number(&mut segment, range.offset - end);
                    number(&mut segment, range.length);
                    end = range.offset + range.length;
                }
            }
        }
        segment.extend_from_slice(&crc.to_le_bytes());
        self.out.write_all(&segment).map_err(Error::Write)?;
        let ordinal = self.payloads;
        self.payloads += 1;
        Ok(ordinal)
    }

    /// Keeps the content of payload `ordinal`, which the tree is about to lose; `file` has it.
    pub fn keep(&mut self, ordinal: u32, file: &File) -> Result<()> {
        self.flush_raw()?;
        let size = file.metadata().map_err(Error::Read)?.len();
        let mut segment = vec![KEPT];
        number(&mut segment, u64::from(ordinal));
        number(&mut segment, size);
        self.out.write_all(&segment).map_err(Error::Write)?;
        let mut end = 0;
        let mut offset = 0;
        let mut buf = vec![0; PIECE_BYTES.min(usize::try_from(size).unwrap_or(PIECE_BYTES).max(1))];
        while let Some((data, data_end)) = next_data(file, offset, size).map_err(Error::Read)? {
            offset = data;
            while offset < data_end {
                let n = buf
                    .len()
                    .min(usize::try_from(data_end - offset).unwrap_or(buf.len()));
                file.read_exact_at(&mut buf[..n], offset)
                    .map_err(Error::Read)?;
                segment.clear();
                number(&mut segment, offset - end);
                number(&mut segment, n as u64);
                self.out.write_all(&segment).map_err(Error::Write)?;
                self.out.write_all(&buf[..n]).map_err(Error::Write)?;
                offset += n as u64;
                end = offset;
            }
        }
        // The gap has no meaning; the length ends the list.
        self.out.write_all(&[0, 0]).map_err(Error::Write)
    }

    /// Ends the recipe. It is not synced.
    pub fn finish(mut self, tar_bytes: u64, diff_id: &Digest) -> Result<()> {
        self.flush_raw()?;
        let mut segment = vec![END];
        number(&mut segment, tar_bytes);
        number(&mut segment, u64::from(self.payloads));
        segment.extend_from_slice(diff_id.as_bytes());
        self.out.write_all(&segment).map_err(Error::Write)?;
        self.out
            .finish()
            .map_err(Error::Write)?
            .flush()
            .map_err(Error::Write)
    }

    fn flush_raw(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let mut segment = vec![RAW];
        number(&mut segment, self.raw.len() as u64);
        self.out.write_all(&segment).map_err(Error::Write)?;
        self.out.write_all(&self.raw).map_err(Error::Write)?;
        self.raw.clear();
        Ok(())
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Returns the next run of data at or after `offset`, or `None` if only a hole is left.
pub(crate) fn next_data(file: &File, offset: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    if offset >= size {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => {
            let end = seek(file, SeekFrom::Hole(start))?;
            Ok(Some((start, end.min(size))))
        }
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A file system without holes.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some((offset, size))),
        Err(error) => Err(error.into()),
    }
}

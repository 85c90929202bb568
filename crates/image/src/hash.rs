//! Readers and writers that hash the bytes that pass through. The digest type is in the `format`
//! crate.
//!
//! They know nothing of blobs, layers or stores.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};
use vellum_format::Digest;

use crate::error::Error;

/// A digest being computed.
#[derive(Clone, Default)]
pub struct Hasher {
    sha256: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Returns how many bytes were added so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the digest of all bytes added.
    pub fn finish(self) -> Digest {
        Digest::from_bytes(self.sha256.finalize().into())
    }
}

/// A reader that hashes what passes through it.
pub struct HashRead<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> HashRead<R> {
    /// Hashes from the first byte on.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
        }
    }

    /// Returns how many bytes have passed.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// Returns the reader and the digest of what was read from it; what the reader still buffers is
    /// not counted.
    pub fn finish(self) -> (R, Digest) {
        (self.inner, self.hasher.finish())
    }
}

impl<R: Read> Read for HashRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// A writer that hashes what was accepted by the writer below.
pub struct HashWrite<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> HashWrite<W> {
    /// Hashes from the first byte on.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
        }
    }

    /// Returns how many bytes have passed.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// Returns the writer and the digest of what was written; nothing is flushed.
    pub fn finish(self) -> (W, Digest) {
        (self.inner, self.hasher.finish())
    }
}

impl<W: Write> Write for HashWrite<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A reader that ends without an error only if what it delivered has the promised length and
/// digest.
///
/// The last `read`, the one that would return 0, fails instead with an `io::Error` around
/// [`Error::SizeMismatch`] or [`Error::DigestMismatch`]. A stream that is longer than promised
/// fails at the first extra byte. So a caller that reads to the end has verified bytes; one that
/// stops early has not.
pub struct VerifyRead<R> {
    inner: R,
    hasher: Option<Hasher>,
    what: String,
    expected: Digest,
    size_bytes: Option<u64>,
}

impl<R: Read> VerifyRead<R> {
    /// Checks `inner` against `expected` and, if given, `size_bytes`; `what` names the bytes in
    /// errors.
    pub fn new(
        inner: R,
        what: impl Into<String>,
        expected: Digest,
        size_bytes: Option<u64>,
    ) -> Self {
        Self {
            inner,
            hasher: Some(Hasher::default()),
            what: what.into(),
            expected,
            size_bytes,
        }
    }

    fn wrong_size(&self, expected: u64, found: u64) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            Error::SizeMismatch {
                what: self.what.clone(),
                expected,
                found,
            },
        )
    }
}

impl<R: Read> Read for VerifyRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buf)?;
        let Some(hasher) = &mut self.hasher else {
            return Ok(n);
        };
        hasher.update(&buf[..n]);
        let found_bytes = hasher.bytes();
        if let Some(expected) = self.size_bytes
            && (found_bytes > expected || (n == 0 && found_bytes < expected))
        {
            return Err(self.wrong_size(expected, found_bytes));
        }
        if n == 0
            && let Some(hasher) = self.hasher.take()
        {
            let found = hasher.finish();
            if found != self.expected {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    Error::DigestMismatch {
                        what: self.what.clone(),
                        expected: self.expected,
                        found,
                    },
                ));
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_and_writer_hash_the_same_bytes() {
        let mut reader = HashRead::new(&b"some bytes"[..]);
        let mut writer = HashWrite::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        let (_, read) = reader.finish();
        let (bytes, written) = writer.finish();
        assert_eq!(bytes, b"some bytes");
        assert_eq!(read, Digest::of(b"some bytes"));
        assert_eq!(written, read);
    }

    #[test]
    fn verified_reader_refuses_other_bytes_more_bytes_and_fewer() {
        let digest = Digest::of(b"right");
        let read = |bytes: &'static [u8], size| {
            let mut out = Vec::new();
            VerifyRead::new(bytes, "blob", digest, size)
                .read_to_end(&mut out)
                .map(|_| out)
        };
        assert_eq!(read(b"right", Some(5)).unwrap(), b"right");
        assert_eq!(read(b"right", None).unwrap(), b"right");
        for (bytes, size) in [
            (&b"wrong"[..], Some(5)),
            (b"wrong", None),
            (b"right and more", Some(5)),
            (b"rig", Some(5)),
        ] {
            assert!(read(bytes, size).is_err(), "{bytes:?}");
        }
    }
}

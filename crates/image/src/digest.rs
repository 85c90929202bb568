//! Content digests: a parsed type, and readers and writers that hash on the way.
//!
//! A digest that came from outside is only ever used after it was parsed here, so it can serve as a file name: 64 lower-case hex
//! digits, nothing else. It knows nothing of blobs, layers or stores. The text form is that of the OCI image specification
//! (descriptor.md, "Digests"); sha256 is the one algorithm understood.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::error::Error;

/// A sha256 digest. `Display` gives `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Wraps 32 bytes that are a sha256.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 lower-case hex digits without the algorithm, as used for file names.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Returns the ChainID of a layer with this digest as its diff ID, on the chain `parent` (`None` for a base layer).
    ///
    /// `sha256(parent + " " + diff_id)` over the text forms; a base layer's ChainID is its diff ID (image specification, config.md).
    pub fn chained_on(&self, parent: Option<&Digest>) -> Digest {
        match parent {
            None => *self,
            Some(parent) => Digest::of(format!("{parent} {self}").as_bytes()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadDigest {
            text: text.chars().take(128).collect(),
        };
        let hex_digits = text.strip_prefix("sha256:").ok_or_else(bad)?;
        // Upper case is not the same text, and a second spelling would be a second file name.
        if hex_digits.len() != 64 || hex_digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex_digits, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A digest in the making.
#[derive(Clone, Default)]
pub struct Hasher {
    sha256: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Returns how many bytes were taken so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the digest of all bytes taken.
    pub fn finish(self) -> Digest {
        Digest(self.sha256.finalize().into())
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

    /// Returns the reader and the digest of what was read from it; what it still holds is not counted.
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

/// A reader that ends well only if what it delivered has the promised length and digest.
///
/// The last `read`, the one that would return 0, fails instead with an `io::Error` around [`Error::SizeMismatch`] or
/// [`Error::DigestMismatch`]. A stream that is longer than promised fails at the first byte too many. So whoever reads to the end has
/// checked bytes; whoever stops early has not.
pub struct VerifyRead<R> {
    inner: R,
    hasher: Option<Hasher>,
    what: String,
    expected: Digest,
    size_bytes: Option<u64>,
}

impl<R: Read> VerifyRead<R> {
    /// Checks `inner` against `expected` and, if given, `size_bytes`; `what` names the bytes in errors.
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

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips_and_is_strict() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.to_string(), EMPTY);
        for bad in [
            "",
            "sha256:",
            "sha256:../../../../etc/passwd",
            "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550",
            "sha256:g3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_id_follows_the_image_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(a.chained_on(None), a);
        assert_eq!(
            b.chained_on(Some(&a)),
            Digest::of(format!("{a} {b}").as_bytes())
        );
    }

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

//! Reads numbers and names from a slice, in the machine's byte order, without ever going past its
//! end.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// A request that violates the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends before it should.
    #[error("the request is too short")]
    Short,
    /// Its stated length differs from its actual length.
    #[error("the request states {said} bytes and has {has}")]
    Length {
        /// The length in its header.
        said: usize,
        /// The bytes that arrived.
        has: usize,
    },
    /// A name without a NUL after it, or an empty one.
    #[error("the request has an invalid name")]
    Name,
}

/// The rest of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// Takes the first `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_ne_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_ne_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_ne_bytes(self.array()?))
    }

    pub fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.take(count).map(drop)
    }

    /// Takes a string that ends in NUL. It may be empty.
    pub fn text(&mut self) -> Result<&'a OsStr, Malformed> {
        let end = self.0.iter().position(|&b| b == 0).ok_or(Malformed::Name)?;
        let text = self.take(end)?;
        self.skip(1)?;
        Ok(OsStr::from_bytes(text))
    }

    /// Takes a name in a directory: not empty, without `/`.
    pub fn name(&mut self) -> Result<&'a OsStr, Malformed> {
        let name = self.text()?;
        match name.is_empty() || name.as_bytes().contains(&b'/') {
            true => Err(Malformed::Name),
            false => Ok(name),
        }
    }
}

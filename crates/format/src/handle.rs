//! File handles as overlayfs stores them: in `origin` and `upper` xattrs, and as names in the index
//! directory.
//!
//! The handle itself is opaque to us. This module decodes what surrounds it, to recognise a copied
//! or relocated store and to read the index. Layout (`struct ovl_fb`): version 0, magic 0xfb, total
//! length, flags, handle type, 16 bytes of file system UUID, then the handle's bytes in the byte
//! order that the flags say.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::MarkError;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const HEADER_BYTES: usize = 21;

/// The flags of a [`Handle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HandleFlags {
    /// The writer's byte order was big-endian.
    pub big_endian: bool,
    /// The handle's bytes mean the same in any byte order.
    pub any_endian: bool,
    /// The handle is of an object in the upper layer.
    pub path_upper: bool,
}

/// A file handle with the file system it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handle {
    /// How it was written.
    pub flags: HandleFlags,
    /// The file system's own handle type.
    pub kind: u8,
    /// The file system's UUID; all zero if `uuid=null` or `off` was in force.
    pub uuid: [u8; 16],
    /// The handle, at most 234 bytes.
    pub bytes: Vec<u8>,
}

impl Handle {
    /// Recognises the value of an `origin` or `upper` xattr.
    ///
    /// `Ok(None)` for the empty value, which says "copied up, but no handle could be had". Errors
    /// if lengths, magic, version or flags are not what the kernel writes.
    pub fn parse(value: &[u8]) -> Result<Option<Handle>, MarkError> {
        if value.is_empty() {
            return Ok(None);
        }
        if value.len() < HEADER_BYTES {
            return Err(malformed(format!(
                "{} bytes, the header alone has {HEADER_BYTES}",
                value.len()
            )));
        }
        if value[0] != VERSION || value[1] != MAGIC {
            return Err(malformed(format!(
                "version {} and magic {:#04x}, expected 0 and 0xfb",
                value[0], value[1]
            )));
        }
        if usize::from(value[2]) != value.len() {
            return Err(malformed(format!(
                "says {} bytes, has {}",
                value[2],
                value.len()
            )));
        }
        if value[3] & !0b111 != 0 {
            return Err(malformed(format!("unknown flags {:#04x}", value[3])));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&value[5..HEADER_BYTES]);
        Ok(Some(Handle {
            flags: HandleFlags {
                big_endian: value[3] & 1 != 0,
                any_endian: value[3] & 2 != 0,
                path_upper: value[3] & 4 != 0,
            },
            kind: value[4],
            uuid,
            bytes: value[HEADER_BYTES..].to_vec(),
        }))
    }

    /// Returns the xattr's value. Errors if the handle is too long for the one-byte length.
    pub fn encode(&self) -> Result<Vec<u8>, MarkError> {
        let length = u8::try_from(HEADER_BYTES + self.bytes.len()).map_err(|_| {
            malformed(format!(
                "a handle of {} bytes does not fit",
                self.bytes.len()
            ))
        })?;
        let HandleFlags {
            big_endian,
            any_endian,
            path_upper,
        } = self.flags;
        let flags = u8::from(big_endian) | u8::from(any_endian) << 1 | u8::from(path_upper) << 2;
        let mut value = vec![VERSION, MAGIC, length, flags, self.kind];
        value.extend_from_slice(&self.uuid);
        value.extend_from_slice(&self.bytes);
        Ok(value)
    }

    /// Returns the name of the index entry for this handle: its encoding in lower-case hex.
    pub fn index_name(&self) -> Result<OsString, MarkError> {
        let mut name = String::new();
        for byte in self.encode()? {
            name.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            name.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        Ok(name.into())
    }

    /// Recognises the name of an index entry. Errors if it is not the hex form of a handle.
    pub fn parse_index_name(name: &OsStr) -> Result<Handle, MarkError> {
        let digits = name.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return Err(malformed("an index name with an odd number of digits"));
        }
        let mut value = Vec::with_capacity(digits.len() / 2);
        for pair in digits.chunks_exact(2) {
            let (Some(high), Some(low)) = (hex_digit(pair[0]), hex_digit(pair[1])) else {
                return Err(malformed("an index name that is not lower-case hex"));
            };
            value.push(high << 4 | low);
        }
        Handle::parse(&value)?.ok_or_else(|| malformed("an empty index name"))
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn malformed(reason: impl Into<String>) -> MarkError {
    MarkError::new("file handle (origin or upper)", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Handle {
        Handle {
            flags: HandleFlags {
                path_upper: true,
                ..HandleFlags::default()
            },
            kind: 1,
            uuid: *b"0123456789abcdef",
            bytes: vec![1, 2, 3, 4, 5, 6, 7, 8],
        }
    }

    #[test]
    fn a_handle_is_its_kernel_layout() {
        let value = sample().encode().unwrap();
        assert_eq!(value[..5], [0, 0xfb, 29, 4, 1]);
        assert_eq!(Handle::parse(&value), Ok(Some(sample())));
        let name = sample().index_name().unwrap();
        assert!(name.to_str().unwrap().starts_with("00fb1d0401"));
        assert_eq!(Handle::parse_index_name(&name), Ok(sample()));
    }

    #[test]
    fn damaged_handles_are_refused() {
        let good = sample().encode().unwrap();
        assert_eq!(Handle::parse(b""), Ok(None));
        assert!(Handle::parse(&good[..20]).is_err());
        assert!(Handle::parse(&good[..28]).is_err());
        for (at, with) in [(0, 1), (1, 0xfa), (2, 28), (3, 8)] {
            let mut bad = good.clone();
            bad[at] = with;
            assert!(Handle::parse(&bad).is_err(), "byte {at}");
        }
        assert!(
            Handle {
                bytes: vec![0; 235],
                ..sample()
            }
            .encode()
            .is_err()
        );
        assert!(Handle::parse_index_name(OsStr::new("")).is_err());
        assert!(Handle::parse_index_name(OsStr::new("00F")).is_err());
        assert!(Handle::parse_index_name(OsStr::new("00FB")).is_err());
    }
}

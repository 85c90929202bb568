//! The small marks: opaque, metacopy, nlink, protattr, impure, uuid, number. Each is a value type
//! with `parse` and `encode`.

use crate::MarkError;

/// The value of a directory's `opaque` xattr. A directory without it is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// `y`: nothing of the directories below shows.
    Opaque,
    /// `x`: not opaque; it holds whiteouts that are regular files with a `whiteout` xattr (kernel
    /// 6.7 and later).
    XattrWhiteouts,
}

impl Opaque {
    /// Recognises the value. Errors on anything but `y` and `x`.
    pub fn parse(value: &[u8]) -> Result<Opaque, MarkError> {
        match value {
            b"y" => Ok(Opaque::Opaque),
            b"x" => Ok(Opaque::XattrWhiteouts),
            _ => Err(MarkError::new(
                "opaque",
                format!("\"{}\", expected y or x", value.escape_ascii()),
            )),
        }
    }

    /// Returns the xattr's value.
    pub const fn encode(self) -> &'static [u8] {
        match self {
            Opaque::Opaque => b"y",
            Opaque::XattrWhiteouts => b"x",
        }
    }
}

/// The fs-verity digest that the data of a metadata-only file must have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verity {
    /// fs-verity with SHA-256.
    Sha256([u8; 32]),
    /// fs-verity with SHA-512.
    Sha512([u8; 64]),
}

/// The value of a regular file's `metacopy` xattr.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Metacopy {
    /// This file has owner, mode, times, xattrs and size; its data is in a layer below.
    DataBelow(Option<Verity>),
    /// A value of one byte, deliberately too short for the kernel, which answers EIO for the file
    /// in every mount: the file's data is incomplete, and only the engine that wrote it may read
    /// it.
    Unsettled,
}

/// Version, length, flags, digest algorithm; then the digest.
const METACOPY_HEADER_BYTES: usize = 4;

impl Metacopy {
    /// Recognises the value.
    ///
    /// Errors on two or three bytes, on an unknown version, flag or digest algorithm, and where
    /// lengths disagree.
    pub fn parse(value: &[u8]) -> Result<Metacopy, MarkError> {
        let malformed = |reason: String| Err(MarkError::new("metacopy", reason));
        match value.len() {
            0 => return Ok(Metacopy::DataBelow(None)),
            1 => return Ok(Metacopy::Unsettled),
            2 | 3 => return malformed(format!("{} bytes, but the header has 4", value.len())),
            _ => {}
        }
        let (header, digest) = value.split_at(METACOPY_HEADER_BYTES);
        if header[0] != 0 {
            return malformed(format!("version {}, expected 0", header[0]));
        }
        if usize::from(header[1]) != value.len() {
            return malformed(format!("says {} bytes, has {}", header[1], value.len()));
        }
        if header[2] != 0 {
            return malformed(format!("unknown flags {:#04x}", header[2]));
        }
        let verity = match (header[3], digest.len()) {
            (0, 0) => None,
            (1, _) => digest.try_into().ok().map(Verity::Sha256),
            (2, _) => digest.try_into().ok().map(Verity::Sha512),
            (_, _) => None,
        };
        match (header[3], &verity) {
            (0, _) if digest.is_empty() => Ok(Metacopy::DataBelow(None)),
            (1 | 2, Some(_)) => Ok(Metacopy::DataBelow(verity)),
            (algorithm, _) => malformed(format!(
                "digest algorithm {algorithm} with {} bytes",
                digest.len()
            )),
        }
    }

    /// Returns the xattr's value.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Metacopy::DataBelow(None) => Vec::new(),
            Metacopy::DataBelow(Some(Verity::Sha256(digest))) => {
                [&[0, 36, 0, 1], digest.as_slice()].concat()
            }
            Metacopy::DataBelow(Some(Verity::Sha512(digest))) => {
                [&[0, 68, 0, 2], digest.as_slice()].concat()
            }
            Metacopy::Unsettled => vec![0],
        }
    }
}

/// Whose link count an [`Nlink`] is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NlinkBase {
    /// The lower inode's.
    Lower,
    /// The upper inode's.
    Upper,
}

/// The link count of an indexed hard link, as a difference to that of one of its real inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nlink {
    /// Counted from here.
    pub base: NlinkBase,
    /// Links shown minus links of the base.
    pub delta: i32,
}

impl Nlink {
    /// Recognises a value such as `U-1` or `L+0`. Errors on any other shape and on numbers beyond
    /// 32 bits.
    pub fn parse(value: &[u8]) -> Result<Nlink, MarkError> {
        let malformed = || {
            MarkError::new(
                "nlink",
                format!("\"{}\", expected e.g. U+1 or L-2", value.escape_ascii()),
            )
        };
        let base = match value.first() {
            Some(b'L') => NlinkBase::Lower,
            Some(b'U') => NlinkBase::Upper,
            _ => return Err(malformed()),
        };
        let number = value.get(1..).unwrap_or_default();
        let [b'+' | b'-', digits @ ..] = number else {
            return Err(malformed());
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(malformed());
        }
        let delta = std::str::from_utf8(number)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(malformed)?;
        Ok(Nlink { base, delta })
    }

    /// Returns the xattr's value.
    pub fn encode(self) -> Vec<u8> {
        let base = match self.base {
            NlinkBase::Lower => 'L',
            NlinkBase::Upper => 'U',
        };
        format!("{base}{:+}", self.delta).into_bytes()
    }
}

/// Inode flags that the union shows but the real upper inode can't carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Protattr {
    /// `chattr +a`.
    pub append_only: bool,
    /// `chattr +i`.
    pub immutable: bool,
}

impl Protattr {
    /// Recognises the value. Errors on letters other than `a` and `i`, on repeated ones, and on the
    /// empty value.
    pub fn parse(value: &[u8]) -> Result<Protattr, MarkError> {
        let malformed = || {
            MarkError::new(
                "protattr",
                format!("\"{}\", expected a, i or both", value.escape_ascii()),
            )
        };
        let mut found = Protattr::default();
        if value.is_empty() {
            return Err(malformed());
        }
        for letter in value {
            let flag = match letter {
                b'a' => &mut found.append_only,
                b'i' => &mut found.immutable,
                _ => return Err(malformed()),
            };
            if std::mem::replace(flag, true) {
                return Err(malformed());
            }
        }
        Ok(found)
    }

    /// Returns the xattr's value, or `None` if no flag is set: then there is no mark.
    pub fn encode(self) -> Option<&'static [u8]> {
        match (self.append_only, self.immutable) {
            (false, false) => None,
            (true, false) => Some(b"a"),
            (false, true) => Some(b"i"),
            (true, true) => Some(b"ai"),
        }
    }
}

/// Checks the value of an `impure` xattr. Errors on anything but `y`.
pub fn impure(value: &[u8]) -> Result<(), MarkError> {
    match value {
        b"y" => Ok(()),
        _ => Err(MarkError::new(
            "impure",
            format!("\"{}\", expected y", value.escape_ascii()),
        )),
    }
}

/// Recognises the value of a `uuid` xattr. Errors unless it has 16 bytes.
pub fn uuid(value: &[u8]) -> Result<[u8; 16], MarkError> {
    value
        .try_into()
        .map_err(|_| MarkError::new("uuid", format!("{} bytes, expected 16", value.len())))
}

/// The inode number to show for a copy if the origin doesn't give one.
///
/// If the file system is not among the layers', the number means nothing: the upper was copied
/// elsewhere, where another file may have the number. Changing the encoding changes the inode
/// numbers of copied-up files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    /// The number.
    pub ino: u64,
    /// The UUID of the file system that has it; zeros if it has none.
    pub uuid: [u8; 16],
}

impl Number {
    /// Recognises the value: the number, the least significant byte first, then the UUID. Errors
    /// unless it has 24 bytes.
    pub fn parse(value: &[u8]) -> Result<Number, MarkError> {
        let parts = value.split_first_chunk::<8>();
        let parts = parts.and_then(|(ino, uuid)| Some((ino, uuid.try_into().ok()?)));
        let (ino, uuid) = parts.ok_or_else(|| {
            MarkError::new("vellum.ino", format!("{} bytes, expected 24", value.len()))
        })?;
        Ok(Number {
            ino: u64::from_le_bytes(*ino),
            uuid,
        })
    }

    /// Returns the xattr's value.
    pub fn encode(self) -> [u8; 24] {
        let mut value = [0; 24];
        value[..8].copy_from_slice(&self.ino.to_le_bytes());
        value[8..].copy_from_slice(&self.uuid);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_24_bytes() {
        let number = Number {
            ino: 0x0102,
            uuid: [7; 16],
        };
        let value = number.encode();
        assert_eq!(
            (value[..3].to_vec(), value[8..].to_vec()),
            (vec![2, 1, 0], vec![7; 16])
        );
        assert_eq!(Number::parse(&value), Ok(number));
        for bad in [&value[..8], &value[..23], &[], &[0; 25]] {
            assert!(Number::parse(bad).is_err(), "{} bytes", bad.len());
        }
    }

    #[test]
    fn opaque_has_two_values() {
        assert_eq!(Opaque::parse(b"y"), Ok(Opaque::Opaque));
        assert_eq!(Opaque::parse(b"x"), Ok(Opaque::XattrWhiteouts));
        for bad in [b"".as_slice(), b"n", b"yy", b"\xff"] {
            assert!(Opaque::parse(bad).is_err());
        }
    }

    #[test]
    fn metacopy_is_told_from_an_unsettled_file() {
        let below = Ok(Metacopy::DataBelow(None));
        assert_eq!(Metacopy::parse(b""), below);
        assert_eq!(Metacopy::parse(&[0, 4, 0, 0]), below);
        assert_eq!(Metacopy::parse(&[0]), Ok(Metacopy::Unsettled));
        assert_eq!(Metacopy::parse(b"y"), Ok(Metacopy::Unsettled));
        let bad: [&[u8]; 7] = [
            &[0, 2],
            &[0, 3, 0],
            &[1, 4, 0, 0],
            &[0, 5, 0, 0],
            &[0, 4, 1, 0],
            &[0, 5, 0, 1, 9],
            &[0, 36, 0, 0],
        ];
        for bad in bad {
            assert!(Metacopy::parse(bad).is_err(), "{bad:?}");
        }
        let wrong_algorithm = [&[0, 36, 0, 3], [7; 32].as_slice()].concat();
        assert!(Metacopy::parse(&wrong_algorithm).is_err());
    }

    #[test]
    fn metacopies_survive_a_roundtrip() {
        for digest in [
            None,
            Some(Verity::Sha256([3; 32])),
            Some(Verity::Sha512([4; 64])),
        ] {
            let mark = Metacopy::DataBelow(digest);
            assert_eq!(Metacopy::parse(&mark.encode()), Ok(mark));
        }
        assert_eq!(
            Metacopy::parse(&Metacopy::Unsettled.encode()),
            Ok(Metacopy::Unsettled)
        );
        assert_eq!(
            Metacopy::Unsettled.encode().len(),
            1,
            "the kernel's EIO depends on it"
        );
    }

    #[test]
    fn nlink_is_a_signed_difference() {
        assert_eq!(
            Nlink::parse(b"U-1"),
            Ok(Nlink {
                base: NlinkBase::Upper,
                delta: -1
            })
        );
        assert_eq!(
            Nlink {
                base: NlinkBase::Lower,
                delta: 0
            }
            .encode(),
            b"L+0"
        );
        for bad in [
            b"".as_slice(),
            b"U",
            b"U+",
            b"U1",
            b"X+1",
            b"L++1",
            b"L+1 ",
            b"L+99999999999",
        ] {
            assert!(Nlink::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn protattr_has_two_letters() {
        assert_eq!(
            Protattr::parse(b"ia").unwrap().encode(),
            Some(b"ai".as_slice())
        );
        assert_eq!(Protattr::default().encode(), None);
        for bad in [b"".as_slice(), b"aa", b"x"] {
            assert!(Protattr::parse(bad).is_err());
        }
    }

    #[test]
    fn impure_and_uuid_are_checked() {
        assert!(impure(b"y").is_ok() && impure(b"").is_err());
        assert!(uuid(&[1; 16]).is_ok() && uuid(&[1; 15]).is_err());
    }
}

//! Parses one header block: where each field is in each dialect, and what the checksum must be.
//!
//! Pure. The dialects are V7, ustar (which PAX uses), GNU and Schily's star, distinguished by their
//! magic as in Go's `archive/tar`: a block with none of the later three is V7, which has neither a
//! prefix nor device numbers. A [`Header`] exists only for a block whose checksum is right and
//! whose numbers are numbers, including those without a meaning for its type. ustar(5), "Basic Tar
//! Format" in GNU tar's manual.

use std::ops::Range;

use super::number;

/// The unit of a tar.
pub const BLOCK: usize = 512;

/// A block of a tar.
pub(crate) type Block = [u8; BLOCK];

/// Where the fields are, those of all dialects first.
pub(crate) mod field {
    use super::Range;

    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const UID: Range<usize> = 108..116;
    pub const GID: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const MTIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const TYPEFLAG: usize = 156;
    pub const LINK: Range<usize> = 157..257;
    pub const MAGIC: Range<usize> = 257..263;
    pub const VERSION: Range<usize> = 263..265;
    pub const DEV_MAJOR: Range<usize> = 329..337;
    pub const DEV_MINOR: Range<usize> = 337..345;
    pub const PREFIX: Range<usize> = 345..500;
    pub const STAR_PREFIX: Range<usize> = 345..476;
    pub const STAR_ATIME: Range<usize> = 476..488;
    pub const STAR_CTIME: Range<usize> = 488..500;
    pub const STAR_TRAILER: Range<usize> = 508..512;
    pub const GNU_ATIME: Range<usize> = 345..357;
    pub const GNU_CTIME: Range<usize> = 357..369;
    /// Four pairs, and a byte that says whether a block with more follows.
    pub const GNU_SPARSE: Range<usize> = 386..483;
    pub const GNU_REAL_SIZE: Range<usize> = 483..495;
}

/// A block that holds a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub dialect: Dialect,
    pub typeflag: u8,
    /// With the prefix, if there is one.
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub size: i64,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub mtime: i64,
    pub dev_major: i64,
    pub dev_minor: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// Parses `block`; the error says what is wrong with it.
    pub fn read(block: &Block) -> Result<Self, String> {
        if !is_header(block) {
            return Err("its checksum is wrong".into());
        }
        let number = |at: Range<usize>, what: &str| {
            number::field(&block[at]).ok_or_else(|| format!("its {what} is not a number"))
        };
        let dialect = match (
            &block[field::MAGIC],
            &block[field::VERSION],
            &block[field::STAR_TRAILER],
        ) {
            (b"ustar\0", _, b"tar\0") => Dialect::Star,
            (b"ustar\0", ..) => Dialect::Ustar,
            (b"ustar ", b" \0", _) => Dialect::Gnu,
            _ => Dialect::V7,
        };
        let (dev_major, dev_minor) = match dialect {
            Dialect::V7 => (0, 0),
            _ => (
                number(field::DEV_MAJOR, "device number")?,
                number(field::DEV_MINOR, "device number")?,
            ),
        };
        if dialect == Dialect::Star {
            number(field::STAR_ATIME, "access time")?;
            number(field::STAR_CTIME, "change time")?;
        }
        let prefix = match dialect {
            Dialect::V7 => &[],
            Dialect::Ustar => c_string(&block[field::PREFIX]),
            Dialect::Star => c_string(&block[field::STAR_PREFIX]),
            Dialect::Gnu => old_go_prefix(block),
        };
        let name = c_string(&block[field::NAME]);
        Ok(Self {
            dialect,
            typeflag: block[field::TYPEFLAG],
            name: match prefix {
                [] => name.to_vec(),
                prefix => [prefix, b"/", name].concat(),
            },
            link: c_string(&block[field::LINK]).to_vec(),
            size: number(field::SIZE, "size")?,
            mode: number(field::MODE, "mode")?,
            uid: number(field::UID, "uid")?,
            gid: number(field::GID, "gid")?,
            mtime: number(field::MTIME, "mtime")?,
            dev_major,
            dev_minor,
        })
    }
}

/// GNU tar has two times where others have a prefix. Go before 1.8 wrote a prefix nevertheless, and
/// images from then still exist; their text does not parse as times.
fn old_go_prefix(block: &Block) -> &[u8] {
    let is_time = |field: &[u8]| field[0] == 0 || number::field(field).is_some();
    if is_time(&block[field::GNU_ATIME]) && is_time(&block[field::GNU_CTIME]) {
        return &[];
    }
    match c_string(&block[field::PREFIX]) {
        prefix if prefix.is_ascii() => prefix,
        _ => &[],
    }
}

/// Returns the bytes up to the first NUL.
pub(super) fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// Returns true if `bytes` start with a block whose checksum is a tar header's.
pub(crate) fn is_header(bytes: &[u8]) -> bool {
    let Some(block) = bytes.first_chunk::<BLOCK>() else {
        return false;
    };
    number::octal(&block[field::CHECKSUM]).is_some_and(|stored| {
        // Some old writers summed signed bytes.
        stored == sum(block, i64::from) || stored == sum(block, |byte| i64::from(byte as i8))
    })
}

/// Sums the bytes of a block. The checksum's own field counts as spaces.
fn sum(block: &Block, value: fn(u8) -> i64) -> i64 {
    let (before, after) = (&block[..field::CHECKSUM.start], &block[field::TYPEFLAG..]);
    let rest = before.iter().chain(after);
    rest.map(|&byte| value(byte)).sum::<i64>() + 8 * i64::from(b' ')
}

/// Sets the checksum of a header that is otherwise complete.
pub(crate) fn seal(block: &mut Block) {
    let text = format!("{:07o}\0", sum(block, i64::from));
    block[field::CHECKSUM].copy_from_slice(text.as_bytes());
}

/// Returns an empty ustar header.
pub(crate) fn new_ustar() -> Block {
    let mut block = [0; BLOCK];
    block[field::MAGIC].copy_from_slice(b"ustar\0");
    block[field::VERSION].copy_from_slice(b"00");
    block
}

/// Returns how many bytes follow `size` bytes up to the next block boundary.
pub(crate) fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

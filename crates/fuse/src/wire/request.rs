//! Requests: what the kernel writes, parsed in place.

use std::ffi::OsStr;

use super::read::{Bytes, Malformed};

/// Negotiated settings that change the layout of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dialect {
    /// SETXATTR has its own flags.
    pub setxattr_ext: bool,
}

/// What every request begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole request.
    pub length_bytes: u32,
    /// The operation, as a number.
    pub opcode: u32,
    /// Identifies the request; the reply repeats it.
    pub unique: u64,
    /// The node it is about.
    pub node: u64,
    /// The caller's file system user id.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
    /// The caller's process id, or 0 if it has none in this pid namespace.
    pub pid: u32,
    /// Length of extensions at the end, in units of 8 bytes.
    pub extensions_8: u16,
}

impl Header {
    /// Length on the wire.
    pub const BYTES: usize = 40;

    fn parse(bytes: &mut Bytes<'_>) -> Result<Header, Malformed> {
        let header = Header {
            length_bytes: bytes.u32()?,
            opcode: bytes.u32()?,
            unique: bytes.u64()?,
            node: bytes.u64()?,
            uid: bytes.u32()?,
            gid: bytes.u32()?,
            pid: bytes.u32()?,
            extensions_8: bytes.u16()?,
        };
        bytes.skip(2)?;
        Ok(header)
    }
}

macro_rules! opcodes {
    ($($number:literal $name:ident,)*) => {
        /// Every operation of the protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        #[allow(missing_docs)]
        pub enum Opcode { $($name = $number,)* }

        impl Opcode {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Opcode] = &[$(Opcode::$name,)*];

            /// Returns the operation with this number.
            pub fn from_number(number: u32) -> Option<Opcode> {
                match number { $($number => Some(Opcode::$name),)* _ => None }
            }

            /// Returns the name for display.
            pub fn name(self) -> &'static str {
                match self { $(Opcode::$name => stringify!($name),)* }
            }
        }
    };
}

opcodes! {
    1 Lookup, 2 Forget, 3 GetAttr, 4 SetAttr, 5 ReadLink, 6 Symlink, 8 MkNod, 9 MkDir, 10 Unlink, 11 RmDir, 12 Rename, 13 Link,
    14 Open, 15 Read, 16 Write, 17 StatFs, 18 Release, 20 FSync, 21 SetXattr, 22 GetXattr, 23 ListXattr, 24 RemoveXattr,
    25 Flush, 26 Init, 27 OpenDir, 28 ReadDir, 29 ReleaseDir, 30 FSyncDir, 31 GetLock, 32 SetLock, 33 SetLockWait, 34 Access,
    35 Create, 36 Interrupt, 37 BlockMap, 38 Destroy, 39 Ioctl, 40 Poll, 41 NotifyReply, 42 BatchForget, 43 FAllocate,
    44 ReadDirPlus, 45 Rename2, 46 LSeek, 47 CopyFileRange, 48 SetupMapping, 49 RemoveMapping, 50 SyncFs, 51 TmpFile,
    52 Statx, 53 CopyFileRange64,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The header: the caller and the node.
    pub header: Header,
    /// The operation and its arguments.
    pub op: Op<'a>,
}

/// An operation with its arguments. Names are single components; the node is the header's unless
/// stated otherwise.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Op<'a> {
    Lookup {
        name: &'a OsStr,
    },
    Forget {
        count: u64,
    },
    BatchForget(Forgets<'a>),
    GetAttr,
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a OsStr,
        target: &'a OsStr,
    },
    MkNod {
        name: &'a OsStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    MkDir {
        name: &'a OsStr,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a OsStr,
    },
    RmDir {
        name: &'a OsStr,
    },
    /// RENAME (flags are 0) and RENAME2.
    Rename {
        name: &'a OsStr,
        new_parent: u64,
        new_name: &'a OsStr,
        flags: u32,
    },
    /// The header's node is the directory of the new name.
    Link {
        node: u64,
        name: &'a OsStr,
    },
    Open {
        flags: u32,
    },
    OpenDir {
        flags: u32,
    },
    Create {
        name: &'a OsStr,
        flags: u32,
        mode: u32,
        umask: u32,
    },
    /// The kernel sends a name without meaning.
    TmpFile {
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Read(Range),
    ReadDir(Range),
    ReadDirPlus(Range),
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
        flags: u32,
        /// The descriptor was opened with O_APPEND: `offset` is the end as the kernel knows it.
        append: bool,
    },
    StatFs,
    Release {
        handle: u64,
    },
    ReleaseDir {
        handle: u64,
    },
    Flush,
    FSync {
        data_only: bool,
    },
    FSyncDir {
        data_only: bool,
    },
    SyncFs,
    SetXattr {
        name: &'a OsStr,
        value: &'a [u8],
        flags: u32,
        acl_kills_setgid: bool,
    },
    GetXattr {
        name: &'a OsStr,
        room: u32,
    },
    ListXattr {
        room: u32,
    },
    RemoveXattr {
        name: &'a OsStr,
    },
    Access,
    Ioctl(Ioctl<'a>),
    FAllocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    LSeek {
        offset: u64,
        whence: u32,
    },
    /// COPY_FILE_RANGE, and its successor with a 64-bit count in its reply.
    CopyRange(CopyRange),
    Statx {
        mask: u32,
    },
    Init(Init),
    Interrupt {
        unique: u64,
    },
    Destroy,
    /// Something that can only be answered ENOSYS.
    Other,
}

/// A part of a file or listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// What OPEN answered.
    pub handle: u64,
    /// Where to begin: a byte, or the cookie after the last name.
    pub offset: u64,
    /// The most bytes of an answer.
    pub size_bytes: u32,
    /// Flags of the open file.
    pub flags: u32,
}

/// SETATTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SetAttr {
    /// Which of the others are valid.
    pub valid: u32,
    pub size_bytes: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// COPY_FILE_RANGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CopyRange {
    pub from_offset: u64,
    pub to: u64,
    pub to_offset: u64,
    pub length_bytes: u64,
    pub flags: u64,
}

/// IOCTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ioctl<'a> {
    pub flags: u32,
    pub command: u32,
    pub out_size_bytes: u32,
    pub data: &'a [u8],
}

/// INIT: what the kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Init {
    pub major: u32,
    pub minor: u32,
    pub max_readahead_bytes: u32,
    /// Both words of flags.
    pub flags: u64,
}

/// The nodes of a BATCH_FORGET and how often each is forgotten.
#[derive(Debug, Clone, Copy)]
pub struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let mut bytes = Bytes(self.0);
        let one = (bytes.u64().ok()?, bytes.u64().ok()?);
        self.0 = bytes.0;
        Some(one)
    }
}

impl<'a> Request<'a> {
    /// Reads only the part every request begins with: enough to answer one that can't be parsed.
    pub fn header(bytes: &[u8]) -> Result<Header, Malformed> {
        Header::parse(&mut Bytes(bytes))
    }

    /// Parses one request, as one read of the device returned it.
    pub fn parse(bytes: &'a [u8], dialect: Dialect) -> Result<Request<'a>, Malformed> {
        let mut rest = Bytes(bytes);
        let header = Header::parse(&mut rest)?;
        let said = header.length_bytes as usize;
        if said != bytes.len() {
            return Err(Malformed::Length {
                said,
                has: bytes.len(),
            });
        }
        let extensions_bytes = usize::from(header.extensions_8) * 8;
        let body = rest
            .0
            .len()
            .checked_sub(extensions_bytes)
            .ok_or(Malformed::Short)?;
        rest.0 = &rest.0[..body];
        let op = match Opcode::from_number(header.opcode) {
            Some(opcode) => parse_op(opcode, rest, dialect)?,
            None => Op::Other,
        };
        Ok(Request { header, op })
    }
}

fn parse_op(opcode: Opcode, mut b: Bytes<'_>, dialect: Dialect) -> Result<Op<'_>, Malformed> {
    Ok(match opcode {
        Opcode::Lookup => Op::Lookup { name: b.name()? },
        Opcode::Forget => Op::Forget { count: b.u64()? },
        Opcode::BatchForget => {
            let count = b.u32()? as usize;
            b.skip(4)?;
            let bytes = count.checked_mul(16).ok_or(Malformed::Short)?;
            Op::BatchForget(Forgets(b.take(bytes)?))
        }
        Opcode::GetAttr => Op::GetAttr,
        Opcode::SetAttr => Op::SetAttr(set_attr(&mut b)?),
        Opcode::ReadLink => Op::ReadLink,
        Opcode::Symlink => Op::Symlink {
            name: b.name()?,
            target: b.text()?,
        },
        Opcode::MkNod => {
            let (mode, rdev, umask) = (b.u32()?, b.u32()?, b.u32()?);
            b.skip(4)?;
            Op::MkNod {
                name: b.name()?,
                mode,
                rdev,
                umask,
            }
        }
        Opcode::MkDir => {
            let (mode, umask) = (b.u32()?, b.u32()?);
            Op::MkDir {
                name: b.name()?,
                mode,
                umask,
            }
        }
        Opcode::Unlink => Op::Unlink { name: b.name()? },
        Opcode::RmDir => Op::RmDir { name: b.name()? },
        Opcode::Rename | Opcode::Rename2 => {
            let new_parent = b.u64()?;
            let mut flags = 0;
            if opcode == Opcode::Rename2 {
                flags = b.u32()?;
                b.skip(4)?;
            }
            Op::Rename {
                name: b.name()?,
                new_parent,
                new_name: b.name()?,
                flags,
            }
        }
        Opcode::Link => Op::Link {
            node: b.u64()?,
            name: b.name()?,
        },
        Opcode::Open => Op::Open { flags: b.u32()? },
        Opcode::OpenDir => Op::OpenDir { flags: b.u32()? },
        Opcode::Create => {
            let (flags, mode, umask) = (b.u32()?, b.u32()?, b.u32()?);
            b.skip(4)?;
            Op::Create {
                name: b.name()?,
                flags,
                mode,
                umask,
            }
        }
        Opcode::TmpFile => Op::TmpFile {
            flags: b.u32()?,
            mode: b.u32()?,
            umask: b.u32()?,
        },
        Opcode::Read => Op::Read(range(&mut b)?),
        Opcode::ReadDir => Op::ReadDir(range(&mut b)?),
        Opcode::ReadDirPlus => Op::ReadDirPlus(range(&mut b)?),
        Opcode::Write => {
            let (handle, offset) = (b.u64()?, b.u64()?);
            let (size, flags) = (b.u32()?, b.u32()?);
            b.skip(8)?;
            let append = b.u32()? & super::flags::OPENED_TO_APPEND != 0;
            b.skip(4)?;
            Op::Write {
                handle,
                offset,
                data: b.take(size as usize)?,
                flags,
                append,
            }
        }
        Opcode::StatFs => Op::StatFs,
        Opcode::Release => Op::Release { handle: b.u64()? },
        Opcode::ReleaseDir => Op::ReleaseDir { handle: b.u64()? },
        Opcode::Flush => Op::Flush,
        Opcode::FSync | Opcode::FSyncDir => {
            b.skip(8)?;
            let data_only = b.u32()? & super::flags::FSYNC_DATA_ONLY != 0;
            match opcode {
                Opcode::FSync => Op::FSync { data_only },
                _ => Op::FSyncDir { data_only },
            }
        }
        Opcode::SyncFs => Op::SyncFs,
        Opcode::SetXattr => {
            let (size, flags) = (b.u32()?, b.u32()?);
            let mut more = 0;
            if dialect.setxattr_ext {
                more = b.u32()?;
                b.skip(4)?;
            }
            Op::SetXattr {
                name: b.name_with_slashes()?,
                value: b.take(size as usize)?,
                flags,
                acl_kills_setgid: more & super::flags::SETXATTR_ACL_KILL_SGID != 0,
            }
        }
        Opcode::GetXattr => {
            let room = b.u32()?;
            b.skip(4)?;
            Op::GetXattr {
                name: b.name_with_slashes()?,
                room,
            }
        }
        Opcode::ListXattr => Op::ListXattr { room: b.u32()? },
        Opcode::RemoveXattr => Op::RemoveXattr {
            name: b.name_with_slashes()?,
        },
        Opcode::Access => Op::Access,
        Opcode::Ioctl => {
            b.skip(8)?;
            let (flags, command) = (b.u32()?, b.u32()?);
            b.skip(8)?;
            let (in_size, out_size_bytes) = (b.u32()?, b.u32()?);
            Op::Ioctl(Ioctl {
                flags,
                command,
                out_size_bytes,
                data: b.take(in_size as usize)?,
            })
        }
        Opcode::FAllocate => {
            b.skip(8)?;
            Op::FAllocate {
                offset: b.u64()?,
                length: b.u64()?,
                mode: b.u32()?,
            }
        }
        Opcode::LSeek => {
            b.skip(8)?;
            Op::LSeek {
                offset: b.u64()?,
                whence: b.u32()?,
            }
        }
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => {
            b.skip(8)?;
            let (from_offset, to) = (b.u64()?, b.u64()?);
            b.skip(8)?;
            Op::CopyRange(CopyRange {
                from_offset,
                to,
                to_offset: b.u64()?,
                length_bytes: b.u64()?,
                flags: b.u64()?,
            })
        }
        Opcode::Statx => {
            b.skip(20)?;
            Op::Statx { mask: b.u32()? }
        }
        Opcode::Init => Op::Init(init(&mut b)?),
        Opcode::Interrupt => Op::Interrupt { unique: b.u64()? },
        Opcode::Destroy => Op::Destroy,
        Opcode::GetLock
        | Opcode::SetLock
        | Opcode::SetLockWait
        | Opcode::BlockMap
        | Opcode::Poll
        | Opcode::NotifyReply
        | Opcode::SetupMapping
        | Opcode::RemoveMapping => Op::Other,
    })
}

fn range(b: &mut Bytes<'_>) -> Result<Range, Malformed> {
    let (handle, offset, size_bytes) = (b.u64()?, b.u64()?, b.u32()?);
    b.skip(12)?;
    Ok(Range {
        handle,
        offset,
        size_bytes,
        flags: b.u32()?,
    })
}

fn set_attr(b: &mut Bytes<'_>) -> Result<SetAttr, Malformed> {
    let valid = b.u32()?;
    b.skip(12)?;
    let size_bytes = b.u64()?;
    b.skip(8)?;
    let (atime, mtime) = (b.i64()?, b.i64()?);
    b.skip(8)?;
    let (atime_nsec, mtime_nsec) = (b.u32()?, b.u32()?);
    b.skip(4)?;
    let mode = b.u32()?;
    b.skip(4)?;
    let (uid, gid) = (b.u32()?, b.u32()?);
    b.skip(4)?;
    Ok(SetAttr {
        valid,
        size_bytes,
        atime: (atime, atime_nsec),
        mtime: (mtime, mtime_nsec),
        mode,
        uid,
        gid,
    })
}

fn init(b: &mut Bytes<'_>) -> Result<Init, Malformed> {
    let (major, minor, max_readahead_bytes) = (b.u32()?, b.u32()?, b.u32()?);
    let low = u64::from(b.u32()?);
    let mut flags = low;
    if low & super::flags::init::INIT_EXT != 0 {
        flags |= u64::from(b.u32()?) << 32;
    }
    Ok(Init {
        major,
        minor,
        max_readahead_bytes,
        flags,
    })
}

impl<'a> Bytes<'a> {
    /// Takes the name of an xattr: not empty, `/` is a byte like any other.
    fn name_with_slashes(&mut self) -> Result<&'a OsStr, Malformed> {
        let name = self.text()?;
        match name.is_empty() {
            true => Err(Malformed::Name),
            false => Ok(name),
        }
    }
}

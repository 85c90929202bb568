//! What an inode is: its type, owner, mode, times and identity, as plain values.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags};

/// The type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device; 0:0 is what overlayfs calls a whiteout.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    /// Returns the type given by the type bits of a raw mode, or `None` for bits Linux does not
    /// define.
    pub fn from_raw_mode(mode: u32) -> Option<FileKind> {
        Self::from_file_type(FileType::from_raw_mode(mode))
    }

    /// Returns the type bits (`S_IFMT`) of this type.
    pub fn raw_mode(self) -> u32 {
        self.file_type().as_raw_mode()
    }

    pub(crate) fn file_type(self) -> FileType {
        match self {
            FileKind::File => FileType::RegularFile,
            FileKind::Dir => FileType::Directory,
            FileKind::Symlink => FileType::Symlink,
            FileKind::Char => FileType::CharacterDevice,
            FileKind::Block => FileType::BlockDevice,
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
        }
    }

    pub(crate) fn from_file_type(kind: FileType) -> Option<FileKind> {
        Some(match kind {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Dir,
            FileType::Symlink => FileKind::Symlink,
            FileType::CharacterDevice => FileKind::Char,
            FileType::BlockDevice => FileKind::Block,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::Unknown => return None,
        })
    }
}

/// A point in time: seconds since 1970 (may be negative) and nanoseconds (0..1,000,000,000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timespec {
    /// Whole seconds since the epoch.
    pub sec: i64,
    /// Nanoseconds on top, always counted forwards.
    pub nsec: u32,
}

impl Timespec {
    /// Makes a time from seconds and nanoseconds.
    pub const fn new(sec: i64, nsec: u32) -> Self {
        Timespec { sec, nsec }
    }

    /// Returns the current wall-clock time.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timespec {
            sec: now.tv_sec,
            nsec: now.tv_nsec as u32,
        }
    }
}

/// One inode's attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its type.
    pub kind: FileKind,
    /// The twelve permission bits: rwx three times, set-uid, set-gid, sticky.
    pub mode: u32,
    /// Owner, as this process's user namespace shows it.
    pub uid: u32,
    /// Group, as this process's user namespace shows it.
    pub gid: u32,
    /// Size in bytes; for a symbolic link the length of its target.
    pub size_bytes: u64,
    /// Disk space, in units of 512 bytes.
    pub blocks_512: u64,
    /// Inode number.
    pub ino: u64,
    /// Device of the file system (major and minor packed as `makedev` does).
    pub dev: u64,
    /// Major and minor number of a device node; (0, 0) otherwise.
    pub rdev: (u32, u32),
    /// Number of hard links.
    pub nlink: u32,
    /// Modification time of the content.
    pub mtime: Timespec,
    /// Access time, as far as the mount keeps it.
    pub atime: Timespec,
    /// Last change of content or attributes; set only by the kernel.
    pub ctime: Timespec,
    /// It can't be changed, moved or removed (`chattr +i`), as far as the file system reports this
    /// without opening it.
    pub immutable: bool,
    /// It may only be appended to (`chattr +a`).
    pub append_only: bool,
    /// The id of the mount it was seen through, as in mountinfo; 0 before Linux 5.8.
    pub mnt_id: u64,
}

impl Stat {
    /// Returns the inode's identity: device and number.
    pub fn identity(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// True if both were seen through one mount.
    ///
    /// Devices don't tell: each subvolume of btrfs has its own, and so may each layer of an
    /// overlay. They are compared only where the kernel (before 5.8) names no mount.
    pub fn same_mount(&self, other: &Stat) -> bool {
        match (self.mnt_id, other.mnt_id) {
            (0, 0) => self.dev == other.dev,
            (this, that) => this == that,
        }
    }

    /// True if this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    /// True if this is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == FileKind::File
    }

    /// True if this is the character device 0:0, overlayfs's whiteout.
    pub fn is_null_device(&self) -> bool {
        self.kind == FileKind::Char && self.rdev == (0, 0)
    }

    pub(crate) fn at<Fd: AsFd>(
        dir: Fd,
        name: &std::path::Path,
        flags: AtFlags,
    ) -> rustix::io::Result<Stat> {
        let want = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        Stat::from_statx(&rustix::fs::statx(dir, name, flags, want)?)
    }

    fn from_statx(x: &Statx) -> rustix::io::Result<Stat> {
        let raw_mode = u32::from(x.stx_mode);
        let time = |t: &rustix::fs::StatxTimestamp| Timespec {
            sec: t.tv_sec,
            nsec: t.tv_nsec,
        };
        Ok(Stat {
            kind: FileKind::from_raw_mode(raw_mode).ok_or(rustix::io::Errno::IO)?,
            mode: raw_mode & 0o7777,
            uid: x.stx_uid,
            gid: x.stx_gid,
            size_bytes: x.stx_size,
            blocks_512: x.stx_blocks,
            ino: x.stx_ino,
            dev: rustix::fs::makedev(x.stx_dev_major, x.stx_dev_minor),
            rdev: (x.stx_rdev_major, x.stx_rdev_minor),
            nlink: x.stx_nlink,
            mtime: time(&x.stx_mtime),
            atime: time(&x.stx_atime),
            ctime: time(&x.stx_ctime),
            immutable: x.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            append_only: x.stx_attributes.contains(StatxAttributes::APPEND),
            mnt_id: x.stx_mnt_id,
        })
    }
}

/// Where something lies, as the kernel knows it without a request to the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    /// The id of the mount, as in mountinfo; 0 before Linux 5.8.
    pub mnt_id: u64,
    /// The file system's device, as in `st_dev`.
    pub dev: u64,
}

/// Returns where the file of `fd` (an `O_PATH` descriptor will do) lies.
///
/// No request is sent to the file system, which may no longer answer, or which the caller itself
/// may serve.
pub fn whereabouts<Fd: AsFd>(fd: Fd) -> rustix::io::Result<Whereabouts> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let seen = rustix::fs::statx(fd, "", flags, StatxFlags::MNT_ID)?;
    Ok(Whereabouts {
        mnt_id: seen.stx_mnt_id,
        dev: rustix::fs::makedev(seen.stx_dev_major, seen.stx_dev_minor),
    })
}

/// Returns the creation time of `fd`'s file, which can't be set; `None` if its file system does not
/// keep that.
pub fn born<Fd: AsFd>(fd: Fd) -> crate::Result<Option<Timespec>> {
    let fd = fd.as_fd();
    let seen = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)
        .map_err(|e| crate::Error::at("stat", fd, "", e))?;
    let known = seen.stx_mask & StatxFlags::BTIME.bits() != 0;
    Ok(known.then_some(Timespec {
        sec: seen.stx_btime.tv_sec,
        nsec: seen.stx_btime.tv_nsec,
    }))
}

/// Returns the attributes of `fd`'s file (an `O_PATH` descriptor will do).
pub fn stat_fd<Fd: AsFd>(fd: Fd) -> crate::Result<Stat> {
    let fd = fd.as_fd();
    Stat::at(fd, std::path::Path::new(""), AtFlags::EMPTY_PATH)
        .map_err(|e| crate::Error::at("stat", fd, "", e))
}

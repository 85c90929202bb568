//! Project quotas: a limit on everything beneath a directory, kept by xfs and ext4 themselves.
//!
//! A directory has a project number which new files in it inherit. The file system counts blocks
//! and inodes by that number and refuses more than the limit with EDQUOT (xfs: ENOSPC). The caller
//! knows which numbers are free. Limits are set through `quotactl_fd` (Linux 5.14), which needs no
//! device node.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::{Error, Result};

const PROJECT: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const Q_XGETQSTATV: u32 = (b'X' as u32) << 8 | 8;
const QIF_LIMITS: u32 = 1 | 4;
const XFLAG_PROJINHERIT: u32 = 0x200;

/// The state of project quotas on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectQuota {
    /// Counted and enforced.
    Enforced,
    /// Counted, but limits have no effect.
    Counted,
    /// Off (or the file system has none); the mount option is `prjquota`.
    Off,
    /// Not permitted to ask, as in a user namespace.
    Denied,
}

/// What a project uses and may use. A limit of 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProjectUsage {
    /// Bytes in use, as the file system counts them.
    pub used_bytes: u64,
    /// Bytes allowed, rounded to 1024; 0 for no limit.
    pub limit_bytes: u64,
    /// Inodes in use.
    pub used_inodes: u64,
    /// Inodes allowed; 0 for no limit.
    pub limit_inodes: u64,
}

#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

#[repr(C)]
#[derive(Default)]
struct DqBlk {
    bhardlimit: u64,
    bsoftlimit: u64,
    curspace: u64,
    ihardlimit: u64,
    isoftlimit: u64,
    curinodes: u64,
    btime: u64,
    itime: u64,
    valid: u32,
}

/// `struct fs_quota_statv`, of which only the first fields are read.
#[repr(C)]
struct QuotaStat {
    version: i8,
    pad1: u8,
    flags: u16,
    rest: [u64; 40],
}

/// Returns the state of project quotas on the file system that holds `fd`.
pub fn state(fd: impl AsFd) -> Result<ProjectQuota> {
    const ACCOUNTED: u16 = 1 << 4;
    const ENFORCED: u16 = 1 << 5;
    let fd = fd.as_fd();
    let mut stat = QuotaStat {
        version: 1,
        pad1: 0,
        flags: 0,
        rest: [0; 40],
    };
    match quotactl_fd(fd, Q_XGETQSTATV, 0, (&raw mut stat).cast()) {
        Ok(()) if stat.flags & ACCOUNTED == 0 => Ok(ProjectQuota::Off),
        Ok(()) if stat.flags & ENFORCED == 0 => Ok(ProjectQuota::Counted),
        Ok(()) => Ok(ProjectQuota::Enforced),
        Err(Errno::PERM | Errno::ACCESS) => Ok(ProjectQuota::Denied),
        Err(Errno::NOSYS | Errno::INVAL | Errno::SRCH | Errno::NOTBLK | Errno::OPNOTSUPP) => {
            Ok(ProjectQuota::Off)
        }
        Err(e) => Err(Error::at("read the quota state of", fd, "", e)),
    }
}

/// Returns the project number of an open file or directory; 0 is the default project.
pub fn project(fd: impl AsFd) -> Result<u32> {
    let fd = fd.as_fd();
    Ok(get_fsxattr(fd)
        .map_err(|e| Error::at("read the project of", fd, "", e))?
        .projid)
}

/// Gives `to` the project number of `from`, and for a directory also whether new files in it
/// inherit that.
///
/// Does nothing if it is the default project. Errors: EPERM outside the initial user namespace;
/// ENOTTY, EOPNOTSUPP where there are no projects.
pub fn carry_project(from: impl AsFd, to: impl AsFd) -> Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let carry = || {
        let source = get_fsxattr(from)?;
        if source.projid == 0 {
            return Ok(());
        }
        let mut attr = get_fsxattr(to)?;
        attr.projid = source.projid;
        attr.xflags |= source.xflags & XFLAG_PROJINHERIT;
        // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr, which `attr` is and which lives
        // through the call.
        let done = unsafe { libc::ioctl(to.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attr) };
        result(done.into())
    };
    carry().map_err(|e| Error::at("set the project of", to, "", e))
}

/// Gives an open file or directory the project number `id`; whether new files in it inherit one is
/// unchanged.
///
/// Errors: EPERM outside the initial user namespace; ENOTTY, EOPNOTSUPP where there are no
/// projects.
pub fn give_project(fd: impl AsFd, id: u32) -> Result<()> {
    let fd = fd.as_fd();
    let give = || {
        let mut attr = get_fsxattr(fd)?;
        attr.projid = id;
        // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr, which `attr` is and which lives
        // through the call.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attr) };
        result(done.into())
    };
    give().map_err(|e| Error::at("set the project of", fd, "", e))
}

/// Gives an open directory the project number `id`, which everything created in it from now on
/// inherits.
pub fn set_project(fd: impl AsFd, id: u32) -> Result<()> {
    let fd = fd.as_fd();
    let set = || {
        let mut attr = get_fsxattr(fd)?;
        attr.projid = id;
        attr.xflags |= XFLAG_PROJINHERIT;
        // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr, which `attr` is and which lives
        // through the call.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attr) };
        result(done.into())
    };
    set().map_err(|e| Error::at("set the project of", fd, "", e))
}

/// Limits project `id` on the file system that holds `fd`; 0 removes a limit. Takes effect at once.
pub fn set_limit(fd: impl AsFd, id: u32, limit_bytes: u64, limit_inodes: u64) -> Result<()> {
    let fd = fd.as_fd();
    let mut blk = DqBlk {
        bhardlimit: limit_bytes.div_ceil(1024),
        bsoftlimit: limit_bytes.div_ceil(1024),
        ihardlimit: limit_inodes,
        isoftlimit: limit_inodes,
        valid: QIF_LIMITS,
        ..DqBlk::default()
    };
    quotactl_fd(fd, Q_SETQUOTA, id, (&raw mut blk).cast())
        .map_err(|e| Error::at("set a quota on", fd, "", e))
}

/// Returns the usage of project `id` on the file system that holds `fd`. An unknown project uses
/// nothing.
pub fn usage(fd: impl AsFd, id: u32) -> Result<ProjectUsage> {
    let fd = fd.as_fd();
    let mut blk = DqBlk::default();
    match quotactl_fd(fd, Q_GETQUOTA, id, (&raw mut blk).cast()) {
        Ok(()) => Ok(ProjectUsage {
            used_bytes: blk.curspace,
            limit_bytes: blk.bhardlimit * 1024,
            used_inodes: blk.curinodes,
            limit_inodes: blk.ihardlimit,
        }),
        Err(Errno::NOENT) => Ok(ProjectUsage::default()),
        Err(e) => Err(Error::at("read a quota on", fd, "", e)),
    }
}

/// Returns whether quotas are enforced for this thread, judging by its capabilities.
///
/// They are enforced for every thread on XFS, and on ext4 for those without CAP_SYS_RESOURCE.
pub fn is_held() -> bool {
    let sets = rustix::thread::capabilities(None);
    !sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

/// Makes quotas apply to this thread, and to threads and processes that it starts later, by
/// dropping CAP_SYS_RESOURCE from its effective capabilities.
///
/// The kernel's overlay does the same before it writes for others. Errors: none known.
pub fn hold() -> Result<()> {
    let set = || {
        let mut sets = rustix::thread::capabilities(None)?;
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        rustix::thread::set_capabilities(None, sets)
    };
    set().map_err(|e| Error::new("enforce quotas for", "this thread", e))
}

// _IOR('X', 31, struct fsxattr) and _IOW('X', 32, struct fsxattr) of 28 bytes.
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
const _: () = assert!(size_of::<FsXattr>() == 28);

fn get_fsxattr(fd: BorrowedFd<'_>) -> rustix::io::Result<FsXattr> {
    let mut attr = FsXattr::default();
    // SAFETY: FS_IOC_FSGETXATTR writes one struct fsxattr into `attr`, which is exactly that and
    // borrowed for the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attr) };
    result(done.into())?;
    Ok(attr)
}

fn quotactl_fd(
    fd: BorrowedFd<'_>,
    command: u32,
    id: u32,
    data: *mut libc::c_void,
) -> rustix::io::Result<()> {
    let command = command << 8 | PROJECT;
    // SAFETY: `data` points to the live, exclusively borrowed structure that this command reads or
    // fills (the callers pass `DqBlk` for Q_GETQUOTA and Q_SETQUOTA, `QuotaStat`, larger than the
    // kernel's, for Q_XGETQSTATV).
    let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, fd.as_raw_fd(), command, id, data) };
    result(done)
}

fn result(done: libc::c_long) -> rustix::io::Result<()> {
    match done {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

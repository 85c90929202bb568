//! System calls that touch files, read from their arguments.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::notify::Waiting;

/// A call's effect on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// Changes it.
    Changes,
    /// Makes changes safe from power cuts. This includes writing bytes out (`sync_file_range`): on
    /// a file system that writes bytes to disk before the names that lead to them, no more is
    /// needed.
    Syncs,
    /// Only reads, and can fail.
    Reads,
}

/// How a call names its file.
#[derive(Clone, Copy)]
enum Names {
    /// By the descriptor in this argument.
    Fd(usize),
    /// By the path in this argument, from the working directory.
    Path(usize),
    /// By the directory in this argument, and the path in the next.
    At(usize),
}

/// What determines a call's effect.
#[derive(Clone, Copy)]
enum Said {
    /// By its name.
    Always(Does),
    /// The flags of an open in this argument, which creates or truncates something, or doesn't.
    InFlags(usize),
    /// The flags in the first word of the structure that this argument points to.
    InStructure(usize),
}

const CHANGES: Said = Said::Always(Does::Changes);
const SYNCS: Said = Said::Always(Does::Syncs);
const READS: Said = Said::Always(Does::Reads);

use Names::{At, Fd, Path as ByPath};

/// Every call that the seam intercepts. The kernel's own numbers; those only in old ABIs are in
/// [`OLD`].
const CALLS: &[(i64, &str, Said, Names)] = &[
    (libc::SYS_openat, "openat", Said::InFlags(2), At(0)),
    (libc::SYS_openat2, "openat2", Said::InStructure(2), At(0)),
    (libc::SYS_mkdirat, "mkdirat", CHANGES, At(0)),
    (libc::SYS_mknodat, "mknodat", CHANGES, At(0)),
    (libc::SYS_symlinkat, "symlinkat", CHANGES, At(1)),
    (libc::SYS_linkat, "linkat", CHANGES, At(2)),
    (libc::SYS_renameat2, "renameat2", CHANGES, At(2)),
    (libc::SYS_unlinkat, "unlinkat", CHANGES, At(0)),
    (libc::SYS_write, "write", CHANGES, Fd(0)),
    (libc::SYS_writev, "writev", CHANGES, Fd(0)),
    (libc::SYS_pwrite64, "pwrite64", CHANGES, Fd(0)),
    (libc::SYS_pwritev, "pwritev", CHANGES, Fd(0)),
    (libc::SYS_pwritev2, "pwritev2", CHANGES, Fd(0)),
    (libc::SYS_ftruncate, "ftruncate", CHANGES, Fd(0)),
    (libc::SYS_truncate, "truncate", CHANGES, ByPath(0)),
    (libc::SYS_fallocate, "fallocate", CHANGES, Fd(0)),
    (libc::SYS_copy_file_range, "copy_file_range", CHANGES, Fd(2)),
    (libc::SYS_sendfile, "sendfile", CHANGES, Fd(0)),
    (libc::SYS_splice, "splice", CHANGES, Fd(2)),
    (libc::SYS_ioctl, "ioctl", CHANGES, Fd(0)),
    (libc::SYS_setxattr, "setxattr", CHANGES, ByPath(0)),
    (libc::SYS_lsetxattr, "lsetxattr", CHANGES, ByPath(0)),
    (libc::SYS_fsetxattr, "fsetxattr", CHANGES, Fd(0)),
    (libc::SYS_removexattr, "removexattr", CHANGES, ByPath(0)),
    (libc::SYS_lremovexattr, "lremovexattr", CHANGES, ByPath(0)),
    (libc::SYS_fremovexattr, "fremovexattr", CHANGES, Fd(0)),
    (libc::SYS_fchmod, "fchmod", CHANGES, Fd(0)),
    (libc::SYS_fchmodat, "fchmodat", CHANGES, At(0)),
    (libc::SYS_fchmodat2, "fchmodat2", CHANGES, At(0)),
    (libc::SYS_fchown, "fchown", CHANGES, Fd(0)),
    (libc::SYS_fchownat, "fchownat", CHANGES, At(0)),
    (libc::SYS_utimensat, "utimensat", CHANGES, At(0)),
    (libc::SYS_fsync, "fsync", SYNCS, Fd(0)),
    (libc::SYS_fdatasync, "fdatasync", SYNCS, Fd(0)),
    (libc::SYS_syncfs, "syncfs", SYNCS, Fd(0)),
    (libc::SYS_sync_file_range, "sync_file_range", SYNCS, Fd(0)),
    (libc::SYS_statx, "statx", READS, At(0)),
    (libc::SYS_fstat, "fstat", READS, Fd(0)),
    (libc::SYS_getdents64, "getdents64", READS, Fd(0)),
    (libc::SYS_readlinkat, "readlinkat", READS, At(0)),
    (libc::SYS_read, "read", READS, Fd(0)),
    (libc::SYS_pread64, "pread64", READS, Fd(0)),
    (libc::SYS_getxattr, "getxattr", READS, ByPath(0)),
    (libc::SYS_lgetxattr, "lgetxattr", READS, ByPath(0)),
    (libc::SYS_fgetxattr, "fgetxattr", READS, Fd(0)),
    (libc::SYS_listxattr, "listxattr", READS, ByPath(0)),
    (libc::SYS_llistxattr, "llistxattr", READS, ByPath(0)),
    (libc::SYS_flistxattr, "flistxattr", READS, Fd(0)),
    (
        libc::SYS_open_by_handle_at,
        "open_by_handle_at",
        READS,
        Fd(0),
    ),
    (libc::SYS_faccessat, "faccessat", READS, At(0)),
    (libc::SYS_faccessat2, "faccessat2", READS, At(0)),
    (libc::SYS_statfs, "statfs", READS, ByPath(0)),
    (libc::SYS_fstatfs, "fstatfs", READS, Fd(0)),
    (
        libc::SYS_name_to_handle_at,
        "name_to_handle_at",
        READS,
        At(0),
    ),
];

#[cfg(target_arch = "x86_64")]
const OLD: &[(i64, &str, Said, Names)] = &[
    (libc::SYS_open, "open", Said::InFlags(1), ByPath(0)),
    (libc::SYS_creat, "creat", CHANGES, ByPath(0)),
    (libc::SYS_mkdir, "mkdir", CHANGES, ByPath(0)),
    (libc::SYS_rmdir, "rmdir", CHANGES, ByPath(0)),
    (libc::SYS_mknod, "mknod", CHANGES, ByPath(0)),
    (libc::SYS_symlink, "symlink", CHANGES, ByPath(1)),
    (libc::SYS_link, "link", CHANGES, ByPath(1)),
    (libc::SYS_rename, "rename", CHANGES, ByPath(1)),
    (libc::SYS_renameat, "renameat", CHANGES, At(2)),
    (libc::SYS_unlink, "unlink", CHANGES, ByPath(0)),
    (libc::SYS_chmod, "chmod", CHANGES, ByPath(0)),
    (libc::SYS_chown, "chown", CHANGES, ByPath(0)),
    (libc::SYS_lchown, "lchown", CHANGES, ByPath(0)),
    (libc::SYS_utimes, "utimes", CHANGES, ByPath(0)),
    (libc::SYS_newfstatat, "newfstatat", READS, At(0)),
    (libc::SYS_stat, "stat", READS, ByPath(0)),
    (libc::SYS_lstat, "lstat", READS, ByPath(0)),
    (libc::SYS_readlink, "readlink", READS, ByPath(0)),
    (libc::SYS_access, "access", READS, ByPath(0)),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[(i64, &str, Said, Names)] = &[];

/// A call on a file.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its effect.
    pub does: Does,
    /// The file; of two names, the one that it creates or replaces.
    pub path: PathBuf,
    /// The descriptor that it syncs, truncates or extends.
    pub(super) fd: RawFd,
    /// The new length of the file.
    pub(super) length: u64,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.name, self.path.display())
    }
}

/// The numbers of the calls that are handled here; without those that only read, unless `reads`.
pub(super) fn numbers(reads: bool) -> Vec<i64> {
    let calls = CALLS.iter().chain(OLD);
    let wanted =
        calls.filter(|(_, _, said, _)| reads || !matches!(said, Said::Always(Does::Reads)));
    wanted.map(|&(number, ..)| number).collect()
}

/// Decodes a call of a thread of this process. `None` if it concerns no file that has a path.
pub(super) fn read(memory: &File, call: Waiting) -> Option<Call> {
    let known = CALLS
        .iter()
        .chain(OLD)
        .find(|(number, ..)| *number == call.number);
    let &(number, name, said, names) = known?;
    if number == libc::SYS_ioctl && !CHANGING_REQUESTS.contains(&(call.arguments[1] as u32)) {
        return None;
    }
    let by_flags = |flags: u64| match flags & MAKES {
        0 => Does::Reads,
        _ => Does::Changes,
    };
    let does = match said {
        Said::Always(does) => does,
        Said::InFlags(at) => by_flags(call.arguments[at]),
        Said::InStructure(at) => by_flags(word(memory, call.arguments[at])?),
    };
    let path = match names {
        Fd(at) => of_fd(call.arguments[at] as RawFd)?,
        ByPath(at) => resolve(None, &text(memory, call.arguments[at])?)?,
        At(at) => {
            let dir = call.arguments[at] as RawFd;
            resolve(Some(dir), &text(memory, call.arguments[at + 1])?)?
        }
    };
    Some(Call {
        name,
        does,
        path,
        fd: call.arguments[0] as RawFd,
        length: call.arguments[1],
    })
}

/// The flags with which an open creates or truncates a file. `O_TMPFILE` has the bit of
/// `O_DIRECTORY`, which is none of these.
const MAKES: u64 = (libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u64;

/// `FICLONE`, `FICLONERANGE` and `FS_IOC_SETFLAGS`.
const CHANGING_REQUESTS: [u32; 3] = [0x4004_9409, 0x4020_940d, 0x4008_6602];

fn of_fd(fd: RawFd) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

fn resolve(dir: Option<RawFd>, path: &Path) -> Option<PathBuf> {
    // Calls without a variant for descriptors are made on the descriptor's name in /proc.
    let by_fd = ["/proc/self/fd", "/proc/thread-self/fd"]
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix).ok());
    if let Some(rest) = by_fd {
        let mut rest = rest.components();
        let fd = rest.next()?.as_os_str().to_str()?.parse().ok()?;
        return Some(of_fd(fd)?.join(rest.as_path()));
    }
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    let dir = match dir {
        Some(fd) if fd != libc::AT_FDCWD => of_fd(fd)?,
        _ => std::env::current_dir().ok()?,
    };
    match path.as_os_str().is_empty() {
        true => Some(dir),
        false => Some(dir.join(path)),
    }
}

fn text(memory: &File, address: u64) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut page = [0; 4096];
    while address != 0 && bytes.len() <= libc::PATH_MAX as usize {
        let at = address + bytes.len() as u64;
        // Up to the page's end: what follows may not be mapped.
        let upto = 4096 - (at % 4096) as usize;
        let count = memory.read_at(&mut page[..upto], at).ok()?;
        let read = &page[..count];
        if let Some(end) = read.iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&read[..end]);
            return Some(OsString::from_vec(bytes).into());
        }
        bytes.extend_from_slice(read);
    }
    // A null pointer means the descriptor itself.
    (address == 0).then(PathBuf::new)
}

fn word(memory: &File, address: u64) -> Option<u64> {
    let mut word = [0; 8];
    memory.read_exact_at(&mut word, address).ok()?;
    Some(u64::from_ne_bytes(word))
}

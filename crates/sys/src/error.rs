//! The one error of this room: an operation, the path it was about, and what the kernel said.
//!
//! Callers branch on the errno helpers, never on the text.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// What a system call failed at.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} {}", path.display())]
pub struct Error {
    /// The operation, as a verb phrase that fits behind "cannot".
    pub op: &'static str,
    /// The path it was about: absolute where it could be learned, else as the caller gave it.
    pub path: PathBuf,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

/// The result of everything in this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Returns what an error says, then what each of its causes says, without those whose words an
/// error has as its own.
pub fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for error in std::iter::successors(Some(error), |error| error.source()) {
        let words = error.to_string();
        // A transparent error shows its cause's words.
        if !all.last().is_some_and(|said| said.ends_with(&words)) {
            all.push(words);
        }
    }
    all
}

/// Returns an error with its causes, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    causes(error).join(": ")
}

impl Error {
    /// Makes an error about `path`.
    pub fn new(op: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Error {
            op,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Makes an error about `name` in the directory behind `dir`, whose path is asked of the
    /// kernel.
    pub fn at(
        op: &'static str,
        dir: BorrowedFd<'_>,
        name: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        let name = name.as_ref();
        let path = match fd_path(dir) {
            Some(base) if name.as_os_str().is_empty() || name == Path::new(".") => base,
            Some(base) => base.join(name),
            None => name.to_path_buf(),
        };
        Error {
            op,
            path,
            source: source.into(),
        }
    }

    /// Returns the kind the standard library gives the kernel's answer.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns the errno, if the error came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// True if the errno is `errno`.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }

    /// True if what was named does not exist (ENOENT).
    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }

    /// True if what was to be made is there already (EEXIST).
    pub fn is_exists(&self) -> bool {
        self.kind() == io::ErrorKind::AlreadyExists
    }

    /// True if the file system or a quota is full (ENOSPC, EDQUOT).
    pub fn is_no_space(&self) -> bool {
        self.is(rustix::io::Errno::NOSPC) || self.is(rustix::io::Errno::DQUOT)
    }

    /// True if the file system is read-only (EROFS).
    pub fn is_read_only(&self) -> bool {
        self.is(rustix::io::Errno::ROFS)
    }

    /// True if the directory is not empty (ENOTEMPTY; some file systems say EEXIST).
    pub fn is_not_empty(&self) -> bool {
        self.is(rustix::io::Errno::NOTEMPTY)
    }

    /// True if something is mounted on it or holds it (EBUSY).
    pub fn is_busy(&self) -> bool {
        self.is(rustix::io::Errno::BUSY)
    }

    /// True if the operation would cross file systems or mounts (EXDEV).
    pub fn is_cross_device(&self) -> bool {
        self.is(rustix::io::Errno::XDEV)
    }

    /// True if the kernel refused for want of privilege (EPERM, EACCES).
    pub fn is_denied(&self) -> bool {
        self.kind() == io::ErrorKind::PermissionDenied
    }

    /// True if the kernel or the file system lacks the operation (ENOSYS, EOPNOTSUPP, ENOTTY).
    pub fn is_unsupported(&self) -> bool {
        use rustix::io::Errno;
        self.is(Errno::NOSYS) || self.is(Errno::OPNOTSUPP) || self.is(Errno::NOTTY)
    }
}

/// Returns the path the kernel knows for a descriptor, for messages only.
///
/// The path may be stale or end in ` (deleted)`: never open it.
pub fn fd_path(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no store: {0}")]
    struct Repeating(#[source] Error);

    #[test]
    fn each_cause_is_told_once() {
        let error = || Error::new("open", "/x", io::Error::other("worn out"));
        assert_eq!(causes(&error()), ["cannot open /x", "worn out"]);
        let outer = Repeating(error());
        assert_eq!(with_causes(&outer), "no store: cannot open /x: worn out");
    }
}

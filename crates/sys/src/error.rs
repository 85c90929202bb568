//! This crate's one error type: an operation, its path, and what the kernel answered.
//!
//! Callers branch on the errno helpers, never on the text.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} {}", path.display())]
pub struct Error {
    /// The operation, as a verb phrase that fits after "cannot".
    pub op: &'static str,
    /// The path: absolute where it could be determined, else as the caller gave it.
    pub path: PathBuf,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Returns an error's message, then that of each of its causes, without those whose message the
/// error repeats.
pub fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for error in std::iter::successors(Some(error), |error| error.source()) {
        let words = error.to_string();
        // A transparent error shows its cause's message.
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

    /// Creates an error about `name` in the directory `dir`, whose path the kernel is asked for.
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

    /// Returns the standard library's kind for the kernel's answer.
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

    /// True if the path does not exist (ENOENT).
    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }

    /// True if the path already exists (EEXIST).
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

    /// True if the kernel refused for lack of privilege (EPERM, EACCES).
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

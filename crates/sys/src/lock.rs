//! Advisory locks (flock) that live as long as a value.
//!
//! A lock belongs to the open file description: it survives in a child that inherited the
//! descriptor and is released when the last copy is closed, so a killed process never leaves one
//! behind. Never lock a file SQLite has open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::{Error, Result};

/// Whether others may hold the lock too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Any number of holders at once, none of them exclusive.
    Shared,
    /// One holder.
    Exclusive,
}

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    fd: OwnedFd,
}

impl Lock {
    /// Waits until it holds the lock on `fd`'s file.
    pub fn wait(fd: impl Into<OwnedFd>, sharing: Sharing) -> Result<Lock> {
        let fd = fd.into();
        let op = match sharing {
            Sharing::Shared => FlockOperation::LockShared,
            Sharing::Exclusive => FlockOperation::LockExclusive,
        };
        loop {
            match rustix::fs::flock(&fd, op) {
                Ok(()) => return Ok(Lock { fd }),
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::at("lock", fd.as_fd(), "", e)),
            }
        }
    }

    /// Waits at most `patience`; `None` if the lock was held elsewhere all that time. Tries every
    /// few milliseconds, so waiters have no order.
    pub fn wait_at_most(
        fd: impl Into<OwnedFd>,
        sharing: Sharing,
        patience: Duration,
    ) -> Result<Option<Lock>> {
        const LONGEST: Duration = Duration::from_millis(20);
        let fd = fd.into();
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            if Self::try_fd(&fd, sharing)? {
                return Ok(Some(Lock { fd }));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Takes the lock if it is free; `None` if it is held elsewhere.
    pub fn try_now(fd: impl Into<OwnedFd>, sharing: Sharing) -> Result<Option<Lock>> {
        let fd = fd.into();
        Ok(Self::try_fd(&fd, sharing)?.then_some(Lock { fd }))
    }

    fn try_fd(fd: &OwnedFd, sharing: Sharing) -> Result<bool> {
        let op = match sharing {
            Sharing::Shared => FlockOperation::NonBlockingLockShared,
            Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(fd, op) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(Error::at("lock", fd.as_fd(), "", e)),
        }
    }
}

impl Lock {
    /// Releases the lock at once, also in children that have inherited it.
    pub fn release(&self) -> Result<()> {
        rustix::fs::flock(&self.fd, FlockOperation::Unlock)
            .map_err(|e| Error::at("unlock", self.fd.as_fd(), "", e))
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_lock_excludes_until_dropped() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let open = || {
            std::fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .unwrap()
        };
        let held = Lock::wait(open(), Sharing::Exclusive).unwrap();
        assert!(Lock::try_now(open(), Sharing::Shared).unwrap().is_none());
        let soon = Duration::from_millis(5);
        let waited = Lock::wait_at_most(open(), Sharing::Exclusive, soon).unwrap();
        assert!(waited.is_none());
        drop(held);
        let later = Lock::wait_at_most(open(), Sharing::Exclusive, soon).unwrap();
        assert!(later.is_some());
        drop(later);
        let a = Lock::try_now(open(), Sharing::Shared).unwrap().unwrap();
        let b = Lock::try_now(open(), Sharing::Shared).unwrap().unwrap();
        assert!(Lock::try_now(open(), Sharing::Exclusive).unwrap().is_none());
        drop((a, b));
        assert!(Lock::try_now(open(), Sharing::Exclusive).unwrap().is_some());
    }
}

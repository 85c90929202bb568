//! Sockets that whoever started this process has opened for it: systemd's way, sd_listen_fds(3).
//!
//! The environment says how many there are and for whom; the descriptors follow standard error. It
//! is asked once, at the start, before any other thread and before anything else was opened.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that is handed over. Part of systemd's interface.
const FIRST: RawFd = 3;

/// More than this were never meant.
const MOST: RawFd = 64;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Returns the descriptors that were handed over to this process, in order; none, if none were.
/// Only the first call gets any.
///
/// Each is closed on exec from now on.
pub fn inherited() -> Vec<OwnedFd> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        text.parse::<RawFd>().ok()
    };
    // A variable that went on to a child of the process it was for is not for that child.
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MOST);
    (FIRST..FIRST + count).filter_map(take).collect()
}

/// Takes one descriptor, if it is open.
fn take(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl reads and writes no memory of ours; a number that is not open is an error it
    // returns.
    let done = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if done != 0 {
        return None;
    }
    // SAFETY: it is open, as the call above showed, and was opened for this process by the one who
    // started it: by that agreement nobody else here owns it, and `TAKEN` sees to it that it is
    // taken once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! Socket activation: sockets that systemd has opened for this process, see sd_listen_fds(3).
//!
//! The environment says how many there are and for which process; the descriptors follow standard
//! error. It is read once, at the start, before any other thread runs and before anything else was
//! opened.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first passed descriptor. Part of systemd's interface.
const FIRST: RawFd = 3;

/// More than this is never intended.
const MOST: RawFd = 64;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Returns the descriptors passed to this process, in order; none, if none were passed. Only the
/// first call returns any.
///
/// Each is close-on-exec from now on.
pub fn inherited() -> Vec<OwnedFd> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        text.parse::<RawFd>().ok()
    };
    // A variable inherited from the process it was for is not for this child.
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MOST);
    (FIRST..FIRST + count).filter_map(take).collect()
}

/// Takes one descriptor, if it is open.
fn take(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl accesses no memory of ours; a number that is not open is an error it returns.
    let done = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if done != 0 {
        return None;
    }
    // SAFETY: it is open, as the call above showed, and systemd opened it for this process: by that
    // agreement no other code here owns it, and `TAKEN` ensures that it is taken once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

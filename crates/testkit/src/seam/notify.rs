//! System calls of one thread, and of the threads it starts, that wait for a decision: seccomp's
//! user notification.
//!
//! A filter can't be removed from a thread, so it is set on a thread created for it. No privilege
//! is needed.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    id: u64,
    /// Its number.
    pub number: i64,
    /// Its arguments as in the registers.
    pub arguments: [u64; 6],
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel executes it.
    Make,
    /// It is not executed, and returns 0.
    Pretend,
    /// It is not executed, and fails with this error number.
    Fail(i32),
}

/// Receives the calls of a thread.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// From now on each call of this thread, and of the threads it will start, whose number is
    /// among `numbers` (at most 200) waits for an answer. Once nothing listens, such calls fail
    /// with ENOSYS.
    ///
    /// Errors are the kernel's: EINVAL or EBUSY if such filters are not supported, or another
    /// listener exists.
    pub fn on_this_thread(numbers: &[i64]) -> io::Result<Listener> {
        let program = program(numbers);
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: the arguments are numbers; without privileges the filter needs this, and it
        // concerns only this thread.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `filter` points to a program that outlives the call, which only reads it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const filter,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nothing else owns.
        Ok(Listener(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Returns the next call that waits; `None` once no thread with the filter is left.
    pub fn next(&self) -> io::Result<Option<Waiting>> {
        loop {
            let mut poll = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one `pollfd`, which outlives the call.
            if unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if poll.revents & libc::POLLIN == 0 {
                return Ok(None);
            }
            // SAFETY: a structure of numbers, for which zero is valid; the kernel requires it.
            let mut told: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the structure is the one that this request fills, and outlives the call.
            let done = unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE, &raw mut told) };
            if done == 0 {
                return Ok(Some(Waiting {
                    id: told.id,
                    number: i64::from(told.data.nr),
                    arguments: told.data.args,
                }));
            }
            let error = io::Error::last_os_error();
            // A signal cancelled the call before it was reported, or interrupted this thread.
            if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) {
                return Err(error);
            }
        }
    }

    /// Answers a call. A call that a signal cancelled in the meantime needs no answer.
    pub fn answer(&self, call: Waiting, answer: Answer) -> io::Result<()> {
        let mut said = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match answer {
            Answer::Make => said.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Answer::Pretend => {}
            Answer::Fail(error) => said.error = -error,
        }
        // SAFETY: the structure is the one that this request reads, and outlives the call.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), SEND, &raw mut said) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(()),
            _ => Err(error),
        }
    }
}

// `SECCOMP_IOCTL_NOTIF_RECV` and `..._SEND`, which are `_IOWR('!', 0 or 1, structure)`.
const RECEIVE: libc::Ioctl = request(0, size_of::<libc::seccomp_notif>());
const SEND: libc::Ioctl = request(1, size_of::<libc::seccomp_notif_resp>());

const fn request(number: u64, size: usize) -> libc::Ioctl {
    (3 << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number) as libc::Ioctl
}

/// Reports the calls in `numbers` to the listener, and allows the others.
fn program(numbers: &[i64]) -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    assert!(numbers.len() <= 200, "a jump is at most 255 steps long");
    // The call's number is the first word of what a filter sees.
    let mut program = vec![step(LOAD, 0, 0, 0)];
    for (at, number) in numbers.iter().enumerate() {
        let to_the_last = (numbers.len() - at) as u8;
        program.push(step(IS_EQUAL, to_the_last, 0, *number as u32));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    program
}

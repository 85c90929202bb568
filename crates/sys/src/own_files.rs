//! Does what the mode of a user's own file denies its owner, through a process that may do it.
//!
//! An owner can't list a directory of mode 0300, create a name in one of mode 0555 or read an
//! attribute of a file of mode 0, yet could do all of that after a chmod. A server that shows a
//! union to a plain user must not do that chmod, neither in a lower layer nor, for a moment, in the
//! upper one. Root has CAP_DAC_OVERRIDE and needs no chmod, and in their own user namespace all
//! users have that capability over inodes whose owner and group are theirs (user_namespaces(7)).
//!
//! So one small process, the assistant, lives in such a namespace. The first call that fails with
//! EACCES starts it; it repeats the call and returns what it opened. No user gains a right: the
//! assistant reaches only what its user could reach after a chmod. It is the same program started
//! again ([`enable`]), which calls [`assist`] at once; it keeps no descriptor but its end of a
//! socket, and exits when the other end is closed.
//!
//! Where plain users may not create user namespaces, the failure stands.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::thread::{CapabilitySet, UnshareFlags};

use crate::{Error, Result};

type Done<T> = rustix::io::Result<T>;

/// The largest message: an attribute's value, its name, and the numbers before them.
const MESSAGE_MAX_BYTES: usize = 72 * 1024;

/// The most descriptors in one message.
const AT_A_TIME: usize = 2;

/// True from [`enable`] on until the assistant proves unavailable.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// `None` before [`enable`], and once the assistant has proved unavailable.
static ASSISTANT: Mutex<Option<Assistant>> = Mutex::new(None);

struct Assistant {
    start: fn() -> Command,
    /// `None` before the first call, and after one that it did not answer.
    running: Option<Running>,
}

struct Running {
    socket: OwnedFd,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It exits when the socket is closed; the signal only ends it sooner, and one that has
        // already exited is just reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From now on, calls that fail for lack of permission in this process are repeated by an
/// assistant, if this process lacks the necessary capability. `start` creates the command that
/// starts this program so that it calls [`assist`] at once.
pub fn enable(start: fn() -> Command) {
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::DAC_OVERRIDE));
    if may {
        return;
    }
    assistant().get_or_insert(Assistant {
        start,
        running: None,
    });
    ENABLED.store(true, Ordering::Relaxed);
}

fn assistant() -> MutexGuard<'static, Option<Assistant>> {
    crate::sync::lock(&ASSISTANT)
}

/// Opens `path` in `dir` again after `errno`; the empty path is `dir` itself, which may be an
/// `O_PATH` descriptor.
pub(crate) fn open(errno: Errno, dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Done<OwnedFd> {
    open_beneath(errno, dir, path, flags, ResolveFlags::empty())
}

/// As [`open`], with the resolve flags `resolve`.
pub(crate) fn open_beneath(
    errno: Errno,
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Done<OwnedFd> {
    let call = Call {
        flags: flags.bits(),
        resolve: resolve.bits(),
        ..Call::new(Operation::Open, bytes(path))
    };
    again(errno, &[dir], &call).and_then(|answer| answer.fd.ok_or(Errno::ACCESS))
}

/// Opens `name` in `dir` again after `errno`, as `O_PATH`.
pub(crate) fn open_path(errno: Errno, dir: BorrowedFd<'_>, name: &Path) -> Done<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(errno, dir, name, flags)
}

/// Reads an attribute again after `errno`.
pub(crate) fn get_xattr(errno: Errno, fd: BorrowedFd<'_>, attr: &OsStr) -> Done<Vec<u8>> {
    let call = Call::new(Operation::GetXattr, of_users(errno, attr)?);
    again(errno, &[fd], &call).map(|answer| answer.bytes)
}

/// Sets an attribute again after `errno`.
pub(crate) fn set_xattr(
    errno: Errno,
    fd: BorrowedFd<'_>,
    attr: &OsStr,
    value: &[u8],
    flags: XattrFlags,
) -> Done<()> {
    let call = Call {
        flags: flags.bits(),
        second: value,
        ..Call::new(Operation::SetXattr, of_users(errno, attr)?)
    };
    again(errno, &[fd], &call).map(drop)
}

/// Removes an attribute again after `errno`.
pub(crate) fn remove_xattr(errno: Errno, fd: BorrowedFd<'_>, attr: &OsStr) -> Done<()> {
    let call = Call::new(Operation::RemoveXattr, of_users(errno, attr)?);
    again(errno, &[fd], &call).map(drop)
}

/// Allows only attributes that the mode protects. Others contain ids or permissions that mean
/// something else in the assistant's namespace.
fn of_users(errno: Errno, attr: &OsStr) -> Done<&[u8]> {
    let attr = attr.as_encoded_bytes();
    match attr.starts_with(b"user.") {
        true => Ok(attr),
        false => Err(errno),
    }
}

/// Renames again after `errno`.
pub(crate) fn rename(
    errno: Errno,
    from: (BorrowedFd<'_>, &Path),
    to: (BorrowedFd<'_>, &Path),
    flags: RenameFlags,
) -> Done<()> {
    let call = Call {
        flags: flags.bits(),
        second: bytes(to.1),
        ..Call::new(Operation::Rename, bytes(from.1))
    };
    again(errno, &[from.0, to.0], &call).map(drop)
}

/// Creates a hard link again after `errno`. The empty name is the descriptor's own file.
pub(crate) fn link(
    errno: Errno,
    from: (BorrowedFd<'_>, &Path),
    to: (BorrowedFd<'_>, &Path),
) -> Done<()> {
    let call = Call {
        second: bytes(to.1),
        ..Call::new(Operation::Link, bytes(from.1))
    };
    again(errno, &[from.0, to.0], &call).map(drop)
}

/// Removes a name again after `errno`.
pub(crate) fn unlink(errno: Errno, dir: BorrowedFd<'_>, name: &Path, flags: AtFlags) -> Done<()> {
    let call = Call {
        flags: flags.bits(),
        ..Call::new(Operation::Unlink, bytes(name))
    };
    again(errno, &[dir], &call).map(drop)
}

/// What the assistant can do. The numbers are used only between two processes of one program.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Operation {
    Open,
    GetXattr,
    SetXattr,
    RemoveXattr,
    Rename,
    Link,
    Unlink,
}

impl Operation {
    const ALL: [Operation; 7] = [
        Operation::Open,
        Operation::GetXattr,
        Operation::SetXattr,
        Operation::RemoveXattr,
        Operation::Rename,
        Operation::Link,
        Operation::Unlink,
    ];
}

/// A request to the assistant, sent along with descriptors: a system call's flags and strings.
struct Call<'a> {
    operation: Operation,
    flags: u32,
    resolve: u64,
    first: &'a [u8],
    second: &'a [u8],
}

/// The result of a call.
#[derive(Default)]
struct Answer {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

/// Bytes of a call's message before the strings.
const HEAD: usize = 20;

impl<'a> Call<'a> {
    fn new(operation: Operation, first: &'a [u8]) -> Call<'a> {
        Call {
            operation,
            flags: 0,
            resolve: 0,
            first,
            second: b"",
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.first.len() + self.second.len());
        for number in [self.operation as u32, self.flags, self.first.len() as u32] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.resolve.to_le_bytes());
        bytes.extend_from_slice(self.first);
        bytes.extend_from_slice(self.second);
        bytes
    }

    fn decode(bytes: &'a [u8]) -> Option<Call<'a>> {
        let (head, strings) = bytes.split_at_checked(HEAD)?;
        let number = |at: usize| {
            let four = head.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(four))
        };
        let (first, second) = strings.split_at_checked(number(8)? as usize)?;
        Some(Call {
            operation: *Operation::ALL.get(number(0)? as usize)?,
            flags: number(4)?,
            resolve: u64::from_le_bytes(head.get(12..20)?.try_into().ok()?),
            first,
            second,
        })
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// Has the assistant repeat a call that failed with `errno`. If permission is not the problem, or
/// the assistant can't be reached, the error stands.
fn again(errno: Errno, fds: &[BorrowedFd<'_>], call: &Call<'_>) -> Done<Answer> {
    if errno != Errno::ACCESS || !ENABLED.load(Ordering::Relaxed) {
        return Err(errno);
    }
    let mut slot = assistant();
    let Some(Assistant { start, running }) = &mut *slot else {
        return Err(errno);
    };
    let assistant = match running {
        Some(running) => running,
        None => match start_assistant(start()) {
            Ok(started) => running.insert(started),
            Err(error) => {
                tracing::info!(%error, "can't start the assistant for file modes");
                ENABLED.store(false, Ordering::Relaxed);
                *slot = None;
                return Err(errno);
            }
        },
    };
    ask(assistant.socket.as_fd(), fds, call).unwrap_or_else(|broken| {
        // It was killed. The next call starts another.
        tracing::warn!(%broken, "the assistant process for file modes has ended");
        *running = None;
        Err(errno)
    })
}

fn start_assistant(mut command: Command) -> Result<Running> {
    let program = std::path::PathBuf::from(command.get_program());
    let failed = |source: std::io::Error| Error::new("start", &program, source);
    let (here, there) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed(errno.into()))?;
    let child = command
        .stdin(there)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let running = Running {
        socket: here,
        child,
    };
    // Its end of the socket went with the command.
    drop(command);
    let (greeting, _) =
        receive(running.socket.as_fd(), &mut [0; HEAD]).map_err(|errno| failed(errno.into()))?;
    match greeting {
        0 => Err(failed(std::io::ErrorKind::PermissionDenied.into())),
        _ => Ok(running),
    }
}

/// The outer error is the conversation's, the inner one the call's.
fn ask(socket: BorrowedFd<'_>, fds: &[BorrowedFd<'_>], call: &Call<'_>) -> Done<Done<Answer>> {
    send(socket, &call.encode(), fds)?;
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    let (length, mut fds) = receive(socket, &mut buffer)?;
    let Some((errno, bytes)) = buffer[..length].split_first_chunk::<4>() else {
        return Err(Errno::PIPE);
    };
    Ok(match i32::from_le_bytes(*errno) {
        0 => Ok(Answer {
            bytes: bytes.to_vec(),
            fd: fds.pop(),
        }),
        errno => Err(Errno::from_raw_os_error(errno)),
    })
}

/// Becomes the assistant: leaves the user namespace and carries out the requests on standard input
/// until the other end is closed.
///
/// Call it first in a program started by the command from [`enable`], while it has one thread.
/// Returns only with an error.
pub fn assist() -> Result<Infallible> {
    let here = Path::new("/proc/self");
    let fail = |op: &'static str, e: std::io::Error| Error::new(op, here, e);
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // SAFETY: the flag does not unshare the descriptor table, which is what the function's contract
    // is about.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
        .map_err(|e| fail("leave the user namespace of", e.into()))?;
    let write = |file: &str, text: &str| {
        let path = here.join(file);
        std::fs::write(&path, text).map_err(|e| Error::new("write the id map", path, e))
    };
    write("setgroups", "deny")?;
    write("uid_map", &format!("{uid} {uid} 1\n"))?;
    write("gid_map", &format!("{gid} {gid} 1\n"))?;
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    send(socket, b"here", &[]).map_err(|e| fail("report readiness to the parent of", e.into()))?;
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    loop {
        let (length, fds) = receive(socket, &mut buffer)
            .map_err(|e| fail("receive a request from the parent of", e.into()))?;
        if length == 0 {
            std::process::exit(0);
        }
        let done = match Call::decode(&buffer[..length]) {
            Some(call) => carry_out(&call, &fds),
            None => Err(Errno::INVAL),
        };
        let (errno, answer) = match done {
            Ok(answer) => (0, answer),
            Err(errno) => (errno.raw_os_error(), Answer::default()),
        };
        let mut reply = errno.to_le_bytes().to_vec();
        reply.extend_from_slice(&answer.bytes);
        let fds: Vec<BorrowedFd<'_>> = answer.fd.iter().map(|fd| fd.as_fd()).collect();
        send(socket, &reply, &fds).map_err(|e| fail("answer the parent of", e.into()))?;
    }
}

fn carry_out(call: &Call<'_>, fds: &[OwnedFd]) -> Done<Answer> {
    let one = fds.first().ok_or(Errno::INVAL)?;
    let two = || fds.get(1).ok_or(Errno::INVAL);
    let magic = || format!("/proc/self/fd/{}", one.as_raw_fd());
    let &Call { first, second, .. } = call;
    let mut answer = Answer::default();
    match call.operation {
        Operation::Open => {
            let (flags, mode) = (OFlags::from_bits_retain(call.flags), Mode::empty());
            let resolve = ResolveFlags::from_bits_retain(call.resolve);
            answer.fd = Some(match (first.is_empty(), resolve.is_empty()) {
                (true, _) => rustix::fs::open(magic(), flags - OFlags::NOFOLLOW, mode)?,
                (false, true) => rustix::fs::openat(one, first, flags, mode)?,
                (false, false) => rustix::fs::openat2(one, first, flags, mode, resolve)?,
            });
        }
        Operation::GetXattr => {
            answer.bytes = vec![0; 64 * 1024];
            let length = rustix::fs::getxattr(magic(), first, &mut answer.bytes)?;
            answer.bytes.truncate(length);
        }
        Operation::SetXattr => {
            let flags = XattrFlags::from_bits_retain(call.flags);
            rustix::fs::setxattr(magic(), first, second, flags)?;
        }
        Operation::RemoveXattr => rustix::fs::removexattr(magic(), first)?,
        Operation::Rename => {
            let flags = RenameFlags::from_bits_retain(call.flags);
            rustix::fs::renameat_with(one, first, two()?, second, flags)?;
        }
        Operation::Link if first.is_empty() => {
            let follow = AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(CWD, magic(), two()?, second, follow)?;
        }
        Operation::Link => rustix::fs::linkat(one, first, two()?, second, AtFlags::empty())?,
        Operation::Unlink => {
            let flags = AtFlags::from_bits_retain(call.flags);
            rustix::fs::unlinkat(one, first, flags)?;
        }
    }
    Ok(answer)
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Done<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_A_TIME))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let slices = [IoSlice::new(bytes)];
    loop {
        match rustix::net::sendmsg(socket, &slices, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent.map(drop),
        }
    }
}

/// Returns the length of the message, 0 at the end, and the descriptors that came with it.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Done<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_A_TIME))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket, &mut slices, &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            received => break received?.bytes,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((length, fds))
}

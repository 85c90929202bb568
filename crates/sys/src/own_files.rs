//! What the mode of a user's own file keeps from its owner, done by a process that may do it.
//!
//! An owner can't list a directory of mode 0300, make a name in one of mode 0555 or read an attribute
//! of a file of mode 0, and yet may do all of that after a chmod. A server that shows a union to a
//! plain user must not do that chmod, neither in a lower layer nor, for a moment, in the upper one.
//! Root has CAP_DAC_OVERRIDE and needs none, and in a user namespace of their own all users have that
//! capability over inodes whose owner and group are theirs (user_namespaces(7)).
//!
//! So one small process, the assistant, lives in such a namespace. The first call that fails with
//! EACCES starts it; it does the call again and hands back what it opened. Nobody gains a right: it
//! reaches nothing but what its user could reach after a chmod. It is the same program started again
//! ([`enable`]), which calls [`assist`] at once; it keeps no descriptor but its end of a socket, and
//! ends with the other end.
//!
//! Where plain users may have no user namespaces, what failed stays failed.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// Most descriptors in one message.
const AT_A_TIME: usize = 2;

/// True from [`enable`] on until it turns out that there can be no assistant.
static ENABLED: AtomicBool = AtomicBool::new(false);

static ASSISTANT: Mutex<Assistant> = Mutex::new(Assistant::None);

enum Assistant {
    None,
    /// To be started so.
    Wanted(fn() -> Command),
    Running(fn() -> Command, Running),
}

struct Running {
    socket: OwnedFd,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It ends when the socket is closed; a signal ends it before that, and one that has ended is only waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From now on, what fails for want of permission in this process is tried again by an assistant, if this process lacks the
/// capability that it would need. `start` makes the command that starts this program so that it calls [`assist`] at once.
pub fn enable(start: fn() -> Command) {
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::DAC_OVERRIDE));
    if may {
        return;
    }
    let mut assistant = ASSISTANT.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*assistant, Assistant::None) {
        *assistant = Assistant::Wanted(start);
    }
    ENABLED.store(true, Ordering::Relaxed);
}

/// Opens `path` in `dir` again after `errno`; the empty path is `dir` itself, which may be an `O_PATH` descriptor.
pub(crate) fn open(errno: Errno, dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Done<OwnedFd> {
    open_beneath(errno, dir, path, flags, ResolveFlags::empty())
}

/// As [`open`], resolved as `resolve` says.
pub(crate) fn open_beneath(
    errno: Errno,
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Done<OwnedFd> {
    let path = bytes(path);
    let call = Call::Open {
        dir,
        path,
        flags,
        resolve,
    };
    again(errno, &call).and_then(|answer| answer.fd.ok_or(Errno::ACCESS))
}

/// Opens `name` in `dir` again after `errno`, without using it.
pub(crate) fn open_path(errno: Errno, dir: BorrowedFd<'_>, name: &Path) -> Done<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(errno, dir, name, flags)
}

/// Reads an attribute again after `errno`.
pub(crate) fn get_xattr(errno: Errno, fd: BorrowedFd<'_>, attr: &OsStr) -> Done<Vec<u8>> {
    let attr = of_users(errno, attr)?;
    again(errno, &Call::Get { fd, attr }).map(|answer| answer.bytes)
}

/// Lets only attributes through that the mode protects. Others say who may do what, in numbers that mean something else over there.
fn of_users(errno: Errno, attr: &OsStr) -> Done<&[u8]> {
    let attr = attr.as_encoded_bytes();
    match attr.starts_with(b"user.") {
        true => Ok(attr),
        false => Err(errno),
    }
}

/// Sets an attribute again after `errno`.
pub(crate) fn set_xattr(
    errno: Errno,
    fd: BorrowedFd<'_>,
    attr: &OsStr,
    value: &[u8],
    flags: XattrFlags,
) -> Done<()> {
    let attr = of_users(errno, attr)?;
    let call = Call::Set {
        fd,
        attr,
        value,
        flags,
    };
    again(errno, &call).map(drop)
}

/// Removes an attribute again after `errno`.
pub(crate) fn remove_xattr(errno: Errno, fd: BorrowedFd<'_>, attr: &OsStr) -> Done<()> {
    let attr = of_users(errno, attr)?;
    again(errno, &Call::Remove { fd, attr }).map(drop)
}

/// Renames again after `errno`.
pub(crate) fn rename(
    errno: Errno,
    from: (BorrowedFd<'_>, &Path),
    to: (BorrowedFd<'_>, &Path),
    flags: RenameFlags,
) -> Done<()> {
    again(errno, &Call::Rename { from, to, flags }).map(drop)
}

/// Makes a hard link again after `errno`. The empty name is the descriptor's own file.
pub(crate) fn link(
    errno: Errno,
    from: (BorrowedFd<'_>, &Path),
    to: (BorrowedFd<'_>, &Path),
) -> Done<()> {
    again(errno, &Call::Link { from, to }).map(drop)
}

/// Removes a name again after `errno`.
pub(crate) fn unlink(errno: Errno, dir: BorrowedFd<'_>, name: &Path, flags: AtFlags) -> Done<()> {
    again(errno, &Call::Unlink { dir, name, flags }).map(drop)
}

/// What the assistant can be asked to do.
enum Call<'a> {
    Open {
        dir: BorrowedFd<'a>,
        path: &'a [u8],
        flags: OFlags,
        resolve: ResolveFlags,
    },
    Get {
        fd: BorrowedFd<'a>,
        attr: &'a [u8],
    },
    Set {
        fd: BorrowedFd<'a>,
        attr: &'a [u8],
        value: &'a [u8],
        flags: XattrFlags,
    },
    Remove {
        fd: BorrowedFd<'a>,
        attr: &'a [u8],
    },
    Rename {
        from: (BorrowedFd<'a>, &'a Path),
        to: (BorrowedFd<'a>, &'a Path),
        flags: RenameFlags,
    },
    Link {
        from: (BorrowedFd<'a>, &'a Path),
        to: (BorrowedFd<'a>, &'a Path),
    },
    Unlink {
        dir: BorrowedFd<'a>,
        name: &'a Path,
        flags: AtFlags,
    },
}

/// What a call gave.
#[derive(Default)]
struct Answer {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

/// A message as numbers, two strings and descriptors.
struct Message<'a> {
    what: u32,
    flags: u32,
    resolve: u64,
    first: &'a [u8],
    second: &'a [u8],
}

const OPEN: u32 = 1;
const GET: u32 = 2;
const SET: u32 = 3;
const REMOVE: u32 = 4;
const RENAME: u32 = 5;
const LINK: u32 = 6;
const UNLINK: u32 = 7;

/// Bytes before the strings.
const HEAD: usize = 20;

impl Message<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.first.len() + self.second.len());
        for number in [self.what, self.flags, self.first.len() as u32] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.resolve.to_le_bytes());
        bytes.extend_from_slice(self.first);
        bytes.extend_from_slice(self.second);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Message<'_>> {
        let (head, strings) = bytes.split_at_checked(HEAD)?;
        let number = |at: usize| {
            let four = head.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(four))
        };
        let (first, second) = strings.split_at_checked(number(8)? as usize)?;
        Some(Message {
            what: number(0)?,
            flags: number(4)?,
            resolve: u64::from_le_bytes(head.get(12..20)?.try_into().ok()?),
            first,
            second,
        })
    }
}

impl Call<'_> {
    fn message(&self) -> (Message<'_>, Vec<BorrowedFd<'_>>) {
        let plain = |what, first, second| Message {
            what,
            flags: 0,
            resolve: 0,
            first,
            second,
        };
        match self {
            Call::Open {
                dir,
                path,
                flags,
                resolve,
            } => {
                let message = Message {
                    flags: flags.bits(),
                    resolve: resolve.bits(),
                    ..plain(OPEN, path, b"")
                };
                (message, vec![*dir])
            }
            Call::Get { fd, attr } => (plain(GET, attr, b""), vec![*fd]),
            Call::Set {
                fd,
                attr,
                value,
                flags,
            } => {
                let message = Message {
                    flags: flags.bits(),
                    ..plain(SET, attr, value)
                };
                (message, vec![*fd])
            }
            Call::Remove { fd, attr } => (plain(REMOVE, attr, b""), vec![*fd]),
            Call::Rename { from, to, flags } => {
                let message = Message {
                    flags: flags.bits(),
                    ..plain(RENAME, bytes(from.1), bytes(to.1))
                };
                (message, vec![from.0, to.0])
            }
            Call::Link { from, to } => {
                (plain(LINK, bytes(from.1), bytes(to.1)), vec![from.0, to.0])
            }
            Call::Unlink { dir, name, flags } => {
                let message = Message {
                    flags: flags.bits(),
                    ..plain(UNLINK, bytes(name), b"")
                };
                (message, vec![*dir])
            }
        }
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// Has a call that failed with `errno` done by the assistant. What is no question of permission, or can't be asked, stays failed.
fn again(errno: Errno, call: &Call<'_>) -> Done<Answer> {
    if errno != Errno::ACCESS || !ENABLED.load(Ordering::Relaxed) {
        return Err(errno);
    }
    let mut assistant = ASSISTANT.lock().unwrap_or_else(PoisonError::into_inner);
    let running = match std::mem::replace(&mut *assistant, Assistant::None) {
        Assistant::Running(start, running) => Some((start, running)),
        Assistant::Wanted(start) => match start_assistant(start()) {
            Ok(running) => Some((start, running)),
            Err(error) => {
                tracing::info!(%error, "modes of one's own files stay in the way: no user namespace");
                ENABLED.store(false, Ordering::Relaxed);
                None
            }
        },
        Assistant::None => None,
    };
    let Some((start, running)) = running else {
        return Err(errno);
    };
    match ask(running.socket.as_fd(), call) {
        Ok(answer) => {
            *assistant = Assistant::Running(start, running);
            answer
        }
        Err(broken) => {
            // Somebody has killed it. The next call starts another.
            tracing::warn!(%broken, "the assistant for one's own files has ended");
            *assistant = Assistant::Wanted(start);
            Err(errno)
        }
    }
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

fn ask(socket: BorrowedFd<'_>, call: &Call<'_>) -> Done<Done<Answer>> {
    let (message, fds) = call.message();
    send(socket, &message.encode(), &fds)?;
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    let (length, mut fds) = receive(socket, &mut buffer)?;
    buffer.truncate(length);
    let Some((errno, bytes)) = buffer.split_at_checked(4) else {
        return Err(Errno::PIPE);
    };
    let errno = i32::from_le_bytes([errno[0], errno[1], errno[2], errno[3]]);
    Ok(match errno {
        0 => Ok(Answer {
            bytes: bytes.to_vec(),
            fd: fds.pop(),
        }),
        errno => Err(Errno::from_raw_os_error(errno)),
    })
}

/// Becomes the assistant: leaves the user namespace and does what is asked on standard input until its other end is closed.
///
/// To be called first thing in a program started by what [`enable`] was given, while it has one thread. Returns only with an error.
pub fn assist() -> Result<Infallible> {
    let here = Path::new("/proc/self");
    let fail = |op: &'static str, e: std::io::Error| Error::new(op, here, e);
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // SAFETY: the flag does not unshare the descriptor table, which is what the function's contract is about.
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
    send(socket, b"here", &[]).map_err(|e| fail("greet who started", e.into()))?;
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    loop {
        let (length, fds) =
            receive(socket, &mut buffer).map_err(|e| fail("hear from who started", e.into()))?;
        if length == 0 {
            std::process::exit(0);
        }
        let done = match Message::decode(&buffer[..length]) {
            Some(message) => carry_out(&message, &fds),
            None => Err(Errno::INVAL),
        };
        let (errno, answer) = match done {
            Ok(answer) => (0, answer),
            Err(errno) => (errno.raw_os_error(), Answer::default()),
        };
        let mut reply = errno.to_le_bytes().to_vec();
        reply.extend_from_slice(&answer.bytes);
        let fds: Vec<BorrowedFd<'_>> = answer.fd.iter().map(|fd| fd.as_fd()).collect();
        send(socket, &reply, &fds).map_err(|e| fail("answer who started", e.into()))?;
    }
}

fn carry_out(message: &Message<'_>, fds: &[OwnedFd]) -> Done<Answer> {
    let one = fds.first().ok_or(Errno::INVAL)?;
    let two = || fds.get(1).ok_or(Errno::INVAL);
    let magic = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let (first, second) = (message.first, message.second);
    match message.what {
        OPEN => {
            let flags = OFlags::from_bits_retain(message.flags);
            let mode = Mode::empty();
            let resolve = ResolveFlags::from_bits_retain(message.resolve);
            let fd = match (first.is_empty(), resolve.is_empty()) {
                (true, _) => rustix::fs::open(magic(one), flags - OFlags::NOFOLLOW, mode)?,
                (false, true) => rustix::fs::openat(one, first, flags, mode)?,
                (false, false) => rustix::fs::openat2(one, first, flags, mode, resolve)?,
            };
            Ok(Answer {
                bytes: Vec::new(),
                fd: Some(fd),
            })
        }
        GET => {
            let mut value = vec![0; 64 * 1024];
            let length = rustix::fs::getxattr(magic(one), first, &mut value)?;
            value.truncate(length);
            Ok(Answer {
                bytes: value,
                fd: None,
            })
        }
        SET => {
            let flags = XattrFlags::from_bits_retain(message.flags);
            rustix::fs::setxattr(magic(one), first, second, flags).map(|()| Answer::default())
        }
        REMOVE => rustix::fs::removexattr(magic(one), first).map(|()| Answer::default()),
        RENAME => {
            let flags = RenameFlags::from_bits_retain(message.flags);
            rustix::fs::renameat_with(one, first, two()?, second, flags).map(|()| Answer::default())
        }
        LINK => match first.is_empty() {
            true => {
                let follow = AtFlags::SYMLINK_FOLLOW;
                rustix::fs::linkat(CWD, magic(one), two()?, second, follow)
            }
            false => rustix::fs::linkat(one, first, two()?, second, AtFlags::empty()),
        }
        .map(|()| Answer::default()),
        UNLINK => {
            let flags = AtFlags::from_bits_retain(message.flags);
            rustix::fs::unlinkat(one, first, flags).map(|()| Answer::default())
        }
        _ => Err(Errno::NOSYS),
    }
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

/// Returns how long the message was, 0 at the end, and the descriptors that came with it.
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

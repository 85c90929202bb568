//! User namespaces: how a plain user gets a range of ids and can mount.
//!
//! A plain user's mounts live in its own user and mount namespace. Namespaces end with their last
//! process, so one small process, the holder, keeps them; every command joins it. The steps of
//! creation:
//!
//! 1. the command starts its own program again as the holder ([`spawn_holder`]);
//! 2. the holder leaves its namespaces ([`hold`]) and says so;
//! 3. the command, still outside, writes the id maps with `newuidmap` and `newgidmap` (or the one
//!    id every user may map);
//! 4. the command notifies the holder, which detaches from the terminal and sleeps;
//! 5. commands [`join`] it, before they have a second thread: the kernel lets no process with
//!    threads change its user namespace.
//!
//! The holder is identified by process id and start time, so a reused id is not mistaken for it.
//! This module does not know where the holder's record is kept.

use std::ffi::{CStr, OsString};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};
use vellum_format::{IdRun, ids};

use crate::{Error, Result};

/// The user and group ids of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMaps {
    /// User ids, not overlapping.
    pub uids: Vec<IdRun>,
    /// Group ids, not overlapping.
    pub gids: Vec<IdRun>,
}

impl IdMaps {
    /// Maps id 0 to the caller and nothing else: every user may do this without help.
    pub fn single(uid: u32, gid: u32) -> IdMaps {
        let one = |outside| {
            vec![IdRun {
                inside: 0,
                outside,
                count: 1,
            }]
        };
        IdMaps {
            uids: one(uid),
            gids: one(gid),
        }
    }

    /// True if only one user and one group exist inside.
    pub fn is_single(&self) -> bool {
        let one = |runs: &[IdRun]| runs.iter().map(|r| u64::from(r.count)).sum::<u64>() <= 1;
        one(&self.uids) && one(&self.gids)
    }

    /// Maps id 0 to the caller and the ids from 1 on to the ranges `/etc/subuid` and `/etc/subgid`
    /// grant, by name or by number. `None` if either file grants nothing. See subuid(5).
    pub fn with_subids(
        uid: u32,
        gid: u32,
        name: &str,
        subuid: &str,
        subgid: &str,
    ) -> Option<IdMaps> {
        let runs = |own: u32, text: &str| {
            let mut runs = vec![IdRun {
                inside: 0,
                outside: own,
                count: 1,
            }];
            let mut inside = 1;
            for line in text.lines() {
                let mut fields = line.trim().split(':');
                let (Some(who), Some(first), Some(count)) =
                    (fields.next(), fields.next(), fields.next())
                else {
                    continue;
                };
                let (Ok(outside), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else {
                    continue;
                };
                let is_ours = !who.is_empty() && (who == name || who.parse() == Ok(uid));
                if is_ours
                    && count > 0
                    && let Some(run) = IdRun::new(inside, outside, count)
                {
                    runs.push(run);
                    inside += count;
                }
            }
            (runs.len() > 1).then_some(runs)
        };
        Some(IdMaps {
            uids: runs(uid, subuid)?,
            gids: runs(gid, subgid)?,
        })
    }

    /// Returns the maps available to the calling user: those of [`IdMaps::with_subids`], or the
    /// single id.
    pub fn for_caller() -> IdMaps {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let name = user_name(uid).unwrap_or_default();
        IdMaps::with_subids(uid, gid, &name, &read("/etc/subuid"), &read("/etc/subgid"))
            .unwrap_or_else(|| IdMaps::single(uid, gid))
    }

    /// Returns the maps of the namespace this process is in.
    pub fn current() -> Result<IdMaps> {
        let read = |path: &str| -> Result<Vec<IdRun>> {
            let text = std::fs::read_to_string(path)
                .map_err(|e| Error::new("read the id map", path, e))?;
            Ok(ids::parse_kernel(&text))
        };
        Ok(IdMaps {
            uids: read("/proc/self/uid_map")?,
            gids: read("/proc/self/gid_map")?,
        })
    }

    /// Returns what user `uid` and group `gid`, as seen inside, are outside; `None` for ids that do
    /// not exist inside.
    pub fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((
            ids::outside_of(&self.uids, uid)?,
            ids::outside_of(&self.gids, gid)?,
        ))
    }
}

/// True if this process is in the first user namespace, where ids are not mapped.
///
/// The map does not show this: a process that may map all ids of the surrounding namespace gets one
/// that looks the same, as Buildah's root does in a container without CAP_SYS_ADMIN.
pub fn is_initial() -> bool {
    /// The kernel's fixed number for it (`PROC_USER_INIT_INO`).
    const FIRST: &str = "user:[4026531837]";
    match std::fs::read_link("/proc/self/ns/user") {
        Ok(link) => link.as_os_str() == FIRST,
        // A kernel without user namespaces has only the first.
        Err(_) => true,
    }
}

/// Returns the login name of `uid`, if the system knows one.
pub fn user_name(uid: u32) -> Option<String> {
    let mut buf = vec![0; 16 * 1024];
    // SAFETY: an all-zero passwd is a valid value of this plain C structure; it is only read after
    // the call filled it.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to live, exclusively borrowed memory, and the length is that of
    // `buf`.
    let done = unsafe {
        libc::getpwuid_r(
            uid,
            &raw mut entry,
            buf.as_mut_ptr(),
            buf.len(),
            &raw mut found,
        )
    };
    if done != 0 || found.is_null() || entry.pw_name.is_null() {
        return None;
    }
    // SAFETY: on success pw_name is a NUL-terminated string inside `buf`, which is still alive.
    let name = unsafe { CStr::from_ptr(entry.pw_name) };
    name.to_str().ok().map(str::to_string)
}

/// The process that keeps a user's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Its start time, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Holder {
    /// True if the process still runs and is the same one.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Stops the holder; its mounts end with it and with the last process that joined. False if it
    /// was already gone.
    pub fn stop(&self) -> Result<bool> {
        let Some(pidfd) = self.pidfd()? else {
            return Ok(false);
        };
        rustix::process::pidfd_send_signal(&pidfd, Signal::TERM)
            .map_err(|e| Error::new("stop the namespace holder", self.proc_path(), e))?;
        Ok(true)
    }

    /// Opens the process, or `None` if it is gone. The start time is compared after opening: from
    /// then on the descriptor can't refer to another process.
    fn pidfd(&self) -> Result<Option<std::os::fd::OwnedFd>> {
        let fail =
            |e: rustix::io::Errno| Error::new("open the namespace holder", self.proc_path(), e);
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) if self.is_alive() => Ok(Some(fd)),
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(e) => Err(fail(e)),
        }
    }

    fn proc_path(&self) -> std::path::PathBuf {
        format!("/proc/{}", self.pid).into()
    }
}

/// Returns the start time of process `pid`, in clock ticks since boot; `None` if it is gone or a
/// zombie.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may contain anything, so count from the last one.
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    let fields: Vec<&str> = std::str::from_utf8(&stat[after..])
        .ok()?
        .split_whitespace()
        .collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Starts `command`, which must call [`hold`] at once, as a holder with the id maps `maps`.
///
/// Its standard input and output are used for the conversation. Errors: a line in the source that
/// says which step failed; nothing keeps running then.
pub fn spawn_holder(command: &mut Command, maps: &IdMaps) -> Result<Holder> {
    let program = OsString::from(command.get_program());
    let fail = |op: &'static str, e: io::Error| Error::new(op, &program, e);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| fail("start the namespace holder", e))?;
    let pid = child.id();
    let mut talk = || -> Result<()> {
        let (Some(to), Some(from)) = (child.stdin.as_mut(), child.stdout.as_mut()) else {
            return Err(fail(
                "communicate with the namespace holder",
                io::ErrorKind::BrokenPipe.into(),
            ));
        };
        expect(from, b'u').map_err(|e| fail("leave the user namespace in", e))?;
        write_maps(pid, maps)?;
        to.write_all(b"m")
            .and_then(|()| expect(from, b'r'))
            .map_err(|e| fail("finish setting up the namespace holder", e))
    };
    let told = talk();
    let ticks = start_ticks(pid);
    match (told, ticks) {
        (Ok(()), Some(start_ticks)) => Ok(Holder { pid, start_ticks }),
        (told, _) => {
            // It may have ended by itself; its own output is then the best explanation.
            let _ = child.kill();
            let mut said = String::new();
            if let Some(mut err) = child.stderr.take() {
                let _ = err.read_to_string(&mut said);
            }
            let _ = child.wait();
            let e = told.err().unwrap_or_else(|| {
                fail(
                    "find the new namespace holder",
                    io::ErrorKind::NotFound.into(),
                )
            });
            match said.trim() {
                "" => Err(e),
                said => Err(Error {
                    source: io::Error::new(e.source.kind(), format!("{}: {said}", e.source)),
                    ..e
                }),
            }
        }
    }
}

fn expect(from: &mut impl Read, wanted: u8) -> io::Result<()> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    if byte[0] != wanted {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "unexpected message from the other side",
        ));
    }
    Ok(())
}

fn write_maps(pid: u32, maps: &IdMaps) -> Result<()> {
    if maps.is_single() {
        // Without privilege a group map is only accepted once setgroups(2) is denied.
        write_proc(pid, "setgroups", "deny")?;
        write_proc(pid, "uid_map", &map_text(&maps.uids))?;
        return write_proc(pid, "gid_map", &map_text(&maps.gids));
    }
    run_mapper("newuidmap", pid, &maps.uids)?;
    run_mapper("newgidmap", pid, &maps.gids)
}

fn write_proc(pid: u32, file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::write(&path, text).map_err(|e| Error::new("write the id map", path, e))
}

fn map_text(runs: &[IdRun]) -> String {
    runs.iter().map(|run| format!("{run}\n")).collect()
}

fn run_mapper(program: &str, pid: u32, runs: &[IdRun]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for run in runs {
        command.args([run.inside, run.outside, run.count].map(|n| n.to_string()));
    }
    let fail = |e: io::Error| Error::new("map ids with", program, e);
    let out = command.stdin(Stdio::null()).output().map_err(fail)?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).trim().to_string();
        return Err(fail(io::Error::new(io::ErrorKind::PermissionDenied, said)));
    }
    Ok(())
}

/// Becomes the holder: leaves user and mount namespace, waits for its id maps, then sleeps until
/// stopped.
///
/// Call it first in a program started by [`spawn_holder`], while it has one thread. Returns only
/// with an error.
pub fn hold() -> Result<std::convert::Infallible> {
    let here = Path::new("/proc/self");
    let fail = |op: &'static str, e: io::Error| Error::new(op, here, e);
    // SAFETY: neither flag unshares the descriptor table, which is what the function's contract is
    // about.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .map_err(|e| fail("leave the user and mount namespace of", e.into()))?;
    let say = |byte: &[u8]| {
        io::stdout()
            .write_all(byte)
            .and_then(|()| io::stdout().flush())
    };
    say(b"u").map_err(|e| fail("report to the parent of", e))?;
    expect(&mut io::stdin(), b'm').map_err(|e| fail("get the id maps for", e))?;
    // Mounts made here must not show outside; mounts made outside may still show here.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::DOWNSTREAM
            | rustix::mount::MountPropagationFlags::REC,
    )
    .map_err(|e| fail("make private the mounts of", e.into()))?;
    // Its own process group, so that Ctrl-C at the terminal ends the command and not the holder.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").map_err(|e| fail("leave the working directory of", e.into()))?;
    say(b"r").map_err(|e| fail("report to the parent of", e))?;
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| Error::new("open", "/dev/null", e))?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .map_err(|e| fail("detach from the terminal of", e.into()))?;
    loop {
        std::thread::park();
    }
}

/// Enters the namespaces that `holder` keeps: from here on this process has id 0 and every
/// privilege inside, none outside, and sees the mounts made there. The working directory stays the
/// same path.
///
/// Returns false if the holder is gone. Errors: EINVAL if this process has more than one thread.
pub fn join(holder: &Holder) -> Result<bool> {
    let Some(pidfd) = holder.pidfd()? else {
        return Ok(false);
    };
    let directory = std::env::current_dir().ok();
    let both = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    match rustix::thread::move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&pidfd), both) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(e) => return Err(Error::new("join the namespaces of", holder.proc_path(), e)),
    }
    // The kernel has moved us to the namespace's root; if our directory does not exist inside, we
    // stay there.
    if let Some(directory) = directory {
        let _ = rustix::process::chdir(&directory);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_follow_the_callers_own() {
        let subuid = "other:100000:65536\nann:200000:65536\n1000:300000:10\nann:bad:1\n\n# x\n";
        let maps = IdMaps::with_subids(1000, 1001, "ann", subuid, "ann:500000:65536").unwrap();
        let run = |inside, outside, count| IdRun {
            inside,
            outside,
            count,
        };
        assert_eq!(
            maps.uids,
            [
                run(0, 1000, 1),
                run(1, 200_000, 65536),
                run(65537, 300_000, 10)
            ]
        );
        assert_eq!(maps.gids, [run(0, 1001, 1), run(1, 500_000, 65536)]);
        assert!(!maps.is_single());
        assert_eq!(maps.outside(0, 0), Some((1000, 1001)));
        assert_eq!(maps.outside(65537, 65536), Some((300_000, 565_535)));
        assert_eq!(maps.outside(70_000, 0), None);
        assert_eq!(IdMaps::with_subids(1000, 1000, "ann", subuid, ""), None);
        assert_eq!(IdMaps::with_subids(7, 7, "bob", subuid, subuid), None);
        assert_eq!(IdMaps::with_subids(0, 0, "", ":1:2", ":1:2"), None);
        assert_eq!(
            IdMaps::with_subids(1, 1, "x", "x:4294967290:10", "x:1:4294967295"),
            None
        );
        assert!(IdMaps::single(5, 6).is_single());
    }

    #[test]
    fn names_and_start_times_are_found() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(4_000_000_000), None);
        let me = start_ticks(std::process::id()).unwrap();
        assert!(
            Holder {
                pid: std::process::id(),
                start_ticks: me
            }
            .is_alive()
        );
        assert!(
            !Holder {
                pid: std::process::id(),
                start_ticks: me + 1
            }
            .is_alive()
        );
        assert_eq!(start_ticks(u32::MAX), None);
        assert_eq!(
            Holder {
                pid: 1,
                start_ticks: u64::MAX
            }
            .stop()
            .ok(),
            Some(false)
        );
    }
}

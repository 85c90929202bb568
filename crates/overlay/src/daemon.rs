//! The process that serves a mount. The process that asked for the mount waits until it is served,
//! or learns why it can't be.
//!
//! A program with threads can't fork safely, and a forked child inherits its descriptors. So the
//! same program is executed again, with the same arguments after [`SERVE_ARGUMENT`], in a session
//! of its own. Its standard output is a pipe to the parent. When the mount is served, it writes one
//! word there and closes all three standard descriptors, so a caller that waits for the end of a
//! pipe (containers/storage does) continues. If it ends earlier, it has written the reason to the
//! standard error that it was given, and its exit code is passed on.
//!
//! This module must not know what is mounted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};

/// The first argument of a process that serves at once. Not for users.
pub const SERVE_ARGUMENT: &str = "__serve-overlay";

/// The first argument of a process that assists a server: see [`vellum_sys::own_files`]. Not for
/// users.
pub const ASSIST_ARGUMENT: &str = "__assist-overlay";

const READY: &[u8] = b"ready\n";

/// Executes this program again as a daemon and waits until it is ready. Returns the exit code for
/// the caller: 0 if it serves.
///
/// `called_as` is the name that it sees, and `ps` shows, as its own. `arguments` follow
/// [`SERVE_ARGUMENT`] and name `target` as the mount point.
pub fn start(called_as: &OsStr, arguments: &[OsString], target: &Path) -> Result<i32> {
    start_with(called_as, arguments, target, Stdio::inherit()).map(|(code, _)| code)
}

/// Like [`start`] for `vellum overlay` with these arguments, but returns the failure instead of
/// printing it.
pub fn start_overlay(arguments: &[OsString], target: &Path) -> Result<()> {
    let mut all = vec![OsString::from("overlay")];
    all.extend_from_slice(arguments);
    let (code, said) = start_with(OsStr::new("vellum"), &all, target, Stdio::piped())?;
    match code {
        0 => Ok(()),
        _ => Err(Error::Engine {
            said: String::from_utf8_lossy(&said)
                .trim()
                .replacen("error: ", "", 1),
        }),
    }
}

/// Returns the exit code and, if it failed, what it wrote to a piped standard error.
fn start_with(
    called_as: &OsStr,
    arguments: &[OsString],
    target: &Path,
    errors: Stdio,
) -> Result<(i32, Vec<u8>)> {
    let program = Path::new("/proc/self/exe");
    let failed = |source| Error::Program {
        program: program.into(),
        source,
    };
    let mut child = Command::new(program)
        .arg0(called_as)
        .arg(SERVE_ARGUMENT)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(failed)?;
    let mut said = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        // Ends when the word has been written, or with the process.
        pipe.read_to_end(&mut said).map_err(failed)?;
    }
    if said == READY {
        // The serving process must not ask this itself: see `vellum_fuse::mount`.
        return match std::fs::metadata(target) {
            Ok(_) => Ok((0, Vec::new())),
            Err(source) => {
                // If it has ended by now, no process is left to signal.
                let _ = kill_process(Pid::from_child(&child), Signal::TERM);
                Err(Error::Silent {
                    target: target.to_owned(),
                    source,
                })
            }
        };
    }
    let mut complaint = Vec::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_end(&mut complaint).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let code = match status.code() {
        // It ended without an error before it was ready: the mount was gone before it answered.
        Some(0) => 1,
        Some(code) => code,
        None => 128 + status.signal().unwrap_or(0),
    };
    Ok((code, complaint))
}

/// Becomes a daemon as far as possible before the mount exists: leads a session of its own.
///
/// Call it before the first thread starts. None of these steps is needed to serve.
pub fn begin() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Fails for a process group's leader; it has a group of its own already.
    let _ = rustix::process::setsid();
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    // The caches size themselves by this limit.
    let _ = setrlimit(Resource::Nofile, most);
    // Every process on the mount waits for this one. Only root may lower the score.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
}

/// Returns the command that starts this program as a server's assistant.
pub(super) fn assistant() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vellum-own-files").arg(ASSIST_ARGUMENT);
    command
}

/// Becomes the assistant. Returns only with an error; the server continues without it.
pub fn assist() -> vellum_sys::Error {
    match vellum_sys::own_files::assist() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Reports that the mount answers, and lets go of the terminal and of the working directory.
///
/// Fails if the parent no longer waits. Then no process knows of the mount, so the caller unmounts
/// it.
pub fn ready(log: Option<&Path>) -> Result<()> {
    let io = |action: &'static str, path: &str| Error::io(action, path.to_owned());
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(io("open", "/dev/null"))?;
    std::env::set_current_dir("/").map_err(io("enter", "/"))?;
    let mut out = std::io::stdout();
    out.write_all(READY)
        .and_then(|()| out.flush())
        .map_err(io("report readiness to", "the parent process"))?;
    let errors = match log {
        None => None,
        Some(path) => {
            let file = File::options().append(true).create(true).open(path);
            Some(file.map_err(Error::io("open", path))?)
        }
    };
    let replaced = rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stderr(errors.as_ref().unwrap_or(&null)))
        .and_then(|()| rustix::stdio::dup2_stdout(&null));
    replaced.map_err(|errno| io("replace", "the standard descriptors")(errno.into()))
}

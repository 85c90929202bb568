//! The process that serves a mount: started so that whoever asked for the mount gets it, or gets
//! told why not, before he goes on.
//!
//! A program with threads can't fork, and a forked one keeps what it was handed. So the same
//! program is started again, with the same arguments behind [`SERVE_ARGUMENT`], in a session of its
//! own; its standard output is a pipe to the one who started it. When the mount is served it writes
//! one word there and then closes all three standard descriptors: a caller that waits for the end
//! of a pipe (containers/storage does) goes on. If it ends before, it has said why on the standard
//! error it was given, and its exit code is passed on.
//!
//! It must not know what is mounted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};

/// The first argument of a program that is to serve at once. Not for users.
pub const SERVE_ARGUMENT: &str = "__serve-overlay";

/// The first argument of a program that is to help one that serves: see [`vellum_sys::own_files`].
/// Not for users.
pub const ASSIST_ARGUMENT: &str = "__assist-overlay";

const READY: &[u8] = b"ready\n";

/// Starts this program again as a daemon and waits until it is ready. Returns the exit code for the
/// caller: 0 if it serves.
///
/// `called_as` is what it is to see (and `ps` to show) as its own name; `arguments` come behind
/// [`SERVE_ARGUMENT`], and have it mount on `target`.
pub fn start(called_as: &OsStr, arguments: &[OsString], target: &Path) -> Result<i32> {
    start_with(called_as, arguments, target, Stdio::inherit()).map(|(code, _)| code)
}

/// As [`start`] of `vellum overlay` with these arguments; what goes wrong is returned and not
/// printed.
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

/// Returns the exit code, and what it said on a piped standard error if it failed.
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
        // Its end comes with the word, or with the process.
        pipe.read_to_end(&mut said).map_err(failed)?;
    }
    if said == READY {
        // Who serves may not ask this himself: see `vellum_fuse::mount`.
        return match std::fs::metadata(target) {
            Ok(_) => Ok((0, Vec::new())),
            Err(source) => {
                // If it has ended meanwhile, there is nobody to be told.
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
        // It ended well without ever being ready: the mount was gone before it answered.
        Some(0) => 1,
        Some(code) => code,
        None => 128 + status.signal().unwrap_or(0),
    };
    Ok((code, complaint))
}

/// Becomes a daemon as far as can be before the mount is there: leads a session of its own.
///
/// To be called before the first thread. Failing at one of these is no reason not to serve.
pub fn begin() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Refused to whoever leads a group already: then he does so alone.
    let _ = rustix::process::setsid();
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    // The caches keep to what there is.
    let _ = setrlimit(Resource::Nofile, most);
    // Everybody on the mount waits for this process. Only root may ask for it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
}

/// Makes the command that starts this program as the assistant of one that serves.
pub(super) fn assistant() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vellum-own-files").arg(ASSIST_ARGUMENT);
    command
}

/// Becomes the assistant. Returns only with an error; who started it goes on without.
pub fn assist() -> vellum_sys::Error {
    match vellum_sys::own_files::assist() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Says that the mount answers, and lets go of the terminal and of the directory this was started
/// in.
///
/// Errors if nobody waits any more: then nobody knows of the mount, and it is to be taken away.
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
        .map_err(io("write", "<the one who asked for the mount>"))?;
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
    replaced.map_err(|errno| io("replace", "<the standard descriptors>")(errno.into()))
}

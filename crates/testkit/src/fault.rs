//! Faults below a shipped program: the n-th system call of a type kills it, or fails.
//! ([`crate::seam`] does it to a piece of code, at every call, in a fraction of the time.)
//!
//! The program runs under `strace`, which counts and injects, so nothing in it knows that it is
//! being tested. A kill comes at the call's entry: neither the call nor anything after it happens.
//! Counting is per thread, so in a multi-threaded program "the n-th" means the n-th of whichever
//! thread gets there first.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// What happens at the n-th call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// SIGKILL, as in a power failure.
    Kill,
    /// The call fails with this error (`ENOSPC`, `EIO`) and is not made; later ones succeed.
    Fail(&'static str),
    /// The call and all later ones of its kind fail with this error.
    FailFrom(&'static str),
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Run {
    /// Whether the program got as far as the n-th call.
    pub hit: bool,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard error.
    pub stderr: String,
}

/// The calls that change something on disk, grouped by type with all their names.
pub const CHANGES: [&str; 10] = [
    "mkdir,mkdirat",
    "rename,renameat,renameat2",
    "link,linkat",
    "symlink,symlinkat",
    "unlink,unlinkat,rmdir",
    "write",
    "pwrite64",
    "fsync,fdatasync",
    "syncfs",
    "ftruncate",
];

/// True if strace is installed and may trace here; otherwise the test is reported as untested.
pub fn available() -> bool {
    let tried = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .status();
    if tried.is_ok_and(|status| status.success()) {
        return true;
    }
    crate::untested(
        "faults below a program",
        "strace is missing or may not trace",
    );
    false
}

/// Runs `program` with `arguments`, and `effect` at the `n`-th (from 1) of the calls named in
/// `calls`.
///
/// Panics if strace can't be started.
pub fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    environment: &[(&str, &OsStr)],
    calls: &str,
    effect: Effect,
    n: u32,
) -> Run {
    let log = tempfile::NamedTempFile::new().expect("a place for strace's output");
    let what = match effect {
        Effect::Kill => format!("signal=SIGKILL:when={n}"),
        Effect::Fail(error) => format!("error={error}:when={n}"),
        Effect::FailFrom(error) => format!("error={error}:when={n}+"),
    };
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(log.path())
        .arg(format!("-etrace={calls}"))
        .arg(format!("-einject={calls}:{what}"))
        .arg(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .expect("strace starts");
    let text = std::fs::read(log.path()).expect("strace's output");
    let text = String::from_utf8_lossy(&text);
    let hit = match effect {
        Effect::Kill => text.contains("killed by SIGKILL"),
        Effect::Fail(_) | Effect::FailFrom(_) => text.contains("(INJECTED)"),
    };
    Run {
        hit,
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `attempt` for n = 1, 2, ... until the program is no longer hit, and returns how often it
/// was.
///
/// `attempt` sets up, calls [`run`] with its n, checks what is left, and returns what `run`
/// returned. Panics after `limit` hits: then the test does not do what it should.
pub fn each(limit: u32, mut attempt: impl FnMut(u32) -> Run) -> u32 {
    for n in 1..=limit {
        if !attempt(n).hit {
            return n - 1;
        }
    }
    panic!("still hit after {limit} runs");
}

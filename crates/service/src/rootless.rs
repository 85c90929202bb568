//! Working without root: one user namespace a user, kept by a holder process and entered by every
//! command.
//!
//! Which ids there are is decided by `/etc/subuid` and `/etc/subgid`; a user without an entry gets
//! his own id alone, and owners are then kept as records. The holder is noted in the run directory;
//! the note names its boot and start time, so neither a reboot nor a process number used again
//! deceives. All mounts live in the holder's mount namespace and end with it; they are made anew by
//! the next `mount`.
//!
//! [`enter`] has to come before the first thread: a process with threads can't change its user
//! namespace.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::userns::{self, Holder, IdMaps};
use vellum_sys::{Dir, publish};

use crate::error::{Error, Result};
use crate::home;

/// The only argument of a program that is to call [`hold`] at once. Not for users.
pub const HOLD_ARGUMENT: &str = "__hold-namespaces";

const NOTE: &str = "holder.json";
const LOCK: &str = "holder.lock";

/// Who is asking, before anything is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// True for a plain user, also inside a user namespace of his.
    pub rootless: bool,
    /// The user's number outside any namespace of his, for paths like `/run/user/1000`.
    pub uid: u32,
    /// True if [`enter`] is needed: a plain user outside any namespace.
    pub needs_namespace: bool,
}

/// Returns who is asking.
pub fn identity() -> Identity {
    let uid = rustix::process::geteuid().as_raw();
    if userns::is_initial() {
        return Identity {
            rootless: uid != 0,
            uid,
            needs_namespace: uid != 0,
        };
    }
    let outside = IdMaps::current()
        .ok()
        .and_then(|maps| maps.outside(uid, 0))
        .map_or(uid, |(uid, _)| uid);
    Identity {
        rootless: true,
        uid: outside,
        needs_namespace: uid != 0,
    }
}

#[derive(Serialize, Deserialize)]
struct Note {
    boot: String,
    pid: u32,
    start_ticks: u64,
}

/// Enters the user's namespaces, starting their holder if it does not run.
///
/// From here on this process is id 0 inside and sees the mounts made there. `run_dir` is made if
/// need be and must belong to the user alone. Errors: `Namespace` if there can be none, `Io` if the
/// run directory is not to be trusted.
pub fn enter(run_dir: &Path) -> Result<()> {
    let me = rustix::process::geteuid().as_raw();
    let foreign = || Error::Invalid {
        what: format!(
            "the run directory {} belongs to somebody else or is open to others",
            run_dir.display()
        ),
        hint: Some("name another one with --run-dir or VELLUM_RUN_DIR".into()),
    };
    // Beneath `/tmp` anybody may have put something there first: a directory, or a link to one of
    // ours.
    if std::fs::symlink_metadata(run_dir).is_ok_and(|found| found.uid() != me) {
        return Err(foreign());
    }
    let dir = home::make_run_dir(run_dir)?;
    let stat = dir.stat_self()?;
    if stat.uid != me || stat.mode & 0o022 != 0 {
        return Err(foreign());
    }
    if let Some(holder) = noted(&dir)
        && userns::join(&holder).map_err(Error::Namespace)?
    {
        return Ok(());
    }
    // Two first commands at once must not make two worlds.
    let file = match dir.create_file(LOCK, 0o600) {
        Ok(file) => file,
        Err(e) if e.is_exists() => {
            dir.open_file_for(LOCK, vellum_sys::rooted::Access::ReadWrite)?
        }
        Err(e) => return Err(e.into()),
    };
    let _only_one = Lock::wait(file, Sharing::Exclusive)?;
    if let Some(holder) = noted(&dir)
        && userns::join(&holder).map_err(Error::Namespace)?
    {
        return Ok(());
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vellum-namespaces").arg(HOLD_ARGUMENT);
    let holder =
        userns::spawn_holder(&mut command, &IdMaps::for_caller()).map_err(Error::Namespace)?;
    let note = Note {
        boot: home::boot_id(),
        pid: holder.pid,
        start_ticks: holder.start_ticks,
    };
    let text =
        serde_json::to_vec(&note).map_err(|e| Error::io("write", run_dir.join(NOTE))(e.into()))?;
    let written = publish::write_file_atomic(&dir, OsStr::new(NOTE), &text, 0o600);
    let joined = written.and_then(|()| userns::join(&holder));
    match joined {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Namespace(vellum_sys::Error::new(
            "keep the namespace holder",
            format!("/proc/{}", holder.pid),
            std::io::Error::from(std::io::ErrorKind::NotFound),
        ))),
        Err(e) => {
            // Nobody would find it again.
            let _ = holder.stop();
            Err(Error::Namespace(e))
        }
    }
}

/// Becomes the holder. Returns only with an error, to be printed.
pub fn hold() -> vellum_sys::Error {
    match userns::hold() {
        Err(e) => e,
        Ok(never) => match never {},
    }
}

/// Ends the holder noted in `run_dir`, and with it all mounts of the user that no process uses.
/// False if none runs.
pub fn stop(run_dir: &Path) -> Result<bool> {
    let dir = match Dir::open(run_dir) {
        Ok(dir) => dir,
        Err(e) if e.is_not_found() => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    match noted(&dir) {
        Some(holder) => Ok(holder.stop()?),
        None => Ok(false),
    }
}

fn noted(dir: &Dir) -> Option<Holder> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = dir.open_file(NOTE).ok()?;
    // Somebody else's note would send us into his namespaces.
    if file.metadata().ok()?.uid() != dir.stat_self().ok()?.uid {
        return None;
    }
    file.take(64 * 1024).read_to_end(&mut text).ok()?;
    let note: Note = serde_json::from_slice(&text).ok()?;
    (note.boot == home::boot_id()).then_some(Holder {
        pid: note.pid,
        start_ticks: note.start_ticks,
    })
}

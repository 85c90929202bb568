//! Working without root: one user namespace for each user, kept by a holder process and entered by
//! every command.
//!
//! `/etc/subuid` and `/etc/subgid` decide which ids there are. A user without an entry gets only
//! its own id, and owners are then kept as records. A note in the run directory names the holder,
//! its boot and start time, so neither a reboot nor a reused process id deceives. All mounts are in
//! the holder's mount namespace and end with it; the next `mount` creates them again.
//!
//! [`enter`] must come before the first thread: a process with threads can't change its user
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

/// The only argument of a process that immediately calls [`hold`]. Not for users.
pub const HOLD_ARGUMENT: &str = "__hold-namespaces";

const NOTE: &str = "holder.json";
const LOCK: &str = "holder.lock";

/// The user, before any namespace is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// True for a plain user, also inside the user's own namespace.
    pub rootless: bool,
    /// The user's id outside any namespace, for paths like `/run/user/1000`.
    pub uid: u32,
    /// True if [`enter`] is needed: a plain user outside any namespace.
    pub needs_namespace: bool,
}

/// Returns the process's user.
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

/// Enters the user's namespaces; starts their holder if it does not run.
///
/// From now on this process has id 0 inside and sees the mounts made there. Creates `run_dir` if
/// needed; it must belong to the user alone. Errors: `Namespace` if there can be none, `Io` if the
/// run directory can't be trusted.
pub fn enter(run_dir: &Path) -> Result<()> {
    let me = rustix::process::geteuid().as_raw();
    let foreign = || Error::Invalid {
        what: format!(
            "the run directory {} belongs to another user or is open to others",
            run_dir.display()
        ),
        hint: Some("name another one with --run-dir or VELLUM_RUN_DIR".into()),
    };
    // Beneath `/tmp` any user may have put something there first: a directory, or a link to one of
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
    // Two first commands at once must not create two namespaces.
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
            // No later command would find it.
            let _ = holder.stop();
            Err(Error::Namespace(e))
        }
    }
}

/// Becomes the holder. Returns only with an error for the caller to print.
pub fn hold() -> vellum_sys::Error {
    match userns::hold() {
        Err(e) => e,
        Ok(never) => match never {},
    }
}

/// Stops the holder noted in `run_dir`, and with it all of the user's mounts that no process uses.
/// Returns false if none runs.
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
    // Another user's note would lead into that user's namespaces.
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

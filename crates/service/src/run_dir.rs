//! The run directory: locks of containers, what is running, and caches that last until the next
//! boot.
//!
//! Everything in it can be lost at any time (as in a reboot) without harm: the store has the
//! records, mountinfo has the mounts.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::plain::{self, Links};
use vellum_sys::rooted::Access;

use crate::context::Context;
use crate::error::{Error, Result};

/// How long another process may hold a lock before the user is told about the wait.
const TELL_AFTER: Duration = Duration::from_millis(500);

/// How often a wait checks for cancellation.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Creates the run directory (0700) with `sub` below it, and returns the path of `sub`.
///
/// Fails if the directory belongs to another user: below `/tmp` any user may have created it.
pub fn make(ctx: &Context, sub: &str) -> Result<PathBuf> {
    let top = ctx.run_dir();
    make_private(top)?;
    let found = fs::symlink_metadata(top).map_err(Error::io("stat", top))?;
    let me = rustix::process::geteuid().as_raw();
    if !found.is_dir() || found.uid() != me {
        return Err(Error::Unsupported {
            what: format!(
                "the run directory {} belongs to another user",
                top.display()
            ),
            hint: "set XDG_RUNTIME_DIR, or choose another one with --run-dir".into(),
        });
    }
    if sub.is_empty() {
        return Ok(top.to_path_buf());
    }
    let path = top.join(sub);
    make_private(&path)?;
    // A link here would lead one store's locks to another's.
    plain::dir(&path, Links::InParents)?;
    Ok(path)
}

fn make_private(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("create", path))
}

/// Waits for the lock of container `id` and returns it; dropping it releases it.
///
/// Held while a container's mounts or its record change, never while a command of the user runs.
/// Errors: [`Error::Cancelled`].
pub fn lock_container(ctx: &Context, id: &str) -> Result<Lock> {
    wait(
        ctx,
        open_lock(ctx, "locks", id)?,
        &format!("container {id}"),
    )
}

/// Waits for the lock of exports and returns it; dropping it releases it. Errors:
/// [`Error::Cancelled`].
pub fn lock_exports(ctx: &Context) -> Result<Lock> {
    wait(ctx, open_lock(ctx, "locks", "exports")?, "exports")
}

/// Waits as long as necessary, since settling big files takes long; reports it, and can be
/// cancelled.
fn wait(ctx: &Context, file: OwnedFd, of: &str) -> Result<Lock> {
    let file = File::from(file);
    let mut patience = TELL_AFTER;
    loop {
        let copy = file
            .try_clone()
            .map_err(Error::io("open a lock in", ctx.run_dir()))?;
        if let Some(lock) = Lock::wait_at_most(copy, Sharing::Exclusive, patience)? {
            return Ok(lock);
        }
        ctx.go_on()?;
        if patience == TELL_AFTER {
            ctx.progress.say(&format!(
                "waiting for another vellum process that is working on {of}"
            ));
        }
        patience = BETWEEN_LOOKS;
    }
}

/// Marks container `id` as running until the returned lock is dropped or this process ends. `None`
/// if it is running already.
pub fn claim_run(ctx: &Context, id: &str) -> Result<Option<Lock>> {
    Ok(Lock::try_now(
        open_lock(ctx, "running", id)?,
        Sharing::Exclusive,
    )?)
}

/// Tells whether a `vellum run` is using container `id`.
pub fn is_running(ctx: &Context, id: &str) -> Result<bool> {
    let path = ctx.run_dir().join("running").join(id);
    match plain::open(&path, Access::Read, Links::InParents) {
        Ok(file) => Ok(Lock::try_now(OwnedFd::from(file), Sharing::Shared)?.is_none()),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Removes the run directory's files of a removed container.
pub fn forget(ctx: &Context, id: &str) {
    for sub in ["locks", "running"] {
        // What is left is an empty file that is gone after the next boot.
        let _ = fs::remove_file(ctx.run_dir().join(sub).join(id));
    }
}

fn open_lock(ctx: &Context, sub: &str, id: &str) -> Result<OwnedFd> {
    let path = make(ctx, sub)?.join(id);
    Ok(plain::open_or_create(&path, 0o600, Links::InParents)?.into())
}

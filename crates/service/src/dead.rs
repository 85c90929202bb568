//! Mounts of Vellum's engine whose process was killed: found out, taken out of sight, and made anew where they were.
//!
//! The kernel keeps such a mount and answers everything with ENOTCONN. It protects nothing: what was answered is in the upper, what wasn't is lost, and who is in
//! it can't get out but by leaving. So it is never a reason to refuse, and is always detached, whoever is still in it.
//!
//! A living engine holds its upper's lock. Who sees that asks no further: a server that is merely slow is neither waited for nor taken for dead.

use std::path::{Path, PathBuf};

use vellum_store::Overlay;
use vellum_sys::Dir;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::mount::{self, BindOptions};
use vellum_sys::mountinfo::{self, Mount, Table};

use crate::context::Context;
use crate::error::Result;
use crate::place::ENGINE_TYPE;
use crate::umount::users;

/// Tells whether the mount at `overlay.merged` is one of the engine's whose process has ended. What can't be told counts as alive.
pub(crate) fn is_dead(overlay: &Overlay, table: &Table) -> bool {
    own(&overlay.merged, table).is_some()
        && !overlay
            .upper
            .as_ref()
            .is_some_and(|upper| is_held(&upper.dir))
        && matches!(mount::is_served(&overlay.merged), Ok(false))
}

/// Tells whether `path` is a mount point of the engine, of the store at `root`, whose process has ended.
pub(crate) fn is_dead_of(root: &Path, path: &Path) -> Result<bool> {
    let table = mountinfo::read()?;
    Ok(
        own(path, &table).is_some_and(|m| Path::new(&m.source) == root)
            && matches!(mount::is_served(path), Ok(false)),
    )
}

/// A dead mount at another place than the container's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    at: PathBuf,
    read_only: bool,
}

/// Takes the dead mount at `place` out of sight, with the bind mounts of it, and returns those. Says who is still in it.
pub(crate) fn bury(ctx: &Context, place: &Path, name: &str) -> Result<Vec<Copy>> {
    let table = mountinfo::read()?;
    let Some(own) = own(place, &table) else {
        return Ok(Vec::new());
    };
    let inside = users(place);
    let mut copies = Vec::new();
    for found in table.mounts() {
        // A part of the tree was bound by somebody for reasons of his own.
        let is_copy = found.dev == own.dev && found.root == own.root && found.id != own.id;
        if is_copy && mount::unmount_id(&found.mount_point, found.id)? {
            copies.push(Copy {
                at: found.mount_point.clone(),
                read_only: found.is_read_only(),
            });
        }
    }
    mount::unmount_id(place, own.id)?;
    let who = match inside {
        None => String::new(),
        Some(who) => format!("; {who} must be started again"),
    };
    ctx.progress.warn(&format!(
        "the process that served the mount of {name} had ended: what it had answered is there{who}"
    ));
    Ok(copies)
}

/// Binds `place` to where the dead mount showed too.
pub(crate) fn restore(place: &Path, copies: &[Copy]) -> Result<()> {
    for copy in copies {
        let options = BindOptions {
            read_only: copy.read_only,
            ..BindOptions::default()
        };
        mount::bind(place, &copy.at, options)?;
    }
    Ok(())
}

impl Copy {
    /// Tells whether this is at `path`, and as writable as is wanted.
    pub(crate) fn is(&self, path: &Path, read_only: bool) -> bool {
        self.at == path && self.read_only == read_only
    }
}

/// Returns the engine's mount at `place`.
fn own<'t>(place: &Path, table: &'t Table) -> Option<&'t Mount> {
    let mut latest = table.mounts().iter().rev();
    latest.find(|m| m.mount_point == place && m.fs_type == ENGINE_TYPE)
}

/// Tells whether an engine has the upper directory `upper`, or is still writing to it.
pub(crate) fn is_held(upper: &Path) -> bool {
    let lock = Dir::open(upper).and_then(|dir| Lock::try_now(dir, Sharing::Shared));
    matches!(lock, Ok(None))
}

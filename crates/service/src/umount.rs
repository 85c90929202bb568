//! `umount`: a container's mounts, an image's, or all of the store, taken away.
//!
//! All calls are idempotent and hold the container's lock. A container's own place goes last: while it is there, the others can be found.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vellum_store::{ContainerRecord, DriverKind, Shape};
use vellum_sys::mount::{self, Detach};
use vellum_sys::mountinfo;

use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::place::{self, Shows};
use crate::{container, dead, mounted, names, run_dir};

/// Takes a container's mounts away, all of them, and returns where they were; one that was removed meanwhile has none.
///
/// Without `force`, errors with [`Error::InUse`] while somebody uses one; then its own place is still mounted. A dead mount goes whoever is in it.
pub fn umount_container(
    ctx: &Context,
    record: &ContainerRecord,
    force: bool,
) -> Result<Vec<PathBuf>> {
    let _lock = run_dir::lock_container(ctx, &record.id)?;
    match umount_locked(ctx, record, force) {
        // Removed meanwhile, and its mounts with it.
        Err(_) if names::is_gone(ctx, record) => Ok(Vec::new()),
        places => places,
    }
}

/// As [`umount_container`], for a caller that holds the container's lock.
pub fn umount_locked(ctx: &Context, record: &ContainerRecord, force: bool) -> Result<Vec<PathBuf>> {
    let parts = container::parts(ctx, record)?;
    let table = mountinfo::read()?;
    let mut force = force;
    if let Shape::Overlay(overlay) = &parts.shape {
        // Else somebody else's mount would be taken away in its stead.
        force |= place::look_in(overlay, &table)? == Shows::Dead;
    }
    let places = mounted::places(&parts, &table);
    // The container's own place last: while it is there, the others can be found.
    for place in places.iter().rev() {
        take_away(place, force, &record.name)?;
    }
    if let Shape::Overlay(overlay) = &parts.shape
        && let Some(upper) = &overlay.upper
        && !places.is_empty()
        && !force
    {
        wait_for_engine(&upper.dir);
    }
    // Docker's overlay2 has the directory only while mounted, its overlay always.
    if let (Shape::Overlay(overlay), DriverKind::Overlay2) = (&parts.shape, parts.driver) {
        match fs::remove_dir(&overlay.merged) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // An old one does no harm.
            Err(error) => tracing::debug!(%error, "the mount point stays"),
        }
    }
    Ok(places)
}

/// Waits until the process that served the mount has written everything and let go of the upper: the next mount would find it taken.
pub(crate) fn wait_for_engine(upper: &Path) {
    const PATIENCE: Duration = Duration::from_secs(30);
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if !dead::is_held(upper) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tracing::warn!(upper = %upper.display(), "the engine is still writing");
}

/// Unmounts `place`.
fn take_away(place: &Path, force: bool, name: &str) -> Result<()> {
    if force {
        mount::unmount(place, Detach::Yes)?;
        return Ok(());
    }
    if unmount_unused(place)? {
        return Ok(());
    }
    Err(Error::InUse {
        kind: Kind::Container,
        name: name.to_owned(),
        by: users(place).unwrap_or_else(|| format!("somebody uses {}", place.display())),
        hint:
            "end them, or use --force: the mount goes out of sight now and ends with its last user"
                .into(),
    })
}

/// Unmounts `place` unless somebody uses it; false if somebody does. A user that is just leaving is waited for: a program between its last read
/// and its exit, or a child of one that has not executed yet and still holds what its parent had open.
pub(crate) fn unmount_unused(place: &Path) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let until = Instant::now() + PATIENCE;
    loop {
        match mount::unmount(place, Detach::No) {
            Ok(_) => return Ok(true),
            Err(e) if e.is_busy() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) if e.is_busy() => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Names some processes whose working directory, root or open files are on the mount at `place`.
pub(crate) fn users(place: &Path) -> Option<String> {
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let base = process.path();
        let mut links = vec![base.join("cwd"), base.join("root")];
        links.extend(
            fs::read_dir(base.join("fd"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
        if links
            .iter()
            .any(|link| fs::read_link(link).is_ok_and(|to| to.starts_with(place)))
        {
            let command = fs::read_to_string(base.join("comm")).unwrap_or_default();
            found.insert(format!("process {pid} ({})", command.trim()));
        }
        if found.len() == 5 {
            break;
        }
    }
    (!found.is_empty()).then(|| {
        let all: Vec<_> = found.into_iter().collect();
        format!("{} in {}", all.join(", "), place.display())
    })
}

/// Takes away what is mounted at `path`, if it is a container's or an image's of this store.
///
/// At a container's own place, all its mounts go. Errors if nothing of this store's is mounted there.
pub fn umount_path(ctx: &Context, path: &Path, force: bool) -> Result<Vec<PathBuf>> {
    let path = fs::canonicalize(path).map_err(Error::io("find", path))?;
    for mounted in mounted::list(ctx)? {
        let (true, Some(id)) = (mounted.path == path, &mounted.id) else {
            continue;
        };
        let record = names::container(ctx, id)?;
        let _lock = run_dir::lock_container(ctx, &record.id)?;
        let parts = container::parts(ctx, &record)?;
        return match &parts.shape {
            Shape::Overlay(overlay) if overlay.merged == path => umount_locked(ctx, &record, force),
            _ => {
                take_away(&path, force || mounted.dead, &record.name)?;
                Ok(vec![path])
            }
        };
    }
    if mounted::images(ctx)?.contains(&path) {
        take_away(&path, force, "image")?;
        return Ok(vec![path]);
    }
    Err(Error::Invalid {
        what: format!("nothing of this store is mounted at {}", path.display()),
        hint: Some("`vellum mount` lists what is".into()),
    })
}

/// Takes away every mount of this store.
pub fn umount_all(ctx: &Context, force: bool) -> Result<Vec<PathBuf>> {
    let mut gone = Vec::new();
    for record in ctx.store()?.containers()? {
        gone.extend(umount_container(ctx, &record, force)?);
    }
    for path in mounted::images(ctx)? {
        take_away(&path, force, "image")?;
        gone.push(path);
    }
    Ok(gone)
}

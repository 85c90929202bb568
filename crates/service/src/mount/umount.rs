//! `umount`: removes the mounts of a container, of an image, or of the whole store.
//!
//! All calls are idempotent and hold the container's lock. A container's own place goes last: while
//! it is there, the others can be found.

use std::fs;
use std::path::{Path, PathBuf};

use vellum_store::{ContainerRecord, Shape};
use vellum_sys::mount::{self, Detach};
use vellum_sys::mountinfo;

use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::mount::mounted;
use crate::mount::place::{self, ENGINE_TYPE};
use crate::mount::shown::{self, Seen, Shown, State, Users, unmount_unused};
use crate::{container_record, names, run_dir};

/// Removes all of a container's mounts, and returns where they were. A container that has been
/// removed in the meantime has none.
///
/// Without `force`, fails with [`Error::InUse`] while a process uses one; then its own place is
/// still mounted. A dead mount is removed even if processes are in it.
pub fn umount_container(
    ctx: &Context,
    record: &ContainerRecord,
    force: bool,
) -> Result<Vec<PathBuf>> {
    let _lock = run_dir::lock_container(ctx, &record.id)?;
    match umount_locked(ctx, record, force) {
        // Removed in the meantime, with its mounts.
        Err(_) if names::is_gone(ctx, record) => Ok(Vec::new()),
        places => places,
    }
}

/// Like [`umount_container`], for a caller that holds the container's lock.
pub fn umount_locked(ctx: &Context, record: &ContainerRecord, force: bool) -> Result<Vec<PathBuf>> {
    let parts = container_record::parts(ctx, record)?;
    let table = mountinfo::read()?;
    // A foreign mount must not be unmounted in the container's place.
    let mut shown = Seen::look_in(&parts, &table)?.at_place();
    let force = force || shown.as_ref().is_some_and(|s| s.state() == State::Dead);
    let places = place::places(&parts, &table);
    let own = shown.as_ref().map(Shown::place);
    // The container's own place last: while it is there, the others can be found.
    for place in places.iter().rev() {
        if own != Some(place) {
            take_away(place, force, &record.name)?;
        }
    }
    let users = match force {
        true => Users::Ignored,
        false => Users::Respected,
    };
    if let Some(shown) = &mut shown {
        let unused = shown.hide(users)?;
        if users == Users::Respected && !unused {
            return Err(in_use(shown.place(), &record.name));
        }
        if users == Users::Respected && !places.is_empty() {
            shown.wait_for_engine();
        }
    }
    Ok(places)
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
    Err(in_use(place, name))
}

fn in_use(place: &Path, name: &str) -> Error {
    Error::InUse {
        kind: ObjectKind::Container,
        name: name.to_owned(),
        by: shown::users(place).unwrap_or_else(|| format!("a process uses {}", place.display())),
        hint:
            "stop it, or use --force: this detaches the mount now, and it ends with its last user"
                .into(),
    }
}

/// Removes the mount at `path`, if it is a container's or an image's of this store.
///
/// At a container's own place, removes all its mounts. Fails if no mount of this store is there.
pub fn umount_path(ctx: &Context, path: &Path, force: bool) -> Result<Vec<PathBuf>> {
    let path = fs::canonicalize(path).map_err(Error::io("find", path))?;
    for mounted in mounted::list(ctx)? {
        let (true, Some(id)) = (mounted.path == path, &mounted.id) else {
            continue;
        };
        let record = names::container(ctx, id)?;
        let _lock = run_dir::lock_container(ctx, &record.id)?;
        let parts = container_record::parts(ctx, &record)?;
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
    let shown = path.display();
    let table = mountinfo::read()?;
    let is_union = place::latest(&path, &table).is_some_and(|m| m.fs_type == ENGINE_TYPE);
    Err(Error::Invalid {
        what: format!("nothing of this store is mounted at {shown}"),
        hint: Some(match is_union {
            true => format!(
                "a union is, by `vellum overlay` or another store: `umount {shown}`, or \
                 `fusermount3 -u {shown}` as a plain user"
            ),
            false => "`vellum mount` lists its mounts".into(),
        }),
    })
}

/// Removes all mounts of this store.
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

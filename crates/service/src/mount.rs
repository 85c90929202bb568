//! `mount`: shows the tree of a container or an image at a directory. `shown.rs` has the states of
//! such a mount and the transitions between them, `mounted.rs` lists existing mounts, and `umount`
//! removes them.
//!
//! Mounts are read from mountinfo, never from a record of ours, so nothing gets out of date: after
//! a crash, a reboot or an unmount by another program it is still right. A container's overlay has
//! one place, `merged` in its tree's directory; other places are bind mounts of it, because two
//! overlays of one upper would corrupt it. All calls are idempotent and hold the container's lock.

use std::fs;
use std::path::{Path, PathBuf};

use vellum_store::{ContainerRecord, LayerDir, Overlay, Shape, TreeParts};
use vellum_sys::mount::{self, BindOptions};
use vellum_sys::mountinfo;
use vellum_union::engine::Limit;

use crate::base;
use crate::container_record::Settings;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::plan::{Plan, Wishes, plan};
use crate::{container_record, names, run_dir};

mod execute;
pub mod facts;
pub(crate) mod limit;
pub mod mounted;
pub(crate) mod place;
pub(crate) mod shown;
pub mod umount;

use mounted::Mounted;
use shown::{Seen, State};

/// Plans a container's mount without mounting.
pub fn plan_container(ctx: &Context, name: &str, read_only: bool) -> Result<Plan> {
    names::with_container(ctx, name, |record| {
        let parts = container_record::parts(ctx, record)?;
        let request = MountRequest {
            read_only,
            limit: Settings::of(record)?.limit(),
        };
        plan_parts(ctx, &parts, request)
    })
}

/// How a tree is mounted, in addition to the settings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountRequest {
    /// Refuse writing.
    pub(crate) read_only: bool,
    /// Limit of what is written, if the file system can't enforce it.
    pub(crate) limit: Limit,
}

impl MountRequest {
    const READ_ONLY: Self = Self {
        read_only: true,
        limit: Limit {
            size_bytes: None,
            inodes: None,
        },
    };
}

fn plan_parts(ctx: &Context, parts: &TreeParts, request: MountRequest) -> Result<Plan> {
    let wishes = Wishes {
        read_only: request.read_only,
        limit: request.limit,
        ..Wishes::of(&ctx.config)
    };
    Ok(plan(parts, &facts::facts(ctx)?, &wishes)?)
}

/// Mounts a container at its own place, and also at `target` if one is given.
pub fn mount_container(
    ctx: &Context,
    name: &str,
    target: Option<&Path>,
    read_only: bool,
) -> Result<Mounted> {
    names::with_container(ctx, name, |record| {
        let _lock = run_dir::lock_container(ctx, &record.id)?;
        let mounted = mount_locked(ctx, record, target, read_only)?;
        let was_there = mounted.method.is_none() && target.is_none();
        if was_there && !read_only && is_read_only(&mounted.path)? {
            return Err(Error::Invalid {
                what: format!(
                    "`{}` is mounted read-only at {}",
                    record.name,
                    mounted.path.display()
                ),
                hint: Some(format!("unmount it first: vellum umount {}", record.name)),
            });
        }
        Ok(mounted)
    })
}

/// Like [`mount_container`], for a caller that holds the container's lock.
pub fn mount_locked(
    ctx: &Context,
    record: &ContainerRecord,
    target: Option<&Path>,
    read_only: bool,
) -> Result<Mounted> {
    let target = target.map(directory_or_dead).transpose()?;
    let parts = container_record::parts(ctx, record)?;
    // A dead mount's other places, which get the new mount.
    let mut copies = Vec::new();
    let (place, method) = match Seen::look(&parts)? {
        Seen::Directory(root) => (root.to_path_buf(), None),
        Seen::AtPlace(mut shown) => {
            if shown.state() == State::Dead {
                copies = shown.bury(ctx, &record.name)?;
            }
            let method = match shown.state() {
                State::Live => None,
                State::Nothing | State::Dead => {
                    let request = MountRequest {
                        // If the target is read-only, the mount itself stays writable.
                        read_only: read_only && target.is_none(),
                        limit: Settings::of(record)?.limit(),
                    };
                    Some(shown.show(ctx, &record.snapshot, &record.name, request)?)
                }
            };
            shown.restore(&copies)?;
            (shown.place().to_path_buf(), method)
        }
    };
    let path = match target {
        None if read_only && method.is_none() && !is_read_only(&place)? => {
            return Err(Error::Invalid {
                what: format!(
                    "`{}` is mounted writable at {}",
                    record.name,
                    place.display()
                ),
                hint: Some(
                    "mount it read-only at a second place: vellum mount NAME DIR --read-only"
                        .into(),
                ),
            });
        }
        None => place,
        Some(target) if copies.iter().any(|copy| copy.is(&target, read_only)) => target,
        Some(target) => {
            let target = mount_point(ctx, &target)?;
            let options = BindOptions {
                read_only,
                ..BindOptions::default()
            };
            mount::bind(&place, &target, options)?;
            target
        }
    };
    Ok(Mounted {
        id: Some(record.id.clone()),
        name: record.name.clone(),
        engine: None,
        path,
        method,
        dead: false,
    })
}

fn is_read_only(place: &Path) -> Result<bool> {
    let table = mountinfo::read()?;
    Ok(table
        .chain(place)
        .last()
        .is_some_and(|m| m.mount_point == place && m.is_read_only()))
}

/// Mounts an image's own tree, read-only, at `target`.
pub fn mount_image(ctx: &Context, name: &str, target: &Path) -> Result<Mounted> {
    names::with_image(ctx, name, |image| {
        if shown::is_dead_of(ctx.store()?.root(), target)? {
            shown::bury_at(ctx, target, name)?;
        }
        let target = mount_point(ctx, target)?;
        let planned = plan_view(ctx, &base::tree_of_image(ctx, image)?)?;
        let method = execute::plan(ctx, &planned, &target)?;
        Ok(Mounted {
            id: None,
            name: name.to_owned(),
            engine: None,
            path: target,
            method: Some(method),
            dead: false,
        })
    })
}

/// Plans an image's mount.
pub fn plan_image(ctx: &Context, name: &str) -> Result<Plan> {
    names::with_image(ctx, name, |image| {
        plan_view(ctx, &base::tree_of_image(ctx, image)?)
    })
}

/// Plans a read-only view of an image's own tree.
///
/// In a tree on which overlays are mounted, xattrs with overlay's own names are stored under other
/// names, and an overlay shows them as the layer has them. So a tree that is a single directory is
/// also shown through an overlay, with nothing below it; if none can be mounted, it is shown as it
/// is.
fn plan_view(ctx: &Context, parts: &TreeParts) -> Result<Plan> {
    let plain = plan_parts(ctx, parts, MountRequest::READ_ONLY)?;
    let Shape::Plain { root, .. } = &parts.shape else {
        return Ok(plain);
    };
    if !parts.driver.makes_overlays() {
        return Ok(plain);
    }
    let layer = |dir: PathBuf| LayerDir {
        tree: parts.tree.clone(),
        dir,
        link: None,
        diff_id: None,
        features: None,
    };
    let nothing = run_dir::make(ctx, "empty")?;
    let stacked = TreeParts {
        shape: Shape::Overlay(Overlay {
            home: root.clone(),
            lowers: vec![layer(root.clone()), layer(nothing)],
            upper: None,
            work: None,
            merged: PathBuf::new(),
        }),
        features: None,
        ..parts.clone()
    };
    Ok(plan_parts(ctx, &stacked, MountRequest::READ_ONLY).unwrap_or(plain))
}

/// Like [`existing_directory`]; also accepts the container's own dead mount, which is about to be
/// removed.
fn directory_or_dead(path: &Path) -> Result<PathBuf> {
    match existing_directory(path) {
        Err(Error::Io { source, .. })
            if source.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) =>
        {
            fs::canonicalize(path).map_err(Error::io("find", path))
        }
        found => found,
    }
}

/// Returns a directory to mount on. Errors: `Invalid` if a mount there would cover the store or its
/// run directory, which no command could then undo.
fn mount_point(ctx: &Context, path: &Path) -> Result<PathBuf> {
    let found = existing_directory(path)?;
    let run_dir = fs::canonicalize(ctx.run_dir());
    let run_dir = run_dir.as_deref().unwrap_or(ctx.run_dir());
    let covers = |own: &Path| own.starts_with(&found) || found.starts_with(own);
    match [ctx.root(), run_dir].into_iter().find(|own| covers(own)) {
        None => Ok(found),
        Some(own) => Err(Error::Invalid {
            what: format!(
                "a mount at {} would cover {}, which the store needs",
                found.display(),
                own.display()
            ),
            hint: Some("choose an empty directory elsewhere".into()),
        }),
    }
}

fn existing_directory(path: &Path) -> Result<PathBuf> {
    let found = fs::canonicalize(path).map_err(Error::io("find", path))?;
    if found.is_dir() {
        Ok(found)
    } else {
        Err(Error::Invalid {
            what: format!("{} is not a directory", path.display()),
            hint: None,
        })
    }
}

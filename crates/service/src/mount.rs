//! `mount`: a container's tree, or an image's, at a directory. See `mounted` for what is there, `umount` for the way back.
//!
//! What is mounted is read from mountinfo, never from a record of ours, so that nothing goes stale: a crash, a reboot or an unmount by
//! somebody else leaves no lie. A container's overlay has one place, `merged` in its tree's directory; other places it is wanted at are
//! bind mounts of that one, because two overlays of one upper would corrupt it. All calls are idempotent and hold the container's lock.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vellum_overlay::daemon;
use vellum_store::{ContainerRecord, DriverKind, LayerDir, Overlay, Shape, SnapshotKey, TreeParts};
use vellum_sys::mount::{self, BindOptions, MountError};
use vellum_sys::mountinfo;
use vellum_union::engine::Limit;

use crate::container::Settings;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::mounted::Mounted;
use crate::place::{self, Shows};
use crate::plan::{EngineMount, Plan, Wishes, method_name, plan};
use crate::{container, create, dead, facts, names, run_dir};

/// Decides how a container would be mounted, and mounts nothing.
pub fn plan_container(ctx: &Context, name: &str, read_only: bool) -> Result<Plan> {
    names::with_container(ctx, name, |record| {
        let parts = container::parts(ctx, record)?;
        let terms = Terms {
            read_only,
            limit: Settings::of(record)?.limit(),
        };
        plan_parts(ctx, &parts, terms)
    })
}

/// How a tree is mounted, besides what is configured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// Refuse writing.
    pub(crate) read_only: bool,
    /// Limit of what is written, where the file system does not keep it.
    pub(crate) limit: Limit,
}

impl Terms {
    const READ_ONLY: Self = Self {
        read_only: true,
        limit: Limit {
            size_bytes: None,
            inodes: None,
        },
    };
}

fn plan_parts(ctx: &Context, parts: &TreeParts, terms: Terms) -> Result<Plan> {
    let wishes = Wishes {
        read_only: terms.read_only,
        limit: terms.limit,
        ..Wishes::of(&ctx.config)
    };
    Ok(plan(parts, &facts::facts(ctx)?, &wishes)?)
}

/// Mounts a container at its own place, and at `target` too if one is given.
pub fn mount_container(
    ctx: &Context,
    name: &str,
    target: Option<&Path>,
    read_only: bool,
) -> Result<Mounted> {
    names::with_container(ctx, name, |record| {
        let _lock = run_dir::lock_container(ctx, &record.id)?;
        mount_locked(ctx, record, target, read_only)
    })
}

/// As [`mount_container`], for a caller that holds the container's lock.
pub fn mount_locked(
    ctx: &Context,
    record: &ContainerRecord,
    target: Option<&Path>,
    read_only: bool,
) -> Result<Mounted> {
    let target = target.map(directory_or_dead).transpose()?;
    let parts = container::parts(ctx, record)?;
    // A dead mount's other places, which get the new one.
    let mut copies = Vec::new();
    let (place, method) = match &parts.shape {
        Shape::Plain { root, .. } => (root.clone(), None),
        Shape::Overlay(overlay) => {
            let merged = overlay.merged.clone();
            let shows = place::look(overlay)?;
            if shows == Shows::Dead {
                copies = dead::bury(ctx, &merged, &record.name)?;
            }
            let method = if shows == Shows::Container {
                None
            } else {
                make_merged(&merged)?;
                // Where the target gets it read-only, the mount itself stays writable.
                Some(mount_tree(
                    ctx,
                    (&record.snapshot, &record.name),
                    &parts,
                    &merged,
                    Terms {
                        read_only: read_only && target.is_none(),
                        limit: Settings::of(record)?.limit(),
                    },
                )?)
            };
            dead::restore(&merged, &copies)?;
            (merged, method)
        }
    };
    let path = match target {
        None if read_only && method.is_none() && !is_read_only(&place)? => {
            return Err(Error::Invalid {
                what: format!("`{}` can be written at {}", record.name, place.display()),
                hint: Some(
                    "give a second place for the read-only view: vellum mount NAME DIR --read-only"
                        .into(),
                ),
            });
        }
        None => place,
        Some(target) if copies.iter().any(|copy| copy.is(&target, read_only)) => target,
        Some(target) => {
            let target = existing_directory(&target)?;
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

pub(crate) fn make_merged(merged: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(merged) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::io("create", merged)(e)),
    }
}

/// Mounts the tree of a snapshot at `target`, a directory. The name is for messages.
///
/// The caller holds the lock of whatever the snapshot belongs to, and has seen that it is not mounted there.
pub(crate) fn mount_tree(
    ctx: &Context,
    (snapshot, name): (&SnapshotKey, &str),
    parts: &TreeParts,
    target: &Path,
    terms: Terms,
) -> Result<&'static str> {
    let planned = plan_parts(ctx, parts, terms)?;
    if let Plan::Overlay {
        features: Some(features),
        ..
    }
    | Plan::Engine {
        features: Some(features),
        ..
    } = &planned
    {
        if parts.features.is_none() {
            container::adopt_root(ctx.process, parts, None)?;
        }
        // Before the mount: from then on the upper may carry the marks.
        ctx.store()?.record_features(snapshot, *features)?;
    }
    let done = match execute(ctx, &planned, target) {
        Err(Error::Mount(error)) => Err(explain(error, parts, name)),
        done => done,
    };
    if done.is_err() && parts.driver == DriverKind::Overlay2 {
        // The first error is the one to tell; an empty directory does no harm.
        let _ = fs::remove_dir(target);
    }
    done
}

/// Does what is planned, and returns the method's name.
fn execute(ctx: &Context, planned: &Plan, target: &Path) -> Result<&'static str> {
    match planned {
        Plan::Bind { source, read_only } => {
            let options = BindOptions {
                read_only: *read_only,
                ..BindOptions::default()
            };
            mount::bind(source, target, options)?;
            Ok("bind")
        }
        Plan::Overlay {
            method,
            mount: overlay,
            ..
        } => {
            let facts = mount::overlay(overlay, target, method)?;
            for line in facts.log {
                tracing::debug!(kernel = line, "mounted");
            }
            Ok(method_name(method))
        }
        Plan::Engine { mount, .. } => {
            // The source tells mounts of this store from others' in the mount table.
            let arguments = engine_arguments(mount, ctx.store()?.root(), target);
            daemon::start_overlay(&arguments, target)?;
            Ok("engine")
        }
    }
}

/// Returns the arguments of `vellum overlay` for a mount. Each layer is an argument of its own: there is a limit for one.
fn engine_arguments(mount: &EngineMount, source: &Path, target: &Path) -> Vec<OsString> {
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: &OsStr| {
        let mut text = name.as_bytes().to_vec();
        for &byte in value.as_bytes() {
            if matches!(byte, b'\\' | b',' | b':' | b'"') {
                text.push(b'\\');
            }
            text.push(byte);
        }
        arguments.push(OsString::from("-o"));
        arguments.push(OsString::from_vec(text));
    };
    for lower in &mount.lowers {
        add("lowerdir+=", lower.as_os_str());
    }
    for (name, dir) in [("upperdir=", &mount.upper), ("workdir=", &mount.work)] {
        if let Some(dir) = dir {
            add(name, dir.as_os_str());
        }
    }
    arguments.push("-o".into());
    arguments.push(mount.options().join(",").into());
    arguments.push(source.into());
    arguments.push(target.into());
    arguments
}

/// Adds who is in the way.
fn explain(error: MountError, parts: &TreeParts, name: &str) -> Error {
    if error.is_busy()
        && let Shape::Overlay(overlay) = &parts.shape
        && let Some(upper) = &overlay.upper
    {
        let holders = mountinfo::find_overlay_holders(&upper.dir, overlay.work.as_deref())
            .unwrap_or_default();
        if !holders.is_empty() {
            return Error::InUse {
                kind: Kind::Container,
                name: name.to_owned(),
                by: holders.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
                hint: "its tree is mounted in another mount namespace: end that process, or unmount it there".into(),
            };
        }
    }
    Error::Mount(error)
}

/// Mounts an image itself, read-only, at `target`.
pub fn mount_image(ctx: &Context, name: &str, target: &Path) -> Result<Mounted> {
    names::with_image(ctx, name, |image| {
        if dead::is_dead_of(ctx.store()?.root(), target)? {
            dead::bury(ctx, target, name)?;
        }
        let target = existing_directory(target)?;
        let planned = plan_view(ctx, &create::tree_of_image(ctx, image)?)?;
        let method = execute(ctx, &planned, &target)?;
        Ok(Mounted {
            id: None,
            name: name.to_owned(),
            path: target,
            method: Some(method),
            dead: false,
        })
    })
}

/// Decides how an image would be mounted.
pub fn plan_image(ctx: &Context, name: &str) -> Result<Plan> {
    names::with_image(ctx, name, |image| {
        plan_view(ctx, &create::tree_of_image(ctx, image)?)
    })
}

/// Decides how an image's own tree is shown, read-only.
///
/// In a tree that overlays are mounted on, attributes called as overlay's own are kept under other names, and an overlay shows them as the layer has
/// them. So a tree that is one directory is shown through an overlay, too, with nothing below it; where none can be mounted, as it is.
fn plan_view(ctx: &Context, parts: &TreeParts) -> Result<Plan> {
    let plain = plan_parts(ctx, parts, Terms::READ_ONLY)?;
    let Shape::Plain { root, .. } = &parts.shape else {
        return Ok(plain);
    };
    if parts.driver == DriverKind::Native {
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
    Ok(plan_parts(ctx, &stacked, Terms::READ_ONLY).unwrap_or(plain))
}

/// As [`existing_directory`], or what would be one if its server lived: if the container's own dead mount is there, it is about to go.
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

fn existing_directory(path: &Path) -> Result<PathBuf> {
    let found = fs::canonicalize(path).map_err(Error::io("find", path))?;
    if found.is_dir() {
        Ok(found)
    } else {
        Err(Error::Invalid {
            what: format!("{} is no directory", path.display()),
            hint: None,
        })
    }
}

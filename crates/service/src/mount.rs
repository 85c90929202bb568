//! `mount` and `umount`: a container's tree, or an image's, at a directory.
//!
//! What is mounted is read from mountinfo, never from a record of ours, so that nothing goes stale: a crash, a reboot or an unmount by
//! somebody else leaves no lie. A container's overlay has one place, `merged` in its tree's directory; other places it is wanted at are
//! bind mounts of that one, because two overlays of one upper would corrupt it. All calls are idempotent and hold the container's lock.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use vellum_store::{ContainerRecord, DriverKind, Shape, SnapshotKey, TreeParts};
use vellum_sys::Dir;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::mount::{self, BindOptions, Detach, MountError};
use vellum_sys::mountinfo::{self, FsOptions, Table};

use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::overlay::daemon;
use crate::place::{self, ENGINE_TYPE, Shows};
use crate::plan::{EngineMount, Plan, Wishes, method_name, plan};
use crate::{container, dead, facts, names, run_dir};

/// A mount that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mounted {
    /// The container's id; absent for an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The container's or image's name.
    pub name: String,
    /// Where it shows.
    #[serde(serialize_with = "crate::json::path")]
    pub path: PathBuf,
    /// How it was made; absent if it was there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// The process that served it has ended: it has to be mounted anew.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
}

/// Decides how a container would be mounted, and mounts nothing.
pub fn plan_container(ctx: &Context, name: &str, read_only: bool) -> Result<Plan> {
    let record = names::container(ctx, name)?;
    let parts = container::parts(ctx, &record)?;
    let terms = Terms {
        read_only,
        ..Terms::default()
    };
    plan_parts(ctx, &parts, terms)
}

/// How a tree is mounted, besides what is configured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// Refuse writing.
    pub(crate) read_only: bool,
    /// Limit of what is written, in bytes, where the file system does not keep it.
    pub(crate) size_bytes: Option<u64>,
}

impl Terms {
    const READ_ONLY: Self = Self {
        read_only: true,
        size_bytes: None,
    };
}

fn plan_parts(ctx: &Context, parts: &TreeParts, terms: Terms) -> Result<Plan> {
    let wishes = Wishes {
        read_only: terms.read_only,
        size_bytes: terms.size_bytes,
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
    let record = names::container(ctx, name)?;
    let _lock = run_dir::lock_container(ctx, &record.id)?;
    mount_locked(ctx, &record, target, read_only)
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
                        size_bytes: None,
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

/// Tells whether a container is mounted: who mounts it for a while leaves it so.
pub(crate) fn is_shown(ctx: &Context, record: &ContainerRecord) -> Result<bool> {
    match container::parts(ctx, record)?.shape {
        Shape::Overlay(overlay) => {
            // A dead one is mounted anew and then stays, as it was meant to.
            Ok(place::look(&overlay)? != Shows::Nothing)
        }
        Shape::Plain { .. } => Ok(true),
    }
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
            container::adopt_root(parts, None)?;
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
            daemon::start_overlay(&arguments)?;
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
    let image = names::image(ctx, name)?;
    if dead::is_dead_of(ctx.store()?.root(), target)? {
        dead::bury(ctx, target, name)?;
    }
    let target = existing_directory(target)?;
    let Some(top) = image.top() else {
        return Err(Error::Invalid {
            what: format!("image `{name}` has no layers to show"),
            hint: None,
        });
    };
    let parts = ctx.store()?.tree(top)?;
    let planned = plan_parts(ctx, &parts, Terms::READ_ONLY)?;
    let method = execute(ctx, &planned, &target)?;
    Ok(Mounted {
        id: None,
        name: name.to_owned(),
        path: target,
        method: Some(method),
        dead: false,
    })
}

/// Decides how an image would be mounted.
pub fn plan_image(ctx: &Context, name: &str) -> Result<Plan> {
    let image = names::image(ctx, name)?;
    let Some(top) = image.top() else {
        return Err(Error::Invalid {
            what: format!("image `{name}` has no layers to show"),
            hint: None,
        });
    };
    plan_parts(ctx, &ctx.store()?.tree(top)?, Terms::READ_ONLY)
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

/// Returns where a container shows, its own place first. Empty if it isn't mounted.
///
/// A tree that needs no mount (driver `native`) counts as mounted only where it was bound.
pub fn places(parts: &TreeParts, table: &Table) -> Vec<PathBuf> {
    let mut found = Vec::new();
    match &parts.shape {
        Shape::Overlay(overlay) => {
            let at = |m: &&mountinfo::Mount| {
                m.mount_point == overlay.merged
                    && (m.fs_type == "overlay" || m.fs_type == ENGINE_TYPE)
            };
            let Some(own) = table.mounts().iter().rev().find(at) else {
                return found;
            };
            found.push(own.mount_point.clone());
            let same = |m: &&mountinfo::Mount| m.dev == own.dev && m.mount_point != own.mount_point;
            found.extend(
                table
                    .mounts()
                    .iter()
                    .filter(same)
                    .map(|m| m.mount_point.clone()),
            );
        }
        Shape::Plain { .. } => {
            // The tree's random name in a bind mount's root is as good as a device number.
            let name = parts.tree.as_str();
            let bound = |m: &&mountinfo::Mount| m.root.components().any(|c| c.as_os_str() == name);
            found.extend(
                table
                    .mounts()
                    .iter()
                    .filter(bound)
                    .map(|m| m.mount_point.clone()),
            );
        }
    }
    found
}

/// Tells whether a container is mounted by a process that has ended.
pub(crate) fn is_dead(parts: &TreeParts, table: &Table) -> bool {
    match &parts.shape {
        Shape::Overlay(overlay) => dead::is_dead(overlay, table),
        Shape::Plain { .. } => false,
    }
}

/// Returns every mount of this store's containers, by container.
pub fn list(ctx: &Context) -> Result<Vec<Mounted>> {
    let table = mountinfo::read()?;
    let mut all = Vec::new();
    for record in ctx.store()?.containers()? {
        let parts = container::parts(ctx, &record)?;
        let dead = is_dead(&parts, &table);
        for path in places(&parts, &table) {
            all.push(Mounted {
                id: Some(record.id.clone()),
                name: record.name.clone(),
                path,
                method: None,
                dead,
            });
        }
    }
    Ok(all)
}

/// Takes a container's mounts away, all of them, and returns where they were.
///
/// Without `force`, errors with [`Error::InUse`] while somebody uses one; then its own place is still mounted. A dead mount goes whoever is in it.
pub fn umount_container(
    ctx: &Context,
    record: &ContainerRecord,
    force: bool,
) -> Result<Vec<PathBuf>> {
    let _lock = run_dir::lock_container(ctx, &record.id)?;
    umount_locked(ctx, record, force)
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
    let places = places(&parts, &table);
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
        let free = Dir::open(upper).and_then(|dir| Lock::try_now(dir, Sharing::Shared));
        match free {
            Ok(Some(_)) | Err(_) => return,
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
        }
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
    for mounted in list(ctx)? {
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
    if images_mounted(ctx)?.contains(&path) {
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
    for path in images_mounted(ctx)? {
        take_away(&path, force, "image")?;
        gone.push(path);
    }
    Ok(gone)
}

/// Returns where images of this store are mounted: read-only mounts of its layers that no container has.
fn images_mounted(ctx: &Context) -> Result<Vec<PathBuf>> {
    let root = ctx.store()?.root().to_path_buf();
    let table = mountinfo::read()?;
    let trees: BTreeSet<String> = {
        let mut trees = BTreeSet::new();
        ctx.store()?.walk(&[], |info| {
            trees.insert(info.tree.to_string());
            Ok::<_, Error>(())
        })?;
        trees
    };
    let shows_tree = |path: &Path| {
        path.components().any(|c| {
            c.as_os_str()
                .to_str()
                .is_some_and(|name| trees.contains(name))
        })
    };
    let home = ctx.store()?.driver_home(DriverKind::Overlay2);
    // Relative names are what the option page holds; others' stores have such too, but not these random ones.
    let is_layer = |first: &[u8]| {
        let path = Path::new(OsStr::from_bytes(first));
        path.starts_with(&root)
            || (path.is_relative() && fs::symlink_metadata(home.join(path)).is_ok())
    };
    let has_layers = |options: &FsOptions| {
        let mut layers = ["lowerdir+", "lowerdir"]
            .into_iter()
            .flat_map(|name| options.all(name));
        options.get("upperdir").is_none()
            && layers.any(|l| {
                let first = l
                    .as_bytes()
                    .split(|b| *b == b':')
                    .next()
                    .unwrap_or_default();
                is_layer(first) || is_layer(l.as_bytes())
            })
    };
    let of_ours = |m: &&mountinfo::Mount| {
        // One that is gone meanwhile is nobody's.
        let overlay = m.fs_type == "overlay" && m.fs_options().is_ok_and(|o| has_layers(&o));
        let engine = m.fs_type == ENGINE_TYPE && Path::new(&m.source) == root;
        overlay || engine || (m.is_read_only() && shows_tree(&m.root))
    };
    let inside = |m: &&mountinfo::Mount| m.mount_point.starts_with(&root);
    // Those inside, the containers' own, first: it is the options of the others alone that are asked for.
    Ok(table
        .mounts()
        .iter()
        .filter(|m| !inside(m))
        .filter(of_ours)
        .map(|m| m.mount_point.clone())
        .collect())
}

//! The store's mounts, from the kernel's mount table.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum_store::{ContainerRecord, DriverKind};
use vellum_sys::mountinfo::{self, FsOptions, Table};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::{container_record, names};

use super::place::{self, ENGINE_TYPE};
use super::shown::{self, Seen, State};

/// An existing mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mounted {
    /// The container's id; absent for an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The container's or image's name.
    pub name: String,
    /// The mount point.
    #[serde(serialize_with = "crate::json::path")]
    pub path: PathBuf,
    /// Who serves it: `kernel` (its overlay), `vellum` (the engine) or `bind` (a tree that needs
    /// neither). Absent right after mounting, when `method` says more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<&'static str>,
    /// The method by which it was mounted; absent if it already existed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// The process that served it has ended: it must be mounted again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
}

/// Returns every mount of this store's containers, by container.
pub fn list(ctx: &Context) -> Result<Vec<Mounted>> {
    let table = mountinfo::read()?;
    let mut all = Vec::new();
    for record in ctx.store()?.containers()? {
        let parts = match container_record::parts(ctx, &record) {
            // Removed since the list was read.
            Err(_) if names::is_gone(ctx, &record) => continue,
            found => found?,
        };
        let dead = shown::is_tree_dead(&parts, &table);
        for path in place::places(&parts, &table) {
            all.push(Mounted {
                id: Some(record.id.clone()),
                name: record.name.clone(),
                engine: Some(engine_at(&path, &table)),
                path,
                method: None,
                dead,
            });
        }
    }
    Ok(all)
}

/// Returns who serves the mount at `path`, as [`Mounted::engine`] has it.
fn engine_at(path: &Path, table: &Table) -> &'static str {
    match place::latest(path, table).map(|mount| mount.fs_type.as_bytes()) {
        Some(b"overlay") => "kernel",
        Some(fs_type) if fs_type == ENGINE_TYPE.as_bytes() => "vellum",
        _ => "bind",
    }
}

/// Tells whether a container is mounted, and must stay so after a temporary mount.
pub(crate) fn is_shown(ctx: &Context, record: &ContainerRecord) -> Result<bool> {
    // A dead one is mounted again and then stays, as it was meant to.
    let parts = container_record::parts(ctx, record)?;
    let at_place = Seen::look(&parts)?.at_place();
    Ok(at_place.is_none_or(|shown| shown.state() != State::Nothing))
}

/// Returns where images of this store are mounted: read-only mounts of its layers that belong to no
/// container.
pub(crate) fn images(ctx: &Context) -> Result<Vec<PathBuf>> {
    let store = ctx.store()?;
    let root = store.root().to_path_buf();
    let table = mountinfo::read()?;
    let trees: BTreeSet<String> = {
        let mut trees = BTreeSet::new();
        store.walk(&[], |info| {
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
    let homes = DriverKind::ALL.map(|driver| store.driver_home(driver));
    // The option page has relative names. Those in other stores look alike, but have other random
    // digits.
    let is_layer = |first: &[u8]| {
        let path = Path::new(OsStr::from_bytes(first));
        path.starts_with(&root)
            || (path.is_relative()
                && homes
                    .iter()
                    .any(|home| fs::symlink_metadata(home.join(path)).is_ok()))
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
        // If it was unmounted in the meantime, it does not count.
        let overlay = m.fs_type == "overlay" && m.fs_options().is_ok_and(|o| has_layers(&o));
        let engine = m.fs_type == ENGINE_TYPE && Path::new(&m.source) == root;
        overlay || engine || (m.is_read_only() && shows_tree(&m.root))
    };
    let inside = |m: &&mountinfo::Mount| m.mount_point.starts_with(&root);
    // The containers' own mounts, inside, come first: then the options of only the others must be
    // read.
    Ok(table
        .mounts()
        .iter()
        .filter(|m| !inside(m))
        .filter(of_ours)
        .map(|m| m.mount_point.clone())
        .collect())
}

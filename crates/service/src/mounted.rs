//! What of the store is mounted where, as the kernel's mount table has it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum_store::{ContainerRecord, DriverKind, Shape, TreeParts};
use vellum_sys::mountinfo::{self, FsOptions, Table};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::place::{self, ENGINE_TYPE, Shows};
use crate::{container, dead, names};

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
        let parts = match container::parts(ctx, &record) {
            // Removed since the list was read.
            Err(_) if names::is_gone(ctx, &record) => continue,
            found => found?,
        };
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

/// Returns where images of this store are mounted: read-only mounts of its layers that no container has.
pub(crate) fn images(ctx: &Context) -> Result<Vec<PathBuf>> {
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

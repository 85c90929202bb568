//! What of the store is mounted where, as the kernel's mount table has it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum_store::{ContainerRecord, DriverKind};
use vellum_sys::mountinfo::{self, FsOptions};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::{container_record, names};

use super::place::{self, ENGINE_TYPE};
use super::shown::{self, Seen, State};

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
    // A dead one is mounted anew and then stays, as it was meant to.
    let parts = container_record::parts(ctx, record)?;
    let at_place = Seen::look(&parts)?.at_place();
    Ok(at_place.is_none_or(|shown| shown.state() != State::Nothing))
}

/// Returns where images of this store are mounted: read-only mounts of its layers that no container
/// has.
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
    // Relative names are what the option page holds; others' stores have such too, but not these
    // random ones.
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
        // One that is gone meanwhile is nobody's.
        let overlay = m.fs_type == "overlay" && m.fs_options().is_ok_and(|o| has_layers(&o));
        let engine = m.fs_type == ENGINE_TYPE && Path::new(&m.source) == root;
        overlay || engine || (m.is_read_only() && shows_tree(&m.root))
    };
    let inside = |m: &&mountinfo::Mount| m.mount_point.starts_with(&root);
    // Those inside, the containers' own, first: it is the options of the others alone that are
    // asked for.
    Ok(table
        .mounts()
        .iter()
        .filter(|m| !inside(m))
        .filter(of_ours)
        .map(|m| m.mount_point.clone())
        .collect())
}

//! Where a tree is mounted according to the mount table: at its own place, at others, or beneath a
//! foreign mount.
//!
//! A mount point alone says little: a foreign mount at `merged`, or over the tree's directory, must
//! neither be taken for the container's nor be unmounted in its place, and nothing may be created
//! in it. That the store itself is not covered has been checked before (see [`crate::home`]).

use std::path::{Path, PathBuf};

use vellum_store::{Shape, TreeParts};
use vellum_sys::mountinfo::{Mount, Table};

use crate::cover::Cover;
use crate::error::{Error, Result};

/// The type of a mount by Vellum's own engine in the mount table.
pub(crate) const ENGINE_TYPE: &str = "fuse.vellum";

/// Returns the latest mount at `place`.
pub(super) fn latest<'t>(place: &Path, table: &'t Table) -> Option<&'t Mount> {
    let mut latest = table.mounts().iter().rev();
    latest.find(|m| m.mount_point == place)
}

/// Returns where a container is mounted, its own place first. Empty if it isn't mounted.
///
/// A tree that needs no mount (driver `native`) counts as mounted only at its bind mounts.
pub(crate) fn places(parts: &TreeParts, table: &Table) -> Vec<PathBuf> {
    let mut found = Vec::new();
    match &parts.shape {
        Shape::Overlay(overlay) => {
            let at = |m: &&Mount| {
                m.mount_point == overlay.merged
                    && (m.fs_type == "overlay" || m.fs_type == ENGINE_TYPE)
            };
            let Some(own) = table.mounts().iter().rev().find(at) else {
                return found;
            };
            found.push(own.mount_point.clone());
            let same = |m: &&Mount| m.dev == own.dev && m.mount_point != own.mount_point;
            found.extend(
                table
                    .mounts()
                    .iter()
                    .filter(same)
                    .map(|m| m.mount_point.clone()),
            );
        }
        Shape::Plain { .. } => {
            // The tree's random name in a bind mount's root identifies it as well as a device
            // number.
            let name = parts.tree.as_str();
            let bound = |m: &&Mount| m.root.components().any(|c| c.as_os_str() == name);
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

/// Tells whether a tree in the driver's directory `home` is mounted at its own place, `merged`.
/// Errors: [`Error::Covered`] if something foreign is mounted there.
pub(super) fn is_shown(home: &Path, merged: &Path, table: &Table) -> Result<bool> {
    let Some(base) = table.chain(home).last().copied() else {
        return Ok(false);
    };
    let over: Vec<&Mount> = table
        .chain(merged)
        .into_iter()
        .skip_while(|m| m.id != base.id)
        .skip(1)
        .collect();
    // A view of a single layer is a bind mount of the store's own file system.
    let is_ours = |m: &Mount| {
        m.mount_point == merged
            && (m.fs_type == "overlay"
                || m.fs_type == ENGINE_TYPE
                || m.dev == base.dev && m.root != Path::new("/"))
    };
    match over.as_slice() {
        [] => return Ok(false),
        [only] if is_ours(only) => return Ok(true),
        _ => {}
    }
    let own = table
        .mounts()
        .iter()
        .find(|m| m.parent == base.id && is_ours(m));
    let covers = table.covering(merged, own.unwrap_or(base).id);
    let path = covers.last().map_or(merged, |m| m.mount_point.as_path());
    Err(Error::Covered {
        path: path.to_path_buf(),
        covers: covers.into_iter().map(Cover::of).collect(),
        note: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mounts: &str, expect: std::result::Result<bool, &[&str]>) {
        let text = format!("1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /data rw - xfs b rw\n{mounts}");
        let table = vellum_sys::mountinfo::parse(text.as_bytes()).unwrap();
        let found = is_shown(
            Path::new("/data/v/overlay2"),
            Path::new("/data/v/overlay2/x/merged"),
            &table,
        );
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect),
            (Err(Error::Covered { covers, .. }), Err(expect)) => {
                let covers: Vec<_> = covers
                    .iter()
                    .map(|c| c.mount_point.to_str().unwrap())
                    .collect();
                assert_eq!(covers, expect);
            }
            (found, expect) => panic!("{found:?}, expected {expect:?}"),
        }
    }

    const OURS: &str = "3 2 0:40 / /data/v/overlay2/x/merged rw - overlay overlay rw,upperdir=/data/v/overlay2/x/diff\n";

    #[test]
    fn a_foreign_mount_is_not_taken_for_the_container() {
        check("", Ok(false));
        check(OURS, Ok(true));
        check(
            "3 2 8:2 /v/overlay2/y/diff /data/v/overlay2/x/merged ro - xfs b rw\n",
            Ok(true),
        );
        check(
            "3 2 0:50 / /data/v/overlay2/x/merged rw - tmpfs t rw\n",
            Err(&["/data/v/overlay2/x/merged"]),
        );
        check(
            "3 2 0:50 / /data/v/overlay2/x rw - tmpfs t rw\n",
            Err(&["/data/v/overlay2/x"]),
        );
        check(
            &format!("{OURS}4 3 0:50 / /data/v/overlay2/x/merged rw - tmpfs t rw\n"),
            Err(&["/data/v/overlay2/x/merged"]),
        );
        check(
            &format!("{OURS}4 2 0:50 / /data/v/overlay2/x rw - tmpfs t rw\n"),
            Err(&["/data/v/overlay2/x"]),
        );
        // A mount inside the container doesn't matter.
        check(
            &format!("{OURS}4 3 0:50 / /data/v/overlay2/x/merged/proc rw - proc p rw\n"),
            Ok(true),
        );
    }
}

//! What shows at a container's own mount place: nothing, the container, or something somebody mounted over it.
//!
//! A mount point alone says little: a foreign mount at `merged`, or over the tree's directory, must neither be taken for the container nor be unmounted in
//! its stead, and nothing may be made in it. The decision is made from the mount table; the store itself has been found uncovered before
//! (see [`crate::home`]).

use std::path::Path;

use vellum_store::Overlay;
use vellum_sys::Dir;
use vellum_sys::mountinfo::{self, Mount, Table};

use crate::dead;
use crate::error::{Error, Result};
use crate::home::Cover;

/// The type of a mount by Vellum's own engine, as the mount table has it.
pub(crate) const ENGINE_TYPE: &str = "fuse.vellum";

/// What shows at the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// The bare directory, or not even that.
    Nothing,
    /// The container.
    Container,
    /// What is left of its mount by Vellum's engine whose process has ended: every access gives ENOTCONN. See [`crate::dead`].
    Dead,
}

/// Tells what shows at `overlay.merged`. Errors: [`Error::Covered`] if something foreign does.
pub fn look(overlay: &Overlay) -> Result<Shows> {
    look_in(overlay, &mountinfo::read()?)
}

/// As [`look`], for a caller that has just read the mount table.
pub(crate) fn look_in(overlay: &Overlay, table: &Table) -> Result<Shows> {
    match judge(&overlay.home, &overlay.merged, table)? {
        Shows::Container if dead::is_dead(overlay, table) => Ok(Shows::Dead),
        shows => Ok(shows),
    }
}

/// Tells whether the mount at `overlay.merged` is one of Vellum's own engine.
pub(crate) fn is_engines(overlay: &Overlay, table: &Table) -> bool {
    let mut latest = table.mounts().iter().rev();
    let found = latest.find(|m| m.mount_point == overlay.merged);
    found.is_some_and(|m| m.fs_type == ENGINE_TYPE)
}

/// Errors with [`Error::Covered`] if something is mounted over `tree`, a directory in the driver's directory `home`.
///
/// To be asked before the store looks into the tree: it would put right what it takes for damaged.
pub fn uncovered(home: &Path, tree: &Path) -> Result<()> {
    // A tree that is missing is for the store to name.
    let (Ok(above), Ok(here)) = (Dir::open(home), Dir::open(tree)) else {
        return Ok(());
    };
    if above.stat_self()?.mnt_id == here.stat_self()?.mnt_id {
        return Ok(());
    }
    let table = mountinfo::read()?;
    let covers = table
        .chain(home)
        .last()
        .map(|base| table.covering(tree, base.id))
        .unwrap_or_default();
    if covers.is_empty() {
        return Ok(());
    }
    let covers = covers.into_iter().map(Cover::of).collect();
    Err(Error::Covered {
        path: tree.to_path_buf(),
        covers,
        note: None,
    })
}

fn judge(home: &Path, merged: &Path, table: &Table) -> Result<Shows> {
    let Some(base) = table.chain(home).last().copied() else {
        return Ok(Shows::Nothing);
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
        [] => return Ok(Shows::Nothing),
        [only] if is_ours(only) => return Ok(Shows::Container),
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
    fn check(mounts: &str, expect: std::result::Result<Shows, &[&str]>) {
        let text = format!("1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /data rw - xfs b rw\n{mounts}");
        let table = mountinfo::parse(text.as_bytes()).unwrap();
        let found = judge(
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
        check("", Ok(Shows::Nothing));
        check(OURS, Ok(Shows::Container));
        check(
            "3 2 8:2 /v/overlay2/y/diff /data/v/overlay2/x/merged ro - xfs b rw\n",
            Ok(Shows::Container),
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
        // A mount in the container is its own affair.
        check(
            &format!("{OURS}4 3 0:50 / /data/v/overlay2/x/merged/proc rw - proc p rw\n"),
            Ok(Shows::Container),
        );
    }
}

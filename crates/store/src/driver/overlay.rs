//! The layout of Docker's first `overlay` driver: one lower only.
//!
//! ```text
//! overlay/             0700
//!   <id>/              0700
//!     root/            a layer, or what began empty: the whole tree, unchanged files being
//!                      hard links to the parent's
//!     lower-id         0600   the parent's id; in a writable tree on a layer
//!     upper/           its changes
//!     work/            0700
//!     merged/          0700   its mount point
//! ```
//!
//! A layer costs its directories and a name for each file. A file whose inode has as many names as
//! it can have is copied. Marks other than whiteouts and opaque directories can't be kept in plain
//! trees, so such trees are mounted without redirect_dir and metacopy.

use std::path::{Path, PathBuf};

use vellum_format::Prefix;
use vellum_sys::{Process, plain};

use super::{
    DriverKind, Finding, LayerDir, LayerMarks, NewTree, Overlay, Shape, TreeRef,
    overlay2::{check_small, copy_root_attributes, write_small},
};
use crate::{
    clone::{Files, clone_tree, merge_upper},
    error::{Result, StoreError},
    layout::{self, Layout, damaged, exists, make_dir},
    snapshot::{SnapshotKind, Usage},
    walk,
};

pub(super) struct Overlay1;

fn dir_of(layout: &Layout, tree: &TreeRef) -> PathBuf {
    layout.tree(DriverKind::Overlay, &tree.id)
}

fn root_of(layout: &Layout, tree: &TreeRef) -> PathBuf {
    dir_of(layout, tree).join("root")
}

/// What a writable tree has and a layer doesn't.
const WRITABLE: [&str; 4] = ["upper", "work", "merged", "lower-id"];

impl super::Driver for Overlay1 {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn marks(&self) -> LayerMarks {
        LayerMarks::Whole
    }

    fn create_home(&self, layout: &Layout, any_file_system: bool) -> Result<()> {
        let home = layout.driver(DriverKind::Overlay);
        super::make_stacking_home(&home, 0o700, any_file_system)
    }

    fn stage(&self, layout: &Layout, dir: &Path, new: &NewTree<'_>) -> Result<bool> {
        match (new.parents.first(), new.kind) {
            (None, _) => make_dir(&dir.join("root"), 0o755).map(|()| false),
            (Some(_), SnapshotKind::View) => Ok(false),
            (Some(parent), SnapshotKind::Committed) => {
                make_dir(&dir.join("root"), 0o755)?;
                clone_tree(&root_of(layout, parent), &dir.join("root"), Files::Link)?;
                Ok(true)
            }
            (Some(parent), SnapshotKind::Active) => {
                make_dir(&dir.join("upper"), 0o755)?;
                copy_root_attributes(&root_of(layout, parent), &dir.join("upper"))?;
                make_dir(&dir.join("work"), 0o700)?;
                make_dir(&dir.join("merged"), 0o700)?;
                write_small(&dir.join("lower-id"), parent.id.as_str().as_bytes(), 0o600)?;
                Ok(false)
            }
        }
    }

    fn staged_parts(&self, new: &NewTree<'_>) -> Vec<&'static str> {
        match (new.parents.is_empty(), new.kind) {
            (true, _) | (_, SnapshotKind::Committed) => vec!["root"],
            (_, SnapshotKind::View) => vec![],
            (_, SnapshotKind::Active) => WRITABLE.to_vec(),
        }
    }

    fn fill(&self, dir: &Path) -> PathBuf {
        dir.join("root")
    }

    fn seal(&self, layout: &Layout, dir: &Path, tree: &TreeRef, parents: &[TreeRef]) -> Result<()> {
        let Some(parent) = parents.first() else {
            return Ok(());
        };
        let upper = dir.join("upper");
        if tree.kind != SnapshotKind::Active || !exists(&upper)? {
            return Ok(());
        }
        let home = layout::dir(dir)?;
        // An interrupted commit may have left either: both are older than the upper.
        home.remove_tree("tmproot")?;
        home.remove_tree("root")?;
        let fresh = dir.join("tmproot");
        make_dir(&fresh, 0o755)?;
        let prefix = match tree.features {
            Some(features) if features.userxattr => Prefix::User,
            Some(_) => Prefix::Trusted,
            None => Process::read().prefix(),
        };
        clone_tree(&root_of(layout, parent), &fresh, Files::Link)?;
        merge_upper(&upper, &fresh, prefix)?;
        plain::rename(&fresh, &dir.join("root")).map_err(damaged)
    }

    fn settle(&self, dir: &Path) -> Result<()> {
        let home = layout::dir(dir)?;
        for name in WRITABLE {
            home.remove_tree(name)?;
        }
        Ok(())
    }

    fn rebase(&self, dir: &Path, _: &[TreeRef]) -> Result<()> {
        Err(StoreError::Unsupported {
            what: format!("putting {} on a parent", dir.display()),
            why: "the overlay driver keeps whole layers; prepare it on the parent instead".into(),
        })
    }

    fn usage(
        &self,
        layout: &Layout,
        dir: &Path,
        tree: &TreeRef,
        parents: &[TreeRef],
    ) -> Result<Usage> {
        match (tree.kind, parents.first()) {
            (SnapshotKind::Active, Some(_)) => walk::usage(&dir.join("upper"), None),
            (_, None) => walk::usage(&dir.join("root"), None),
            (_, Some(parent)) => {
                let shared = walk::shared_inodes(&root_of(layout, parent))?;
                walk::usage(&dir.join("root"), Some(&shared))
            }
        }
    }

    fn shape(&self, layout: &Layout, tree: &TreeRef, parents: &[TreeRef]) -> Shape {
        let own = dir_of(layout, tree);
        let layer = |tree: &TreeRef, dir: PathBuf| LayerDir {
            tree: tree.id.clone(),
            dir,
            link: None,
            diff_id: tree.diff_id,
            features: tree.features,
        };
        match (tree.kind, parents.first()) {
            (SnapshotKind::Active, Some(parent)) => Shape::Overlay(Overlay {
                home: layout.driver(DriverKind::Overlay),
                lowers: vec![layer(parent, root_of(layout, parent))],
                upper: Some(layer(tree, own.join("upper"))),
                work: Some(own.join("work")),
                merged: own.join("merged"),
            }),
            (SnapshotKind::View, Some(parent)) => Shape::Plain {
                root: root_of(layout, parent),
                read_only: true,
                base: None,
            },
            (kind, parent) => Shape::Plain {
                root: own.join("root"),
                read_only: kind != SnapshotKind::Active,
                base: parent.map(|parent| root_of(layout, parent)),
            },
        }
    }

    fn ready(&self, layout: &Layout, parent: &TreeRef, _: bool) -> Result<Vec<Finding>> {
        Finding::unless_there(&root_of(layout, parent))
    }

    fn check(
        &self,
        layout: &Layout,
        tree: &TreeRef,
        parents: &[TreeRef],
        heal: bool,
    ) -> Result<Vec<Finding>> {
        let dir = dir_of(layout, tree);
        let mut found = Vec::new();
        let (needed, others): (&[&str], &[&str]) = match (tree.kind, parents.is_empty()) {
            (_, true) => (&["root"], &[]),
            (SnapshotKind::Committed, false) => (&["root"], &WRITABLE),
            (SnapshotKind::Active, false) => (&["upper"], &["root", "tmproot"]),
            (SnapshotKind::View, false) => (&[], &[]),
        };
        for name in needed {
            found.extend(Finding::unless_there(&dir.join(name))?);
        }
        for name in others {
            if exists(&dir.join(name))? {
                if heal {
                    layout::dir(&dir)?.remove_tree(name)?;
                }
                found.push(Finding {
                    what: dir.join(name).display().to_string(),
                    why: "left by an interrupted commit".into(),
                    healed: heal,
                });
            }
        }
        if let (SnapshotKind::Active, Some(parent)) = (tree.kind, parents.first()) {
            // `merged` is created and removed with the mount.
            found.extend(Finding::unless_made(&dir.join("work"), 0o700, heal)?);
            let path = dir.join("lower-id");
            found.extend(check_small(&path, parent.id.as_str(), 0o600, heal)?);
        }
        Ok(found)
    }
}

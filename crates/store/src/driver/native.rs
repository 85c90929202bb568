//! The `native` layout: every tree is a whole, plain directory, copied from its parent.
//!
//! ```text
//! native/              0700
//!   <id>/              0700
//!     root/            the tree; absent in a view of a layer, which shows the layer's
//! ```
//!
//! Works on any file system that can hold the attributes; where it can share blocks (XFS, btrfs),
//! copies cost metadata only.

use std::path::{Path, PathBuf};

use super::{DriverKind, Finding, LayerMarks, NewTree, Shape, TreeRef};
use crate::{
    clone::{Files, clone_tree},
    error::{Result, StoreError},
    layout::{Layout, make_dir},
    snapshot::{SnapshotKind, Usage},
    walk,
};

pub(super) struct Native;

fn root_of(layout: &Layout, tree: &TreeRef) -> PathBuf {
    layout.tree(DriverKind::Native, &tree.id).join("root")
}

impl super::Driver for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn other_names(&self) -> &'static [&'static str] {
        &["vfs"]
    }

    fn marks(&self) -> LayerMarks {
        LayerMarks::Plain
    }

    fn create_home(&self, layout: &Layout, _: bool) -> Result<()> {
        make_dir(&layout.driver(DriverKind::Native), 0o700)
    }

    fn stage(&self, layout: &Layout, dir: &Path, new: &NewTree<'_>) -> Result<bool> {
        let root = dir.join("root");
        match (new.parents.first(), new.kind) {
            (Some(_), SnapshotKind::View) => Ok(false),
            (None, _) => make_dir(&root, 0o755).map(|()| false),
            (Some(parent), SnapshotKind::Active | SnapshotKind::Committed) => {
                make_dir(&root, 0o755)?;
                clone_tree(&root_of(layout, parent), &root, Files::Copy)?;
                Ok(true)
            }
        }
    }

    fn staged_parts(&self, new: &NewTree<'_>) -> Vec<&'static str> {
        if new.kind == SnapshotKind::View && !new.parents.is_empty() {
            vec![]
        } else {
            vec!["root"]
        }
    }

    fn fill(&self, dir: &Path) -> PathBuf {
        dir.join("root")
    }

    fn seal(&self, _: &Layout, _: &Path, _: &TreeRef, _: &[TreeRef]) -> Result<()> {
        Ok(())
    }

    fn settle(&self, _: &Path) -> Result<()> {
        Ok(())
    }

    fn rebase(&self, dir: &Path, _: &[TreeRef]) -> Result<()> {
        Err(StoreError::Unsupported {
            what: format!("putting {} on a parent", dir.display()),
            why: "the native driver keeps whole trees; prepare it on the parent instead".into(),
        })
    }

    fn usage(&self, _: &Layout, dir: &Path, _: &TreeRef, _: &[TreeRef]) -> Result<Usage> {
        walk::usage(&dir.join("root"), None)
    }

    fn shape(&self, layout: &Layout, tree: &TreeRef, parents: &[TreeRef]) -> Shape {
        let base = parents.first().map(|parent| root_of(layout, parent));
        match (tree.kind, base) {
            (SnapshotKind::View, Some(base)) => Shape::Plain {
                root: base,
                read_only: true,
                base: None,
            },
            (kind, base) => Shape::Plain {
                root: root_of(layout, tree),
                read_only: kind != SnapshotKind::Active,
                base,
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
        _: bool,
    ) -> Result<Vec<Finding>> {
        let root = root_of(layout, tree);
        match tree.kind == SnapshotKind::View && !parents.is_empty() {
            true => Ok(Vec::new()),
            false => Finding::unless_there(&root),
        }
    }
}

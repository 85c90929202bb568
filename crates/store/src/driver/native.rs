//! The `native` layout: every tree is a full copy.

use std::path::{Path, PathBuf};

use super::{Finding, LayerMarks, LinkId, NewTree, Shape, TreeRef};
use crate::{
    error::{Result, StoreError},
    layout::Layout,
    snapshot::Usage,
};

pub(super) struct Native;

fn not_yet<T>() -> Result<T> {
    Err(StoreError::Unsupported {
        what: "storage driver native".into(),
        why: "this build has overlay2 only".into(),
    })
}

impl super::Driver for Native {
    fn create_home(&self, _: &Layout) -> Result<()> {
        not_yet()
    }
    fn stacks(&self) -> bool {
        false
    }

    fn has_links(&self) -> bool {
        false
    }
    fn stage(&self, _: &Layout, _: &Path, _: &NewTree<'_>) -> Result<bool> {
        not_yet()
    }
    fn staged_parts(&self, _: &NewTree<'_>) -> Vec<&'static str> {
        vec![]
    }
    fn link(&self, _: &Layout, _: &NewTree<'_>) -> Result<()> {
        Ok(())
    }
    fn unlink(&self, _: &Layout, _: Option<&LinkId>) -> Result<()> {
        Ok(())
    }
    fn fill(&self, dir: &Path) -> (PathBuf, LayerMarks) {
        (dir.join("root"), LayerMarks::Plain)
    }
    fn seal(&self, _: &Layout, _: &Path, _: &TreeRef, _: &[TreeRef]) -> Result<()> {
        not_yet()
    }
    fn settle(&self, _: &Path) -> Result<()> {
        Ok(())
    }
    fn rebase(&self, _: &Path, _: &[TreeRef]) -> Result<()> {
        not_yet()
    }
    fn usage(&self, _: &Layout, _: &Path, _: &TreeRef, _: &[TreeRef]) -> Result<Usage> {
        not_yet()
    }
    fn shape(&self, layout: &Layout, tree: &TreeRef, _: &[TreeRef]) -> Shape {
        Shape::Plain {
            root: layout.tree(super::DriverKind::Native, &tree.id),
            read_only: true,
            base: None,
        }
    }
    fn check(&self, _: &Layout, _: &TreeRef, _: &[TreeRef], _: bool) -> Result<Vec<Finding>> {
        not_yet()
    }
}

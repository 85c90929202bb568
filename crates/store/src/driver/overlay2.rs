//! The `overlay2` layout, exactly Docker's.
//!
//! ```text
//! overlay2/            0710
//!   l/                 0700   l/<26 letters> -> ../<id>/diff
//!   <id>/              0710
//!     diff/            what the layer holds; mode and owner are the root directory's own
//!     link             0644   the 26 letters
//!     lower            0644   l/AAA:l/BBB, nearest parent first; absent without a parent
//!     work/            0700   absent without a parent and in views
//!     committed        0600   empty; the tree is a layer and mounts read-only
//!     merged/          0700   only while something is mounted there
//! ```
//!
//! `link`, `lower` and `l/` are derived from the record and are repaired when they disagree with
//! it, so that an empty `link` (what a power loss leaves) never makes `l/` itself a layer.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use vellum_sys::{
    plain::{self, Links},
    rooted, with_causes,
};

use super::{
    DriverKind, Finding, LayerDir, LayerMarks, LinkId, NewTree, Overlay, Shape, TreeId, TreeRef,
    make_stacking_home,
};
use crate::{
    clone::copy_attributes,
    error::{IoContext, Result, StoreError},
    layout::{self, Layout, damaged, make_dir, set_mode},
    snapshot::{SnapshotKind, Usage},
    walk,
};

pub(super) struct Overlay2;

fn home(layout: &Layout) -> PathBuf {
    layout.driver(DriverKind::Overlay2)
}

/// The directory of short names, as it appears in `lower` and in mount options.
const LINKS: &str = "l";

fn link_at(layout: &Layout, link: &LinkId) -> PathBuf {
    home(layout).join(LINKS).join(link.as_str())
}

/// The target of a short name: the path from [`LINKS`] to a layer's directory.
fn link_target(tree: &TreeId) -> String {
    format!("../{tree}/diff")
}

fn link_of(tree: &TreeRef) -> Result<&LinkId> {
    tree.link.as_ref().ok_or_else(|| StoreError::Damaged {
        what: format!("the record of tree {}", tree.id),
        why: "it has no link name".into(),
    })
}

fn lower_line(parents: &[TreeRef]) -> Result<String> {
    let links: Vec<String> = parents
        .iter()
        .map(|parent| Ok(format!("{LINKS}/{}", link_of(parent)?.as_str())))
        .collect::<Result<_>>()?;
    Ok(links.join(":"))
}

/// Writes a small derived file, replacing whatever was there. It opens only what it has created
/// itself.
pub(super) fn write_small(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let (dir, name) = plain::place("write", path, Links::Nowhere).map_err(damaged)?;
    let mut file = match dir.create_file(name, 0o600) {
        Err(e) if e.is_exists() => {
            dir.unlink(name)?;
            dir.create_file(name, 0o600)?
        }
        made => made?,
    };
    rooted::set_mode_fd(&file, mode)?;
    file.write_all(bytes).on("write", path)
}

/// Compares a small file with what the record implies.
pub(super) fn check_small(
    path: &Path,
    expect: &str,
    mode: u32,
    heal: bool,
) -> Result<Option<Finding>> {
    let why = match layout::read_small(path) {
        Ok(Some(bytes)) if bytes == expect.as_bytes() => return Ok(None),
        Ok(None) => "missing".to_owned(),
        Ok(Some(bytes)) if bytes.is_empty() => "empty".to_owned(),
        Ok(Some(_)) => "differs from the record".to_owned(),
        Err(StoreError::Damaged { why, .. }) => why,
        // It says nothing that the record doesn't.
        Err(e) => with_causes(&e),
    };
    if heal {
        replace_small(path, expect.as_bytes(), mode)?;
    }
    Ok(Some(Finding {
        what: path.display().to_string(),
        why,
        healed: heal,
    }))
}

/// Gives `dir` the attributes of `model`'s root directory, except marks: owner, xattrs, mode, time.
/// The merged root shows the upper's.
pub(super) fn copy_root_attributes(model: &Path, dir: &Path) -> Result<()> {
    copy_attributes(&layout::dir(model)?, &layout::dir(dir)?)
}

impl super::Driver for Overlay2 {
    fn name(&self) -> &'static str {
        "overlay2"
    }

    fn other_names(&self) -> &'static [&'static str] {
        &["overlayfs"]
    }

    fn marks(&self) -> LayerMarks {
        LayerMarks::Overlay
    }

    fn keeps_mount_points(&self) -> bool {
        false
    }

    fn create_home(&self, layout: &Layout, any_file_system: bool) -> Result<()> {
        make_stacking_home(&home(layout), 0o710, any_file_system)?;
        make_dir(&home(layout).join(LINKS), 0o700)
    }

    fn links(&self) -> Option<&'static str> {
        Some(LINKS)
    }

    fn leads_to(&self, layout: &Layout, link: &LinkId) -> Option<TreeId> {
        // The link's text is read, not followed: it may say anything.
        let target = std::fs::read_link(link_at(layout, link)).ok()?;
        let tree = target
            .to_str()?
            .strip_prefix("../")?
            .strip_suffix("/diff")?;
        TreeId::try_from(tree.to_owned()).ok()
    }

    fn stage(&self, layout: &Layout, dir: &Path, new: &NewTree<'_>) -> Result<bool> {
        set_mode(dir, 0o710)?;
        let diff = dir.join("diff");
        make_dir(&diff, 0o755)?;
        if let Some(link) = new.link {
            write_small(&dir.join("link"), link.as_str().as_bytes(), 0o644)?;
        }
        if let Some(parent) = new.parents.first() {
            copy_root_attributes(
                &layout.tree(DriverKind::Overlay2, &parent.id).join("diff"),
                &diff,
            )?;
            write_small(
                &dir.join("lower"),
                lower_line(new.parents)?.as_bytes(),
                0o644,
            )?;
            if new.kind != SnapshotKind::View {
                make_dir(&dir.join("work"), 0o700)?;
            }
        }
        Ok(false)
    }

    fn staged_parts(&self, new: &NewTree<'_>) -> Vec<&'static str> {
        let mut parts = vec!["diff", "link"];
        if !new.parents.is_empty() {
            parts.push("lower");
            if new.kind != SnapshotKind::View {
                parts.push("work");
            }
        }
        parts
    }

    fn link(&self, layout: &Layout, new: &NewTree<'_>) -> Result<()> {
        let Some(link) = new.link else { return Ok(()) };
        make_link(&link_at(layout, link), &link_target(new.id))
    }

    fn unlink(&self, layout: &Layout, link: Option<&LinkId>) -> Result<()> {
        let Some(link) = link else { return Ok(()) };
        plain::unlink(&link_at(layout, link))
            .map(drop)
            .map_err(damaged)
    }

    fn fill(&self, dir: &Path) -> PathBuf {
        dir.join("diff")
    }

    fn seal(
        &self,
        _layout: &Layout,
        dir: &Path,
        _tree: &TreeRef,
        _parents: &[TreeRef],
    ) -> Result<()> {
        write_small(&dir.join("committed"), b"", 0o600)
    }

    fn settle(&self, _dir: &Path) -> Result<()> {
        Ok(())
    }

    fn rebase(&self, dir: &Path, parents: &[TreeRef]) -> Result<()> {
        make_dir(&dir.join("work"), 0o700)?;
        write_small(&dir.join("lower"), lower_line(parents)?.as_bytes(), 0o644)
    }

    fn usage(
        &self,
        _layout: &Layout,
        dir: &Path,
        _tree: &TreeRef,
        _parents: &[TreeRef],
    ) -> Result<Usage> {
        walk::usage(&dir.join("diff"), None)
    }

    fn shape(&self, layout: &Layout, tree: &TreeRef, parents: &[TreeRef]) -> Shape {
        let own = layout.tree(DriverKind::Overlay2, &tree.id);
        let layer = |tree: &TreeRef| LayerDir {
            tree: tree.id.clone(),
            dir: layout.tree(DriverKind::Overlay2, &tree.id).join("diff"),
            link: tree
                .link
                .as_ref()
                .map(|link| Path::new(LINKS).join(link.as_str())),
            diff_id: tree.diff_id,
            features: tree.features,
        };
        let stacked = |lowers: Vec<LayerDir>, writable: bool| {
            Shape::Overlay(Overlay {
                home: home(layout),
                lowers,
                upper: writable.then(|| layer(tree)),
                work: writable.then(|| own.join("work")),
                merged: own.join("merged"),
            })
        };
        let plain = |root: PathBuf, read_only| Shape::Plain {
            root,
            read_only,
            base: None,
        };
        let lowers: Vec<LayerDir> = parents.iter().map(layer).collect();
        match (tree.kind, lowers.as_slice()) {
            (SnapshotKind::Active, []) => plain(own.join("diff"), false),
            (SnapshotKind::Active, _) => stacked(lowers, true),
            (SnapshotKind::Committed | SnapshotKind::View, []) => plain(own.join("diff"), true),
            (SnapshotKind::View, [only]) => plain(only.dir.clone(), true),
            (SnapshotKind::View, _) => stacked(lowers, false),
            (SnapshotKind::Committed, _) => {
                stacked(std::iter::once(layer(tree)).chain(lowers).collect(), false)
            }
        }
    }

    fn ready(&self, layout: &Layout, parent: &TreeRef, heal: bool) -> Result<Vec<Finding>> {
        let diff = layout.tree(DriverKind::Overlay2, &parent.id).join("diff");
        match Finding::unless_there(&diff)? {
            found if found.is_empty() => check_link(layout, parent, heal),
            found => Ok(found),
        }
    }

    fn check(
        &self,
        layout: &Layout,
        tree: &TreeRef,
        parents: &[TreeRef],
        heal: bool,
    ) -> Result<Vec<Finding>> {
        let dir = layout.tree(DriverKind::Overlay2, &tree.id);
        let mut found = Finding::unless_there(&dir.join("diff"))?;
        if !found.is_empty() {
            return Ok(found);
        }
        let mut small = |name, expect: &str, mode| -> Result<()> {
            found.extend(check_small(&dir.join(name), expect, mode, heal)?);
            Ok(())
        };
        small("link", link_of(tree)?.as_str(), 0o644)?;
        if !parents.is_empty() {
            small("lower", &lower_line(parents)?, 0o644)?;
        }
        if tree.kind == SnapshotKind::Committed {
            small("committed", "", 0o600)?;
        }
        found.extend(check_link(layout, tree, heal)?);
        let work = dir.join("work");
        found.extend(match tree.kind {
            SnapshotKind::Active if !parents.is_empty() => {
                Finding::unless_made(&work, 0o700, heal)?
            }
            // Nothing uses it any more, but a link there would still lead out of the store.
            _ => Finding::unless_made_or_missing(&work, 0o700, heal)?,
        });
        Ok(found)
    }
}

/// Creates a symbolic link in a directory of the store.
fn make_link(at: &Path, target: &str) -> Result<()> {
    let (dir, name) = plain::place("link", at, Links::Nowhere).map_err(damaged)?;
    Ok(dir.symlink(target, name)?)
}

/// Compares the short name of a tree with its record.
fn check_link(layout: &Layout, tree: &TreeRef, heal: bool) -> Result<Vec<Finding>> {
    let link = link_of(tree)?;
    let links = home(layout).join(LINKS);
    let at = link_at(layout, link);
    let target = link_target(&tree.id);
    let found = layout::dir(&links).map(|dir| dir.read_link(link.as_str()));
    let why = match found {
        Ok(Ok(got)) if got == *target => return Ok(Vec::new()),
        Ok(Ok(_)) => "points to something else",
        Ok(Err(e)) if e.is_not_found() => "missing",
        Ok(Err(_)) => "not a link",
        Err(StoreError::Sys(e)) if e.is_not_found() => "missing",
        Err(e) => return Err(e),
    };
    if heal {
        make_dir(&links, 0o700)?;
        // Not atomic, but what is replaced is wrong, and a process in between does the same.
        plain::unlink(&at).map_err(damaged)?;
        match make_link(&at, &target) {
            Err(StoreError::Sys(e)) if e.is_exists() => {}
            made => made?,
        }
    }
    Ok(vec![Finding {
        what: at.display().to_string(),
        why: why.into(),
        healed: heal,
    }])
}

/// Replaces a small file atomically: a reader sees the old or the new one, never an empty one.
fn replace_small(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    write_small(&fresh, bytes, mode)?;
    if let Some(file) = layout::open(&fresh)? {
        file.sync_all().on("sync", &fresh)?;
    }
    plain::rename(&fresh, path).map_err(damaged)
}

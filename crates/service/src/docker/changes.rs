//! The changes of a layer, as a tar, a list or a size; and a layer's content from a tar.
//!
//! Against its parent, only the layer itself is read; against any other layer, both trees are read
//! in full. A layer that came as a tar is returned as the same tar, byte for byte, so the daemon
//! needs no record of its own for it.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use vellum_image::recipe;
use vellum_store::{Info, Keep, LayerCommit, Registered, Shape, SnapshotKind, Sweep, TreeParts};
use vellum_sys::{Cancel, Dir, FileKind, Process};
use vellum_union::{Change, ChangeKind, Form};

use super::{Graph, READ_WRITE, check_id, layer_key};
use crate::container::diff;
use crate::error::{Error, Result};
use crate::image::{fill_on, left_out, unmarked};
use crate::layer::layer_tar::{self, piped};
use crate::stack;

/// The bytes of a tar while it is produced. A failure on the way is an error of the last read.
pub type TarStream = Box<dyn Read + Send>;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphChange {
    /// The path, with a leading slash.
    pub path: std::path::PathBuf,
    /// What happened.
    pub kind: ChangeKind,
}

type Stream = Box<dyn Iterator<Item = vellum_union::Result<Change>> + Send>;

impl Graph {
    /// Returns the changes of `id` against `parent` (everything, if that is empty) as a tar, with
    /// whiteouts as `.wh.` names.
    ///
    /// Errors: `NotFound`; everything that can be found out before the first byte.
    pub fn diff(&self, id: &str, parent: &str, cancel: &Cancel) -> Result<TarStream> {
        let found = self.get_info(id)?;
        let cancel = cancel.clone();
        if self.stands_on(&found, parent)?
            && let Some(diff_id) = &found.diff_id
            && let Some(mut recipe) = self.store()?.open_recipe(diff_id)?
        {
            let layers = self.parts(&found)?.layers();
            let Some(top) = layers.first() else {
                return Err(Error::Damaged {
                    what: format!("layer {id}"),
                    why: "it has no tree".into(),
                });
            };
            let tree = Dir::open(&top.dir)?;
            return Ok(Box::new(piped(move |mut out| {
                recipe::replay(&mut recipe, &tree, &mut out, &cancel)?;
                std::io::Write::flush(&mut out).map_err(Error::io("write", Path::new("the diff")))
            })?));
        }
        let changes = self.stream(&found, parent, Form::Layer)?;
        Ok(Box::new(piped(move |out| {
            let mut out = layer_tar::write_changes(changes, out, &cancel)?;
            std::io::Write::flush(&mut out).map_err(Error::io("write", Path::new("the diff")))
        })?))
    }

    /// Returns the changes of `id` against `parent`, sorted by path; the root itself is not listed.
    pub fn changes(&self, id: &str, parent: &str) -> Result<Vec<GraphChange>> {
        let found = self.get_info(id)?;
        let mut all = Vec::new();
        for change in self.stream(&found, parent, Form::Listing)? {
            self.ctx.go_on()?;
            let change = change?;
            if change.path.as_os_str().is_empty() {
                continue;
            }
            all.push(GraphChange {
                path: Path::new("/").join(&change.path),
                kind: change.kind,
            });
        }
        Ok(all)
    }

    /// Returns the sizes of the files and links that `id` changes against `parent`, in bytes; hard
    /// links count once.
    pub fn diff_size(&self, id: &str, parent: &str) -> Result<u64> {
        let found = self.get_info(id)?;
        self.size_against(&found, parent)
    }

    /// Fills the empty layer `id` with a tar, which makes it a layer permanently. Returns its size,
    /// counted like [`Graph::diff_size`].
    ///
    /// Durable on return; after an error the layer is still empty. `tar` is read to its end unless
    /// it is refused. Errors: `NotFound`; `Invalid` if it is filled already, is a container's or
    /// has another parent than `parent`; every defect that a tar can have.
    pub fn apply_diff(
        &self,
        id: &str,
        parent: &str,
        tar: Box<dyn Read + Send>,
        cancel: &Cancel,
    ) -> Result<u64> {
        check_id(id)?;
        let _lock = self.lock(id)?;
        let found = self.get_info(id)?;
        self.check_fillable(id, &found, parent)?;
        let store = self.store()?;
        let filled = fill_on(self.ctx.process, store, found.parent.as_ref(), tar, cancel)?;
        let remarks = [
            unmarked("the tar", &filled.applied),
            left_out("the tar", &filled.applied),
        ];
        for remark in remarks.iter().flatten() {
            tracing::warn!(layer = id, "{remark}");
        }
        let facts = &filled.applied.blob;
        let mut commit = LayerCommit::new(layer_key(id), found.parent.clone());
        commit.keep = Keep::UntilRemoved;
        commit.labels = found.labels.clone();
        commit.diff_id = Some(facts.diff_id);
        commit.tar_bytes = Some(facts.tar_bytes);
        commit.recipe = Some(filled.recipe);
        let info = match store.commit_layer(filled.staged, commit)? {
            Registered::New(info) | Registered::Existing(info) => info,
        };
        // The empty one that it replaces. If a crash leaves it here, it goes when the layer is
        // removed.
        store.remove(&found.key, Sweep::Now)?;
        self.size_against(&info, parent)
    }

    fn check_fillable(&self, id: &str, found: &Info, parent: &str) -> Result<()> {
        let refuse = |why: &str| {
            Err(Error::Invalid {
                what: format!("layer {id} can't be filled with a diff: {why}"),
                hint: Some("remove it and create it again".into()),
            })
        };
        if found.kind != SnapshotKind::Active {
            return refuse("it has been filled, or is another layer's parent");
        }
        if found.labels.contains_key(READ_WRITE) {
            return refuse("it belongs to a container");
        }
        if !self.stands_on(found, parent)? {
            return refuse("the diff is not against its parent");
        }
        let parts = self.parts(found)?;
        let own = match &parts.shape {
            Shape::Overlay(overlay) => overlay.upper.as_ref().map(|upper| upper.dir.clone()),
            Shape::Plain { root, base, .. } if base.is_none() => Some(root.clone()),
            // A full copy of its parent: writes to it can't be seen without comparing the two.
            Shape::Plain { .. } => None,
        };
        if let Some(dir) = own
            && Dir::open(&dir)?.entries()?.next().is_some()
        {
            return refuse("something was written to it");
        }
        Ok(())
    }

    /// Tells whether `parent` is the layer's parent; if it is empty, whether the layer has none.
    fn stands_on(&self, found: &Info, parent: &str) -> Result<bool> {
        Ok(match parent {
            "" => found.parent.is_none(),
            parent => found.parent.as_ref() == Some(&self.get_info(parent)?.key),
        })
    }

    /// Returns the changes of a layer against any other.
    fn stream(&self, found: &Info, parent: &str, form: Form) -> Result<Stream> {
        let parts = self.parts(found)?;
        if self.stands_on(found, parent)? {
            return Ok(Box::new(diff::of_parts(self.ctx.process, &parts, form)?));
        }
        let new = whole(self.ctx.process, &parts)?;
        if parent.is_empty() {
            return Ok(Box::new(new.walk().map(|node| {
                node.map(|node| Change {
                    path: node.path().to_owned(),
                    kind: ChangeKind::Added,
                    node: Some(node),
                    opaque: false,
                })
            })));
        }
        let old = whole(self.ctx.process, &self.parts(&self.get_info(parent)?)?)?;
        Ok(Box::new(vellum_union::compare(&old, &new)?))
    }

    fn size_against(&self, found: &Info, parent: &str) -> Result<u64> {
        let mut seen = HashSet::new();
        let mut sum = 0;
        for change in self.stream(found, parent, Form::Layer)? {
            self.ctx.go_on()?;
            let Some(node) = change?.node else { continue };
            let stat = node.stat();
            let counts = matches!(stat.kind, FileKind::File | FileKind::Symlink);
            if counts && (stat.nlink < 2 || seen.insert(node.identity())) {
                sum += stat.size_bytes;
            }
        }
        Ok(sum)
    }
}

fn whole(process: Process, parts: &TreeParts) -> Result<vellum_union::Stack> {
    match &parts.shape {
        Shape::Plain { root, .. } => stack::plain(process, root),
        Shape::Overlay(_) => stack::of_tree(process, parts),
    }
}

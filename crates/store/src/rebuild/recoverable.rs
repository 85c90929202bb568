//! What a rebuild can restore: record files, and what is next to them.

use std::{collections::BTreeMap, path::Path};

use rusqlite::Connection;
use vellum_format::Digest;
use vellum_sys::{plain, with_causes};

use crate::{
    check::{finding, hash_file},
    driver::{Finding, TreeId},
    error::{DbContext, IoContext, Result},
    layout::{self, Layout},
    located::{Located, Shelf, SidecarKind},
    record::TreeRecord,
    records, rows,
    sidecar::{ContainerFile, ImageFile, Sidecar},
};

/// What record files and directories say exists, looked at before any transaction.
#[derive(Default)]
pub(crate) struct Recoverable {
    pub(super) trees: BTreeMap<TreeId, TreeRecord>,
    pub(super) images: Vec<ImageFile>,
    pub(super) containers: Vec<ContainerFile>,
    pub(super) blobs: Vec<(Digest, u64)>,
    pub(super) recipes: Vec<(Digest, u64)>,
    pub(super) volumes: Vec<String>,
    pub(super) lost: Vec<Finding>,
}

impl Recoverable {
    /// Looks at everything.
    pub(super) fn all(layout: &Layout) -> Result<Self> {
        let mut found = Self::default();
        found.trees(layout)?;
        found.rest(layout, |_| Ok(true))?;
        Ok(found)
    }

    /// Trees that have a record file and no row in this older database, and what belongs to them;
    /// nothing if there is none.
    pub fn without_rows(connection: &mut Connection, layout: &Layout) -> Result<Self> {
        let tx = connection.transaction().db("look for rows")?;
        let mut found = Self::default();
        found.trees(layout)?;
        let mut unknown = BTreeMap::new();
        for (tree, record) in std::mem::take(&mut found.trees) {
            if rows::snapshots::by_tree(&tx, &tree)?.is_none() {
                unknown.insert(tree, record);
            }
        }
        if !unknown.is_empty() {
            found.trees = unknown;
            found.rest(layout, |located| Ok(!rows::is_recorded(&tx, located)?))?;
        }
        // What is only damaged is reported by `check`.
        found.lost.clear();
        Ok(found)
    }

    /// Looks at everything wanted except trees.
    fn rest(&mut self, layout: &Layout, wanted: impl Fn(&Located) -> Result<bool>) -> Result<()> {
        for shelf in [Shelf::Records, Shelf::Blobs, Shelf::Recipes, Shelf::Volumes] {
            for (path, located) in layout.holds(shelf)? {
                if wanted(&located)? {
                    self.look(&path, located)?;
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, path: &Path, located: Located) -> Result<()> {
        match located {
            Located::Sidecar(SidecarKind::Image, Some(_)) => {
                let file = self.sidecar(path);
                self.images.extend(file);
            }
            Located::Sidecar(SidecarKind::Container, Some(_)) => {
                let file = self.sidecar(path);
                self.containers.extend(file);
            }
            Located::Blob(digest) => self.blob(path, digest)?,
            Located::Recipe(Some(diff_id)) => self.recipe(path, diff_id)?,
            Located::Volume(name) if layout::is_dir(&path.join("_data")).unwrap_or(false) => {
                self.volumes.push(name);
            }
            _ => {}
        }
        Ok(())
    }

    fn lose(&mut self, what: impl std::fmt::Display, why: impl Into<String>) {
        self.lost.push(finding(what, why, false));
    }

    fn recipe(&mut self, path: &Path, diff_id: Digest) -> Result<()> {
        match plain::stat(path).map_err(layout::damaged)? {
            Some(there) if there.is_file() => self.recipes.push((diff_id, there.size_bytes)),
            Some(_) => self.lose(path.display(), "not a regular file"),
            None => {}
        }
        Ok(())
    }

    fn trees(&mut self, layout: &Layout) -> Result<()> {
        for (path, located) in layout.holds(Shelf::Records)? {
            let Located::Record(_) = located else {
                continue;
            };
            match TreeRecord::read(&path) {
                Ok(Some((record, _)))
                    if layout::is_dir(&layout.tree(record.driver, &record.tree))
                        .unwrap_or(false) =>
                {
                    self.trees.insert(record.tree.clone(), record);
                }
                Ok(Some((record, _))) => self.lose(&record.key, "its tree is missing"),
                Ok(None) => {}
                Err(e) => self.lose(path.display(), with_causes(&e)),
            }
        }
        Ok(())
    }

    fn sidecar<T: Sidecar>(&mut self, path: &Path) -> Option<T> {
        match records::read::<T>(path) {
            Ok(file) => file.map(|(file, _)| file),
            Err(e) => {
                self.lose(path.display(), with_causes(&e));
                None
            }
        }
    }

    fn blob(&mut self, path: &Path, digest: Digest) -> Result<()> {
        if is_absurd(path)? {
            self.lose(path.display(), "longer than its file system");
            return Ok(());
        }
        match hash_file(path) {
            Ok(Some((actual, bytes))) if actual == digest => self.blobs.push((digest, bytes)),
            Ok(None) => {}
            Ok(Some((actual, _))) => self.lose(path.display(), format!("holds {actual}")),
            Err(e) => self.lose(path.display(), with_causes(&e)),
        }
        Ok(())
    }
}

/// True for a file that claims to be longer than its whole file system: reading its holes would
/// take days.
fn is_absurd(path: &Path) -> Result<bool> {
    let Some(found) = plain::stat(path).map_err(layout::damaged)? else {
        return Ok(false);
    };
    let facts = rustix::fs::statfs(path.parent().unwrap_or(path)).on("stat", path)?;
    let whole = facts.f_blocks.saturating_mul(facts.f_bsize as u64);
    Ok(found.is_file() && found.size_bytes > whole)
}

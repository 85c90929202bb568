//! Which names of a tree lead to which inode.
//!
//! A repair writes into inodes, so it must know every name an inode has: one outside the layer
//! would be changed too.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use vellum_sys::{Cancel, Dir, FileKind};

use super::compare::at;
use crate::error::{Error, Result};

/// The names of everything in a tree that is not a directory, by device and inode number.
#[derive(Default)]
pub(super) struct Names(HashMap<(u64, u64), BTreeSet<PathBuf>>);

impl Names {
    /// Reads a tree. Directories are opened by their whole path, as in a comparison.
    pub fn of(tree: &Dir, cancel: &Cancel) -> Result<Self> {
        let mut names = Self::default();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let dir = tree.open_dir(&path).map_err(at("open", &path))?;
            for entry in dir.entries().map_err(at("list", &path))? {
                let entry = entry.map_err(at("list", &path))?;
                let inner = path.join(&entry.name);
                if entry.kind == FileKind::Dir {
                    waiting.push(inner);
                    continue;
                }
                let stat = dir.stat(&entry.name).map_err(at("look at", &inner))?;
                names.add(stat.identity(), inner);
            }
        }
        Ok(names)
    }

    pub fn add(&mut self, identity: (u64, u64), path: PathBuf) {
        self.0.entry(identity).or_default().insert(path);
    }

    /// Forgets a name, and everything below it.
    pub fn remove(&mut self, path: &Path) {
        for names in self.0.values_mut() {
            names.retain(|name| !name.starts_with(path));
        }
        self.0.retain(|_, names| !names.is_empty());
    }

    /// Returns the names of an inode, sorted.
    pub fn of_inode(&self, identity: (u64, u64)) -> impl Iterator<Item = &PathBuf> {
        self.0.get(&identity).into_iter().flatten()
    }

    pub fn count(&self, identity: (u64, u64)) -> u64 {
        self.0.get(&identity).map_or(0, |names| names.len() as u64)
    }

    pub fn has(&self, identity: (u64, u64)) -> bool {
        self.0.contains_key(&identity)
    }
}

//! Which names of a tree lead to which inode.
//!
//! A repair writes into inodes, so it must know every name an inode has: one outside the layer
//! would be changed too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use vellum_sys::{Cancel, Dir, FileKind};

use super::compare::at;
use crate::error::{Error, Result};

/// The names of everything in a tree that is not a directory.
#[derive(Default)]
pub(super) struct Names {
    /// By device and inode number.
    by_inode: HashMap<(u64, u64), BTreeSet<PathBuf>>,
    /// What is below a directory follows it.
    inodes: BTreeMap<PathBuf, (u64, u64)>,
}

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
        self.by_inode
            .entry(identity)
            .or_default()
            .insert(path.clone());
        self.inodes.insert(path, identity);
    }

    /// Forgets a name, and everything below it.
    pub fn remove(&mut self, path: &Path) {
        let from = self.inodes.range(path.to_owned()..);
        let gone = from.take_while(|(name, _)| name.starts_with(path));
        let gone: Vec<PathBuf> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            if let Some(identity) = self.inodes.remove(&name)
                && let Some(names) = self.by_inode.get_mut(&identity)
            {
                names.remove(&name);
                if names.is_empty() {
                    self.by_inode.remove(&identity);
                }
            }
        }
    }

    /// Returns the names of an inode, sorted.
    pub fn of_inode(&self, identity: (u64, u64)) -> impl Iterator<Item = &PathBuf> {
        self.by_inode.get(&identity).into_iter().flatten()
    }

    pub fn count(&self, identity: (u64, u64)) -> u64 {
        self.by_inode
            .get(&identity)
            .map_or(0, |names| names.len() as u64)
    }

    pub fn has(&self, identity: (u64, u64)) -> bool {
        self.by_inode.contains_key(&identity)
    }
}

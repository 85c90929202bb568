//! The tree of mounts, and which mounts a lookup passes through. Pure.

use std::path::{Path, PathBuf};

use super::Mount;

/// All mounts of one mount namespace, in the kernel's order.
#[derive(Debug, Clone, Default)]
pub struct Table {
    mounts: Vec<Mount>,
}

impl Table {
    pub(super) fn new(mounts: Vec<Mount>) -> Table {
        Table { mounts }
    }

    /// Returns all mounts in the kernel's order.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Returns the mount with id `id`.
    pub fn by_id(&self, id: u64) -> Option<&Mount> {
        self.mounts.iter().find(|m| m.id == id)
    }

    /// Returns every mount whose mount point is `path` or beneath it, hidden ones too, deepest and
    /// topmost first: the order in which to unmount them.
    pub fn beneath(&self, path: &Path) -> Vec<&Mount> {
        let mut found: Vec<(usize, &Mount)> = self
            .mounts
            .iter()
            .enumerate()
            .filter(|(_, m)| m.mount_point.starts_with(path))
            .collect();
        found.sort_by_key(|(i, m)| std::cmp::Reverse((m.mount_point.components().count(), *i)));
        found.into_iter().map(|(_, m)| m).collect()
    }

    /// Returns the mounts a lookup of `path` (absolute, without symbolic links or `..`) passes
    /// through, the root first; the last one is where `path` lives. Empty only if the table has no
    /// root.
    pub fn chain(&self, path: &Path) -> Vec<&Mount> {
        self.chain_without(path, &[])
    }

    /// As [`Table::chain`], as if the mounts with the ids in `gone` did not exist.
    fn chain_without(&self, path: &Path, gone: &[u64]) -> Vec<&Mount> {
        let mut chain = Vec::new();
        let Some(mut at) = self.root(gone) else {
            return chain;
        };
        chain.push(at);
        let mut prefix = PathBuf::from("/");
        for component in path.components() {
            prefix.push(component);
            // Several mounts can be stacked on one mount point: each is the child of the one it
            // covers.
            while let Some(next) = self.child(at.id, &prefix, gone) {
                chain.push(next);
                at = next;
                if chain.len() > self.mounts.len() {
                    return chain;
                }
            }
        }
        chain
    }

    /// Returns what must be unmounted, in this order, to reveal what `path` showed through mount
    /// `home`: the mounts that cover it, topmost first, each preceded by those attached to it.
    /// Empty if nothing hides it.
    ///
    /// `home` is the mount that `path` was on when it was last accessible. If that mount is no
    /// longer in the table, the answer is empty too: then nothing covers it, it was unmounted.
    pub fn covering(&self, path: &Path, home: u64) -> Vec<&Mount> {
        let mut expected = Vec::new();
        let mut at = self.by_id(home);
        while let Some(mount) = at {
            if expected.contains(&mount.id) {
                break;
            }
            expected.push(mount.id);
            at = self.by_id(mount.parent);
        }
        let mut gone = Vec::new();
        if expected.is_empty() {
            return Vec::new();
        }
        // Unmounting one may reveal the next, which was hidden itself.
        while let Some(cover) = self
            .chain_without(path, &gone)
            .into_iter()
            .rev()
            .find(|m| !expected.contains(&m.id))
        {
            let mut hanging = vec![cover.id];
            let mut next = 0;
            while next < hanging.len() {
                let parent = hanging[next];
                let children = self
                    .mounts
                    .iter()
                    .filter(|m| m.parent == parent && m.id != parent);
                hanging.extend(children.map(|m| m.id).filter(|id| !expected.contains(id)));
                next += 1;
            }
            hanging.reverse();
            gone.extend(
                hanging
                    .into_iter()
                    .filter(|id| !gone.contains(id))
                    .collect::<Vec<_>>(),
            );
        }
        gone.into_iter().filter_map(|id| self.by_id(id)).collect()
    }

    fn root(&self, gone: &[u64]) -> Option<&Mount> {
        let known = |id: u64| self.mounts.iter().any(|m| m.id == id);
        let mut at = self
            .mounts
            .iter()
            .find(|m| m.mount_point == Path::new("/") && (m.parent == m.id || !known(m.parent)))?;
        while let Some(over) = self.child(at.id, Path::new("/"), gone) {
            at = over;
        }
        Some(at)
    }

    fn child(&self, parent: u64, place: &Path, gone: &[u64]) -> Option<&Mount> {
        self.mounts.iter().find(|m| {
            m.parent == parent && m.id != parent && m.mount_point == place && !gone.contains(&m.id)
        })
    }
}

//! Which names belong to one inode, in two unions that share no inodes.
//!
//! Hard links can be compared only as groups: each name may be unchanged while the group has
//! changed. This is needed only to compare two whole trees. It walks both once more, and keeps 24
//! bytes for every name of an inode with several names, nothing for other files. Paths are kept as
//! hashes: at worst, in a tree of billions, a collision writes one file too many or leaves a link
//! unjoined.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use crate::Result;
use crate::node::Node;
use crate::stack::Stack;

/// The hard links of an old and a new union.
#[derive(Debug)]
pub(crate) struct LinkGroups {
    hasher: RandomState,
    /// The inode of every linked name in the old union.
    old: HashMap<u64, (u64, u64)>,
    /// The names of every linked inode in the new one.
    new: HashMap<(u64, u64), Vec<u64>>,
}

impl LinkGroups {
    /// Walks both unions.
    pub(crate) fn read(old: &Stack, new: &Stack) -> Result<LinkGroups> {
        let mut groups = LinkGroups {
            hasher: RandomState::new(),
            old: HashMap::new(),
            new: HashMap::new(),
        };
        for node in linked(old) {
            let node = node?;
            groups.old.insert(groups.hash(node.path()), node.identity());
        }
        for node in linked(new) {
            let node = node?;
            let name = groups.hash(node.path());
            groups.new.entry(node.identity()).or_default().push(name);
        }
        Ok(groups)
    }

    /// Returns whether all present names of this file were its names before: then its links need no
    /// entry, since removed names are deletions.
    pub(crate) fn only_shrunk(&self, new: &Node) -> bool {
        let before = self.old.get(&self.hash(new.path()));
        match self.new.get(&new.identity()) {
            None => true,
            Some(names) => {
                before.is_some() && names.iter().all(|name| self.old.get(name) == before)
            }
        }
    }

    fn hash(&self, path: &Path) -> u64 {
        self.hasher.hash_one(path)
    }
}

fn linked(union: &Stack) -> impl Iterator<Item = Result<Node>> {
    union.walk().filter(|node| match node {
        Ok(node) => !node.is_dir() && node.stat().nlink > 1,
        Err(_) => true,
    })
}

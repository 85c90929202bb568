//! Unchanged names that a layer must contain so that hard links stay together.
//!
//! A directory is renamed, and one of its files has another name elsewhere. Both names still lead
//! to one lower file, but only the first is a change. A layer with that name alone would turn one
//! file into two, so the other name is written out too. Read only for
//! [`Form::Layer`](crate::Form::Layer).
//!
//! Cost: one more pass over the changes; and one over the whole union, but only if the changes have
//! a lower inode with more names than were found. Memory: the changed names of lower inodes with
//! several names.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use crate::Result;
use crate::node::Node;
use crate::stack::Stack;

/// Returns the paths, in a set because they are looked up by prefix. Usually empty. `changed` are
/// the paths of `union` that the layer has anyway, with what is there now.
pub(crate) fn left_behind(
    changed: impl Iterator<Item = Result<(PathBuf, Option<Node>)>>,
    union: &Stack,
) -> Result<BTreeSet<PathBuf>> {
    let mut moved: HashMap<_, (u32, BTreeSet<PathBuf>)> = HashMap::new();
    for change in changed {
        // The next reader of the changes gets the same error at this path, and no layer.
        let Ok((path, node)) = change else {
            return Ok(BTreeSet::new());
        };
        // An inode of the top layer itself has all its names in that layer, so all are changes.
        if let Some(node) = node
            && !node.is_dir()
            && node.stat().nlink > 1
            && node.layer() > 0
        {
            let (_, seen) = moved
                .entry(node.identity())
                .or_insert_with(|| (node.stat().nlink, BTreeSet::new()));
            seen.insert(path);
        }
    }
    moved.retain(|_, (nlink, seen)| seen.len() < *nlink as usize);
    let mut found = BTreeSet::new();
    if moved.is_empty() {
        return Ok(found);
    }
    for node in union.walk() {
        let node = node?;
        if moved
            .get(&node.identity())
            .is_some_and(|(_, seen)| !seen.contains(node.path()))
        {
            found.insert(node.path().to_owned());
        }
    }
    Ok(found)
}

//! Folds several layers into one layer that shows the same, whatever is below it.
//!
//! Everything the layers show is written out, every directory that hides what is below is opaque,
//! and a name is hidden if the topmost layer that has it, or a whiteout of it, hides it. Marks that
//! point elsewhere (redirect, metacopy) are resolved; if they point outside these layers, that is
//! an error.

use std::ffi::OsString;

use crate::Result;
use crate::changes::{Change, ChangeKind};
use crate::node::Node;
use crate::stack::{OPEN_LEVELS, Stack};

/// Returns the content of one layer equivalent to all of `layers`, in path order, without the root.
pub fn folded(layers: &Stack) -> Folded {
    Folded {
        layers: layers.clone(),
        frames: Vec::new(),
        begun: false,
        failed: false,
    }
}

/// The content of a folded layer as a stream; see [`folded`]. It ends after an error.
#[derive(Debug)]
pub struct Folded {
    layers: Stack,
    frames: Vec<Frame>,
    begun: bool,
    failed: bool,
}

#[derive(Debug)]
struct Frame {
    dir: Node,
    /// Nothing from below shows here, so no names need hiding.
    shut: bool,
    names: std::vec::IntoIter<(OsString, bool)>,
}

impl Folded {
    fn enter(&mut self, dir: &Node, shut: bool) -> Result<()> {
        let names = self.layers.names_and_whiteouts(dir)?.into_iter();
        self.frames.push(Frame {
            dir: dir.clone(),
            shut,
            names,
        });
        if let Some(far) = self.frames.len().checked_sub(OPEN_LEVELS + 1) {
            self.frames[far].dir.release();
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Change>> {
        if !self.begun {
            self.begun = true;
            let root = self.layers.root()?;
            self.enter(&root, false)?;
        }
        while let Some(frame) = self.frames.last_mut() {
            let shut = frame.shut;
            match frame.names.next() {
                None => {
                    frame.dir.release();
                    self.frames.pop();
                }
                Some((_, true)) if shut => {}
                Some((name, true)) => {
                    return Ok(Some(Change {
                        path: frame.dir.path().join(name),
                        kind: ChangeKind::Deleted,
                        node: None,
                        opaque: false,
                    }));
                }
                Some((name, false)) => {
                    let Some(node) = self.layers.child(&frame.dir, &name)? else {
                        continue;
                    };
                    let opaque = node.is_dir() && !shut && node.stop().is_some();
                    if node.is_dir() {
                        self.enter(&node, shut || opaque)?;
                    }
                    return Ok(Some(Change {
                        path: node.path().to_owned(),
                        kind: ChangeKind::Added,
                        node: Some(node),
                        opaque,
                    }));
                }
            }
        }
        Ok(None)
    }
}

impl Iterator for Folded {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Result<Change>> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}

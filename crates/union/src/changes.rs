//! The changes of the top layer, or the differences between two unions, as a stream in path order.
//!
//! [`changes`] reads only the top layer and looks up below only what it finds there: its cost is
//! that of the changes. Where the top layer moved a directory (redirect) or replaced one with a new
//! one (opaque), that directory is compared (or written out) as a whole. [`compare`] reads two
//! whole unions.
//!
//! The letters have Docker's meaning: A added, C modified, D deleted. The parents of a change count
//! as modified. Paths below a deleted one, or below a directory that was replaced by a file, are
//! not reported. The root is not reported, but see [`Form::Layer`]. Stricter than Docker: times
//! count to the nanosecond, and all xattrs count.
//!
//! The top layer may be in use. An entry that is created or removed while it is read may be
//! reported or not; an entry that stays unchanged is reported correctly.
//!
//! Invariants: paths are sorted by component, parents before their content, none twice. Memory: the
//! names of the directories on the way to the current one; for [`compare`] also a few bytes for
//! each name of a hard link. [`Form::Layer`] takes two passes, and also reports unchanged names of
//! lower files that were changed under another name.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::left_behind::left_behind;
use crate::link_groups::LinkGroups;
use crate::marks::Reader;
use crate::node::Node;
use crate::same::{Content, same, same_but_times};
use crate::stack::{OPEN_LEVELS, Stack};
use crate::{Error, Result};

/// What happened at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// There was nothing.
    Added,
    /// There was something else, or the same with other attributes or content; or its content
    /// changed.
    Modified,
    /// There is nothing now.
    Deleted,
}

impl ChangeKind {
    /// Returns the letter that `docker diff` prints.
    pub const fn letter(self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Modified => 'C',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// One change.
#[derive(Debug, Clone)]
pub struct Change {
    /// The path from the root, without a leading slash.
    pub path: PathBuf,
    /// What happened.
    pub kind: ChangeKind,
    /// What is there now; `None` exactly for deletions.
    pub node: Option<Node>,
    /// A directory that hides everything below it; its whole content follows. Only in
    /// [`Form::Layer`].
    pub opaque: bool,
}

/// The form of the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// For reading: a directory that replaced an old one is compared with it, name by name.
    Listing,
    /// For a new layer: such a directory is marked opaque and its whole content follows. If the
    /// root's mode, owner or xattrs changed, it comes first, with an empty path.
    Layer,
}

/// Returns the changes of the top layer of `union`. With a single layer, all are additions.
pub fn changes(union: &Stack, form: Form) -> Result<Changes> {
    let begin = || {
        Changes::new(
            union.clone(),
            union.below(),
            form,
            Content::ByIdentity,
            Reads::Top,
        )
    };
    let left_behind = match form {
        Form::Listing => BTreeSet::new(),
        Form::Layer => {
            let changed = begin()?.map(|change| change.map(|change| (change.path, change.node)));
            left_behind(changed, union)?
        }
    };
    let mut changes = begin()?;
    changes.add_left_behind(left_behind)?;
    Ok(changes)
}

/// Returns how `new` differs from `old`. Reads both in full, except where they consist of the same
/// directories.
///
/// Files with different inodes that agree in size, time to the nanosecond and all other attributes
/// count as the same: the best answer without reading both.
pub fn compare(old: &Stack, new: &Stack) -> Result<Changes> {
    Changes::new(
        new.clone(),
        Some(old.clone()),
        Form::Listing,
        Content::ByTime,
        Reads::Both,
    )
}

/// A stream of changes. After an error it ends.
#[derive(Debug)]
pub struct Changes {
    new: Stack,
    old: Option<Stack>,
    form: Form,
    content: Content,
    frames: Vec<Frame>,
    ready: VecDeque<Change>,
    /// Unchanged names that are reported all the same; see `left_behind.rs`.
    left_behind: BTreeSet<PathBuf>,
    /// Read at the first hard link, when two whole trees are compared.
    links: Option<LinkGroups>,
    failed: bool,
}

/// What must be read to find the changes in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// The names in the top layer's share: the rest is unchanged.
    Top,
    /// The names of both sides.
    Both,
    /// The names of the new side, all of which are written out: the old side does not show through.
    New,
}

#[derive(Debug)]
struct Frame {
    new: Node,
    /// The old directory, if there was one.
    old: Option<Node>,
    reads: Reads,
    names: std::vec::IntoIter<OsString>,
    /// The change of this directory itself, if it is reported only when its content changed.
    waiting: Option<Change>,
}

impl Changes {
    fn new(
        new: Stack,
        old: Option<Stack>,
        form: Form,
        content: Content,
        reads: Reads,
    ) -> Result<Changes> {
        let mut changes = Changes {
            new,
            old,
            form,
            content,
            frames: Vec::new(),
            ready: VecDeque::new(),
            left_behind: BTreeSet::new(),
            links: None,
            failed: false,
        };
        let root = changes.new.root()?;
        let old_root = changes.old.as_ref().map(Stack::root).transpose()?;
        if let (Form::Layer, Some(old)) = (form, &old_root)
            && !same_but_times(&root, old)?
        {
            changes
                .ready
                .push_back(change(&root, ChangeKind::Modified, false));
        }
        changes.enter(root, old_root, reads, None)?;
        Ok(changes)
    }

    /// Adds the names that were left behind. Call it before the first step.
    fn add_left_behind(&mut self, left_behind: BTreeSet<PathBuf>) -> Result<()> {
        if left_behind.is_empty() {
            return Ok(());
        }
        self.left_behind = left_behind;
        if let Some(frame) = self.frames.pop() {
            self.enter(frame.new, frame.old, frame.reads, frame.waiting)?;
        }
        Ok(())
    }

    /// Returns the names in a directory that were left behind, or are on the way to one.
    fn left_behind_in(&self, dir: &Path) -> BTreeSet<OsString> {
        let below = (Bound::Excluded(dir), Bound::Unbounded);
        let below = self.left_behind.range::<Path, _>(below);
        let below = below.map_while(|path| path.strip_prefix(dir).ok());
        below
            .filter_map(|rest| rest.iter().next().map(OsStr::to_owned))
            .collect()
    }

    /// Enters a directory. `waiting` is its own change, if that depends on the directory's content.
    fn enter(
        &mut self,
        new: Node,
        old: Option<Node>,
        reads: Reads,
        waiting: Option<Change>,
    ) -> Result<()> {
        let names = match (reads, &old, &self.old) {
            (Reads::Top, _, _) => self.top_names(&new)?,
            (Reads::Both, Some(old_dir), Some(old_stack)) => {
                let mut names: BTreeSet<_> = self.new.names(&new)?.into_iter().collect();
                names.extend(old_stack.names(old_dir)?);
                names.into_iter().collect()
            }
            (Reads::Both | Reads::New, _, _) => self.new.names(&new)?,
        };
        self.frames.push(Frame {
            new,
            old,
            reads,
            names: names.into_iter(),
            waiting,
        });
        if let Some(far) = self.frames.len().checked_sub(OPEN_LEVELS + 1) {
            self.frames[far].new.release();
            self.frames[far].old.iter().for_each(Node::release);
        }
        Ok(())
    }

    /// Returns the names in the top layer, including hidden ones, sorted.
    fn top_names(&self, dir: &Node) -> Result<Vec<OsString>> {
        let mut names = self.left_behind_in(dir.path());
        if let Some(part) = dir.parts().first().filter(|part| part.layer == 0) {
            let own = Reader::new(&*self.new.layers()[0]).names(&part.dir)?;
            names.extend(own.into_iter().map(|(name, _)| name));
        }
        Ok(names.into_iter().collect())
    }

    /// Queues a change, after those of the parent directories that were waiting for one.
    fn emit(&mut self, change: Change) {
        for frame in &mut self.frames {
            self.ready.extend(frame.waiting.take());
        }
        self.ready.push_back(change);
    }

    /// Handles one name of the innermost directory. `false` when nothing is left.
    fn step(&mut self) -> Result<bool> {
        let Some(frame) = self.frames.last_mut() else {
            return Ok(false);
        };
        let Some(name) = frame.names.next() else {
            frame.new.release();
            frame.old.iter().for_each(Node::release);
            self.frames.pop();
            return Ok(true);
        };
        match self.look(&name) {
            // The container may be running: an entry removed while it was read counts as removed
            // before.
            Err(error) if error.is_gone_from(&self.new.layers()[0].name()) => Ok(true),
            other => other.map(|()| true),
        }
    }

    /// Handles one name of the innermost directory.
    fn look(&mut self, name: &OsStr) -> Result<()> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let reads = frame.reads;
        let new = self.new.child(&frame.new, name)?;
        let old = old_child(self.old.as_ref(), frame.old.as_ref(), name)?;
        match (new, old) {
            (None, None) => {}
            // An opaque directory hides everything old without a mark for each name.
            (None, Some(_)) if reads == Reads::New => {}
            (None, Some(old)) => self.emit(Change {
                path: old.path().to_owned(),
                kind: ChangeKind::Deleted,
                node: None,
                opaque: false,
            }),
            (Some(new), None) => self.added(new, reads)?,
            (Some(new), Some(old)) => self.both(new, old, reads)?,
        }
        Ok(())
    }

    fn added(&mut self, new: Node, reads: Reads) -> Result<()> {
        self.emit(change(&new, ChangeKind::Added, false));
        self.enter_replacing(new, None, reads)
    }

    /// Enters a directory that is unrelated to the old one at its path.
    fn enter_replacing(&mut self, new: Node, old: Option<Node>, reads: Reads) -> Result<()> {
        if !new.is_dir() {
            return Ok(());
        }
        // The top layer's share is the whole directory, unless a redirect lets lower ones show
        // through.
        let reads = match (reads, new.parts().len()) {
            (Reads::Top, 1) if old.is_none() => Reads::Top,
            _ if self.form == Form::Layer => Reads::New,
            _ => Reads::Both,
        };
        self.enter(new, old, reads, None)
    }

    /// Returns whether a file's hard links allow leaving it out.
    ///
    /// All names of an inode stay together: a new name of an old file is written out with the old
    /// one. And a name that was copied up alone is now a separate file, even if it did not change
    /// otherwise.
    fn keeps_links(&mut self, new: &Node, old: &Node) -> Result<bool> {
        if new.stat().nlink < 2 && old.stat().nlink < 2 {
            return Ok(true);
        }
        match (self.content, &self.old) {
            (Content::ByTime, Some(_)) if new.stat().nlink < 2 => Ok(true),
            (Content::ByTime, Some(old_stack)) => {
                if self.links.is_none() {
                    self.links = Some(LinkGroups::read(old_stack, &self.new)?);
                }
                Ok(self
                    .links
                    .as_ref()
                    .is_some_and(|links| links.only_shrunk(new)))
            }
            _ => Ok(new.identity() == old.identity()),
        }
    }

    fn both(&mut self, new: Node, old: Node, reads: Reads) -> Result<()> {
        if !(new.is_dir() && old.is_dir()) {
            let alone = new.is_dir() || self.keeps_links(&new, &old)?;
            let named = reads == Reads::New || self.left_behind.contains(new.path());
            if named || !(alone && same(&new, &old, self.content)?) {
                self.emit(change(&new, ChangeKind::Modified, false));
                // The content of an old directory is not reported; that of a new one is.
                self.enter_replacing(new, None, reads)?;
            }
            return Ok(());
        }
        let shows_old = match reads {
            Reads::Top => new.part_identities().get(1..) == Some(&old.part_identities()),
            Reads::Both | Reads::New => false,
        };
        let unchanged = new.part_identities() == old.part_identities();
        match (reads, self.form) {
            (Reads::New, _) => {
                self.emit(change(&new, ChangeKind::Modified, false));
                self.enter(new, Some(old), Reads::New, None)
            }
            (Reads::Top, Form::Layer) if !shows_old && !unchanged => {
                self.emit(change(&new, ChangeKind::Modified, true));
                self.enter(new, Some(old), Reads::New, None)
            }
            _ if unchanged => {
                // Its content did not change, but names may have been left behind.
                if self.left_behind_in(new.path()).is_empty() {
                    return Ok(());
                }
                let own = change(&new, ChangeKind::Modified, false);
                self.enter(new, Some(old), Reads::Top, Some(own))
            }
            _ => {
                let own = change(&new, ChangeKind::Modified, false);
                let reads = if shows_old { Reads::Top } else { Reads::Both };
                match same(&new, &old, self.content)? {
                    true => self.enter(new, Some(old), reads, Some(own)),
                    false => {
                        self.emit(own);
                        self.enter(new, Some(old), reads, None)
                    }
                }
            }
        }
    }
}

fn old_child(stack: Option<&Stack>, dir: Option<&Node>, name: &OsStr) -> Result<Option<Node>> {
    match (stack, dir) {
        (Some(stack), Some(dir)) => stack.child(dir, name),
        _ => Ok(None),
    }
}

fn change(node: &Node, kind: ChangeKind, opaque: bool) -> Change {
    Change {
        path: Path::to_owned(node.path()),
        kind,
        node: Some(node.clone()),
        opaque,
    }
}

impl Iterator for Changes {
    type Item = Result<Change, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            if self.failed {
                return None;
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

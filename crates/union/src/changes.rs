//! What the top layer changed, or in what one union differs from another, as a stream in path
//! order.
//!
//! [`changes`] reads the top layer alone and looks up below only what it finds there: its cost is
//! that of the changes. Where the top layer moved a directory (redirect) or put a new one in an old
//! one's place (opaque), that directory is compared (or written out) as a whole. [`compare`] reads
//! two unions whole.
//!
//! The meaning of the letters is Docker's: A added, C modified, D deleted; the parents of a change
//! count as modified; what is below something deleted, or below a directory that is no directory
//! any more, is not named again. The root is not named, but see [`Form::Layer`]. Stricter than
//! Docker: times count to the nanosecond, and all xattrs count.
//!
//! The top layer may be in use. What comes and goes while it is read is named or not; what stays as
//! it is, rightly.
//!
//! Invariants: paths come sorted by component, parents before what is in them, none twice. Memory:
//! the names of the directories on the way to the present one; for [`compare`] also a few bytes for
//! each name of a hard link. [`Form::Layer`] takes two passes, and also names unchanged names of
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
    /// There was something else, or the same with other attributes or content; or something in it
    /// changed.
    Modified,
    /// There is nothing any more.
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
    /// A directory that hides all that was below it; everything in it follows. Only in
    /// [`Form::Layer`].
    pub opaque: bool,
}

/// For whom the changes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// For a reader: a directory put in an old one's place is compared with it, name by name.
    Listing,
    /// For a new layer: such a directory is marked opaque and its whole content follows. If the
    /// root's mode, owner or xattrs changed, it comes first, with an empty path.
    Layer,
}

/// Returns what the top layer of `union` changed. A union of one layer is all additions.
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

/// Returns in what `new` differs from `old`, reading both whole, except where they are made of the
/// same directories.
///
/// Files that are not the same inode, but agree in size, time to the nanosecond and all other
/// attributes, count as the same: as good as can be had without reading both.
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
    /// Unchanged names that are named all the same; see `left_behind.rs`.
    left_behind: BTreeSet<PathBuf>,
    /// Read when two whole trees are compared and the first hard link is met.
    links: Option<LinkGroups>,
    failed: bool,
}

/// What has to be looked at to find the changes in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// The names in the top layer's share: the rest is as it was.
    Top,
    /// The names of both sides.
    Both,
    /// The names of the new side, all of which are written out: the old side does not show through.
    New,
}

#[derive(Debug)]
struct Frame {
    new: Node,
    /// The directory there was, if there was one.
    old: Option<Node>,
    reads: Reads,
    names: std::vec::IntoIter<OsString>,
    /// The change of this directory itself, if it is only to be named because of something in it.
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

    /// Takes in the names that were left behind. Before the first step.
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

    /// Returns the names in a directory that were left behind, or lead to such.
    fn left_behind_in(&self, dir: &Path) -> BTreeSet<OsString> {
        let below = (Bound::Excluded(dir), Bound::Unbounded);
        let below = self.left_behind.range::<Path, _>(below);
        let below = below.map_while(|path| path.strip_prefix(dir).ok());
        below
            .filter_map(|rest| rest.iter().next().map(OsStr::to_owned))
            .collect()
    }

    /// Goes into a directory. `waiting` is its own change, if that depends on what is found.
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

    /// The names the top layer says something about, hidden ones too, sorted.
    fn top_names(&self, dir: &Node) -> Result<Vec<OsString>> {
        let mut names = self.left_behind_in(dir.path());
        if let Some(part) = dir.parts().first().filter(|part| part.layer == 0) {
            let own = Reader::new(&*self.new.layers()[0]).names(&part.dir)?;
            names.extend(own.into_iter().map(|(name, _)| name));
        }
        Ok(names.into_iter().collect())
    }

    /// Queues a change, and before it those of the directories above that were waiting for one.
    fn emit(&mut self, change: Change) {
        for frame in &mut self.frames {
            self.ready.extend(frame.waiting.take());
        }
        self.ready.push_back(change);
    }

    /// Looks at one name of the innermost directory. `false` when there is nothing left at all.
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
            // A container may be at work: what went while it was looked at is as good as gone
            // before.
            Err(error) if error.went_from(&self.new.layers()[0].name()) => Ok(true),
            other => other.map(|()| true),
        }
    }

    /// Looks at one name of the innermost directory.
    fn look(&mut self, name: &OsStr) -> Result<()> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let reads = frame.reads;
        let new = self.new.child(&frame.new, name)?;
        let old = old_child(self.old.as_ref(), frame.old.as_ref(), name)?;
        match (new, old) {
            (None, None) => {}
            // Below an opaque directory everything old is gone without a word.
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

    /// Goes into a directory that has nothing to do with the old one at its place.
    fn enter_replacing(&mut self, new: Node, old: Option<Node>, reads: Reads) -> Result<()> {
        if !new.is_dir() {
            return Ok(());
        }
        // The top layer's share is all there is unless more shows through from below, by a
        // redirect.
        let reads = match (reads, new.parts().len()) {
            (Reads::Top, 1) if old.is_none() => Reads::Top,
            _ if self.form == Form::Layer => Reads::New,
            _ => Reads::Both,
        };
        self.enter(new, old, reads, None)
    }

    /// Returns whether a file can be left out as far as its hard links go.
    ///
    /// Several names of one inode stay together: a new name of an old file is written out with the
    /// old one. And a name that was copied up alone is a file of its own now, even if nothing else
    /// about it changed.
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
                // What was in an old directory is not named again; what is in a new one is.
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
                // Nothing in it changed, but something may have been left behind.
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

//! From a name to a live node.
//!
//! The layers are asked with no lock held, because one of them may be slow and there may be
//! hundreds: a request for another name, or for the directory to move, does not wait. The answer
//! may therefore be out of date when it arrives, and is used only if it still describes the name.
//! The steps are:
//!
//! 1. [`Engine::search`], under the directory's names: a name that has a live node, or is known to
//!    be absent, is answered at once. Otherwise a question is noted among the names
//!    ([`Names::begin`]).
//! 2. The layers are asked, the upper one through a descriptor that stays with the directory
//!    wherever it moves.
//! 3. [`Engine::conclude`], under the rename gate and the directory's names, like every change of a
//!    name. If there is a live node by now, it is the answer, so two lookups of one name share one
//!    node. If something happened to the name in the meantime, or the directory's shares are
//!    different ones, the layers are asked again. Otherwise the node is added.
//!
//! A change of a name overtakes the questions about it ([`Names::overtake`]): creating, linking,
//! moving and removing hold the names while they change the disk. Copying up does not, but a file
//! that is copied up has a live node, and adding that node overtakes the questions about its name.
//! A file with several names can be copied up through any of them: each copy-up is counted, a
//! question about such a file compares the count, and the table decides under one lock which node
//! has the inode. A removed directory is detected; a forgotten one is stale. Only a lookup of a
//! name that keeps changing keeps asking.
//!
//! An error is an answer like any other: it counts only if nothing happened in the meantime.
//!
//! Removing and moving a name use the same steps, so they ask no layer under their locks; they also
//! ask beforehand what the lower layers have under the name ([`Below`]).

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vellum_format::NAME_MAX_BYTES;
use vellum_sys::{FileKind, Stat};

use crate::dir_layer::DirHandle;
use crate::engine::Engine;
use crate::engine::blocks::BlockFile;
use crate::engine::flags;
use crate::engine::nodes::gate::{self, Gate, Slot};
use crate::engine::nodes::names::Names;
use crate::engine::nodes::table::{FoundBy, HeldNode, Linked, Numbered};
use crate::engine::nodes::{Body, DataAt, DirBody, FileBody, LiveNode, LowerFile, UpperFile};
use crate::engine::request::{Entry, NodeId};
use crate::error::On;
use crate::layer::LayerDir;
use crate::marks::{DirAt, FileAt};
use crate::resolve::{Merged, Part};
use crate::stack::Layers;
use crate::{Refusal, Result, node};

/// What is known of a name before the locks are taken that make it certain.
#[derive(Debug)]
pub(crate) enum Sought<'a> {
    /// It has this node.
    Live(HeldNode<'a>),
    /// The name is absent.
    Absent,
    /// The layers' answer.
    Asked(Asked),
}

/// The layers' answer about a name.
#[derive(Debug)]
pub(crate) struct Asked {
    question: Open,
    /// The directory's shares that were asked.
    parts: Arc<[Part<DirAt>]>,
    /// The number of copy-ups before the question.
    copies: u64,
    /// An error, too, may be about something that has changed since.
    answer: Result<Answer>,
}

/// A question noted among the names of a directory. Drop it only while these are not held.
#[derive(Debug)]
struct Open {
    parent: Arc<LiveNode>,
    number: Option<u64>,
}

impl Open {
    /// Ends it; true if the name has not changed since it began.
    fn end(mut self, names: &mut Names) -> bool {
        self.number.take().is_some_and(|number| names.end(number))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.parent.end_question(number);
        }
    }
}

/// What the layers have under a name.
#[derive(Debug)]
enum Answer {
    Absent {
        /// A whiteout hides it.
        hidden: bool,
    },
    Dir {
        ino: u64,
        parts: Vec<Part<DirAt>>,
    },
    File(Box<InLayers>),
    /// Another name of a file that already has a node, found by its inode.
    Known((u64, u64)),
}

/// A file in the layers.
#[derive(Debug)]
struct InLayers {
    ino: u64,
    kind: FileKind,
    /// As stored.
    stat: Stat,
    upper: InUpper,
    lower: Option<Arc<LowerFile>>,
    data: DataAt,
    /// The inodes by which its other names lead to the same node; empty if it has no other names.
    inodes: Vec<(u64, u64)>,
    lower_nlink: Option<u32>,
}

/// Where the upper layer has a file.
#[derive(Debug)]
enum InUpper {
    No,
    /// Under its name.
    Here,
    Index(UpperFile),
}

/// The result of a lookup, under the locks.
#[derive(Debug)]
pub(crate) enum Concluded<'a> {
    /// A held node, and its stored attributes if they were read on the way.
    Found(HeldNode<'a>, Option<Stat>),
    Absent,
    /// The earlier answer no longer counts: search again.
    Again,
}

/// What the lower layers would show under a name of a directory if the upper had nothing there.
///
/// Lower layers don't change, so it is true as long as the directory keeps its shares in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Below {
    shares: usize,
    kind: Option<FileKind>,
}

impl Engine {
    /// Looks up `name` in a directory; `None` if it is absent. The caller owes each entry a
    /// [`Engine::forget`].
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        self.sweep();
        let parent = self.dir_node(parent)?;
        let Some((node, seen)) = self.find(&parent, name, None)? else {
            return Ok(None);
        };
        let attr = self.attr_in(&node, self.unmoved(&node).placed(), seen)?;
        Ok(Some(self.entry_of(node, attr)))
    }

    /// Returns the inode number of a directory's parent; its own for the root and for a removed
    /// directory.
    pub fn parent_number(&self, dir: NodeId) -> Result<u64> {
        let node = self.dir_node(dir)?;
        let state = node.state();
        Ok(match state.places().next() {
            Some(place) => place.parent.ino,
            None => node.ino,
        })
    }

    /// Takes back `count` lookups of a node; true if it has no references left. The root is never
    /// forgotten.
    pub fn forget(&self, node: NodeId, count: u64) -> bool {
        self.table.forget(node, count);
        self.sweep();
        let gone = node != NodeId::ROOT && self.table.get(node).is_err();
        if gone {
            self.files.forget(node);
        }
        gone
    }

    /// Hands a node to the front, with its attributes.
    pub(crate) fn entry(&self, node: HeldNode<'_>, gate: &Gate<'_>) -> Result<Entry> {
        let attr = self.attr_in(&node, node.state().placed(gate), None)?;
        Ok(self.entry_of(node, attr))
    }

    fn entry_of(&self, node: HeldNode<'_>, attr: crate::engine::Attr) -> Entry {
        Entry {
            node: node.keep(),
            generation: self.table.generation(),
            attr,
        }
    }

    /// Looks up `name` and holds its node; returns the stored attributes too if they were read on
    /// the way. A new node gets `numbers`, if given. Call it with no lock held.
    pub(crate) fn find(
        &self,
        parent: &Arc<LiveNode>,
        name: &OsStr,
        numbers: Option<Numbered>,
    ) -> Result<Option<(HeldNode<'_>, Option<Stat>)>> {
        loop {
            let sought = match self.search(parent, name)? {
                Sought::Absent => return Ok(None),
                Sought::Live(node) => return Ok(Some((node, None))),
                asked => asked,
            };
            let gate = self.shared();
            let mut names = parent.names(&gate);
            match self.conclude(sought, names.slot(name), numbers)? {
                Concluded::Found(node, seen) => return Ok(Some((node, seen))),
                Concluded::Absent => return Ok(None),
                Concluded::Again => {}
            }
        }
    }

    /// Returns the inode number and type of `name` without adding a node. Call it with no lock
    /// held.
    pub(crate) fn glance(
        &self,
        dir: &Arc<LiveNode>,
        name: &OsStr,
    ) -> Result<Option<(u64, FileKind)>> {
        loop {
            let asked = match self.search(dir, name)? {
                Sought::Absent => return Ok(None),
                Sought::Live(node) => return Ok(Some((node.ino, node.kind))),
                Sought::Asked(asked) => asked,
            };
            let gate = self.shared();
            let counts = asked.question.end(&mut dir.names(&gate));
            drop(gate);
            if !counts {
                continue;
            }
            return Ok(match asked.answer? {
                Answer::Absent { .. } => None,
                Answer::Dir { ino, .. } => Some((ino, FileKind::Dir)),
                Answer::File(file) => Some((file.ino, file.kind)),
                Answer::Known(inode) => match self.table.hold_inode(inode) {
                    Some(node) => Some((node.ino, node.kind)),
                    None => continue,
                },
            });
        }
    }

    /// Returns what is known of a name, asking the layers if nothing is. Call it with no lock held.
    pub(crate) fn search(&self, parent: &Arc<LiveNode>, name: &OsStr) -> Result<Sought<'_>> {
        if name.len() > NAME_MAX_BYTES {
            return Err(Refusal::NameTooLong.into());
        }
        gate::assert_free();
        // Before the layers are asked: their answer may or may not include a later copy-up.
        let copies = self.copies.load(Ordering::SeqCst);
        let gate = self.shared();
        let question = {
            let mut names = parent.names(&gate);
            if let Some(node) = names.get(name) {
                return Ok(Sought::Live(self.table.hold(&node)));
            }
            if parent.is_gone() || names.is_absent(name) {
                return Ok(Sought::Absent);
            }
            Open {
                parent: Arc::clone(parent),
                number: Some(names.begin(name)),
            }
        };
        let (parts, above) = match &parent.state().body {
            Body::Dir(dir) => (Arc::clone(&dir.parts), dir.upper.clone()),
            Body::File(_) => return Err(Refusal::NotADirectory.into()),
        };
        let above = above.map(|above| above.held()).transpose();
        let above = above.on(self.layer(0))?;
        drop(gate);
        let answer = self.ask(parent, &parts, above.as_ref(), name);
        Ok(Sought::Asked(Asked {
            question,
            parts,
            copies,
            answer,
        }))
    }

    /// Asks the layers. `above` is the directory's share in the upper one.
    fn ask(
        &self,
        parent: &LiveNode,
        parts: &[Part<DirAt>],
        above: Option<&Arc<DirHandle>>,
        name: &OsStr,
    ) -> Result<Answer> {
        let top = above.map(|above| Arc::clone(above) as Arc<dyn LayerDir>);
        let ask = Layers::by(&self.stack, top);
        let path = || parts[0].dir.dir.path().join(name);
        Ok(match self.stack.merge_parts(&ask, parts, name, path)? {
            Merged::Absent(why) => Answer::Absent {
                hidden: why.is_some(),
            },
            Merged::Dir { parts, .. } => Answer::Dir {
                ino: self.number_of_dir(&parts),
                parts,
            },
            Merged::File { layer, file, data } => {
                self.ask_file((parent, above), (layer, file), data)?
            }
        })
    }

    fn ask_file(
        &self,
        (parent, above): (&LiveNode, Option<&Arc<DirHandle>>),
        (layer, file): (usize, FileAt),
        data: Option<(usize, FileAt)>,
    ) -> Result<Answer> {
        let identity = file.stat.identity();
        let is_upper = self.upper.is_some() && layer == 0;
        let linked = file.stat.nlink > 1 && (is_upper || self.keeps_links());
        if linked && self.table.has_inode(identity) {
            return Ok(Answer::Known(identity));
        }
        let tree = &*self.stack.layers()[layer];
        let shown = node::shown(tree, &*file.dir, Some(&file.name), &file.stat)?;
        let impure = match above {
            Some(above) if is_upper => self.is_impure_by(parent, above)?,
            _ => false,
        };
        let mut found = InLayers {
            ino: self.number_of_file(impure, &file)?,
            kind: shown.map_or(file.stat.kind, |shown| shown.kind),
            stat: file.stat.clone(),
            upper: InUpper::No,
            lower: None,
            data: DataAt::Upper,
            inodes: Vec::new(),
            lower_nlink: None,
        };
        if linked {
            found.inodes.push(identity);
        }
        let data = data.map(|(layer, file)| Arc::new(LowerFile::new(layer, file)));
        if is_upper {
            found.upper = InUpper::Here;
            if linked {
                found.lower_nlink = self.lower_nlink(&file)?;
            }
            found.lower = data.clone();
            found.data = match (data, file.blocks) {
                (None, None) => DataAt::Upper,
                (None, Some(map)) => DataAt::Blocks(Arc::new(BlockFile::named(map))),
                (Some(data), _) => DataAt::Lower(data),
            };
            return Ok(Answer::File(Box::new(found)));
        }
        let lower = Arc::new(LowerFile::new(layer, file));
        let data = data.unwrap_or_else(|| Arc::clone(&lower));
        let indexed = match linked {
            true => self.in_index(&lower)?,
            false => None,
        };
        found.data = DataAt::Lower(data);
        if let Some(indexed) = indexed {
            found.inodes.push(indexed.stat.identity());
            found.lower_nlink = Some(lower.nlink);
            found.stat = indexed.stat;
            found.upper = InUpper::Index(indexed.place);
            match (indexed.metacopy, indexed.blocks) {
                (true, _) => {}
                (false, None) => found.data = DataAt::Upper,
                (false, Some(map)) => {
                    found.data = DataAt::Blocks(Arc::new(BlockFile::named(map)));
                }
            }
        }
        found.lower = Some(lower);
        Ok(Answer::File(Box::new(found)))
    }

    /// Decides what a name is, with the names held. Asks no layer.
    pub(crate) fn conclude(
        &self,
        sought: Sought<'_>,
        at: Slot<'_>,
        numbers: Option<Numbered>,
    ) -> Result<Concluded<'_>> {
        let (asked, counts) = match sought {
            Sought::Asked(Asked {
                question,
                parts,
                copies,
                answer,
            }) => {
                let counts = question.end(at.names);
                (Some((parts, copies, answer)), counts)
            }
            Sought::Live(_) | Sought::Absent => (None, false),
        };
        if let Some(node) = at.names.get(at.name) {
            return Ok(Concluded::Found(self.table.hold(&node), None));
        }
        if at.parent.is_gone() || at.names.is_absent(at.name) {
            return Ok(Concluded::Absent);
        }
        let Some((parts, copies, answer)) = asked.filter(|_| counts) else {
            return Ok(Concluded::Again);
        };
        if self.table.is_forgotten(at.parent) {
            // Forgotten in between: by now it may have another node.
            return Err(Refusal::Stale.into());
        }
        let upper = match &at.parent.state().body {
            Body::Dir(dir) if Arc::ptr_eq(&dir.parts, &parts) => dir.upper.clone(),
            _ => return Ok(Concluded::Again),
        };
        match answer? {
            Answer::Absent { hidden } => {
                if !hidden {
                    at.names.note_absent(at.name);
                }
                Ok(Concluded::Absent)
            }
            Answer::Dir { ino, parts } => {
                let seen = parts[0].dir.stat.clone();
                let body = Body::Dir(self.dir_body(upper.as_ref(), at.name, parts));
                let numbers = numbers.unwrap_or_else(|| self.table.number(ino));
                let node = self.table.add(at, numbers, FileKind::Dir, body);
                Ok(Concluded::Found(node, Some(seen)))
            }
            Answer::File(file) => self.conclude_file(*file, upper, copies, at, numbers),
            Answer::Known(inode) => match self.table.hold_inode(inode) {
                Some(node) => {
                    self.table.add_name(&node, at);
                    Ok(Concluded::Found(node, None))
                }
                None => Ok(Concluded::Again),
            },
        }
    }

    fn conclude_file(
        &self,
        file: InLayers,
        upper: Option<Arc<DirHandle>>,
        copies: u64,
        at: Slot<'_>,
        numbers: Option<Numbered>,
    ) -> Result<Concluded<'_>> {
        let indexed = matches!(file.upper, InUpper::Index(_));
        // Noted now, so that no layer must be asked under a lock before the file changes.
        let protection = match file.upper {
            InUpper::No => flags::below(&file.stat),
            InUpper::Here | InUpper::Index(_) => flags::UNKNOWN,
        };
        let body = FileBody {
            upper: match file.upper {
                InUpper::No => None,
                InUpper::Here => Some(UpperFile::Named {
                    dir: upper.ok_or(Refusal::Stale)?,
                    name: at.name.to_owned(),
                }),
                InUpper::Index(place) => Some(place),
            },
            lower: file.lower.clone(),
            data: file.data,
        };
        let body = Body::File(body);
        let numbers = numbers.unwrap_or_else(|| self.table.number(file.ino));
        if file.inodes.is_empty() {
            let node = self.table.add(at, numbers, file.kind, body);
            // No other thread can find it yet: the names are held.
            node.protection.store(protection, Ordering::Relaxed);
            return Ok(Concluded::Found(node, Some(file.stat)));
        }
        let unchanged = || self.copies.load(Ordering::SeqCst) == copies;
        let links = FoundBy {
            inodes: file.inodes,
            lower_nlink: file.lower_nlink,
            protection,
        };
        let added = self
            .table
            .add_linked(at, numbers, file.kind, body, links, unchanged);
        // Its attributes may have changed through another name since they were read, so read them
        // again.
        Ok(match added {
            Linked::Added(node) => Concluded::Found(node, None),
            Linked::Known(node) => {
                if let (true, Some(lower)) = (indexed, &file.lower) {
                    node.state_mut().know_lower(lower);
                }
                Concluded::Found(node, None)
            }
            Linked::Changed => Concluded::Again,
        })
    }

    fn dir_body(
        &self,
        above: Option<&Arc<DirHandle>>,
        name: &OsStr,
        mut parts: Vec<Part<DirAt>>,
    ) -> DirBody {
        let mut upper = None;
        let top = &mut parts[0];
        if let (Some(above), 0) = (above, top.layer) {
            // One handle for each directory, so that everything below follows when it is moved.
            let handle = above.sub(name);
            top.dir.dir = Arc::clone(&handle) as _;
            upper = Some(handle);
        }
        DirBody {
            parts: parts.into(),
            upper,
            impure: None,
        }
    }

    /// Returns whether the names of a lower file stay names of one file when it is copied up.
    pub(crate) fn keeps_links(&self) -> bool {
        match &self.upper {
            Some(upper) => upper.index.is_some(),
            None => true,
        }
    }

    /// Asks the lower layers for a name. Call it with no lock held.
    pub(crate) fn below(&self, dir: &LiveNode, name: &OsStr) -> Result<Below> {
        gate::assert_free();
        let parts = match &dir.state().body {
            Body::Dir(body) => Arc::clone(&body.parts),
            Body::File(_) => return Err(Refusal::NotADirectory.into()),
        };
        let lower = lower_shares(&parts);
        if lower.is_empty() {
            return Ok(Below::NOTHING);
        }
        let ask = Layers::of(&self.stack);
        let path = || lower[0].dir.dir.path().join(name);
        Ok(Below {
            shares: lower.len(),
            kind: match self.stack.merge_parts(&ask, lower, name, path)? {
                Merged::Absent(_) => None,
                Merged::Dir { .. } => Some(FileKind::Dir),
                Merged::File { file, .. } => Some(file.stat.kind),
            },
        })
    }

    /// Adds a node for an inode just created in the upper layer under this name, with nothing
    /// below it.
    pub(crate) fn add_new(
        &self,
        at: Slot<'_>,
        stored: &Stat,
        kind: FileKind,
    ) -> Result<HeldNode<'_>> {
        let dir = at.parent.upper_dir().ok_or(Refusal::Stale)?;
        let ino = self.numbers.show(stored.identity());
        let body = match stored.kind {
            FileKind::Dir => Body::Dir(self.new_dir_body(&dir, at.name, stored)),
            _ => Body::File(FileBody {
                upper: Some(UpperFile::Named {
                    dir,
                    name: at.name.to_owned(),
                }),
                lower: None,
                data: DataAt::Upper,
            }),
        };
        at.parent.changed();
        let numbers = self.table.number(ino);
        let node = self.table.add(at, numbers, kind, body);
        if kind == FileKind::Dir {
            node.begin_empty();
        }
        Ok(node)
    }

    fn new_dir_body(&self, above: &Arc<DirHandle>, name: &OsStr, stored: &Stat) -> DirBody {
        let handle = above.sub(name);
        let dir = DirAt {
            dir: Arc::clone(&handle) as _,
            stat: stored.clone(),
            xattr_whiteouts: false,
        };
        DirBody {
            parts: [Part { layer: 0, dir }].into(),
            upper: Some(handle),
            impure: Some(false),
        }
    }
}

impl Below {
    const NOTHING: Below = Below {
        shares: 0,
        kind: None,
    };

    /// Returns the answer asked for beforehand, if it still counts; `None` if the layers must be
    /// asked. A directory with nothing below needs no answer.
    pub fn known(asked: Option<Below>, dir: &LiveNode) -> Option<Option<FileKind>> {
        let shares = match &dir.state().body {
            Body::Dir(body) => lower_shares(&body.parts).len(),
            Body::File(_) => 0,
        };
        let asked = if shares == 0 {
            Some(Below::NOTHING)
        } else {
            asked
        };
        asked
            .filter(|asked| asked.shares == shares)
            .map(|asked| asked.kind)
    }
}

impl LowerFile {
    pub fn new(layer: usize, file: FileAt) -> LowerFile {
        LowerFile {
            layer,
            dir: file.dir,
            name: file.name,
            nlink: file.stat.nlink,
        }
    }
}

/// Returns the shares that a directory of a writable union has in lower layers.
pub(crate) fn lower_shares(parts: &[Part<DirAt>]) -> &[Part<DirAt>] {
    &parts[parts.partition_point(|part| part.layer == 0)..]
}

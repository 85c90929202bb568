//! From a name to a live node.

use std::ffi::OsStr;
use std::sync::Arc;

use vellum_sys::{FileKind, Stat};

use crate::dir_layer::DirHandle;
use crate::engine::Engine;
use crate::engine::blocks::BlockFile;
use crate::engine::nodes::{
    Body, DataAt, DirBody, FileBody, LiveNode, LowerFile, Names, UpperFile,
};
use crate::engine::request::{Entry, NodeId};
use crate::engine::table::Held;
use crate::marks::{DirAt, FileAt};
use crate::resolve::{Merged, Part};
use crate::stack::Layers;
use crate::{Refusal, Result, node};

/// The longest name Linux takes.
const NAME_MAX_BYTES: usize = vellum_format::NAME_MAX_BYTES;

impl Engine {
    /// Returns what is called `name` in a directory, or `None`. Each entry returned is owed a [`Engine::forget`].
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        self.sweep();
        let parent = self.dir_node(parent)?;
        let _shared = self.shared();
        let mut names = parent.names();
        match self.child_seen(&parent, &mut names, name)? {
            None => Ok(None),
            Some((node, seen)) => self.entry_seen(node, seen).map(Some),
        }
    }

    /// Returns the inode number of the directory above one: its own, for the root and for what was removed.
    pub fn parent_number(&self, dir: NodeId) -> Result<u64> {
        let node = self.dir_node(dir)?;
        let state = node.state();
        Ok(match state.places().next() {
            Some(place) => place.parent.ino,
            None => node.ino,
        })
    }

    /// Takes back `count` lookups of a node; true if nobody counts on it any more. The root is
    /// never forgotten.
    pub fn forget(&self, node: NodeId, count: u64) -> bool {
        self.table.forget(node, count);
        self.sweep();
        let gone = node != NodeId::ROOT && self.table.get(node).is_err();
        if gone {
            self.files.forget(node);
        }
        gone
    }

    /// Returns what is called `name`, held. The caller holds the rename gate and the names of `parent`.
    pub(crate) fn child(
        &self,
        parent: &Arc<LiveNode>,
        names: &mut Names,
        name: &OsStr,
    ) -> Result<Option<Held<'_>>> {
        let found = self.child_seen(parent, names, name)?;
        Ok(found.map(|(node, _)| node))
    }

    /// Hands a node to the front, with its attributes. The caller holds the rename gate.
    pub(crate) fn entry(&self, node: Held<'_>) -> Result<Entry> {
        self.entry_seen(node, None)
    }

    fn entry_seen(&self, node: Held<'_>, seen: Option<Stat>) -> Result<Entry> {
        let attr = self.attr_in(&node, &node.state(), seen)?;
        let node = node.keep();
        Ok(Entry {
            node: node.id,
            generation: self.table.generation(),
            attr,
        })
    }

    /// As [`Engine::child`], with the stored attributes if they were read on the way.
    fn child_seen(
        &self,
        parent: &Arc<LiveNode>,
        names: &mut Names,
        name: &OsStr,
    ) -> Result<Option<(Held<'_>, Option<Stat>)>> {
        if name.len() > NAME_MAX_BYTES {
            return Err(Refusal::NameTooLong.into());
        }
        if let Some(node) = names.get(name) {
            return Ok(Some((self.table.hold(&node), None)));
        }
        if parent.is_gone() || names.is_absent(name) {
            return Ok(None);
        }
        let merged = {
            let state = parent.state();
            let Body::Dir(dir) = &state.body else {
                return Err(Refusal::NotADirectory.into());
            };
            let path = || dir.parts[0].dir.dir.path().join(name);
            let ask = Layers::of(&self.stack);
            self.stack.merge_parts(&ask, &dir.parts, name, path)?
        };
        match merged {
            Merged::Absent(why) => {
                if why.is_none() {
                    names.note_absent(name);
                }
                Ok(None)
            }
            Merged::Dir { parts, .. } => {
                let (ino, seen, body) = self.dir_body(parent, name, parts);
                let at = (parent, names, name);
                let node = self.table.add(at, ino, FileKind::Dir, Body::Dir(body));
                Ok(Some((node, Some(seen))))
            }
            Merged::File { layer, file, data } => {
                self.file_found(parent, names, (layer, file), data)
            }
        }
    }

    fn dir_body(
        &self,
        parent: &LiveNode,
        name: &OsStr,
        mut parts: Vec<Part<DirAt>>,
    ) -> (u64, Stat, DirBody) {
        let mut upper = None;
        let top = &mut parts[0];
        if self.upper.is_some() && top.layer == 0 {
            // One handle for one directory, so that all below it follow when it is moved.
            let handle = parent.upper_dir().map(|above| above.sub(name));
            if let Some(handle) = handle {
                top.dir.dir = Arc::clone(&handle) as _;
                upper = Some(handle);
            }
        }
        let ino = self.number_of_dir(&parts);
        let seen = parts[0].dir.stat.clone();
        let body = DirBody {
            parts,
            upper,
            impure: None,
        };
        (ino, seen, body)
    }

    fn file_found(
        &self,
        parent: &Arc<LiveNode>,
        names: &mut Names,
        (layer, file): (usize, FileAt),
        data: Option<(usize, FileAt)>,
    ) -> Result<Option<(Held<'_>, Option<Stat>)>> {
        let name = file.name.clone();
        let identity = file.stat.identity();
        let is_upper = self.upper.is_some() && layer == 0;
        let linked = file.stat.nlink > 1 && (is_upper || self.keeps_links());
        if linked && let Some(node) = self.table.hold_inode(identity) {
            self.table.add_name(&node, (parent, names, &name));
            return Ok(Some((node, None)));
        }
        let mut seen = file.stat.clone();
        let shown = node::shown(
            &*self.stack.layers()[layer],
            &*file.dir,
            Some(&file.name),
            &seen,
        )?;
        let kind = shown.map_or(seen.kind, |shown| shown.kind);
        let data = data.map(|(layer, file)| Arc::new(LowerFile::new(layer, file)));
        let blocks = file.blocks.clone();
        let ino = self.number_of_file(is_upper && self.is_impure(parent)?, &file)?;
        let mut inodes = vec![identity];
        let mut lower_nlink = None;
        let body = match is_upper {
            true => {
                if linked {
                    lower_nlink = self.lower_nlink(&file)?;
                }
                let dir = parent.upper_dir().ok_or(Refusal::Stale)?;
                FileBody {
                    upper: Some(UpperFile::Named {
                        dir,
                        name: name.clone(),
                    }),
                    lower: data.clone(),
                    data: match (data, blocks) {
                        (None, None) => DataAt::Upper,
                        (None, Some(map)) => DataAt::Blocks(Arc::new(BlockFile::named(map))),
                        (Some(data), _) => DataAt::Lower(data),
                    },
                }
            }
            false => {
                let lower = Arc::new(LowerFile::new(layer, file));
                let data = data.unwrap_or_else(|| Arc::clone(&lower));
                let indexed = match linked {
                    true => self.in_index(&lower)?,
                    false => None,
                };
                match indexed {
                    Some(indexed) => {
                        if let Some(node) = self.table.hold_inode(indexed.stat.identity()) {
                            self.table.add_name(&node, (parent, names, &name));
                            self.table.link_inode(&node, identity);
                            node.state_mut().know_lower(&lower);
                            return Ok(Some((node, None)));
                        }
                        inodes.push(indexed.stat.identity());
                        lower_nlink = Some(lower.nlink);
                        seen = indexed.stat;
                        FileBody {
                            upper: Some(indexed.place),
                            lower: Some(lower),
                            data: match (indexed.metacopy, indexed.blocks) {
                                (true, _) => DataAt::Lower(data),
                                (false, None) => DataAt::Upper,
                                (false, Some(map)) => {
                                    DataAt::Blocks(Arc::new(BlockFile::named(map)))
                                }
                            },
                        }
                    }
                    None => FileBody {
                        upper: None,
                        data: DataAt::Lower(data),
                        lower: Some(lower),
                    },
                }
            }
        };
        let body = Body::File(body);
        let node = self.table.add((parent, names, &name), ino, kind, body);
        if linked {
            for inode in inodes {
                self.table.link_inode(&node, inode);
            }
            if let Some(links) = &mut node.state_mut().links {
                links.lower_nlink = lower_nlink;
            }
        }
        Ok(Some((node, Some(seen))))
    }

    /// Returns whether names of one lower file stay names of one file when it is copied up.
    pub(crate) fn keeps_links(&self) -> bool {
        match &self.upper {
            Some(upper) => upper.index.is_some(),
            None => true,
        }
    }

    /// Adds a node for something that was just made in the upper layer under this name, and has nothing below it. The caller
    /// holds the rename gate and the names of `parent`.
    pub(crate) fn add_new(
        &self,
        (parent, names, name): (&Arc<LiveNode>, &mut Names, &OsStr),
        stored: &Stat,
        kind: FileKind,
    ) -> Result<Held<'_>> {
        let dir = parent.upper_dir().ok_or(Refusal::Stale)?;
        let ino = self.numbers.show(stored.identity());
        let body = match stored.kind {
            FileKind::Dir => Body::Dir(self.new_dir_body(&dir, name, stored)),
            _ => Body::File(FileBody {
                upper: Some(UpperFile::Named {
                    dir,
                    name: name.to_owned(),
                }),
                lower: None,
                data: DataAt::Upper,
            }),
        };
        parent.changed();
        let node = self.table.add((parent, names, name), ino, kind, body);
        if kind == FileKind::Dir {
            node.names().begin_empty();
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
            parts: vec![Part { layer: 0, dir }],
            upper: Some(handle),
            impure: Some(false),
        }
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

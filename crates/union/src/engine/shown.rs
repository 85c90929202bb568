//! Link targets and xattrs as a user of the union sees them: marks hidden, names unescaped, records
//! in their own names, ids in ACLs mapped.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use vellum_format::record;
use vellum_sys::{FileKind, Stat};

use crate::at::At;
use crate::engine::Engine;
use crate::engine::acl::{self, Acl};
use crate::engine::nodes::Body;
use crate::engine::nodes::gate::Placed;
use crate::engine::owners::{CAPABILITY, map_capability};
use crate::engine::request::{NodeId, Room};
use crate::error::On;
use crate::layer::{Dialect, LayerDir, Records};
use crate::node::shown_name;
use crate::{Refusal, Result};

/// The inode whose attributes count, in any layer.
#[derive(Debug)]
pub(crate) struct Source {
    pub layer: usize,
    pub inode: Inode,
}

/// How an inode is read.
#[derive(Debug)]
pub(crate) enum Inode {
    Upper(At),
    /// A directory of a lower layer, or a name in one.
    Lower(Arc<dyn LayerDir>, Option<OsString>),
}

impl Source {
    pub fn stat(&self) -> vellum_sys::Result<Option<Stat>> {
        match &self.inode {
            Inode::Upper(at) => at.stat().map(Some),
            Inode::Lower(dir, name) => dir.stat(name.as_deref()),
        }
    }

    pub fn xattr(&self, stored: &OsStr) -> vellum_sys::Result<Option<Vec<u8>>> {
        match &self.inode {
            Inode::Upper(at) => at.xattr(stored),
            Inode::Lower(dir, name) => dir.xattr(name.as_deref(), stored),
        }
    }

    pub fn xattr_names(&self) -> vellum_sys::Result<Vec<OsString>> {
        match &self.inode {
            Inode::Upper(at) => at.xattr_names(),
            Inode::Lower(dir, name) => dir.xattr_names(name.as_deref()),
        }
    }
}

impl Engine {
    /// Returns the inode whose attributes count.
    pub(crate) fn source(&self, state: Placed<'_>) -> Result<Source> {
        if let Some(at) = state.at().on(self.layer(0))? {
            let inode = Inode::Upper(at);
            return Ok(Source { layer: 0, inode });
        }
        let (layer, dir, name) = match &state.body {
            Body::Dir(dir) => (dir.parts[0].layer, &dir.parts[0].dir.dir, None),
            Body::File(file) => {
                let lower = file.lower.as_ref().ok_or(Refusal::Stale)?;
                (lower.layer, &lower.dir, Some(lower.name.clone()))
            }
        };
        let inode = Inode::Lower(Arc::clone(dir), name);
        Ok(Source { layer, inode })
    }

    pub(super) fn dialect_of(&self, layer: usize) -> Dialect {
        match self.stack.layers().get(layer) {
            Some(layer) => layer.dialect(),
            None => Dialect::plain(),
        }
    }

    /// Returns the target of a symbolic link. Errors: [`Refusal::Invalid`] if it is not one.
    pub fn read_link(&self, id: NodeId) -> Result<OsString> {
        let node = self.node(id)?;
        if node.kind != FileKind::Symlink {
            return Err(Refusal::Invalid.into());
        }
        let unmoved = self.unmoved(&node);
        let source = self.source(unmoved.placed())?;
        self.read_link_of(&source)
    }

    /// Returns the target of the symbolic link that `source` is.
    pub(super) fn read_link_of(&self, source: &Source) -> Result<OsString> {
        let stat = source.stat().on(self.layer(source.layer))?;
        // A link whose owner could not be set is a regular file with a record; its content is the
        // target.
        let recorded = stat.ok_or(Refusal::Stale)?.kind == FileKind::File;
        let read = match (&source.inode, recorded) {
            (Inode::Upper(At::Name(dir, name)), false) => dir.read_link(name),
            (Inode::Upper(At::Name(dir, name)), true) => dir.open_file(name).and_then(content),
            (Inode::Upper(At::Fd(fd)), false) => vellum_sys::rooted::read_link_fd(fd),
            (Inode::Upper(At::Fd(fd)), true) => vellum_sys::rooted::reopen(fd).and_then(content),
            (Inode::Lower(dir, Some(name)), false) => dir.read_link(name),
            (Inode::Lower(dir, Some(name)), true) => dir.open_file(name).and_then(content),
            (Inode::Upper(At::Dir(_)) | Inode::Lower(_, None), _) => {
                return Err(Refusal::Invalid.into());
            }
        };
        read.on(self.layer(source.layer))
    }

    /// Returns the value of an xattr, or `None` if it is not set. Errors: [`Refusal::Unsupported`]
    /// if the union has no xattrs.
    pub fn xattr(&self, id: NodeId, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if self.no_xattrs {
            return Err(Refusal::Unsupported.into());
        }
        let node = self.node(id)?;
        self.xattr_in(self.unmoved(&node).placed(), name)
    }

    /// As [`Engine::xattr`], for a node that can't move.
    pub(crate) fn xattr_in(&self, state: Placed<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let source = self.source(state)?;
        let dialect = self.dialect_of(source.layer);
        let stored = match dialect.prefix {
            Some(prefix) => prefix.escape(name),
            None => name.to_owned(),
        };
        if shown_name(&dialect, &stored).as_deref() != Some(name) {
            return Ok(None);
        }
        let read = |stored: &OsStr| match source.xattr(stored) {
            // No xattr can have this name, or the file system lacks its namespace.
            Err(error) if error.is(rustix::io::Errno::RANGE) => Ok(None),
            other => other.on(self.layer(source.layer)),
        };
        let mut value = None;
        if dialect.records == Records::Read
            && let Some(record) = record::recorded(&stored)
        {
            value = read(&record)?;
        }
        if value.is_none() {
            value = read(&stored)?;
        }
        value.map(|value| self.value_shown(name, value)).transpose()
    }

    /// Maps the ids in an ACL, and the one in a capability. Leaves out entries of an ACL for ids
    /// that are not mapped in this user namespace: no process in the union has such an id, and the
    /// kernel rejects an ACL with such an entry from a server.
    fn value_shown(&self, name: &OsStr, value: Vec<u8>) -> Result<Vec<u8>> {
        if name == CAPABILITY && !self.ids.are_plain() {
            return map_capability(&value, |id| self.ids.acl_uid_shown(id));
        }
        let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
        if !is_acl {
            return Ok(value);
        }
        let acl = Acl::parse(&value)?.of_known();
        if self.ids.are_plain() {
            return Ok(acl.encode());
        }
        let user = |id| self.ids.acl_uid_shown(id);
        let group = |id| self.ids.acl_gid_shown(id);
        Ok(acl.map_ids(user, group)?.encode())
    }

    /// Returns the names of all xattrs. Errors as [`Engine::xattr`].
    pub fn xattr_names(&self, id: NodeId) -> Result<Vec<OsString>> {
        if self.no_xattrs {
            return Err(Refusal::Unsupported.into());
        }
        let node = self.node(id)?;
        let unmoved = self.unmoved(&node);
        let source = self.source(unmoved.placed())?;
        let dialect = self.dialect_of(source.layer);
        let stored = source.xattr_names().on(self.layer(source.layer))?;
        let shown: BTreeSet<_> = stored
            .iter()
            .filter_map(|stored| shown_name(&dialect, stored))
            .collect();
        Ok(shown.into_iter().collect())
    }

    /// Returns the space on the file system that changes go to.
    pub fn statfs(&self) -> Result<Room> {
        let room = match &self.upper {
            Some(upper) => {
                let dir = upper.root.dir().on(upper)?;
                vellum_sys::room::of(&*dir)
            }
            None => self.stack.roots()[0].dir.dir.room(),
        };
        let room = room.on(self.layer(0))?;
        Ok(self.within_limit(Room {
            block_bytes: room.block_bytes,
            blocks: room.blocks,
            blocks_free: room.blocks_free,
            blocks_available: room.blocks_available,
            inodes: room.inodes,
            inodes_free: room.inodes_free,
            name_max_bytes: room.name_max_bytes,
        }))
    }
}

/// Reads the target from a file that stands for a symbolic link. It is shorter than a page.
fn content(file: std::fs::File) -> vellum_sys::Result<OsString> {
    let mut target = Vec::new();
    let read = file.take(4097).read_to_end(&mut target);
    match read {
        Ok(1..=4096) => Ok(OsString::from_vec(target)),
        Ok(_) => {
            let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
            Err(vellum_sys::Error::new("read a link from", "", source))
        }
        Err(error) => Err(vellum_sys::Error::new("read a link from", "", error)),
    }
}

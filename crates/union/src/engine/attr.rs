//! Attributes as a user of the union sees them.

use std::ffi::OsStr;

use vellum_format::{Mark, Nlink, NlinkBase};
use vellum_sys::{FileKind, Stat};

use crate::at::At;
use crate::engine::nodes::gate::Placed;
use crate::engine::nodes::{Body, DataAt, LiveNode, LowerFile};
use crate::engine::request::{Attr, NodeId};
use crate::engine::{Engine, Upper};
use crate::error::On;
use crate::layer::LayerDir;
use crate::{Error, Refusal, Result, node};

/// The preferred I/O size, as most file systems report it.
const BLOCK_BYTES: u32 = 4096;

impl Engine {
    /// Returns the attributes of a node.
    pub fn attr(&self, id: NodeId) -> Result<Attr> {
        let node = self.node(id)?;
        self.attr_in(&node, self.unmoved(&node).placed(), None)
    }

    /// As [`Engine::attr`], for a node that can't move. `seen` are the stored attributes of the
    /// inode that counts, if they are known.
    pub(crate) fn attr_in(
        &self,
        node: &LiveNode,
        state: Placed<'_>,
        seen: Option<Stat>,
    ) -> Result<Attr> {
        let stored = match seen {
            Some(stat) => stat,
            None => self.stat_in(state)?,
        };
        let shown = self.shown_in(state, &stored)?;
        let mut blocks_512 = shown.blocks_512;
        let gone = node.id != NodeId::ROOT && state.place.is_none();
        let nlink = match &state.body {
            Body::Dir(_) if gone => 0,
            Body::Dir(dir) if self.static_nlink || dir.parts.len() > 1 => 1,
            Body::Dir(_) => shown.nlink,
            Body::File(file) => {
                if let (Some(_), DataAt::Lower(data)) = (&file.upper, &file.data) {
                    blocks_512 = self.stat_lower(data)?.blocks_512;
                }
                if let DataAt::Blocks(_) = &file.data {
                    // Blocks below count too; finding their holes is not worth the calls.
                    blocks_512 = blocks_512.max(shown.size_bytes.div_ceil(512));
                }
                match &file.lower {
                    // The lower inode never loses a name: subtract one that was removed here.
                    Some(lower) if gone && file.upper.is_none() => lower.nlink.saturating_sub(1),
                    _ => self.nlink(state, &stored)?,
                }
            }
        };
        let (uid, gid) = match (&self.reader_ids, node.id) {
            (Some(ids), _) => ids.shown(state.layer(), shown.uid, shown.gid)?,
            (_, NodeId::ROOT) => self.ids.shown_or_itself(shown.uid, shown.gid)?,
            _ => (
                self.ids.uid_shown(shown.uid)?,
                self.ids.gid_shown(shown.gid)?,
            ),
        };
        Ok(Attr {
            ino: node.ino,
            kind: node.kind,
            mode: shown.mode,
            nlink,
            uid,
            gid,
            rdev: shown.rdev,
            size_bytes: match node.kind {
                FileKind::Dir | FileKind::File | FileKind::Symlink => shown.size_bytes,
                _ => 0,
            },
            blocks_512,
            block_bytes: BLOCK_BYTES,
            atime: shown.atime,
            mtime: shown.mtime,
            ctime: shown.ctime,
        })
    }

    /// Returns the attributes of the inode that counts, as stored.
    pub(crate) fn stat_in(&self, state: Placed<'_>) -> Result<Stat> {
        let at = state.at().on(self.layer(0))?;
        match (at, &state.body) {
            (Some(at), _) => at.stat().on(self.layer(0)),
            (None, Body::Dir(dir)) => {
                let top = &dir.parts[0];
                let stat = top.dir.dir.stat(None).on(self.layer(top.layer))?;
                stat.ok_or_else(|| Refusal::Stale.into())
            }
            (None, Body::File(file)) => match &file.lower {
                Some(lower) => self.stat_lower(lower),
                None => Err(Refusal::Stale.into()),
            },
        }
    }

    /// Returns the attributes of a lower file, as stored.
    pub(crate) fn stat_lower(&self, lower: &LowerFile) -> Result<Stat> {
        let stat = lower.dir.stat(Some(&lower.name));
        let stat = stat.on(self.layer(lower.layer))?;
        stat.ok_or_else(|| Refusal::Stale.into())
    }

    /// Returns the attributes with records applied.
    pub(crate) fn shown_in(&self, state: Placed<'_>, stored: &Stat) -> Result<Stat> {
        let shown = |layer: usize, dir: &dyn LayerDir, name: Option<&OsStr>| {
            // Data-only layers contribute no attributes.
            let layer = &**self.stack.layers().get(layer).ok_or(Refusal::Stale)?;
            node::shown(layer, dir, name, stored)
        };
        let shown = match &state.body {
            Body::Dir(dir) => shown(dir.parts[0].layer, &*dir.parts[0].dir.dir, None)?,
            Body::File(file) => match (&file.upper, &file.lower) {
                (Some(_), _) => match state.at().on(self.layer(0))? {
                    Some(at) => node::shown_at(&*self.upper()?.layer, &at, stored)?,
                    None => None,
                },
                (None, Some(lower)) => shown(lower.layer, &*lower.dir, Some(&lower.name))?,
                (None, None) => None,
            },
        };
        Ok(shown.unwrap_or_else(|| stored.clone()))
    }

    /// Returns how many names a file has in the union.
    pub(crate) fn nlink(&self, state: Placed<'_>, stored: &Stat) -> Result<u32> {
        let (Body::File(file), Some(upper)) = (&state.body, &self.upper) else {
            return Ok(stored.nlink);
        };
        // Without an index, names of a file in different layers are different files.
        if file.upper.is_none() || upper.index.is_none() || state.links.is_none() {
            return Ok(stored.nlink);
        }
        let at = state.at().on(self.layer(0))?;
        let Some(mark) = at.map(|at| upper.nlink_mark(&at)).transpose()?.flatten() else {
            return Ok(stored.nlink);
        };
        let below = state.links.as_ref().and_then(|links| links.lower_nlink);
        let base = match (mark.base, below, &file.lower) {
            (NlinkBase::Upper, ..) => stored.nlink,
            (NlinkBase::Lower, Some(nlink), _) => nlink,
            (NlinkBase::Lower, None, Some(lower)) => lower.nlink,
            // The lower inode can't be found: only the names in the upper layer are known, without
            // that in the index.
            (NlinkBase::Lower, None, None) => return Ok(stored.nlink.saturating_sub(1).max(1)),
        };
        Ok(base.saturating_add_signed(mark.delta))
    }
}

impl Upper {
    /// Returns the mark that says how many names an indexed file has.
    pub(crate) fn nlink_mark(&self, at: &At) -> Result<Option<Nlink>> {
        let name = self.options.prefix.xattr(Mark::Nlink);
        let Some(value) = at.xattr(name).on(self)? else {
            return Ok(None);
        };
        Nlink::parse(&value).map(Some).map_err(|source| {
            let path = match at {
                At::Name(dir, name) => dir.path().unwrap_or_default().join(name),
                At::Dir(_) | At::Fd(_) => Default::default(),
            };
            Error::Mark {
                layer: crate::Layer::name(&*self.layer),
                path,
                source,
            }
        })
    }
}

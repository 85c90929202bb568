//! Opens a regular file where its bytes are, and chooses how its bytes are copied up.
//!
//! Only this file opens descriptors of data: from the cache if the cached one is what the node's
//! state asks for, else from the layer. Files protected by a mark are not cached, so that each call
//! checks the mark.

use std::fs::File;
use std::sync::Arc;

use rustix::io::Errno;
use vellum_format::block_map;
use vellum_sys::data;
use vellum_sys::flags::IMMUTABLE;
use vellum_sys::rooted::{self, Access};

use crate::engine::blocks::{BlockFile, OpenBlocks};
use crate::engine::files::Opened;
use crate::engine::flags;
use crate::engine::nodes::{Body, DataAt, FileBody, LiveNode, LowerFile, State, UpperFile};
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::{Error, Refusal, Result};

/// An open file, by where its bytes are.
pub(crate) enum Bytes {
    Lower(Arc<File>, usize),
    Upper(Arc<File>),
    /// As `Upper`, for an append-only file.
    AppendOnly(Arc<File>),
    Blocks(Arc<BlockFile>, Arc<OpenBlocks>),
}

impl Engine {
    /// Opens the file where its bytes are.
    pub(crate) fn place(&self, node: &LiveNode, write: bool) -> Result<Bytes> {
        if let Some(bytes) = self.bytes_kept(node, &node.state(), write)? {
            return Ok(bytes);
        }
        // The file can't move while it is opened.
        let mut state = self.unmoved(node);
        if let Some(bytes) = self.bytes_kept(node, &state, write)? {
            return Ok(bytes);
        }
        if matches!(&state.body, Body::File(file) if matches!(file.data, DataAt::Lower(_))) {
            // No request waits for a lower layer.
            state.let_go();
        }
        let Body::File(file) = &state.body else {
            return Err(Refusal::IsADirectory.into());
        };
        let opened = match &file.data {
            DataAt::Lower(lower) => {
                let file = open_lower(lower).on(self.layer(lower.layer))?;
                Opened::Lower(Arc::new(file))
            }
            DataAt::Upper => self.open_upper(file, write)?,
            DataAt::Blocks(blocks) => {
                let upper = self.upper()?;
                let place = file.upper.as_ref().ok_or(Refusal::Stale)?;
                let inode = open_upper(place, Access::ReadWrite).on(upper)?;
                Opened::Blocks(Arc::new(blocks.open(&upper.blocks, inode)?))
            }
        };
        if let Some(protected) = self.protected(&opened)? {
            // Not cached: each call checks the mark.
            return match (write, protected & IMMUTABLE, &opened) {
                (false, _, _) => bytes_of(&file.data, &opened, false),
                (true, 0, Opened::Upper(file)) => Some(Bytes::AppendOnly(Arc::clone(file))),
                (true, _, _) => return Err(Refusal::NotPermitted.into()),
            }
            .ok_or_else(|| Refusal::Stale.into());
        }
        self.files.put(node.id, opened.clone(), &state);
        bytes_of(&file.data, &opened, write).ok_or_else(|| Refusal::Stale.into())
    }

    /// Returns the flags that protect an opened upper inode, if it has any.
    fn protected(&self, opened: &Opened) -> Result<Option<u32>> {
        let Some(upper) = &self.upper else {
            return Ok(None);
        };
        let flags = match opened {
            Opened::Upper(file) => flags::marked(upper, file),
            Opened::Blocks(open) => flags::marked(upper, &open.upper),
            Opened::Lower(_) | Opened::UpperToRead(_) => return Ok(None),
        };
        let flags = flags.on(upper)?;
        Ok((flags != 0).then_some(flags))
    }

    fn bytes_kept(&self, node: &LiveNode, state: &State, write: bool) -> Result<Option<Bytes>> {
        let Body::File(file) = &state.body else {
            return Err(Refusal::IsADirectory.into());
        };
        let kept = self.files.get(node.id);
        Ok(kept.and_then(|opened| bytes_of(&file.data, &opened, write)))
    }

    fn open_upper(&self, file: &FileBody, write: bool) -> Result<Opened> {
        let place = file.upper.as_ref().ok_or(Refusal::Stale)?;
        match open_upper(place, Access::ReadWrite) {
            Ok(file) => Ok(Opened::Upper(Arc::new(file))),
            // A plain user's own file may be read-only to that user, or the file system may be.
            Err(error) if !write && (error.is_denied() || error.is(Errno::ROFS)) => {
                let file = open_upper(place, Access::Read).on(self.layer(0))?;
                Ok(Opened::UpperToRead(Arc::new(file)))
            }
            Err(error) => Err(self.layer(0).io(error)),
        }
    }

    /// Gives an inode in the upper layer the bytes of an open lower file: shared, if the file
    /// system can do that; block by block, if the file is large enough; else copied. Returns where
    /// the bytes are then. The caller syncs a `staged` inode.
    pub(crate) fn take_bytes(
        &self,
        upper: &Upper,
        (from, source): (&Arc<LowerFile>, &File),
        to: &File,
        staged: bool,
    ) -> Result<DataAt> {
        if data::clone(source, to) {
            return Ok(DataAt::Upper);
        }
        let size_bytes = vellum_sys::stat::stat_fd(source)
            .on(self.layer(from.layer))?
            .size_bytes;
        if upper
            .options
            .blocks_from_bytes
            .is_some_and(|least| size_bytes >= least.max(1) && block_map::fits(size_bytes))
        {
            let path = from.dir.path().join(&from.name);
            let place = (self.layer_from_bottom(from.layer), &*path);
            match upper.blocks.begin(to, source, place, staged) {
                Ok(map) => return Ok(DataAt::Blocks(Arc::new(BlockFile::named(map)))),
                // The file system lacks the xattrs that this needs.
                Err(Error::Io { source, .. }) if source.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        vellum_sys::copy::copy_apart(source, to, size_bytes).on(upper)?;
        Ok(DataAt::Upper)
    }

    /// Returns a layer's number counted from the bottom, data-only layers first.
    fn layer_from_bottom(&self, layer: usize) -> u32 {
        let (layers, data) = (self.stack.layers().len(), self.stack.data_layers().len());
        let number = match layer.checked_sub(layers) {
            Some(data_layer) => data - 1 - data_layer,
            None => data + layers - 1 - layer,
        };
        number as u32
    }
}

/// Returns the open file, if it is what the state asks for.
fn bytes_of(at: &DataAt, opened: &Opened, write: bool) -> Option<Bytes> {
    match (at, opened) {
        (DataAt::Lower(lower), Opened::Lower(file)) => {
            Some(Bytes::Lower(Arc::clone(file), lower.layer))
        }
        (DataAt::Upper, Opened::Upper(file)) => Some(Bytes::Upper(Arc::clone(file))),
        (DataAt::Upper, Opened::UpperToRead(file)) if !write => {
            Some(Bytes::Upper(Arc::clone(file)))
        }
        (DataAt::Blocks(blocks), Opened::Blocks(open)) => {
            Some(Bytes::Blocks(Arc::clone(blocks), Arc::clone(open)))
        }
        _ => None,
    }
}

pub(crate) fn open_lower(file: &LowerFile) -> vellum_sys::Result<File> {
    file.dir.open_file(&file.name)
}

pub(crate) fn open_upper(place: &UpperFile, access: Access) -> vellum_sys::Result<File> {
    match place {
        UpperFile::Named { dir, name } => dir.dir()?.open_known_file(name, access),
        UpperFile::Pinned(fd) => rooted::reopen_for(fd, access),
    }
}

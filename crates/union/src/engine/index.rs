//! Hard links across layers: the index.
//!
//! A lower inode with several names is copied up once, into `work/index`, under a name derived from
//! its handle. Each of its names leads there: untouched names because the lower file's handle is
//! looked up in the index, the others because they are hard links of the entry. So all stay one
//! file, live and after a remount, and the kernel reads it the same way (`index=on`). A mark on the
//! copy says how many names the file has; `links.rs` keeps it right.

use std::sync::Arc;

use vellum_format::{Handle, Mark};
use vellum_sys::{Stat, handle};

use crate::engine::Engine;
use crate::engine::nodes::{Body, LowerFile, State, UpperFile};
use crate::error::On;
use crate::layer::{Layer, LayerDir};
use crate::marks::{FileAt, Reader};
use crate::resolve::{Answer, Data};
use crate::{Error, Result};

/// A copy found in the index.
pub(super) struct InIndex {
    pub place: UpperFile,
    pub stat: Stat,
    /// Its data is below.
    pub metacopy: bool,
    /// The name of its block map, if it is copied up block by block.
    pub blocks: Option<Box<str>>,
}

impl State {
    /// Notes the lower file of a node that was first found by its copy.
    pub(super) fn know_lower(&mut self, lower: &Arc<LowerFile>) {
        if let Body::File(file) = &mut self.body {
            file.lower.get_or_insert_with(|| Arc::clone(lower));
        }
        if let Some(links) = &mut self.links {
            links.lower_nlink = Some(lower.nlink);
        }
    }
}

impl Engine {
    /// Returns the copy of a lower file that other names of it share, if there is one.
    pub(super) fn in_index(&self, lower: &LowerFile) -> Result<Option<InIndex>> {
        let Some(upper) = &self.upper else {
            return Ok(None);
        };
        let Some(index) = &upper.index else {
            return Ok(None);
        };
        let handle = self.handle_of(lower.layer, &*lower.dir, Some(&lower.name))?;
        let Some(name) = handle.and_then(|handle| handle.index_name().ok()) else {
            return Ok(None);
        };
        let dir = Arc::clone(index) as Arc<dyn LayerDir>;
        // The kernel leaves a whiteout there for file handles of removed files.
        let Answer::File { file, data, .. } = Reader::new(&*upper.layer).ask(&dir, &name)? else {
            return Ok(None);
        };
        let dir = Arc::clone(index);
        Ok(Some(InIndex {
            place: UpperFile::Named { dir, name },
            stat: file.stat,
            metacopy: matches!(data, Data::Below(_)),
            blocks: file.blocks,
        }))
    }

    /// Returns the link count of the lower inode from which an upper file was copied, if the inode
    /// can be reached.
    pub(super) fn lower_nlink(&self, file: &FileAt) -> Result<Option<u32>> {
        let Some(upper) = &self.upper else {
            return Ok(None);
        };
        if upper.index.is_none() {
            return Ok(None);
        }
        let mark = upper.options.prefix.xattr(Mark::Origin);
        let value = file.dir.xattr(Some(&file.name), mark);
        let Some(value) = value.on(upper)? else {
            return Ok(None);
        };
        let handle = Handle::parse(&value).map_err(|source| Error::Mark {
            layer: upper.layer.name(),
            path: file.dir.path().join(&file.name),
            source,
        })?;
        let Some(origin) = handle else {
            return Ok(None);
        };
        let layers = 1..self.stack.layers().len();
        let Some(layer) = layers
            .clone()
            .find(|&layer| self.numbers.uuid(layer) == origin.uuid)
        else {
            return Ok(None);
        };
        let root = self.stack.layers()[layer].root();
        let root = root.open_path(None).on(self.layer(layer))?;
        let found = handle::FileHandle {
            kind: origin.kind.into(),
            bytes: origin.bytes,
        };
        // Needs a privilege that a plain user does not have; but a plain user's engine does not
        // write marks that count from the lower inode either.
        let stat = handle::open(&root, &found).and_then(vellum_sys::stat::stat_fd);
        Ok(stat.ok().map(|stat| stat.nlink))
    }
}

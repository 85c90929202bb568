//! Hard links across layers: the index.
//!
//! A lower inode with several names is copied up once, into `work/index`, under a name made of its
//! handle. Each of its names leads there: those that were not touched because the lower file's
//! handle is looked for in the index, the others because they are hard links of the entry. So all
//! stay one file, live and after a remount, and the kernel reads it the same way (`index=on`). How
//! many names the file has is in a mark on the copy; `links.rs` keeps it right.

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
    /// Notes the lower file, where a node was first found by its copy.
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
        // A whiteout there is what the kernel leaves for file handles of what was removed.
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

    /// Returns how many names the lower inode has that a file in the upper layer was copied from,
    /// if it can be reached.
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
        // Needs a privilege that a plain user does not have; nor does he write marks that count
        // from the lower inode.
        let stat = handle::open(&root, &found).and_then(vellum_sys::stat::stat_fd);
        Ok(stat.ok().map(|stat| stat.nlink))
    }
}

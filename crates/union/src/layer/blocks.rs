//! Reading files whose bytes are partly in the upper layer and partly still in a lower file.
//!
//! Such a file is a sparse upper inode with the deliberately short metacopy mark, for which every
//! kernel mount returns EIO, and a mark that names its map: a file in `vellum/blocks` of the work
//! directory ([`vellum_format::block_map`]). Reading it needs that work directory, and the very
//! lower file that the map names; otherwise an error says what is missing, and no byte is read as
//! zero. `engine/blocks.rs` and `engine/settle.rs` write such files.
//!
//! The rule for every byte is in one place ([`view::View`]): from the map's limit on, and in
//! written blocks, it is the upper file's; else the lower file's.

pub(crate) mod maps;
pub(crate) mod view;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use vellum_format::block_map::BlockMap;
use vellum_sys::data;

use crate::layer::Layer;
use crate::{Error, Result};

pub use maps::BlockMaps;
use view::{Piece, View};

/// The bytes of a regular file, open for reading.
///
/// Reads sequentially from the beginning, like a file, with its own position.
#[derive(Debug)]
pub struct Data {
    whole: Whole,
    at: u64,
}

#[derive(Debug)]
enum Whole {
    Plain(File),
    Blocks(Box<Blocks>),
}

/// A file copied up block by block, with what is needed to read it.
#[derive(Debug)]
struct Blocks {
    upper: File,
    lower: File,
    map: BlockMap,
    size_bytes: u64,
}

impl Data {
    pub(crate) fn plain(file: File) -> Data {
        Data {
            whole: Whole::Plain(file),
            at: 0,
        }
    }

    /// Opens a file that is copied up block by block: `upper` is its inode, `map` the name in its
    /// mark.
    ///
    /// `lowers` are all layers below, from the bottom, data-only ones first.
    pub(crate) fn blocks(
        maps: &BlockMaps,
        map: &str,
        upper: File,
        lowers: &[Arc<dyn Layer>],
        fail: impl Fn(String) -> Error,
    ) -> Result<Data> {
        let stat = vellum_sys::stat::stat_fd(&upper).map_err(|error| fail(told(&error)))?;
        let mut map = maps.read(map).map_err(&fail)?;
        maps::check_upper(&map, stat.ino).map_err(&fail)?;
        let lower = maps::open_lower(&map.header.lower, lowers).map_err(&fail)?;
        // It was truncated by a process that was killed before it recorded that.
        map.limit_bytes = map.limit_bytes.min(stat.size_bytes);
        let blocks = Blocks {
            upper,
            lower,
            map,
            size_bytes: stat.size_bytes,
        };
        Ok(Data {
            whole: Whole::Blocks(Box::new(blocks)),
            at: 0,
        })
    }

    /// Returns the file itself, if it has all its bytes.
    pub fn as_file(&self) -> Option<&File> {
        match &self.whole {
            Whole::Plain(file) => Some(file),
            Whole::Blocks(_) => None,
        }
    }

    /// Returns the size in bytes.
    pub fn size_bytes(&self) -> vellum_sys::Result<u64> {
        match &self.whole {
            Whole::Plain(file) => Ok(vellum_sys::stat::stat_fd(file)?.size_bytes),
            Whole::Blocks(blocks) => Ok(blocks.size_bytes),
        }
    }

    /// Reads from `offset` on, as much as there is; a short count means the end of the file.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> vellum_sys::Result<usize> {
        match &self.whole {
            Whole::Plain(file) => data::read_at(file, buffer, offset),
            Whole::Blocks(blocks) => blocks.pieces().read_at(buffer, offset),
        }
    }

    /// Returns where data begins at or after `offset`; `None` if only holes are left.
    pub fn seek_data(&self, offset: u64) -> vellum_sys::Result<Option<u64>> {
        match &self.whole {
            Whole::Plain(file) => data::seek_data(file, offset),
            Whole::Blocks(blocks) => blocks.pieces().seek(offset, Piece::Data),
        }
    }

    /// Returns where a hole begins at or after `offset`; the end is one. `None` past the end.
    pub fn seek_hole(&self, offset: u64) -> vellum_sys::Result<Option<u64>> {
        match &self.whole {
            Whole::Plain(file) => data::seek_hole(file, offset),
            Whole::Blocks(blocks) => blocks.pieces().seek(offset, Piece::Hole),
        }
    }
}

impl Blocks {
    fn pieces(&self) -> View<'_> {
        View {
            map: &self.map,
            upper: &self.upper,
            lower: &self.lower,
            size_bytes: self.size_bytes,
        }
    }
}

impl Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self
            .read_at(buffer, self.at)
            .map_err(|error| error.source)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Data {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(by) => (self.at, by),
            SeekFrom::End(by) => (self.size_bytes().map_err(|error| error.source)?, by),
        };
        self.at = base
            .checked_add_signed(by)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Returns a system call's error in one line.
pub(crate) fn told(error: &vellum_sys::Error) -> String {
    format!("{error}: {}", error.source)
}

//! The maps of an upper layer: finding a map by name, and the lower file it names.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use vellum_format::block_map::{BlockMap, Epoch, LowerIdentity};
use vellum_format::workdir;
use vellum_sys::{Dir, epoch, handle};

use super::told;
use crate::layer::{Layer, LayerDir};

/// More than the size of any possible map: enough for a file of 2^62 bytes.
const MAP_MAX_BYTES: u64 = 1 << 30;

/// The maps in one work directory.
#[derive(Debug)]
pub struct BlockMaps {
    dir: Dir,
    epoch: Epoch,
}

impl BlockMaps {
    /// Opens the maps in the work directory at `work`, a trusted path; `None` if it never had any.
    pub fn open(work: &Path) -> vellum_sys::Result<Option<BlockMaps>> {
        BlockMaps::within(&Dir::open(work)?)
    }

    pub(crate) fn within(work: &Dir) -> vellum_sys::Result<Option<BlockMaps>> {
        match work.open_dir(workdir::BLOCK_MAPS) {
            Ok(dir) => BlockMaps::new(dir).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn new(dir: Dir) -> vellum_sys::Result<BlockMaps> {
        let epoch = Epoch {
            boot: epoch::boot_id()?,
            mount: epoch::mount_id(&dir)?,
        };
        Ok(BlockMaps { dir, epoch })
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the map called `name`. Errors say why it can't be used, as a clause.
    pub(crate) fn read(&self, name: &str) -> Result<BlockMap, String> {
        // An engine may be appending a record right now: a map that looks damaged may be whole a
        // moment later.
        let tries = (0..3).map(|_| self.read_once(name));
        let mut last = Err(String::new());
        for read in tries {
            last = read;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    fn read_once(&self, name: &str) -> Result<BlockMap, String> {
        let file = match self.dir.open_file(name) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => {
                return Err(format!("its map {name} is not in this work directory"));
            }
            Err(error) => return Err(told(&error)),
        };
        self.parse(name, file)
    }

    /// Reads an open map.
    pub(crate) fn parse(&self, name: &str, file: impl Read) -> Result<BlockMap, String> {
        let mut bytes = Vec::new();
        file.take(MAP_MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("its map {name} can't be read: {error}"))?;
        let map = BlockMap::parse(&bytes, self.epoch)
            .map_err(|error| format!("its map {name} can't be used: {error}"))?;
        match map.header.name() == name {
            true => Ok(map),
            false => Err(format!("its map {name} belongs to another file")),
        }
    }
}

/// Checks that a map belongs to the inode it is used for: a copy of an unsettled file may not use
/// the original's map.
pub(crate) fn check_upper(map: &BlockMap, ino: u64) -> Result<(), String> {
    match map.header.upper_ino == ino {
        true => Ok(()),
        false => Err(format!(
            "its map belongs to inode {}, but this is inode {ino}: the upper layer was copied",
            map.header.upper_ino
        )),
    }
}

/// Returns the identity of a lower file: `layer` from the bottom, `path` in it.
pub(crate) fn identify(layer: u32, path: &Path, file: &File) -> vellum_sys::Result<LowerIdentity> {
    let stat = vellum_sys::stat::stat_fd(file)?;
    let handle = handle::of(file)?.map(|handle| (handle.kind, handle.bytes));
    Ok(LowerIdentity {
        layer,
        path: path.to_owned(),
        ino: stat.ino,
        size_bytes: stat.size_bytes,
        mtime: (stat.mtime.sec, stat.mtime.nsec),
        handle,
    })
}

/// Opens the lower file that a map names, and makes sure it is that very file, unchanged.
///
/// `lowers` are all layers below, from the bottom. The layer that the map names is searched first,
/// then the others, since layers may have been added. Errors say what is wrong, as a clause.
pub(crate) fn open_lower(
    wanted: &LowerIdentity,
    lowers: &[Arc<dyn Layer>],
) -> Result<File, String> {
    let named = wanted.layer as usize;
    let order = (named < lowers.len())
        .then_some(named)
        .into_iter()
        .chain((0..lowers.len()).rev().filter(|&layer| layer != named));
    let mut other = None;
    for layer in order {
        let Some(file) = open_in(&*lowers[layer], &wanted.path)? else {
            continue;
        };
        let found = identify(wanted.layer, &wanted.path, &file).map_err(|error| told(&error))?;
        match difference(wanted, &found) {
            None => return Ok(file),
            Some(difference) => {
                let name = lowers[layer].name();
                other.get_or_insert_with(|| format!("/{} in layer {name} is no longer the file it was copied from: {difference}", wanted.path.display()));
            }
        }
    }
    Err(other.unwrap_or_else(|| {
        format!(
            "the file it was copied from, /{}, is in no layer below",
            wanted.path.display()
        )
    }))
}

fn open_in(layer: &dyn Layer, path: &Path) -> Result<Option<File>, String> {
    let mut names: Vec<_> = path.iter().collect();
    let Some(last) = names.pop() else {
        return Ok(None);
    };
    let mut dir: Arc<dyn LayerDir> = layer.root();
    for name in names {
        dir = dir.subdir(name);
    }
    use rustix::io::Errno;
    match dir.open_file(last) {
        Ok(file) => Ok(Some(file)),
        Err(error)
            if error.is_not_found() || error.is(Errno::NOTDIR) || error.is(Errno::LOOP)
                // Not a regular file.
                || error.is(Errno::INVAL) =>
        {
            Ok(None)
        }
        Err(error) => Err(told(&error)),
    }
}

fn difference(wanted: &LowerIdentity, found: &LowerIdentity) -> Option<&'static str> {
    if wanted.size_bytes != found.size_bytes {
        Some("its size differs")
    } else if wanted.mtime != found.mtime {
        Some("it was changed")
    } else if wanted.ino != found.ino || wanted.handle != found.handle {
        Some("it was replaced")
    } else {
        None
    }
}

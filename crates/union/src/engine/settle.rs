//! Making an upper layer plain: copies what is still read from lower files, until no file has a
//! block map.
//!
//! Afterwards the kernel and other programs can mount the upper or read it as a layer. Settling can
//! be stopped at any time, also by a kill: each part is durable and recorded before the next is
//! copied, and the next settling continues there. A file is whole before its marks are removed.
//! Owner, mode, times, xattrs and holes don't change.
//!
//! The upper and the work directory are locked while it runs, as by an engine.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::{Mark, Metacopy, Prefix, block_map, workdir};
use vellum_sys::rooted::Access;
use vellum_sys::{Cancel, Dir, FileKind, xattr};

use crate::dir_layer::DirLayer;
use crate::engine::blocks::{BlockFile, BlockStore};
use crate::engine::limit;
use crate::engine::recovery::{forget_open, lock};
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::layer::blocks::BlockMaps;
use crate::layer::{Dialect, Layer, LayerDir};
use crate::{Error, Result};

/// The upper layer to settle.
#[derive(Debug, Clone)]
pub struct SettleOptions {
    /// The upper directory.
    pub upper: PathBuf,
    /// Its work directory.
    pub work: PathBuf,
    /// The namespace of its marks.
    pub prefix: Prefix,
    /// The lower layers it was used with, the top one first.
    pub lowers: Vec<Arc<dyn Layer>>,
    /// The data-only layers below them.
    pub data_lowers: Vec<Arc<dyn Layer>>,
}

/// The progress of settling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SettleProgress {
    /// Files made plain.
    pub files: u64,
    /// Files that were unsettled.
    pub files_total: u64,
    /// Bytes copied (or found to be holes).
    pub bytes: u64,
    /// Bytes that were still below at the start.
    pub bytes_total: u64,
}

/// The result of settling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// How much was done.
    pub done: SettleProgress,
    /// Nothing unsettled is left; false if it was asked to stop.
    pub complete: bool,
}

/// Makes an upper layer plain. Durable on return.
///
/// Errors: [`Error::BadUpper`] if a union has the upper or the work directory open;
/// [`Error::Blocks`] names a file whose map or lower file can't be used (the others are settled all
/// the same); `Io`, also if there is no space. Completed work stays.
pub fn settle(
    options: &SettleOptions,
    progress: &mut dyn FnMut(SettleProgress),
    cancel: &Cancel,
) -> Result<Settled> {
    let (upper, _upper_lock) = lock(&options.upper)?;
    let (work, _work_lock) = lock(&options.work)?;
    let name = options.upper.display().to_string();
    if vellum_sys::mount::overlay_holds(&upper).unwrap_or(false) {
        return Err(Error::BadUpper {
            path: options.upper.clone(),
            why: "the kernel has it mounted as an overlay's upper; unmount that first".to_owned(),
        });
    }
    // Copied bytes count against a limit, but they are not counted here.
    limit::forget(&work).on(&*name)?;
    let Some(maps) = BlockMaps::within(&work).on(&*name)? else {
        return Ok(Settled {
            done: SettleProgress::default(),
            complete: true,
        });
    };
    let index = match work.open_dir(workdir::INDEX) {
        Ok(index) => Some(index),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(name.as_str().io(error)),
    };
    let lowers = options.data_lowers.iter().rev();
    let lowers = lowers.chain(options.lowers.iter().rev()).cloned().collect();
    let (maps, prefix) = (Arc::new(maps), options.prefix);
    let store = BlockStore::open(work, maps, name.clone(), prefix, true, lowers)?;
    let settled = Run::new(&store, name.clone(), progress, cancel)?.all(&upper, index.as_ref())?;
    if settled.complete {
        // A killed engine left it; the directory is no longer in use, and nothing in it is specific
        // to Vellum any more.
        forget_open(&options.work).on(&*name)?;
    }
    Ok(settled)
}

impl Engine {
    /// Closes the engine as [`Engine::close`] does, but makes the upper layer plain before it
    /// releases it.
    ///
    /// `None` if there is no upper layer. The engine is closed after an error too; files settled by
    /// then stay settled.
    pub fn close_settled(
        self,
        progress: &mut dyn FnMut(SettleProgress),
        cancel: &Cancel,
    ) -> Result<Option<Settled>> {
        let upper = self.upper.as_ref();
        let settled = upper.map(|upper| settle_open(upper, progress, cancel));
        let closed = self.close();
        let settled = settled.transpose()?;
        closed.map(|()| settled)
    }
}

/// Settles the upper layer of an engine that is no longer in use.
fn settle_open(
    upper: &Upper,
    progress: &mut dyn FnMut(SettleProgress),
    cancel: &Cancel,
) -> Result<Settled> {
    let name = upper.layer.name();
    let root = upper.root.dir().on(upper)?;
    let index = upper.index.as_ref().map(|index| index.dir()).transpose();
    let index = index.on(upper)?;
    // Copied bytes count against a limit, but they are not counted here.
    upper.usage.miscounts();
    Run::new(&upper.blocks, name, progress, cancel)?.all(&root, index.as_deref())
}

/// One run of settling.
struct Run<'a> {
    store: &'a BlockStore,
    name: String,
    progress: &'a mut dyn FnMut(SettleProgress),
    cancel: &'a Cancel,
    done: SettleProgress,
    /// Maps whose file was not found yet.
    left: BTreeSet<Box<str>>,
    failed: Option<Error>,
}

impl<'a> Run<'a> {
    fn new(
        store: &'a BlockStore,
        name: String,
        progress: &'a mut dyn FnMut(SettleProgress),
        cancel: &'a Cancel,
    ) -> Result<Run<'a>> {
        let mut run = Run {
            store,
            name,
            progress,
            cancel,
            done: SettleProgress::default(),
            left: BTreeSet::new(),
            failed: None,
        };
        for entry in store.maps().dir().entries().on(store)? {
            let entry = entry.on(store)?;
            let Some(map) = block_map::parse_name(entry.name.as_encoded_bytes()) else {
                continue;
            };
            run.done.files_total += 1;
            // An unreadable map is reported when its file is found.
            if let Ok(map) = store.maps().read(&map) {
                run.done.bytes_total += map.blocks_below() * u64::from(map.header.block_bytes);
            }
            run.left.insert(map);
        }
        Ok(run)
    }

    /// Settles everything in the upper layer, and files that have a name only in the index.
    fn all(mut self, upper: &Dir, index: Option<&Dir>) -> Result<Settled> {
        (self.progress)(self.done);
        let mut complete = self.left.is_empty() || self.tree(upper)?;
        if let (true, false, Some(index)) = (complete, self.left.is_empty(), index) {
            complete = self.tree(index)?;
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        if complete {
            // Nothing names them: a crash came before the mark, or after its removal.
            for map in std::mem::take(&mut self.left) {
                self.store.remove_map(&map)?;
            }
        }
        Ok(Settled {
            done: self.done,
            complete,
        })
    }

    /// Walks a tree until no map is left. False if it was asked to stop.
    fn tree(&mut self, root: &Dir) -> Result<bool> {
        // Handles, since a path may be longer than the kernel takes.
        let root = root.dup().on(self.store)?;
        let root = DirLayer::new(root, self.name.clone(), Dialect::plain());
        let mut pending = vec![root.root_handle()];
        while let Some(handle) = pending.pop() {
            let dir = handle.dir().on(self.store)?;
            for entry in dir.entries().on(self.store)? {
                if self.left.is_empty() {
                    return Ok(true);
                }
                if self.cancel.is_cancelled() {
                    return Ok(false);
                }
                let entry = entry.on(self.store)?;
                match entry.kind {
                    FileKind::Dir => pending.push(handle.sub(&entry.name)),
                    FileKind::File => {
                        let at = handle.path().join(&entry.name);
                        match self.file(&dir, &entry.name, &at) {
                            Ok(true) => {}
                            Ok(false) => return Ok(false),
                            Err(error) => {
                                self.failed.get_or_insert(error);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(true)
    }

    /// Settles one file, if it is unsettled. False if it was asked to stop.
    fn file(&mut self, dir: &Dir, name: &OsStr, path: &Path) -> Result<bool> {
        let store = self.store;
        let get = |mark: &OsStr| xattr::get(dir, name, mark).on(store);
        match get(store.prefix().xattr(Mark::Metacopy))? {
            Some(value) if Metacopy::parse(&value) == Ok(Metacopy::Unsettled) => {}
            _ => return Ok(true),
        }
        let fail = |why: &str| Error::Blocks {
            layer: self.name.clone(),
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let map = get(store.prefix().xattr(Mark::Blocks))?;
        let map = map.ok_or_else(|| fail("nothing names its map"))?;
        let map = block_map::parse_name(&map)
            .ok_or_else(|| fail("the mark that names its map is damaged"))?;
        let upper = dir.open_file_for(name, Access::ReadWrite).on(store)?;
        let blocks = BlockFile::named(map.clone());
        let open = blocks
            .open_to_settle(store, upper)
            .map_err(|error| match error {
                Error::Blocks { layer, why, .. } => Error::Blocks {
                    layer,
                    path: path.to_owned(),
                    why,
                },
                other => other,
            })?;
        let mut left = blocks.bytes_below()?;
        if left > 0 {
            blocks.begin_settling(store, &open)?;
        }
        while left > 0 {
            if self.cancel.is_cancelled() {
                blocks.pause_settling(store, &open)?;
                return Ok(false);
            }
            let now = blocks.settle_step(store, &open)?;
            self.done.bytes += left.saturating_sub(now);
            left = now;
            (self.progress)(self.done);
        }
        blocks.finish(store, &open)?;
        self.left.remove(&map);
        self.done.files += 1;
        (self.progress)(self.done);
        Ok(true)
    }
}

//! The block maps of one upper layer, as its engine (or a settling of it) writes them: beginning a
//! file, its marks, its map's records on disk, and the end of it all.
//!
//! The order of everything: the refusal in the work directory before the first map, the map before
//! the marks that name it, data before records that tell of it, the marks' removal before the
//! map's. So what a crash leaves is a map that nothing names (litter, removed by a settling), never
//! a file without its map.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use vellum_format::block_map::{
    BlockMap, BlockMapHeader, BlockRecord, KeptAttributes, RECORD_BYTES, block_bytes_for,
};
use vellum_format::workdir::incompat;
use vellum_format::{Mark, Metacopy, Prefix, block_map, workdir};
use vellum_sys::rooted::Access;
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, RenameFlags, data, publish, random, sync};

use crate::engine::blocks::{BlockState, OpenBlocks};
use crate::error::{On, Site};
use crate::layer::Layer;
use crate::layer::blocks::maps::{self, BlockMaps};
use crate::{Error, Result};

/// A map is written anew, shorter, once it has so many records.
const COMPACT_FROM_RECORDS: u64 = 4096;

/// The block maps of one upper layer.
#[derive(Debug)]
pub(crate) struct BlockStore {
    maps: Arc<BlockMaps>,
    work: Dir,
    /// For messages: the upper layer's name.
    name: String,
    prefix: Prefix,
    /// Syncs happen.
    durable: bool,
    /// All layers below, from the bottom.
    lowers: Vec<Arc<dyn Layer>>,
    /// Whether the refusal is in the work directory. Held while maps are made and removed.
    refusing: Mutex<bool>,
    /// Maps that were opened for writing in this epoch.
    prepared: Mutex<HashSet<Box<str>>>,
}

/// The upper layer that the files are of.
impl Site for BlockStore {
    fn site(&self) -> String {
        self.name.clone()
    }
}

impl BlockStore {
    /// Takes the maps in `work`; removes what a crash left of writing them.
    pub fn open(
        work: Dir,
        maps: Arc<BlockMaps>,
        name: String,
        prefix: Prefix,
        durable: bool,
        lowers: Vec<Arc<dyn Layer>>,
    ) -> Result<BlockStore> {
        let store = BlockStore {
            maps,
            work,
            name,
            prefix,
            durable,
            lowers,
            refusing: Mutex::new(false),
            prepared: Mutex::default(),
        };
        for entry in store.maps.dir().entries().on(&store)? {
            let entry = entry.on(&store)?;
            if block_map::parse_name(entry.name.as_encoded_bytes()).is_none() {
                store.maps.dir().unlink(&entry.name).on(&store)?;
            }
        }
        store.stop_refusing(&mut store.refusing())?;
        Ok(store)
    }

    /// Opens the maps of a work directory, making their directory.
    pub fn make_dir(work: &Dir) -> vellum_sys::Result<BlockMaps> {
        BlockMaps::new(work.create_dir_all(workdir::BLOCK_MAPS, 0o700)?)
    }

    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    pub fn maps(&self) -> &BlockMaps {
        &self.maps
    }

    fn fail(&self, map: &str, why: String) -> Error {
        Error::Blocks {
            layer: self.name.clone(),
            path: Path::new(workdir::BLOCK_MAPS).join(map),
            why,
        }
    }

    fn refusing(&self) -> MutexGuard<'_, bool> {
        sync::lock(&self.refusing)
    }

    fn prepared(&self) -> MutexGuard<'_, HashSet<Box<str>>> {
        // One insertion or removal at a time: good even if another thread panicked with it.
        sync::lock(&self.prepared)
    }

    /// Makes `upper`, an empty inode or a metacopy, the upper part of a file copied up block by
    /// block from `lower`, the file at `path` in the layer `layer`, counted from the bottom.
    /// Returns its map's name.
    ///
    /// Nothing is copied. Afterwards `upper` has the lower file's size (unless it had one of its
    /// own) and the marks. Durable if the store is, but for what is `staged`, which nobody can see:
    /// that is the caller's to sync.
    pub fn begin(
        &self,
        upper: &File,
        lower: &File,
        (layer, path): (u32, &Path),
        staged: bool,
    ) -> Result<Box<str>> {
        let identity = maps::identify(layer, path, lower).on(self)?;
        let stat = vellum_sys::stat::stat_fd(upper).on(self)?;
        let mut id = [0; 16];
        id.copy_from_slice(&random::bytes(16));
        let header = BlockMapHeader {
            id,
            block_bytes: block_bytes_for(identity.size_bytes),
            upper_ino: stat.ino,
            lower: identity,
        };
        let name = header.name().into_boxed_str();
        let size_bytes = header.lower.size_bytes;
        let map = BlockMap::new(header);
        {
            let mut refusing = self.refusing();
            if !*refusing {
                self.refuse_kernels()?;
                *refusing = true;
            }
            self.write_new_map(&map)?;
        }
        let made = (|| {
            if stat.size_bytes != size_bytes {
                data::truncate(upper, size_bytes).on(self)?;
            }
            // The map's name first: with the other mark alone, the file could not be read.
            let set = |mark: &OsStr, value: &[u8]| {
                xattr::set_fd(upper, mark, value, SetMode::Any).on(self)
            };
            set(self.prefix.xattr(Mark::Blocks), name.as_bytes())?;
            set(
                self.prefix.xattr(Mark::Metacopy),
                &Metacopy::Unsettled.encode(),
            )?;
            // What is staged is synced before it is published.
            match staged {
                true => Ok(()),
                false => self.sync_file(upper),
            }
        })();
        if let Err(error) = made {
            // A map that nothing names is litter; the first error is the one worth telling.
            let _ = self.remove_map(&name);
            return Err(error);
        }
        self.prepared().insert(name.clone());
        Ok(name)
    }

    /// Reads the map of `upper`, an unsettled inode, and opens its lower file.
    pub fn load(&self, name: &str, upper: File) -> Result<(BlockState, OpenBlocks)> {
        let fail = |why| self.fail(name, why);
        let stat = vellum_sys::stat::stat_fd(&upper).on(self)?;
        let map = self.maps.read(name).map_err(fail)?;
        maps::check_upper(&map, stat.ino).map_err(fail)?;
        let open = OpenBlocks {
            lower: maps::open_lower(&map.header.lower, &self.lowers).map_err(fail)?,
            upper,
        };
        Ok((BlockState::new(map, stat.size_bytes), open))
    }

    /// Opens the lower file of a map that was read before.
    pub fn reopen(&self, name: &str, map: &BlockMap, upper: File) -> Result<OpenBlocks> {
        let lower = maps::open_lower(&map.header.lower, &self.lowers);
        Ok(OpenBlocks {
            lower: lower.map_err(|why| self.fail(name, why))?,
            upper,
        })
    }

    /// Gives an inode back what an unfinished settling has kept of it, and forgets that in the map.
    pub fn forget_kept(&self, name: &str, state: &mut BlockState, open: &OpenBlocks) -> Result<()> {
        let Some(kept) = state.map.kept.take() else {
            return Ok(());
        };
        give_back(&open.upper, &kept).on(self)?;
        self.sync_file(&open.upper)?;
        self.write_map(&state.map)?;
        state.rewritten();
        self.prepared().insert(name.into());
        Ok(())
    }

    /// Makes sure that records can be appended to a map in this epoch. What is pending in it must
    /// be valid in it.
    pub fn prepare(&self, name: &str, state: &mut BlockState, open: &OpenBlocks) -> Result<()> {
        if state.prepared {
            return Ok(());
        }
        if state.map.tail_left_out || !self.prepared().contains(name) {
            // What it says becomes durable by being written anew: the data first.
            self.sync_data(&open.upper)?;
            self.write_map(&state.map)?;
            state.rewritten();
            self.prepared().insert(name.into());
        }
        state.prepared = true;
        Ok(())
    }

    /// Appends records. After an error none of them counts.
    pub fn append(
        &self,
        name: &str,
        state: &mut BlockState,
        records: &[BlockRecord],
    ) -> Result<()> {
        let first = state.map.records;
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
        for (record, number) in records.iter().zip(first..) {
            bytes.extend_from_slice(&record.encode(&state.map.header.id, number));
        }
        let file = self.maps.dir().open_file_for(name, Access::Write);
        let file = file.on(self)?;
        let at = state.header_bytes + first * RECORD_BYTES as u64;
        data::write_at(&file, &bytes, at).on(self)?;
        for record in records {
            state
                .map
                .apply(record)
                .map_err(|error| self.fail(name, format!("a record contradicts it: {error}")))?;
        }
        state.map.records = first + records.len() as u64;
        state.dirty = true;
        Ok(())
    }

    /// Makes all that was written and recorded durable: the data first, then the map. Does nothing
    /// to an unwritten map.
    pub fn barrier(&self, name: &str, state: &mut BlockState, open: &OpenBlocks) -> Result<()> {
        self.sync_data(&open.upper)?;
        if state.gone || !(state.dirty || state.limit_pending) {
            return Ok(());
        }
        self.prepare(name, state, open)?;
        if state.map.records > state.compact_from {
            self.write_map(&state.map)?;
            state.rewritten();
        } else {
            let mut records = Vec::new();
            if state.limit_pending {
                records.push(BlockRecord::Limit {
                    bytes: state.map.limit_bytes,
                });
            }
            records.extend([false, true].map(|second| BlockRecord::Barrier { second }));
            self.append(name, state, &records)?;
            if self.durable {
                let map = self.maps.dir().open_file(name).on(self)?;
                data::sync_data(&map).on(self)?;
            }
        }
        state.dirty = false;
        state.limit_pending = false;
        Ok(())
    }

    /// Writes the map of a file that nothing names yet. Under its own name at once: the one sync of
    /// the file then makes the name durable too, on most file systems, and that of the directory
    /// finds nothing left to do.
    fn write_new_map(&self, map: &BlockMap) -> Result<()> {
        let bytes = self.whole(map)?;
        let dir = self.maps.dir();
        let name = map.header.name();
        let written = (|| {
            let file = dir.create_file(&name, 0o600).on(self)?;
            data::write_at(&file, &bytes, 0).on(self)?;
            self.sync_file(&file)?;
            match self.durable {
                true => dir.sync().on(self),
                false => Ok(()),
            }
        })();
        if written.is_err() {
            // Litter, if this fails too; the first error is the one worth telling.
            let _ = dir.unlink(&name);
        }
        written
    }

    /// Returns a map's bytes, written anew in this epoch.
    fn whole(&self, map: &BlockMap) -> Result<Vec<u8>> {
        let mut bytes = map
            .header
            .encode()
            .map_err(|error| self.fail(&map.header.name(), error.to_string()))?;
        let opened = BlockRecord::Opened(self.maps.epoch());
        let barrier = [false, true].map(|second| BlockRecord::Barrier { second });
        let records = [opened].into_iter().chain(map.compact()).chain(barrier);
        for (record, number) in records.zip(0..) {
            bytes.extend_from_slice(&record.encode(&map.header.id, number));
        }
        Ok(bytes)
    }

    /// Writes a map as a whole and puts it in the place of what has its name. Its data is durable.
    fn write_map(&self, map: &BlockMap) -> Result<()> {
        let bytes = self.whole(map)?;
        let temp = format!("{}{}", publish::TEMP_PREFIX, random::hex(16));
        let dir = self.maps.dir();
        let written = (|| {
            let mut file = dir.create_file(&temp, 0o600).on(self)?;
            file.write_all(&bytes)
                .map_err(|error| vellum_sys::Error::new("write", workdir::BLOCK_MAPS, error))
                .on(self)?;
            self.sync_file(&file)?;
            dir.rename(&temp, dir, map.header.name(), RenameFlags::empty())
                .on(self)
        })();
        if let Err(error) = written {
            // Swept at the next opening; the first error is the one worth telling.
            let _ = dir.unlink(&temp);
            return Err(error);
        }
        match self.durable {
            true => dir.sync().on(self),
            false => Ok(()),
        }
    }

    /// Makes an upper inode plain that has all its bytes itself, and removes its map.
    pub fn finish(&self, name: &str, state: &mut BlockState, upper: &File) -> Result<()> {
        if state.gone {
            return Ok(());
        }
        if let Some(kept) = state.map.kept.take() {
            give_back(upper, &kept).on(self)?;
        }
        // Before the mark goes: from then on, nobody looks below any more.
        self.sync_file(upper)?;
        // Nobody follows it but for a metacopy; should the next step not happen, the map still says
        // where the data is.
        xattr::remove_fd(upper, self.prefix.xattr(Mark::Redirect)).on(self)?;
        xattr::remove_fd(upper, self.prefix.xattr(Mark::Metacopy)).on(self)?;
        self.sync_file(upper)?;
        state.gone = true;
        xattr::remove_fd(upper, self.prefix.xattr(Mark::Blocks)).on(self)?;
        self.remove_map(name)
    }

    /// Removes a map that nothing names any more, and with the last one the refusal.
    pub fn remove_map(&self, name: &str) -> Result<()> {
        let mut refusing = self.refusing();
        match self.maps.dir().unlink(name) {
            Err(error) if !error.is_not_found() => return Err(self.io(error)),
            _ => {}
        }
        self.prepared().remove(name);
        self.stop_refusing(&mut refusing)
    }

    fn refuse_kernels(&self) -> Result<()> {
        let make = || {
            let incompat = self.work.create_dir_all(incompat::PATH, 0o700)?;
            incompat.create_dir_all(incompat::BLOCKS, 0o700)?;
            if self.durable {
                incompat.sync()?;
                self.work.open_dir(workdir::STAGING)?.sync()?;
                self.work.sync()?;
            }
            Ok(())
        };
        make().on(self)
    }

    /// Removes the refusal if there is no map.
    fn stop_refusing(&self, refusing: &mut bool) -> Result<()> {
        let mut entries = self.maps.dir().entries().on(self)?;
        if entries.next().transpose().on(self)?.is_some() {
            *refusing = true;
            return Ok(());
        }
        *refusing = false;
        let incompat = match self.work.open_dir(incompat::PATH) {
            Ok(incompat) => incompat,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(self.io(error)),
        };
        match incompat.rmdir(incompat::BLOCKS) {
            Err(error) if !error.is_not_found() => return Err(self.io(error)),
            _ => {}
        }
        // With entries of others in it, it stays; empty, it only says nothing.
        let _ = self
            .work
            .open_dir(workdir::STAGING)
            .and_then(|staging| staging.rmdir(incompat::NAME));
        Ok(())
    }

    /// Says in every map written to that its data is durable. The caller has synced the file
    /// system, and nobody writes any more.
    pub fn close(&self) -> Result<()> {
        let names: Vec<_> = self.prepared().iter().cloned().collect();
        let mut appended = false;
        for name in names {
            let map = match self.maps.read(&name) {
                Ok(map) if map.pending => map,
                Ok(_) => continue,
                // Settled or removed meanwhile, or damaged: then the next reader says so.
                Err(_) => continue,
            };
            let mut state = BlockState::new(map, u64::MAX);
            let barrier = [false, true].map(|second| BlockRecord::Barrier { second });
            self.append(&name, &mut state, &barrier)?;
            appended = true;
        }
        match appended {
            // Once for all of them, however many.
            true => publish::sync_fs(self.maps.dir()).on(self),
            false => Ok(()),
        }
    }

    pub fn sync_file(&self, file: &File) -> Result<()> {
        match self.durable {
            true => publish::sync_file(file).on(self),
            false => Ok(()),
        }
    }

    pub fn sync_data(&self, file: &File) -> Result<()> {
        match self.durable {
            true => data::sync_data(file).on(self),
            false => Ok(()),
        }
    }
}

const CAPABILITY: &str = "security.capability";

/// Returns what copying data into an inode takes away from it.
pub(super) fn keep(upper: &File) -> vellum_sys::Result<KeptAttributes> {
    let stat = vellum_sys::stat::stat_fd(upper)?;
    let capability = xattr::get_fd(upper, OsStr::new(CAPABILITY))?;
    Ok(KeptAttributes {
        mtime: (stat.mtime.sec, stat.mtime.nsec),
        mode: stat.mode as u16,
        capability: capability.unwrap_or_default(),
    })
}

/// Gives an inode back what copying data into it took away.
pub(super) fn give_back(upper: &File, kept: &KeptAttributes) -> vellum_sys::Result<()> {
    let mode = u32::from(kept.mode);
    if vellum_sys::stat::stat_fd(upper)?.mode != mode {
        vellum_sys::rooted::set_mode_fd(upper, mode)?;
    }
    if !kept.capability.is_empty() {
        let name = OsStr::new(CAPABILITY);
        xattr::set_fd(upper, name, &kept.capability, SetMode::Any)?;
    }
    let mtime = vellum_sys::Timespec::new(kept.mtime.0, kept.mtime.1);
    vellum_sys::rooted::set_times_fd(upper, None, Some(mtime))
}

impl BlockState {
    /// The map was just written as a whole.
    fn rewritten(&mut self) {
        let records = self.map.compact().len() as u64 + 3;
        self.map.records = records;
        self.map.pending = false;
        self.map.tail_left_out = false;
        self.compact_from = COMPACT_FROM_RECORDS.max(2 * records);
        self.dirty = false;
    }
}

//! The block maps of one upper layer, as its engine (or settling) writes them: starting a file, its
//! marks, its map's records, and removing the map when the file is plain.
//!
//! The order: the refusal in the work directory before the first map, a map before the marks that
//! name it, data before its records, removing the marks before removing the map. So a crash can
//! leave a map that nothing names (litter, removed by settling), never a file without its map.

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

/// A map with this many records is rewritten in a shorter form.
const COMPACT_FROM_RECORDS: u64 = 4096;

/// The block maps of one upper layer.
#[derive(Debug)]
pub(crate) struct BlockStore {
    maps: Arc<BlockMaps>,
    work: Dir,
    /// For messages: the upper layer's name.
    name: String,
    prefix: Prefix,
    /// Whether to sync.
    durable: bool,
    /// All layers below, from the bottom.
    lowers: Vec<Arc<dyn Layer>>,
    /// Whether the refusal is in the work directory. Locked while maps are created and removed.
    refusing: Mutex<bool>,
    /// Maps that were opened for writing in this epoch.
    prepared: Mutex<HashSet<Box<str>>>,
}

/// The upper layer that the files belong to.
impl Site for BlockStore {
    fn site(&self) -> String {
        self.name.clone()
    }
}

impl BlockStore {
    /// Opens the maps in `work`; removes what a crash left of writing them.
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

    /// Opens the maps of a work directory, creating their directory.
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
        // One insertion or removal at a time: consistent even if another thread panicked.
        sync::lock(&self.prepared)
    }

    /// Makes `upper`, an empty inode or a metacopy, the upper part of a file copied up block by
    /// block. `lower` is the file at `path` in layer `layer`, counted from the bottom. Returns the
    /// name of its map.
    ///
    /// Copies nothing. Afterwards `upper` has the lower file's size (unless it had its own) and the
    /// marks. Durable if the store is, except for a `staged` inode, which is not visible yet: the
    /// caller syncs it.
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
            // A staged inode is synced before it is published.
            match staged {
                true => Ok(()),
                false => self.sync_file(upper),
            }
        })();
        if let Err(error) = made {
            // A map that nothing names is litter; report the first error.
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

    /// Restores on an inode what an unfinished settling recorded, and removes that from the map.
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

    /// Makes sure that records can be appended to a map in this epoch. Pending records must be of
    /// this epoch.
    pub fn prepare(&self, name: &str, state: &mut BlockState, open: &OpenBlocks) -> Result<()> {
        if state.prepared {
            return Ok(());
        }
        if state.map.tail_left_out || !self.prepared().contains(name) {
            // Rewriting the map makes its records durable, so the data must be first.
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

    /// Makes all written data and records durable: the data first, then the map. Leaves a map
    /// without new records as it is.
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

    /// Writes the map of a file that nothing names yet. It has its final name at once: on most file
    /// systems the sync of the file then makes the name durable too, and the sync of the directory
    /// has nothing left to do.
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
            // Litter, if this fails too; report the first error.
            let _ = dir.unlink(&name);
        }
        written
    }

    /// Returns the bytes of a map rewritten in this epoch.
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

    /// Writes a whole map and replaces the one with its name. Its data is durable.
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
            // Swept when next opened; report the first error.
            let _ = dir.unlink(&temp);
            return Err(error);
        }
        match self.durable {
            true => dir.sync().on(self),
            false => Ok(()),
        }
    }

    /// Makes an upper inode that has all its bytes plain, and removes its map.
    pub fn finish(&self, name: &str, state: &mut BlockState, upper: &File) -> Result<()> {
        if state.gone {
            return Ok(());
        }
        if let Some(kept) = state.map.kept.take() {
            give_back(upper, &kept).on(self)?;
        }
        // Before the mark is removed: from then on, the lower file is no longer read.
        self.sync_file(upper)?;
        // It is followed for a metacopy only; if the next step does not happen, the map still says
        // where the data is.
        xattr::remove_fd(upper, self.prefix.xattr(Mark::Redirect)).on(self)?;
        xattr::remove_fd(upper, self.prefix.xattr(Mark::Metacopy)).on(self)?;
        self.sync_file(upper)?;
        state.gone = true;
        xattr::remove_fd(upper, self.prefix.xattr(Mark::Blocks)).on(self)?;
        self.remove_map(name)
    }

    /// Removes a map that nothing names any longer, and with the last one the refusal.
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
        // With other entries in it, it stays; empty, it has no effect.
        let _ = self
            .work
            .open_dir(workdir::STAGING)
            .and_then(|staging| staging.rmdir(incompat::NAME));
        Ok(())
    }

    /// Appends a barrier to every map written to. The caller has synced the file system, and there
    /// are no more writers.
    pub fn close(&self) -> Result<()> {
        let names: Vec<_> = self.prepared().iter().cloned().collect();
        let mut appended = false;
        for name in names {
            let map = match self.maps.read(&name) {
                Ok(map) if map.pending => map,
                Ok(_) => continue,
                // Settled or removed in between, or damaged: the next reader reports that.
                Err(_) => continue,
            };
            let mut state = BlockState::new(map, u64::MAX);
            let barrier = [false, true].map(|second| BlockRecord::Barrier { second });
            self.append(&name, &mut state, &barrier)?;
            appended = true;
        }
        match appended {
            // One sync for all of them.
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

/// Returns the attributes that copying data into an inode changes.
pub(super) fn keep(upper: &File) -> vellum_sys::Result<KeptAttributes> {
    let stat = vellum_sys::stat::stat_fd(upper)?;
    let capability = xattr::get_fd(upper, OsStr::new(CAPABILITY))?;
    Ok(KeptAttributes {
        mtime: (stat.mtime.sec, stat.mtime.nsec),
        mode: stat.mode as u16,
        capability: capability.unwrap_or_default(),
    })
}

/// Restores the attributes that copying data into an inode changed.
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
    /// Notes that the map was just rewritten.
    fn rewritten(&mut self) {
        let records = self.map.compact().len() as u64 + 3;
        self.map.records = records;
        self.map.pending = false;
        self.map.tail_left_out = false;
        self.compact_from = COMPACT_FROM_RECORDS.max(2 * records);
        self.dirty = false;
    }
}

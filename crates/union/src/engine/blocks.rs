//! Files copied up block by block, as an engine reads and writes them.
//!
//! A write copies the parts of its first and last block that it does not cover, writes its own
//! bytes, and then records the blocks in the map. Until then the blocks are read from the lower
//! file, so a crash leaves the old bytes. [`crate::layer::blocks::view::side`] has the rules for
//! each byte; the map's format makes sure that data is durable before its record counts.
//!
//! Truncating a file lowers the map's limit. The new limit is made durable before the file can grow
//! again: otherwise lower bytes would reappear past the cut. (A crash before that leaves a size
//! below the limit, which counts as the limit.)
//!
//! Locks: a file's state, shared while bytes are read or blocks in the upper file are overwritten;
//! exclusive while blocks, the limit or the size change. It comes after the node's state in the
//! engine's order.

mod store;

use std::fs::File;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use vellum_format::block_map::{BlockMap, BlockRecord, RECORD_BYTES};
use vellum_sys::data::{self, AllocateFlags};
use vellum_sys::sync;

use crate::error::On;
use crate::layer::blocks::view::{Piece, Side, View, read_lower, side};
use crate::{Refusal, Result};

pub(crate) use store::BlockStore;

/// How many bytes settling copies between syncs.
const COPY_STEP_BYTES: u64 = 16 << 20;

/// One file copied up block by block.
#[derive(Debug)]
pub(crate) struct BlockFile {
    map: Box<str>,
    /// `None` until the file is first opened.
    state: RwLock<Option<BlockState>>,
}

/// The state of such a file.
#[derive(Debug)]
pub(crate) struct BlockState {
    pub map: BlockMap,
    /// Where records begin in the map.
    header_bytes: u64,
    /// The upper inode's size.
    size_bytes: u64,
    /// Records were appended since the last barrier.
    dirty: bool,
    /// The limit fell, and no durable record says so.
    limit_pending: bool,
    /// Records can be appended.
    prepared: bool,
    /// It no longer has a map: it is plain, or has no name left.
    gone: bool,
    /// The number of records from which on the map is rewritten.
    compact_from: u64,
}

/// Its descriptors.
#[derive(Debug)]
pub(crate) struct OpenBlocks {
    pub upper: File,
    pub lower: File,
}

impl BlockState {
    fn new(map: BlockMap, size_bytes: u64) -> BlockState {
        let header_bytes = map.header.encode().map_or(0, |bytes| bytes.len() as u64);
        let mut state = BlockState {
            header_bytes,
            size_bytes,
            dirty: map.pending,
            limit_pending: false,
            prepared: false,
            gone: false,
            compact_from: 0,
            map,
        };
        state.compact_from = state.map.records.saturating_mul(2).max(4096);
        if size_bytes < state.map.limit_bytes {
            state.map.limit_bytes = size_bytes;
            state.limit_pending = true;
        }
        debug_assert!(header_bytes.is_multiple_of(RECORD_BYTES as u64));
        state
    }

    fn view<'a>(&'a self, open: &'a OpenBlocks) -> View<'a> {
        View {
            map: &self.map,
            upper: &open.upper,
            lower: &open.lower,
            size_bytes: self.size_bytes,
        }
    }

    fn block_bytes(&self) -> u64 {
        self.map.header.block_bytes.into()
    }

    /// Returns the blocks that `start..end` touches and that could be below: the first, and the one
    /// after the last.
    fn blocks_of(&self, start: u64, end: u64) -> (u64, u64) {
        let end = end.min(self.map.limit_bytes);
        match start < end {
            true => (start / self.block_bytes(), end.div_ceil(self.block_bytes())),
            false => (0, 0),
        }
    }

    /// Returns whether `start..end` can be changed without further work.
    fn is_in_upper(&self, start: u64, end: u64) -> bool {
        let (first, behind) = self.blocks_of(start, end);
        self.map.blocks.contains_all(first, behind)
    }
}

impl BlockFile {
    pub fn named(map: Box<str>) -> BlockFile {
        BlockFile {
            map,
            state: RwLock::new(None),
        }
    }

    /// Opens it: `upper` is its inode, open for reading and writing.
    ///
    /// Errors: [`Error::Blocks`](crate::Error::Blocks) if the map or the lower file can't be used.
    pub fn open(&self, store: &BlockStore, upper: File) -> Result<OpenBlocks> {
        let mut state = self.guard_mut();
        match &*state {
            Some(known) => store.reopen(&self.map, &known.map, upper),
            None => {
                let (mut loaded, open) = store.load(&self.map, upper)?;
                // Settling was interrupted: changes from here on count, not the attributes that
                // settling would restore.
                store.forget_kept(&self.map, &mut loaded, &open)?;
                *state = Some(loaded);
                Ok(open)
            }
        }
    }

    /// Opens it as [`BlockFile::open`] does, to continue an interrupted settling.
    pub fn open_to_settle(&self, store: &BlockStore, upper: File) -> Result<OpenBlocks> {
        let (loaded, open) = store.load(&self.map, upper)?;
        *self.guard_mut() = Some(loaded);
        Ok(open)
    }

    /// Returns how many bytes are still below, in whole blocks.
    pub fn bytes_below(&self) -> Result<u64> {
        let guard = self.guard();
        let state = loaded(&guard)?;
        Ok(state.map.blocks_below() * state.block_bytes())
    }

    fn guard(&self) -> RwLockReadGuard<'_, Option<BlockState>> {
        // Memory changes after the disk, one field at a time, and each field is true by itself.
        sync::read(&self.state)
    }

    fn guard_mut(&self) -> RwLockWriteGuard<'_, Option<BlockState>> {
        sync::write(&self.state)
    }

    /// Reads from `offset` on; a short count means the end of the file.
    pub fn read(
        &self,
        store: &BlockStore,
        open: &OpenBlocks,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize> {
        let guard = self.guard();
        let read = loaded(&guard)?.view(open).read_at(buffer, offset);
        read.on(store)
    }

    /// Returns where data, or a hole, begins at or after `offset`.
    pub fn seek(
        &self,
        store: &BlockStore,
        open: &OpenBlocks,
        offset: u64,
        piece: Piece,
    ) -> Result<Option<u64>> {
        let guard = self.guard();
        let found = loaded(&guard)?.view(open).seek(offset, piece);
        found.on(store)
    }

    /// Writes at `offset`; returns how many bytes it wrote: fewer than given only if the file
    /// system is full.
    pub fn write(
        &self,
        store: &BlockStore,
        open: &OpenBlocks,
        bytes: &[u8],
        offset: u64,
    ) -> Result<usize> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(Refusal::Invalid)?;
        {
            let guard = self.guard();
            let state = loaded(&guard)?;
            if end <= state.size_bytes && state.is_in_upper(offset, end) {
                let wrote = data::write_some_at(&open.upper, bytes, offset);
                return wrote.on(store);
            }
        }
        let mut guard = self.guard_mut();
        let state = loaded_mut(&mut guard)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        self.before_growing(store, state, open, end)?;
        let old_size = state.size_bytes;
        let wrote = self.write_blocks(store, state, open, bytes, offset);
        match wrote {
            Ok(count) => {
                state.size_bytes = old_size.max(offset + count as u64);
                Ok(count)
            }
            Err(error) => {
                // Drop what was written past the old end; if this fails too, it is what a short
                // write leaves.
                if end > old_size && !state.gone && data::truncate(&open.upper, old_size).is_err() {
                    state.size_bytes = size_of(&open.upper).unwrap_or(old_size);
                }
                Err(error)
            }
        }
    }

    fn write_blocks(
        &self,
        store: &BlockStore,
        state: &mut BlockState,
        open: &OpenBlocks,
        bytes: &[u8],
        offset: u64,
    ) -> Result<usize> {
        let end = offset + bytes.len() as u64;
        let below = !state.is_in_upper(offset, end);
        if below {
            self.copy_before(store, state, open, offset, end)?;
        }
        let mut count = data::write_some_at(&open.upper, bytes, offset).on(store)?;
        if below && count > 0 {
            let wrote_to = offset + count as u64;
            if let Err(error) = self.copy_behind(store, state, open, offset, wrote_to) {
                // No space for the rest of the last block: act as if its beginning was not written.
                let whole = wrote_to - wrote_to % state.block_bytes();
                if whole <= offset {
                    return Err(error);
                }
                count = (whole - offset) as usize;
            }
            self.record(store, state, open, offset, offset + count as u64)?;
        }
        Ok(count)
    }

    /// Copies what is before `start` in its block, if that block is below and `start..end` does not
    /// cover it.
    fn copy_before(
        &self,
        store: &BlockStore,
        state: &BlockState,
        open: &OpenBlocks,
        start: u64,
        end: u64,
    ) -> Result<()> {
        let (first, behind) = state.blocks_of(start, end);
        match first < behind && !state.map.blocks.contains(first) {
            true => copy_up(store, open, first * state.block_bytes(), start),
            false => Ok(()),
        }
    }

    /// Copies what is after `end` in its block, if that block is below.
    fn copy_behind(
        &self,
        store: &BlockStore,
        state: &BlockState,
        open: &OpenBlocks,
        start: u64,
        end: u64,
    ) -> Result<()> {
        let (first, behind) = state.blocks_of(start, end);
        match first < behind && !state.map.blocks.contains(behind - 1) {
            true => {
                let stop = (behind * state.block_bytes()).min(state.map.limit_bytes);
                copy_up(store, open, end.min(stop), stop)
            }
            false => Ok(()),
        }
    }

    /// Records that the blocks that `start..end` touches are in the upper inode.
    fn record(
        &self,
        store: &BlockStore,
        state: &mut BlockState,
        open: &OpenBlocks,
        start: u64,
        end: u64,
    ) -> Result<()> {
        let (first, behind) = state.blocks_of(start, end);
        if state.map.blocks.contains_all(first, behind) {
            return Ok(());
        }
        let written = BlockRecord::Written {
            first,
            count: behind - first,
        };
        if state.gone {
            return state.map.apply(&written).map_err(|_| Refusal::Stale.into());
        }
        store.prepare(&self.map, state, open)?;
        store.append(&self.map, state, &[written])
    }

    /// Prepares the file for growing to `end` bytes.
    fn before_growing(
        &self,
        store: &BlockStore,
        state: &mut BlockState,
        open: &OpenBlocks,
        end: u64,
    ) -> Result<()> {
        match end > state.size_bytes && state.limit_pending {
            true => store.barrier(&self.map, state, open),
            false => Ok(()),
        }
    }

    /// Sets the size.
    pub fn truncate(&self, store: &BlockStore, open: &OpenBlocks, size_bytes: u64) -> Result<()> {
        let mut guard = self.guard_mut();
        let state = loaded_mut(&mut guard)?;
        self.before_growing(store, state, open, size_bytes)?;
        data::truncate(&open.upper, size_bytes).on(store)?;
        state.size_bytes = size_bytes;
        if size_bytes < state.map.limit_bytes {
            state.map.limit_bytes = size_bytes;
            state.limit_pending = true;
        }
        Ok(())
    }

    /// Allocates space, punches a hole or writes zeros, as fallocate(2) does with these flags.
    ///
    /// Errors: [`Refusal::Unsupported`] for flags that move bytes: those need the whole file in the
    /// upper layer first.
    pub fn allocate(
        &self,
        store: &BlockStore,
        open: &OpenBlocks,
        flags: AllocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let end = offset.checked_add(length).ok_or(Refusal::Invalid)?;
        let keep = AllocateFlags::KEEP_SIZE;
        let clears = flags.intersects(AllocateFlags::PUNCH_HOLE | AllocateFlags::ZERO_RANGE);
        let known = keep | AllocateFlags::PUNCH_HOLE | AllocateFlags::ZERO_RANGE;
        if !known.contains(flags) {
            return Err(Refusal::Unsupported.into());
        }
        let mut guard = self.guard_mut();
        let state = loaded_mut(&mut guard)?;
        let grows = !flags.contains(keep) && end > state.size_bytes;
        if grows {
            self.before_growing(store, state, open, end)?;
        }
        let below = clears && !state.is_in_upper(offset, end);
        if below {
            self.copy_before(store, state, open, offset, end)?;
            self.copy_behind(store, state, open, offset, end)?;
        }
        data::allocate(&open.upper, flags, offset, length).on(store)?;
        if grows {
            state.size_bytes = end;
        }
        match below {
            true => self.record(store, state, open, offset, end),
            false => Ok(()),
        }
    }

    /// Makes written bytes durable; also attributes, unless `data_only`.
    pub fn sync(&self, store: &BlockStore, open: &OpenBlocks, data_only: bool) -> Result<()> {
        let pending = loaded(&self.guard()).is_ok_and(|state| state.dirty || state.limit_pending);
        if pending {
            let mut guard = self.guard_mut();
            store.barrier(&self.map, loaded_mut(&mut guard)?, open)?;
        }
        match (pending, data_only) {
            (true, true) => Ok(()),
            (false, true) => store.sync_data(&open.upper),
            (_, false) => store.sync_file(&open.upper),
        }
    }

    /// Returns whether nothing of the lower file shows any longer.
    pub fn is_complete(&self) -> bool {
        loaded(&self.guard()).is_ok_and(|state| state.map.blocks_below() == 0)
    }

    /// Makes the file plain if nothing of the lower file shows any longer; returns whether it is.
    pub fn finish(&self, store: &BlockStore, open: &OpenBlocks) -> Result<bool> {
        let mut guard = self.guard_mut();
        let state = loaded_mut(&mut guard)?;
        if state.map.blocks_below() > 0 {
            return Ok(false);
        }
        store.finish(&self.map, state, &open.upper)?;
        Ok(true)
    }

    /// Copies the next part that is still below, at most about `COPY_STEP_BYTES`, durably. Returns
    /// how many bytes it has yet to check.
    pub fn settle_step(&self, store: &BlockStore, open: &OpenBlocks) -> Result<u64> {
        let mut guard = self.guard_mut();
        let state = loaded_mut(&mut guard)?;
        let limit = state.map.limit_bytes;
        let mut at = 0;
        while at < limit {
            let (which, end) = side(&state.map, at, limit);
            if which == Side::Upper {
                at = end;
                continue;
            }
            let stop = end.min(at + COPY_STEP_BYTES);
            copy_all(store, open, at, stop)?;
            self.record(store, state, open, at, stop)?;
            store.barrier(&self.map, state, open)?;
            break;
        }
        Ok(state.map.blocks_below() * state.block_bytes())
    }

    /// Records, before anything is copied, the attributes that settling must restore.
    pub fn begin_settling(&self, store: &BlockStore, open: &OpenBlocks) -> Result<()> {
        let mut guard = self.guard_mut();
        let state = loaded_mut(&mut guard)?;
        if state.map.kept.is_some() {
            return Ok(());
        }
        let kept = store::keep(&open.upper).on(store)?;
        store.prepare(&self.map, state, open)?;
        store.append(&self.map, state, &[BlockRecord::Kept(kept)])?;
        store.barrier(&self.map, state, open)
    }

    /// Restores now what settling changed on the upper inode; a later settling can still continue.
    pub fn pause_settling(&self, store: &BlockStore, open: &OpenBlocks) -> Result<()> {
        let guard = self.guard();
        match &loaded(&guard)?.map.kept {
            Some(kept) => store::give_back(&open.upper, kept).on(store),
            None => Ok(()),
        }
    }

    /// Copies everything that is still below while the file is in use, and restores what copying
    /// changes on the inode.
    pub fn copy_all_up(&self, store: &BlockStore, open: &OpenBlocks) -> Result<()> {
        let kept = store::keep(&open.upper).on(store)?;
        let copied = loop {
            match self.settle_step(store, open) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        let given_back = store::give_back(&open.upper, &kept).on(store);
        copied.and(given_back)
    }

    /// Handles the loss of the file's last name: removes its map; later writes are not recorded.
    pub fn orphan(&self, store: &BlockStore) -> Result<()> {
        let mut guard = self.guard_mut();
        if let Some(state) = &mut *guard {
            state.gone = true;
        }
        store.remove_map(&self.map)
    }
}

fn loaded(state: &Option<BlockState>) -> Result<&BlockState> {
    // Descriptors of it exist only after it was opened.
    state.as_ref().ok_or_else(|| Refusal::Stale.into())
}

fn loaded_mut(state: &mut Option<BlockState>) -> Result<&mut BlockState> {
    state.as_mut().ok_or_else(|| Refusal::Stale.into())
}

fn size_of(file: &File) -> vellum_sys::Result<u64> {
    Ok(vellum_sys::stat::stat_fd(file)?.size_bytes)
}

/// Copies `start..end` of the lower file: part of a block.
fn copy_up(store: &BlockStore, open: &OpenBlocks, start: u64, end: u64) -> Result<()> {
    if start >= end {
        return Ok(());
    }
    let mut buffer = vec![0; (end - start) as usize];
    read_lower(&open.lower, &mut buffer, start)
        .and_then(|()| data::write_at(&open.upper, &buffer, start))
        .on(store)
}

/// Copies `start..end` of the lower file, holes as holes, whatever the upper inode has there.
fn copy_all(store: &BlockStore, open: &OpenBlocks, start: u64, end: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let begin = data::seek_data(&open.lower, at).on(store)?;
        let begin = begin.unwrap_or(end).min(end);
        if at < begin {
            clear(open, at, begin).on(store)?;
            at = begin;
            continue;
        }
        let stop = data::seek_hole(&open.lower, at).on(store)?;
        // Some file systems report a hole where they have just reported data.
        let stop = stop.unwrap_or(end).max(at + 1).min(end);
        let stop = stop.min(at + buffer.len() as u64);
        let part = &mut buffer[..(stop - at) as usize];
        read_lower(&open.lower, part, at)
            .and_then(|()| data::write_at(&open.upper, part, at))
            .on(store)?;
        at = stop;
    }
    Ok(())
}

/// Makes `start..end` of the upper inode a hole, or zeros where holes can't be made. It already
/// is a hole unless a crash left data without a record.
fn clear(open: &OpenBlocks, start: u64, end: u64) -> vellum_sys::Result<()> {
    let mut at = start;
    while let Some(begin) = data::seek_data(&open.upper, at)?.filter(|&begin| begin < end) {
        let stop = data::seek_hole(&open.upper, begin)?;
        let stop = stop.unwrap_or(end).min(end).max(begin + 1);
        match data::punch_hole(&open.upper, begin, stop - begin) {
            Err(error) if error.is_unsupported() => {
                let stop = stop.min(begin + (1 << 20));
                data::write_at(&open.upper, &vec![0; (stop - begin) as usize], begin)?;
                at = stop;
            }
            other => {
                other?;
                at = stop;
            }
        }
    }
    Ok(())
}

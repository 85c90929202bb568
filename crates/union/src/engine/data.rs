//! The bytes of regular files: reading, writing, sizes, holes, allocation, and making them durable.
//!
//! Opening copies nothing, so there is no open call: the first call that changes a file's bytes
//! copies it up. Truncating to 0 copies none. A node's state says where its bytes are. Each call
//! reads that at its start and does not hold the state while bytes move, which may take long: bytes
//! only ever move up, and an inode in the upper layer belongs to its file permanently. So a change
//! never goes to a lower file, and a read that began before a copy-up reads the old bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;

use rustix::io::Errno;
use vellum_format::{OverrideStat, record};
use vellum_sys::data::{self, AllocateFlags};
use vellum_sys::rooted::Access;
use vellum_sys::{FileKind, publish};

use crate::engine::action::{Action, Attrs};
use crate::engine::blocks::{BlockFile, OpenBlocks};
use crate::engine::depth::Depth;
use crate::engine::limit::{Change, Charge};
use crate::engine::nodes::{Body, DataAt, FileBody, LiveNode};
use crate::engine::options::Durability;
use crate::engine::owners::CAPABILITY;
use crate::engine::place::{Bytes, open_upper};
use crate::engine::records;
use crate::engine::request::{Backing, NodeId, Whence};
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::layer::Records;
use crate::layer::blocks::view::Piece;
use crate::{Error, Refusal, Result};

/// The most that one call of `Action::copy_range` moves through memory; the caller calls again for
/// the rest.
const COPY_STEP_BYTES: usize = 4 << 20;
const SETUID_SETGID: u32 = 0o6000;

impl Engine {
    /// Reads from `offset` on; fewer bytes than `buffer` holds mean the end of the file.
    ///
    /// Errors: [`Refusal::IsADirectory`], [`Refusal::Invalid`] for other types without bytes,
    /// [`Error::Blocks`], `Io`.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.file_node(id)?;
        match self.place(&node, false)? {
            Bytes::Lower(file, layer) => {
                data::read_at(&*file, buffer, offset).on(self.layer(layer))
            }
            Bytes::Upper(file) | Bytes::AppendOnly(file) => {
                data::read_at(&*file, buffer, offset).on(self.layer(0))
            }
            Bytes::Blocks(blocks, open) => {
                blocks.read(&self.upper()?.blocks, &open, buffer, offset)
            }
        }
    }
}

impl Action<'_> {
    /// Writes at `offset`; returns how many bytes it wrote: fewer than given only if there is no
    /// space for more.
    ///
    /// `clear_privileges` says that the writer may not keep setuid, setgid and capabilities.
    /// Errors: as [`Engine::read`], [`Refusal::ReadOnly`], [`Refusal::LimitReached`]; and those of
    /// copying up.
    pub fn write(
        &self,
        id: NodeId,
        offset: u64,
        bytes: &[u8],
        clear_privileges: bool,
    ) -> Result<usize> {
        self.write_by(id, offset, bytes, Keeps::Known(!clear_privileges))
    }

    fn write_by(&self, id: NodeId, offset: u64, bytes: &[u8], keeps: Keeps) -> Result<usize> {
        let node = self.file_node(id)?;
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(Refusal::Invalid)?;
        self.change(&node, Depth::Data, |upper, place| {
            self.before_bytes(upper, &node, place, keeps)?;
            let charge = self.charge(upper, place, offset, end)?;
            let wrote = match place {
                Bytes::AppendOnly(file) if !is_end(upper, file, offset)? => {
                    Err(Refusal::NotPermitted.into())
                }
                Bytes::Upper(file) | Bytes::AppendOnly(file) => {
                    data::write_some_at(&**file, bytes, offset).on(upper)
                }
                Bytes::Blocks(blocks, open) => blocks.write(&upper.blocks, open, bytes, offset),
                Bytes::Lower(..) => Err(Refusal::Stale.into()),
            };
            charge.settle(Change::Grows);
            wrote
        })
    }

    /// Changes a file's size. A size of 0 copies nothing of a lower file.
    pub(crate) fn resize(
        &self,
        node: &Arc<LiveNode>,
        size_bytes: u64,
        clear_privileges: bool,
    ) -> Result<()> {
        let depth = match size_bytes {
            0 => Depth::Truncated,
            _ => Depth::Data,
        };
        self.change(node, depth, |upper, place| {
            self.before_bytes(upper, node, place, Keeps::Known(!clear_privileges))?;
            let charge = self.charge(upper, place, size_bytes, size_bytes)?;
            let set = match place {
                Bytes::Upper(file) => data::truncate(&**file, size_bytes).on(upper),
                Bytes::Blocks(blocks, open) => blocks.truncate(&upper.blocks, open, size_bytes),
                Bytes::AppendOnly(_) => Err(Refusal::NotPermitted.into()),
                Bytes::Lower(..) => Err(Refusal::Stale.into()),
            };
            charge.settle(Change::MayFree);
            set
        })
    }

    /// Allocates space, punches holes, writes zeros, and collapses or inserts ranges, as
    /// fallocate(2) with these mode bits.
    ///
    /// Errors: [`Refusal::Unsupported`] for unsupported bits, or a file for which it can't be done;
    /// [`Refusal::LimitReached`].
    pub fn fallocate(&self, id: NodeId, mode: u32, offset: u64, length: u64) -> Result<()> {
        let node = self.file_node(id)?;
        let flags = AllocateFlags::from_bits(mode).ok_or(Refusal::Unsupported)?;
        let end = offset.checked_add(length).ok_or(Refusal::Invalid)?;
        if length == 0 {
            return Err(Refusal::Invalid.into());
        }
        let frees = flags.intersects(
            AllocateFlags::PUNCH_HOLE | AllocateFlags::COLLAPSE_RANGE | AllocateFlags::INSERT_RANGE,
        );
        let moves = AllocateFlags::COLLAPSE_RANGE | AllocateFlags::INSERT_RANGE;
        if flags.intersects(moves) {
            // Bytes move, so a block map would be wrong: the file must be plain.
            self.change(&node, Depth::Data, |_, _| Ok(()))?;
            self.make_whole(&node)?;
        }
        self.change(&node, Depth::Data, |upper, place| {
            self.before_bytes(upper, &node, place, Keeps::Ask)?;
            // A call that only frees space may still have to copy two blocks.
            let charged = if frees { offset } else { end };
            let charge = self.charge(upper, place, offset, charged)?;
            let done = match place {
                Bytes::Upper(file) => data::allocate(&**file, flags, offset, length)
                    .map_err(|e| unsupported_or(e, |e| upper.io(e))),
                Bytes::Blocks(blocks, open) => blocks
                    .allocate(&upper.blocks, open, flags, offset, length)
                    .map_err(|error| match error {
                        Error::Io { source, layer } => {
                            unsupported_or(source, |source| Error::Io { source, layer })
                        }
                        other => other,
                    }),
                Bytes::AppendOnly(_) => Err(Refusal::NotPermitted.into()),
                Bytes::Lower(..) => Err(Refusal::Stale.into()),
            };
            charge.settle(match frees {
                true => Change::MayFree,
                false => Change::Grows,
            });
            done
        })
    }
}

impl Engine {
    /// Returns where data, or a hole, begins at or after `offset`; the end of the file is a hole.
    ///
    /// Errors: [`Refusal::NoData`] if `offset` is not before the end, or there is no data after it.
    pub fn seek(&self, id: NodeId, whence: Whence, offset: u64) -> Result<u64> {
        let node = self.file_node(id)?;
        let in_file = |file: &File| match whence {
            Whence::Data => data::seek_data(file, offset),
            Whence::Hole => data::seek_hole(file, offset),
        };
        let found = match self.place(&node, false)? {
            Bytes::Lower(file, layer) => in_file(&file).on(self.layer(layer))?,
            Bytes::Upper(file) | Bytes::AppendOnly(file) => in_file(&file).on(self.layer(0))?,
            Bytes::Blocks(blocks, open) => {
                let piece = match whence {
                    Whence::Data => Piece::Data,
                    Whence::Hole => Piece::Hole,
                };
                blocks.seek(&self.upper()?.blocks, &open, offset, piece)?
            }
        };
        found.ok_or_else(|| Refusal::NoData.into())
    }
}

impl Action<'_> {
    /// Copies up to `length` bytes from one file into another (or another part of the same);
    /// returns how many.
    ///
    /// Fewer bytes than asked for mean the end of the source, or the most that one call copies; 0
    /// means the end. Errors: [`Refusal::Invalid`] if source and target are one file and the ranges
    /// overlap.
    pub fn copy_range(
        &self,
        from: NodeId,
        from_offset: u64,
        to: NodeId,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let overlaps = from_offset < to_offset.saturating_add(length)
            && to_offset < from_offset.saturating_add(length);
        if from == to && overlaps {
            return Err(Refusal::Invalid.into());
        }
        self.read_by(from, || {
            self.copy_step((from, from_offset), (to, to_offset), length)
        })
    }

    fn copy_step(
        &self,
        (from, from_offset): (NodeId, u64),
        (to, to_offset): (NodeId, u64),
        length: u64,
    ) -> Result<u64> {
        let step = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(COPY_STEP_BYTES);
        if let Some(count) = self.copy_in_kernel((from, from_offset), (to, to_offset), step)? {
            return Ok(count as u64);
        }
        let mut buffer = vec![0; step.min(1 << 20)];
        let mut done = 0;
        while done < step {
            let part = buffer.len().min(step - done);
            let count = self.read(from, from_offset + done as u64, &mut buffer[..part])?;
            if count == 0 {
                break;
            }
            let at = to_offset + done as u64;
            let wrote = match self.write_by(to, at, &buffer[..count], Keeps::Ask) {
                Err(_) if done > 0 => break,
                other => other?,
            };
            done += wrote;
            // A short read was the end, even if the write has moved the end since.
            if wrote < count || count < part {
                break;
            }
        }
        Ok(done as u64)
    }

    /// Calls `read`, which reads bytes of a file for a program that did not make a read request,
    /// and notes whether the access time changed.
    fn read_by<T>(&self, id: NodeId, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.attr(id)?.atime;
        let done = read();
        if self.attr(id)?.atime != before {
            self.touch(id, Attrs::ATIME);
        }
        done
    }

    /// Copies between two whole files in the kernel; `None` if their file systems can't.
    fn copy_in_kernel(
        &self,
        (from, from_offset): (NodeId, u64),
        (to, to_offset): (NodeId, u64),
        length: usize,
    ) -> Result<Option<usize>> {
        let source = self.file_node(from)?;
        let source = match self.place(&source, false)? {
            Bytes::Lower(file, _) | Bytes::Upper(file) | Bytes::AppendOnly(file) => file,
            Bytes::Blocks(..) => return Ok(None),
        };
        let target = self.file_node(to)?;
        let size_bytes = vellum_sys::stat::stat_fd(&*source)
            .on(self.layer(0))?
            .size_bytes;
        let length = length.min(size_bytes.saturating_sub(from_offset) as usize);
        if length == 0 {
            return Ok(Some(0));
        }
        self.change(&target, Depth::Data, |upper, place| {
            let Bytes::Upper(file) = place else {
                return Ok(None);
            };
            self.before_bytes(upper, &target, place, Keeps::Ask)?;
            let charge = self.charge(upper, place, to_offset, to_offset + length as u64)?;
            let copied = data::copy_range(&*source, from_offset, &**file, to_offset, length);
            charge.settle(Change::Grows);
            match copied {
                Ok(count) => Ok(Some(count)),
                Err(error)
                    if error.is_cross_device()
                        || error.is_unsupported()
                        || error.is(Errno::INVAL)
                        || error.is(Errno::PERM) =>
                {
                    Ok(None)
                }
                Err(error) => Err(upper.io(error)),
            }
        })
    }
}

impl Engine {
    /// Makes a file's written bytes durable, and its attributes unless `data_only`. For a
    /// directory, its names.
    ///
    /// Syncs nothing if the union is volatile or the file is in a lower layer.
    pub fn sync(&self, id: NodeId, data_only: bool) -> Result<()> {
        let node = self.node(id)?;
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        if upper.options.durability == Durability::Volatile || !node.in_upper() {
            return Ok(());
        }
        if node.is_dir() {
            let _shared = self.shared();
            let dir = node.upper_dir().map(|handle| handle.dir()).transpose();
            return match dir.on(upper)? {
                Some(dir) => dir.sync().on(upper),
                None => Ok(()),
            };
        }
        if node.kind != FileKind::File {
            return Ok(());
        }
        match self.place(&node, false)? {
            Bytes::Upper(file) | Bytes::AppendOnly(file) if data_only => {
                data::sync_data(&*file).on(upper)
            }
            Bytes::Upper(file) | Bytes::AppendOnly(file) => publish::sync_file(&*file).on(upper),
            Bytes::Blocks(blocks, open) => blocks.sync(&upper.blocks, &open, data_only),
            // Only attributes were copied up.
            Bytes::Lower(..) => self.sync_inode(upper, &node),
        }
    }

    fn sync_inode(&self, upper: &Upper, node: &LiveNode) -> Result<()> {
        let _shared = self.shared();
        let state = node.state();
        match &state.body {
            Body::File(FileBody {
                upper: Some(place), ..
            }) => {
                let file = open_upper(place, Access::Read).on(upper)?;
                publish::sync_file(&file).on(upper)
            }
            _ => Ok(()),
        }
    }

    /// Closes every file that is kept open for writing, and returns whether there was one: a call
    /// that found no space may then succeed.
    ///
    /// XFS preallocates past the end of a growing file and frees that when a writer closes it.
    /// Programs close files, but the engine keeps them open. Until then the preallocation counts
    /// against the disk and against a quota: next to a file of half the quota's size, no other file
    /// could be created.
    pub fn give_room_back(&self) -> bool {
        self.files.forget_written()
    }

    /// Returns the single file that has the bytes of this file now, to hand to the kernel. Copies
    /// nothing.
    ///
    /// `write` says that the kernel may change its bytes without a request that the engine could
    /// refuse or count.
    pub fn backing(&self, id: NodeId, write: bool) -> Result<Backing> {
        let node = self.file_node(id)?;
        Ok(match self.place(&node, write)? {
            Bytes::Lower(file, _) => Backing::Lower(file),
            // A mapping or a write by the kernel would not be counted.
            Bytes::Upper(_) if self.is_limited() => Backing::None,
            Bytes::Upper(file) => Backing::Upper(file),
            Bytes::AppendOnly(_) | Bytes::Blocks(..) => Backing::None,
        })
    }

    /// Returns the error with which its own file system would refuse to open this file for reading
    /// or writing: it is immutable or append-only, or can't be opened. Copies nothing.
    pub fn open_check(&self, id: NodeId, write: bool) -> Result<()> {
        let node = self.node(id)?;
        if write {
            self.upper()?;
            if node.is_dir() {
                return Err(Refusal::IsADirectory.into());
            }
            if self.is_immutable(&node)? {
                return Err(Refusal::NotPermitted.into());
            }
        }
        match node.kind {
            FileKind::File => self.place(&node, false).map(drop),
            _ => Ok(()),
        }
    }

    pub(crate) fn file_node(&self, id: NodeId) -> Result<Arc<LiveNode>> {
        let node = self.node(id)?;
        match node.kind {
            FileKind::File => Ok(node),
            FileKind::Dir => Err(Refusal::IsADirectory.into()),
            _ => Err(Refusal::Invalid.into()),
        }
    }
}

impl Action<'_> {
    /// Copies the bytes of a file up, as a first write would. Does nothing if they are in the upper
    /// layer.
    pub fn copy_data_up(&self, id: NodeId) -> Result<()> {
        let node = self.file_node(id)?;
        self.change(&node, Depth::Data, |_, _| Ok(()))
    }

    /// Copies the file up as far as `depth` needs, and calls a function on its bytes in the upper
    /// layer. A file that is whole afterwards becomes plain.
    fn change<T>(
        &self,
        node: &Arc<LiveNode>,
        depth: Depth,
        mut act: impl FnMut(&Upper, &Bytes) -> Result<T>,
    ) -> Result<T> {
        let upper = self.upper()?;
        if !node.in_upper() && self.is_protected_below(node)? {
            return Err(Refusal::NotPermitted.into());
        }
        loop {
            self.to_upper(node, depth)?;
            self.touch(node.id, Attrs::CONTENT);
            let place = self.place(node, true)?;
            if let Bytes::Lower(..) = place {
                continue;
            }
            let done = act(upper, &place);
            let complete = match place {
                Bytes::Blocks(blocks, open) if blocks.is_complete() => Some((blocks, open)),
                _ => None,
            };
            if let Some((blocks, open)) = complete {
                self.settled(upper, node, &blocks, &open)?;
            }
            return done;
        }
    }

    /// Clears privileges, if there are any, before bytes of a file change.
    fn before_bytes(
        &self,
        upper: &Upper,
        node: &LiveNode,
        place: &Bytes,
        keeps: Keeps,
    ) -> Result<()> {
        let records = upper.options.records == Records::Read;
        let kept = keeps == Keeps::Known(true) && !records && !upper.strips;
        if kept || !has_privileges(upper, place)? {
            return Ok(());
        }
        self.take_privileges(upper, node, || match keeps {
            _ if upper.strips && !records => false,
            Keeps::Known(keeps) => keeps,
            Keeps::Ask => self.asker.keeps_privileges(),
        })
    }
}

impl Engine {
    /// Copies all remaining blocks of a file that is copied up block by block, while it is in use.
    /// Nothing visible changes.
    ///
    /// Call it with no lock held. Errors: `Io`, also if there is no space;
    /// [`Refusal::LimitReached`]; the file is then unchanged.
    pub(crate) fn make_whole(&self, node: &Arc<LiveNode>) -> Result<()> {
        let is_blocks = |node: &LiveNode| matches!(&node.state().body, Body::File(file) if matches!(file.data, DataAt::Blocks(_)));
        if !is_blocks(node) {
            return Ok(());
        }
        let upper = self.upper()?;
        let Bytes::Blocks(blocks, open) = self.place(node, false)? else {
            return Ok(());
        };
        let size_bytes = vellum_sys::stat::stat_fd(&open.upper).on(upper)?.size_bytes;
        let charge = upper.usage.charge(&open.upper, 0, size_bytes, 0)?;
        let copied = blocks.copy_all_up(&upper.blocks, &open);
        charge.settle(Change::Grows);
        copied?;
        self.settled(upper, node, &blocks, &open)
    }

    /// Makes a file plain if all its bytes are in the upper layer.
    fn settled(
        &self,
        upper: &Upper,
        node: &LiveNode,
        blocks: &Arc<BlockFile>,
        open: &OpenBlocks,
    ) -> Result<()> {
        let _gate = node.gate();
        if !blocks.finish(&upper.blocks, open)? {
            return Ok(());
        }
        let mut state = node.state_mut();
        if let Body::File(file) = &mut state.body
            && matches!(&file.data, DataAt::Blocks(at) if Arc::ptr_eq(at, blocks))
        {
            file.data = DataAt::Upper;
            self.copied();
            self.files.forget(node.id);
        }
        Ok(())
    }

    /// Reserves the space that changing `start..end` of a file can allocate.
    fn charge<'a>(
        &'a self,
        upper: &'a Upper,
        place: &Bytes,
        start: u64,
        end: u64,
    ) -> Result<Charge<'a>> {
        match place {
            Bytes::Upper(file) | Bytes::AppendOnly(file) => upper.usage.charge(file, start, end, 0),
            // The rest of the first and of the last block is copied.
            Bytes::Blocks(_, open) => {
                let unit = u64::from(vellum_format::block_map::BLOCK_MAX_BYTES);
                upper.usage.charge(&open.upper, start, end, unit)
            }
            Bytes::Lower(..) => Err(Refusal::Stale.into()),
        }
    }
}

/// Whether the file keeps its privileges when the caller changes its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// This is known.
    Known(bool),
    /// Not known yet: ask about the caller.
    Ask,
}

/// Returns whether the file has privileges that a change of its bytes may clear, except for a
/// capability that the file system keeps.
fn has_privileges(upper: &Upper, place: &Bytes) -> Result<bool> {
    let file = match place {
        Bytes::Upper(file) | Bytes::AppendOnly(file) | Bytes::Lower(file, _) => file,
        Bytes::Blocks(_, open) => &open.upper,
    };
    let has = |name: &OsStr| vellum_sys::xattr::get_fd(file, name).on(upper);
    if upper.options.records == Records::Read {
        if let Some(capability) = record::recorded(OsStr::new(CAPABILITY))
            && has(&capability)?.is_some()
        {
            return Ok(true);
        }
        if let Some(value) = has(records::stat_name())? {
            // If it can't be read, the code that clears it reports the error.
            return Ok(
                OverrideStat::parse(&value).map_or(true, |record| record.mode & SETUID_SETGID != 0)
            );
        }
    }
    let stat = vellum_sys::stat::stat_fd(file).on(upper)?;
    Ok(stat.mode & SETUID_SETGID != 0)
}

fn is_end(upper: &Upper, file: &File, offset: u64) -> Result<bool> {
    let stat = vellum_sys::stat::stat_fd(file).on(upper)?;
    Ok(offset == stat.size_bytes)
}

fn unsupported_or(
    error: vellum_sys::Error,
    other: impl FnOnce(vellum_sys::Error) -> Error,
) -> Error {
    match error.is_unsupported() {
        true => Refusal::Unsupported.into(),
        false => other(error),
    }
}

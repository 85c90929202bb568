//! How much an upper layer holds, and the most it may hold, on any file system.
//!
//! Space is reserved before it is allocated: a call that would exceed the limit is refused
//! ([`Refusal::LimitReached`]) before anything is written. Afterwards the file system is asked how
//! much was really allocated. Its answer is not always right at that moment, so the amount counted
//! for a file is remembered and corrected by the next answer. Between mounts the figures are in
//! `vellum/usage` of the work directory. While a union is open that file says so; an opening that
//! finds it like that counts again. Without a limit nothing is counted, at no cost.
//!
//! The inodes of the upper layer are counted, each once, with their blocks; the work directory is
//! not. A file without a name counts until it is no longer in use. The kernel reports that a moment
//! after the name is gone, so a call that finds no space just then waits that moment, and holds no
//! lock of this account while it waits.
//!
//! Locks: one of a few, chosen by inode, while a file's blocks change, so that each block is
//! counted once; inside it the counted bytes, then the figures, each for a few instructions and
//! inside any other lock of the engine.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vellum_format::workdir;
use vellum_sys::rooted::Access;
use vellum_sys::{Dir, FileKind, Stat, publish, sync};

use crate::dir_layer::{DirHandle, DirLayer};
use crate::engine::depth::Depth;
use crate::engine::nodes::{Body, DataAt, LiveNode, LowerFile, UpperFile};
use crate::engine::options::Limit;
use crate::engine::request::Room;
use crate::engine::{Engine, Upper};
use crate::error::On;
use crate::layer::{Dialect, LayerDir};
use crate::{Refusal, Result};

/// The file's content while a union is open.
const OPEN: &[u8] = b"open\n";
/// The usual allocation unit of file systems.
const BLOCK_BYTES: u64 = 4096;
const STRIPES: usize = 32;
/// How many files are remembered: a few hundred kilobytes. For a forgotten file the file system's
/// answer counts again.
const REMEMBERED: usize = 8192;
/// How long to wait for the space of a file that lost its name, and how often to check.
const PATIENCE: Duration = Duration::from_millis(20);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// The space in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Used {
    pub bytes: u64,
    pub inodes: u64,
}

/// The account of an upper layer.
#[derive(Debug)]
pub(crate) struct Usage {
    limit: Limit,
    used: Mutex<Used>,
    stripes: [Mutex<()>; STRIPES],
    counted: Mutex<Counted>,
    /// Where the figures are kept.
    work: Option<Dir>,
    /// The figures are no longer right, and not worth keeping.
    stale: AtomicBool,
    /// When a file lost its last name most recently.
    unnamed: Mutex<Option<Instant>>,
}

/// Space reserved for one change of one file's blocks. Settled when the change is done.
#[must_use]
pub(crate) struct Charge<'a>(Option<Charged<'a>>);

struct Charged<'a> {
    usage: &'a Usage,
    file: Arc<File>,
    ino: u64,
    before: u64,
    reserved: u64,
    _stripe: MutexGuard<'a, ()>,
}

/// How a change can affect the blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It frees none, whatever the file system reports just now.
    Grows,
    /// It may free some: a truncation, or a hole.
    MayFree,
}

/// The bytes that were counted for files, by inode number.
///
/// For an instant a file system may report fewer blocks than a file has: ext4 subtracts blocks
/// reserved for delayed allocation from one figure before it adds them to the other. If only
/// differences were counted, they would be lost permanently.
#[derive(Debug, Default)]
struct Counted(HashMap<u64, u64>);

impl Counted {
    /// Returns the bytes counted for a file; `shown` if none are remembered.
    fn before(&self, ino: u64, shown: u64) -> u64 {
        self.0.get(&ino).copied().unwrap_or(shown)
    }

    /// Returns the bytes to count for a file that has changed and now shows `shown`.
    fn after(&mut self, ino: u64, before: u64, shown: u64, change: Change) -> u64 {
        let after = match change {
            Change::Grows => shown.max(before),
            Change::MayFree => shown,
        };
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(ino, after);
        after
    }
}

impl Usage {
    /// Opens the account: reads the saved figures, or counts the upper layer if there are none or a
    /// crash left the account open.
    pub fn open(limit: Limit, upper: &Dir, work: &Dir) -> vellum_sys::Result<Usage> {
        let used = match limit {
            Limit {
                size_bytes: None,
                inodes: None,
            } => {
                // It is not kept up to date from here on.
                forget(work)?;
                return Ok(Usage {
                    limit,
                    used: Mutex::default(),
                    stripes: Default::default(),
                    counted: Mutex::default(),
                    work: None,
                    stale: AtomicBool::new(false),
                    unnamed: Mutex::default(),
                });
            }
            _ => match kept(work)? {
                Some(used) => used,
                None => count(upper)?,
            },
        };
        let dir = work.create_dir_all(workdir::OWN, 0o700)?;
        publish::write_file_atomic(&dir, workdir::OWN_USAGE.as_ref(), OPEN, 0o600)?;
        Ok(Usage {
            limit,
            used: Mutex::new(used),
            stripes: Default::default(),
            counted: Mutex::default(),
            work: Some(dir),
            stale: AtomicBool::new(false),
            unnamed: Mutex::default(),
        })
    }

    /// Saves the figures. The caller has synced the upper layer.
    pub fn close(&self) -> vellum_sys::Result<()> {
        let Some(dir) = self
            .work
            .as_ref()
            .filter(|_| !self.stale.load(Ordering::Relaxed))
        else {
            return Ok(());
        };
        let Used { bytes, inodes } = *self.used();
        let text = format!("{bytes} {inodes}\n");
        publish::write_file_atomic(dir, workdir::OWN_USAGE.as_ref(), text.as_bytes(), 0o600)
    }

    /// Notes that something was copied without being counted: the next opening counts again.
    pub fn miscounts(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }

    /// Returns whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.work.is_some()
    }

    pub fn used(&self) -> MutexGuard<'_, Used> {
        sync::lock(&self.used)
    }

    /// Takes space for something new. Errors: [`Refusal::LimitReached`]; then nothing was taken.
    pub fn take(&self, bytes: u64, inodes: u64) -> Result<()> {
        self.patiently(|| self.take_now(bytes, inodes))
    }

    /// Repeats `take` as long as there may be space in a moment.
    fn patiently<T>(&self, take: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            // Before the attempt: space freed afterwards is for the next one.
            let lost = *sync::lock(&self.unnamed);
            let taken = take();
            if taken.is_ok() || lost.is_none_or(|lost| lost.elapsed() > PATIENCE) {
                return taken;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    fn take_now(&self, bytes: u64, inodes: u64) -> Result<()> {
        if !self.is_limited() {
            return Ok(());
        }
        let mut used = self.used();
        let over = |used: u64, more: u64, limit: Option<u64>| {
            more > 0 && limit.is_some_and(|limit| used.saturating_add(more) > limit)
        };
        if over(used.bytes, bytes, self.limit.size_bytes)
            || over(used.inodes, inodes, self.limit.inodes)
        {
            return Err(Refusal::LimitReached.into());
        }
        used.bytes += bytes;
        used.inodes += inodes;
        Ok(())
    }

    /// Gives space back.
    pub fn give_back(&self, bytes: u64, inodes: u64) {
        if self.is_limited() {
            let mut used = self.used();
            used.bytes = used.bytes.saturating_sub(bytes);
            used.inodes = used.inodes.saturating_sub(inodes);
        }
    }

    /// Takes space for an inode about to be created; report the result to the returned value.
    /// Errors: as [`Usage::take`].
    pub fn reserve(&self, bytes: u64, inodes: u64) -> Result<Reserved<'_>> {
        self.take(bytes, inodes)?;
        Ok(Reserved {
            usage: self,
            bytes,
            inodes,
            made: Cell::new(false),
        })
    }

    /// Returns the size of a directory that may be about to be removed, if that is counted.
    pub fn of_dir(&self, dir: Option<&DirHandle>) -> Option<u64> {
        let dir = dir.filter(|_| self.is_limited())?;
        // If it can't be read, it counts as 0: the next full count corrects that.
        let stat = dir.stat(None).ok().flatten();
        Some(stat.map_or(0, |stat| size_of(&stat)))
    }

    /// Takes the most space that changing `start..end` of a file, in units of `unit_bytes`, can
    /// need.
    pub fn charge(&self, file: &File, start: u64, end: u64, unit_bytes: u64) -> Result<Charge<'_>> {
        if self.limit.size_bytes.is_none() {
            return Ok(Charge(None));
        }
        let asked = (|| Ok((vellum_sys::stat::stat_fd(file)?.ino, file.try_clone())))();
        let (ino, clone) = asked.on("upper")?;
        let Ok(clone) = clone.map(Arc::new) else {
            return Err(Refusal::LimitReached.into());
        };
        self.patiently(|| self.charge_now(&clone, ino, start..end, unit_bytes))
    }

    fn charge_now(
        &self,
        file: &Arc<File>,
        ino: u64,
        Range { start, end }: Range<u64>,
        unit_bytes: u64,
    ) -> Result<Charge<'_>> {
        let stripe = sync::lock(&self.stripes[ino as usize % STRIPES]);
        let unit = unit_bytes.max(BLOCK_BYTES);
        let start = start - start % unit;
        let end = end.next_multiple_of(unit);
        let mut reserved = end.saturating_sub(start);
        if self.take_now(reserved, 0).is_err() {
            // Perhaps most of it is already allocated.
            reserved = holes(file, start, end);
            self.take_now(reserved, 0)?;
        }
        Ok(Charge(Some(Charged {
            usage: self,
            ino,
            before: sync::lock(&self.counted).before(ino, blocks_bytes(file)),
            file: Arc::clone(file),
            reserved,
            _stripe: stripe,
        })))
    }

    /// Gives back the space of a removed file.
    fn file_gone(&self, stat: &Stat) {
        if self.is_limited() {
            let counted = sync::lock(&self.counted).0.remove(&stat.ino);
            self.give_back(counted.unwrap_or_else(|| size_of(stat)), 1);
        }
    }
}

/// Space taken for something new. Given back unless it is created.
#[must_use]
pub(crate) struct Reserved<'a> {
    usage: &'a Usage,
    bytes: u64,
    inodes: u64,
    made: Cell<bool>,
}

impl Reserved<'_> {
    /// Notes that it was created, with these attributes.
    pub fn made(&self, stat: &Stat) {
        self.made.set(true);
        if self.usage.is_limited() {
            // The inode that had this number before is gone.
            sync::lock(&self.usage.counted).0.remove(&stat.ino);
            let mut used = self.usage.used();
            used.bytes = (used.bytes + size_of(stat)).saturating_sub(self.bytes);
        }
    }

    /// Notes that it was created, with the attributes that `stat` returns; or gives everything back
    /// if it was not.
    pub fn result<T>(self, done: &Result<T>, stat: impl FnOnce() -> vellum_sys::Result<Stat>) {
        if done.is_ok() {
            self.made.set(true);
            if self.usage.is_limited()
                && let Ok(stat) = stat()
            {
                self.made(&stat);
            }
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.made.get() {
            self.usage.give_back(self.bytes, self.inodes);
        }
    }
}

impl Engine {
    /// Reserves the space that copying up a file, or its data, can take.
    pub(crate) fn reserve_data<'a>(
        &self,
        upper: &'a Upper,
        from: &LowerFile,
        depth: Depth,
        inodes: u64,
    ) -> Result<Reserved<'a>> {
        let bytes = match depth {
            Depth::Data if upper.usage.is_limited() => {
                let stat = from.dir.stat(Some(&from.name)).on(self.layer(from.layer))?;
                let stat = stat.ok_or(Refusal::Stale)?;
                let by_blocks = upper.options.blocks_from_bytes;
                match by_blocks.is_some_and(|least| stat.size_bytes >= least) {
                    true => 0,
                    // Holes stay holes.
                    false => size_of(&stat).min(stat.size_bytes.next_multiple_of(BLOCK_BYTES)),
                }
            }
            _ => 0,
        };
        upper.usage.reserve(bytes, inodes)
    }

    /// Gives back the space of a removed directory, and the block map of a file that has lost its
    /// last name. [`Engine::file_gone`] gives back the file's space.
    pub(crate) fn name_gone(&self, node: &LiveNode) -> Result<()> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        let state = node.state();
        let file = match &state.body {
            Body::Dir(dir) => {
                if let Some(bytes) = upper.usage.of_dir(dir.upper.as_deref()) {
                    upper.usage.give_back(bytes, 1);
                }
                return Ok(());
            }
            Body::File(file) => file,
        };
        let Some(UpperFile::Pinned(fd)) = &file.upper else {
            return Ok(());
        };
        if !matches!(file.data, DataAt::Blocks(_)) && !upper.usage.is_limited() {
            return Ok(());
        }
        let stat = vellum_sys::stat::stat_fd(fd).on(upper)?;
        if stat.nlink > 0 {
            return Ok(());
        }
        *sync::lock(&upper.usage.unnamed) = Some(Instant::now());
        let DataAt::Blocks(blocks) = &file.data else {
            return Ok(());
        };
        // A process that has it open can still read it: the map is in memory, and the lower file
        // stays in place. The name is gone even if the map can't be removed; a map that can't be
        // read is litter for the next settling.
        let opened = vellum_sys::rooted::reopen_for(fd, Access::ReadWrite);
        if let Ok(inode) = opened
            && blocks.open(&upper.blocks, inode).is_ok()
        {
            blocks.orphan(&upper.blocks)?;
        }
        Ok(())
    }

    /// Gives back the space of a file without a name and without references. As long as there is a
    /// reference, the file system keeps the file, and it may grow.
    pub(crate) fn file_gone(&self, node: &LiveNode) {
        let Some(upper) = self.upper.as_ref().filter(|upper| upper.usage.is_limited()) else {
            return;
        };
        let fd = match &node.state().body {
            Body::File(file) => match &file.upper {
                Some(UpperFile::Pinned(fd)) => Arc::clone(fd),
                _ => return,
            },
            Body::Dir(_) => return,
        };
        // If it can't be read, it stays counted until the next full count.
        if let Ok(stat) = vellum_sys::stat::stat_fd(&fd)
            && stat.nlink == 0
        {
            upper.usage.file_gone(&stat);
        }
    }

    /// Gives back the space of all files without a name: they go when the union closes.
    pub(crate) fn all_gone(&self) {
        for node in self.table.all() {
            if node.state().places().next().is_none() {
                self.file_gone(&node);
            }
        }
    }

    /// Returns the space to show: no more than the limit leaves.
    pub(crate) fn within_limit(&self, mut room: Room) -> Room {
        let Some(upper) = self.upper.as_ref().filter(|upper| upper.usage.is_limited()) else {
            return room;
        };
        let used = *upper.usage.used();
        let block_bytes = u64::from(room.block_bytes.max(1));
        if let Some(size_bytes) = upper.usage.limit.size_bytes {
            let free = size_bytes.saturating_sub(used.bytes) / block_bytes;
            room.blocks = size_bytes / block_bytes;
            room.blocks_free = room.blocks_free.min(free);
            room.blocks_available = room.blocks_available.min(free);
        }
        if let Some(inodes) = upper.usage.limit.inodes {
            room.inodes = inodes;
            room.inodes_free = room.inodes_free.min(inodes.saturating_sub(used.inodes));
        }
        room
    }
}

impl Charge<'_> {
    /// Replaces the reservation with what the change really allocated or freed.
    pub fn settle(self, change: Change) {
        if let Some(charged) = self.0 {
            let shown = blocks_bytes(&charged.file);
            let before = charged.before;
            let after =
                sync::lock(&charged.usage.counted).after(charged.ino, before, shown, change);
            let mut used = charged.usage.used();
            used.bytes = (used.bytes + after).saturating_sub(before + charged.reserved);
        }
    }
}

/// Returns the bytes of a file's blocks; 0 if they can't be read, which the next full count
/// corrects.
fn blocks_bytes(file: &File) -> u64 {
    vellum_sys::stat::stat_fd(file).map_or(0, |stat| stat.blocks_512 * 512)
}

/// Returns the bytes of `start..end` that are not allocated yet.
fn holes(file: &File, start: u64, end: u64) -> u64 {
    let mut at = start;
    let mut missing = 0;
    while at < end {
        let data = vellum_sys::data::seek_data(file, at).ok().flatten();
        let data = data.unwrap_or(end).clamp(at, end);
        missing += data - at;
        let hole = vellum_sys::data::seek_hole(file, data).ok().flatten();
        at = hole.unwrap_or(end).max(data + 1);
    }
    missing
}

/// Returns the saved figures, if the last union was closed properly.
fn kept(work: &Dir) -> vellum_sys::Result<Option<Used>> {
    let dir = match work.open_dir(workdir::OWN) {
        Ok(dir) => dir,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let file = match dir.open_file(workdir::OWN_USAGE) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut buffer = [0; 64];
    let count = vellum_sys::data::read_at(&file, &mut buffer, 0)?;
    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
    let mut numbers = text.split_whitespace().map(str::parse);
    Ok(match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(bytes)), Some(Ok(inodes)), None) => Some(Used { bytes, inodes }),
        _ => None,
    })
}

/// Removes the figures: the next union with a limit counts again.
pub(crate) fn forget(work: &Dir) -> vellum_sys::Result<()> {
    let dir = match work.open_dir(workdir::OWN) {
        Ok(dir) => dir,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    match dir.unlink(workdir::OWN_USAGE) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Counts the content of an upper layer; every inode once.
fn count(upper: &Dir) -> vellum_sys::Result<Used> {
    let mut used = Used::default();
    let mut linked = HashSet::new();
    // Handles, since a path may be longer than the kernel takes.
    let root = DirLayer::new(upper.dup()?, "upper", Dialect::plain());
    let mut pending = vec![root.root_handle()];
    while let Some(handle) = pending.pop() {
        let dir = handle.dir()?;
        for entry in dir.entries()? {
            let entry = entry?;
            let Some(stat) = dir.stat_opt(&entry.name)? else {
                continue;
            };
            if stat.nlink > 1 && !stat.is_dir() && !linked.insert(stat.identity()) {
                continue;
            }
            used.bytes += size_of(&stat);
            used.inodes += 1;
            if entry.kind == FileKind::Dir {
                pending.push(handle.sub(&entry.name));
            }
        }
    }
    Ok(used)
}

/// Returns how many bytes an inode counts for.
pub(crate) fn size_of(stat: &Stat) -> u64 {
    stat.blocks_512 * 512
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is counted for a file that shows these figures, one change after the other.
    fn counted(shown: &[(u64, Change)]) -> Vec<u64> {
        let mut counted = Counted::default();
        let mut all = Vec::new();
        for &(shown, change) in shown {
            let before = counted.before(7, 0);
            all.push(counted.after(7, before, shown, change));
        }
        all
    }

    #[test]
    fn a_file_that_shows_too_few_blocks_for_an_instant_is_counted_in_full() {
        let grows = |bytes| (bytes, Change::Grows);
        assert_eq!(
            counted(&[grows(64), grows(16), grows(192), grows(192)]),
            [64, 64, 192, 192]
        );
        let freed = [grows(64), (8, Change::MayFree), grows(128)];
        assert_eq!(counted(&freed), [64, 8, 128]);
    }

    #[test]
    fn remembered_files_are_bounded_and_forgotten_when_removed() {
        let mut counted = Counted::default();
        for ino in 0..10_000 {
            counted.after(ino, 0, 1, Change::Grows);
            assert!(counted.0.len() <= REMEMBERED);
        }
        assert_eq!(counted.before(9_999, 5), 1);
        assert_eq!(counted.before(0, 5), 5);
    }
}

//! How much an upper layer holds, and the most it may hold, on any file system.
//!
//! Room is reserved before it is allocated: what would pass the limit is refused
//! ([`Refusal::LimitReached`]) before anything is written. Afterwards the file system is asked what
//! it really took; its answer is not always true at that moment, so what was counted for a file is
//! remembered and made good by the next answer. Between mounts the figures are kept in
//! `vellum/usage` of the work directory; while a union is open that file says so, and what finds it
//! like that counts again. Without a limit nothing is counted and nothing of this costs anything.
//!
//! Counted are the inodes of the upper layer, each once, with the blocks they have; not the work
//! directory. A file without a name counts until nobody uses it any more. A kernel says that a
//! moment after the name is gone, so whoever finds no room just then waits that moment, and holds
//! no lock of this account meanwhile.
//!
//! Locks: one of a few by inode while a file's blocks change, so that each block is counted once;
//! inside, what was counted, then the figures, each for a few instructions and inside any other
//! lock of the engine.

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

/// What the file says while a union is open.
const OPEN: &[u8] = b"open\n";
/// The unit that file systems allocate in, as a rule.
const BLOCK_BYTES: u64 = 4096;
const STRIPES: usize = 32;
/// Files that are remembered: a few hundred kilobytes. Of those that are forgotten the file
/// system's word is taken again.
const REMEMBERED: usize = 8192;
/// How long after a file lost its name its room is waited for, and how often it is asked for.
const PATIENCE: Duration = Duration::from_millis(20);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What is in use.
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
    /// They are not right any more, and not worth keeping.
    stale: AtomicBool,
    /// When a file lost its last name most recently.
    unnamed: Mutex<Option<Instant>>,
}

/// Room reserved for one change of one file's blocks. Settled when it is done.
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

/// What a change can do to the blocks that a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It takes none away, whatever the file system shows just now.
    Grows,
    /// It may take some away: truncated, or a hole made.
    MayFree,
}

/// The bytes that were counted for files, by inode number.
///
/// For an instant a file system may show fewer blocks than a file has: ext4 takes what it reserved
/// for delayed allocation off one figure before it adds it to the other. Were only differences
/// counted, that would be lost for good.
#[derive(Debug, Default)]
struct Counted(HashMap<u64, u64>);

impl Counted {
    /// Returns what was counted for a file; what it shows, if that is not remembered.
    fn before(&self, ino: u64, shown: u64) -> u64 {
        self.0.get(&ino).copied().unwrap_or(shown)
    }

    /// Returns what to count for a file that has changed and shows `shown`.
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
    /// Opens the account: reads what was kept, or counts the upper layer if a crash left it open or
    /// none was kept.
    pub fn open(limit: Limit, upper: &Dir, work: &Dir) -> vellum_sys::Result<Usage> {
        let used = match limit {
            Limit {
                size_bytes: None,
                inodes: None,
            } => {
                // Nobody keeps it up to date now.
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

    /// Keeps the figures. The caller has synced what they are about.
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

    /// Says that something was copied that was not counted: the next opening counts anew.
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

    /// Takes room for something new. Errors: [`Refusal::LimitReached`]; then nothing was taken.
    pub fn take(&self, bytes: u64, inodes: u64) -> Result<()> {
        self.patiently(|| self.take_now(bytes, inodes))
    }

    /// Does `take` again as long as there may be room in a moment.
    fn patiently<T>(&self, take: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            // Before the attempt: what is given back afterwards is for the next one.
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

    /// Gives room back.
    pub fn give_back(&self, bytes: u64, inodes: u64) {
        if self.is_limited() {
            let mut used = self.used();
            used.bytes = used.bytes.saturating_sub(bytes);
            used.inodes = used.inodes.saturating_sub(inodes);
        }
    }

    /// Takes room for something that is about to be made; what becomes of it is said to the value
    /// returned. Errors: as [`Usage::take`].
    pub fn reserve(&self, bytes: u64, inodes: u64) -> Result<Reserved<'_>> {
        self.take(bytes, inodes)?;
        Ok(Reserved {
            usage: self,
            bytes,
            inodes,
            made: Cell::new(false),
        })
    }

    /// Returns what a directory takes that may be about to go, if that is counted.
    pub fn of_dir(&self, dir: Option<&DirHandle>) -> Option<u64> {
        let dir = dir.filter(|_| self.is_limited())?;
        // One that can't be asked takes nothing: that corrects itself with the next count.
        let stat = dir.stat(None).ok().flatten();
        Some(stat.map_or(0, |stat| size_of(&stat)))
    }

    /// Takes the room that changing `start..end` of a file, in units of `unit_bytes`, can need at
    /// most.
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
            // Perhaps most of it is there already.
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

    /// Gives back what a file took that is gone.
    fn file_gone(&self, stat: &Stat) {
        if self.is_limited() {
            let counted = sync::lock(&self.counted).0.remove(&stat.ino);
            self.give_back(counted.unwrap_or_else(|| size_of(stat)), 1);
        }
    }
}

/// Room taken for something new. Given back unless it is made.
#[must_use]
pub(crate) struct Reserved<'a> {
    usage: &'a Usage,
    bytes: u64,
    inodes: u64,
    made: Cell<bool>,
}

impl Reserved<'_> {
    /// It was made, and is this.
    pub fn made(&self, stat: &Stat) {
        self.made.set(true);
        if self.usage.is_limited() {
            // What had this number before is no more.
            sync::lock(&self.usage.counted).0.remove(&stat.ino);
            let mut used = self.usage.used();
            used.bytes = (used.bytes + size_of(stat)).saturating_sub(self.bytes);
        }
    }

    /// It was made, and is what `stat` says; or it was not, and everything is given back.
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
    /// Reserves what copying up a file, or its data, can take.
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

    /// Gives back what a directory took that is gone on disk, and the block map of a file that has
    /// lost its last name. The file's room is given back by [`Engine::file_gone`].
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
        // Whoever still has it open reads on: the map is in memory then, and the lower file stays
        // where it is. The name is gone whatever becomes of the map; one that can't be read is
        // litter for the next settling.
        let opened = vellum_sys::rooted::reopen_for(fd, Access::ReadWrite);
        if let Ok(inode) = opened
            && blocks.open(&upper.blocks, inode).is_ok()
        {
            blocks.orphan(&upper.blocks)?;
        }
        Ok(())
    }

    /// Gives back the room of a file that has no name and that nobody counts on any more. As long
    /// as somebody does, the file system keeps it, and it may grow.
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
        // One that can't be asked stays counted until everything is counted anew.
        if let Ok(stat) = vellum_sys::stat::stat_fd(&fd)
            && stat.nlink == 0
        {
            upper.usage.file_gone(&stat);
        }
    }

    /// Gives back the room of all files without a name: the union closes, and with it they are
    /// gone.
    pub(crate) fn all_gone(&self) {
        for node in self.table.all() {
            if node.state().places().next().is_none() {
                self.file_gone(&node);
            }
        }
    }

    /// Returns the room to show, no more than the limit leaves.
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
    /// Puts what a change really took, or freed, in the place of what was reserved.
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

/// The bytes of a file's blocks; of one that can't be asked, none: that corrects itself with the
/// next count.
fn blocks_bytes(file: &File) -> u64 {
    vellum_sys::stat::stat_fd(file).map_or(0, |stat| stat.blocks_512 * 512)
}

/// The bytes of `start..end` that have no room yet.
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

/// Returns the figures, if they were kept by one who closed.
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

/// Removes the figures: the next union with a limit counts anew.
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

/// Counts what is in an upper layer; every inode once.
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

/// Returns what an inode takes.
pub(crate) fn size_of(stat: &Stat) -> u64 {
    stat.blocks_512 * 512
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file shows, one change after the other, and what is counted for it.
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
    fn what_is_remembered_is_bounded_and_forgotten_with_the_file() {
        let mut counted = Counted::default();
        for ino in 0..10_000 {
            counted.after(ino, 0, 1, Change::Grows);
            assert!(counted.0.len() <= REMEMBERED);
        }
        assert_eq!(counted.before(9_999, 5), 1);
        assert_eq!(counted.before(0, 5), 5);
    }
}

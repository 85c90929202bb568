//! How much an upper layer holds, and the most it may hold, on any file system.
//!
//! Room is reserved before it is allocated: what would pass the limit is refused ([`Refusal::LimitReached`]) before
//! anything is written. Afterwards the file system is asked what it really took. Between mounts the figures are kept in
//! `vellum/usage` of the work directory; while a union is open that file says so, and what finds it like that counts
//! again. Without a limit nothing is counted and nothing of this costs anything.
//!
//! Counted are the inodes of the upper layer, each once, with the blocks they have; not the work directory.
//!
//! Locks: one of a few by inode while a file's blocks change, so that each block is counted once; inside, the figures.

use std::collections::HashSet;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vellum_sys::{Dir, FileKind, Stat, publish};

use crate::engine::options::Limit;
use crate::{Refusal, Result};

const USAGE_DIR: &str = "vellum";
const USAGE: &str = "usage";
/// What the file says while a union is open.
const OPEN: &[u8] = b"open\n";
/// The unit that file systems allocate in, as a rule.
const BLOCK_BYTES: u64 = 4096;
const STRIPES: usize = 32;

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
    /// Where the figures are kept.
    work: Option<Dir>,
}

/// Room reserved for one change of one file's blocks. Settled when it is done.
#[must_use]
pub(crate) struct Charge<'a>(Option<Charged<'a>>);

struct Charged<'a> {
    usage: &'a Usage,
    file: File,
    before: u64,
    reserved: u64,
    _stripe: MutexGuard<'a, ()>,
}

impl Usage {
    /// Opens the account: reads what was kept, or counts the upper layer if a crash left it open or none was kept.
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
                    work: None,
                });
            }
            _ => match kept(work)? {
                Some(used) => used,
                None => count(upper)?,
            },
        };
        let dir = work.create_dir_all(USAGE_DIR, 0o700)?;
        publish::write_file_atomic(&dir, USAGE.as_ref(), OPEN, 0o600)?;
        Ok(Usage {
            limit,
            used: Mutex::new(used),
            stripes: Default::default(),
            work: Some(dir),
        })
    }

    /// Keeps the figures. The caller has synced what they are about.
    pub fn close(&self) -> vellum_sys::Result<()> {
        let Some(dir) = &self.work else {
            return Ok(());
        };
        let Used { bytes, inodes } = *self.used();
        let text = format!("{bytes} {inodes}\n");
        publish::write_file_atomic(dir, USAGE.as_ref(), text.as_bytes(), 0o600)
    }

    /// Returns whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.work.is_some()
    }

    pub fn limit(&self) -> Limit {
        self.limit
    }

    pub fn used(&self) -> MutexGuard<'_, Used> {
        // Two numbers, each replaced whole.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for something new. Errors: [`Refusal::LimitReached`]; then nothing was taken.
    pub fn take(&self, bytes: u64, inodes: u64) -> Result<()> {
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

    /// Notes what something new really takes, of which `bytes` were taken before.
    pub fn correct(&self, bytes: u64, really: u64) {
        if self.is_limited() {
            let mut used = self.used();
            used.bytes = (used.bytes + really).saturating_sub(bytes);
        }
    }

    /// Takes the room that changing `start..end` of a file, in units of `unit_bytes`, can need at most.
    pub fn charge(&self, file: &File, start: u64, end: u64, unit_bytes: u64) -> Result<Charge<'_>> {
        if self.limit.size_bytes.is_none() {
            return Ok(Charge(None));
        }
        let asked = (|| Ok((vellum_sys::stat::stat_fd(file)?.ino, file.try_clone())))();
        let (ino, clone) = asked.map_err(|source| crate::Error::Io {
            layer: "upper".to_owned(),
            source,
        })?;
        let Ok(clone) = clone else {
            return Err(Refusal::LimitReached.into());
        };
        let stripe = self.stripes[ino as usize % STRIPES]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let unit = unit_bytes.max(BLOCK_BYTES);
        let start = start - start % unit;
        let end = end.next_multiple_of(unit);
        let mut reserved = end.saturating_sub(start);
        if self.take(reserved, 0).is_err() {
            // Perhaps most of it is there already.
            reserved = holes(&clone, start, end);
            self.take(reserved, 0)?;
        }
        Ok(Charge(Some(Charged {
            usage: self,
            before: blocks_bytes(&clone),
            file: clone,
            reserved,
            _stripe: stripe,
        })))
    }
}

impl Charge<'_> {
    /// Puts in the place of what was reserved what was really taken, or freed.
    pub fn settle(self) {
        if let Some(charged) = self.0 {
            let after = blocks_bytes(&charged.file);
            let mut used = charged.usage.used();
            used.bytes = (used.bytes + after).saturating_sub(charged.before + charged.reserved);
        }
    }
}

/// The bytes of a file's blocks; of one that can't be asked, none: that corrects itself with the next count.
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
    let dir = match work.open_dir(USAGE_DIR) {
        Ok(dir) => dir,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let file = match dir.open_file(USAGE) {
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

fn forget(work: &Dir) -> vellum_sys::Result<()> {
    let dir = match work.open_dir(USAGE_DIR) {
        Ok(dir) => dir,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    match dir.unlink(USAGE) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Counts what is in an upper layer; every inode once.
fn count(upper: &Dir) -> vellum_sys::Result<Used> {
    let mut used = Used::default();
    let mut linked = HashSet::new();
    let mut pending = vec![std::path::PathBuf::new()];
    while let Some(path) = pending.pop() {
        let dir = upper.open_dir(&path)?;
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
                pending.push(path.join(&entry.name));
            }
        }
    }
    Ok(used)
}

/// Returns what an inode takes.
pub(crate) fn size_of(stat: &Stat) -> u64 {
    stat.blocks_512 * 512
}

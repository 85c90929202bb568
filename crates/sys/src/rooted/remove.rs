//! Removes a tree, whatever its depth and modes, and never anything mounted in it.
//!
//! The walk is a loop with an explicit stack. Only the deepest [`OPEN_LEVELS`] directories are held
//! open. The way back up goes through `..` and is trusted only if device and inode are the ones
//! noted on the way down, so neither the descriptor limit nor a directory moved meanwhile can lead
//! it astray. Every step down is an `openat2(RESOLVE_NO_XDEV)`, so a mount is never entered; what
//! it covers stays and is reported.
//!
//! Where the kernel refuses, the usual causes are removed and the step is tried once more:
//! immutable and append-only flags on the entry or its directory, and permission bits that shut out
//! even the owner.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Dir;
use crate::Result;
use crate::stat::{FileKind, Stat};

const OPEN_LEVELS: usize = 64;

/// A directory that is being filled meanwhile is listed this many times before it counts as not
/// empty.
const LISTINGS: u32 = 16;

/// The outcome of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Nothing is left, or nothing was there.
    Gone,
    /// Something is mounted in the tree. All else is removed; the mount points stay, given as paths
    /// that begin with the name to remove. Unmount them and try again.
    Mounted(Vec<PathBuf>),
}

struct Level {
    name: OsString,
    identity: (u64, u64),
    /// Open for the deepest levels only.
    dir: Option<Dir>,
    subdirs: Vec<OsString>,
    listings: u32,
    /// A mount beneath prevents this directory's removal.
    kept: bool,
}

pub(super) fn remove_tree(parent: &Dir, name: &OsStr) -> Result<Removal> {
    let mut mounted = Vec::new();
    match parent.stat_opt(name)? {
        None => return Ok(Removal::Gone),
        Some(stat) if !stat.is_dir() => {
            if unlink(parent, name, AtFlags::empty())? == Step::Busy {
                mounted.push(PathBuf::from(name));
            }
        }
        Some(_) => Walk {
            parent,
            stack: Vec::new(),
            mounted: &mut mounted,
        }
        .run(name)?,
    }
    Ok(if mounted.is_empty() {
        Removal::Gone
    } else {
        Removal::Mounted(mounted)
    })
}

#[derive(PartialEq, Eq)]
enum Step {
    Done,
    Busy,
    NotEmpty,
}

enum Entered {
    Dir(Dir),
    Gone,
    Mounted,
    /// It was a directory and no longer is.
    NotDir,
}

struct Walk<'a> {
    parent: &'a Dir,
    stack: Vec<Level>,
    mounted: &'a mut Vec<PathBuf>,
}

impl Walk<'_> {
    fn run(mut self, top: &OsStr) -> Result<()> {
        self.descend(top.to_os_string())?;
        while !self.stack.is_empty() {
            let depth = self.stack.len() - 1;
            if let Some(sub) = self.stack[depth].subdirs.pop() {
                self.descend(sub)?;
                continue;
            }
            if self.stack[depth].listings == 0 {
                self.sweep(depth)?;
                continue;
            }
            self.ascend()?;
        }
        Ok(())
    }

    /// The open directory of the deepest level, or the one that contains the tree.
    fn current(&self) -> &Dir {
        self.stack
            .last()
            .and_then(|level| level.dir.as_ref())
            .unwrap_or(self.parent)
    }

    /// The path of the deepest level, from the top name on.
    fn path(&self) -> PathBuf {
        self.stack
            .iter()
            .map(|level| Path::new(&level.name))
            .collect()
    }

    fn descend(&mut self, name: OsString) -> Result<()> {
        match enter(self.current(), &name)? {
            Entered::Gone => {}
            Entered::Mounted => self.note_mounted(&name),
            Entered::NotDir => {
                if unlink(self.current(), &name, AtFlags::empty())? == Step::Busy {
                    self.note_mounted(&name);
                }
            }
            Entered::Dir(dir) => {
                let identity = dir.stat_self()?.identity();
                self.stack.push(Level {
                    name,
                    identity,
                    dir: Some(dir),
                    subdirs: Vec::new(),
                    listings: 0,
                    kept: false,
                });
                if let Some(far) = self.stack.len().checked_sub(OPEN_LEVELS + 1) {
                    self.stack[far].dir = None;
                }
            }
        }
        Ok(())
    }

    fn note_mounted(&mut self, name: &OsStr) {
        self.mounted.push(self.path().join(name));
        if let Some(level) = self.stack.last_mut() {
            level.kept = true;
        }
    }

    /// Lists the deepest directory, removes what is not a directory and notes the rest for later.
    fn sweep(&mut self, depth: usize) -> Result<()> {
        self.stack[depth].listings += 1;
        let mut subdirs = Vec::new();
        let mut busy = Vec::new();
        let dir = self.current();
        for entry in dir.entries()? {
            let entry = entry?;
            if entry.kind == FileKind::Dir {
                subdirs.push(entry.name);
            } else if unlink(dir, &entry.name, AtFlags::empty())? == Step::Busy {
                busy.push(entry.name);
            }
        }
        for name in busy {
            self.note_mounted(&name);
        }
        self.stack[depth].subdirs = subdirs;
        Ok(())
    }

    /// Leaves the deepest directory, which is now empty, and removes it from the one above.
    fn ascend(&mut self) -> Result<()> {
        let Some(mut level) = self.stack.pop() else {
            return Ok(());
        };
        if let Some(above) = self.stack.last_mut()
            && above.dir.is_none()
        {
            let Some(dir) = level.dir.as_ref() else {
                return Err(self
                    .parent
                    .fail("find the way back in", &level.name, Errno::IO));
            };
            above.dir = Some(reopen_parent(dir, above.identity)?);
        }
        if level.kept {
            if let Some(above) = self.stack.last_mut() {
                above.kept = true;
            }
            return Ok(());
        }
        match unlink(self.current(), &level.name, AtFlags::REMOVEDIR)? {
            Step::Done => {}
            Step::Busy => self.note_mounted(&level.name),
            // A name was added, or the listing missed one while we removed others: list it again.
            Step::NotEmpty if level.listings < LISTINGS => {
                let dir = self.current();
                if let Entered::Dir(dir) = enter(dir, &level.name)? {
                    let listings = level.listings;
                    level.dir = Some(dir);
                    self.stack.push(level);
                    let depth = self.stack.len() - 1;
                    self.sweep(depth)?;
                    self.stack[depth].listings = listings + 1;
                }
            }
            Step::NotEmpty => {
                return Err(self.current().fail(
                    "remove the directory",
                    &level.name,
                    Errno::NOTEMPTY,
                ));
            }
        }
        Ok(())
    }
}

fn reopen_parent(dir: &Dir, identity: (u64, u64)) -> Result<Dir> {
    let fd = rustix::fs::openat(dir, "..", super::DIR_FLAGS, Mode::empty())
        .map_err(|e| dir.fail("go up from", "", e))?;
    let above = Dir { fd };
    if above.stat_self()?.identity() != identity {
        // The directory was moved while we were in it: the one above now is not ours.
        return Err(dir.fail("go up from (it was moved away)", "", Errno::STALE));
    }
    Ok(above)
}

fn enter(dir: &Dir, name: &OsStr) -> Result<Entered> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV;
    let mut opened_up = false;
    loop {
        match rustix::fs::openat2(dir, name, super::DIR_FLAGS, Mode::empty(), resolve) {
            Ok(fd) => return Ok(Entered::Dir(Dir { fd })),
            Err(Errno::NOENT) => return Ok(Entered::Gone),
            Err(Errno::XDEV) => return Ok(Entered::Mounted),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Entered::NotDir),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::ACCESS) if !opened_up => {
                opened_up = true;
                dir.set_mode(name, 0o700)?;
            }
            Err(e) => return Err(dir.fail("open the directory", name, e)),
        }
    }
}

fn unlink(dir: &Dir, name: &OsStr, flags: AtFlags) -> Result<Step> {
    let mut freed = false;
    loop {
        match rustix::fs::unlinkat(dir, name, flags) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Step::Done),
            Err(Errno::BUSY) => return Ok(Step::Busy),
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Step::NotEmpty),
            Err(e @ (Errno::PERM | Errno::ACCESS)) if !freed => {
                freed = true;
                if !free(dir, name).map_err(|e| dir.fail("clear the flags of", name, e))? {
                    return Err(dir.fail("remove", name, e));
                }
            }
            Err(e) => return Err(dir.fail("remove", name, e)),
        }
    }
}

/// Removes flags and permission bits that keep `name` from being removed from `dir`; false if there
/// were none.
fn free(dir: &Dir, name: &OsStr) -> rustix::io::Result<bool> {
    let mut found = clear_flags(&dir.fd)?;
    let stat = Stat::at(dir, Path::new(name), AtFlags::SYMLINK_NOFOLLOW)?;
    if matches!(stat.kind, FileKind::File | FileKind::Dir) {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
            found |= clear_flags(&fd)?;
        }
    }
    let own = Stat::at(dir, Path::new(""), AtFlags::EMPTY_PATH)?;
    if own.mode & 0o300 != 0o300
        && rustix::fs::fchmod(dir, Mode::from_raw_mode(own.mode | 0o700)).is_ok()
    {
        found = true;
    }
    Ok(found)
}

fn clear_flags(fd: &std::os::fd::OwnedFd) -> rustix::io::Result<bool> {
    const STUCK: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
    match rustix::fs::ioctl_getflags(fd) {
        Ok(flags) if flags.intersects(STUCK) => {
            rustix::fs::ioctl_setflags(fd, flags.difference(STUCK))?;
            Ok(true)
        }
        // No flags, or a file system without flags.
        _ => Ok(false),
    }
}

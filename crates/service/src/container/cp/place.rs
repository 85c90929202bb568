//! Places one name of a copy: what it may replace, and the attributes of the result.
//!
//! A directory and a non-directory never replace each other, whatever their source. Anything else
//! is replaced; of a symbolic link, the link itself and never its target. Names are single
//! components in open directories. Attributes are set in the order that works: the owner first,
//! since changing it clears set-user-id and capabilities, then extended attributes, the mode, the
//! times.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use vellum_sys::stat::stat_fd;
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, FileKind, Stat, Timespec, rooted};

use super::invalid;
use crate::context::Context;
use crate::error::{Error, Result};

/// Owner and group of files whose own are unmapped in this user namespace, as elsewhere:
/// `/proc/sys/kernel/overflowuid`.
const NOBODY: u32 = 65_534;

/// Who owns the copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// The source's owner; if that is impossible, the copy fails.
    Kept,
    /// The source's owner if this user namespace maps it; else the caller.
    Known,
    /// The caller.
    Callers,
}

/// The attributes of a file, without its content and extended attributes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub atime: Timespec,
    pub mtime: Timespec,
}

impl Look {
    pub fn of(stat: &Stat) -> Self {
        Self {
            uid: stat.uid,
            gid: stat.gid,
            mode: stat.mode,
            atime: stat.atime,
            mtime: stat.mtime,
        }
    }
}

/// The rules of one copy, and the warnings so far.
pub(super) struct Placing<'a> {
    pub ctx: &'a Context,
    /// The root of the target, for messages.
    top: &'a Path,
    owners: Owners,
    /// Copy all extended attributes, not only those that every user may set.
    all_attributes: bool,
    /// The process's own ids.
    own: (u32, u32),
    /// The warnings that the user has got: each one once.
    said: RefCell<BTreeSet<String>>,
    removals: Cell<u64>,
}

impl<'a> Placing<'a> {
    pub fn new(ctx: &'a Context, top: &'a Path, owners: Owners, all_attributes: bool) -> Self {
        Self {
            ctx,
            top,
            owners,
            all_attributes,
            own: (geteuid().as_raw(), getegid().as_raw()),
            said: RefCell::default(),
            removals: Cell::new(0),
        }
    }

    /// Warns the user, once about each thing.
    pub fn warn(&self, what: String) {
        if self.said.borrow().contains(&what) {
            return;
        }
        self.ctx.progress.warn(&what);
        self.said.borrow_mut().insert(what);
    }

    /// Returns how often something was removed because another thing replaced it.
    pub fn removals(&self) -> u64 {
        self.removals.get()
    }

    /// Opens the directory `name`, creating it if it isn't there. A new one is only the caller's,
    /// so that no other user gets in before it has its attributes.
    ///
    /// Errors: something else has the name.
    pub fn directory(&self, dir: &Dir, name: &OsStr) -> Result<Dir> {
        match dir.mkdir(name, 0o700) {
            Ok(()) => {}
            Err(e) if e.is_exists() => {
                if dir.stat(name)?.kind != FileKind::Dir {
                    return Err(self.refused(dir, name, "non-directory", "directory"));
                }
            }
            Err(e) => return Err(e.into()),
        }
        Ok(dir.open_dir(name)?)
    }

    /// Calls `make`, which creates the non-directory `name`. Removes what had the name before.
    ///
    /// Errors: a directory has the name.
    pub fn replacing<T>(
        &self,
        dir: &Dir,
        name: &OsStr,
        make: impl Fn() -> vellum_sys::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(e) if e.is_exists() => {
                if dir.stat(name)?.kind == FileKind::Dir {
                    return Err(self.refused(dir, name, "directory", "non-directory"));
                }
                dir.unlink(name)?;
                self.removals.set(self.removals.get() + 1);
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    /// Creates an empty regular file called `name` that will get the attributes `look`.
    pub fn file(&self, dir: &Dir, name: &OsStr, look: &Look) -> Result<File> {
        // Only its owner can read the content before the owner is right.
        let mode = match self.owner(look) {
            Some(owner) if owner != self.own => 0o600,
            _ => 0o600 | look.mode & 0o777,
        };
        self.replacing(dir, name, || dir.create_file(name, mode))
    }

    /// Creates a device node or named pipe. False: this user namespace does not allow it, and the
    /// user was warned.
    pub fn node(&self, dir: &Dir, name: &OsStr, kind: FileKind, rdev: (u32, u32)) -> Result<bool> {
        match self.replacing(dir, name, || dir.mknod(name, kind, 0o600, rdev)) {
            Ok(()) => Ok(true),
            Err(Error::Sys(e)) if e.is(Errno::PERM) && kind != FileKind::Fifo => {
                self.warn("devices can't be created here and were left out".to_owned());
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Gives an open file its owner and mode, and `attributes` in between; doesn't touch what is
    /// right already.
    pub fn dress(
        &self,
        object: impl AsFd,
        look: &Look,
        attributes: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let now = stat_fd(&object)?;
        let kept = self.give(look, (now.uid, now.gid), |uid, gid| {
            rooted::set_owner_fd(&object, uid, gid)
        })?;
        attributes()?;
        let mode = self.mode(look, kept, now.kind);
        // Changing the owner or some attributes (ACLs) may have changed the mode; both are rare.
        if now.mode != mode || kept && (now.uid, now.gid) != (look.uid, look.gid) {
            rooted::set_mode_fd(&object, mode)?;
        }
        Ok(())
    }

    /// Gives `name`, which can't be opened, its owner, mode and times.
    pub fn dress_name(&self, dir: &Dir, name: &OsStr, look: &Look) -> Result<()> {
        let now = dir.stat(name)?;
        let kept = self.give(look, (now.uid, now.gid), |uid, gid| {
            dir.set_owner(name, uid, gid)
        })?;
        if now.kind != FileKind::Symlink {
            dir.set_mode(name, self.mode(look, kept, now.kind))?;
        }
        dir.set_times(name, Some(look.atime), Some(look.mtime))?;
        Ok(())
    }

    /// Sets the owner with `set` if it isn't `now` already. Returns whether the copy has the
    /// source's owner.
    fn give(
        &self,
        look: &Look,
        now: (u32, u32),
        set: impl FnOnce(u32, u32) -> vellum_sys::Result<()>,
    ) -> Result<bool> {
        let Some((uid, gid)) = self.owner(look) else {
            return Ok(now == (look.uid, look.gid));
        };
        // A tar may contain -1, which means unchanged.
        let said = |id, now| if id == u32::MAX { now } else { id };
        let (uid, gid) = (said(uid, now.0), said(gid, now.1));
        if (uid, gid) == now {
            return Ok((uid, gid) == (look.uid, look.gid));
        }
        match set(uid, gid) {
            Ok(()) => Ok((uid, gid) == (look.uid, look.gid)),
            Err(e)
                if self.owners == Owners::Known
                    && (e.is(Errno::INVAL) || e.is(Errno::OVERFLOW) || e.is(Errno::PERM)) =>
            {
                self.warn(format!(
                    "files of {uid}:{gid} can't exist in this user namespace, so the copies are yours"
                ));
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the owner that a copy gets; `None` if it stays as it is.
    fn owner(&self, look: &Look) -> Option<(u32, u32)> {
        let known = |id, own| if id == NOBODY { own } else { id };
        match self.owners {
            Owners::Kept => Some((look.uid, look.gid)),
            Owners::Known => Some((known(look.uid, self.own.0), known(look.gid, self.own.1))),
            Owners::Callers => None,
        }
    }

    /// Returns the mode of a copy. A set-user-id program must not run with another owner's rights.
    fn mode(&self, look: &Look, kept: bool, kind: FileKind) -> u32 {
        match kept || kind == FileKind::Dir {
            true => look.mode,
            false => look.mode & 0o1777,
        }
    }

    /// Copies extended attributes: capabilities and `user.`, and all others if that was asked for.
    pub fn attributes(&self, from: impl AsFd, to: impl AsFd) -> Result<()> {
        for name in xattr::list_fd(&from)? {
            let always = name.as_bytes().starts_with(b"user.") || name == "security.capability";
            if !self.all_attributes && !always {
                continue;
            }
            if let Some(value) = xattr::get_fd(&from, &name)? {
                self.attribute(&name, |name| xattr::set_fd(&to, name, &value, SetMode::Any))?;
            }
        }
        Ok(())
    }

    /// Sets an attribute with `set`. If the target can't have it, it is left out with a warning.
    pub fn attribute(
        &self,
        name: &OsStr,
        set: impl FnOnce(&OsStr) -> vellum_sys::Result<()>,
    ) -> Result<()> {
        match set(name) {
            Ok(()) => Ok(()),
            Err(e) if e.is_unsupported() || e.is_denied() => {
                let why = e.source;
                let name = name.display();
                self.warn(format!("the attribute {name} was left out: {why}"));
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the error for replacing something of another type, in Docker's words.
    fn refused(&self, dir: &Dir, name: &OsStr, there: &str, new: &str) -> Error {
        let path = dir.path().unwrap_or_default().join(name);
        let inside = path.strip_prefix(self.top).unwrap_or(&path);
        invalid(&format!(
            "cannot overwrite {there} {} with {new} {}",
            Path::new("/").join(inside).display(),
            Path::new(name).display()
        ))
    }
}

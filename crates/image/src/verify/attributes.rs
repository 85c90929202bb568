//! The attributes of one object: which count, and how those of another are given to it.
//!
//! Setting them writes only what differs, into the same inode. The order is that of
//! [`vellum_sys::dress`]: a change of owner clears set-user-id bits and capabilities, an ACL
//! changes the mode, and everything changes times.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use vellum_sys::rooted::{change_owner_fd, set_mode_fd, set_times_fd};
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, FileKind, Stat};

use super::compare::at;
use crate::error::Result;

/// An object in a directory; the empty name is the directory itself.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    pub dir: &'a Dir,
    pub name: &'a OsStr,
}

impl Object<'_> {
    fn is_self(&self) -> bool {
        self.name.is_empty()
    }

    pub fn stat(&self) -> vellum_sys::Result<Stat> {
        match self.is_self() {
            true => self.dir.stat_self(),
            false => self.dir.stat(self.name),
        }
    }

    fn set_owner(&self, uid: u32, gid: u32) -> vellum_sys::Result<()> {
        match self.is_self() {
            true => change_owner_fd(self.dir, Some(uid), Some(gid)),
            false => self.dir.set_owner(self.name, uid, gid),
        }
    }

    fn set_mode(&self, mode: u32) -> vellum_sys::Result<()> {
        match self.is_self() {
            true => set_mode_fd(self.dir, mode),
            false => self.dir.set_mode(self.name, mode),
        }
    }

    fn set_xattr(&self, attr: &OsStr, value: &[u8]) -> vellum_sys::Result<()> {
        match self.is_self() {
            true => xattr::set_fd(self.dir, attr, value, SetMode::Any),
            false => xattr::set(self.dir, self.name, attr, value, SetMode::Any),
        }
    }

    fn remove_xattr(&self, attr: &OsStr) -> vellum_sys::Result<()> {
        match self.is_self() {
            true => xattr::remove_fd(self.dir, attr),
            false => xattr::remove(self.dir, self.name, attr),
        }
        .map(drop)
    }

    pub fn set_time(&self, time: vellum_sys::Timespec) -> vellum_sys::Result<()> {
        match self.is_self() {
            true => set_times_fd(self.dir, None, Some(time)),
            false => self.dir.set_times(self.name, None, Some(time)),
        }
    }
}

/// What an object should have.
pub(super) struct Attributes {
    pub stat: Stat,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Attributes {
    pub fn of(object: Object<'_>, path: &Path) -> Result<Self> {
        Ok(Self {
            stat: object.stat().map_err(at("look at", path))?,
            xattrs: xattrs(object.dir, object.name, path)?,
        })
    }

    /// Gives them to `object`, of the same type; the modification time only if `with_time`. Returns
    /// whether anything differed.
    pub fn give(&self, object: Object<'_>, path: &Path, with_time: bool) -> Result<bool> {
        let mut changed = false;
        let is = object.stat().map_err(at("look at", path))?;
        if (is.uid, is.gid) != (self.stat.uid, self.stat.gid) {
            object
                .set_owner(self.stat.uid, self.stat.gid)
                .map_err(at("change the owner of", path))?;
            changed = true;
        }
        let has = xattrs(object.dir, object.name, path)?;
        let failed = || at("change the extended attributes of", path);
        for attr in has.keys().filter(|attr| !self.xattrs.contains_key(*attr)) {
            object.remove_xattr(attr).map_err(failed())?;
            changed = true;
        }
        for (attr, value) in &self.xattrs {
            if has.get(attr) != Some(value) {
                object.set_xattr(attr, value).map_err(failed())?;
                changed = true;
            }
        }
        let is = object.stat().map_err(at("look at", path))?;
        if is.kind != FileKind::Symlink && is.mode != self.stat.mode {
            object
                .set_mode(self.stat.mode)
                .map_err(at("change the mode of", path))?;
            changed = true;
        }
        if with_time && is.mtime != self.stat.mtime {
            object
                .set_time(self.stat.mtime)
                .map_err(at("set the times of", path))?;
            changed = true;
        }
        Ok(changed)
    }
}

/// Returns the extended attributes that count.
pub(super) fn xattrs(dir: &Dir, name: &OsStr, path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let failed = || at("read the extended attributes of", path);
    let listed = match name.is_empty() {
        true => xattr::list_fd(dir),
        false => xattr::list(dir, name),
    };
    let mut all = BTreeMap::new();
    for attr in listed
        .map_err(failed())?
        .into_iter()
        .filter(|attr| counts(attr))
    {
        let value = match name.is_empty() {
            true => xattr::get_fd(dir, &attr),
            false => xattr::get(dir, name, &attr),
        };
        if let Some(value) = value.map_err(failed())? {
            all.insert(attr, value);
        }
    }
    Ok(all)
}

/// Whether an attribute is the layer's, and not the machine's.
fn counts(attr: &OsStr) -> bool {
    let name = attr.as_encoded_bytes();
    let label = [&b"security.selinux"[..], b"security.ima", b"security.evm"].contains(&name)
        || name.starts_with(b"security.SMACK64");
    !label
}

//! Copies an inode's metadata from a lower layer to the upper one: owner, xattrs, mode, flags,
//! project, times.
//!
//! Everything is copied, or the copy-up fails; this file has the few exceptions. The order matters:
//! changing the owner clears set-uid, set-gid and capabilities, so it is first, and times come
//! last.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use vellum_format::{Mark, Protattr, record};
use vellum_sys::rooted::NewTime;
use vellum_sys::xattr::SetMode;
use vellum_sys::{FileKind, Stat, flags, quota};

use crate::at::At;
use crate::engine::acl::{self, Acl};
use crate::engine::owners::CAPABILITY;
use crate::engine::shown::{Inode, Source};
use crate::engine::{Engine, Upper, records};
use crate::error::{On, Site};
use crate::layer::Records;
use crate::node::shown_name;
use crate::{Layer, Refusal, Result};

/// Flags that the copy really has; immutable and append-only are kept in a mark, since the engine
/// must still be able to change the inode.
const CARRIED_FLAGS: u32 = flags::SYNC | flags::NO_ATIME;

impl Engine {
    /// Gives the staged inode `to` all attributes of `from`. `shown` are these attributes with
    /// records applied; `open` is the source file if it is already open.
    pub(super) fn carry(
        &self,
        upper: &Upper,
        (from, open): (&Source, Option<&File>),
        shown: &Stat,
        to: &At,
    ) -> Result<()> {
        // A file whose owner is not mapped in the union is not copied: the copy would have another
        // owner.
        self.ids.uid_shown(shown.uid)?;
        self.ids.gid_shown(shown.gid)?;
        let records = upper.layer.dialect().records == Records::Read;
        let staged = to.stat().on(upper)?;
        let recorded = records && matches!(staged.kind, FileKind::File | FileKind::Dir);
        if recorded {
            let record = records::of_stat(shown).encode();
            to.set_xattr(records::stat_name(), &record, SetMode::Any)
                .on(upper)?;
        } else {
            let uid = (staged.uid != shown.uid).then_some(shown.uid);
            let gid = (staged.gid != shown.gid).then_some(shown.gid);
            self.carry_owner(to, uid, gid).on(upper)?;
        }
        self.carry_xattrs(upper, from, to)?;
        if !recorded && staged.kind != FileKind::Symlink {
            to.set_mode(shown.mode).on(upper)?;
        }
        if matches!(staged.kind, FileKind::File | FileKind::Dir) {
            self.carry_flags(upper, (from, open), to)?;
        }
        let (atime, mtime) = (NewTime::To(shown.atime), NewTime::To(shown.mtime));
        to.set_times(atime, mtime).on(upper)
    }

    /// Gives the copy its owner. A squashed owner is never shown: if it can't be set, this
    /// process's own will do.
    fn carry_owner(&self, to: &At, uid: Option<u32>, gid: Option<u32>) -> vellum_sys::Result<()> {
        let set = |uid: Option<u32>, gid: Option<u32>| match (uid, gid) {
            (None, None) => Ok(()),
            (uid, gid) => to.set_owner(uid, gid),
        };
        match set(uid, gid) {
            Err(error) if error.is_denied() || error.is(Errno::INVAL) => {
                let uid = uid.filter(|_| self.ids.squash_uid.is_none());
                let gid = gid.filter(|_| self.ids.squash_gid.is_none());
                set(uid, gid)
            }
            done => done,
        }
    }

    fn carry_xattrs(&self, upper: &Upper, from: &Source, to: &At) -> Result<()> {
        let dialect = upper.layer.dialect();
        let below = self.dialect_of(from.layer);
        for stored in from.xattr_names().on(self.layer(from.layer))? {
            let Some(shown) = shown_name(&below, &stored) else {
                continue;
            };
            let value = match from.xattr(&stored) {
                // Its capability is for a root id that is not mapped in this user namespace.
                Err(error) if shown == CAPABILITY && error.is(Errno::OVERFLOW) => {
                    self.note_lost_capability(from);
                    continue;
                }
                value => value.on(self.layer(from.layer))?,
            };
            // Removed since it was listed.
            let Some(value) = value else { continue };
            let (name, record) = match records::kept(&dialect, &shown) {
                Ok(kept) if kept.record_only => (None, kept.record),
                Ok(kept) => (Some(kept.name), kept.record),
                // A name with a meaning in the upper only can still be kept as a record.
                Err(_) => (None, record::recorded(&shown)),
            };
            let refused = match &name {
                None => None,
                Some(name) => match to.set_xattr(name, &value, SetMode::Any) {
                    Ok(()) => continue,
                    Err(error) if error.is(Errno::INVAL) && names_unmapped(name, &value) => {
                        match self.without_unmapped(to, name, &value) {
                            true => continue,
                            false => return Err(Refusal::UnmappedId.into()),
                        }
                    }
                    Err(error) => Some(error),
                },
            };
            let denied = refused
                .as_ref()
                .is_none_or(|error| error.is_denied() || error.is_unsupported());
            match (record, refused) {
                (Some(record), _) if denied => {
                    to.set_xattr(&record, &value, SetMode::Any).on(upper)?
                }
                // As the kernel does: ignore an xattr that the file system has no namespace for,
                // unless it grants or denies access.
                (_, Some(error)) if error.is(Errno::OPNOTSUPP) && !decides_access(&shown) => {}
                (_, Some(error)) if shown == CAPABILITY && error.is(Errno::PERM) => {
                    self.note_lost_capability(from);
                }
                (_, Some(error)) => return Err(upper.io(error)),
                (None, None) => {}
                (Some(_), None) => {}
            }
        }
        Ok(())
    }

    /// Logs that a file is copied up without its capability. A user that may not set one could not
    /// have run the file with it either, and a missing capability grants nothing.
    fn note_lost_capability(&self, from: &Source) {
        let layer = self
            .stack
            .layers()
            .get(from.layer)
            .map(|layer| layer.name());
        tracing::warn!(
            ?layer,
            "copying up a file without its capability: this user may not set it"
        );
    }

    /// Copies an ACL without the entries for unmapped ids, if dropping them grants nothing. Returns
    /// whether it did.
    fn without_unmapped(&self, to: &At, name: &OsStr, value: &[u8]) -> bool {
        let Some(left) = Acl::parse(value)
            .ok()
            .and_then(|acl| acl.without_unmapped())
        else {
            return false;
        };
        // If this can't be set either, the caller reports the first error.
        to.set_xattr(name, &left.encode(), SetMode::Any).is_ok()
    }

    /// Copies `chattr` flags and the project number, as far as both file systems support them.
    fn carry_flags(
        &self,
        upper: &Upper,
        (from, open): (&Source, Option<&File>),
        to: &At,
    ) -> Result<()> {
        let opened;
        let source = match open {
            Some(file) => file.as_fd(),
            None => {
                opened = open_source(from);
                let Some(opened) = &opened else {
                    return Ok(());
                };
                opened.as_fd()
            }
        };
        let Ok(found) = flags::get(source) else {
            // A file system without flags.
            return Ok(());
        };
        let project = quota::project(source).unwrap_or(0);
        let protected = Protattr {
            append_only: found & flags::APPEND_ONLY != 0,
            immutable: found & flags::IMMUTABLE != 0,
        };
        if let Some(value) = protected.encode() {
            let name = upper.options.prefix.xattr(Mark::Protattr);
            to.set_xattr(name, value, SetMode::Any).on(upper)?;
        }
        if found & CARRIED_FLAGS == 0 && project == 0 {
            return Ok(());
        }
        let target = open_target(to).on(upper)?;
        if found & CARRIED_FLAGS != 0
            && let Ok(own) = flags::get(&target)
        {
            match flags::set(&target, own | found & CARRIED_FLAGS) {
                // The upper's file system does not support them all, or not for this user; they
                // concern how data is stored, not its content.
                Err(error) if error.is_unsupported() || error.is_denied() => {}
                other => other.on(upper)?,
            }
        }
        match quota::carry_project(source, &target) {
            // No project numbers there, or this user may not set one: quotas are the
            // administrator's concern.
            Err(error) if error.is_unsupported() || error.is_denied() => Ok(()),
            Err(error) if error.is(Errno::INVAL) => Ok(()),
            other => other.on(upper),
        }
    }
}

/// Returns whether it is an ACL with entries for ids that are not mapped in this user namespace.
fn names_unmapped(name: &OsStr, value: &[u8]) -> bool {
    let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
    is_acl && Acl::parse(value).is_ok_and(|acl| acl.of_known() != acl)
}

/// Opens the inode to read its flags; `None` if it can't be opened.
fn open_source(from: &Source) -> Option<OwnedFd> {
    match &from.inode {
        Inode::Lower(dir, Some(name)) => dir.open_file(name).ok().map(OwnedFd::from),
        // The flags can't be read through an `O_PATH` descriptor; a directory's handle has a
        // real one.
        Inode::Lower(dir, None) => dir.open_path(None).ok(),
        Inode::Upper(at) => open_target(at).ok(),
    }
}

fn open_target(to: &At) -> vellum_sys::Result<OwnedFd> {
    match to {
        At::Dir(dir) => dir.dup().map(OwnedFd::from),
        At::Name(dir, name) => match dir.open_dir(name) {
            Ok(dir) => Ok(OwnedFd::from(dir)),
            Err(_) => dir.open_file(name).map(OwnedFd::from),
        },
        At::Fd(fd) => match fd.as_fd().try_clone_to_owned() {
            Ok(fd) => Ok(fd),
            Err(error) => Err(vellum_sys::Error::new("duplicate", "", error)),
        },
    }
}

/// Xattrs that control access: losing one would grant rights.
fn decides_access(name: &OsStr) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT || name.as_bytes().starts_with(b"security.")
}

//! Sets an object's owner, attributes, mode and times, in the one order that works.
//!
//! Owner first, since changing it clears set-uid, set-gid and capabilities; then extended
//! attributes (an access ACL changes the mode's group bits); then the mode; times last. What the
//! process may not set is an error or becomes a record, as the target says. All attributes of an
//! archive pass through here and nowhere else, so this is where overlay's control attributes are
//! escaped.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use vellum_format::{Mark, OVERRIDE_STAT, OVERRIDE_STAT_NAMES, OverrideKind, OverrideStat, record};
use vellum_sys::xattr::SetMode;
use vellum_sys::{Dir, Timespec, rooted, xattr};

use super::{LeftOut, Privilege, TargetMarks};
use crate::error::{Error, Result};
use crate::tar::Entry;

pub(super) const ACCESS_ACL: &str = "system.posix_acl_access";
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// The object to set attributes on: something open, or a name that must not be opened (a link, a
/// device).
#[derive(Clone, Copy)]
pub(super) enum Object<'a> {
    File(&'a File),
    Dir(&'a Dir),
    Name(&'a Dir, &'a OsStr),
    /// Like `Name`, but a symbolic link, which has no mode.
    Symlink(&'a Dir, &'a OsStr),
}

impl Object<'_> {
    fn set_owner(self, uid: u32, gid: u32) -> vellum_sys::Result<()> {
        // Other runtimes pass an archive's ids to the kernel like this: -1 leaves the id unchanged.
        let told = |id| (id != u32::MAX).then_some(id);
        let (uid, gid) = (told(uid), told(gid));
        match self {
            Object::File(file) => rooted::change_owner_fd(file, uid, gid),
            Object::Dir(dir) => rooted::change_owner_fd(dir, uid, gid),
            Object::Name(dir, name) | Object::Symlink(dir, name) => {
                dir.change_owner(name, uid, gid)
            }
        }
    }

    fn set_mode(self, mode: u32) -> vellum_sys::Result<()> {
        match self {
            Object::File(file) => rooted::set_mode_fd(file, mode),
            Object::Dir(dir) => rooted::set_mode_fd(dir, mode),
            Object::Name(dir, name) => dir.set_mode(name, mode),
            Object::Symlink(..) => Ok(()),
        }
    }

    pub(super) fn set_times(self, time: Timespec) -> vellum_sys::Result<()> {
        match self {
            Object::File(file) => rooted::set_times_fd(file, Some(time), Some(time)),
            Object::Dir(dir) => rooted::set_times_fd(dir, Some(time), Some(time)),
            Object::Name(dir, name) | Object::Symlink(dir, name) => {
                dir.set_times(name, Some(time), Some(time))
            }
        }
    }

    pub(super) fn set_xattr(self, attr: &OsStr, value: &[u8]) -> vellum_sys::Result<()> {
        match self {
            Object::File(file) => xattr::set_fd(file, attr, value, SetMode::Any),
            Object::Dir(dir) => xattr::set_fd(dir, attr, value, SetMode::Any),
            Object::Name(dir, name) | Object::Symlink(dir, name) => {
                xattr::set(dir, name, attr, value, SetMode::Any)
            }
        }
    }

    fn xattr(self, attr: &OsStr) -> vellum_sys::Result<Option<Vec<u8>>> {
        match self {
            Object::File(file) => xattr::get_fd(file, attr),
            Object::Dir(dir) => xattr::get_fd(dir, attr),
            Object::Name(dir, name) | Object::Symlink(dir, name) => xattr::get(dir, name, attr),
        }
    }

    fn remove_xattr(self, attr: &OsStr) -> vellum_sys::Result<bool> {
        match self {
            Object::File(file) => xattr::remove_fd(file, attr),
            Object::Dir(dir) => xattr::remove_fd(dir, attr),
            Object::Name(dir, name) | Object::Symlink(dir, name) => xattr::remove(dir, name, attr),
        }
    }

    fn xattrs(self) -> vellum_sys::Result<Vec<OsString>> {
        match self {
            Object::File(file) => xattr::list_fd(file),
            Object::Dir(dir) => xattr::list_fd(dir),
            Object::Name(dir, name) | Object::Symlink(dir, name) => xattr::list(dir, name),
        }
    }
}

/// What is known about the object before its attributes are set.
pub(super) struct Situation<'a> {
    /// The entry's path in the tree, for messages.
    pub path: &'a Path,
    /// The object has its owner already.
    pub owner_right: bool,
    /// The object has its mode already.
    pub mode_right: bool,
    /// It inherited an ACL from the directory it was created in.
    pub inherited_acl: bool,
    /// It existed before and may have attributes that the entry doesn't.
    pub existed: bool,
    /// What it represents, if it is a stand-in.
    pub stand_in: Option<OverrideKind>,
}

/// The attribute rules of one target.
pub(super) struct Rules {
    pub marks: TargetMarks,
    pub privilege: Privilege,
    /// How many things were recorded instead of set.
    pub recorded: u64,
    /// What could be neither set nor recorded.
    pub left_out: LeftOut,
}

impl Rules {
    /// Sets everything that `entry` says about `object`; the times only if `times`.
    pub fn set(
        &mut self,
        object: Object<'_>,
        entry: &Entry,
        at: &Situation<'_>,
        times: bool,
    ) -> Result<()> {
        let failed = |action| {
            move |error: vellum_sys::Error| Error::Apply {
                action,
                path: at.path.to_owned(),
                source: error.source,
            }
        };
        let mut foreign = at.stand_in.is_some();
        if !at.owner_right
            && let Err(error) = object.set_owner(entry.uid, entry.gid)
        {
            foreign |= self.refused_owner(error, entry, at)?;
        }
        if at.existed {
            self.remove_others(object, entry)
                .map_err(failed("clear the attributes of"))?;
        } else if at.inherited_acl {
            for attr in [ACCESS_ACL, DEFAULT_ACL] {
                object
                    .remove_xattr(OsStr::new(attr))
                    .map_err(failed("clear the attributes of"))?;
            }
        }
        for (name, value) in &entry.xattrs {
            self.set_xattr(object, name, value, at.path)?;
        }
        if foreign {
            self.record_stat(object, entry, at)?;
            // A set-uid file must not run with the rights of a wrong owner, which it has for lack
            // of the right one.
            object
                .set_mode(entry.mode & 0o777)
                .map_err(failed("set the mode of"))?;
        } else if !at.mode_right {
            object
                .set_mode(entry.mode)
                .map_err(failed("set the mode of"))?;
        }
        if times {
            object
                .set_times(entry.mtime)
                .map_err(failed("set the times of"))?;
        }
        Ok(())
    }

    /// Returns true if the owner must be recorded instead.
    fn refused_owner(
        &mut self,
        error: vellum_sys::Error,
        entry: &Entry,
        at: &Situation<'_>,
    ) -> Result<bool> {
        let unmapped = error.is(Errno::INVAL) || error.is(Errno::OVERFLOW);
        match self.privilege {
            Privilege::Recorded if unmapped || error.is(Errno::PERM) => Ok(true),
            _ if unmapped => Err(Error::UnmappedOwner {
                path: at.path.to_owned(),
                uid: entry.uid,
                gid: entry.gid,
            }),
            _ => Err(Error::Apply {
                action: "set the owner of",
                path: at.path.to_owned(),
                source: error.source,
            }),
        }
    }

    /// Removes and returns the record of what could not be set on `object`.
    pub fn take_record(&self, object: Object<'_>, path: &Path) -> Result<Option<OverrideStat>> {
        if self.privilege == Privilege::Full {
            return Ok(None);
        }
        let name = OsStr::new(OVERRIDE_STAT);
        let failed = |error: vellum_sys::Error| Error::Xattr {
            name: OVERRIDE_STAT.to_owned(),
            path: path.to_owned(),
            source: error.source,
        };
        let Some(value) = object.xattr(name).map_err(failed)? else {
            return Ok(None);
        };
        object.remove_xattr(name).map_err(failed)?;
        // Written by us: archives can't forge it.
        Ok(OverrideStat::parse(&value).ok())
    }

    fn record_stat(&mut self, object: Object<'_>, entry: &Entry, at: &Situation<'_>) -> Result<()> {
        self.recorded += 1;
        let value = OverrideStat {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            kind: at.stand_in,
        };
        keep_record(object, OsStr::new(OVERRIDE_STAT), &value.encode(), at.path)?;
        Ok(())
    }

    fn set_xattr(
        &mut self,
        object: Object<'_>,
        name: &OsStr,
        value: &[u8],
        path: &Path,
    ) -> Result<()> {
        let stored = self.stored_name(name);
        let Err(error) = object.set_xattr(&stored, value) else {
            return Ok(());
        };
        if self.privilege == Privilege::Recorded
            && is_refusal(&error)
            && is_of_linux(name)
            && let Some(recorded) = record::recorded(name)
            && keep_record(object, &recorded, value, path)?
        {
            self.recorded += 1;
            return Ok(());
        }
        if is_refusal(&error) || is_too_large(&error) {
            self.left_out.add(|| {
                let (name, path) = (name.display(), path.display());
                let why = &error.source;
                format!("the extended attribute {name} of '{path}' ({why})")
            });
            return Ok(());
        }
        Err(Error::Xattr {
            name: name.to_string_lossy().into_owned(),
            path: path.to_owned(),
            source: error.source,
        })
    }

    /// Returns the name under which the tree stores the archive's attribute `name`.
    ///
    /// An overlay control attribute from an archive must never act as one, so it is escaped, for
    /// the dialect of the overlays that the tree is made for. Names of the other dialect are
    /// ordinary, and in a tree that is used as it is all names are.
    fn stored_name(&self, name: &OsStr) -> OsString {
        let is_record = record::original(name).is_some()
            || OVERRIDE_STAT_NAMES.iter().any(|known| name == *known);
        if self.privilege == Privilege::Recorded
            && is_record
            && let Some(recorded) = record::recorded(name)
        {
            // Records must not be forged either.
            return recorded;
        }
        match self.marks {
            TargetMarks::Overlay(prefix) | TargetMarks::Whole(prefix) => prefix.escape(name),
            TargetMarks::Plain => name.to_owned(),
        }
    }

    /// Removes the attributes that an existing directory has and the entry doesn't, but never the
    /// target's own marks.
    fn remove_others(&self, object: Object<'_>, entry: &Entry) -> vellum_sys::Result<()> {
        for name in object.xattrs()? {
            let own_mark = match self.marks {
                TargetMarks::Overlay(prefix) => name == prefix.xattr(Mark::Opaque),
                TargetMarks::Plain | TargetMarks::Whole(_) => false,
            };
            let wanted = entry
                .xattrs
                .iter()
                .any(|(wanted, _)| self.stored_name(wanted) == name);
            // A security module sets labels as it likes.
            if own_mark || wanted || name == "security.selinux" {
                continue;
            }
            object.remove_xattr(&name)?;
        }
        Ok(())
    }
}

/// The attribute can't be set for this file type, process, file system or operating system.
fn is_refusal(error: &vellum_sys::Error) -> bool {
    [Errno::PERM, Errno::OPNOTSUPP, Errno::ACCESS, Errno::INVAL]
        .iter()
        .any(|errno| error.is(*errno))
}

/// No file on Linux can have an attribute of this size, or with a name of this length.
fn is_too_large(error: &vellum_sys::Error) -> bool {
    error.is(Errno::TOOBIG) || error.is(Errno::RANGE)
}

/// Another system's attribute (`com.apple.quarantine`, `system.nfs4_acl`) would have no effect
/// here.
fn is_of_linux(name: &OsStr) -> bool {
    let known = ["user.", "trusted.", "security."];
    let name = name.as_bytes();
    known.iter().any(|kind| name.starts_with(kind.as_bytes()))
        || [ACCESS_ACL, DEFAULT_ACL]
            .iter()
            .any(|acl| name == acl.as_bytes())
}

/// Writes a record of what could not be set; false if that is refused too.
///
/// Links and pipes can't have user attributes. Their headers are in the recipe alone, so a saved
/// layer is still right. Any other failure (a full disk, a broken one) is an error.
fn keep_record(object: Object<'_>, name: &OsStr, value: &[u8], path: &Path) -> Result<bool> {
    match object.set_xattr(name, value) {
        Err(error) if error.is(Errno::PERM) || error.is(Errno::OPNOTSUPP) => Ok(false),
        Err(error) if is_too_large(&error) => Ok(false),
        Err(error) => Err(Error::Xattr {
            name: name.to_string_lossy().into_owned(),
            path: path.to_owned(),
            source: error.source,
        }),
        Ok(()) => Ok(true),
    }
}

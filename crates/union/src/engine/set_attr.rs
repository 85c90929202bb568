//! Changing attributes and xattrs. Only metadata is copied up for it; a new size is the business of `data.rs`.
//!
//! What POSIX clears when an owner changes, the upper layer's file system clears. Where owners and modes are recorded,
//! the record is changed and the inode behind it stays as it is, and what the file system would clear is cleared here.

use std::ffi::OsStr;

use vellum_format::{OverrideStat, record};
use vellum_sys::FileKind;
use vellum_sys::rooted::NewTime;
use vellum_sys::xattr::SetMode;

use crate::engine::acl::{self, Acl};
use crate::engine::at::At;
use crate::engine::copy_up::What;
use crate::engine::ids::{CAPABILITY, map_capability};
use crate::engine::nodes::{LiveNode, State};
use crate::engine::records::{self, Kept};
use crate::engine::request::{Attr, NodeId, SetAttr, SetTime};
use crate::engine::{Engine, Upper};
use crate::layer::{Layer, Records};
use crate::{Refusal, Result};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o010;

impl Engine {
    /// Changes attributes, and returns them all.
    ///
    /// The order is size, owner, mode, times, so that none undoes another. Errors: [`Refusal::UnmappedId`],
    /// [`Refusal::IsADirectory`] and [`Refusal::Invalid`] for a size of what has none, [`Refusal::ReadOnly`], `Io`; a
    /// part may have been changed then.
    pub fn set_attr(&self, id: NodeId, change: &SetAttr) -> Result<Attr> {
        let upper = self.upper()?;
        let node = self.node(id)?;
        let uid = change.uid.map(|id| self.ids.uid_stored(id)).transpose()?;
        let gid = change.gid.map(|id| self.ids.gid_stored(id)).transpose()?;
        if let Some(size_bytes) = change.size_bytes {
            match node.kind {
                FileKind::File => self.resize(&node, size_bytes, change.clear_privileges)?,
                FileKind::Dir => return Err(Refusal::IsADirectory.into()),
                _ => return Err(Refusal::Invalid.into()),
            }
        }
        let times = (new_time(change.atime), new_time(change.mtime));
        let of_owner = uid.is_some() || gid.is_some() || change.mode.is_some();
        // On a directory the bits are no privileges.
        let clear = change.clear_privileges && change.mode.is_none() && node.kind != FileKind::Dir;
        if of_owner || clear || times != (NewTime::Keep, NewTime::Keep) {
            let now = |time| matches!(time, NewTime::Keep | NewTime::Now);
            let only_now = !of_owner && now(times.0) && now(times.1);
            let _shared = self.shared();
            match only_now {
                true => self.may_add_to(&node)?,
                false => self.may_change(&node)?,
            }
        }
        if of_owner || clear || times != (NewTime::Keep, NewTime::Keep) {
            self.to_upper(&node, What::Meta)?;
        }
        let _shared = self.shared();
        let state = node.state();
        if let Some(at) = state.at().map_err(|error| upper.io(error))? {
            if of_owner || clear {
                match upper.options.records {
                    Records::Read => {
                        self.change_record(
                            upper,
                            &node,
                            &state,
                            &at,
                            (uid, gid, change.mode),
                            clear,
                        )?;
                    }
                    Records::None => change_inode(upper, &at, (uid, gid, change.mode), clear)?,
                }
            }
            if times != (NewTime::Keep, NewTime::Keep) {
                at.set_times(times.0, times.1)
                    .map_err(|error| upper.io(error))?;
            }
        }
        self.attr_in(&node, &state, None)
    }

    fn change_record(
        &self,
        upper: &Upper,
        node: &LiveNode,
        state: &State,
        at: &At,
        (uid, gid, mode): (Option<u32>, Option<u32>, Option<u32>),
        clear: bool,
    ) -> Result<()> {
        if node.kind == FileKind::Symlink && at.stat().map_err(|e| upper.io(e))?.kind == node.kind {
            // It takes no record: what can't be set is refused.
            return match uid.is_some() || gid.is_some() {
                true => at.set_owner(uid, gid).map_err(|error| upper.io(error)),
                false => Ok(()),
            };
        }
        let mut shown = self.shown_in(state, &at.stat().map_err(|error| upper.io(error))?)?;
        if uid.is_some() || gid.is_some() || clear {
            shown.uid = uid.unwrap_or(shown.uid);
            shown.gid = gid.unwrap_or(shown.gid);
            if !shown.is_dir() {
                shown.mode = without_privileges(shown.mode);
            }
        }
        shown.mode = mode.map_or(shown.mode, |mode| mode & 0o7777);
        let record: OverrideStat = records::of_stat(&shown);
        at.set_xattr(records::stat_name(), &record.encode(), SetMode::Any)
            .map_err(|error| upper.io(error))?;
        let (Some(mode), Some(acl_name)) = (mode, record::recorded(OsStr::new(acl::ACCESS))) else {
            return Ok(());
        };
        if let Some(value) = at.xattr(&acl_name).map_err(|error| upper.io(error))? {
            let value = Acl::parse(&value)?.with_mode(mode).encode();
            at.set_xattr(&acl_name, &value, SetMode::Any)
                .map_err(|error| upper.io(error))?;
        }
        Ok(())
    }

    /// Sets an xattr.
    ///
    /// Overlay marks are stored escaped, so that a union on top of this one can have its own. Errors:
    /// [`Refusal::Unsupported`] if the union has none, [`Refusal::NotPermitted`] for names that are records here,
    /// [`Refusal::UnmappedId`] and [`Refusal::Invalid`] for ACLs, `Io` as the file system says (EEXIST, ENODATA,
    /// ENOSPC, ERANGE).
    pub fn set_xattr(&self, id: NodeId, name: &OsStr, value: &[u8], mode: SetMode) -> Result<()> {
        let upper = self.upper()?;
        let kept = self.kept(upper, name)?;
        let node = self.node(id)?;
        let value = self.value_stored(name, value)?;
        {
            let _shared = self.shared();
            self.may_change(&node)?;
        }
        self.to_upper(&node, What::Meta)?;
        let _shared = self.shared();
        let state = node.state();
        let at = state.at().map_err(|error| upper.io(error))?;
        let at = at.ok_or(Refusal::Stale)?;
        if !kept.record_only {
            match (at.set_xattr(&kept.name, &value, mode), &kept.record) {
                (Ok(()), None) => return Ok(()),
                (Ok(()), Some(record)) => {
                    // One that was refused before, and recorded, would hide this.
                    return match at.remove_xattr(record) {
                        // A symbolic link can't have one.
                        Err(error) if error.is_denied() => Ok(()),
                        removed => removed.map(drop).map_err(|error| upper.io(error)),
                    };
                }
                (Err(error), Some(_)) if error.is_denied() || error.is_unsupported() => {}
                (Err(error), _) => return Err(upper.io(error)),
            }
        }
        let record = kept.record.ok_or(Refusal::Unsupported)?;
        if name == acl::ACCESS {
            let shown = Acl::parse(&value)?.shown_mode();
            let stat = at.stat().map_err(|error| upper.io(error))?;
            let mode = self.shown_in(&state, &stat)?.mode & !0o777 | shown;
            self.change_record(upper, &node, &state, &at, (None, None, Some(mode)), false)?;
        }
        at.set_xattr(&record, &value, mode)
            .map_err(|error| upper.io(error))
    }

    /// Removes an xattr. Errors: as [`Engine::set_xattr`], and [`Refusal::NoAttribute`].
    pub fn remove_xattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        let upper = self.upper()?;
        let kept = self.kept(upper, name)?;
        let node = self.node(id)?;
        {
            let _shared = self.shared();
            // Nothing is copied up for what is not there.
            if self.xattr_in(&node.state(), name)?.is_none() {
                return Err(Refusal::NoAttribute.into());
            }
            self.may_change(&node)?;
        }
        self.to_upper(&node, What::Meta)?;
        let _shared = self.shared();
        let state = node.state();
        let at = state.at().map_err(|error| upper.io(error))?;
        let at = at.ok_or(Refusal::Stale)?;
        let mut removed = false;
        if let Some(record) = &kept.record {
            removed = match at.remove_xattr(record) {
                // A symbolic link has none.
                Err(error) if error.is_denied() => false,
                removed => removed.map_err(|error| upper.io(error))?,
            };
        }
        match at.remove_xattr(&kept.name) {
            Ok(also) => removed |= also,
            Err(error) if removed && error.is_denied() => {}
            Err(error) => return Err(upper.io(error)),
        }
        match removed {
            true => Ok(()),
            false => Err(Refusal::NoAttribute.into()),
        }
    }

    fn kept(&self, upper: &Upper, name: &OsStr) -> Result<Kept> {
        match self.no_xattrs {
            true => Err(Refusal::Unsupported.into()),
            false => records::kept(&upper.layer.dialect(), name),
        }
    }

    /// Maps the ids in an ACL, and the one in a capability.
    fn value_stored(&self, name: &OsStr, value: &[u8]) -> Result<Vec<u8>> {
        if name == CAPABILITY && !self.ids.are_plain() {
            return map_capability(value, |id| self.ids.acl_uid_stored(id));
        }
        let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
        if !is_acl || self.ids.are_plain() {
            return Ok(value.to_vec());
        }
        let user = |id| self.ids.acl_uid_stored(id);
        let group = |id| self.ids.acl_gid_stored(id);
        Ok(Acl::parse(value)?.map_ids(user, group)?.encode())
    }
}

fn change_inode(
    upper: &Upper,
    at: &At,
    (uid, gid, mode): (Option<u32>, Option<u32>, Option<u32>),
    clear: bool,
) -> Result<()> {
    let io = |error| upper.io(error);
    if uid.is_some() || gid.is_some() {
        at.set_owner(uid, gid).map_err(io)?;
    }
    if let Some(mode) = mode {
        at.set_mode(mode).map_err(io)?;
    } else if clear {
        let mode = at.stat().map_err(io)?.mode;
        if without_privileges(mode) != mode {
            at.set_mode(without_privileges(mode)).map_err(io)?;
        }
    }
    Ok(())
}

/// Returns a mode without setuid, and without setgid where that gives a group's rights (elsewhere it means locking).
pub(crate) fn without_privileges(mode: u32) -> u32 {
    match mode & GROUP_EXECUTES {
        0 => mode & !SETUID,
        _ => mode & !(SETUID | SETGID),
    }
}

fn new_time(time: Option<SetTime>) -> NewTime {
    match time {
        None => NewTime::Keep,
        Some(SetTime::Now) => NewTime::Now,
        Some(SetTime::To(time)) => NewTime::To(time),
    }
}

//! Changing attributes and xattrs. Only metadata is copied up for it; `data.rs` changes sizes.
//!
//! A change of owner or content clears privileges (setuid, setgid, capabilities). This is done
//! here, before the change: the file system below would check this process's rights, not the
//! caller's. Where owners and modes are recorded, the record is changed and the inode behind it
//! stays as it is.

use std::ffi::OsStr;

use vellum_format::{OverrideStat, record};
use vellum_sys::FileKind;
use vellum_sys::rooted::NewTime;
use vellum_sys::xattr::SetMode;

use crate::at::At;
use crate::engine::Upper;
use crate::engine::acl::{self, Acl};
use crate::engine::action::{Action, Attrs};
use crate::engine::depth::Depth;
use crate::engine::nodes::LiveNode;
use crate::engine::nodes::gate::Placed;
use crate::engine::owners::{CAPABILITY, map_capability};
use crate::engine::records::{self, Kept};
use crate::engine::request::{Attr, NodeId, SetAttr, SetTime};
use crate::error::{On, Site};
use crate::layer::{Layer, Records};
use crate::{Refusal, Result};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o010;

impl Action<'_> {
    /// Changes attributes, and returns all of them.
    ///
    /// The order is size, owner, mode, times, so that none undoes another. Errors:
    /// [`Refusal::UnmappedId`], [`Refusal::IsADirectory`] and [`Refusal::Invalid`] for the size of
    /// a node without one, [`Refusal::ReadOnly`], `Io`; some attributes may have changed then.
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
        // On a directory these bits are not privileges.
        let clear = change.clear_privileges && change.mode.is_none() && node.kind != FileKind::Dir;
        if of_owner || clear || times != (NewTime::Keep, NewTime::Keep) {
            let now = |time| matches!(time, NewTime::Keep | NewTime::Now);
            let only_now = !of_owner && now(times.0) && now(times.1);
            let gate = self.shared();
            match only_now {
                true => self.may_add_to(&node, &gate)?,
                false => self.may_change(&node, &gate)?,
            }
        }
        if of_owner || clear || times != (NewTime::Keep, NewTime::Keep) {
            self.to_upper(&node, Depth::Meta)?;
        }
        self.touch(node.id, Attrs::ALL);
        let gate = self.shared();
        let state = node.state();
        let state = state.placed(&gate);
        if let Some(at) = state.at().on(upper)? {
            if of_owner || clear {
                let new = (uid, gid, change.mode);
                match upper.options.records {
                    Records::Read => self.change_record(upper, &node, (state, &at), new, clear)?,
                    Records::None => self.change_inode(upper, &at, new, clear)?,
                }
            }
            if times != (NewTime::Keep, NewTime::Keep) {
                at.set_times(times.0, times.1).on(upper)?;
            }
        }
        self.attr_in(&node, state, None)
    }

    fn change_record(
        &self,
        upper: &Upper,
        node: &LiveNode,
        (state, at): (Placed<'_>, &At),
        (uid, gid, mode): (Option<u32>, Option<u32>, Option<u32>),
        clear: bool,
    ) -> Result<()> {
        if node.kind == FileKind::Symlink && at.stat().on(upper)?.kind == node.kind {
            // A symbolic link can't have a record: refuse what can't be set.
            return match uid.is_some() || gid.is_some() {
                true => at.set_owner(uid, gid).on(upper),
                false => Ok(()),
            };
        }
        let mut shown = self.shown_in(state, &at.stat().on(upper)?)?;
        if uid.is_some() || gid.is_some() || clear {
            if !shown.is_dir() {
                shown.mode = self.without_privileges(shown.mode, shown.gid);
                remove_capability_record(upper, at)?;
            }
            shown.uid = uid.unwrap_or(shown.uid);
            shown.gid = gid.unwrap_or(shown.gid);
        }
        shown.mode = mode.map_or(shown.mode, |mode| mode & 0o7777);
        let record: OverrideStat = records::of_stat(&shown);
        at.set_xattr(records::stat_name(), &record.encode(), SetMode::Any)
            .on(upper)?;
        let (Some(mode), Some(acl_name)) = (mode, record::recorded(OsStr::new(acl::ACCESS))) else {
            return Ok(());
        };
        if let Some(value) = at.xattr(&acl_name).on(upper)? {
            let value = Acl::parse(&value)?.with_mode(mode).encode();
            at.set_xattr(&acl_name, &value, SetMode::Any).on(upper)?;
        }
        Ok(())
    }

    /// Sets an xattr.
    ///
    /// Overlay marks are stored escaped, so that a union on top of this one can have its own.
    /// Errors: [`Refusal::Unsupported`] if the union has no xattrs, [`Refusal::NotPermitted`] for
    /// names that are records here, [`Refusal::UnmappedId`] and [`Refusal::Invalid`] for ACLs, `Io`
    /// for the file system's errors (EEXIST, ENODATA, ENOSPC, ERANGE).
    pub fn set_xattr(&self, id: NodeId, name: &OsStr, value: &[u8], mode: SetMode) -> Result<()> {
        let upper = self.upper()?;
        let kept = self.kept(upper, name)?;
        let node = self.node(id)?;
        let value = self.value_stored(name, value)?;
        self.may_change(&node, &self.shared())?;
        self.to_upper(&node, Depth::Meta)?;
        // An ACL grants access, and the mode is its short form.
        self.touch(
            node.id,
            match name == acl::ACCESS {
                true => Attrs::CTIME | Attrs::MODE,
                false => Attrs::CTIME,
            },
        );
        let gate = self.shared();
        let state = node.state();
        let state = state.placed(&gate);
        let at = state.at().on(upper)?;
        let at = at.ok_or(Refusal::Stale)?;
        if !kept.record_only {
            match (at.set_xattr(&kept.name, &value, mode), &kept.record) {
                (Ok(()), None) => return Ok(()),
                (Ok(()), Some(record)) => {
                    // A record of an earlier value that was refused would hide this one.
                    return match at.remove_xattr(record) {
                        // A symbolic link can't have one.
                        Err(error) if error.is_denied() => Ok(()),
                        removed => removed.map(drop).on(upper),
                    };
                }
                (Err(error), Some(_)) if error.is_denied() || error.is_unsupported() => {}
                (Err(error), _) => return Err(upper.io(error)),
            }
        }
        let record = kept.record.ok_or(Refusal::Unsupported)?;
        if name == acl::ACCESS {
            let shown = Acl::parse(&value)?.shown_mode();
            let stat = at.stat().on(upper)?;
            let mode = self.shown_in(state, &stat)?.mode & !0o777 | shown;
            self.change_record(upper, &node, (state, &at), (None, None, Some(mode)), false)?;
        }
        at.set_xattr(&record, &value, mode).on(upper)
    }

    /// Removes an xattr. Errors: as `Action::set_xattr`, and [`Refusal::NoAttribute`].
    pub fn remove_xattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        let upper = self.upper()?;
        let kept = self.kept(upper, name)?;
        let node = self.node(id)?;
        {
            let gate = self.shared();
            // Don't copy up for an xattr that does not exist.
            if self.xattr_in(node.state().placed(&gate), name)?.is_none() {
                return match name == acl::ACCESS || name == acl::DEFAULT {
                    // As in the kernel's file systems: there is no ACL afterwards.
                    true => Ok(()),
                    false => Err(Refusal::NoAttribute.into()),
                };
            }
            self.may_change(&node, &gate)?;
        }
        self.to_upper(&node, Depth::Meta)?;
        self.touch(node.id, Attrs::CTIME);
        let gate = self.shared();
        let state = node.state();
        let state = state.placed(&gate);
        let at = state.at().on(upper)?;
        let at = at.ok_or(Refusal::Stale)?;
        if name == CAPABILITY && self.xattr_in(state, name)?.is_none() {
            // It was not copied up, see `carry`.
            return Ok(());
        }
        let mut removed = false;
        if let Some(record) = &kept.record {
            removed = match at.remove_xattr(record) {
                // A symbolic link has none.
                Err(error) if error.is_denied() => false,
                removed => removed.on(upper)?,
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

    /// Clears the privileges of a file whose bytes are about to change, unless the caller may keep
    /// them, and returns its attributes.
    ///
    /// Errors: as [`Action::set_attr`].
    pub fn drop_privileges(&self, id: NodeId) -> Result<Attr> {
        let upper = self.upper()?;
        let node = self.node(id)?;
        let now = self.attr(id)?;
        if node.is_dir() || now.mode & (SETUID | SETGID) == 0 || self.asker.keeps_privileges() {
            return Ok(now);
        }
        self.may_add_to(&node, &self.shared())?;
        self.to_upper(&node, Depth::Meta)?;
        self.take_privileges(upper, &node, || false)?;
        self.attr(id)
    }

    /// Clears what a change of a file's bytes clears, before the change: setuid, setgid, the
    /// capability. `keeps` is called only if there is something that the caller might keep.
    ///
    /// The file is in the upper layer. No lock is held. A capability that is not a record is
    /// cleared by the change itself: no file system keeps it, not even for root.
    pub(crate) fn take_privileges(
        &self,
        upper: &Upper,
        node: &LiveNode,
        keeps: impl FnOnce() -> bool,
    ) -> Result<()> {
        let records = upper.options.records == Records::Read;
        let gate = self.shared();
        let state = node.state();
        let state = state.placed(&gate);
        let Some(at) = state.at().on(upper)? else {
            return Ok(());
        };
        if records && remove_capability_record(upper, &at)? {
            self.touch(node.id, Attrs::CTIME);
        }
        let stored = at.stat().on(upper)?;
        let shown = self.shown_in(state, &stored)?;
        if shown.mode & (SETUID | SETGID) == 0 || keeps() {
            return Ok(());
        }
        let left = self.without_privileges(shown.mode, shown.gid);
        if left == shown.mode {
            return Ok(());
        }
        self.touch(node.id, Attrs::MODE | Attrs::CTIME);
        match records {
            true => self.change_record(upper, node, (state, &at), (None, None, Some(left)), false),
            false => at.set_mode(left).on(upper),
        }
    }

    fn change_inode(
        &self,
        upper: &Upper,
        at: &At,
        (uid, gid, mode): (Option<u32>, Option<u32>, Option<u32>),
        clear: bool,
    ) -> Result<()> {
        let left = match clear {
            true => {
                let before = at.stat().on(upper)?;
                self.without_privileges(before.mode, before.gid)
            }
            false => 0o7777,
        };
        if uid.is_some() || gid.is_some() {
            at.set_owner(uid, gid).on(upper)?;
        }
        if let Some(mode) = mode {
            return at.set_mode(mode).on(upper);
        }
        if clear {
            let now = at.stat().on(upper)?.mode;
            if now & left != now {
                at.set_mode(now & left).on(upper)?;
            }
        }
        Ok(())
    }

    /// Returns the mode of a file after a change by this caller. The file belongs to the group
    /// `gid` (as stored). Setgid stays only if it grants no group rights (it means locking then),
    /// and for members of the group.
    fn without_privileges(&self, mode: u32, gid: u32) -> u32 {
        let left = mode & !SETUID;
        if mode & SETGID == 0 {
            return left;
        }
        let is_in_group = || {
            let shown = self.ids.gid_shown(gid);
            shown.is_ok_and(|gid| self.asker.is_in_group(gid))
        };
        match mode & GROUP_EXECUTES == 0 && is_in_group() {
            true => left,
            false => left & !SETGID,
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

/// Removes the record of a capability; returns whether there was one.
fn remove_capability_record(upper: &Upper, at: &At) -> Result<bool> {
    let Some(name) = record::recorded(OsStr::new(CAPABILITY)) else {
        return Ok(false);
    };
    match at.remove_xattr(&name) {
        // A symbolic link has none, and some file systems have none at all.
        Err(error) if error.is_denied() || error.is_unsupported() => Ok(false),
        removed => removed.on(upper),
    }
}

fn new_time(time: Option<SetTime>) -> NewTime {
    match time {
        None => NewTime::Keep,
        Some(SetTime::Now) => NewTime::Now,
        Some(SetTime::To(time)) => NewTime::To(time),
    }
}

//! Requests about attributes: stat, chmod and its kin, xattrs, flags of chattr(1), the room of the file system.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use vellum_sys::Timespec;
use vellum_sys::xattr::SetMode;
use vellum_union::engine::{Caller, NodeId, SetAttr, SetTime};

use super::{Answer, Ops, attr, caller};
use crate::wire::Header;
use crate::wire::flags::setattr;
use crate::wire::reply::{self, Reply};
use crate::wire::request;

const SETGID: u32 = 0o2000;
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;

impl Ops {
    pub(super) fn get_attr(&self, node: NodeId, reply: &mut Reply<'_>) -> Answer {
        let now = self.engine.attr(node)?;
        reply.attr_for(self.timeout, &attr(&now));
        Ok(())
    }

    pub(super) fn set_attr(
        &self,
        node: NodeId,
        set: &request::SetAttr,
        caller: Caller,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let now = self.engine.set_attr(node, &wanted(set), &caller)?;
        reply.attr_for(self.timeout, &attr(&now));
        Ok(())
    }

    pub(super) fn stat_fs(&self, reply: &mut Reply<'_>) -> Answer {
        let room = self.engine.statfs()?;
        reply.stat_fs(&reply::StatFs {
            blocks: room.blocks,
            blocks_free: room.blocks_free,
            blocks_available: room.blocks_available,
            inodes: room.inodes,
            inodes_free: room.inodes_free,
            block_bytes: room.block_bytes,
            name_max_bytes: room.name_max_bytes,
        });
        Ok(())
    }

    pub(super) fn set_xattr(
        &self,
        header: &Header,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        acl_kills_setgid: bool,
    ) -> Answer {
        let node = NodeId(header.node);
        let mode = match flags {
            0 => SetMode::Any,
            XATTR_CREATE => SetMode::Create,
            XATTR_REPLACE => SetMode::Replace,
            _ => return Err(Errno::INVAL.into()),
        };
        if acl_kills_setgid {
            // First: a crash in between must not leave the bit to those the ACL lets in.
            let mode = self.engine.attr(node)?.mode;
            if mode & SETGID != 0 {
                let set = SetAttr {
                    mode: Some(mode & !SETGID),
                    ..SetAttr::default()
                };
                self.engine.set_attr(node, &set, &caller(header, 0))?;
            }
        }
        Ok(self.engine.set_xattr(node, name, value, mode)?)
    }

    pub(super) fn get_xattr(
        &self,
        node: NodeId,
        name: &OsStr,
        room: u32,
        reply: &mut Reply<'_>,
    ) -> Answer {
        match self.engine.xattr(node, name)? {
            Some(value) => put_sized(&value, room, reply),
            None => Err(Errno::NODATA.into()),
        }
    }

    pub(super) fn list_xattr(&self, node: NodeId, room: u32, reply: &mut Reply<'_>) -> Answer {
        let mut names = Vec::new();
        for name in self.engine.xattr_names(node)? {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        put_sized(&names, room, reply)
    }
}

/// Answers GETXATTR and LISTXATTR: the length if there is no room, the value if there is enough.
fn put_sized(value: &[u8], room: u32, reply: &mut Reply<'_>) -> Answer {
    match room as usize {
        0 => reply.count(value.len() as u32),
        room if room < value.len() => return Err(Errno::RANGE.into()),
        _ => reply.bytes(value),
    }
    Ok(())
}

/// Returns what a SETATTR asks for.
fn wanted(set: &request::SetAttr) -> SetAttr {
    let has = |bit: u32| set.valid & bit != 0;
    let time = |given: u32, now: u32, (sec, nsec): (i64, u32)| match (has(given), has(now)) {
        (_, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::To(Timespec::new(sec, nsec))),
        (false, false) => None,
    };
    let owner = has(setattr::UID) || has(setattr::GID);
    SetAttr {
        mode: has(setattr::MODE).then_some(set.mode & 0o7777),
        uid: has(setattr::UID).then_some(set.uid),
        gid: has(setattr::GID).then_some(set.gid),
        size_bytes: has(setattr::SIZE).then_some(set.size_bytes),
        atime: time(setattr::ATIME, setattr::ATIME_NOW, set.atime),
        mtime: time(setattr::MTIME, setattr::MTIME_NOW, set.mtime),
        clear_privileges: owner || has(setattr::KILL_SUIDGID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_owner_takes_privileges_away() {
        let mut set = request::SetAttr {
            valid: setattr::UID,
            size_bytes: 0,
            atime: (0, 0),
            mtime: (0, 0),
            mode: 0,
            uid: 5,
            gid: 6,
        };
        let got = wanted(&set);
        assert!(got.clear_privileges);
        assert_eq!((got.uid, got.gid, got.mode), (Some(5), None, None));
        set.valid = setattr::SIZE;
        assert!(!wanted(&set).clear_privileges);
        set.valid = setattr::SIZE | setattr::KILL_SUIDGID;
        assert!(wanted(&set).clear_privileges);
        set.valid = setattr::ATIME | setattr::ATIME_NOW;
        assert_eq!(wanted(&set).atime, Some(SetTime::Now));
    }
}

//! Requests about attributes: stat, chmod and similar, xattrs, flags of chattr(1), file system
//! space.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use vellum_sys::Timespec;
use vellum_sys::credentials::Credentials;
use vellum_sys::xattr::SetMode;
use vellum_union::engine::{NodeId, SetAttr, SetTime};

use super::known::Call;
use super::{Answer, Ops, attr};
use crate::passthrough::node_of;
use crate::wire::Header;
use crate::wire::flags::setattr;
use crate::wire::reply::{self, Reply};
use crate::wire::request::{self, Ioctl};

const SETGID: u32 = 0o2000;
const SETUID_SETGID: u32 = 0o6000;
const CAPABILITY: &str = "security.capability";
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;

impl Ops {
    pub(super) fn get_attr(&self, node: NodeId, reply: &mut Reply<'_>) -> Answer {
        let now = self.engine.attr(node)?;
        reply.attr_for(self.attr_valid(node), &attr(&now));
        Ok(())
    }

    pub(super) fn set_attr(
        &self,
        call: &Call<'_>,
        set: &request::SetAttr,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let node = node_of(call.header.node);
        let wanted = wanted(set);
        if wanted.mode.is_some_and(|mode| mode & SETUID_SETGID != 0) {
            self.may_give_privileges(call.header)?;
        }
        let now = match set.valid & setattr::FIELDS {
            // This is how the kernel says, before bytes change, that privileges must be cleared. A
            // chown(2) without an owner looks the same; if its caller may keep them, it clears
            // nothing.
            0 => call.act(|to| to.drop_privileges(node))?,
            _ => call.act(|to| to.set_attr(node, &wanted))?,
        };
        reply.attr_for(self.attr_valid(node), &attr(&now));
        Ok(())
    }

    /// Refuses to give a file privileges through a number that is no longer in use. When a process
    /// writes through the kernel by the other number, privileges are cleared only if the kernel
    /// knows of them under that number. If the file is reached by name, the kernel comes again with
    /// that number.
    fn may_give_privileges(&self, header: &Header) -> Answer {
        match &self.passthrough {
            Some(passthrough) if passthrough.is_old(header.node) => Err(Errno::STALE.into()),
            _ => Ok(()),
        }
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
        call: &Call<'_>,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        acl_kills_setgid: bool,
    ) -> Answer {
        let node = node_of(call.header.node);
        let mode = match flags {
            0 => SetMode::Any,
            XATTR_CREATE => SetMode::Create,
            XATTR_REPLACE => SetMode::Replace,
            _ => return Err(Errno::INVAL.into()),
        };
        if name == CAPABILITY {
            self.may_give_privileges(call.header)?;
        }
        call.act(|to| {
            if acl_kills_setgid {
                // First: a crash in between must not leave the bit to the users the ACL lets in.
                let mode = to.attr(node)?.mode;
                if mode & SETGID != 0 {
                    let set = SetAttr {
                        mode: Some(mode & !SETGID),
                        ..SetAttr::default()
                    };
                    to.set_attr(node, &set)?;
                }
            }
            to.set_xattr(node, name, value, mode)
        })
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

    /// Attributes that begin with `trusted.` are shown only to the administrator, as everywhere;
    /// the kernel does not filter them from listings here.
    pub(super) fn list_xattr(&self, call: &Call<'_>, room: u32, reply: &mut Reply<'_>) -> Answer {
        let own = self.engine.xattr_names(node_of(call.header.node))?;
        let is_trusted = |name: &OsString| name.as_bytes().starts_with(b"trusted.");
        let hide = own.iter().any(is_trusted)
            && !Credentials::of_thread(call.header.pid).is_some_and(|caller| caller.sees_trusted());
        let mut names = Vec::new();
        for name in own.iter().filter(|name| !(hide && is_trusted(name))) {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        put_sized(&names, room, reply)
    }

    pub(super) fn ioctl(
        &self,
        call: &Call<'_>,
        ioctl: &Ioctl<'_>,
        reply: &mut Reply<'_>,
    ) -> Answer {
        let node = node_of(call.header.node);
        let asked = |bytes: usize| match ioctl.out_size_bytes as usize >= bytes {
            true => Ok(()),
            false => Err(Errno::INVAL),
        };
        match ioctl.command {
            GET_FLAGS => {
                asked(4)?;
                let flags = self.engine.flags(node)?;
                reply.ioctl(0);
                reply.u32(flags);
            }
            SET_FLAGS => {
                let wanted = first_u32(ioctl.data)?;
                call.act(|to| to.set_flags(node, wanted))?;
                reply.ioctl(0);
            }
            GET_FSX => {
                asked(FSX_BYTES)?;
                let flags = self.engine.flags(node)?;
                let project = self.engine.project(node)?;
                reply.ioctl(0);
                reply.u32(fsx_of(flags));
                reply.bytes(&[0; FSX_PROJECT - 4]);
                reply.u32(project);
                reply.bytes(&[0; FSX_BYTES - FSX_PROJECT - 4]);
            }
            SET_FSX => {
                // Bits that only the other form has stay as they are.
                let now = self.engine.flags(node)?;
                let known = FSX_BITS.iter().fold(0, |all, (flag, _)| all | flag);
                let wanted = flags_of(first_u32(ioctl.data)?);
                // Extent sizes belong to the file system underneath. The number of extents is
                // read-only.
                if fsx_field(ioctl.data, 4)? != 0 || fsx_field(ioctl.data, FSX_PROJECT + 4)? != 0 {
                    return Err(Errno::OPNOTSUPP.into());
                }
                let project = fsx_field(ioctl.data, FSX_PROJECT)?;
                call.act(|to| {
                    to.set_project(node, project)?;
                    to.set_flags(node, (now & !known) | wanted)
                })?;
                reply.ioctl(0);
            }
            _ => return Err(Errno::NOTTY.into()),
        }
        Ok(())
    }
}

const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_FSX: u32 = 0x801c_581f;
const SET_FSX: u32 = 0x401c_5820;
/// Length of struct fsxattr.
const FSX_BYTES: usize = 28;
/// Offset of the project number in it.
const FSX_PROJECT: usize = 12;
/// The bits that both ioctls have: as FS_IOC_GETFLAGS says them, and as FS_IOC_FSGETXATTR does.
const FSX_BITS: [(u32, u32); 6] = [
    (0x10, 0x8),                // immutable
    (0x20, 0x10),               // append only
    (0x8, 0x20),                // synchronous
    (0x80, 0x40),               // no atime
    (0x40, 0x80),               // no dump
    (0x2000_0000, 0x0000_0200), // children inherit the project
];

fn fsx_of(flags: u32) -> u32 {
    let set = FSX_BITS.iter().filter(|(flag, _)| flags & flag != 0);
    set.fold(0, |all, (_, fsx)| all | fsx)
}

fn flags_of(fsx: u32) -> u32 {
    let set = FSX_BITS.iter().filter(|(_, bit)| fsx & bit != 0);
    set.fold(0, |all, (flag, _)| all | flag)
}

fn fsx_field(data: &[u8], at: usize) -> Result<u32, Errno> {
    first_u32(data.get(at..).ok_or(Errno::INVAL)?)
}

fn first_u32(data: &[u8]) -> Result<u32, Errno> {
    match data.first_chunk() {
        Some(bytes) => Ok(u32::from_ne_bytes(*bytes)),
        None => Err(Errno::INVAL),
    }
}

/// Answers GETXATTR and LISTXATTR: the length if no buffer is given, the value if the buffer is
/// large enough.
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
        // An empty request asks for privileges to be cleared: the kernel sends it before it writes
        // through a backing file, allocates or copies a range for a caller that may not keep them
        // (`file_remove_privs`, with HANDLE_KILLPRIV_V2).
        clear_privileges: owner || has(setattr::KILL_SUIDGID) || set.valid == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_survive_the_other_form() {
        for (flag, fsx) in FSX_BITS {
            assert_eq!(fsx_of(flag), fsx);
            assert_eq!(flags_of(fsx), flag);
        }
    }

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
        set.valid = 0;
        assert!(wanted(&set).clear_privileges);
        set.valid = setattr::ATIME | setattr::ATIME_NOW;
        assert_eq!(wanted(&set).atime, Some(SetTime::Now));
    }
}

//! The mount table through listmount(2) and statmount(2), which return only what is requested.
//!
//! Both came with Linux 6.8; what is needed here is complete since 6.13 (sources and subtypes). An
//! older kernel silently leaves unknown fields out of its answer, so a table in which no mount has
//! a source is not trusted: see [`Unusable`].
//!
//! Mounts are identified by a unique id that is never reused. A mount that goes between the list
//! and the request is left out, as it would be a moment later. Neither libc nor rustix has these
//! calls, so their structures are defined here.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::{FsOptions, Known, Mount, Table, os};

/// The kernel lacks these calls, returns too little, or they are forbidden (in containers by a
/// seccomp filter, with EPERM or ENOSYS). The other way to read the table gives the same answer.
#[derive(Debug)]
pub(super) struct Unusable;

/// `struct mnt_id_req` of linux/mount.h in its first version; the kernel recognises it by its size.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mnt_id: u64,
    /// listmount: the id after which to continue; statmount: the requested fields.
    param: u64,
}

/// The fixed part of `struct statmount` of linux/mount.h, 512 bytes on every kernel; NUL-terminated
/// strings follow it, and are given here as offsets from its end.
#[repr(C)]
#[derive(Clone, Copy)]
struct Answer {
    size: u32,
    mnt_opts: u32,
    mask: u64,
    sb_dev_major: u32,
    sb_dev_minor: u32,
    sb_magic: u64,
    sb_flags: u32,
    fs_type: u32,
    mnt_id: u64,
    mnt_parent_id: u64,
    mnt_id_old: u32,
    mnt_parent_id_old: u32,
    mnt_attr: u64,
    mnt_propagation: u64,
    mnt_peer_group: u64,
    mnt_master: u64,
    propagate_from: u64,
    mnt_root: u32,
    mnt_point: u32,
    mnt_ns_id: u64,
    fs_subtype: u32,
    sb_source: u32,
    spare: [u64; 48],
}

const _: () = assert!(
    size_of::<Request>() == 24
        && size_of::<Answer>() == 512
        && offset_of!(Answer, mnt_id) == 40
        && offset_of!(Answer, propagate_from) == 96
        && offset_of!(Answer, sb_source) == 124
);

// The syscall numbers, which libc lacks: the same on every architecture except MIPS, where these
// numbers are not syscalls (ENOSYS).
const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;

/// listmount's value for "the caller's root".
const ROOT: u64 = u64::MAX;

// The fields of statmount.
const SB_BASIC: u64 = 0x1;
const MNT_BASIC: u64 = 0x2;
const PROPAGATE_FROM: u64 = 0x4;
const MNT_ROOT: u64 = 0x8;
const MNT_POINT: u64 = 0x10;
const FS_TYPE: u64 = 0x20;
const MNT_OPTS: u64 = 0x80;
const FS_SUBTYPE: u64 = 0x100;
const SB_SOURCE: u64 = 0x200;

/// Everything but the options of the file system.
const ALL: u64 =
    SB_BASIC | MNT_BASIC | PROPAGATE_FROM | MNT_ROOT | MNT_POINT | FS_TYPE | FS_SUBTYPE | SB_SOURCE;

/// Without these there is no usable mount.
const NEEDED: u64 = SB_BASIC | MNT_BASIC | MNT_ROOT | FS_TYPE;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8).
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Reads the mounts this process sees.
pub(super) fn read() -> Result<Table, Unusable> {
    read_in_steps(ALL, 1024, FIRST_BYTES)
}

/// As [`read`], requesting the fields `wanted`, for `step` mounts at a time, with a buffer of
/// initially `bytes`.
fn read_in_steps(wanted: u64, step: usize, bytes: usize) -> Result<Table, Unusable> {
    let mut asker = Asker::new(bytes);
    let mut mounts = Vec::new();
    let mut has_sources = false;
    for id in list(step)? {
        let Some(told) = asker.ask(id, wanted).map_err(|_| Unusable)? else {
            continue;
        };
        has_sources |= told.answer.mask & SB_SOURCE != 0;
        mounts.extend(told.mount()?);
    }
    match has_sources {
        true => Ok(Table::new(mounts)),
        false => Err(Unusable),
    }
}

/// Returns the mount that `fd` lies on; `None` if it is not among those this process sees.
pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Option<Mount>, Unusable> {
    // Without a request to the file system, which may no longer answer.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let seen = rustix::fs::statx(fd, "", flags, MNT_ID_UNIQUE).map_err(|_| Unusable)?;
    if seen.stx_mask & MNT_ID_UNIQUE.bits() == 0 {
        return Err(Unusable);
    }
    match Asker::new(FIRST_BYTES).ask(seen.stx_mnt_id, ALL) {
        Ok(Some(told)) if told.answer.mask & SB_SOURCE == 0 => Err(Unusable),
        Ok(Some(told)) => told.mount(),
        Ok(None) => Ok(None),
        Err(_) => Err(Unusable),
    }
}

/// Returns the options of the file system of mount `id`. Errors: ENOENT if it is gone.
pub(super) fn options(id: u64) -> io::Result<FsOptions> {
    let mut asker = Asker::new(FIRST_BYTES);
    let told = asker.ask(id, SB_BASIC | MNT_OPTS)?.ok_or(Errno::NOENT)?;
    // In the order of the table's text: those that every file system has come first.
    let mut all = Vec::new();
    let common: [(u32, &[u8]); 3] = [
        (1 << 4, b"sync"),
        (1 << 7, b"dirsync"),
        (1 << 25, b"lazytime"),
    ];
    let set = common
        .iter()
        .filter(|(bit, _)| told.answer.sb_flags & bit != 0);
    all.extend(set.map(|(_, name)| *name));
    all.extend(told.string(MNT_OPTS, told.answer.mnt_opts));
    Ok(FsOptions(OsString::from_vec(all.join(&b','))))
}

/// Returns the ids of all mounts that can be reached from this process's root, in the kernel's
/// order.
fn list(step: usize) -> Result<Vec<u64>, Unusable> {
    let mut ids: Vec<u64> = Vec::new();
    loop {
        let known = ids.len();
        let request = Request {
            size: size_of::<Request>() as u32,
            spare: 0,
            mnt_id: ROOT,
            param: ids.last().copied().unwrap_or(0),
        };
        ids.resize(known + step, 0);
        // SAFETY: the kernel reads `size` bytes of the request, which is laid out as struct
        // mnt_id_req, and writes at most `step` ids after the known ones, into space just allocated
        // for that many. Both outlive the call.
        let count = unsafe {
            libc::syscall(
                SYS_LISTMOUNT,
                &raw const request,
                ids[known..].as_mut_ptr(),
                step,
                0,
            )
        };
        let count = usize::try_from(count).map_err(|_| Unusable)?;
        ids.truncate(known + count);
        if count < step {
            return Ok(ids);
        }
    }
}

/// Queries one mount after the other, with one buffer.
struct Asker {
    buffer: Vec<u8>,
}

/// One answer, with its strings.
struct Told<'b> {
    answer: Answer,
    strings: &'b [u8],
}

/// Long enough for two long paths.
const FIRST_BYTES: usize = 16 << 10;

/// An overlay's options are a few MiB at most.
const MOST_BYTES: usize = 64 << 20;

impl Asker {
    /// Creates one whose buffer has `bytes`, at least the size of an [`Answer`], and grows as
    /// needed.
    fn new(bytes: usize) -> Self {
        Asker {
            buffer: vec![0; bytes],
        }
    }

    /// Requests the fields `wanted` of mount `id`; `None` if it is gone.
    fn ask(&mut self, id: u64, wanted: u64) -> io::Result<Option<Told<'_>>> {
        let request = Request {
            size: size_of::<Request>() as u32,
            spare: 0,
            mnt_id: id,
            param: wanted,
        };
        loop {
            // SAFETY: the kernel reads `size` bytes of the request, which is laid out as struct
            // mnt_id_req, and writes at most `buffer.len()` bytes to the buffer. Both outlive the
            // call.
            let done = unsafe {
                libc::syscall(
                    SYS_STATMOUNT,
                    &raw const request,
                    self.buffer.as_mut_ptr(),
                    self.buffer.len(),
                    0,
                )
            };
            if done == 0 {
                break;
            }
            let error = io::Error::last_os_error();
            match Errno::from_io_error(&error) {
                Some(Errno::NOENT) => return Ok(None),
                Some(Errno::OVERFLOW) if self.buffer.len() < MOST_BYTES => {
                    let longer = self.buffer.len() * 4;
                    self.buffer.resize(longer, 0);
                }
                _ => return Err(error),
            }
        }
        let (fixed, strings) = self.buffer.split_at(size_of::<Answer>());
        // SAFETY: `fixed` has as many bytes as the structure, which consists only of numbers, so
        // any bytes will do; it need not be aligned.
        let answer = unsafe { fixed.as_ptr().cast::<Answer>().read_unaligned() };
        Ok(Some(Told { answer, strings }))
    }
}

impl Told<'_> {
    /// Returns a string of the answer; `None` if it was not requested, is empty, or the kernel
    /// doesn't support it.
    fn string(&self, field: u64, at: u32) -> Option<&[u8]> {
        if self.answer.mask & field == 0 {
            return None;
        }
        let tail = self.strings.get(at as usize..)?;
        let end = tail.iter().position(|&b| b == 0)?;
        (end > 0).then(|| &tail[..end])
    }

    /// Returns the answer as a mount; `None` if it has no mount point beneath this process's root.
    fn mount(&self) -> Result<Option<Mount>, Unusable> {
        let answer = &self.answer;
        if answer.mask & NEEDED != NEEDED {
            return Err(Unusable);
        }
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let Some(mount_point) = self.string(MNT_POINT, answer.mnt_point) else {
            return Ok(None);
        };
        let mut fs_type = os(self.string(FS_TYPE, answer.fs_type).unwrap_or_default());
        if let Some(subtype) = self.string(FS_SUBTYPE, answer.fs_subtype) {
            fs_type.push(".");
            fs_type.push(OsStr::from_bytes(subtype));
        }
        Ok(Some(Mount {
            id: answer.mnt_id_old.into(),
            parent: answer.mnt_parent_id_old.into(),
            dev: (answer.sb_dev_major, answer.sb_dev_minor),
            root: path(self.string(MNT_ROOT, answer.mnt_root).unwrap_or_default()),
            mount_point: path(mount_point),
            options: attributes(answer.mnt_attr),
            propagation: self.propagation(),
            fs_type,
            source: os(self.string(SB_SOURCE, answer.sb_source).unwrap_or_default()),
            fs_is_read_only: answer.sb_flags & 1 != 0,
            fs_options: Known::Ask(answer.mnt_id),
        }))
    }

    /// As the table's text has it.
    fn propagation(&self) -> Vec<OsString> {
        let answer = &self.answer;
        let has = |flag: u64| answer.mnt_propagation & flag != 0;
        let mut all = Vec::new();
        if has(libc::MS_SHARED) {
            all.push(format!("shared:{}", answer.mnt_peer_group).into());
        }
        if has(libc::MS_SLAVE) {
            all.push(format!("master:{}", answer.mnt_master).into());
            let from = answer.propagate_from;
            if from != 0 && from != answer.mnt_master {
                all.push(format!("propagate_from:{from}").into());
            }
        }
        if has(libc::MS_UNBINDABLE) {
            all.push("unbindable".into());
        }
        all
    }
}

/// The options of a mount, as the table's text has them.
fn attributes(set: u64) -> OsString {
    let has = |attribute: u64| set & attribute != 0;
    let is_atime = |kind: u64| set & libc::MOUNT_ATTR__ATIME == kind;
    let names = [
        (has(libc::MOUNT_ATTR_NOSUID), "nosuid"),
        (has(libc::MOUNT_ATTR_NODEV), "nodev"),
        (has(libc::MOUNT_ATTR_NOEXEC), "noexec"),
        (is_atime(libc::MOUNT_ATTR_NOATIME), "noatime"),
        (has(libc::MOUNT_ATTR_NODIRATIME), "nodiratime"),
        (is_atime(libc::MOUNT_ATTR_RELATIME), "relatime"),
        (has(libc::MOUNT_ATTR_NOSYMFOLLOW), "nosymfollow"),
        (has(libc::MOUNT_ATTR_IDMAP), "idmapped"),
    ];
    let access = if has(libc::MOUNT_ATTR_RDONLY) {
        "ro"
    } else {
        "rw"
    };
    let mut all = vec![access];
    all.extend(
        names
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name)),
    );
    all.join(",").into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::mount::{Method, OverlayMount, overlay};
    use crate::testing::can_mount;

    fn is_there() -> bool {
        let found = read().is_ok();
        if !found {
            vellum_testkit::untested("statmount", "the kernel is older than 6.13 or forbids it");
        }
        found
    }

    fn beneath(table: &Table, path: &Path) -> Vec<(u64, PathBuf)> {
        let found = table.beneath(path);
        found
            .iter()
            .map(|m| (m.id, m.mount_point.clone()))
            .collect()
    }

    #[test]
    fn long_lists_and_long_strings_come_in_pieces() {
        let Some(scratch) = can_mount() else { return };
        if !is_there() {
            return;
        }
        let name = "n".repeat(200);
        let lowers: Vec<_> = (0..120)
            .map(|i| scratch.path().join(format!("{name}{i}")))
            .collect();
        let mut places = Vec::new();
        for i in 0..3 {
            places.push(scratch.path().join(format!("{name}-merged-{i}")));
        }
        for dir in lowers.iter().chain(&places) {
            std::fs::create_dir(dir).unwrap();
        }
        let mount = OverlayMount {
            lowers: lowers.clone(),
            ..OverlayMount::default()
        };
        for place in &places {
            match overlay(&mount, place, &Method::LayerFds) {
                Err(e) if e.is_unsupported() => {
                    return vellum_testkit::untested("long options", format!("{e:?}"));
                }
                done => done.map(drop).unwrap(),
            }
        }
        let whole = read().unwrap();
        assert_eq!(beneath(&whole, scratch.path()).len(), 3);
        // One mount at a time, and no space for a single string.
        let pieces = read_in_steps(ALL, 1, size_of::<Answer>()).unwrap();
        assert_eq!(
            beneath(&pieces, scratch.path()),
            beneath(&whole, scratch.path())
        );
        // More than the first buffer holds.
        let options = whole.beneath(scratch.path())[0].fs_options().unwrap();
        let all: Vec<_> = options.all("lowerdir+").map(PathBuf::from).collect();
        assert_eq!(all, lowers);
        assert!(all.len() * name.len() > FIRST_BYTES);
    }

    #[test]
    fn a_kernel_that_returns_no_sources_is_not_trusted() {
        if !is_there() {
            return;
        }
        // This is how Linux 6.8 answers: what it doesn't know is left out.
        assert!(read_in_steps(ALL & !(SB_SOURCE | FS_SUBTYPE), 1024, FIRST_BYTES).is_err());
    }
}

//! Makes things durable, and makes them visible only once they are.
//!
//! The order is always: write, sync the file, rename, sync the directory. A crash leaves a
//! temporary name starting with `.tmp-`, never half a file under the real one.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use crate::rooted::{Dir, RenameFlags};
use crate::{Error, Result};

/// The prefix of temporary names; a sweep may remove old ones.
pub const TEMP_PREFIX: &str = ".tmp-";

/// Writes `bytes` to `name` in `dir`, replacing what was there in one step, with exactly `mode`.
///
/// Durable on return. After an error `name` is what it was before. The umask does not apply.
pub fn write_file_atomic(dir: &Dir, name: &OsStr, bytes: &[u8], mode: u32) -> Result<()> {
    let temp = OsString::from(format!("{TEMP_PREFIX}{}", crate::random::hex(16)));
    let written = (|| {
        let mut file = dir.create_file(&temp, 0o600)?;
        file.write_all(bytes)
            .map_err(|e| Error::at("write", dir.as_fd(), name, e))?;
        crate::rooted::set_mode_fd(&file, mode)?;
        sync_file(&file)?;
        dir.rename(&temp, dir, name, RenameFlags::empty())
    })();
    if let Err(e) = written {
        // The first error is the one worth reporting; a leftover is swept later.
        let _ = dir.unlink(&temp);
        return Err(e);
    }
    sync_dir(dir)
}

/// Makes a file's content and attributes durable (fsync).
pub fn sync_file(file: impl AsFd) -> Result<()> {
    let fd = file.as_fd();
    rustix::fs::fsync(fd).map_err(|e| Error::at("sync", fd, "", e))
}

/// What is necessary so that a file's bytes reach the disk before any later change to its inode or
/// names; and, with it, whether inodes and names reach the disk in the order of their changes. The
/// only place that knows this about file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataOrder {
    /// Nothing: the file system is in memory.
    InMemory,
    /// The bytes must be written out: then their extents and the size are in the journal, before
    /// any later change. Names and inodes are in that journal, too, in the order of their changes.
    WrittenOut,
    /// An fsync, and one for each inode and directory.
    Synced,
}

/// Returns what the file system that holds `fd` needs; an fsync if that is not known.
///
/// Writing out is enough on ext4 with a journal and on xfs: both report the end of writing only
/// when size and extents have joined the journal, and flush the disk's own cache before a later
/// entry is valid.
pub fn data_order(fd: impl AsFd) -> Result<DataOrder> {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const TMPFS: u64 = 0x0102_1994;
    let fd = fd.as_fd();
    let found = rustix::fs::fstatfs(fd)
        .map_err(|e| Error::at("read the file system type of", fd, "", e))?;
    Ok(match found.f_type as u64 & 0xffff_ffff {
        TMPFS => DataOrder::InMemory,
        XFS => DataOrder::WrittenOut,
        EXT4 if has_journal(crate::stat::stat_fd(fd)?.dev) => DataOrder::WrittenOut,
        _ => DataOrder::Synced,
    })
}

/// Returns whether the ext4 on this device is known to have a journal.
fn has_journal(dev: u64) -> bool {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let device = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"));
    let Some(name) = device
        .ok()
        .and_then(|path| path.file_name().map(OsString::from))
    else {
        return false;
    };
    let task = Path::new("/sys/fs/ext4").join(name).join("journal_task");
    // The process id of the journal's thread, or a word that there is none.
    std::fs::read_to_string(task).is_ok_and(|task| task.trim().parse::<u32>().is_ok())
}

/// Ensures that a machine crash never shows a later change of this file's names or xattrs without
/// the bytes it has now.
///
/// Not durable on return, except for [`DataOrder::Synced`]: a crash may undo both.
pub fn order_data(file: impl AsFd, order: DataOrder) -> Result<()> {
    let fd = file.as_fd();
    match order {
        DataOrder::InMemory => Ok(()),
        DataOrder::Synced => sync_file(fd),
        DataOrder::WrittenOut => {
            let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            // SAFETY: the call takes numbers and a descriptor, which `file` keeps open for its
            // duration; no memory is shared.
            match unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, flags) } {
                0 => Ok(()),
                _ => {
                    let error = std::io::Error::last_os_error();
                    Err(Error::at("write out", fd, "", error))
                }
            }
        }
    }
}

/// Ensures that a machine crash never shows a later change of names without this inode's present
/// state: its attributes, xattrs and size, and a directory's own names.
///
/// An fsync where no order is known, and nothing elsewhere: file systems that keep bytes in order
/// ([`DataOrder`]) have inodes and names in one log. btrfs does not: a directory's fsync writes its
/// new names, but neither bytes nor size of the files they lead to.
pub fn order_inode(file: impl AsFd, order: DataOrder) -> Result<()> {
    match order {
        DataOrder::InMemory | DataOrder::WrittenOut => Ok(()),
        DataOrder::Synced => sync_file(file),
    }
}

/// Makes the names in a directory durable (fsync).
pub fn sync_dir(dir: &Dir) -> Result<()> {
    sync_file(dir)
}

/// Makes everything on the file system that holds `fd` durable (syncfs). Errors of earlier
/// writeback are reported.
///
/// On a FUSE mount the kernel returns at once without notifying the server: sync what lies below
/// instead.
pub fn sync_fs(fd: impl AsFd) -> Result<()> {
    let fd = fd.as_fd();
    rustix::fs::syncfs(fd).map_err(|e| Error::at("sync the file system of", fd, "", e))
}

/// Asks the kernel to start writing `length` bytes of a file to disk, from `offset` (0: up to its
/// end), and does not wait for it.
///
/// Promises nothing: it only leaves less work for the actual sync. So it returns no error either;
/// where a file system can't, or the disk fails, that sync reports it.
pub fn start_writeback(file: impl AsFd, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return;
    };
    // SAFETY: the call takes numbers and a descriptor, which `file` keeps open for its duration; no
    // memory is shared.
    unsafe {
        libc::sync_file_range(
            file.as_fd().as_raw_fd(),
            offset,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_no_temporary_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let name = OsStr::new("record");
        write_file_atomic(&dir, name, b"one", 0o644).unwrap();
        write_file_atomic(&dir, name, b"two", 0o666).unwrap();
        assert_eq!(std::fs::read(tmp.path().join("record")).unwrap(), b"two");
        assert_eq!(dir.stat(name).unwrap().mode, 0o666);
        assert_eq!(dir.entries().unwrap().count(), 1);
    }

    #[test]
    fn how_data_is_ordered_depends_on_the_file_system() {
        if !vellum_testkit::needs_root("mounting file systems") {
            return;
        }
        let scratch = vellum_testkit::Scratch::new();
        for (kind, expected) in [
            (vellum_testkit::FsKind::Ext4, DataOrder::WrittenOut),
            (vellum_testkit::FsKind::Xfs, DataOrder::WrittenOut),
            (vellum_testkit::FsKind::Btrfs, DataOrder::Synced),
            (vellum_testkit::FsKind::Tmpfs, DataOrder::InMemory),
        ] {
            match scratch.file_system(format!("{kind:?}"), kind, 16) {
                Ok(place) => {
                    let dir = Dir::open(&place).unwrap();
                    let order = data_order(&dir).unwrap();
                    assert_eq!(order, expected, "{kind:?}");
                    let mut file = dir.create_file("f", 0o600).unwrap();
                    file.write_all(&[1; 5000]).unwrap();
                    order_data(&file, order).unwrap();
                }
                Err(why) => vellum_testkit::untested(&format!("{kind:?}"), &why),
            }
        }
    }

    #[test]
    fn ext4_without_a_journal_keeps_no_order() {
        if !vellum_testkit::needs_root("mounting file systems") {
            return;
        }
        let scratch = vellum_testkit::Scratch::new();
        let place = match scratch.file_system("fs", vellum_testkit::FsKind::Ext4, 16) {
            Ok(place) => place,
            Err(why) => return vellum_testkit::untested("ext4", &why),
        };
        scratch.unmount(&place);
        let image = scratch.join("fs.img");
        let run = |program: &str, words: &[&OsStr]| {
            let done = std::process::Command::new(program).args(words).output();
            let done = done.unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{program}: {said}");
        };
        let words = ["-O", "^has_journal"].map(OsStr::new);
        run("tune2fs", &[words[0], words[1], image.as_os_str()]);
        let words = ["-o", "loop"].map(OsStr::new);
        let (from, to) = (image.as_os_str(), place.as_os_str());
        run("mount", &[words[0], words[1], from, to]);
        scratch.adopt_mount(&place);
        let dir = Dir::open(&place).unwrap();
        assert_eq!(data_order(&dir).unwrap(), DataOrder::Synced);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        dir.mkdir(OsStr::new("taken"), 0o700).unwrap();
        assert!(write_file_atomic(&dir, OsStr::new("taken"), b"x", 0o600).is_err());
        assert!(dir.stat(OsStr::new("taken")).unwrap().is_dir());
        assert_eq!(dir.entries().unwrap().count(), 1);
    }
}

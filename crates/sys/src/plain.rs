//! Files and directories of a store, opened as what they must be and as nothing else.
//!
//! A store's own paths are trusted only as far as their owner keeps them: a failing disk, a badly
//! restored backup or another user may leave a named pipe where a record was, or a symbolic link
//! where the trash was. Opening the first hangs, deleting through the second empties some other
//! directory. So every path here is resolved without following a single symbolic link (`openat2`
//! with `RESOLVE_NO_SYMLINKS`), each file is looked at before it is opened (`O_PATH`), and only a
//! regular file or a directory is opened at all: this never waits for a pipe or calls a device's
//! driver. A file that is read whole has a size limit. See openat2(2), CVE-2019-5736 and the like.
//!
//! Paths are absolute and contain no symbolic links, as `canonicalize` returns them; a link that
//! appears in one later is refused. A path that is reached through links on purpose (below `/run`,
//! say) is opened with [`Links::InParents`]: then only the last component must not be one. The
//! content of untrusted trees is not this module's business: see [`crate::rooted`].

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::rooted::{Access, Dir, RenameFlags, reopen_for};
use crate::stat::{FileKind, Stat, stat_fd};
use crate::{Error, Result};

/// Where a path may contain symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Nowhere.
    Nowhere,
    /// Anywhere but in the last component.
    InParents,
}

/// A file of the wrong type: the source of the errors that [`wrong_kind`] knows.
#[derive(Debug, thiserror::Error)]
#[error("it is {}, not {}", article(*.found), article(*.wanted))]
struct WrongKind {
    found: FileKind,
    wanted: FileKind,
}

fn article(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "a regular file",
        FileKind::Dir => "a directory",
        FileKind::Symlink => "a symbolic link",
        FileKind::Char => "a character device",
        FileKind::Block => "a block device",
        FileKind::Fifo => "a named pipe",
        FileKind::Socket => "a socket",
    }
}

/// A file that is longer than it can be.
#[derive(Debug, thiserror::Error)]
#[error("it is longer than {0} bytes")]
struct TooLong(u64);

/// True if the error says that a file has the wrong type: a pipe or a link for a file, a file for a
/// directory, a link on the way there, or a file of absurd length.
pub fn is_wrong_kind(error: &Error) -> bool {
    let own = error
        .source
        .get_ref()
        .is_some_and(|source| source.is::<WrongKind>() || source.is::<TooLong>());
    own || error.is(Errno::LOOP) || error.is(Errno::NOTDIR)
}

/// The error for a file of the wrong type.
pub fn wrong_kind(op: &'static str, path: &Path, found: FileKind, wanted: FileKind) -> Error {
    let source = std::io::Error::other(WrongKind { found, wanted });
    Error::new(op, path, source)
}

/// Opens whatever is at `path` as a handle (`O_PATH`), and returns its type. A link as the last
/// component is itself opened.
fn look(op: &'static str, path: &Path, links: Links) -> Result<(OwnedFd, Stat)> {
    let (dir, name) = match links {
        Links::InParents => (None, path.as_os_str()),
        // With a path that is resolved without links, the last component can't be examined if it is
        // one.
        Links::Nowhere => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (Some(parent_dir(op, path, parent)?), name),
            _ => (None, path.as_os_str()),
        },
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match &dir {
        Some(dir) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        None => rustix::fs::openat(CWD, name, flags, Mode::empty()),
    };
    let found = found.map_err(|e| Error::new(op, path, e))?;
    let stat = stat_fd(&found)?;
    Ok((found, stat))
}

/// Opens the directory that contains `path`, as a handle. Errors name `path`.
fn parent_dir(op: &'static str, path: &Path, parent: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    resolve(parent, flags, ResolveFlags::empty()).map_err(|e| match e {
        // The kernel returns this for any component; the reader wants to know which.
        Errno::LOOP | Errno::NOTDIR => match culprit(parent) {
            Some((at, found)) => wrong_kind(op, at, found, FileKind::Dir),
            None => Error::new(op, path, e),
        },
        other => Error::new(op, path, other),
    })
}

/// The first component of `path` that is not a directory, and what it is, for messages.
fn culprit(path: &Path) -> Option<(&Path, FileKind)> {
    let mut above: Vec<&Path> = path.ancestors().collect();
    above.reverse();
    above.into_iter().find_map(|at| {
        let found = Stat::at(CWD, at, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        (!found.is_dir()).then_some((at, found.kind))
    })
}

fn resolve(path: &Path, flags: OFlags, more: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more;
    // The kernel answers EAGAIN when a rename elsewhere raced with a `..`; that passes.
    for _ in 0..64 {
        match rustix::fs::openat2(CWD, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens an existing regular file. Never opens a link, pipe or device in its place.
///
/// Errors: those [`is_wrong_kind`] knows; ENOENT.
pub fn open(path: &Path, access: Access, links: Links) -> Result<File> {
    let (found, stat) = look("open", path, links)?;
    if !stat.is_file() {
        return Err(wrong_kind("open", path, stat.kind, FileKind::File));
    }
    reopen_for(&found, access).map_err(|e| Error::new("open", path, e.source))
}

/// Opens a regular file, creating it with `mode` if nothing is there. Otherwise as [`open`].
pub fn open_or_create(path: &Path, mode: u32, links: Links) -> Result<File> {
    for _ in 0..64 {
        match open(path, Access::ReadWrite, links) {
            Err(e) if e.is_not_found() => {}
            other => return other,
        }
        match create(path, mode, links) {
            // Another process was faster; or the file was there, and was removed in between.
            Err(e) if e.is_exists() => {}
            other => return other,
        }
    }
    Err(Error::new("create", path, Errno::AGAIN))
}

/// Creates a regular file that must not exist yet, open for reading and writing. Errors: EEXIST,
/// also for a dangling link.
pub fn create(path: &Path, mode: u32, links: Links) -> Result<File> {
    let (dir, name) = place("create", path, links)?;
    dir.create_file(name, mode)
        .map_err(|e| Error::new("create", path, e.source))
}

/// Opens a directory. Errors: those [`is_wrong_kind`] knows; ENOENT.
pub fn dir(path: &Path, links: Links) -> Result<Dir> {
    const OP: &str = "open the directory";
    let (found, stat) = look(OP, path, links)?;
    if !stat.is_dir() {
        return Err(wrong_kind(OP, path, stat.kind, FileKind::Dir));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&found, ".", flags, Mode::empty())
        .map_err(|e| Error::new(OP, path, e))?;
    Dir::from_fd(fd)
}

/// Returns the attributes of what is at `path`, a link's own if it is one; `None` if nothing is
/// there.
pub fn stat(path: &Path) -> Result<Option<Stat>> {
    match look("stat", path, Links::Nowhere) {
        Ok((_, stat)) => Ok(Some(stat)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns the content of a regular file of at most `limit_bytes`.
///
/// Errors: those [`is_wrong_kind`] knows, also for a file that is longer; ENOENT.
pub fn read(path: &Path, limit_bytes: u64, links: Links) -> Result<Vec<u8>> {
    let file = open(path, Access::Read, links)?;
    let mut bytes = Vec::new();
    file.take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| Error::new("read", path, e))?;
    if bytes.len() as u64 > limit_bytes {
        let source = std::io::Error::other(TooLong(limit_bytes));
        return Err(Error::new("read", path, source));
    }
    Ok(bytes)
}

/// Overwrites a small file whose loss does no harm, creating it with `mode` if necessary. Not
/// durable, not atomic.
pub fn overwrite(path: &Path, bytes: &[u8], mode: u32, links: Links) -> Result<()> {
    let mut file = open_or_create(path, mode, links)?;
    let written = file.set_len(0).and_then(|()| file.write_all(bytes));
    written.map_err(|e| Error::new("write", path, e))
}

/// Moves `from` to `to`, replacing what is there; if either is a link, the link itself is moved or
/// replaced.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let (from_dir, from_name) = place("move", from, Links::Nowhere)?;
    let (to_dir, to_name) = place("move to", to, Links::Nowhere)?;
    from_dir
        .rename(from_name, &to_dir, to_name, RenameFlags::empty())
        .map_err(|e| Error::new("move", from, e.source))
}

/// Removes a name that is not a directory; a link itself. Returns false if it does not exist.
pub fn unlink(path: &Path) -> Result<bool> {
    let (dir, name) = match place("remove", path, Links::Nowhere) {
        Ok(found) => found,
        Err(e) if e.is_not_found() => return Ok(false),
        Err(e) => return Err(e),
    };
    match rustix::fs::unlinkat(dir.as_fd(), Path::new(name), AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(Error::new("remove", path, e)),
    }
}

/// Opens the directory that contains `path`, and returns it with the last component.
pub fn place<'p>(op: &'static str, path: &'p Path, links: Links) -> Result<(Dir, &'p OsStr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(op, path, Errno::INVAL));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match links {
        Links::Nowhere => {
            let handle = parent_dir(op, path, parent)?;
            rustix::fs::openat(&handle, ".", flags, Mode::empty())
        }
        Links::InParents => rustix::fs::openat(CWD, parent, flags, Mode::empty()),
    };
    let fd = fd.map_err(|e| Error::new(op, path, e))?;
    Ok((Dir::from_fd(fd)?, name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// One of each file type, and links to the file and the directory.
    fn zoo() -> (tempfile::TempDir, PathBuf) {
        let tmp = tempfile::tempdir().unwrap();
        let top = tmp.path().canonicalize().unwrap();
        let dir = Dir::open(&top).unwrap();
        std::fs::write(top.join("file"), "content").unwrap();
        std::fs::create_dir_all(top.join("dir/sub")).unwrap();
        std::fs::write(top.join("dir/file"), "inner").unwrap();
        dir.mknod("pipe", FileKind::Fifo, 0o600, (0, 0)).unwrap();
        dir.mknod("socket", FileKind::Socket, 0o600, (0, 0))
            .unwrap();
        symlink("file", top.join("to-file")).unwrap();
        symlink("dir", top.join("to-dir")).unwrap();
        symlink("pipe", top.join("to-pipe")).unwrap();
        symlink("nothing", top.join("dangling")).unwrap();
        (tmp, top)
    }

    #[test]
    fn only_a_regular_file_is_opened_and_nothing_is_waited_for() {
        let (_tmp, top) = zoo();
        for links in [Links::Nowhere, Links::InParents] {
            for access in [Access::Read, Access::Write, Access::ReadWrite] {
                for wrong in [
                    "dir", "pipe", "socket", "to-file", "to-dir", "to-pipe", "dangling",
                ] {
                    let refused = open(&top.join(wrong), access, links).unwrap_err();
                    assert!(is_wrong_kind(&refused), "{wrong}: {refused:?}");
                    assert!(refused.path.ends_with(wrong), "{refused}");
                }
                assert!(
                    open(&top.join("none"), access, links)
                        .unwrap_err()
                        .is_not_found()
                );
                open(&top.join("dir/file"), access, links).unwrap();
            }
        }
        let kinds = [("pipe", "a named pipe"), ("to-file", "a symbolic link")];
        for (name, word) in kinds {
            let refused = open(&top.join(name), Access::Read, Links::Nowhere).unwrap_err();
            assert!(refused.source.to_string().contains(word), "{refused:?}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_refused_by_name_unless_it_is_allowed() {
        let (_tmp, top) = zoo();
        let path = top.join("to-dir/file");
        let refused = open(&path, Access::Read, Links::Nowhere).unwrap_err();
        assert!(is_wrong_kind(&refused), "{refused:?}");
        assert!(refused.path.ends_with("to-dir"), "{refused}");
        assert_eq!(read(&path, 100, Links::InParents).unwrap(), b"inner");
        assert!(dir(&top.join("to-dir"), Links::InParents).is_err());
        assert!(dir(&top.join("to-dir/sub"), Links::Nowhere).is_err());
        dir(&top.join("dir/sub"), Links::Nowhere).unwrap();
        assert!(unlink(&path).is_err());
        assert!(rename(&top.join("file"), &top.join("to-dir/moved")).is_err());
        assert!(create(&top.join("to-dir/new"), 0o600, Links::Nowhere).is_err());
        assert_eq!(std::fs::read_dir(top.join("dir")).unwrap().count(), 2);
    }

    #[test]
    fn a_link_itself_is_moved_and_removed() {
        let (_tmp, top) = zoo();
        rename(&top.join("to-file"), &top.join("dir/link")).unwrap();
        assert!(unlink(&top.join("dir/link")).unwrap());
        assert!(!unlink(&top.join("dir/link")).unwrap());
        assert!(!unlink(&top.join("none/link")).unwrap());
        assert_eq!(std::fs::read(top.join("file")).unwrap(), b"content");
        assert_eq!(
            stat(&top.join("to-dir")).unwrap().unwrap().kind,
            FileKind::Symlink
        );
        assert!(stat(&top.join("none")).unwrap().is_none());
    }

    #[test]
    fn a_file_of_absurd_length_is_not_read_whole() {
        let (_tmp, top) = zoo();
        let huge = File::create(top.join("huge")).unwrap();
        huge.set_len(1 << 40).unwrap();
        let refused = read(&top.join("huge"), 1 << 20, Links::Nowhere).unwrap_err();
        assert!(is_wrong_kind(&refused), "{refused:?}");
        assert_eq!(
            read(&top.join("file"), 7, Links::Nowhere).unwrap(),
            b"content"
        );
    }

    #[test]
    fn a_file_is_created_once_and_never_through_a_link() {
        let (_tmp, top) = zoo();
        for _ in 0..2 {
            open_or_create(&top.join("lock"), 0o600, Links::Nowhere).unwrap();
        }
        assert!(open_or_create(&top.join("dangling"), 0o600, Links::Nowhere).is_err());
        assert!(open_or_create(&top.join("pipe"), 0o600, Links::Nowhere).is_err());
        assert!(!top.join("nothing").exists());
    }
}

//! Paths inside an untrusted tree, resolved as a process with that tree as its root would resolve
//! them.
//!
//! [`crate::rooted`] refuses symbolic links; this module follows them, but an absolute link or any
//! number of `..` ends at the tree's root and never outside (`openat2` with `RESOLVE_IN_ROOT |
//! RESOLVE_NO_MAGICLINKS`). It is for paths that a user names: the target of a copy, a container's
//! `/etc/passwd`. Files are opened `O_PATH` first, so that a fifo does not block and a device's
//! driver is not called.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::rooted::{Dir, read_link_fd};
use crate::stat::{FileKind, stat_fd};
use crate::{Error, Result};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// What to do with a symbolic link as the path's last component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Follow it, inside the root.
    Follow,
    /// Open the link itself.
    Keep,
}

/// Opens what is at `path` as a handle (`O_PATH`); `None` if nothing is there.
///
/// A leading slash makes no difference. Errors: ELOOP for too many links, never ENOTDIR (it counts
/// as nothing there).
pub fn find(root: &Dir, path: &Path, last: Last) -> Result<Option<OwnedFd>> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    if last == Last::Keep {
        flags |= OFlags::NOFOLLOW;
    }
    open(root, path, flags)
}

/// Opens the directory at `path`, following links; `None` if nothing is there. Errors: ENOTDIR if
/// it is not a directory.
pub fn dir(root: &Dir, path: &Path) -> Result<Option<Dir>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Found first: a missing component means nothing is there, but a file in the directory's place
    // is an error.
    if find(root, path, Last::Follow)?.is_none() {
        return Ok(None);
    }
    open(root, path, flags)?.map(Dir::from_fd).transpose()
}

/// Returns where `path` ends, following links: a path below the root without links, `.` and `..`.
///
/// A missing component counts as a name, so that a path can be resolved before it is created, such
/// as the target of a dangling link. Empty for the root itself. Errors: ELOOP for too many links;
/// as [`find`].
pub fn resolve(root: &Dir, path: &Path) -> Result<PathBuf> {
    let mut rest: Vec<OsString> = names(path);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&name);
        let link = match find(root, &next, Last::Keep)? {
            Some(handle) if stat_fd(&handle)?.kind == FileKind::Symlink => read_link_fd(&handle)?,
            _ => {
                done = next;
                continue;
            }
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(Error::new("find inside the root", path, Errno::LOOP));
        }
        let target = Path::new(&link);
        if target.is_absolute() {
            done.clear();
        }
        rest.extend(names(target));
    }
    Ok(done)
}

/// The names in a path, last one first, including `..`.
fn names(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Returns the content of the regular file at `path`, following links; `None` if there is no such
/// file.
///
/// Errors: EFBIG if it is longer than `limit_bytes`.
pub fn read_file(root: &Dir, path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let Some(handle) = find(root, path, Last::Follow)? else {
        return Ok(None);
    };
    if stat_fd(&handle)?.kind != FileKind::File {
        return Ok(None);
    }
    let fail = |e: std::io::Error| Error::new("read", path, e);
    let file = File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map_err(fail)?;
    let mut content = Vec::new();
    file.take(limit_bytes + 1)
        .read_to_end(&mut content)
        .map_err(fail)?;
    if content.len() as u64 > limit_bytes {
        return Err(Error::new("read", path, Errno::FBIG));
    }
    Ok(Some(content))
}

fn open(root: &Dir, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
    let path = if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    };
    // The kernel answers EAGAIN when a rename elsewhere raced with a `..`; that passes.
    for _ in 0..64 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), IN_ROOT) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR) if !flags.contains(OFlags::DIRECTORY) => return Ok(None),
            Err(e) => return Err(Error::new("find inside the root", path, e)),
        }
    }
    Err(Error::new("find inside the root", path, Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_end_inside_the_root() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("root");
        std::fs::create_dir_all(top.join("etc")).unwrap();
        std::fs::write(scratch.path().join("passwd"), "outside").unwrap();
        std::fs::write(top.join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", top.join("absolute")).unwrap();
        symlink("../../../etc/passwd", top.join("etc/climbing")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        symlink("/proc/self/fd/0", top.join("magic")).unwrap();
        let root = Dir::open(&top).unwrap();
        let read = |path: &str| read_file(&root, Path::new(path), 100).unwrap();
        for path in [
            "etc/passwd",
            "/etc/passwd",
            "absolute",
            "etc/climbing",
            "../../etc/passwd",
        ] {
            assert_eq!(read(path).as_deref(), Some(&b"inside"[..]), "{path}");
        }
        assert_eq!(read("../passwd"), None);
        assert_eq!(read("etc/passwd/x"), None);
        assert_eq!(read("etc"), None);
        assert_eq!(read("magic"), None);
        assert!(find(&root, Path::new("loop"), Last::Follow).is_err());
        assert!(
            find(&root, Path::new("loop"), Last::Keep)
                .unwrap()
                .is_some()
        );
        assert!(read_file(&root, Path::new("etc/passwd"), 3).is_err());
        assert!(dir(&root, Path::new("etc/passwd")).is_err());
        assert!(dir(&root, Path::new("none")).unwrap().is_none());
        assert!(dir(&root, Path::new("")).unwrap().is_some());
    }

    #[test]
    fn paths_resolve_before_anything_is_created() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("root");
        std::fs::create_dir_all(top.join("d/sub")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        for (target, name) in [
            ("/d/sub", "absolute"),
            ("../../../../tmp", "out"),
            ("/made/by/link", "dangling"),
            ("../nowhere", "d/up"),
            ("loop", "loop"),
            ("dangling/x", "chain"),
        ] {
            symlink(target, top.join(name)).unwrap();
        }
        let root = Dir::open(&top).unwrap();
        for (path, expect) in [
            ("", ""),
            ("/", ""),
            ("..", ""),
            ("/d/./sub//", "d/sub"),
            ("/new/deep", "new/deep"),
            ("absolute/new", "d/sub/new"),
            ("absolute/..", "d"),
            ("out/x", "tmp/x"),
            ("dangling", "made/by/link"),
            ("chain/y", "made/by/link/x/y"),
            ("d/up", "nowhere"),
            ("file/x", "file/x"),
            ("new/../d", "d"),
        ] {
            let found = resolve(&root, Path::new(path)).unwrap();
            assert_eq!(found, Path::new(expect), "{path}");
        }
        assert!(resolve(&root, Path::new("loop/x")).is_err());
    }

    #[test]
    fn a_fifo_never_blocks() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Dir::open(scratch.path()).unwrap();
        root.mknod("fifo", FileKind::Fifo, 0o600, (0, 0)).unwrap();
        assert_eq!(read_file(&root, Path::new("fifo"), 100).unwrap(), None);
    }
}

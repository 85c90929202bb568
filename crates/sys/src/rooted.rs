//! Directories held by descriptor, and everything done to names in them.
//!
//! This is how an untrusted tree is accessed safely: a [`Dir`] is opened once from a trusted path,
//! and from there every step is one component given to a descriptor and not followed, or `openat2`
//! with `RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS`. No path string is resolved
//! twice, so swapping a directory for a symbolic link between check and use gains nothing.
//!
//! Invariants: a name given to a one-name operation is not empty, `.` or `..` and contains no `/`
//! or NUL, or the operation fails with EINVAL before the kernel sees it. Modes given at creation
//! are subject to the umask; `set_mode` is not. Nothing here is durable before [`Dir::sync`] (or a
//! sync of the file system).

mod attributes;
mod remove;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use attributes::{
    NewTime, change_owner_fd, change_times_fd, set_mode_fd, set_owner_fd, set_times_fd,
};
pub use remove::Removal;
pub use rustix::fs::RenameFlags;

use crate::stat::{FileKind, Stat};
use crate::{Error, Result, own_files};

const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

/// What an opened file may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, one component.
    pub name: OsString,
    /// Its type; read from the inode where the directory does not contain it.
    pub kind: FileKind,
    /// The inode number in the directory (under a mount point: that of the covered inode).
    pub ino: u64,
}

/// The names in a directory, without `.` and `..`, in the file system's order.
///
/// Has its own read position. Names created or removed meanwhile may or may not show.
pub struct Entries {
    stream: rustix::fs::Dir,
}

impl Dir {
    /// Opens a directory by a trusted path: symbolic links in it are followed.
    pub fn open(path: &Path) -> Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .or_else(|e| {
                let found = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let found = rustix::fs::openat(CWD, path, found, Mode::empty())?;
                own_files::open(e, found.as_fd(), Path::new(""), flags)
            })
            .map_err(|e| Error::new("open the directory", path, e))?;
        Ok(Dir { fd })
    }

    /// Creates a `Dir` from a descriptor that is known to be a directory opened for reading.
    ///
    /// Errors: ENOTDIR if it is not a directory.
    pub fn from_fd(fd: OwnedFd) -> Result<Dir> {
        if !crate::stat::stat_fd(&fd)?.is_dir() {
            return Err(Error::at(
                "use as a directory",
                fd.as_fd(),
                "",
                Errno::NOTDIR,
            ));
        }
        Ok(Dir { fd })
    }

    /// Returns a second descriptor of the same directory.
    pub fn dup(&self) -> Result<Dir> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 3)
            .map_err(|e| self.fail("duplicate", "", e))?;
        Ok(Dir { fd })
    }

    /// Returns the path the kernel knows for this directory, for messages and for callers outside
    /// (never reopen it to get back here).
    pub fn path(&self) -> Option<PathBuf> {
        crate::error::fd_path(self.fd.as_fd())
    }

    /// Opens a directory beneath this one. The empty path and `.` open this directory again.
    ///
    /// Errors: ELOOP if any component is a symbolic link, EXDEV if the path leaves this directory.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> Result<Dir> {
        let path = path.as_ref();
        let fd = self
            .open_beneath(path, DIR_FLAGS)
            .map_err(|e| self.fail("open the directory", path, e))?;
        Ok(Dir { fd })
    }

    /// Opens a directory as [`Dir::open_dir`] does, to list it without changing its access time.
    /// The access time does change if the directory is another user's and this process may not
    /// prevent it.
    pub fn open_dir_quietly(&self, path: impl AsRef<Path>) -> Result<Dir> {
        let path = path.as_ref();
        match self.open_beneath(path, DIR_FLAGS | OFlags::NOATIME) {
            Ok(fd) => Ok(Dir { fd }),
            Err(Errno::PERM) => self.open_dir(path),
            Err(e) => Err(self.fail("open the directory", path, e)),
        }
    }

    /// Opens the directory `name`, but not a mount point.
    ///
    /// Errors: as [`Dir::open_dir`], and EXDEV for a mount point.
    pub fn open_dir_unmounted(&self, name: impl AsRef<OsStr>) -> Result<Dir> {
        let name = self.checked(name.as_ref())?;
        let beneath = BENEATH | ResolveFlags::NO_XDEV;
        let fd = rustix::fs::openat2(&self.fd, name, DIR_FLAGS, Mode::empty(), beneath)
            .map_err(|e| self.fail("open the directory", name, e))?;
        Ok(Dir { fd })
    }

    /// Opens a directory that need not be listable: its attributes can be read, and its names
    /// looked up if it may be searched.
    pub fn open_dir_unlisted(&self, path: impl AsRef<Path>) -> Result<Dir> {
        let path = path.as_ref();
        let fd = self
            .open_beneath(
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            )
            .map_err(|e| self.fail("open the directory", path, e))?;
        Ok(Dir { fd })
    }

    /// Opens a regular file beneath this directory for reading.
    /// Errors: ELOOP or EINVAL for symbolic links, EINVAL for anything else that is not a regular
    /// file. A fifo does not block and a device's driver is not called, since the type is checked
    /// before the file is opened.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File> {
        self.open_file_for(path, Access::Read)
    }

    /// Opens an existing regular file beneath this directory. Errors as [`Dir::open_file`].
    pub fn open_file_for(&self, path: impl AsRef<Path>, access: Access) -> Result<File> {
        let path = path.as_ref();
        let how = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let found = self.open_path(path)?;
        if !crate::stat::stat_fd(&found)?.is_file() {
            return Err(self.fail("open as a regular file", path, Errno::INVAL));
        }
        // The magic link leads to the very inode that was checked, whatever its name refers to by
        // now.
        let magic = format!("/proc/self/fd/{}", found.as_raw_fd());
        let how = how | OFlags::CLOEXEC;
        let fd = rustix::fs::open(magic, how, Mode::empty())
            .or_else(|e| own_files::open(e, found.as_fd(), Path::new(""), how))
            .map_err(|e| self.fail("open", path, e))?;
        Ok(File::from(fd))
    }

    /// Opens `name`, which the caller knows to be a regular file, in one step.
    ///
    /// Errors: ELOOP for a symbolic link, EINVAL if it turns out to be something else. That was
    /// then opened, without waiting; so use [`Dir::open_file_for`] where another user may have put
    /// a device there.
    pub fn open_known_file(&self, name: impl AsRef<OsStr>, access: Access) -> Result<File> {
        self.open_known(
            name.as_ref(),
            match access {
                Access::Read => OFlags::RDONLY,
                Access::Write => OFlags::WRONLY,
                Access::ReadWrite => OFlags::RDWR,
            },
        )
    }

    /// Opens a regular file as [`Dir::open_known_file`] does, without changing its access time. The
    /// access time does change if the file is another user's and this process may not prevent it.
    pub fn open_known_file_quietly(&self, name: impl AsRef<OsStr>) -> Result<File> {
        let name = name.as_ref();
        match self.open_known(name, OFlags::RDONLY | OFlags::NOATIME) {
            Err(error) if error.is(Errno::PERM) => self.open_known(name, OFlags::RDONLY),
            other => other,
        }
    }

    fn open_known(&self, name: &OsStr, how: OFlags) -> Result<File> {
        let name = self.checked(name)?;
        let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .or_else(|e| own_files::open(e, self.as_fd(), name, flags))
            .map_err(|e| self.fail("open", name, e))?;
        match crate::stat::stat_fd(&fd)?.is_file() {
            true => Ok(File::from(fd)),
            false => Err(self.fail("open as a regular file", name, Errno::INVAL)),
        }
    }

    /// Opens whatever `path` names beneath this directory as `O_PATH`: a symbolic link itself, a
    /// device without its driver. For [`crate::stat::stat_fd`], the `_fd` functions here and in
    /// [`crate::xattr`], and mounting.
    pub fn open_path(&self, path: impl AsRef<Path>) -> Result<OwnedFd> {
        let path = path.as_ref();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match check_component(path.as_os_str()) {
            // RESOLVE_NO_SYMLINKS refuses a link as the last component even with O_NOFOLLOW; a
            // single name needs no resolving.
            true => rustix::fs::openat(&self.fd, path, flags, Mode::empty())
                .or_else(|e| own_files::open(e, self.as_fd(), path, flags)),
            false => self.open_beneath(path, flags),
        };
        found.map_err(|e| self.fail("open", path, e))
    }

    fn open_beneath(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        // The kernel answers EAGAIN when a rename elsewhere raced with a `..`; that passes.
        for _ in 0..64 {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), BENEATH) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return own_files::open_beneath(e, self.as_fd(), path, flags, BENEATH),
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Returns the attributes of `name`, which is not followed. The name may not be a path; see
    /// [`Dir::stat_self`].
    pub fn stat(&self, name: impl AsRef<OsStr>) -> Result<Stat> {
        let name = self.checked(name.as_ref())?;
        self.stat_at(name).map_err(|e| self.fail("stat", name, e))
    }

    /// Returns the attributes of `name`, or `None` if there is no such name.
    pub fn stat_opt(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>> {
        let name = self.checked(name.as_ref())?;
        match self.stat_at(name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.fail("stat", name, e)),
        }
    }

    fn stat_at(&self, name: &Path) -> rustix::io::Result<Stat> {
        Stat::at(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).or_else(|e| {
            let found = own_files::open_path(e, self.as_fd(), name)?;
            Stat::at(&found, Path::new(""), AtFlags::EMPTY_PATH)
        })
    }

    /// Returns the attributes of this directory itself.
    pub fn stat_self(&self) -> Result<Stat> {
        crate::stat::stat_fd(&self.fd)
    }

    /// Returns the target of the symbolic link `name`. Errors: EINVAL if it is not a link.
    pub fn read_link(&self, name: impl AsRef<OsStr>) -> Result<OsString> {
        let name = self.checked(name.as_ref())?;
        let target = rustix::fs::readlinkat(&self.fd, name, Vec::new())
            .or_else(|e| {
                let found = own_files::open_path(e, self.as_fd(), name)?;
                rustix::fs::readlinkat(found, "", Vec::new())
            })
            .map_err(|e| self.fail("read the link", name, e))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Lists the names in this directory.
    pub fn entries(&self) -> Result<Entries> {
        // If it was opened without changing access times, so is the listing.
        let held = rustix::fs::fcntl_getfl(&self.fd).map_err(|e| self.fail("list", "", e))?;
        let flags = DIR_FLAGS | held & OFlags::NOATIME;
        let stream = rustix::fs::openat(&self.fd, ".", flags, Mode::empty())
            .or_else(|e| match e {
                // It may be listed but not searched.
                Errno::ACCESS => {
                    let magic = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
                    rustix::fs::open(magic, flags - OFlags::NOFOLLOW, Mode::empty())
                }
                e => Err(e),
            })
            .or_else(|e| own_files::open(e, self.as_fd(), Path::new(""), flags))
            .and_then(rustix::fs::Dir::new)
            .map_err(|e| self.fail("list", "", e))?;
        Ok(Entries { stream })
    }

    /// Creates a directory. Errors: EEXIST.
    pub fn mkdir(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode))
            .map_err(|e| self.fail("create the directory", name, e))
    }

    /// Creates a new regular file, open for reading and writing. Errors: EEXIST (also for a
    /// dangling symbolic link).
    pub fn create_file(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<File> {
        let name = self.checked(name.as_ref())?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))
            .map_err(|e| self.fail("create", name, e))?;
        Ok(File::from(fd))
    }

    /// Creates a symbolic link called `name` with the target `target`. Errors: EEXIST.
    pub fn symlink(&self, target: impl AsRef<OsStr>, name: impl AsRef<OsStr>) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        rustix::fs::symlinkat(target.as_ref(), &self.fd, name)
            .map_err(|e| self.fail("create the symbolic link", name, e))
    }

    /// Creates a device node, fifo, socket or empty regular file. `rdev` is used only for devices.
    /// Errors: EEXIST, EPERM.
    pub fn mknod(
        &self,
        name: impl AsRef<OsStr>,
        kind: FileKind,
        mode: u32,
        rdev: (u32, u32),
    ) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        let dev = rustix::fs::makedev(rdev.0, rdev.1);
        rustix::fs::mknodat(
            &self.fd,
            name,
            kind.file_type(),
            Mode::from_raw_mode(mode),
            dev,
        )
        .map_err(|e| self.fail("create the node", name, e))
    }

    /// Gives the inode called `from` in `from_dir` the additional name `to` here; a symbolic link
    /// itself is linked.
    ///
    /// Errors: EEXIST, EXDEV, EMLINK, EPERM for directories.
    pub fn link(
        &self,
        from_dir: &Dir,
        from: impl AsRef<OsStr>,
        to: impl AsRef<OsStr>,
    ) -> Result<()> {
        let from = from_dir.checked(from.as_ref())?;
        let to = self.checked(to.as_ref())?;
        rustix::fs::linkat(from_dir, from, &self.fd, to, AtFlags::empty())
            .or_else(|e| own_files::link(e, (from_dir.as_fd(), from), (self.as_fd(), to)))
            .map_err(|e| self.fail("create the hard link", to, e))
    }

    /// Gives an open file (even one without a name) the name `to` here. Errors: EEXIST, EXDEV.
    pub fn link_fd(&self, file: impl AsFd, to: impl AsRef<OsStr>) -> Result<()> {
        let to = self.checked(to.as_ref())?;
        let magic = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        rustix::fs::linkat(CWD, magic, &self.fd, to, AtFlags::SYMLINK_FOLLOW)
            .or_else(|e| own_files::link(e, (file.as_fd(), Path::new("")), (self.as_fd(), to)))
            .map_err(|e| self.fail("create the hard link", to, e))
    }

    /// Creates a file without a name in this directory's file system (`O_TMPFILE`), open for
    /// reading and writing.
    ///
    /// Errors: EOPNOTSUPP where the file system can't.
    pub fn create_unnamed(&self, mode: u32) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, ".", flags, Mode::from_raw_mode(mode))
            .map_err(|e| self.fail("create an unnamed file in", "", e))?;
        Ok(File::from(fd))
    }

    /// Moves `from` here to `to` in `to_dir`. Replaces what is there unless
    /// `RenameFlags::NOREPLACE` is given.
    pub fn rename(
        &self,
        from: impl AsRef<OsStr>,
        to_dir: &Dir,
        to: impl AsRef<OsStr>,
        flags: RenameFlags,
    ) -> Result<()> {
        let from = self.checked(from.as_ref())?;
        let to = to_dir.checked(to.as_ref())?;
        let moved = if flags.is_empty() {
            rustix::fs::renameat(&self.fd, from, to_dir, to)
        } else {
            rustix::fs::renameat_with(&self.fd, from, to_dir, to, flags)
        };
        moved
            .or_else(|e| own_files::rename(e, (self.as_fd(), from), (to_dir.as_fd(), to), flags))
            .map_err(|e| to_dir.fail("rename to", to, e))
    }

    /// Removes a name that is not a directory.
    pub fn unlink(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())
            .or_else(|e| own_files::unlink(e, self.as_fd(), name, AtFlags::empty()))
            .map_err(|e| self.fail("remove", name, e))
    }

    /// Removes an empty directory. Errors: ENOTEMPTY, EBUSY if something is mounted on it here.
    pub fn rmdir(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = self.checked(name.as_ref())?;
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
            .or_else(|e| own_files::unlink(e, self.as_fd(), name, AtFlags::REMOVEDIR))
            .map_err(|e| self.fail("remove the directory", name, e))
    }

    /// Removes `name` and everything beneath it, without ever entering another mount. See
    /// [`Removal`].
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> Result<Removal> {
        let name = self.checked(name.as_ref())?;
        remove::remove_tree(self, name.as_os_str())
    }

    /// Opens the directory `path`, beneath this one, creating what is missing with `mode`.
    ///
    /// For our own trees: existing components are accepted with whatever mode they have. Symbolic
    /// links and `..` are refused.
    pub fn create_dir_all(&self, path: impl AsRef<Path>, mode: u32) -> Result<Dir> {
        let path = path.as_ref();
        let mut at = self.open_dir(".")?;
        for component in path.components() {
            let name = match component {
                Component::CurDir => continue,
                Component::Normal(name) => name,
                _ => return Err(self.fail("create the directory", path, Errno::INVAL)),
            };
            at = match at.open_dir(name) {
                Err(e) if e.is_not_found() => {
                    match at.mkdir(name, mode) {
                        Err(e) if !e.is_exists() => return Err(e),
                        _ => {}
                    }
                    at.open_dir(name)?
                }
                other => other?,
            };
        }
        Ok(at)
    }

    /// Makes the names in this directory durable (fsync).
    pub fn sync(&self) -> Result<()> {
        rustix::fs::fsync(self).map_err(|e| Error::at("sync", self.as_fd(), "", e))
    }

    fn checked<'a>(&self, name: &'a OsStr) -> Result<&'a Path> {
        check_name(self.as_fd(), name)?;
        Ok(Path::new(name))
    }

    pub(crate) fn fail(&self, op: &'static str, name: impl AsRef<Path>, e: Errno) -> Error {
        Error::at(op, self.as_fd(), name, e)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> OwnedFd {
        dir.fd
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let entry = match self.stream.next()? {
                Ok(entry) => entry,
                Err(e) => return Some(Err(self.fail("list", e))),
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let name = OsString::from_vec(name.to_vec());
            let kind = match FileKind::from_file_type(entry.file_type()) {
                Some(kind) => kind,
                None => match self.kind_of(&name) {
                    Ok(Some(kind)) => kind,
                    // Removed between the listing and the request.
                    Ok(None) => continue,
                    Err(e) => return Some(Err(e)),
                },
            };
            return Some(Ok(Entry {
                name,
                kind,
                ino: entry.ino(),
            }));
        }
    }
}

impl Entries {
    fn kind_of(&self, name: &OsStr) -> Result<Option<FileKind>> {
        let asked = self
            .stream
            .fd()
            .and_then(|fd| Stat::at(fd, Path::new(name), AtFlags::SYMLINK_NOFOLLOW));
        match asked {
            Ok(stat) => Ok(Some(stat.kind)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.fail("stat an entry of", e)),
        }
    }

    fn fail(&self, op: &'static str, e: Errno) -> Error {
        match self.stream.fd() {
            Ok(fd) => Error::at(op, fd, "", e),
            Err(_) => Error::new(op, "", e),
        }
    }
}

/// Returns the target of a symbolic link opened with `O_PATH`. Errors: ENOENT if it is not a link.
pub fn read_link_fd(fd: impl AsFd) -> Result<OsString> {
    let fd = fd.as_fd();
    let target = rustix::fs::readlinkat(fd, "", Vec::new())
        .map_err(|e| Error::at("read the link", fd, "", e))?;
    Ok(OsString::from_vec(target.into_bytes()))
}

/// Reopens the regular file behind a descriptor, for reading, whatever its name is or whether it
/// has one.
pub fn reopen(fd: impl AsFd) -> Result<File> {
    reopen_for(fd, Access::Read)
}

/// As [`reopen`], for the given access. Errors: EINVAL if it is not a regular file.
pub fn reopen_for(fd: impl AsFd, access: Access) -> Result<File> {
    let fd = fd.as_fd();
    if !crate::stat::stat_fd(fd)?.is_file() {
        return Err(Error::at("open as a regular file", fd, "", Errno::INVAL));
    }
    let how = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let magic = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let how = how | OFlags::CLOEXEC;
    let fd = rustix::fs::open(magic, how, Mode::empty())
        .or_else(|e| own_files::open(e, fd, Path::new(""), how))
        .map_err(|e| Error::at("open again", fd, "", e))?;
    Ok(File::from(fd))
}

/// Refuses names that are not exactly one component.
pub(crate) fn check_name(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match check_component(name) {
        true => Ok(()),
        false => Err(Error::at("use as a name", dir, name, Errno::INVAL)),
    }
}

fn check_component(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes != b"."
        && bytes != b".."
        && !bytes.iter().any(|&b| b == b'/' || b == 0)
}

#[cfg(test)]
mod tests;

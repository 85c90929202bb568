//! Extended attributes of an open file, or of a name in a directory without following it.
//!
//! Since Linux 6.13 names are listed and read with `listxattrat` and `getxattrat`. Before that, and
//! for changes, a name is reached as `/proc/self/fd/<dir>/<name>` with the `l`-calls: the kernel
//! jumps to the directory we hold, and the one component after it is not followed. Names are
//! checked to be one component. Values are bytes and never interpreted here.
//!
//! A file system without extended attributes appears to have none; setting one is an error.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::rooted::{Dir, check_name};
use crate::{Error, Result, own_files};

/// Whether the attribute may, must or must not exist before it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMode {
    /// Create or replace it.
    Any,
    /// It must not exist (EEXIST).
    Create,
    /// It must exist (ENODATA).
    Replace,
}

impl SetMode {
    fn flags(self) -> XattrFlags {
        match self {
            SetMode::Any => XattrFlags::empty(),
            SetMode::Create => XattrFlags::CREATE,
            SetMode::Replace => XattrFlags::REPLACE,
        }
    }
}

/// Returns the names of all attributes of `name` in `dir`, in the file system's order.
///
/// Attributes the caller may not see (`trusted.*` without privilege) are not listed.
pub fn list(dir: &Dir, name: &OsStr) -> Result<Vec<OsString>> {
    check_name(dir.as_fd(), name)?;
    let listed = match at::list(dir.as_fd(), name) {
        Some(listed) => listed,
        None => {
            let path = proc_path(dir, name)?;
            read_list(|buf| rustix::fs::llistxattr(&path, buf))
        }
    };
    match listed {
        Err(Errno::ACCESS) => list_fd(dir.open_path(name)?),
        listed => {
            listed.map_err(|e| Error::at("list extended attributes of", dir.as_fd(), name, e))
        }
    }
}

/// Returns the value of attribute `attr` of `name` in `dir`, or `None` if it has none.
pub fn get(dir: &Dir, name: &OsStr, attr: &OsStr) -> Result<Option<Vec<u8>>> {
    check_name(dir.as_fd(), name)?;
    let value = match at::get(dir.as_fd(), name, attr) {
        Some(value) => value,
        None => {
            let path = proc_path(dir, name)?;
            read_value(|buf| rustix::fs::lgetxattr(&path, attr, buf))
        }
    };
    match value {
        // The directory may be in the way, or the file itself.
        Err(Errno::ACCESS) => get_fd(dir.open_path(name)?, attr),
        value => {
            value.map_err(|e| Error::at("read an extended attribute of", dir.as_fd(), name, e))
        }
    }
}

/// Sets attribute `attr` of `name` in `dir`.
pub fn set(dir: &Dir, name: &OsStr, attr: &OsStr, value: &[u8], mode: SetMode) -> Result<()> {
    let path = proc_path(dir, name)?;
    match rustix::fs::lsetxattr(&path, attr, value, mode.flags()) {
        Err(Errno::ACCESS) => set_fd(dir.open_path(name)?, attr, value, mode),
        set => set.map_err(|e| Error::at("set an extended attribute of", dir.as_fd(), name, e)),
    }
}

/// Removes attribute `attr` of `name` in `dir`; false if it did not exist.
pub fn remove(dir: &Dir, name: &OsStr, attr: &OsStr) -> Result<bool> {
    let path = proc_path(dir, name)?;
    match gone(rustix::fs::lremovexattr(&path, attr)) {
        Err(Errno::ACCESS) => remove_fd(dir.open_path(name)?, attr),
        removed => {
            removed.map_err(|e| Error::at("remove an extended attribute of", dir.as_fd(), name, e))
        }
    }
}

/// Returns the names of all attributes of an open file or directory; an `O_PATH` descriptor will
/// do.
pub fn list_fd(fd: impl AsFd) -> Result<Vec<OsString>> {
    let fd = fd.as_fd();
    read_list(|buf| match rustix::fs::flistxattr(fd, &mut *buf) {
        Err(Errno::BADF) => rustix::fs::listxattr(magic(fd), buf),
        other => other,
    })
    .map_err(|e| Error::at("list extended attributes of", fd, "", e))
}

/// Returns the value of attribute `attr` of an open file or directory, or `None` if it has none.
pub fn get_fd(fd: impl AsFd, attr: &OsStr) -> Result<Option<Vec<u8>>> {
    let fd = fd.as_fd();
    read_value(|buf| match rustix::fs::fgetxattr(fd, attr, &mut *buf) {
        Err(Errno::BADF) => rustix::fs::getxattr(magic(fd), attr, buf),
        other => other,
    })
    .or_else(|e| present(own_files::get_xattr(e, fd, attr)))
    .map_err(|e| Error::at("read an extended attribute of", fd, "", e))
}

/// Sets attribute `attr` of an open file or directory.
pub fn set_fd(fd: impl AsFd, attr: &OsStr, value: &[u8], mode: SetMode) -> Result<()> {
    let fd = fd.as_fd();
    match rustix::fs::fsetxattr(fd, attr, value, mode.flags()) {
        Err(Errno::BADF) => rustix::fs::setxattr(magic(fd), attr, value, mode.flags()),
        other => other,
    }
    .or_else(|e| own_files::set_xattr(e, fd, attr, value, mode.flags()))
    .map_err(|e| Error::at("set an extended attribute of", fd, "", e))
}

/// Removes attribute `attr` of an open file or directory; false if it did not exist.
pub fn remove_fd(fd: impl AsFd, attr: &OsStr) -> Result<bool> {
    let fd = fd.as_fd();
    let removed = match rustix::fs::fremovexattr(fd, attr) {
        Err(Errno::BADF) => rustix::fs::removexattr(magic(fd), attr),
        other => other,
    };
    gone(removed.or_else(|e| own_files::remove_xattr(e, fd, attr)))
        .map_err(|e| Error::at("remove an extended attribute of", fd, "", e))
}

fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn proc_path(dir: &Dir, name: &OsStr) -> Result<Vec<u8>> {
    check_name(dir.as_fd(), name)?;
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    Ok(path)
}

/// The calls that take a directory and a name (Linux 6.13).
mod at {
    use std::ffi::{CString, OsStr, OsString};
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::io::Errno;

    use super::{read_list, read_value};

    const GETXATTRAT: libc::c_long = 464;
    const LISTXATTRAT: libc::c_long = 465;

    /// `struct xattr_args`.
    #[repr(C)]
    struct Args {
        value: u64,
        size: u32,
        flags: u32,
    }

    /// Such a call was refused: the kernel does not know it, or a seccomp filter doesn't.
    static UNKNOWN: AtomicBool = AtomicBool::new(cfg!(not(target_os = "linux")));

    fn words(name: &OsStr) -> rustix::io::Result<CString> {
        CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)
    }

    fn done(returned: libc::c_long) -> rustix::io::Result<usize> {
        match usize::try_from(returned) {
            Ok(length) => Ok(length),
            Err(_) => {
                let error = std::io::Error::last_os_error();
                Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
        }
    }

    /// Notes that the call itself was refused; then returns `None`.
    fn known<T>(result: rustix::io::Result<T>) -> Option<rustix::io::Result<T>> {
        match result {
            Err(Errno::NOSYS) => {
                UNKNOWN.store(true, Ordering::Relaxed);
                None
            }
            // A filter refused it, or the file system did: the other call will show which.
            Err(Errno::PERM) => None,
            other => Some(other),
        }
    }

    pub fn list(dir: BorrowedFd<'_>, name: &OsStr) -> Option<rustix::io::Result<Vec<OsString>>> {
        if UNKNOWN.load(Ordering::Relaxed) {
            return None;
        }
        let path = match words(name) {
            Ok(path) => path,
            Err(errno) => return Some(Err(errno)),
        };
        known(read_list(|buffer| {
            // SAFETY: listxattrat reads a NUL-terminated path and writes at most `buffer.len()`
            // bytes to the buffer; both live through the call.
            done(unsafe {
                libc::syscall(
                    LISTXATTRAT,
                    dir.as_raw_fd(),
                    path.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    buffer.as_mut_ptr(),
                    buffer.len(),
                )
            })
        }))
    }

    pub fn get(
        dir: BorrowedFd<'_>,
        name: &OsStr,
        attr: &OsStr,
    ) -> Option<rustix::io::Result<Option<Vec<u8>>>> {
        if UNKNOWN.load(Ordering::Relaxed) {
            return None;
        }
        let (path, attr) = match (words(name), words(attr)) {
            (Ok(path), Ok(attr)) => (path, attr),
            (Err(errno), _) | (_, Err(errno)) => return Some(Err(errno)),
        };
        known(read_value(|buffer| {
            let args = Args {
                value: buffer.as_mut_ptr().expose_provenance() as u64,
                size: buffer.len() as u32,
                flags: 0,
            };
            // SAFETY: getxattrat reads two NUL-terminated strings and the arguments, and writes at
            // most `size` bytes to the buffer that they name; all live through the call.
            done(unsafe {
                libc::syscall(
                    GETXATTRAT,
                    dir.as_raw_fd(),
                    path.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    attr.as_ptr(),
                    &raw const args,
                    size_of::<Args>(),
                )
            })
        }))
    }
}

fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

fn read_list(
    call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<OsString>> {
    let bytes = match grow(call) {
        Ok(bytes) => bytes,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    Ok(bytes
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| OsString::from_vec(n.to_vec()))
        .collect())
}

fn present(result: rustix::io::Result<Vec<u8>>) -> rustix::io::Result<Option<Vec<u8>>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

fn read_value(
    call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Option<Vec<u8>>> {
    present(grow(call))
}

/// Calls with a small buffer first, since nearly every list and value is small, then with the
/// largest Linux allows.
fn grow(
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    const LARGEST: usize = 64 * 1024;
    let mut small = [0u8; 256];
    match call(&mut small) {
        Ok(len) => Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {
            let mut buf = vec![0; LARGEST];
            let len = call(&mut buf)?;
            buf.truncate(len);
            Ok(buf)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_names_and_descriptors_agree() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        let name = OsStr::from_bytes(b"f\xff\n");
        let file = dir.create_file(name, 0o600).unwrap();
        let attr = OsStr::new("user.test");
        assert_eq!(get(&dir, name, attr).unwrap(), None);
        let big = vec![7; 2000];
        set(&dir, name, attr, &big, SetMode::Create).unwrap();
        assert!(
            set(&dir, name, attr, b"x", SetMode::Create)
                .unwrap_err()
                .is_exists()
        );
        assert_eq!(get_fd(&file, attr).unwrap(), Some(big));
        assert_eq!(list(&dir, name).unwrap(), [attr]);
        let path_fd = dir.open_path(name).unwrap();
        set_fd(&path_fd, OsStr::new("user.empty"), b"", SetMode::Any).unwrap();
        assert_eq!(
            get_fd(&path_fd, OsStr::new("user.empty")).unwrap(),
            Some(Vec::new())
        );
        assert_eq!(list_fd(&path_fd).unwrap().len(), 2);
        assert!(remove_fd(&path_fd, OsStr::new("user.empty")).unwrap());
        assert!(remove(&dir, name, attr).unwrap());
        assert!(!remove(&dir, name, attr).unwrap());
        assert!(list_fd(&file).unwrap().is_empty());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        dir.create_file(OsStr::new("target"), 0o600).unwrap();
        dir.symlink(OsStr::new("target"), OsStr::new("link"))
            .unwrap();
        let attr = OsStr::new("trusted.test");
        if !rustix::process::geteuid().is_root() {
            assert!(
                set(
                    &dir,
                    OsStr::new("link"),
                    OsStr::new("user.x"),
                    b"1",
                    SetMode::Any
                )
                .is_err()
            );
            return;
        }
        set(&dir, OsStr::new("link"), attr, b"on the link", SetMode::Any).unwrap();
        assert_eq!(get(&dir, OsStr::new("target"), attr).unwrap(), None);
        assert_eq!(
            get(&dir, OsStr::new("link"), attr).unwrap().as_deref(),
            Some(&b"on the link"[..])
        );
        let link = dir.open_path(OsStr::new("link")).unwrap();
        assert_eq!(
            get_fd(&link, attr).unwrap().as_deref(),
            Some(&b"on the link"[..])
        );
    }

    #[test]
    fn a_name_with_a_slash_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        assert!(list(&dir, OsStr::new("../etc")).is_err());
    }
}

//! Mounting and unmounting: overlays by three methods, binds, moves, and unmounting.
//!
//! Nothing here chooses: the caller says what to mount, where, and by which [`Method`]; the result
//! is read back from the kernel. It must not know what a layer means or where a store keeps it.
//!
//! Mounts made here are shared with other namespaces only if the mount they are attached to is.

mod fuse;
mod overlay;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::{Dir, Error, Result};

pub use fuse::{Detached, FuseMount, fuse_detached};
pub use overlay::{
    EffectiveOptions, KERNEL_LAYER_LIMIT, Method, MountedFacts, OverlayMount, OverlayOptions,
    RedirectDir, Xino, option_page_bytes, overlay, overlay_detached,
};

/// What went wrong with a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// More layers than the kernel's overlayfs accepts.
    #[error("{layers} lower layers are more than the {limit} the kernel accepts")]
    TooManyLayers {
        /// Requested lower layers.
        layers: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// The options exceed the page that mount(2) passes.
    #[error(
        "the mount options for {layers} lower layers take {bytes} bytes, but mount(2) passes only \
         {limit}; Linux 6.8 and newer mount them through fsconfig"
    )]
    OptionsTooLong {
        /// Requested lower layers.
        layers: usize,
        /// Bytes the options would take.
        bytes: usize,
        /// Bytes available.
        limit: usize,
    },
    /// The kernel or the method cannot do what was requested.
    #[error("{method} cannot mount this: {why}")]
    Unsupported {
        /// The method's name.
        method: &'static str,
        /// The reason.
        why: &'static str,
    },
    /// The kernel refused.
    #[error("the kernel refused {step} for the overlay at {}{}", target.display(), said(log))]
    Refused {
        /// The step that failed, such as `fsconfig lowerdir+=/a` or `mount(2)`.
        step: String,
        /// The intended mount point.
        target: PathBuf,
        /// What the kernel logged about it, one message each; may be empty.
        log: Vec<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The mount lacked a requested feature, and was unmounted again.
    #[error("the kernel mounted {} without {feature} (it says {effective})", target.display())]
    FeatureMissing {
        /// The requested option, as `name=value`.
        feature: String,
        /// The option in effect.
        effective: String,
        /// Where it was mounted.
        target: PathBuf,
    },
    /// Another system call failed.
    #[error(transparent)]
    Sys(#[from] Error),
}

fn said(log: &[String]) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(" (kernel: {})", log.join("; "))
    }
}

impl MountError {
    /// Returns the errno, if the error came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        match self {
            MountError::Refused { source, .. } => source.raw_os_error(),
            MountError::Sys(e) => e.errno(),
            _ => None,
        }
    }

    /// True if the upper or work directory is in use by another mount (EBUSY).
    /// [`crate::mountinfo::find_overlay_holders`] finds that mount.
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(Errno::BUSY.raw_os_error())
    }

    /// True if this kernel lacks the system call or the option (ENOSYS, EINVAL, EOPNOTSUPP,
    /// ENODEV): another method may do.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, MountError::Unsupported { .. })
            || [Errno::NOSYS, Errno::INVAL, Errno::OPNOTSUPP, Errno::NODEV]
                .iter()
                .any(|e| self.errno() == Some(e.raw_os_error()))
    }
}

/// Whether an unmount waits for the mount's users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Fail with EBUSY while anything uses the mount.
    No,
    /// Detach the mount now; it ends with its last user.
    Yes,
}

/// How to make a bind mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BindOptions {
    /// Make it read-only.
    pub read_only: bool,
    /// Include the mounts beneath the source.
    pub recursive: bool,
    /// Ignore set-user-id bits and file capabilities.
    pub nosuid: bool,
    /// Refuse device nodes.
    pub nodev: bool,
}

/// Makes the directory or file `source` visible at `target` too. The last component of neither may
/// be a symbolic link.
pub fn bind(source: &Path, target: &Path, options: BindOptions) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(source, flags, Mode::empty())
        .map_err(|e| Error::new("open", source, e))?;
    bind_fd(&fd, target, options)
}

/// Makes what `source` refers to visible at `target` too.
pub fn bind_fd(source: impl AsFd, target: &Path, options: BindOptions) -> Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if options.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let source = source.as_fd();
    let tree = rustix::mount::open_tree(source, "", flags)
        .map_err(|e| Error::at("bind", source, "", e))?;
    let mut set = 0;
    for (wanted, attribute) in [
        (options.read_only, libc::MOUNT_ATTR_RDONLY),
        (options.nosuid, libc::MOUNT_ATTR_NOSUID),
        (options.nodev, libc::MOUNT_ATTR_NODEV),
    ] {
        if wanted {
            set |= attribute;
        }
    }
    if set != 0 {
        set_attributes(tree.as_fd(), set, 0, options.recursive)
            .map_err(|e| Error::at("restrict the bind mount of", source, "", e))?;
    }
    attach(&tree, target)
}

/// Returns `dir` as its own file system has it: mounts inside don't show, it is read-only, and
/// reading does not change access times. This is how an overlay sees its layers.
///
/// Errors: EPERM without privilege over mounts; EINVAL if, in a user namespace, a mount of another
/// namespace is inside.
pub fn without_submounts(dir: &Dir) -> Result<Dir> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(dir, "", flags)
        .map_err(|e| Error::at("look beneath the mounts in", dir.as_fd(), "", e))?;
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME;
    set_attributes(tree.as_fd(), set, libc::MOUNT_ATTR__ATIME, false)
        .map_err(|e| Error::at("restrict the view of", dir.as_fd(), "", e))?;
    // The mount itself goes when `tree` is closed; files open in it stay usable, as after a lazy
    // unmount.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(&tree, ".", flags, Mode::empty())
        .map_err(|e| Error::at("open", dir.as_fd(), "", e))?;
    Dir::from_fd(root)
}

/// Attaches a detached mount.
pub(crate) fn attach(tree: &OwnedFd, target: &Path) -> Result<()> {
    rustix::mount::move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|e| Error::new("mount on", target, e))
}

/// Moves a mount to another path. Errors: EINVAL if `from` is not a mount point or lies in a shared
/// mount.
pub fn move_to(from: &Path, to: &Path) -> Result<()> {
    rustix::mount::move_mount(CWD, from, CWD, to, MoveMountFlags::empty())
        .map_err(|e| Error::new("move the mount to", to, e))
}

/// Keeps mounts made beneath `path`, a mount point, from propagating to other namespaces and back.
pub fn make_private(path: &Path) -> Result<()> {
    rustix::mount::mount_change(path, MountPropagationFlags::PRIVATE)
        .map_err(|e| Error::new("make private the mount at", path, e))
}

/// As [`make_private`], for `path` and every mount beneath it. The first thing to do in a new mount
/// namespace.
pub fn make_private_recursive(path: &Path) -> Result<()> {
    rustix::mount::mount_change(
        path,
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|e| Error::new("make private the mounts beneath", path, e))
}

/// Unmounts the topmost mount at `target`, without following a symbolic link.
///
/// Returns false if nothing is mounted there. Errors: EBUSY while in use and `Detach::No`.
pub fn unmount(target: &Path, detach: Detach) -> Result<bool> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if detach == Detach::Yes {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(target, flags) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(e) => Err(Error::new("unmount", target, e)),
    }
}

/// Unmounts the mount with id `id` if it is the one visible at `target`; false if it is not.
///
/// The mount is opened, its id compared, and exactly that mount is detached, so one mounted over it
/// in between stays. Always detaches, since the descriptor itself is a user.
pub fn unmount_id(target: &Path, id: u64) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(target, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(Error::new("open", target, e)),
    };
    let seen = crate::stat::whereabouts(&fd).map_err(|e| Error::new("stat", target, e))?;
    if seen.mnt_id != id {
        return Ok(false);
    }
    match rustix::mount::unmount(
        format!("/proc/self/fd/{}", fd.as_raw_fd()),
        UnmountFlags::DETACH,
    ) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(e) => Err(Error::new("unmount", target, e)),
    }
}

/// Detaches every mount at `path` and beneath it, topmost and deepest first; hidden ones go with
/// the mounts they are attached to.
///
/// Returns how many were unmounted. Mounts added in between may stay: call it again.
pub fn unmount_all(path: &Path) -> Result<usize> {
    let mut count = 0;
    // One pass for each stacked mount is enough unless another process keeps mounting.
    for _ in 0..64 {
        let table = crate::mountinfo::read()?;
        let mut progress = false;
        for mount in table.beneath(path) {
            if unmount(&mount.mount_point, Detach::Yes)? {
                count += 1;
                progress = true;
            }
        }
        if !progress {
            break;
        }
    }
    Ok(count)
}

/// True if `path` is a mount point in this namespace. Compares mount ids with its parent directory.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::new("open", path, e))?;
    let here = crate::stat::stat_fd(&fd)?;
    if !here.is_dir() {
        return Ok(crate::mountinfo::of(&fd)?.is_some_and(|m| m.mount_point == path));
    }
    let above = crate::stat::Stat::at(&fd, Path::new(".."), AtFlags::empty())
        .map_err(|e| Error::new("stat the parent of", path, e))?;
    Ok(above.mnt_id != here.mnt_id || above.identity() == here.identity())
}

/// False if the FUSE server of the mount at `path` has ended: then every request fails with
/// ENOTCONN.
///
/// Waits as long as a living server takes to answer. Errors: anything else that prevents the
/// request.
pub fn is_served(path: &Path) -> Result<bool> {
    // The one request that the kernel never answers from its cache.
    match rustix::fs::statfs(path) {
        Ok(_) => Ok(true),
        // Of the two, the second is for a request sent while the server was ending.
        Err(Errno::NOTCONN | Errno::CONNABORTED) => Ok(false),
        Err(e) => Err(Error::new("ask the server of", path, e)),
    }
}

/// Returns whether a kernel overlay of this machine uses `dir` as its upper directory.
///
/// Finds out by starting an overlay that must fail: its work directory is elsewhere, which the
/// kernel notices only after it has found the upper free. Nothing in `dir` changes. Errors: EPERM
/// without CAP_SYS_ADMIN; anything else that prevents the attempt.
pub fn overlay_holds(dir: &Dir) -> Result<bool> {
    use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};
    let fail = |e: Errno| Error::at("ask the kernel about", dir.as_fd(), "", e);
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    let upper = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    let options = [
        ("index", "on"),
        ("lowerdir", "/sys"),
        ("upperdir", upper.as_str()),
        ("workdir", "/sys"),
    ];
    for (key, value) in options {
        fsconfig_set_string(&context, key, value).map_err(fail)?;
    }
    match fsconfig_create(&context) {
        Err(Errno::BUSY) => Ok(true),
        // What the kernel answers for such a work directory.
        Err(Errno::INVAL) => Ok(false),
        Err(e) => Err(fail(e)),
        Ok(()) => Err(fail(Errno::INVAL)),
    }
}

/// Mounts a fresh file system of type `fs` (such as `tmpfs`) at `target` with mount(2).
pub fn filesystem(fs: &str, source: &Path, target: &Path, options: &CStr) -> Result<()> {
    rustix::mount::mount(
        source,
        target,
        fs,
        rustix::mount::MountFlags::empty(),
        options,
    )
    .map_err(|e| Error::new("mount on", target, e))
}

/// Gives a mount the flags that `options` name, as mount(8) spells them; the last word wins, and
/// words that are not flags are ignored.
pub fn remount<'a>(target: &Path, options: impl Iterator<Item = &'a str>) -> Result<()> {
    use rustix::mount::MountFlags;

    let mut flags = MountFlags::empty();
    for option in options {
        let (flag, on) = match option {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "norelatime" => (MountFlags::RELATIME, false),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "nostrictatime" => (MountFlags::STRICTATIME, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            _ => continue,
        };
        flags.set(flag, on);
    }
    rustix::mount::mount_remount(target, flags, c"").map_err(|e| Error::new("remount", target, e))
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets and clears mount attributes of a mount given by descriptor (mount_setattr(2), Linux 5.12).
fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    recursive: bool,
) -> rustix::io::Result<()> {
    let attr = MountAttr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let empty = CString::default();
    // SAFETY: the kernel reads the NUL-terminated empty string and `size_of::<MountAttr>()` bytes
    // of `attr`, which is laid out as struct mount_attr and lives through the call; it writes
    // nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// True if `path` can be given to fsconfig as a string: at most 255 bytes reach the kernel.
fn fits_fsconfig(path: &Path) -> bool {
    path.as_os_str().as_bytes().len() < 256
}

#[cfg(test)]
mod tests;

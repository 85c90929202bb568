//! Temporary directories for tests.
//!
//! Everything a [`Scratch`] mounted or created is undone when it is dropped, mounts first and the
//! last mount first, also while a panic unwinds. A process that is killed leaves litter under
//! `VELLUM_TEST_DIR` (default: the system's temporary directory), named `vellum-test-*`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The file systems that can be created for a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// ext4 with Debian's defaults.
    Ext4,
    /// ext4 without file types in directory entries: overlays can't use it.
    Ext4NoFiletype,
    /// xfs with reflinks.
    Xfs,
    /// btrfs.
    Btrfs,
    /// In memory.
    Tmpfs,
}

impl FsKind {
    /// Every type.
    pub const ALL: [FsKind; 5] = [
        FsKind::Ext4,
        FsKind::Ext4NoFiletype,
        FsKind::Xfs,
        FsKind::Btrfs,
        FsKind::Tmpfs,
    ];

    fn mkfs(self) -> Option<&'static [&'static str]> {
        match self {
            FsKind::Ext4 => Some(&["mkfs.ext4", "-q", "-F"]),
            FsKind::Ext4NoFiletype => Some(&["mkfs.ext4", "-q", "-F", "-O", "^filetype"]),
            FsKind::Xfs => Some(&["mkfs.xfs", "-q", "-f"]),
            FsKind::Btrfs => Some(&["mkfs.btrfs", "-q", "-f"]),
            FsKind::Tmpfs => None,
        }
    }

    /// The smallest size in MiB that the file system's own tools accept.
    fn least_mib(self) -> u64 {
        match self {
            FsKind::Xfs => 300,
            FsKind::Btrfs => 128,
            FsKind::Ext4 | FsKind::Ext4NoFiletype | FsKind::Tmpfs => 1,
        }
    }
}

/// A temporary directory, and the mounts below it.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    mounts: Mutex<Vec<PathBuf>>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Scratch {
    /// Creates a new, empty directory, mode 0700.
    ///
    /// From now on new files of this process are readable by others: tests rely on the usual umask,
    /// whatever the caller's is.
    pub fn new() -> Scratch {
        usual_umask();
        let base =
            std::env::var_os("VELLUM_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::Builder::new()
            .prefix("vellum-test-")
            .tempdir_in(base)
            .expect("a temporary directory");
        Scratch {
            dir: dir.keep(),
            mounts: Mutex::new(Vec::new()),
        }
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Returns a path below the directory; creates nothing.
    pub fn join(&self, below: impl AsRef<Path>) -> PathBuf {
        self.dir.join(below)
    }

    /// Creates a directory below, with its parents, and returns its path.
    pub fn dir(&self, below: impl AsRef<Path>) -> PathBuf {
        let path = self.join(below);
        std::fs::create_dir_all(&path).expect("a directory in the scratch place");
        path
    }

    /// Creates a file below, with its parents, and returns its path.
    pub fn file(&self, below: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(below);
        std::fs::create_dir_all(path.parent().expect("a file has a parent"))
            .expect("the file's parents");
        std::fs::write(&path, content).expect("a file in the scratch place");
        path
    }

    /// Mounts a new file system of `size_mib` (raised to what its tools need) on the new directory
    /// `below`.
    ///
    /// The root directory of the new file system gets mode 0755. Needs root. Errors name the tool
    /// that failed and include its output; a test then reports itself as
    /// [`untested`](crate::untested()).
    pub fn file_system(
        &self,
        below: impl AsRef<Path>,
        kind: FsKind,
        size_mib: u64,
    ) -> Result<PathBuf, String> {
        self.file_system_with(below, kind, size_mib, &[], "loop")
    }

    /// The same, with project quotas, which XFS and ext4 can keep. Errors: also if the kernel
    /// can't.
    pub fn file_system_with_quotas(
        &self,
        below: impl AsRef<Path>,
        kind: FsKind,
        size_mib: u64,
    ) -> Result<PathBuf, String> {
        let more: &[&str] = match kind {
            FsKind::Ext4 => &["-O", "project,quota", "-E", "quotatype=prjquota"],
            _ => &[],
        };
        self.file_system_with(below, kind, size_mib, more, "loop,prjquota")
    }

    fn file_system_with(
        &self,
        below: impl AsRef<Path>,
        kind: FsKind,
        size_mib: u64,
        more: &[&str],
        options: &str,
    ) -> Result<PathBuf, String> {
        let target = self.dir(below);
        let size_mib = size_mib.max(kind.least_mib());
        match kind.mkfs() {
            None => {
                let size = format!("size={size_mib}m,mode=0755");
                run(Command::new("mount")
                    .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                    .arg(&target))?;
            }
            Some(mkfs) => {
                let mut image = target.clone().into_os_string();
                image.push(".img");
                let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
                file.set_len(size_mib << 20)
                    .map_err(|error| error.to_string())?;
                run(Command::new(mkfs[0])
                    .args(&mkfs[1..])
                    .args(more)
                    .arg(&image))?;
                run(Command::new("mount")
                    .args(["-o", options])
                    .arg(&image)
                    .arg(&target))?;
            }
        }
        self.adopt_mount(&target);
        Ok(target)
    }

    /// Takes over unmounting `target` at the end (before the mounts adopted earlier).
    pub fn adopt_mount(&self, target: &Path) {
        self.mounts
            .lock()
            .expect("no test panics in here")
            .push(target.to_owned());
    }

    /// Unmounts `target` now.
    pub fn unmount(&self, target: &Path) {
        let mut mounts = self.mounts.lock().expect("no test panics in here");
        let at = mounts
            .iter()
            .rposition(|mount| mount == target)
            .expect("a mount of this scratch place");
        mounts.remove(at);
        unmount_at_last(target, Duration::from_secs(30)).expect("the mount goes");
    }

    /// Creates an executable script below, with its parents, and returns its path. It can be run at
    /// once.
    ///
    /// Another process writes it. A child that a concurrent test starts at that moment would
    /// inherit a descriptor open for writing, and until it executes its own program no process
    /// could execute this one (`ETXTBSY`).
    pub fn script(&self, below: impl AsRef<Path>, text: &str) -> PathBuf {
        let path = self.join(below);
        std::fs::create_dir_all(path.parent().expect("a file has a parent"))
            .expect("the script's parents");
        run(Command::new("sh")
            .args(["-c", r#"printf %s "$2" > "$1" && chmod 755 "$1""#, "sh"])
            .arg(&path)
            .arg(text))
        .expect("a script in the scratch place");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mounts = match self.mounts.get_mut() {
            Ok(mounts) => mounts,
            Err(poisoned) => poisoned.into_inner(),
        };
        for target in mounts.drain(..).rev() {
            // Nothing is left that would mind if it lives on, detached, with its last user.
            if let Err(error) = unmount_at_last(&target, Duration::ZERO) {
                eprintln!("scratch: {} stays mounted: {error}", target.display());
            }
        }
        if let Err(error) = remove_tree(&self.dir) {
            eprintln!("scratch: {} stays: {error}", self.dir.display());
        }
    }
}

/// Sets the usual umask. It is per process, and the same whichever test sets it.
pub(crate) fn usual_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// Returns the mounts that this process sees, as in `/proc/self/mountinfo`.
///
/// Concurrent tests mount at names that are not valid text: invalid parts are shown as U+FFFD.
pub fn mount_table() -> String {
    let table = std::fs::read("/proc/self/mountinfo").expect("/proc is mounted");
    String::from_utf8_lossy(&table).into_owned()
}

/// Unmounts `target`, and waits for users that are about to finish.
///
/// A process that a concurrent test starts has copies of all descriptors of this process until it
/// executes its own program; one that was killed has its own until it is gone. Errors: `EBUSY` if
/// the mount is in use for half a minute; otherwise those of umount2(2).
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(unmount_within(target, Duration::from_secs(30))?)
}

fn unmount_within(target: &Path, patience: Duration) -> Result<(), rustix::io::Errno> {
    use rustix::mount::UnmountFlags;
    let until = Instant::now() + patience;
    loop {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::BUSY) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// The same, but a mount that is still in use then is at least detached, and one that the test, or
/// the code under test, unmounted itself is not an error.
fn unmount_at_last(target: &Path, patience: Duration) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    match unmount_within(target, patience) {
        Err(rustix::io::Errno::BUSY) => {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            Ok(rustix::mount::unmount(target, flags)?)
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Copies a program, so that every user can run the copy at once: see [`Scratch::script`]. A second
/// name is as good as a copy.
///
/// Panics if neither can be created.
pub fn copy_program(from: &Path, to: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(from).map(|found| found.permissions().mode());
    let for_everybody = mode.is_ok_and(|mode| mode & 0o555 == 0o555);
    if !for_everybody || std::fs::hard_link(from, to).is_err() {
        run(Command::new("install")
            .args(["-m", "755", "--"])
            .arg(from)
            .arg(to))
        .expect("a copy of the program");
    }
}

/// Removes a tree with `rm`, which copes with depths and modes that `std` does not; immutable flags
/// are cleared first.
fn remove_tree(dir: &Path) -> Result<(), String> {
    let remove = || {
        run(Command::new("rm")
            .args(["-rf", "--one-file-system", "--"])
            .arg(dir))
    };
    remove().or_else(|_| {
        // Its own failure does not matter: the second removal shows what is left.
        let _ = run(Command::new("chattr")
            .args(["-R", "-f", "-i", "-a"])
            .arg(dir));
        remove()
    })
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left() {
        let scratch = Scratch::new();
        let path = scratch.path().to_owned();
        scratch.file("a/b/c", "content");
        if crate::needs_root("scratch mounts") {
            let mounted = scratch.file_system("fs", FsKind::Tmpfs, 1).unwrap();
            std::fs::write(mounted.join("x"), "y").unwrap();
        }
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn every_file_system_can_be_created() {
        if !crate::needs_root("scratch file systems") {
            return;
        }
        let scratch = Scratch::new();
        for kind in FsKind::ALL {
            match scratch.file_system(format!("{kind:?}"), kind, 16) {
                Ok(mounted) => std::fs::write(mounted.join("x"), "y").unwrap(),
                Err(why) => crate::untested(&format!("{kind:?}"), why),
            }
        }
    }

    #[test]
    fn a_panic_cleans_up_too() {
        let path = std::thread::spawn(|| {
            let scratch = Scratch::new();
            std::panic::panic_any(scratch.path().to_owned());
        })
        .join()
        .unwrap_err();
        let path: &PathBuf = path.downcast_ref().unwrap();
        assert!(!path.exists());
    }
}

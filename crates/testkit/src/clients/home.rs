//! The directory that one test's tools live in, and its thorough removal.

use anyhow::Context;
use rustix::mount::UnmountFlags;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A directory for stores, sockets and archives that is emptied of mounts and removed when dropped.
///
/// The path is short (`/tmp/vtXXXXXX`): unix sockets allow 107 bytes, and mount(2) one page
/// for the paths of all layers.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Creates an empty directory, mode 0755: tools that drop privileges must reach what is inside.
    /// From now on the umask is the usual one.
    pub fn new() -> anyhow::Result<Self> {
        crate::scratch::usual_umask();
        let dir = tempfile::Builder::new()
            .prefix("vt")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .context("cannot create a directory for the test's tools")?;
        Ok(Self { path: dir.keep() })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory `name` below and returns its path.
    pub fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// The path of `name` below; nothing is created.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Mounts are listed in order of creation; a later one may lie on top of an earlier.
        for attempt in 0..20 {
            let mounts = mounts_below(&self.path);
            if mounts.is_empty() {
                break;
            }
            for mount in mounts.iter().rev() {
                // A mount that went along with another is not a failure: the list is read again.
                let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
            }
            if attempt > 0 {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        let left = mounts_below(&self.path);
        if !left.is_empty() {
            // Removing now could delete the content of these mounts.
            eprintln!("left behind, still mounted: {left:?}");
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("left behind {}: {error}", self.path.display());
        }
    }
}

/// Mount points at or below `dir` in this mount namespace, in order of creation.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(text) = std::fs::read("/proc/self/mountinfo") else {
        return Vec::new();
    };
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape_octal(field))))
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\' && tail.len() >= 3 && tail[..3].iter().all(|b| (b'0'..=b'7').contains(b)) {
            out.push(
                tail[..3]
                    .iter()
                    .fold(0u8, |value, digit| value.wrapping_mul(8) + (digit - b'0')),
            );
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape_octal(b"/a\\040b\\134c\\"), b"/a b\\c\\");
    }

    #[test]
    fn a_home_is_gone_after_drop() {
        let home = Home::new().unwrap();
        let path = home.path().to_owned();
        std::fs::write(home.dir("deep").unwrap().join("file"), "x").unwrap();
        drop(home);
        assert!(!path.exists());
    }
}

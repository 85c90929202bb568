//! The files of a node, which may be mounted elsewhere: the node's `/etc/x` is `HOST_ROOT/etc/x`
//! here.
//!
//! Symbolic links are followed as the node sees them, so a link to `/usr/etc` stays in the node's
//! tree. This module must not know what the files are for.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use vellum_sys::Dir;
use vellum_sys::publish::write_file_atomic;

use vellum_service::error::{Error, Result};

/// The most links followed before it counts as a loop; the kernel's number.
const MOST_LINKS: usize = 40;

/// The tree of a node.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Returns the tree that is mounted at `root`. Errors: `Invalid` if there is no such directory.
    pub fn at(root: &Path) -> Result<Self> {
        match root.is_dir() {
            true => Ok(Self { root: root.into() }),
            false => Err(Error::Invalid {
                what: format!("{} is not a directory", root.display()),
                hint: Some("--host-root is where the node's root file system is mounted".into()),
            }),
        }
    }

    /// Returns where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the node's `path` here, links followed. A missing component has no
    /// links.
    ///
    /// Errors: `Invalid` for a loop of links, `Io`.
    pub fn here(&self, path: &Path) -> Result<PathBuf> {
        let mut left: VecDeque<OsString> = parts(path);
        let mut inside: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                inside.pop();
                continue;
            }
            let mut at = self.root.clone();
            at.extend(inside.iter().chain([&part]));
            match fs::read_link(&at) {
                Ok(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Error::Invalid {
                            what: format!("{} is a loop of symbolic links", path.display()),
                            hint: None,
                        });
                    }
                    if target.is_absolute() {
                        inside.clear();
                    }
                    let mut parts = parts(&target);
                    parts.append(&mut left);
                    left = parts;
                }
                // Not a link, or not there.
                Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                    inside.push(part);
                }
                Err(e) => return Err(Error::io("stat", at)(e)),
            }
        }
        let mut at = self.root.clone();
        at.extend(inside);
        Ok(at)
    }

    /// Returns the content of a file, `None` if there is none.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let at = self.here(path)?;
        match fs::read(&at) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", at)(e)),
        }
    }

    /// Replaces or creates a file in one step, durably; creates the directories above it. Processes
    /// that run the old program keep it.
    pub fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let at = self.here(path)?;
        let (Some(above), Some(name)) = (at.parent(), at.file_name()) else {
            return Err(Error::io("write", at)(ErrorKind::InvalidInput.into()));
        };
        fs::create_dir_all(above).map_err(Error::io("create", above))?;
        // The mode of an existing file stays, as its owner chose it.
        let mode = match fs::metadata(&at) {
            Ok(old) => old.permissions().mode() & 0o777 | mode & 0o111,
            Err(_) => mode,
        };
        Ok(write_file_atomic(&Dir::open(above)?, name, bytes, mode)?)
    }

    /// Removes a file. Returns whether there was one.
    pub fn remove(&self, path: &Path) -> Result<bool> {
        let at = self.here(path)?;
        match fs::remove_file(&at) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("remove", at)(e)),
        }
    }

    /// Removes a directory if it is there and empty.
    pub fn remove_empty_dir(&self, path: &Path) -> Result<()> {
        let at = self.here(path)?;
        match fs::remove_dir(&at) {
            Ok(()) => Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Ok(())
            }
            Err(e) => Err(Error::io("remove", at)(e)),
        }
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// Returns the running program's file, whole.
pub fn own_program() -> Result<Vec<u8>> {
    // Even if a newer one has taken its name.
    let at = Path::new("/proc/self/exe");
    let mut bytes = Vec::new();
    fs::File::open(at)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(Error::io("read", at))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_of_the_node_stay_in_its_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::at(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("var/real")).unwrap();
        fs::create_dir_all(dir.path().join("usr")).unwrap();
        symlink("/var/real", dir.path().join("usr/local")).unwrap();
        symlink("../../../../var", dir.path().join("usr/up")).unwrap();
        symlink("round", dir.path().join("round")).unwrap();
        let here = |path: &str| tree.here(Path::new(path)).unwrap();
        assert_eq!(here("/usr/local/bin/x"), dir.path().join("var/real/bin/x"));
        assert_eq!(here("/usr/up/a"), dir.path().join("var/a"));
        assert!(tree.here(Path::new("/round")).is_err());
        tree.write(Path::new("/usr/local/bin/x"), b"1", 0o755)
            .unwrap();
        assert_eq!(fs::read(dir.path().join("var/real/bin/x")).unwrap(), b"1");
        let mode = fs::metadata(dir.path().join("var/real/bin/x")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o755);
    }
}

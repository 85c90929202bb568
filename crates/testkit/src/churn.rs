//! Random changes to a tree, of every type that leaves its own trace in an overlay's upper.
//!
//! The tree is changed through ordinary system calls, so it may be a kernel overlay, a FUSE mount
//! or a plain directory. An operation that fails (a rename over a full directory, a link across
//! layers) is skipped: what matters is that afterwards two views of the result agree.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags};

use crate::Rng;

/// Which types of changes to make.
#[derive(Debug, Clone, Copy)]
pub struct Churn {
    /// Hard links.
    pub links: bool,
    /// Xattrs under `trusted.`, including some that look like an overlay's marks: they need
    /// privilege.
    pub trusted_xattrs: bool,
    /// Device nodes.
    pub devices: bool,
}

impl Churn {
    /// Everything.
    pub const ALL: Churn = Churn {
        links: true,
        trusted_xattrs: true,
        devices: true,
    };

    /// Changes the tree at `root` `count` times; the root itself only by what is created in it.
    pub fn run(self, rng: &mut Rng, root: &Path, count: usize) {
        for _ in 0..count {
            let paths = paths(root);
            // A failure is as good an outcome as any: the tree is what it is.
            let _ = self.step(rng, root, &paths);
        }
    }

    fn step(self, rng: &mut Rng, root: &Path, paths: &[PathBuf]) -> io::Result<()> {
        let any = rng.pick(paths).clone();
        let dirs: Vec<_> = paths
            .iter()
            .filter(|path| is_dir(path))
            .cloned()
            .chain([root.to_owned()])
            .collect();
        let new = rng.pick(&dirs).join(rng.name());
        match rng.below(24) {
            0..=2 => write(rng, &new),
            3..=4 => fs::create_dir(&new),
            5 => symlink(rng.name(), &new),
            6 => match rng.below(3) {
                0 => node(&new, FileType::Fifo, 0),
                1 => node(&new, FileType::Socket, 0),
                _ if self.devices => {
                    node(&new, FileType::CharacterDevice, rustix::fs::makedev(1, 3))
                }
                _ => Ok(()),
            },
            7 => write(rng, &any),
            8 => {
                let mut file = fs::OpenOptions::new().write(true).open(regular(&any)?)?;
                file.seek(SeekFrom::Start(rng.below(30_000) as u64))?;
                file.write_all(&rng.bytes(100))
            }
            9 => fs::OpenOptions::new()
                .write(true)
                .open(regular(&any)?)?
                .set_len(rng.below(9_000) as u64),
            10 | 11 if !any.is_symlink() => fs::set_permissions(
                &any,
                fs::Permissions::from_mode(0o700 | rng.below(0o10000) as u32),
            ),
            12 => std::os::unix::fs::lchown(
                &any,
                Some(rng.below(3) as u32),
                Some(rng.below(3) as u32),
            ),
            13 => {
                let time = UNIX_EPOCH
                    + Duration::new(rng.below(1 << 30) as u64, rng.below(1_000_000_000) as u32);
                fs::File::open(regular(&any)?)?.set_modified(time)
            }
            14 => self.xattr(rng, &any),
            15 => match is_dir(&any) {
                true => fs::remove_dir_all(&any),
                false => fs::remove_file(&any),
            },
            16 => fs::remove_file(&any),
            // Deleting and recreating leaves opaque directories and files over whiteouts.
            17 if is_dir(&any) => {
                fs::remove_dir_all(&any)?;
                fs::create_dir(&any)?;
                write(rng, &any.join("again"))
            }
            17 => fs::remove_file(&any).and_then(|()| write(rng, &any)),
            18..=20 => fs::rename(&any, &new),
            21 => fs::rename(&any, rng.pick(paths)),
            22 => Ok(rustix::fs::renameat_with(
                CWD,
                &any,
                CWD,
                rng.pick(paths),
                RenameFlags::EXCHANGE,
            )?),
            _ if self.links => fs::hard_link(&any, &new),
            _ => Ok(()),
        }
    }

    fn xattr(self, rng: &mut Rng, path: &Path) -> io::Result<()> {
        let names: &[&str] = match self.trusted_xattrs {
            true => &[
                "user.a",
                "user.b",
                "trusted.t",
                "trusted.overlay.opaque",
                "trusted.overlay.overlay.x",
            ],
            false => &["user.a", "user.b", "user.long name"],
        };
        let name = *rng.pick(names);
        match rng.chance(25) {
            true => Ok(rustix::fs::lremovexattr(path, name)?),
            false => Ok(rustix::fs::lsetxattr(
                path,
                name,
                &rng.bytes(40),
                XattrFlags::empty(),
            )?),
        }
    }
}

/// Fills the empty directory `root` with a random tree of about `count` objects.
pub fn grow(rng: &mut Rng, root: &Path, count: usize) {
    for index in 0..count {
        let dirs: Vec<_> = paths(root)
            .into_iter()
            .filter(|path| is_dir(path))
            .chain([root.to_owned()])
            .collect();
        let new = rng.pick(&dirs).join(rng.name());
        let made = match index % 3 {
            0 => fs::create_dir(&new),
            _ => write(rng, &new),
        };
        // A name drawn twice does no harm.
        let _ = made;
    }
}

fn write(rng: &mut Rng, path: &Path) -> io::Result<()> {
    if path.exists() {
        regular(path)?;
    }
    let size = *rng.pick(&[0, 10, 5_000, 20_000]);
    fs::write(path, rng.bytes(size))
}

/// Errors unless `path` is a regular file: opening a fifo would wait for ever.
fn regular(path: &Path) -> io::Result<&Path> {
    match path.symlink_metadata()?.is_file() {
        true => Ok(path),
        false => Err(io::Error::other("not a regular file")),
    }
}

fn node(path: &Path, kind: FileType, device: u64) -> io::Result<()> {
    Ok(rustix::fs::mknodat(
        CWD,
        path,
        kind,
        Mode::from_raw_mode(0o640),
        device,
    )?)
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

/// Everything below `root`, sorted, so that a seed makes the same choices again.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            if is_dir(&entry.path()) {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    match found.is_empty() {
        true => vec![root.to_owned()],
        false => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scratch, Tree};

    #[test]
    fn a_seed_makes_the_same_tree() {
        let scratch = Scratch::new();
        let trees = ["a", "b"].map(|name| {
            let root = scratch.dir(name);
            let mut rng = Rng::seeded(11);
            grow(&mut rng, &root, 30);
            Churn {
                trusted_xattrs: false,
                devices: false,
                ..Churn::ALL
            }
            .run(&mut rng, &root, 100);
            Tree::read(&root).unwrap()
        });
        let ignore = crate::tree::Ignore {
            mtimes: true,
            ..Default::default()
        };
        trees[0].assert_same(&trees[1], ignore);
        assert!(trees[0].entries.len() > 10);
    }
}

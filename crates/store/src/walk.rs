//! Walks trees with untrusted content: by descriptor, one name at a time, never following a link.
//!
//! A [`Spine`] is the path from a root directory down to the current one. Only its deepest levels
//! are kept open, so depth costs no descriptors. The way back up goes through `..`, and is trusted
//! only if device and inode are those noted on the way down. Trees may change during the walk: a
//! name that is gone is skipped.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    io,
    path::Path,
};

use rustix::fs::{Mode, OFlags};
use vellum_format::{Mark, Metacopy, Prefix};
use vellum_sys::{Dir, Stat, stat::stat_fd, xattr};

use crate::{
    error::{Result, StoreError},
    layout,
    snapshot::Usage,
};

const OPEN_LEVELS: usize = 32;

struct Level {
    identity: (u64, u64),
    dir: Option<Dir>,
}

/// The path from a root down to a current directory.
pub(crate) struct Spine {
    levels: Vec<Level>,
}

impl Spine {
    pub fn new(root: Dir) -> Result<Self> {
        let identity = stat_fd(&root)?.identity();
        Ok(Self {
            levels: vec![Level {
                identity,
                dir: Some(root),
            }],
        })
    }

    /// Returns the current directory.
    pub fn here(&self) -> &Dir {
        // The deepest level is always open: `down` and `up` ensure it, and the root is never
        // removed.
        self.levels
            .last()
            .and_then(|level| level.dir.as_ref())
            .expect("the deepest level is open")
    }

    /// Goes down into `name`.
    pub fn down(&mut self, name: &OsStr) -> Result<()> {
        let dir = self.here().open_dir(Path::new(name))?;
        let identity = stat_fd(&dir)?.identity();
        self.levels.push(Level {
            identity,
            dir: Some(dir),
        });
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS + 1)
            && far > 0
        {
            self.levels[far].dir = None;
        }
        Ok(())
    }

    /// Goes up one level; does nothing at the root.
    ///
    /// Errors: ESTALE if the directory was moved away in between.
    pub fn up(&mut self) -> Result<()> {
        if self.levels.len() < 2 {
            return Ok(());
        }
        let Some(left) = self.levels.pop().and_then(|level| level.dir) else {
            return Ok(());
        };
        let Some(level) = self.levels.last_mut() else {
            return Ok(());
        };
        if level.dir.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let moved = |source: io::Error| StoreError::Io {
                op: "go up from",
                path: left.path().unwrap_or_default(),
                source,
            };
            let fd = rustix::fs::openat(&left, "..", flags, Mode::empty())
                .map_err(|e| moved(e.into()))?;
            if stat_fd(&fd)?.identity() != level.identity {
                return Err(moved(rustix::io::Errno::STALE.into()));
            }
            level.dir = Some(Dir::from_fd(fd)?);
        }
        Ok(())
    }
}

/// What a walk reports. The default methods walk everything and do nothing.
pub(crate) trait Visitor {
    /// An entry of the directory `parent`, before it is entered. False: do not enter it.
    fn entry(&mut self, parent: &Dir, name: &OsStr, stat: &Stat) -> Result<bool>;

    /// All entries of the directory `dir` (never the root) were visited; `name` and `stat` are its
    /// own.
    fn leave(&mut self, dir: &Dir, name: &OsStr, stat: &Stat) -> Result<()> {
        let _ = (dir, name, stat); // the default ignores them
        Ok(())
    }

    /// The directory `name`, just reported and about to be entered, is gone.
    fn vanished(&mut self, name: &OsStr) -> Result<()> {
        let _ = name; // the default ignores them
        Ok(())
    }
}

/// Walks everything beneath `root`, directories before their content, names in byte order. Mounts
/// are not entered.
pub(crate) fn walk(root: Dir, visitor: &mut dyn Visitor) -> Result<()> {
    let top = stat_fd(&root)?;
    let mut spine = Spine::new(root)?;
    // One frame a level: names still to visit (last first), and the directory's own name and
    // attributes.
    let mut frames = vec![(names(spine.here())?, None::<(OsString, Stat)>)];
    while let Some((todo, _)) = frames.last_mut() {
        let Some(name) = todo.pop() else {
            let Some((_, Some((name, stat)))) = frames.pop() else {
                break;
            };
            visitor.leave(spine.here(), &name, &stat)?;
            spine.up()?;
            continue;
        };
        let Some(stat) = spine.here().stat_opt(&name)? else {
            continue;
        };
        if visitor.entry(spine.here(), &name, &stat)? && stat.is_dir() && stat.same_mount(&top) {
            match spine.down(&name) {
                Ok(()) => {}
                Err(StoreError::Sys(e)) if e.is_not_found() => {
                    visitor.vanished(&name)?;
                    continue;
                }
                Err(e) => return Err(e),
            }
            frames.push((names(spine.here())?, Some((name, stat))));
        }
    }
    Ok(())
}

fn names(dir: &Dir) -> Result<Vec<OsString>> {
    let mut names = dir
        .entries()?
        .map(|entry| Ok(entry?.name))
        .collect::<std::result::Result<Vec<_>, vellum_sys::Error>>()?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// Inodes with several names, by device and number.
pub(crate) type Inodes = HashSet<(u64, u64)>;

struct Counter<'a> {
    usage: Usage,
    seen: Inodes,
    except: Option<&'a Inodes>,
}

impl Counter<'_> {
    fn count(&mut self, stat: &Stat) {
        if !stat.is_dir() && stat.nlink > 1 {
            let identity = stat.identity();
            if self.except.is_some_and(|others| others.contains(&identity))
                || !self.seen.insert(identity)
            {
                return;
            }
        }
        self.usage += Usage {
            bytes: stat.blocks_512 * 512,
            inodes: 1,
        };
    }
}

impl Visitor for Counter<'_> {
    fn entry(&mut self, _: &Dir, _: &OsStr, stat: &Stat) -> Result<bool> {
        self.count(stat);
        Ok(true)
    }
}

/// Counts what the tree at `root` takes, including the root, each inode once; inodes in `except`
/// are not counted.
pub(crate) fn usage(root: &Path, except: Option<&Inodes>) -> Result<Usage> {
    let root = layout::dir(root)?;
    let mut counter = Counter {
        usage: Usage::default(),
        seen: Inodes::new(),
        except,
    };
    counter.count(&root.stat_self()?);
    walk(root, &mut counter)?;
    Ok(counter.usage)
}

/// Returns the inodes under `root` that have several names.
pub(crate) fn shared_inodes(root: &Path) -> Result<Inodes> {
    struct Collect(Inodes);
    impl Visitor for Collect {
        fn entry(&mut self, _: &Dir, _: &OsStr, stat: &Stat) -> Result<bool> {
            if !stat.is_dir() && stat.nlink > 1 {
                self.0.insert(stat.identity());
            }
            Ok(true)
        }
    }
    let mut collect = Collect(Inodes::new());
    walk(layout::dir(root)?, &mut collect)?;
    Ok(collect.0)
}

/// The marks of renames and metadata-only copies found in a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MarksFound {
    /// Some directory or file has a redirect.
    pub redirects: bool,
    /// Some file has its data in a lower layer.
    pub metacopies: bool,
}

/// Looks for marks that a reader has to follow besides whiteouts and opaque directories.
///
/// Errors: `Unsupported` if a file is half-written by an engine: nothing else could read it.
pub(crate) fn marks(root: &Path, prefix: Prefix) -> Result<MarksFound> {
    struct Look(Prefix, MarksFound);
    impl Visitor for Look {
        fn entry(&mut self, parent: &Dir, name: &OsStr, stat: &Stat) -> Result<bool> {
            let Look(prefix, found) = self;
            if !(stat.is_dir() || stat.is_file()) {
                return Ok(true);
            }
            let redirect = xattr::get(parent, name, prefix.xattr(Mark::Redirect))?;
            found.redirects |= redirect.is_some();
            if !stat.is_file() {
                return Ok(true);
            }
            let metacopy = xattr::get(parent, name, prefix.xattr(Mark::Metacopy))?;
            match metacopy.as_deref().map(Metacopy::parse) {
                Some(Ok(Metacopy::Unsettled)) => Err(StoreError::Unsupported {
                    what: format!("making a layer of a tree with {}", parent.path().unwrap_or_default().join(name).display()),
                    why: "the file is unsettled: part of its data is in a lower layer, where only the engine that wrote it looks".into(),
                }),
                // A mark that can't be read needs a reader too: one that reports it.
                Some(_) => {
                    found.metacopies = true;
                    Ok(true)
                }
                None => Ok(true),
            }
        }
    }
    let mut look = Look(prefix, MarksFound::default());
    walk(layout::dir(root)?, &mut look)?;
    Ok(look.1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_hard_link_counts_once_and_the_root_counts() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("a"), vec![1; 8192]).unwrap();
        fs::hard_link(tmp.path().join("a"), tmp.path().join("b")).unwrap();
        fs::create_dir(tmp.path().join("d")).unwrap();
        std::os::unix::fs::symlink("/etc", tmp.path().join("d/s")).unwrap();
        let used = usage(tmp.path(), None).unwrap();
        assert_eq!(used.inodes, 4);
        assert!(used.bytes >= 8192);
        let shared = shared_inodes(tmp.path()).unwrap();
        assert_eq!(shared.len(), 1);
        assert_eq!(usage(tmp.path(), Some(&shared)).unwrap().inodes, 3);
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let tmp = tempfile::tempdir().unwrap();
        let mut spine = Spine::new(Dir::open(tmp.path()).unwrap()).unwrap();
        for _ in 0..2000 {
            spine.here().mkdir("d", 0o700).unwrap();
            spine.down(OsStr::new("d")).unwrap();
        }
        assert_eq!(usage(tmp.path(), None).unwrap().inodes, 2001);
        // Too deep for a path: removed the same way.
        drop(spine);
        let parent = Dir::open(tmp.path()).unwrap();
        parent.remove_tree("d").unwrap();
    }
}

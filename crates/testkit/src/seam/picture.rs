//! A directory tree as a power cut would leave it, kept in memory inode by inode.
//!
//! [`Safe`] follows a tree and knows, for each inode, what the last sync covered: a file's bytes
//! and attributes, a directory's names. A name is safe once its directory was synced, bytes once
//! the file was; a rename is one step, so syncing either directory covers both. It forgets more
//! than ext4, XFS and btrfs do.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs as call;
use rustix::io::Errno;

/// Identifies an inode for the file system's lifetime: numbers are reused, birth times are not.
type Id = (u64, Option<SystemTime>);

#[derive(Debug, Clone, Hash)]
struct Inode {
    mode: u32,
    owner: (u32, u32),
    xattrs: BTreeMap<OsString, Vec<u8>>,
    content: Content,
}

#[derive(Debug, Clone, Hash)]
enum Content {
    Names(BTreeMap<OsString, Id>),
    Bytes(Arc<Vec<u8>>),
    Target(PathBuf),
    Device(u64),
}

/// A tree at a moment, or what is left of it.
#[derive(Debug, Clone)]
pub struct Picture {
    root: Id,
    inodes: BTreeMap<Id, Arc<Inode>>,
}

impl Picture {
    /// Reads the whole tree below `root`.
    pub fn of(root: &Path) -> Picture {
        let mut inodes = BTreeMap::new();
        let mut todo = vec![root.to_owned()];
        while let Some(path) = todo.pop() {
            let Some((id, inode)) = Inode::read(&path, Last::Itself) else {
                continue; // removed meanwhile
            };
            if let Content::Names(names) = &inode.content {
                todo.extend(names.keys().map(|name| path.join(name)));
            }
            inodes.insert(id, Arc::new(inode));
        }
        let root = id_of(root).expect("the followed directory");
        Picture { root, inodes }
    }

    /// Recreates the tree in the empty directory `at`.
    pub fn write_to(&self, at: &Path) {
        self.write(&self.root, at, &mut BTreeMap::new());
    }

    fn write(&self, id: &Id, at: &Path, made: &mut BTreeMap<Id, PathBuf>) {
        let Some(inode) = self.inodes.get(id) else {
            panic!("{}: a name without an inode", at.display());
        };
        if let Some(first) = made.get(id) {
            return fs::hard_link(first, at).expect("a second name");
        }
        match &inode.content {
            Content::Names(names) => {
                if made.is_empty() {
                    assert!(at.is_dir(), "{} is made by the caller", at.display());
                } else {
                    fs::create_dir(at).expect("a directory");
                }
                made.insert(*id, at.to_owned());
                for (name, id) in names {
                    self.write(id, &at.join(name), made);
                }
            }
            Content::Bytes(bytes) => fs::write(at, bytes.as_slice()).expect("a file"),
            Content::Target(target) => std::os::unix::fs::symlink(target, at).expect("a link"),
            Content::Device(device) => call::mknodat(
                call::CWD,
                at,
                call::FileType::from_raw_mode(inode.mode),
                call::Mode::from_raw_mode(inode.mode & 0o7777),
                *device,
            )
            .expect("a device"),
        }
        made.insert(*id, at.to_owned());
        inode.dress(at);
    }

    /// Two pictures with the same hash show the same tree.
    pub fn hash_value(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.root.hash(&mut hasher);
        self.inodes.hash(&mut hasher);
        hasher.finish()
    }

    /// Forgets inodes that no name leads to.
    fn reachable(mut self) -> Picture {
        let mut seen = BTreeSet::new();
        let mut todo = vec![self.root];
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            if let Some(Content::Names(names)) = self.inodes.get(&id).map(|inode| &inode.content) {
                todo.extend(names.values());
            }
        }
        self.inodes.retain(|id, _| seen.contains(id));
        self
    }

    /// Every name: the directory that it is in, and the inode that it leads to.
    fn names(&self) -> BTreeSet<(Id, OsString, Id)> {
        let mut all = BTreeSet::new();
        for (dir, inode) in &self.inodes {
            if let Content::Names(names) = &inode.content {
                all.extend(names.iter().map(|(name, id)| (*dir, name.clone(), *id)));
            }
        }
        all
    }

    /// From now on `name` in `dir` leads to `to`, or is gone.
    fn lead(&mut self, dir: &Id, name: &OsStr, to: Option<Id>) {
        if let Some(inode) = self.inodes.get_mut(dir)
            && let Content::Names(names) = &mut Arc::make_mut(inode).content
        {
            match to {
                Some(id) => names.insert(name.to_owned(), id),
                None => names.remove(name),
            };
        }
    }
}

fn id_of(path: &Path) -> Option<Id> {
    let found = there(fs::symlink_metadata(path), path)?;
    Some((found.ino(), found.created().ok()))
}

/// `None` if the file is gone: another thread is still running. A file that can't be read for
/// another reason must not look lost.
fn there<T>(looked: io::Result<T>, path: &Path) -> Option<T> {
    match looked {
        Ok(seen) => Some(seen),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// The target of a path that ends in a link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Itself,
    Followed,
}

impl Inode {
    /// `None` if it is gone.
    fn read(path: &Path, last: Last) -> Option<(Id, Inode)> {
        let found = match last {
            Last::Itself => fs::symlink_metadata(path),
            Last::Followed => fs::metadata(path),
        };
        let found = there(found, path)?;
        let content = if found.is_dir() {
            let mut names = BTreeMap::new();
            for entry in there(fs::read_dir(path), path)? {
                let name = there(entry, path)?.file_name();
                if let Some(id) = id_of(&path.join(&name)) {
                    names.insert(name, id);
                }
            }
            Content::Names(names)
        } else if found.is_file() {
            Content::Bytes(Arc::new(there(fs::read(path), path)?))
        } else if found.is_symlink() {
            Content::Target(there(fs::read_link(path), path)?)
        } else {
            Content::Device(found.rdev())
        };
        let inode = Inode {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            xattrs: xattrs(path, last)?,
            content,
        };
        Some(((found.ino(), found.created().ok()), inode))
    }

    /// Owner, mode and xattrs; in this order, since a change of owner clears mode bits.
    fn dress(&self, at: &Path) {
        let now = fs::symlink_metadata(at).expect("what was just made");
        if self.owner != (now.uid(), now.gid()) {
            std::os::unix::fs::lchown(at, Some(self.owner.0), Some(self.owner.1))
                .expect("an owner");
        }
        if !matches!(self.content, Content::Target(_)) {
            let mode = call::Mode::from_raw_mode(self.mode & 0o7777);
            call::chmod(at, mode).expect("a mode");
        }
        for (name, value) in &self.xattrs {
            call::lsetxattr(at, name.as_os_str(), value, call::XattrFlags::empty())
                .expect("an xattr");
        }
    }

    /// What a directory's sync records of a new inode in it: that it exists.
    fn name_only(&self) -> Inode {
        let content = match &self.content {
            Content::Names(_) => Content::Names(BTreeMap::new()),
            Content::Bytes(_) => Content::Bytes(Arc::default()),
            other => other.clone(),
        };
        Inode {
            content,
            ..self.clone()
        }
    }
}

/// Those that this process may see. `None` if the inode is gone.
fn xattrs(path: &Path, last: Last) -> Option<BTreeMap<OsString, Vec<u8>>> {
    let mut list = vec![0; 64 << 10];
    let length = match last {
        Last::Itself => call::llistxattr(path, list.as_mut_slice()),
        Last::Followed => call::listxattr(path, list.as_mut_slice()),
    };
    let length = match length {
        // The file system does not support them.
        Err(Errno::NOTSUP) => 0,
        length => there(length.map_err(io::Error::from), path)?,
    };
    let mut found = BTreeMap::new();
    let names = list[..length].split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty()).map(OsStr::from_bytes) {
        let mut value = vec![0; 64 << 10];
        let length = match last {
            Last::Itself => call::lgetxattr(path, name, value.as_mut_slice()),
            Last::Followed => call::getxattr(path, name, value.as_mut_slice()),
        };
        match length {
            // Removed since it was listed.
            Err(Errno::NODATA) => continue,
            length => value.truncate(there(length.map_err(io::Error::from), path)?),
        }
        found.insert(name.to_owned(), value);
    }
    Some(found)
}

/// The safe part of a tree.
#[derive(Debug)]
pub(super) struct Safe {
    root: PathBuf,
    kept: Picture,
    /// Lengths that were set since the last sync of a file. Unlike those that result from writing,
    /// they are saved along with the names.
    lengths: BTreeMap<Id, u64>,
}

impl Safe {
    /// Initially everything is safe.
    pub(super) fn new(root: &Path) -> Safe {
        Safe {
            root: root.to_owned(),
            kept: Picture::of(root),
            lengths: BTreeMap::new(),
        }
    }

    /// The file or directory at `path`, a descriptor's name in /proc, was synced.
    pub(super) fn sync(&mut self, path: &Path) {
        let Some((id, inode)) = Inode::read(path, Last::Followed) else {
            return;
        };
        self.lengths.remove(&id);
        if let Content::Names(names) = &inode.content {
            self.sync_names(id, names);
        }
        let inode = match (&inode.content, self.kept.inodes.get(&id)) {
            // The names were just brought up to date.
            (Content::Names(_), Some(kept)) => Inode {
                content: kept.content.clone(),
                ..inode
            },
            _ => inode,
        };
        self.kept.inodes.insert(id, Arc::new(inode));
    }

    /// The file at `path` is truncated or extended to `length`.
    pub(super) fn resize(&mut self, path: &Path, length: u64) {
        if let Some((id, _)) = Inode::read(path, Last::Followed) {
            self.lengths.insert(id, length);
        }
    }

    fn sync_names(&mut self, dir: Id, names: &BTreeMap<OsString, Id>) {
        let live = Picture::of(&self.root);
        let there = live.names();
        let known = self.kept.names();
        let had = |id: Id| known.iter().filter(move |(_, _, known)| *known == id);
        self.kept.inodes.entry(dir).or_insert_with(|| {
            let inode = &live.inodes[&dir];
            Arc::new(inode.name_only())
        });
        let before: BTreeMap<OsString, Id> = known
            .iter()
            .filter(|(d, ..)| *d == dir)
            .map(|(_, name, id)| (name.clone(), *id))
            .collect();
        for (name, id) in names {
            if !self.kept.inodes.contains_key(id)
                && let Some(inode) = live.inodes.get(id)
            {
                self.kept.inodes.insert(*id, Arc::new(inode.name_only()));
            }
            self.kept.lead(&dir, name, Some(*id));
            // It came by a rename: the old name went in the same step.
            for gone in had(*id).filter(|name| !there.contains(*name)) {
                self.kept.lead(&gone.0, &gone.1, None);
            }
        }
        for (name, id) in before {
            if names.get(&name) == Some(&id) {
                continue;
            }
            if !names.contains_key(&name) {
                self.kept.lead(&dir, &name, None);
            }
            // It left by a rename: the new name came in the same step, if its directory is there.
            for (to, new, _) in there.iter().filter(|(_, _, now)| *now == id) {
                self.kept.lead(to, new, Some(id));
            }
        }
    }

    /// Everything was synced.
    pub(super) fn sync_all(&mut self) {
        self.kept = Picture::of(&self.root);
        self.lengths.clear();
    }

    /// What is left if everything that was not synced is lost.
    pub(super) fn synced(&self) -> Picture {
        self.kept.clone().reachable()
    }

    /// What is left of the tree in its state `now` if only unsynced bytes are lost: names and
    /// attributes are on disk.
    pub(super) fn without_bytes(&self, now: &Picture) -> Picture {
        let mut picture = now.clone();
        for (id, inode) in &mut picture.inodes {
            if let Content::Bytes(_) = inode.content {
                let mut bytes = match self.kept.inodes.get(id).map(|kept| &kept.content) {
                    Some(Content::Bytes(bytes)) => bytes.to_vec(),
                    _ => Vec::new(),
                };
                if let Some(length) = self.lengths.get(id) {
                    bytes.resize(*length as usize, 0);
                }
                Arc::make_mut(inode).content = Content::Bytes(Arc::new(bytes));
            }
        }
        picture
    }
}

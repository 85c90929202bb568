//! A picture of a tree with everything a user can see of it, and the comparison of two.
//!
//! Shape: paths relative to the root, sorted by their bytes per component; the root itself is the
//! empty path. Deep trees are fine: directories are opened one below the other, and the kernel
//! never gets a long path. Reading changes access times, so the picture leaves them out.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags};
use sha2::{Digest, Sha256};

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    Block,
    Character,
}

/// One entry of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The type.
    pub kind: Kind,
    /// 12 bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Size in bytes, of regular files; 0 of all others.
    pub size: u64,
    /// Device number, of devices.
    pub rdev: (u32, u32),
    /// Where a symbolic link points.
    pub target: Option<OsString>,
    /// SHA-256 of a regular file's content in hex.
    pub content: Option<String>,
    /// Every xattr that is listed.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first of several names of one object in this tree, so hard-link groups compare by
    /// membership.
    pub linked_with: Option<PathBuf>,
    /// Device and inode number; not compared.
    pub identity: (u64, u64),
}

/// A picture of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// By path from the root, which is the empty path.
    pub entries: BTreeMap<PathBuf, Entry>,
}

/// What a comparison leaves out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ignore {
    /// Modification times of directories: they depend on the order in which a tree was created.
    pub directory_mtimes: bool,
    /// Modification times of everything.
    pub mtimes: bool,
    /// Nanoseconds of times.
    pub nanoseconds: bool,
    /// Everything about the root directory itself.
    pub root: bool,
    /// Which names belong to one inode.
    pub hard_links: bool,
    /// Owner and group.
    pub owners: bool,
    /// Extended attributes.
    pub xattrs: bool,
}

impl Tree {
    /// Takes a picture of the tree at `root`, which is followed if it is a symbolic link. Crosses
    /// mounts.
    pub fn read(root: &Path) -> io::Result<Tree> {
        let dir = rustix::fs::open(
            root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut tree = Tree::default();
        let entry = read_entry(&dir, OsStr::new("."))?;
        tree.entries.insert(PathBuf::new(), entry);
        read_below(dir, Path::new(""), &mut tree)?;
        tree.group_links();
        Ok(tree)
    }

    /// Keeps only the xattrs that `keep` names.
    pub fn retain_xattrs(&mut self, keep: impl Fn(&OsStr) -> bool) {
        for entry in self.entries.values_mut() {
            entry.xattrs.retain(|name, _| keep(name));
        }
    }

    /// Returns every difference, in path order; empty if the trees look alike.
    pub fn differences(&self, other: &Tree, ignore: Ignore) -> Vec<Difference> {
        let mut found = Vec::new();
        for (path, left) in &self.entries {
            match other.entries.get(path) {
                None => found.push(Difference::new(path, "only in the first", left.kind, "-")),
                Some(right) => compare(path, left, right, ignore, &mut found),
            }
        }
        for (path, right) in &other.entries {
            if !self.entries.contains_key(path) {
                found.push(Difference::new(path, "only in the second", "-", right.kind));
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// Panics with a readable list unless the trees look alike.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, ignore: Ignore) {
        let found = self.differences(other, ignore);
        let list: String = found
            .iter()
            .take(40)
            .map(|difference| format!("  {difference}\n"))
            .collect();
        assert!(found.is_empty(), "{} differences:\n{list}", found.len());
    }

    /// Fills in `linked_with` from the identities of the entries.
    pub fn group_links(&mut self) {
        let mut first = BTreeMap::new();
        let mut members = BTreeMap::<_, usize>::new();
        for (path, entry) in self
            .entries
            .iter()
            .filter(|(_, entry)| entry.kind != Kind::Directory)
        {
            first.entry(entry.identity).or_insert_with(|| path.clone());
            *members.entry(entry.identity).or_default() += 1;
        }
        for entry in self.entries.values_mut() {
            if members.get(&entry.identity).is_some_and(|&count| count > 1) {
                entry.linked_with = first.get(&entry.identity).cloned();
            }
        }
    }
}

/// A difference between two trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub path: PathBuf,
    /// What, e.g. `mode`.
    pub what: String,
    /// As the first tree has it.
    pub first: String,
    /// As the second tree has it.
    pub second: String,
}

impl Difference {
    fn new(
        path: &Path,
        what: impl Into<String>,
        first: impl fmt::Debug,
        second: impl fmt::Debug,
    ) -> Difference {
        Difference {
            path: path.to_owned(),
            what: what.into(),
            first: format!("{first:?}"),
            second: format!("{second:?}"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}: {}: {} / {}",
            self.path, self.what, self.first, self.second
        )
    }
}

fn compare(path: &Path, left: &Entry, right: &Entry, ignore: Ignore, found: &mut Vec<Difference>) {
    if ignore.root && path.as_os_str().is_empty() {
        return;
    }
    if left.kind != right.kind {
        found.push(Difference::new(path, "type", left.kind, right.kind));
        return;
    }
    let mut check = |what: &str, first: &dyn fmt::Debug, second: &dyn fmt::Debug, same: bool| {
        if !same {
            found.push(Difference::new(path, what, first, second));
        }
    };
    let octal = |mode: u32| format!("{mode:04o}");
    check(
        "mode",
        &octal(left.mode),
        &octal(right.mode),
        left.mode == right.mode,
    );
    if !ignore.owners {
        let (first, second) = ((left.uid, left.gid), (right.uid, right.gid));
        check("owner", &first, &second, first == second);
    }
    check("size", &left.size, &right.size, left.size == right.size);
    check("device", &left.rdev, &right.rdev, left.rdev == right.rdev);
    check(
        "target",
        &left.target,
        &right.target,
        left.target == right.target,
    );
    check(
        "content",
        &left.content,
        &right.content,
        left.content == right.content,
    );
    if !ignore.hard_links {
        check(
            "linked with",
            &left.linked_with,
            &right.linked_with,
            left.linked_with == right.linked_with,
        );
    }
    if !(ignore.mtimes || ignore.directory_mtimes && left.kind == Kind::Directory) {
        let cut = |time: (i64, u32)| {
            if ignore.nanoseconds {
                (time.0, 0)
            } else {
                time
            }
        };
        check(
            "mtime",
            &left.mtime,
            &right.mtime,
            cut(left.mtime) == cut(right.mtime),
        );
    }
    if !ignore.xattrs {
        for name in left.xattrs.keys().chain(
            right
                .xattrs
                .keys()
                .filter(|name| !left.xattrs.contains_key(*name)),
        ) {
            let show =
                |value: Option<&Vec<u8>>| value.map(|value| value.escape_ascii().to_string());
            let (first, second) = (left.xattrs.get(name), right.xattrs.get(name));
            check(
                &format!("xattr {name:?}"),
                &show(first),
                &show(second),
                first == second,
            );
        }
    }
}

fn read_below(dir: OwnedFd, path: &Path, tree: &mut Tree) -> io::Result<()> {
    let mut names = list(&dir)?;
    names.sort();
    for name in names {
        let entry = read_entry(&dir, &name)?;
        let below = path.join(&name);
        let is_dir = entry.kind == Kind::Directory;
        tree.entries.insert(below.clone(), entry);
        if is_dir {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            read_below(
                rustix::fs::openat(&dir, &name, flags, Mode::empty())?,
                &below,
                tree,
            )?;
        }
    }
    Ok(())
}

fn list(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

fn read_entry(dir: &OwnedFd, name: &OsStr) -> io::Result<Entry> {
    let stat = rustix::fs::statx(
        dir,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    )?;
    let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::Block,
        FileType::CharacterDevice => Kind::Character,
        FileType::Unknown => return Err(io::Error::other(format!("{name:?}: unknown file type"))),
    };
    let device = matches!(kind, Kind::Block | Kind::Character);
    let target = match kind {
        Kind::Symlink => Some(OsString::from_vec(
            rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes(),
        )),
        _ => None,
    };
    let content = match kind {
        Kind::File => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::empty());
            Some(hash(std::fs::File::from(
                file.map_err(|errno| named(errno.into(), name))?,
            ))?)
        }
        _ => None,
    };
    Ok(Entry {
        kind,
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        size: if kind == Kind::File { stat.stx_size } else { 0 },
        rdev: if device {
            (stat.stx_rdev_major, stat.stx_rdev_minor)
        } else {
            (0, 0)
        },
        target,
        content,
        xattrs: read_xattrs(dir.as_raw_fd(), name)?,
        linked_with: None,
        identity: (
            u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            stat.stx_ino,
        ),
    })
}

fn named(error: io::Error, name: &OsStr) -> io::Error {
    io::Error::new(error.kind(), format!("{name:?}: {error}"))
}

/// Returns the SHA-256 of `file`'s content, in hex.
pub fn hash(mut file: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Xattrs by name, without following the last component: through the directory's entry in
/// `/proc/self/fd`.
fn read_xattrs(dir: i32, name: &OsStr) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let path = Path::new("/proc/self/fd").join(dir.to_string()).join(name);
    let mut names = vec![0; 64 * 1024];
    let length = match rustix::fs::llistxattr(&path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut found = BTreeMap::new();
    for xattr in names[..length]
        .split(|&byte| byte == 0)
        .filter(|xattr| !xattr.is_empty())
    {
        let mut value = vec![0; 64 * 1024];
        match rustix::fs::lgetxattr(&path, OsStr::from_bytes(xattr), &mut value[..]) {
            // Listed, but gone or not readable (e.g. another namespace's trusted attribute).
            Err(rustix::io::Errno::NODATA) => continue,
            other => value.truncate(other?),
        }
        found.insert(OsString::from_vec(xattr.to_vec()), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn sample(scratch: &Scratch, at: &str) -> PathBuf {
        scratch.file(format!("{at}/d/f"), "content");
        scratch.file(format!("{at}/g"), "other");
        let root = scratch.join(at);
        fs::hard_link(root.join("g"), root.join("h")).unwrap();
        std::os::unix::fs::symlink("d/f", root.join("l")).unwrap();
        root
    }

    #[track_caller]
    fn check(change: impl Fn(&Path), expect: &[&str]) {
        let scratch = Scratch::new();
        let (a, b) = (sample(&scratch, "a"), sample(&scratch, "b"));
        change(&b);
        let ignore = Ignore {
            mtimes: true,
            ..Ignore::default()
        };
        let found = Tree::read(&a)
            .unwrap()
            .differences(&Tree::read(&b).unwrap(), ignore);
        let found: Vec<_> = found
            .iter()
            .map(|d| format!("{} {}", d.path.display(), d.what))
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn each_difference_is_found() {
        check(|_| (), &[]);
        check(
            |b| fs::write(b.join("d/f"), "Content").unwrap(),
            &["d/f content"],
        );
        check(
            |b| fs::set_permissions(b.join("d"), fs::Permissions::from_mode(0o700)).unwrap(),
            &["d mode"],
        );
        check(
            |b| fs::remove_file(b.join("l")).unwrap(),
            &["l only in the first"],
        );
        check(
            |b| fs::write(b.join("new"), "").unwrap(),
            &["new only in the second"],
        );
        let unlink = |b: &Path| {
            fs::remove_file(b.join("h")).unwrap();
            fs::write(b.join("h"), "other").unwrap();
        };
        check(unlink, &["g linked with", "h linked with"]);
        let retarget = |b: &Path| {
            fs::remove_file(b.join("l")).unwrap();
            std::os::unix::fs::symlink("g", b.join("l")).unwrap();
        };
        check(retarget, &["l target"]);
        let xattr = |b: &Path| {
            rustix::fs::setxattr(b.join("g"), "user.x", b"1", rustix::fs::XattrFlags::empty())
                .unwrap();
        };
        check(xattr, &["g xattr \"user.x\"", "h xattr \"user.x\""]);
    }

    #[test]
    fn times_are_compared_to_the_nanosecond() {
        let scratch = Scratch::new();
        let file = scratch.file("t/f", "x");
        let set = |nanoseconds| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::new(1, nanoseconds);
            fs::File::open(&file).unwrap().set_modified(time).unwrap();
            Tree::read(&scratch.join("t")).unwrap()
        };
        let (a, b) = (set(1), set(2));
        assert_eq!(a.differences(&b, Ignore::default()).len(), 1);
        assert!(
            a.differences(
                &b,
                Ignore {
                    nanoseconds: true,
                    ..Ignore::default()
                }
            )
            .is_empty()
        );
    }
}

//! Makes one tree out of another, for the drivers that keep whole trees: by copying, by hard links,
//! and by merging an upper into it.
//!
//! Attributes are copied completely: owner, mode, times, every extended attribute, holes, hard-link
//! groups. What can't be copied is an error, never a gap. Source and target are the store's own
//! trees, and nothing else changes them at the time.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use vellum_format::{Mark, Opaque, Prefix, WHITEOUT_RDEV};
use vellum_sys::{Dir, FileKind, Stat, copy, rooted, xattr};

use crate::{
    error::{Result, StoreError},
    layout,
    walk::{self, Spine, Visitor},
};

/// How files come into the new tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// Each is copied, sharing blocks where the file system can.
    Copy,
    /// Each becomes another name of the same inode, or a copy once the inode has as many names as
    /// it can have.
    Link,
}

struct Cloner {
    files: Files,
    target: Spine,
    target_root: Dir,
    /// The current directory's path in the target.
    path: PathBuf,
    /// Where an inode with several names went to.
    groups: HashMap<(u64, u64), PathBuf>,
    /// The source's root.
    top: Stat,
    /// The marks of an upper that is being merged; `None`: everything is content.
    marks: Option<Prefix>,
}

/// Makes `target`, an existing empty directory, a copy of the tree at `source`, including the
/// root's attributes.
pub(crate) fn clone_tree(source: &Path, target: &Path, files: Files) -> Result<()> {
    run(source, target, files, None)
}

/// Merges the upper at `source` into the tree at `target`: whiteouts delete, opaque directories
/// replace, files are linked.
///
/// Errors: `Unsupported` if the upper holds redirects or metadata-only copies, which only a stack
/// can show.
pub(crate) fn merge_upper(source: &Path, target: &Path, prefix: Prefix) -> Result<()> {
    run(source, target, Files::Link, Some(prefix))
}

fn run(source: &Path, target: &Path, files: Files, marks: Option<Prefix>) -> Result<()> {
    let source = layout::dir(source)?;
    let root = source.stat_self()?;
    let target_root = layout::dir(target)?;
    let mut cloner = Cloner {
        files,
        target: Spine::new(target_root.dup()?)?,
        target_root,
        path: PathBuf::new(),
        groups: HashMap::new(),
        top: root.clone(),
        marks,
    };
    walk::walk(source.dup()?, &mut cloner)?;
    cloner.copy_dir_attributes(&source, &root, &cloner.target_root)
}

/// Gives `dir` the owner, mode, mtime and xattrs of `model`, except marks.
pub(crate) fn copy_attributes(model: &Dir, dir: &Dir) -> Result<()> {
    let is_mark = |name: &OsStr| Prefix::ALL.iter().any(|prefix| prefix.is_control(name));
    let xattrs = xattrs(model, |name| !is_mark(name))?;
    Ok(vellum_sys::dress(dir, &model.stat_self()?, xattrs)?)
}

/// Returns those xattrs of an open directory that are `wanted`.
fn xattrs(dir: &Dir, wanted: impl Fn(&OsStr) -> bool) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut all = Vec::new();
    for name in xattr::list_fd(dir)?.into_iter().filter(|name| wanted(name)) {
        if let Some(value) = xattr::get_fd(dir, &name)? {
            all.push((name, value));
        }
    }
    Ok(all)
}

impl Cloner {
    fn is_mark(&self, name: &OsStr) -> bool {
        self.marks.is_some_and(|prefix| prefix.is_control(name))
    }

    /// Copies the source's attributes to a directory whose entries are complete.
    fn copy_dir_attributes(&self, source: &Dir, stat: &Stat, target: &Dir) -> Result<()> {
        vellum_sys::dress(target, stat, xattrs(source, |name| !self.is_mark(name))?)?;
        Ok(rooted::set_times_fd(target, Some(stat.atime), None)?)
    }

    /// Removes what is called `name` in the target, if it can't stay. Returns true if a directory
    /// stays.
    fn clear_name(&self, name: &OsStr, for_dir: bool) -> Result<bool> {
        if self.marks.is_none() {
            return Ok(false);
        }
        match self.target.here().stat_opt(name)? {
            None => Ok(false),
            Some(there) if there.is_dir() && for_dir => Ok(true),
            Some(_) => {
                self.target.here().remove_tree(name)?;
                Ok(false)
            }
        }
    }

    fn enter_dir(&mut self, name: &OsStr, opaque: bool) -> Result<()> {
        let stays = self.clear_name(name, !opaque)?;
        if !stays {
            self.target.here().mkdir(name, 0o700)?;
        }
        self.path.push(name);
        self.target.down(name)
    }

    fn link_or_copy(&mut self, parent: &Dir, name: &OsStr, stat: &Stat) -> Result<()> {
        self.clear_name(name, false)?;
        let here = self.target.here();
        if stat.nlink > 1
            && let Some(first) = self.groups.get(&stat.identity())
        {
            let (dir, file) = match (first.parent(), first.file_name()) {
                (Some(dir), Some(file)) => (self.target_root.open_dir(dir)?, file),
                _ => {
                    return Err(StoreError::Invalid(format!(
                        "{} has no name",
                        first.display()
                    )));
                }
            };
            match here.link(&dir, file, name) {
                Ok(()) => return Ok(()),
                Err(e) if e.is(Errno::MLINK) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if self.files == Files::Link {
            match here.link(parent, name, name) {
                Ok(()) => {
                    self.drop_marks(name)?;
                    return Ok(());
                }
                Err(e) if e.is(Errno::MLINK) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if stat.nlink > 1 {
            self.groups.insert(stat.identity(), self.path.join(name));
        }
        copy_file(parent, here, name, stat, &|attr| self.is_mark(attr))
    }

    fn drop_marks(&self, name: &OsStr) -> Result<()> {
        if self.marks.is_some() {
            let here = self.target.here();
            for attr in xattr::list(here, name)?
                .iter()
                .filter(|attr| self.is_mark(attr))
            {
                xattr::remove(here, name, attr)?;
            }
        }
        Ok(())
    }
}

/// What an upper says about one of its names.
enum UpperEntry {
    /// The name is deleted.
    Hidden,
    /// A directory, which replaces the one below if it is opaque.
    Dir { opaque: bool },
    /// Anything else, which replaces what is below.
    Other,
}

/// Reads the marks on a name; without a prefix everything is content.
///
/// Errors: `Unsupported` for marks that only a stack can show; `Damaged` for a mark with an unknown
/// value.
fn upper_entry(
    parent: &Dir,
    name: &OsStr,
    stat: &Stat,
    prefix: Option<Prefix>,
) -> Result<UpperEntry> {
    let Some(prefix) = prefix else {
        return Ok(match stat.kind {
            FileKind::Dir => UpperEntry::Dir { opaque: false },
            _ => UpperEntry::Other,
        });
    };
    match stat.kind {
        FileKind::Dir => {
            refuse(parent, name, prefix, Mark::Redirect)?;
            refuse(parent, name, prefix, Mark::Metacopy)?;
            let value = xattr::get(parent, name, prefix.xattr(Mark::Opaque))?;
            let opaque = value.map(|value| Opaque::parse(&value)).transpose();
            let opaque = opaque.map_err(|e| StoreError::Damaged {
                what: path_of(parent, name).display().to_string(),
                why: e.to_string(),
            })?;
            Ok(match opaque {
                Some(Opaque::Opaque) => UpperEntry::Dir { opaque: true },
                // The files themselves say which names in it they hide.
                Some(Opaque::XattrWhiteouts) | None => UpperEntry::Dir { opaque: false },
            })
        }
        FileKind::Char if stat.rdev == WHITEOUT_RDEV => Ok(UpperEntry::Hidden),
        FileKind::File
            if stat.size_bytes == 0
                && xattr::get(parent, name, prefix.xattr(Mark::Whiteout))?.is_some() =>
        {
            Ok(UpperEntry::Hidden)
        }
        FileKind::File => {
            refuse(parent, name, prefix, Mark::Metacopy)?;
            Ok(UpperEntry::Other)
        }
        FileKind::Symlink
        | FileKind::Char
        | FileKind::Block
        | FileKind::Fifo
        | FileKind::Socket => Ok(UpperEntry::Other),
    }
}

fn path_of(parent: &Dir, name: &OsStr) -> PathBuf {
    parent.path().unwrap_or_default().join(name)
}

fn refuse(parent: &Dir, name: &OsStr, prefix: Prefix, mark: Mark) -> Result<()> {
    if xattr::get(parent, name, prefix.xattr(mark))?.is_none() {
        return Ok(());
    }
    let path = path_of(parent, name);
    Err(StoreError::Unsupported {
        what: format!("{} carries {}", path.display(), prefix.xattr(mark).display()),
        why: "this driver keeps plain trees; the tree must be mounted with redirect_dir=off and metacopy=off".into(),
    })
}

/// Copies one thing that is not a directory.
fn copy_file(
    from: &Dir,
    to: &Dir,
    name: &OsStr,
    stat: &Stat,
    skip: &dyn Fn(&OsStr) -> bool,
) -> Result<()> {
    match stat.kind {
        FileKind::File => {
            let source = from.open_file(Path::new(name))?;
            let target = to.create_file(name, 0o600)?;
            copy::copy_data(source.as_fd(), target.as_fd())?;
        }
        FileKind::Symlink => to.symlink(from.read_link(name)?, name)?,
        FileKind::Char | FileKind::Block | FileKind::Fifo | FileKind::Socket => {
            to.mknod(name, stat.kind, 0o600, stat.rdev)?;
        }
        FileKind::Dir => {
            return Err(StoreError::Invalid(format!(
                "{} is a directory",
                name.display()
            )));
        }
    }
    to.set_owner(name, stat.uid, stat.gid)?;
    for attr in xattr::list(from, name)?.iter().filter(|attr| !skip(attr)) {
        if let Some(value) = xattr::get(from, name, attr)? {
            xattr::set(to, name, attr, &value, xattr::SetMode::Any)?;
        }
    }
    if stat.kind != FileKind::Symlink {
        to.set_mode(name, stat.mode)?;
    }
    to.set_times(name, Some(stat.atime), Some(stat.mtime))?;
    Ok(())
}

impl Visitor for Cloner {
    fn entry(&mut self, parent: &Dir, name: &OsStr, stat: &Stat) -> Result<bool> {
        if !stat.same_mount(&self.top) {
            return Err(StoreError::Invalid(format!(
                "something is mounted on {}",
                path_of(parent, name).display()
            )));
        }
        match upper_entry(parent, name, stat, self.marks)? {
            UpperEntry::Dir { opaque } => self.enter_dir(name, opaque).map(|()| true),
            UpperEntry::Hidden => self.clear_name(name, false).map(|_| false),
            UpperEntry::Other => self.link_or_copy(parent, name, stat).map(|()| false),
        }
    }

    fn leave(&mut self, dir: &Dir, _name: &OsStr, stat: &Stat) -> Result<()> {
        self.copy_dir_attributes(dir, stat, self.target.here())?;
        self.path.pop();
        self.target.up()
    }

    fn vanished(&mut self, name: &OsStr) -> Result<()> {
        Err(StoreError::Invalid(format!(
            "{} vanished while its tree was copied",
            name.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn a_tree_on_an_overlay_of_several_file_systems_is_copied() {
        let name = "a store on an overlay of several file systems";
        if !vellum_testkit::needs_root(name) {
            return;
        }
        let scratch = vellum_testkit::Scratch::new();
        let lower = scratch.dir("lower");
        let disk = match scratch.file_system("disk", vellum_testkit::FsKind::Tmpfs, 4) {
            Ok(disk) => disk,
            Err(why) => return vellum_testkit::untested(name, why),
        };
        let [upper, work] = ["upper", "work"].map(|part| disk.join(part));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let merged = scratch.dir("merged");
        let overlay = vellum_testkit::kernel::Overlay {
            lowers: vec![lower],
            data_lowers: Vec::new(),
            upper: Some((upper, work)),
            options: Vec::new(),
        };
        if let Err(why) = overlay.mount(&scratch, &merged) {
            return vellum_testkit::untested(name, why);
        }
        let (a, b) = (merged.join("a"), merged.join("b"));
        fs::create_dir_all(a.join("d")).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("d/file"), "data").unwrap();
        clone_tree(&a, &b, Files::Copy).unwrap();
        assert_eq!(fs::read(b.join("d/file")).unwrap(), b"data");
        fs::create_dir(a.join("d/mounted")).unwrap();
        rustix::mount::mount_bind(&disk, a.join("d/mounted")).unwrap();
        scratch.adopt_mount(&a.join("d/mounted"));
        let again = merged.join("c");
        fs::create_dir(&again).unwrap();
        let refused = clone_tree(&a, &again, Files::Copy).unwrap_err().to_string();
        assert!(refused.contains("something is mounted on"), "{refused}");
        scratch.unmount(&a.join("d/mounted"));
    }

    #[test]
    fn a_copy_keeps_links_holes_and_attributes() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        fs::create_dir_all(a.join("d/e")).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("d/f"), b"data").unwrap();
        fs::hard_link(a.join("d/f"), a.join("g")).unwrap();
        fs::File::create(a.join("hole"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        xattr::set(
            &Dir::open(&a).unwrap(),
            OsStr::new("g"),
            OsStr::new("user.k\u{e9}"),
            b"v\0",
            xattr::SetMode::Any,
        )
        .unwrap();
        layout::set_mode(&a.join("d"), 0o2750).unwrap();
        // u::rwx, g::r-x, o::r-x for what is created in the root from now on. What is there already
        // doesn't have it, and its copy must not get it.
        let acl = [2u32, 7 << 16 | 1, !0, 5 << 16 | 4, !0, 5 << 16 | 32, !0];
        let acl: Vec<u8> = acl.iter().flat_map(|word| word.to_le_bytes()).collect();
        let default_acl = OsStr::new("system.posix_acl_default");
        xattr::set_fd(
            Dir::open(&a).unwrap(),
            default_acl,
            &acl,
            xattr::SetMode::Any,
        )
        .unwrap();
        clone_tree(&a, &b, Files::Copy).unwrap();
        let acl_of = |dir: &Path| xattr::get_fd(Dir::open(dir).unwrap(), default_acl).unwrap();
        assert_eq!((acl_of(&b), acl_of(&b.join("d"))), (Some(acl), None));
        let meta = |path: PathBuf| fs::symlink_metadata(path).unwrap();
        assert_eq!(meta(b.join("d/f")).ino(), meta(b.join("g")).ino());
        assert_ne!(meta(b.join("g")).ino(), meta(a.join("g")).ino());
        assert_eq!(meta(b.join("hole")).len(), 1 << 30);
        assert!(meta(b.join("hole")).blocks() < 64);
        assert_eq!(meta(b.join("d")).mode() & 0o7777, 0o2750);
        let times = |path: PathBuf| (meta(path.clone()).mtime(), meta(path).mtime_nsec());
        for path in ["d", "d/e", "g", "."] {
            assert_eq!(times(a.join(path)), times(b.join(path)), "{path}");
        }
        let value = xattr::get(
            &Dir::open(&b).unwrap(),
            OsStr::new("g"),
            OsStr::new("user.k\u{e9}"),
        )
        .unwrap();
        assert_eq!(value.as_deref(), Some(b"v\0".as_slice()));
    }

    #[test]
    fn merging_an_upper_deletes_and_replaces_and_leaves_the_lower_alone() {
        if !vellum_testkit::needs_root("overlay marks") {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let (lower, upper, root) = (
            tmp.path().join("l"),
            tmp.path().join("u"),
            tmp.path().join("r"),
        );
        for dir in [&lower, &upper, &root] {
            fs::create_dir(dir).unwrap();
        }
        fs::create_dir_all(lower.join("opq/old")).unwrap();
        fs::create_dir_all(lower.join("gone/x")).unwrap();
        fs::create_dir_all(lower.join("dir-to-file/x")).unwrap();
        fs::write(lower.join("keep"), b"keep").unwrap();
        fs::write(lower.join("change"), b"old").unwrap();
        fs::create_dir(upper.join("opq")).unwrap();
        fs::write(upper.join("opq/new"), b"").unwrap();
        fs::write(upper.join("change"), b"new").unwrap();
        fs::write(upper.join("dir-to-file"), b"file").unwrap();
        let dir = Dir::open(&upper).unwrap();
        dir.mknod("gone", FileKind::Char, 0o600, (0, 0)).unwrap();
        let attr = Prefix::Trusted.xattr(Mark::Opaque);
        xattr::set(&dir, OsStr::new("opq"), attr, b"y", xattr::SetMode::Any).unwrap();
        // A whiteout for where devices can't be created.
        fs::create_dir_all(lower.join("plain/gone/x")).unwrap();
        fs::create_dir(upper.join("plain")).unwrap();
        fs::write(upper.join("plain/gone"), b"").unwrap();
        fs::write(upper.join("plain/empty"), b"").unwrap();
        xattr::set(&dir, OsStr::new("plain"), attr, b"x", xattr::SetMode::Any).unwrap();
        let plain = dir.open_dir("plain").unwrap();
        let hides = Prefix::Trusted.xattr(Mark::Whiteout);
        xattr::set(&plain, OsStr::new("gone"), hides, b"y", xattr::SetMode::Any).unwrap();

        clone_tree(&lower, &root, Files::Link).unwrap();
        merge_upper(&upper, &root, Prefix::Trusted).unwrap();
        assert!(!root.join("gone").exists());
        assert!(!root.join("plain/gone").exists() && root.join("plain/empty").exists());
        assert!(!root.join("opq/old").exists() && root.join("opq/new").exists());
        assert_eq!(fs::read(root.join("change")).unwrap(), b"new");
        assert_eq!(fs::read(root.join("dir-to-file")).unwrap(), b"file");
        assert_eq!(fs::read(lower.join("change")).unwrap(), b"old");
        assert!(lower.join("opq/old").exists());
        assert!(
            xattr::list(&Dir::open(&root).unwrap(), OsStr::new("opq"))
                .unwrap()
                .is_empty()
        );
        let ino = |path: PathBuf| fs::symlink_metadata(path).unwrap().ino();
        assert_eq!(ino(root.join("keep")), ino(lower.join("keep")));

        let redirect = Prefix::Trusted.xattr(Mark::Redirect);
        xattr::set(
            &dir,
            OsStr::new("opq"),
            redirect,
            b"/x",
            xattr::SetMode::Any,
        )
        .unwrap();
        let refused = merge_upper(&upper, &root, Prefix::Trusted).unwrap_err();
        assert!(refused.to_string().contains("redirect"), "{refused}");

        xattr::remove(&dir, OsStr::new("opq"), redirect).unwrap();
        xattr::set(&dir, OsStr::new("opq"), attr, b"maybe", xattr::SetMode::Any).unwrap();
        let refused = merge_upper(&upper, &root, Prefix::Trusted).unwrap_err();
        assert!(refused.to_string().contains("opaque"), "{refused}");
    }
}

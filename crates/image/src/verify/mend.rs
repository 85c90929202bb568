//! Makes a damaged tree like its outline, path by path.
//!
//! What is the right object with wrong attributes or content is changed in its own inode: handles,
//! the `origin` of copies and other hard links depend on it, and a running container sees the
//! change at once. Content is written block by block, only where it differs, so a reader may see
//! old and new blocks side by side. What is missing becomes a hard link of the outline's object,
//! which appears whole, with everything it should have. What nothing explains is never deleted: the
//! caller moves it away ([`Displace`]). An inode that has names outside of the layer is not changed
//! either, since they would change with it: its name here is moved away and made anew.
//!
//! Each step looks at the tree first, so a repair that was interrupted is finished by another.
//! Nothing is synced. A path that can't be made right is reported and leaves the others alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vellum_sys::rooted::Access;
use vellum_sys::{Dir, FileKind, Stat, Timespec, with_causes};

use super::attributes::{Attributes, Object};
use super::compare::{at, names};
use super::repair::{Repair, split, stat_in};
use super::{Aspect, Difference};
use crate::error::{Error, Result};
use crate::recipe::next_data;

/// Takes away what doesn't belong in a tree.
pub trait Displace {
    /// Moves `name` in `dir`, known as `path`, to where nothing is lost. Returns what to call that
    /// place.
    fn displace(&mut self, dir: &Dir, name: &OsStr, path: &Path) -> vellum_sys::Result<String>;
}

/// What was done about one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Where content came from, if it didn't come from the tree itself.
    pub from: Option<String>,
    /// Where what was there is now.
    pub moved_to: Option<String>,
    /// Whether the name leads to another inode now.
    pub replaced: bool,
    /// Why it is not right yet.
    pub left: Option<String>,
}

/// The size of the pieces of content that are compared, and written if they differ.
const BLOCK_BYTES: usize = 4096;

impl Repair<'_> {
    /// Changes the tree. Returns what was done, by the path of a difference.
    ///
    /// Call [`Repair::seal`] first. Errors: `Cancelled`; what fails for one path is in the result.
    pub fn carry_out(self, displace: &mut dyn Displace) -> Result<BTreeMap<PathBuf, Mended>> {
        let mut by_path: BTreeMap<&Path, Vec<&Aspect>> = BTreeMap::new();
        for Difference { path, aspect, .. } in self.damaged.differences {
            by_path.entry(path).or_default().push(aspect);
        }
        let cancel = self.damaged.cancel;
        let mut mender = Mender {
            repair: self,
            displace,
            touched: BTreeMap::new(),
        };
        let mut all = BTreeMap::new();
        for (path, aspects) in by_path {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let mut mended = Mended::default();
            match mender.mend(path, &aspects, &mut mended) {
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => mended.left = Some(explain(&error)),
                Ok(()) => {}
            }
            all.insert(path.to_owned(), mended);
        }
        // Deepest first, though times of directories don't depend on each other.
        for (path, before) in std::mem::take(&mut mender.touched).into_iter().rev() {
            if let Err(error) = mender.restore_time(&path, before) {
                all.entry(path).or_default().left = Some(explain(&error));
            }
        }
        Ok(all)
    }
}

fn explain(error: &Error) -> String {
    match error {
        Error::Verify { source, .. }
            if source.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()) =>
        {
            "a process is executing it; stop that and repeat".to_owned()
        }
        other => with_causes(other),
    }
}

struct Mender<'a, 'd> {
    repair: Repair<'a>,
    displace: &'d mut dyn Displace,
    /// Directories in which names changed, with their time before.
    touched: BTreeMap<PathBuf, Timespec>,
}

impl Mender<'_, '_> {
    fn mend(&mut self, path: &Path, aspects: &[&Aspect], mended: &mut Mended) -> Result<()> {
        if aspects.iter().all(|aspect| **aspect == Aspect::Digest) {
            mended.left = Some("nothing says what in its headers differs".to_owned());
            return Ok(());
        }
        let (outline, tree) = (self.repair.damaged.outline, self.repair.damaged.tree);
        let Some(should) = stat_in(outline, path)? else {
            // There is nothing to take away a second time, if a directory above it was.
            if let Some(is) = stat_in(tree, path)? {
                self.take_away(path, &is, mended)?;
            }
            return Ok(());
        };
        if path.as_os_str().is_empty() {
            return self.attributes(path);
        }
        let Some(is) = stat_in(tree, path)? else {
            return self.make(path, mended);
        };
        let same_kind = should.kind == is.kind && should.is_null_device() == is.is_null_device();
        let as_it_is = same_kind
            && match should.kind {
                FileKind::Symlink => self.same_target(path)?,
                FileKind::Char | FileKind::Block => should.rdev == is.rdev,
                _ => true,
            };
        let private = self.repair.is_private(&is);
        if !as_it_is || !private || !self.is_linked_right(path, &should, &is)? {
            return self.replace(path, &should, &is, mended);
        }
        if should.is_null_device() {
            return Ok(());
        }
        let content = aspects
            .iter()
            .any(|aspect| matches!(aspect, Aspect::Content | Aspect::Size));
        if should.is_file() && content {
            self.rewrite(path, &should, mended)?;
        }
        self.attributes(path)
    }

    fn same_target(&self, path: &Path) -> Result<bool> {
        let read = |root: &Dir| match split(root, path)? {
            Some((dir, name)) => dir.read_link(name).map(Some).map_err(at("read", path)),
            None => Ok(None),
        };
        Ok(read(self.repair.damaged.outline)? == read(self.repair.damaged.tree)?)
    }

    /// Whether the names that should lead to the same inode do so, as far as they are there, and no
    /// other name does.
    fn is_linked_right(&self, path: &Path, should: &Stat, is: &Stat) -> Result<bool> {
        if should.is_dir() {
            return Ok(true);
        }
        let group: Vec<&PathBuf> = self.repair.should.of_inode(should.identity()).collect();
        let mut strangers = self.repair.is.of_inode(is.identity());
        if strangers.any(|name| !group.contains(&name)) {
            // The first name keeps the inode.
            let first = self.repair.is.of_inode(is.identity()).next();
            if first.is_some_and(|first| first != path) {
                return Ok(false);
            }
        }
        match self.partner(path, should)? {
            Some((_, partner)) => Ok(partner.identity() == is.identity()),
            None => Ok(true),
        }
    }

    /// Returns the first other name of the same file that is in the tree.
    fn partner(&self, path: &Path, should: &Stat) -> Result<Option<(PathBuf, Stat)>> {
        for name in self.repair.should.of_inode(should.identity()) {
            if name == path {
                continue;
            }
            if let Some(stat) = stat_in(self.repair.damaged.tree, name)?
                && stat.kind == should.kind
                && self.repair.is_private(&stat)
            {
                return Ok(Some((name.clone(), stat)));
            }
        }
        Ok(None)
    }

    /// Makes a name lead to the right object, which it doesn't.
    fn replace(
        &mut self,
        path: &Path,
        should: &Stat,
        is: &Stat,
        mended: &mut Mended,
    ) -> Result<()> {
        // Moving something away for nothing would be a loss.
        if self.lacks_content(path, should)? {
            mended.left = Some(NO_SOURCE.to_owned());
            return Ok(());
        }
        self.take_away(path, is, mended)?;
        self.make(path, mended)
    }

    fn lacks_content(&self, path: &Path, should: &Stat) -> Result<bool> {
        if !should.is_file() || self.repair.lacks(path) == 0 {
            return Ok(false);
        }
        Ok(self.partner(path, should)?.is_none())
    }

    /// Moves a name away, or removes it if the inode has another in the tree: then nothing is lost,
    /// and the other may be changed later.
    fn take_away(&mut self, path: &Path, is: &Stat, mended: &mut Mended) -> Result<()> {
        let Some((dir, name)) = self.enter(path)? else {
            return Ok(());
        };
        if !is.is_dir() && self.repair.is.count(is.identity()) > 1 {
            dir.unlink(name).map_err(at("remove", path))?;
        } else {
            let place = self.displace.displace(&dir, name, path);
            mended.moved_to = Some(place.map_err(at("move away", path))?);
        }
        self.repair.is.remove(path);
        Ok(())
    }

    /// Opens the directory of `path` in the tree, to change a name there.
    fn enter<'p>(&mut self, path: &'p Path) -> Result<Option<(Dir, &'p OsStr)>> {
        let Some((dir, name)) = split(self.repair.damaged.tree, path)? else {
            return Ok(None);
        };
        let parent = path.parent().unwrap_or(path);
        if !self.touched.contains_key(parent) {
            let before = dir.stat_self().map_err(at("look at", parent))?.mtime;
            self.touched.insert(parent.to_owned(), before);
        }
        Ok(Some((dir, name)))
    }

    /// Makes what is missing at `path`, with everything below it.
    fn make(&mut self, path: &Path, mended: &mut Mended) -> Result<()> {
        let mut waiting = vec![path.to_owned()];
        let mut made = Vec::new();
        let mut lacking = 0usize;
        while let Some(path) = waiting.pop() {
            if self.repair.damaged.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let outline = self.repair.damaged.outline;
            let Some(should) = stat_in(outline, &path)? else {
                continue;
            };
            if !should.is_dir() {
                lacking += usize::from(!self.make_one(&path, &should, mended)?);
                continue;
            }
            if let Some((dir, name)) = self.enter(&path)? {
                dir.mkdir(name, 0o700).map_err(at("create", &path))?;
            }
            let inside = outline.open_dir(&path).map_err(at("open", &path))?;
            let inside = names(&inside, &path)?;
            waiting.extend(inside.iter().rev().map(|name| path.join(name)));
            made.push(path);
        }
        for path in made.iter().rev() {
            self.touched.remove(path);
            self.attributes(path)?;
        }
        mended.replaced = true;
        if lacking > 0 {
            mended.left = Some(NO_SOURCE.to_owned());
        }
        Ok(())
    }

    /// Makes one thing that is not a directory; false if there is no content for it.
    fn make_one(&mut self, path: &Path, should: &Stat, mended: &mut Mended) -> Result<bool> {
        let (from_root, from) = match self.partner(path, should)? {
            Some((name, _)) => (self.repair.damaged.tree, name),
            None => {
                if let Some(need) = self.repair.need_of(should.ino) {
                    match &need.from {
                        None => return Ok(false),
                        Some(from) if !from.is_empty() => mended.from = Some(from.clone()),
                        Some(_) => {}
                    }
                }
                (self.repair.damaged.outline, path.to_owned())
            }
        };
        let Some((from_dir, from_name)) = split(from_root, &from)? else {
            return Ok(false);
        };
        let Some((dir, name)) = self.enter(path)? else {
            return Ok(false);
        };
        dir.link(&from_dir, from_name, name)
            .map_err(at("create", path))?;
        let made = dir.stat(name).map_err(at("look at", path))?;
        self.repair.is.add(made.identity(), path.to_owned());
        Ok(true)
    }

    /// Gives an object the attributes that it has in the outline.
    fn attributes(&self, path: &Path) -> Result<()> {
        let damaged = &self.repair.damaged;
        if damaged.unsaid.contains(path) {
            return Ok(());
        }
        let is_root = path.as_os_str().is_empty();
        let (from, to, name);
        if is_root {
            from = damaged.outline.dup().map_err(at("open", path))?;
            to = damaged.tree.dup().map_err(at("open", path))?;
            name = OsStr::new("");
        } else {
            match (split(damaged.outline, path)?, split(damaged.tree, path)?) {
                (Some((outline, of)), Some((tree, _))) => (from, to, name) = (outline, tree, of),
                _ => return Ok(()),
            }
        }
        let with_time = damaged.root_time || !is_root;
        let attributes = Attributes::of(Object { dir: &from, name }, path)?;
        attributes.give(Object { dir: &to, name }, path, with_time)?;
        Ok(())
    }

    /// Sets the time of a directory in which names changed: the outline's, or the one before.
    fn restore_time(&self, path: &Path, before: Timespec) -> Result<()> {
        let damaged = &self.repair.damaged;
        let said =
            !damaged.unsaid.contains(path) && (damaged.root_time || !path.as_os_str().is_empty());
        let should = match said {
            true => stat_in(damaged.outline, path)?.map(|stat| stat.mtime),
            false => None,
        };
        let dir = damaged.tree.open_dir(path).map_err(at("open", path))?;
        let object = Object {
            dir: &dir,
            name: OsStr::new(""),
        };
        object
            .set_time(should.unwrap_or(before))
            .map_err(at("set the times of", path))
    }

    /// Writes a file's content where it differs.
    fn rewrite(&self, path: &Path, should: &Stat, mended: &mut Mended) -> Result<()> {
        let damaged = &self.repair.damaged;
        let open = |root: &Dir, access| {
            root.open_file_for(path, access)
                .map_err(at("open for writing", path))
        };
        if should.size_bytes > 0 {
            match self.repair.need_of(should.ino).map(|need| &need.from) {
                Some(Some(from)) => {
                    mended.from = Some(from.clone()).filter(|from| !from.is_empty())
                }
                _ => {
                    mended.left = Some(NO_SOURCE.to_owned());
                    return Ok(());
                }
            }
        }
        let from = open(damaged.outline, Access::Read)?;
        let to = open(damaged.tree, Access::ReadWrite)?;
        overwrite(&from, &to, should.size_bytes).map_err(|source| Error::Verify {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }
}

/// Why content is left as it is.
pub(super) const NO_SOURCE: &str = "no source has its content";

/// Makes `to` hold what `from` does, `size` bytes, writing only blocks that differ.
fn overwrite(from: &File, to: &File, size: u64) -> io::Result<()> {
    if to.metadata()?.len() != size {
        to.set_len(size)?;
    }
    let mut position = 0;
    let mut pieces = (vec![0; 32 * BLOCK_BYTES], vec![0; 32 * BLOCK_BYTES]);
    while position < size {
        // Nothing is in the hole of both.
        let whole = Some((position, size));
        let data = [from, to].map(|file| next_data(file, position, size).unwrap_or(whole));
        let Some(begin) = data.into_iter().flatten().map(|(begin, _)| begin).min() else {
            break;
        };
        position = begin.max(position) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let n = pieces
            .0
            .len()
            .min(usize::try_from(size - position).unwrap_or(usize::MAX));
        let (right, found) = (&mut pieces.0[..n], &mut pieces.1[..n]);
        from.read_exact_at(right, position)?;
        // What can't be read is written: a disk may then use other sectors.
        let readable = to.read_exact_at(found, position).is_ok();
        let mut at = position;
        for (right, found) in right.chunks(BLOCK_BYTES).zip(found.chunks(BLOCK_BYTES)) {
            if !readable || right != found {
                to.write_all_at(right, at)?;
            }
            at += right.len() as u64;
        }
        position = at;
    }
    Ok(())
}

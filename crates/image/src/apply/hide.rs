//! What a layer removes: whiteouts, opaque directories, and names that are used again.
//!
//! Removal works on descriptors, one component at a time. What this layer itself created and then
//! loses is read back into the recipe first.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use vellum_format::{Mark, Opaque, Prefix};
use vellum_sys::{Dir, FileKind, xattr};

use super::attributes::Object;
use super::{Applier, TargetMarks, is_whiteout};
use crate::error::{Error, Result};
use crate::tar::Entry;

impl Applier<'_, '_> {
    /// Hides the lower layers' `hidden` in the current directory.
    pub(super) fn whiteout(&mut self, hidden: &OsStr, entry: &Entry) -> Result<()> {
        let dir = &self.stack.top().dir;
        match self.rules.marks {
            TargetMarks::Overlay(_) => {
                match dir.mknod(hidden, FileKind::Char, 0, vellum_format::WHITEOUT_RDEV) {
                    Ok(()) => {
                        dir.set_times(hidden, Some(entry.mtime), Some(entry.mtime))
                            .map_err(self.failed("set the times of", hidden))?;
                        self.stack.top_mut().dirty = true;
                        self.note(hidden, None);
                        let path = self.stack.path().to_vec();
                        self.whiteout_dirs.insert(path);
                        Ok(())
                    }
                    // The layer contains that name itself. A file hides what is below anyway; a
                    // directory must be marked.
                    Err(error) if error.is_exists() => {
                        let stat = dir.stat(hidden).map_err(self.failed("stat", hidden))?;
                        if !stat.is_dir() {
                            return Ok(());
                        }
                        let opaque = dir.open_dir(hidden).map_err(self.failed("open", hidden))?;
                        self.mark(&opaque, hidden)
                    }
                    Err(error) => Err(self.failed("hide", hidden)(error)),
                }
            }
            TargetMarks::Plain | TargetMarks::Whole(_) => {
                let Some(stat) = dir.stat_opt(hidden).map_err(self.failed("stat", hidden))? else {
                    return Ok(());
                };
                let path = self.stack.path_of(hidden);
                if !self.made.contains_key(&self.key(&path)) {
                    self.clear(hidden)?;
                } else if stat.is_dir() {
                    let dir = dir.open_dir(hidden).map_err(self.failed("open", hidden))?;
                    self.clear_foreign(&dir, path)?;
                }
                Ok(())
            }
        }
    }

    /// Hides everything that lower layers have in the current directory.
    pub(super) fn opaque(&mut self, _entry: &Entry) -> Result<()> {
        match self.rules.marks {
            TargetMarks::Overlay(_) if self.stack.path().is_empty() => {
                self.root_opaque = true;
                Ok(())
            }
            TargetMarks::Overlay(_) => self.mark_opaque(),
            TargetMarks::Plain | TargetMarks::Whole(_) => {
                let dir = self
                    .stack
                    .top()
                    .dir
                    .dup()
                    .map_err(self.failed("open", OsStr::new("")))?;
                self.stack.top_mut().dirty = true;
                self.clear_foreign(&dir, self.stack.path().to_vec())
            }
        }
    }

    /// Marks the current directory opaque, if the target has marks.
    pub(super) fn mark_opaque(&self) -> Result<()> {
        self.mark(&self.stack.top().dir, OsStr::new(""))
    }

    fn mark(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        let TargetMarks::Overlay(prefix) = self.rules.marks else {
            return Ok(());
        };
        Object::Dir(dir)
            .set_xattr(prefix.xattr(Mark::Opaque), Opaque::Opaque.encode())
            .map_err(self.failed("mark as opaque", name))
    }

    /// Removes whiteouts that hide nothing because their directory, or one above it, is opaque.
    /// Returns the directories of the others.
    pub(super) fn needed_whiteouts(&mut self, root: &Dir) -> Result<Vec<PathBuf>> {
        let TargetMarks::Overlay(prefix) = self.rules.marks else {
            return Ok(Vec::new());
        };
        let mut needed = Vec::new();
        'dirs: for path in std::mem::take(&mut self.whiteout_dirs) {
            let mut dir = root.dup().map_err(at("open", &path))?;
            let mut opaque = false;
            for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
                // A directory that has become something else was replaced later in the layer.
                let Ok(next) = dir.open_dir(OsStr::from_bytes(part)) else {
                    continue 'dirs;
                };
                let mark = xattr::get_fd(&next, prefix.xattr(Mark::Opaque))
                    .map_err(at("read the opaque mark of", &path))?;
                opaque |= mark.as_deref() == Some(Opaque::Opaque.encode());
                dir = next;
            }
            if opaque {
                drop_in(&dir, &path)?;
            } else {
                needed.push(PathBuf::from(OsString::from_vec(path)));
            }
        }
        Ok(needed)
    }

    /// Removes `name` from the current directory, whatever it is. Returns true if it was a
    /// whiteout.
    pub(super) fn clear(&mut self, name: &OsStr) -> Result<bool> {
        let dir = self
            .stack
            .top()
            .dir
            .dup()
            .map_err(self.failed("open", name))?;
        self.stack.top_mut().dirty = true;
        let path = self.stack.path_of(name);
        self.remove(&dir, name, path)
    }

    /// Removes from `dir`, which has this path, everything that this layer did not create.
    fn clear_foreign(&mut self, dir: &Dir, path: Vec<u8>) -> Result<()> {
        let times = dir.stat_self().map_err(at("stat", &path))?.mtime;
        for (name, kind) in list(dir, &path)? {
            let mut child = path.clone();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(name.as_bytes());
            if !self.made.contains_key(&self.key(&child)) {
                self.remove(dir, &name, child)?;
            } else if kind == FileKind::Dir {
                let dir = dir.open_dir(&name).map_err(at("open", &child))?;
                self.clear_foreign(&dir, child)?;
            }
        }
        Object::Dir(dir)
            .set_times(times)
            .map_err(at("set the times of", &path))
    }

    /// Removes `name`, whose whole path is `path`, from `dir`. Returns true if it was a whiteout.
    ///
    /// Recurses as deep as the tree; the limit on depth holds for the names of every layer.
    fn remove(&mut self, dir: &Dir, name: &OsStr, path: Vec<u8>) -> Result<bool> {
        let stat = dir.stat(name).map_err(at("stat", &path))?;
        if stat.is_dir() {
            let inner = dir.open_dir(name).map_err(at("open", &path))?;
            for (child, _) in list(&inner, &path)? {
                let mut child_path = path.clone();
                child_path.push(b'/');
                child_path.extend_from_slice(child.as_bytes());
                self.remove(&inner, &child, child_path)?;
            }
            dir.rmdir(name).map_err(at("remove", &path))?;
        } else {
            self.keep(dir, name, &path)?;
            dir.unlink(name).map_err(at("remove", &path))?;
        }
        let key = self.key(&path);
        self.made.remove(&key);
        self.implied.remove(&path);
        Ok(is_whiteout(&stat))
    }

    /// Reads a file's content back into the recipe if the recipe refers to it.
    fn keep(&mut self, dir: &Dir, name: &OsStr, path: &[u8]) -> Result<()> {
        let key = self.key(path);
        let Some(recipe) = &mut self.recipe else {
            return Ok(());
        };
        match self.made.get(&key) {
            None | Some(0) => Ok(()),
            Some(ordinal) => {
                let file = dir.open_file(name).map_err(at("read back", path))?;
                recipe.keep(ordinal - 1, &file)
            }
        }
    }
}

/// Removes the whiteouts in the directory `path` of an applied layer, after the layers below turned
/// out not to have that directory.
///
/// The directory's times stay. Nothing happens if there is no such directory. Not synced.
pub fn drop_whiteouts(root: &Dir, path: &Path) -> Result<()> {
    match root.open_dir(path) {
        Ok(dir) => drop_in(&dir, path.as_os_str().as_bytes()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(at("open", path.as_os_str().as_bytes())(error)),
    }
}

/// Hides each of `below`, the names that the lower layers have in their root, in the root of an
/// applied layer.
///
/// An overlay merges the roots of all its layers, so a mark on the root itself would have no
/// effect. What the layer doesn't contain gets a whiteout, and the directories that it contains
/// become opaque. Its whiteouts in `whiteout_dirs` then hide nothing, and are removed. The root's
/// times stay. Not synced.
pub fn hide_all(
    root: &Dir,
    prefix: Prefix,
    whiteout_dirs: &[PathBuf],
    below: impl IntoIterator<Item = OsString>,
) -> Result<()> {
    for path in whiteout_dirs {
        drop_whiteouts(root, path)?;
    }
    let time = root.stat_self().map_err(at("stat", b"."))?.mtime;
    for name in below {
        let failed = |action| at(action, name.as_bytes());
        match root.stat_opt(&name).map_err(failed("stat"))? {
            None => root
                .mknod(&name, FileKind::Char, 0, vellum_format::WHITEOUT_RDEV)
                .map_err(failed("hide"))?,
            Some(stat) if stat.is_dir() => {
                let dir = root.open_dir(&name).map_err(failed("open"))?;
                Object::Dir(&dir)
                    .set_xattr(prefix.xattr(Mark::Opaque), Opaque::Opaque.encode())
                    .map_err(failed("mark as opaque"))?;
            }
            Some(_) => {}
        }
    }
    Object::Dir(root)
        .set_times(time)
        .map_err(at("set the times of", b"."))
}

fn drop_in(dir: &Dir, path: &[u8]) -> Result<()> {
    let time = dir.stat_self().map_err(at("stat", path))?.mtime;
    for (name, kind) in list(dir, path)? {
        if kind == FileKind::Char && is_whiteout(&dir.stat(&name).map_err(at("stat", path))?) {
            dir.unlink(&name)
                .map_err(at("remove a whiteout in", path))?;
        }
    }
    Object::Dir(dir)
        .set_times(time)
        .map_err(at("set the times of", path))
}

fn list(dir: &Dir, path: &[u8]) -> Result<Vec<(OsString, FileKind)>> {
    dir.entries()
        .map_err(at("list", path))?
        .map(|entry| {
            let entry = entry.map_err(at("list", path))?;
            Ok((entry.name, entry.kind))
        })
        .collect()
}

fn at(action: &'static str, path: &[u8]) -> impl FnOnce(vellum_sys::Error) -> Error + use<> {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    move |error| Error::Apply {
        action,
        path,
        source: error.source,
    }
}

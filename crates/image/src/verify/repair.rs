//! What it takes to make a damaged tree right: which contents are needed, and where they are put
//! before anything in the tree is changed.
//!
//! The outline already has everything but content. So a content that is needed is written to the
//! outline's own file, and only what has been proven there goes into the tree (`mend.rs`). A tar
//! proves itself by its digest. A file from elsewhere is only as likely as its checksum, which can
//! be forged: the caller proves it with the layer's other files ([`Repair::prove`]) or rejects it.
//!
//! This module knows no sources: the caller offers what it has. It changes nothing but the outline.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use vellum_sys::rooted::Access;
use vellum_sys::{Cancel, Dir, FileKind, Stat, copy};

use super::attributes::{Attributes, Object};
use super::compare::at;
use super::names::Names;
use super::{Aspect, Contents, Difference, Outlined};
use crate::error::{Error, Result};
use crate::recipe::{self, Content, Gather};

/// A tree that differs from its outline.
#[derive(Clone, Copy)]
pub struct Damaged<'a> {
    /// The outline.
    pub outline: &'a Dir,
    /// The layer that was applied to it last.
    pub outlined: &'a Outlined,
    /// The contents of the layers below, if the tree holds them too.
    pub inherited: Option<&'a Contents>,
    /// The tree.
    pub tree: &'a Dir,
    /// What differs.
    pub differences: &'a [Difference],
    /// As in [`Found`](super::Found).
    pub unsaid: &'a HashSet<PathBuf>,
    /// As in [`Found`](super::Found).
    pub root_time: bool,
    /// Returns how many names an inode has in other trees that share it on purpose, by device and
    /// inode number. What has more is not changed: it gets a new inode instead.
    pub elsewhere: &'a dyn Fn((u64, u64)) -> u64,
    /// Stops the work between two files.
    pub cancel: &'a Cancel,
}

/// A content that the tree lacks.
pub struct Need {
    /// The file, relative to the tree's root.
    pub path: PathBuf,
    /// The layer it comes from, if that is one below: its position in `inherited`.
    pub layer: Option<usize>,
    /// What it is.
    pub content: Content,
    /// Where it was found.
    pub from: Option<String>,
    /// Where the outline's file is, and what its attributes are.
    pub(super) inode: u64,
    attributes: Attributes,
}

/// A repair that is being prepared.
pub struct Repair<'a> {
    pub(super) damaged: Damaged<'a>,
    pub(super) should: Names,
    pub(super) is: Names,
    needs: Vec<Need>,
    /// Their positions, by the outline's inode.
    by_inode: HashMap<u64, usize>,
}

impl<'a> Repair<'a> {
    /// Finds out what a repair needs. Changes nothing.
    pub fn plan(damaged: Damaged<'a>) -> Result<Self> {
        let mut repair = Self {
            should: Names::of(damaged.outline, damaged.cancel)?,
            is: Names::of(damaged.tree, damaged.cancel)?,
            damaged,
            needs: Vec::new(),
            by_inode: HashMap::new(),
        };
        let mut wanted = BTreeSet::new();
        for difference in damaged.differences {
            repair.wanted_for(difference, &mut wanted)?;
        }
        for path in wanted {
            repair.add(path)?;
        }
        for at in 0..repair.needs.len() {
            repair.fill_from_itself(at)?;
        }
        Ok(repair)
    }

    /// Collects the files whose content is needed to undo a difference.
    fn wanted_for(&self, difference: &Difference, wanted: &mut BTreeSet<PathBuf>) -> Result<()> {
        let path = &difference.path;
        match difference.aspect {
            Aspect::Digest => {}
            Aspect::Entry | Aspect::Kind => {
                if difference.expected.is_some() {
                    self.files_below(path, wanted)?;
                }
            }
            Aspect::Content | Aspect::Size | Aspect::HardLink => drop(wanted.insert(path.clone())),
            _ => {
                let (_, is) = match split(self.damaged.tree, path)? {
                    Some((dir, name)) => {
                        let found = dir.stat_opt(name).map_err(at("look at", path))?;
                        (dir, found)
                    }
                    None => return Ok(()),
                };
                if is.is_some_and(|is| is.is_file() && !self.is_private(&is)) {
                    wanted.insert(path.clone());
                }
            }
        }
        Ok(())
    }

    fn files_below(&self, path: &Path, wanted: &mut BTreeSet<PathBuf>) -> Result<()> {
        let outline = self.damaged.outline;
        let Some(stat) = stat_in(outline, path)? else {
            return Ok(());
        };
        if !stat.is_dir() {
            wanted.insert(path.to_owned());
            return Ok(());
        }
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            let dir = outline.open_dir(&path).map_err(at("open", &path))?;
            for entry in dir.entries().map_err(at("list", &path))? {
                let entry = entry.map_err(at("list", &path))?;
                match entry.kind {
                    FileKind::Dir => waiting.push(path.join(entry.name)),
                    FileKind::File => drop(wanted.insert(path.join(entry.name))),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Adds the content of the outline's file `path`, if it has any.
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let Some((dir, name)) = split(self.damaged.outline, &path)? else {
            return Ok(());
        };
        let found = dir.stat_opt(name).map_err(at("look at", &path))?;
        let Some(stat) = found.filter(|stat| stat.is_file() && stat.size_bytes > 0) else {
            return Ok(());
        };
        if self.by_inode.contains_key(&stat.ino) {
            return Ok(());
        }
        let own = &self.damaged.outlined.contents;
        let (layer, content) = match own.files.get(&stat.ino) {
            Some((_, content)) => (None, content),
            None => match self
                .damaged
                .inherited
                .and_then(|all| all.files.get(&stat.ino))
            {
                Some((layer, content)) => (Some(*layer), content),
                // A stand-in for what can't be created here: it has no content.
                None => return Ok(()),
            },
        };
        let content = content.clone();
        let attributes = Attributes::of(Object { dir: &dir, name }, &path)?;
        self.by_inode.insert(stat.ino, self.needs.len());
        self.needs.push(Need {
            layer,
            content,
            // A sparse file without data.
            from: None,
            inode: stat.ino,
            attributes,
            path,
        });
        Ok(())
    }

    /// Returns the contents that are needed, including those that were found.
    pub fn needs(&self) -> &[Need] {
        &self.needs
    }

    /// Returns the positions of the needs of one layer that nothing was found for.
    pub fn unfilled(&self, layer: Option<usize>) -> Vec<usize> {
        let mut open = Vec::new();
        for (at, need) in self.needs.iter().enumerate() {
            if need.from.is_none() && need.layer == layer {
                open.push(at);
            }
        }
        open
    }

    /// Returns why `path` can't be made right: how many contents are missing at or below it.
    pub fn lacks(&self, path: &Path) -> usize {
        self.concerning(path)
            .filter(|need| need.from.is_none())
            .count()
    }

    /// Returns where the content at or below `path` comes from, if it is from elsewhere.
    pub fn source_of(&self, path: &Path) -> Option<String> {
        self.concerning(path)
            .filter_map(|need| need.from.clone())
            .find(|from| !from.is_empty())
    }

    fn concerning<'p>(&'p self, path: &'p Path) -> impl Iterator<Item = &'p Need> {
        let device = self.device();
        self.needs.iter().filter(move |need| {
            let mut same = self.should.of_inode((device, need.inode));
            same.any(|name| name.starts_with(path))
        })
    }

    fn device(&self) -> u64 {
        self.damaged.outline.stat_self().map_or(0, |stat| stat.dev)
    }

    /// Takes every unfilled content of a layer out of a tar that `pass` writes. `pass` returns
    /// whether it was the layer's tar; if not, nothing counts as found.
    pub fn fill_from_tar(
        &mut self,
        layer: Option<usize>,
        from: &str,
        pass: impl FnOnce(&mut Gather<'_>) -> Result<bool>,
    ) -> Result<()> {
        let open = self.unfilled(layer);
        for &at in &open {
            self.empty(at)?;
        }
        let opener = |at: usize| self.open_need(at).map_err(io::Error::other);
        let wanted = open.iter().map(|&at| (at, &self.needs[at].content));
        let mut gather = Gather::new(wanted, &opener);
        if !pass(&mut gather)? {
            return Ok(());
        }
        for at in open {
            if self.holds(at)? {
                self.needs[at].from = Some(from.to_owned());
            }
        }
        Ok(())
    }

    /// Takes what a recipe keeps itself: content whose name the layer lost, though another leads to
    /// it. A recipe is checked as a whole.
    pub fn fill_from_recipe(
        &mut self,
        layer: Option<usize>,
        recipe: &mut (impl Read + Seek),
        tree: &Dir,
    ) -> Result<()> {
        let is_kept = |at: &usize| self.needs[*at].content.is_kept();
        let open: Vec<usize> = self.unfilled(layer).into_iter().filter(is_kept).collect();
        if open.is_empty() {
            return Ok(());
        }
        for &at in &open {
            self.empty(at)?;
        }
        let opener = |at: usize| self.open_need(at).map_err(io::Error::other);
        let wanted = open.iter().map(|&at| (at, &self.needs[at].content));
        let mut gather = Gather::new(wanted, &opener);
        recipe::survey(recipe, tree, &mut gather, self.damaged.cancel)?;
        for at in open {
            if self.holds(at)? {
                self.needs[at].from = Some("the layer's recipe".to_owned());
            }
        }
        Ok(())
    }

    /// Tries a file: returns whether it has the right length and checksum. It doesn't count as
    /// found before [`Repair::accept`].
    pub fn try_file(&mut self, at: usize, file: &File) -> Result<bool> {
        let need = &self.needs[at];
        let size = file.metadata().map_err(Error::Read)?.len();
        if size != need.attributes.stat.size_bytes {
            return Ok(false);
        }
        if need.content.compare(file, self.damaged.cancel)?.is_some() {
            return Ok(false);
        }
        self.empty(at)?;
        let to = self.open_need(at)?;
        copy::copy_data(file, &to).map_err(|error| Error::Write(error.source))?;
        self.holds(at)
    }

    /// Counts the content that was tried last as found.
    pub fn accept(&mut self, at: usize, from: String) {
        self.needs[at].from = Some(from);
    }

    /// Returns whether the layer of `recipe` and `tree` has its digest with the contents in `with`,
    /// positions of needs of that one layer.
    pub fn prove(
        &self,
        recipe: &mut (impl Read + Seek),
        tree: &Dir,
        with: &[usize],
    ) -> Result<bool> {
        let instead = |ordinal: u32| {
            let mut with = with.iter();
            let found = with.find(|&&at| self.needs[at].content.ordinal() == ordinal);
            let file = found.map(|&at| self.open_need(at).map_err(io::Error::other));
            file.transpose()
        };
        recipe::prove(recipe, tree, &instead, self.damaged.cancel)
    }

    /// Uses content that the tree itself has, perhaps under another name of the same file.
    fn fill_from_itself(&mut self, at: usize) -> Result<()> {
        if self.needs[at].content.likeness().0 == 0 {
            self.empty(at)?;
            self.needs[at].from = Some(String::new());
            return Ok(());
        }
        let inode = (self.device(), self.needs[at].inode);
        let names: Vec<PathBuf> = self.should.of_inode(inode).cloned().collect();
        for name in names {
            if let Ok(file) = self.damaged.tree.open_file(&name)
                && self.try_file(at, &file)?
            {
                self.needs[at].from = Some(String::new());
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) fn need_of(&self, inode: u64) -> Option<&Need> {
        self.by_inode.get(&inode).map(|&at| &self.needs[at])
    }

    pub(super) fn open_need(&self, at: usize) -> Result<File> {
        let path = &self.needs[at].path;
        let outline = self.damaged.outline;
        outline
            .open_file_for(path, Access::ReadWrite)
            .map_err(self::at("open", path))
    }

    fn empty(&self, at: usize) -> Result<()> {
        let file = self.open_need(at)?;
        let size = self.needs[at].attributes.stat.size_bytes;
        let emptied = file.set_len(0).and_then(|()| file.set_len(size));
        emptied.map_err(Error::Write)
    }

    fn holds(&self, at: usize) -> Result<bool> {
        let need = &self.needs[at];
        let wrong = need
            .content
            .compare(&self.open_need(at)?, self.damaged.cancel)?;
        Ok(wrong.is_none())
    }

    /// Gives the outline's files the attributes back that they lost while content was written.
    /// Call it when nothing more is offered.
    pub fn seal(&self) -> Result<()> {
        for need in &self.needs {
            if let Some((dir, name)) = split(self.damaged.outline, &need.path)? {
                let object = Object { dir: &dir, name };
                need.attributes.give(object, &need.path, true)?;
            }
        }
        Ok(())
    }

    /// Whether nothing outside the layer shows what is not a directory: it may be changed.
    pub(super) fn is_private(&self, stat: &Stat) -> bool {
        let identity = stat.identity();
        stat.is_dir()
            || stat.nlink == 1
            || self.should.has(identity)
            || self.is.count(identity) + (self.damaged.elsewhere)(identity) >= u64::from(stat.nlink)
    }
}

/// Opens the directory of `path`, and returns it with the name there; `None` for the root, or if
/// the directory isn't there.
pub(super) fn split<'p>(root: &Dir, path: &'p Path) -> Result<Option<(Dir, &'p OsStr)>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    match root.open_dir(parent) {
        Ok(dir) => Ok(Some((dir, name))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(at("open", parent)(error)),
    }
}

pub(super) fn stat_in(root: &Dir, path: &Path) -> Result<Option<Stat>> {
    match split(root, path)? {
        Some((dir, name)) => dir.stat_opt(name).map_err(at("look at", path)),
        None if path.as_os_str().is_empty() => {
            root.stat_self().map(Some).map_err(at("look at", path))
        }
        None => Ok(None),
    }
}

//! Copies files and directories from directory to directory.
//!
//! Names are copied in byte order, as Docker does, so an error leaves the same files behind. Files
//! with several names in the source have them in the copy too.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vellum_sys::copy::copy_data;
use vellum_sys::in_root::Last;
use vellum_sys::{Dir, FileKind, Stat, rooted};

use super::invalid;
use super::place::{Look, Owners, Placing};
use super::side::{FoundFile, Side};
use crate::context::Context;
use crate::error::{Error, Result};

/// Copies the file at one side to the other.
pub(super) fn copy(placing: Placing, from: &Side, to: &Side, follow: bool) -> Result<()> {
    let found = from.source(follow)?;
    let Some(target) = to.find(Last::Follow)? else {
        if to.ends_as_directory() && !found.is_dir() {
            return Err(Error::Invalid {
                what: format!("there is no directory {}", to.shown().display()),
                hint: Some("make it first, or leave out the last `/` to name the copy".into()),
            });
        }
        let (dir, name) = to.vacant()?;
        return one(placing, &found, &dir, &name);
    };
    match target.stat.kind {
        FileKind::Dir => {
            let into = target.open_dir()?;
            if from.wants_content() || found.name.is_none() {
                return Copying::of(&found, placing, &into)?.content(&found.open_dir()?, &into);
            }
            one(placing, &found, &into, &from.base_name(&found))
        }
        FileKind::Char | FileKind::Block => Err(invalid(&format!(
            "{} is a device: only a directory or a file can be overwritten",
            to.shown().display()
        ))),
        _ if found.is_dir() => Err(invalid(&format!(
            "cannot overwrite non-directory {} with directory {}",
            to.shown().display(),
            from.shown().display()
        ))),
        _ => one(placing, &found, &target.dir, target.file_name()?),
    }
}

/// Copies one file, with its content, to `name` in `dir`.
fn one(placing: Placing, found: &FoundFile, dir: &Dir, name: &OsStr) -> Result<()> {
    let mut copying = Copying::of(found, placing, dir)?;
    match found.is_dir() {
        true => copying.directory(&found.open_dir()?, &found.stat, dir, name),
        false => copying.entry(&found.dir, found.file_name()?, &found.stat, dir, name),
    }
}

/// Copies the content of `from` to `to`, with all attributes. Stays within both directories.
pub(crate) fn whole_tree(ctx: &Context, from: &Dir, to: &Dir) -> Result<()> {
    let mut copying = Copying::new(Placing::new(ctx, Path::new("/"), Owners::Kept, true), to)?;
    copying.content(from, to)?;
    copying.finish(from, &from.stat_self()?, to)
}

/// One copy in progress.
struct Copying<'a> {
    placing: Placing<'a>,
    /// Where the copy began.
    base: Dir,
    /// The directory that is being filled, relative to the base.
    path: PathBuf,
    /// The first name of each inode with several: its directory, relative to the base, and its name
    /// there.
    links: HashMap<(u64, u64), (PathBuf, OsString)>,
}

impl<'a> Copying<'a> {
    fn new(placing: Placing<'a>, base: &Dir) -> Result<Self> {
        Ok(Self {
            placing,
            base: base.dup()?,
            path: PathBuf::new(),
            links: HashMap::new(),
        })
    }

    /// Begins a copy of `found` into `base`.
    ///
    /// Errors: `base` is inside the source, so the copy would never end.
    fn of(found: &FoundFile, placing: Placing<'a>, base: &Dir) -> Result<Self> {
        if found.is_dir()
            && let (Some(from), Some(to)) = (found.open_dir()?.path(), base.path())
            && to.starts_with(&from)
        {
            return Err(invalid(&format!(
                "cannot copy a directory into itself: {} is in {}",
                to.display(),
                from.display()
            )));
        }
        Self::new(placing, base)
    }

    fn content(&mut self, from: &Dir, to: &Dir) -> Result<()> {
        let mut names = Vec::new();
        for entry in from.entries()? {
            names.push(entry?.name);
        }
        names.sort_unstable();
        for name in names {
            // The container may have removed it in the meantime.
            if let Some(stat) = from.stat_opt(&name)? {
                self.entry(from, &name, &stat, to, &name)?;
            }
        }
        Ok(())
    }

    /// Copies `name` in `from`, which has `stat`, to `to_name` in `to`.
    fn entry(
        &mut self,
        from: &Dir,
        name: &OsStr,
        stat: &Stat,
        to: &Dir,
        to_name: &OsStr,
    ) -> Result<()> {
        self.placing.ctx.go_on()?;
        if stat.kind == FileKind::Dir {
            let below = from.open_dir(name)?;
            return self.directory(&below, stat, to, to_name);
        }
        let look = Look::of(stat);
        match stat.kind {
            FileKind::Socket => {
                let name = Path::new(name).display();
                self.placing
                    .warn(format!("{name} is a socket and was left out"));
                return Ok(());
            }
            _ if stat.nlink > 1 && self.link(stat, to, to_name)? => return Ok(()),
            FileKind::File => {
                // Opened before anything is removed: it may be the very file that will be replaced.
                let source = from.open_file(name)?;
                if self.is_same(stat, to, to_name)? {
                    return Ok(());
                }
                let target = self.placing.file(to, to_name, &look)?;
                copy_data(&source, &target)?;
                self.placing
                    .dress(&target, &look, || self.placing.attributes(&source, &target))?;
                rooted::set_times_fd(&target, Some(look.atime), Some(look.mtime))?;
            }
            FileKind::Symlink => {
                let text = from.read_link(name)?;
                if self.is_same(stat, to, to_name)? {
                    return Ok(());
                }
                self.placing
                    .replacing(to, to_name, || to.symlink(&text, to_name))?;
                self.placing.dress_name(to, to_name, &look)?;
            }
            FileKind::Char | FileKind::Block | FileKind::Fifo | FileKind::Dir => {
                if self.is_same(stat, to, to_name)? {
                    return Ok(());
                }
                if !self.placing.node(to, to_name, stat.kind, stat.rdev)? {
                    return Ok(());
                }
                self.placing.dress_name(to, to_name, &look)?;
            }
        }
        if stat.nlink > 1 {
            let place = (self.path.clone(), to_name.to_owned());
            self.links.insert(stat.identity(), place);
        }
        Ok(())
    }

    /// Copies the directory `below`, which has `stat`, to `name` in `to`.
    fn directory(&mut self, below: &Dir, stat: &Stat, to: &Dir, name: &OsStr) -> Result<()> {
        let into = self.placing.directory(to, name)?;
        self.path.push(name);
        let filled = self.content(below, &into);
        self.path.pop();
        // Also after a failure inside it: the copied files stay, and their directory must be as
        // open or closed as intended.
        let finished = self.finish(below, stat, &into);
        filled.and(finished)
    }

    /// Gives a filled directory the attributes of `from`, which has `stat`.
    fn finish(&self, from: &Dir, stat: &Stat, to: &Dir) -> Result<()> {
        let look = Look::of(stat);
        self.placing
            .dress(to, &look, || self.placing.attributes(from, to))?;
        rooted::set_times_fd(to, Some(look.atime), Some(look.mtime))?;
        Ok(())
    }

    /// Tells whether the file to be replaced is the file to be copied: then it is there already.
    fn is_same(&self, stat: &Stat, to: &Dir, to_name: &OsStr) -> Result<bool> {
        let there = to.stat_opt(to_name)?;
        Ok(there.is_some_and(|there| there.identity() == stat.identity()))
    }

    /// Links to the copy of the same inode, if there is one. False: it must be copied.
    fn link(&self, stat: &Stat, to: &Dir, to_name: &OsStr) -> Result<bool> {
        let Some((path, name)) = self.links.get(&stat.identity()) else {
            return Ok(false);
        };
        let made = self.placing.replacing(to, to_name, || {
            to.link(&self.base.open_dir(path)?, name, to_name)
        });
        match made {
            Ok(()) => Ok(true),
            // Another file system is mounted in the target.
            Err(Error::Sys(e)) if e.is_cross_device() || e.is(Errno::MLINK) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

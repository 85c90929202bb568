//! Unpacks a tar into a directory of a container, by the rules of `docker cp -`.
//!
//! Names have no special meaning: no entry deletes anything, whatever its name. They are resolved
//! from the target. Links on the way are followed as a process in the container would follow them;
//! a link at the end of a path is itself replaced. A hard link's target is a name in the same
//! directory, whether from the tar or not. Entries above the target are refused, and nothing can be
//! above the root.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use vellum_image::tar::{Ending, Entry, EntryKind, TarReader};
use vellum_image::{Error as ImageError, LayerStream, Limits};
use vellum_sys::in_root::{self, Last};
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, FileKind, Timespec, rooted};

use super::invalid;
use super::place::{Look, Owners, Placing};
use super::side::Side;
use crate::context::Context;
use crate::error::{Error, Result};

/// Unpacks a tar, compressed or not, into the directory `to`.
///
/// What follows the end marker is read and ignored. A tar without an end marker causes a warning:
/// it may have been cut short.
pub(super) fn unpack(ctx: &Context, to: &Side, input: impl Read + Send + 'static) -> Result<()> {
    let target = to
        .find(Last::Follow)?
        .filter(super::side::FoundFile::is_dir)
        .ok_or_else(|| {
            invalid(&format!(
                "the destination {} must be a directory",
                to.shown().display()
            ))
        })?;
    let limits = Limits::default();
    let stream = LayerStream::open(Box::new(input), &limits, &ctx.cancel)?;
    let mut reader = TarReader::new(stream, &limits);
    let mut unpacking = Unpacking {
        placing: Placing::new(ctx, &to.top, Owners::Kept, true),
        root: &to.root,
        target: target.open_dir()?,
        base: target.path,
        here: None,
        directories: Vec::new(),
    };
    let mut is_empty = true;
    while let Some(entry) = reader.next_entry()? {
        ctx.go_on()?;
        is_empty = false;
        unpacking.entry(&entry, &mut reader)?;
        reader.raw().clear();
    }
    // Empty input is an archive without entries.
    if !is_empty && reader.ending() == Some(Ending::Unmarked) {
        let warning = "the tar has no end marker: it may have been cut short";
        ctx.progress.warn(warning);
    }
    unpacking.finish()?;
    reader.into_source().finish()?;
    Ok(())
}

struct Unpacking<'a> {
    placing: Placing<'a>,
    /// The container's root.
    root: &'a Dir,
    target: Dir,
    /// The target, relative to the root; without links.
    base: PathBuf,
    /// The directory of the last entry, by its path from the root.
    here: Option<(PathBuf, Dir)>,
    /// The times that directories get at the end.
    directories: Vec<(PathBuf, Timespec)>,
}

impl Unpacking<'_> {
    fn entry(&mut self, entry: &Entry, reader: &mut TarReader<LayerStream>) -> Result<()> {
        let path = self.path(&entry.name)?;
        // The root, or a name that ends at the target itself.
        let (above, name) = match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) if path != self.base => (above, name),
            _ if entry.kind == EntryKind::Directory => return Ok(()),
            _ => {
                let entry = entry.path().display();
                return Err(invalid(&format!(
                    "cannot overwrite directory {} with non-directory {entry}",
                    Path::new("/").join(&self.base).display()
                )));
            }
        };
        let dir = self.enter(above)?;
        let removals = self.placing.removals();
        self.make(&dir, name, &path, entry, reader)?;
        // The removed file may have been a link on the way to here.
        self.here = match self.placing.removals() == removals {
            true => Some((above.to_owned(), dir)),
            false => None,
        };
        Ok(())
    }

    fn make(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
        reader: &mut TarReader<LayerStream>,
    ) -> Result<()> {
        let look = Look {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            atime: entry.mtime,
            mtime: entry.mtime,
        };
        let kind = match entry.kind {
            EntryKind::Directory => {
                let made = self.placing.directory(dir, name)?;
                self.placing
                    .dress(&made, &look, || self.attributes_fd(entry, &made))?;
                rooted::set_times_fd(&made, Some(look.atime), Some(look.mtime))?;
                self.directories.push((path.to_owned(), entry.mtime));
                return Ok(());
            }
            EntryKind::File => {
                let file = self.placing.file(dir, name, &look)?;
                write_content(&file, entry, reader)?;
                self.placing
                    .dress(&file, &look, || self.attributes_fd(entry, &file))?;
                rooted::set_times_fd(&file, Some(look.atime), Some(look.mtime))?;
                return Ok(());
            }
            EntryKind::HardLink => return self.hard_link(dir, name, entry),
            EntryKind::Symlink => {
                self.placing
                    .replacing(dir, name, || dir.symlink(&entry.link, name))?;
                FileKind::Symlink
            }
            EntryKind::Character => FileKind::Char,
            EntryKind::Block => FileKind::Block,
            EntryKind::Fifo => FileKind::Fifo,
            // As Docker: an entry that can't be created is an error.
            EntryKind::Other(kind) => {
                return Err(Error::Invalid {
                    what: format!(
                        "the tar's entry {} has a type that can't be created ({:?})",
                        path.display(),
                        char::from(kind)
                    ),
                    hint: None,
                });
            }
        };
        if kind != FileKind::Symlink && !self.placing.node(dir, name, kind, entry.rdev)? {
            return Ok(());
        }
        for (attr, value) in &entry.xattrs {
            self.placing.attribute(attr, |attr| {
                xattr::set(dir, name, attr, value, SetMode::Any)
            })?;
        }
        self.placing.dress_name(dir, name, &look)
    }

    fn hard_link(&self, dir: &Dir, name: &OsStr, entry: &Entry) -> Result<()> {
        let path = self.path(&entry.link)?;
        let missing = || {
            Error::from(ImageError::LinkTargetMissing {
                path: entry.path().to_owned(),
                target: Path::new(&entry.link).to_owned(),
            })
        };
        let (Some(above), Some(first)) = (path.parent(), path.file_name()) else {
            return Err(missing());
        };
        let first_dir = self.find(above)?.ok_or_else(missing)?;
        let stat = first_dir.stat_opt(first)?.ok_or_else(missing)?;
        // Already that very file, perhaps because the link names itself: removing it first would
        // lose it.
        if dir
            .stat_opt(name)?
            .is_some_and(|there| there.identity() == stat.identity())
        {
            return Ok(());
        }
        self.placing
            .replacing(dir, name, || dir.link(&first_dir, first, name))
    }

    fn attributes_fd(&self, entry: &Entry, object: &impl std::os::fd::AsFd) -> Result<()> {
        for (attr, value) in &entry.xattrs {
            self.placing.attribute(attr, |attr| {
                xattr::set_fd(object, attr, value, SetMode::Any)
            })?;
        }
        Ok(())
    }

    /// Returns the path of a name in the tar, relative to the container's root: below the target,
    /// by its spelling.
    fn path(&self, name: &OsStr) -> Result<PathBuf> {
        let name = Path::new(name);
        let mut path = self.base.clone();
        for component in name.components() {
            match component {
                Component::Normal(part) => path.push(part),
                // An absolute name counts from the target, and its `..` stop there; those of other
                // names stop at the root.
                Component::ParentDir if name.is_absolute() && path == self.base => {}
                Component::ParentDir => drop(path.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        match path.starts_with(&self.base) {
            true => Ok(path),
            false => Err(ImageError::Escapes {
                path: name.to_owned(),
                why: "it is above the target directory",
            }
            .into()),
        }
    }

    /// Returns the directory `path`; creates what is missing.
    fn enter(&mut self, path: &Path) -> Result<Dir> {
        if let Some((_, dir)) = self.here.take_if(|(here, _)| here == path) {
            return Ok(dir);
        }
        if let Some(dir) = self.find(path)? {
            return Ok(dir);
        }
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(self.root.dup()?);
        };
        let dir = self.enter(above)?;
        dir.mkdir(name, 0o755)?;
        Ok(dir.open_dir(name)?)
    }

    /// Returns the directory `path`, links followed inside the root; `None` if it isn't there.
    fn find(&self, path: &Path) -> Result<Option<Dir>> {
        // Nearly always there is no link on the way, and one call finds the directory.
        if let Ok(below) = path.strip_prefix(&self.base)
            && let Ok(dir) = self.target.open_dir(below)
        {
            return Ok(Some(dir));
        }
        Ok(in_root::dir(self.root, path)?)
    }

    /// Gives directories their times, now that nothing more is created in them.
    fn finish(&mut self) -> Result<()> {
        for (path, time) in std::mem::take(&mut self.directories) {
            // A process in the container may have removed it.
            if let Some(dir) = self.find(&path)? {
                rooted::set_times_fd(&dir, Some(time), Some(time))?;
            }
        }
        Ok(())
    }
}

/// Runs of at least this many zero bytes become holes. A tar has no form for holes that all
/// programs know, and a sparse file must not fill the disk after passing through one.
const HOLE_BYTES: usize = 64 << 10;

/// Writes an entry's content.
fn write_content(file: &File, entry: &Entry, reader: &mut TarReader<LayerStream>) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::from(ImageError::Apply {
            action: "write",
            path: entry.path().to_owned(),
            source: error,
        })
    };
    let mut ranges = entry.ranges.as_deref().unwrap_or_default().iter();
    let mut range = match &entry.ranges {
        Some(_) => None,
        None => Some((0, entry.size_bytes)),
    };
    let mut written = 0;
    loop {
        let piece = reader.payload()?;
        if piece.is_empty() {
            break;
        }
        let (offset, left) = match range {
            Some((offset, left)) if left > 0 => (offset, left),
            _ => match ranges.next() {
                Some(next) => (next.offset, next.length),
                // The reader has checked that the ranges hold the whole content.
                None => break,
            },
        };
        let n = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if n < HOLE_BYTES || !is_zero(&piece[..n]) {
            file.write_all_at(&piece[..n], offset).map_err(failed)?;
            written = offset + n as u64;
        }
        reader.advance(n);
        range = Some((offset + n as u64, left - n as u64));
    }
    match written == entry.size_bytes {
        true => Ok(()),
        false => file.set_len(entry.size_bytes).map_err(failed),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|part| *part == ZEROS[..part.len()])
}

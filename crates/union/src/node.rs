//! What the union has at one path: attributes, data, and where they come from.
//!
//! A node is a snapshot from the moment of its lookup. It holds handles, not descriptors: reading
//! from it later may find that the tree below has changed, which is an error.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::{OVERRIDE_STAT_NAMES, OverrideKind, OverrideStat, record};
use vellum_sys::{FileKind, Stat};

use crate::at::At;
use crate::error::{On, Site};
use crate::layer::blocks::Data;
use crate::layer::{Dialect, Layer, LayerDir, Records, WhNames};
use crate::marks::{DirAt, FileAt};
use crate::resolve::{Part, Stop};
use crate::{Error, Result};

/// fuse-overlayfs's own xattrs, which it hides from its users.
const FUSE_OVERLAYFS_PREFIX: &str = "user.fuseoverlayfs.";

/// One file or directory of a union.
#[derive(Debug, Clone)]
pub struct Node {
    path: PathBuf,
    layer_index: usize,
    layer: Arc<dyn Layer>,
    stat: Stat,
    /// The attributes come from an `override_stat` mark: the inode itself is a regular file or
    /// directory.
    overridden: bool,
    what: DirOrFile,
}

#[derive(Debug, Clone)]
enum DirOrFile {
    Dir {
        parts: Arc<[Part<DirAt>]>,
        stop: Option<(usize, Stop)>,
    },
    File {
        file: Box<FileAt>,
        data: Option<Box<FileAt>>,
        /// For a file copied up block by block: all layers below the top one, from the bottom.
        below: Arc<[Arc<dyn Layer>]>,
    },
}

/// The layer whose attributes it has.
impl Site for Node {
    fn site(&self) -> String {
        self.layer.name()
    }
}

impl Node {
    pub(crate) fn directory(
        path: PathBuf,
        layer: Arc<dyn Layer>,
        parts: Vec<Part<DirAt>>,
        stop: Option<(usize, Stop)>,
    ) -> Result<Node> {
        let top = &parts[0];
        let shown = shown(&*layer, &*top.dir.dir, None, &top.dir.stat)?;
        Ok(Node {
            path,
            layer_index: top.layer,
            layer,
            overridden: shown.is_some(),
            stat: shown.unwrap_or_else(|| top.dir.stat.clone()),
            what: DirOrFile::Dir {
                parts: parts.into(),
                stop,
            },
        })
    }

    pub(crate) fn file(
        path: PathBuf,
        layer_index: usize,
        layer: Arc<dyn Layer>,
        file: FileAt,
        data: Option<FileAt>,
        below: Vec<Arc<dyn Layer>>,
    ) -> Result<Node> {
        let shown = shown(&*layer, &*file.dir, Some(&file.name), &file.stat)?;
        Ok(Node {
            path,
            layer_index,
            layer,
            overridden: shown.is_some(),
            stat: shown.unwrap_or_else(|| file.stat.clone()),
            what: DirOrFile::File {
                file: Box::new(file),
                data: data.map(Box::new),
                below: below.into(),
            },
        })
    }

    /// Returns the path from the union's root, without a leading slash; the root's is empty.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the attributes as a user of the union sees them.
    ///
    /// Inode number, device and link count are those of the inode in [`Node::layer`]. The size of a
    /// regular file is that of its data, also where that is below.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Returns its type.
    pub fn kind(&self) -> FileKind {
        self.stat.kind
    }

    /// Returns whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.what, DirOrFile::Dir { .. })
    }

    /// Returns the number of the layer whose attributes it has; 0 is the top one.
    pub fn layer(&self) -> usize {
        self.layer_index
    }

    /// Returns the layer whose attributes it has, for messages.
    pub fn layer_name(&self) -> String {
        self.layer.name()
    }

    /// Returns device and number of the inode whose attributes it has.
    ///
    /// Two nodes of one union are names of one file (a hard link) exactly if these are equal.
    pub fn identity(&self) -> (u64, u64) {
        self.stat.identity()
    }

    /// Returns device and number of the inode that has the data; for a metacopy they differ from
    /// [`Node::identity`].
    pub fn data_identity(&self) -> (u64, u64) {
        match &self.what {
            DirOrFile::File {
                data: Some(data), ..
            } => data.stat.identity(),
            _ => self.identity(),
        }
    }

    /// Returns the identities of the directories that a directory consists of, top first; empty for
    /// other types.
    pub fn part_identities(&self) -> Vec<(u64, u64)> {
        self.parts()
            .iter()
            .map(|part| part.dir.stat.identity())
            .collect()
    }

    /// Returns what keeps lower layers from showing through this directory, and the layer that has
    /// it.
    pub fn stop(&self) -> Option<(usize, Stop)> {
        match &self.what {
            DirOrFile::Dir { stop, .. } => *stop,
            DirOrFile::File { .. } => None,
        }
    }

    pub(crate) fn parts(&self) -> &[Part<DirAt>] {
        match &self.what {
            DirOrFile::Dir { parts, .. } => parts,
            DirOrFile::File { .. } => &[],
        }
    }

    /// Returns where the inode is: its directory, and its name unless it is that directory.
    fn place(&self) -> (&dyn LayerDir, Option<&OsStr>) {
        match &self.what {
            DirOrFile::Dir { parts, .. } => (&*parts[0].dir.dir, None),
            DirOrFile::File { file, .. } => (&*file.dir, Some(&file.name)),
        }
    }

    /// Returns the xattrs that a user of the union sees: marks hidden, names unescaped, records in
    /// their own names.
    pub fn xattrs(&self) -> Result<BTreeMap<OsString, Vec<u8>>> {
        let (dir, name) = self.place();
        let dialect = self.layer.dialect();
        let mut found = BTreeMap::new();
        for stored in dir.xattr_names(name).on(self)? {
            let Some(shown) = shown_name(&dialect, &stored) else {
                continue;
            };
            // An xattr removed since it was listed is not there.
            if let Some(value) = dir.xattr(name, &stored).on(self)? {
                // The recorded value is the intended one; a plain xattr of that name comes from
                // the file system itself.
                match record::original(&stored).is_some() && dialect.records == Records::Read {
                    true => drop(found.insert(shown, value)),
                    false => drop(found.entry(shown).or_insert(value)),
                }
            }
        }
        Ok(found)
    }

    /// Returns what to set on another inode, in a layer of the same dialect, so that it shows as
    /// this one does: attributes and xattrs as stored, with records, without marks.
    pub fn stored(&self) -> Result<(Stat, BTreeMap<OsString, Vec<u8>>)> {
        let (dir, name) = self.place();
        let stat = match &self.what {
            DirOrFile::Dir { parts, .. } => parts[0].dir.stat.clone(),
            DirOrFile::File { file, .. } => file.stat.clone(),
        };
        let prefix = self.layer.dialect().prefix;
        let mut xattrs = BTreeMap::new();
        for stored in dir.xattr_names(name).on(self)? {
            if prefix.is_some_and(|prefix| prefix.is_control(&stored)) {
                continue;
            }
            if let Some(value) = dir.xattr(name, &stored).on(self)? {
                xattrs.insert(stored, value);
            }
        }
        Ok((stat, xattrs))
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self) -> Result<OsString> {
        match (&self.what, self.kind()) {
            (DirOrFile::File { .. }, FileKind::Symlink) if self.overridden => {
                let mut target = Vec::new();
                let file = self.open_inode()?;
                // A target is shorter than a page; a longer content is not a link.
                match file.take(4097).read_to_end(&mut target) {
                    Ok(1..=4096) => Ok(OsString::from_vec(target)),
                    _ => Err(Error::WrongKind {
                        path: self.path.clone(),
                        expected: "symbolic link",
                    }),
                }
            }
            (DirOrFile::File { file, .. }, FileKind::Symlink) => {
                file.dir.read_link(&file.name).on(self)
            }
            _ => Err(Error::WrongKind {
                path: self.path.clone(),
                expected: "symbolic link",
            }),
        }
    }

    /// Opens the data of a regular file for reading, in whatever layer it is.
    ///
    /// Also errors if the file is copied up block by block and its map or lower file can't be used.
    pub fn open_data(&self) -> Result<Data> {
        let file = match self.kind() {
            FileKind::File => self.open_inode()?,
            _ => {
                return Err(Error::WrongKind {
                    path: self.path.clone(),
                    expected: "regular file",
                });
            }
        };
        let DirOrFile::File {
            file: top,
            data,
            below,
        } = &self.what
        else {
            return Ok(Data::plain(file));
        };
        let holder = data.as_ref().unwrap_or(top);
        let Some(map) = &holder.blocks else {
            return Ok(Data::plain(file));
        };
        let fail = |why| Error::Blocks {
            layer: self.layer.name(),
            path: holder.dir.path().join(&holder.name),
            why,
        };
        let maps = self.layer.block_maps();
        let maps = maps.ok_or_else(|| fail("its layer has no maps".to_owned()))?;
        Data::blocks(&maps, map, file, below, fail)
    }

    fn open_inode(&self) -> Result<File> {
        match &self.what {
            DirOrFile::File { file, data, .. } => {
                let holder = data.as_ref().unwrap_or(file);
                holder.dir.open_file(&holder.name).on(self)
            }
            DirOrFile::Dir { .. } => Err(Error::WrongKind {
                path: self.path.clone(),
                expected: "regular file",
            }),
        }
    }

    /// Returns whether a directory has this share: layer, device and inode number.
    pub(crate) fn has_part(&self, (layer, dev, ino): (usize, u64, u64)) -> bool {
        let is_it =
            |part: &Part<DirAt>| part.layer == layer && part.dir.stat.identity() == (dev, ino);
        self.parts().iter().any(is_it)
    }

    /// Closes a directory's descriptors; they are opened again when needed.
    pub(crate) fn release(&self) {
        for part in self.parts() {
            part.dir.dir.release();
        }
    }
}

/// Returns the recorded attributes, or `None` if the inode's own are shown.
pub(crate) fn shown(
    layer: &dyn Layer,
    dir: &dyn LayerDir,
    name: Option<&OsStr>,
    stat: &Stat,
) -> Result<Option<Stat>> {
    let path = || name.map_or_else(|| dir.path(), |name| dir.path().join(name));
    shown_by(layer, |xattr| dir.xattr(name, xattr), path, stat)
}

/// As [`shown`], for an inode of an upper layer.
pub(crate) fn shown_at(layer: &dyn Layer, at: &At, stat: &Stat) -> Result<Option<Stat>> {
    let path = || match at {
        At::Name(_, name) => PathBuf::from(name),
        At::Dir(_) | At::Fd(_) => PathBuf::new(),
    };
    shown_by(layer, |xattr| at.xattr(xattr), path, stat)
}

fn shown_by(
    layer: &dyn Layer,
    xattr: impl Fn(&OsStr) -> vellum_sys::Result<Option<Vec<u8>>>,
    path: impl Fn() -> PathBuf,
    stat: &Stat,
) -> Result<Option<Stat>> {
    if layer.dialect().records == Records::None
        || !matches!(stat.kind, FileKind::File | FileKind::Dir)
    {
        return Ok(None);
    }
    for name in OVERRIDE_STAT_NAMES {
        let value = xattr(OsStr::new(name));
        let Some(value) = value.on(&*layer.name())? else {
            continue;
        };
        let recorded = OverrideStat::parse(&value).and_then(|recorded| apply(&recorded, stat));
        return recorded.map(Some).map_err(|source| Error::Mark {
            layer: layer.name(),
            path: path(),
            source,
        });
    }
    Ok(None)
}

fn apply(recorded: &OverrideStat, stat: &Stat) -> Result<Stat, vellum_format::MarkError> {
    let (kind, rdev) = match recorded.kind {
        None => (stat.kind, stat.rdev),
        Some(OverrideKind::Directory) => (FileKind::Dir, (0, 0)),
        Some(OverrideKind::File) => (FileKind::File, (0, 0)),
        Some(OverrideKind::Symlink) => (FileKind::Symlink, (0, 0)),
        Some(OverrideKind::Fifo) => (FileKind::Fifo, (0, 0)),
        Some(OverrideKind::Socket) => (FileKind::Socket, (0, 0)),
        Some(OverrideKind::Block { major, minor }) => (FileKind::Block, (major, minor)),
        Some(OverrideKind::Character { major, minor }) => (FileKind::Char, (major, minor)),
    };
    if (kind == FileKind::Dir) != (stat.kind == FileKind::Dir) {
        let reason = format!("says {kind:?}, but the inode is a {:?}", stat.kind);
        return Err(vellum_format::MarkError {
            mark: "override_stat",
            reason,
        });
    }
    let OverrideStat { uid, gid, mode, .. } = *recorded;
    Ok(Stat {
        kind,
        mode,
        uid,
        gid,
        rdev,
        ..stat.clone()
    })
}

/// Returns the name under which a stored xattr is shown, if it is shown.
pub(crate) fn shown_name(dialect: &Dialect, stored: &OsStr) -> Option<OsString> {
    if dialect.records == Records::Read {
        if let Some(original) = record::original(stored) {
            return Some(original.to_owned());
        }
        if OVERRIDE_STAT_NAMES
            .iter()
            .any(|name| OsStr::new(name) == stored)
        {
            return None;
        }
    }
    if dialect.wh_names == WhNames::Whiteouts
        && stored
            .as_bytes()
            .starts_with(FUSE_OVERLAYFS_PREFIX.as_bytes())
    {
        return None;
    }
    match dialect.prefix {
        None => Some(stored.to_owned()),
        Some(prefix) => prefix.unescape(stored),
    }
}

//! Reads the marks on one name of one layer: from what is on disk to an [`Answer`].
//!
//! Only this file interprets a [`Dialect`] when reading. A mark is either followed or an error that
//! names it; it is never ignored.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use vellum_format::{FUSE_OVERLAYFS_OPAQUE, Mark, Metacopy, Opaque, Redirect, block_map, wh};
use vellum_sys::{FileKind, Stat};

use crate::error::{On, Site};
use crate::layer::{Dialect, Layer, LayerDir, LayerTrust, RawEntry, WhNames};
use crate::resolve::{Answer, Data, Whiteout};
use crate::{Error, Result};

/// A directory of a layer, with its inode's attributes and marks.
#[derive(Debug, Clone)]
pub(crate) struct DirAt {
    pub dir: Arc<dyn LayerDir>,
    /// As stored: records not applied.
    pub stat: Stat,
    /// Its names may be hidden by regular files with a `whiteout` xattr.
    pub xattr_whiteouts: bool,
}

/// A file of a layer: a name in one of its directories.
#[derive(Debug, Clone)]
pub(crate) struct FileAt {
    pub dir: Arc<dyn LayerDir>,
    pub name: OsString,
    /// As stored: records not applied.
    pub stat: Stat,
    /// The name of its block map, if it is copied up block by block.
    pub blocks: Option<Box<str>>,
}

/// A name that a directory of a layer has or hides.
#[derive(Debug)]
pub(crate) struct Named {
    pub name: OsString,
    /// The name is hidden.
    pub hides: bool,
    /// The inode's type, with marks not interpreted.
    pub kind: FileKind,
    /// The inode number in the directory.
    pub ino: u64,
}

/// Reads names of one layer by its dialect.
pub(crate) struct Reader<'a> {
    pub layer: &'a dyn Layer,
    pub dialect: Dialect,
}

impl Site for Reader<'_> {
    fn site(&self) -> String {
        self.layer.name()
    }
}

impl<'a> Reader<'a> {
    pub fn new(layer: &'a dyn Layer) -> Reader<'a> {
        Reader {
            layer,
            dialect: layer.dialect(),
        }
    }

    fn path(&self, dir: &dyn LayerDir, name: Option<&OsStr>) -> PathBuf {
        match name {
            Some(name) => dir.path().join(name),
            None => dir.path(),
        }
    }

    fn mark(
        &self,
        dir: &dyn LayerDir,
        name: Option<&OsStr>,
        mark: Mark,
    ) -> Result<Option<Vec<u8>>> {
        match self.dialect.prefix {
            None => Ok(None),
            Some(prefix) => dir.xattr(name, prefix.xattr(mark)).on(self),
        }
    }

    /// Returns which xattrs a name has, so that only existing marks are read: most names have none,
    /// and one call is cheaper than one for each mark. `None` if there are more than can be listed.
    fn listed(&self, dir: &dyn LayerDir, name: &OsStr) -> Result<Option<Vec<OsString>>> {
        if self.dialect.prefix.is_none() {
            return Ok(Some(Vec::new()));
        }
        match dir.xattr_names(Some(name)) {
            Err(error) if error.is(Errno::TOOBIG) => Ok(None),
            other => other.map(Some).on(self),
        }
    }

    /// Returns whether a mark may be among the listed xattrs.
    fn may_have(&self, listed: &Option<Vec<OsString>>, mark: Mark) -> bool {
        match (self.dialect.prefix, listed) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(prefix), Some(listed)) => listed.iter().any(|name| name == prefix.xattr(mark)),
        }
    }

    /// Returns the parsed value of a mark, or `None` if it is not set.
    fn parsed<T>(
        &self,
        (dir, name): (&dyn LayerDir, Option<&OsStr>),
        mark: Mark,
        parse: impl FnOnce(&[u8]) -> Result<T, vellum_format::MarkError>,
    ) -> Result<Option<T>> {
        match self.mark(dir, name, mark)? {
            None => Ok(None),
            Some(value) => parse(&value).map(Some).map_err(|source| Error::Mark {
                layer: self.layer.name(),
                path: self.path(dir, name),
                source,
            }),
        }
    }

    /// Refuses a mark that points elsewhere in a layer from an archive.
    fn check_trust(&self, dir: &dyn LayerDir, name: &OsStr, mark: Mark) -> Result<()> {
        match self.dialect.trust {
            LayerTrust::Engine => Ok(()),
            LayerTrust::Archive => Err(Error::Untrusted {
                layer: self.layer.name(),
                path: self.path(dir, Some(name)),
                mark,
            }),
        }
    }

    /// Returns the root directory.
    pub fn root(&self) -> Result<DirAt> {
        let root = self.unmarked_root()?;
        let opaque = self.parsed((&*root.dir, None), Mark::Opaque, Opaque::parse)?;
        Ok(DirAt {
            xattr_whiteouts: opaque == Some(Opaque::XattrWhiteouts),
            ..root
        })
    }

    /// Returns the root directory without reading its marks.
    pub fn unmarked_root(&self) -> Result<DirAt> {
        let dir = self.layer.root();
        let stat = dir.stat(None).and_then(|stat| {
            stat.ok_or_else(|| {
                vellum_sys::Error::new(
                    "stat",
                    "",
                    std::io::Error::from(std::io::ErrorKind::NotFound),
                )
            })
        });
        let stat = stat.on(self)?;
        Ok(DirAt {
            dir,
            stat,
            xattr_whiteouts: false,
        })
    }

    /// Returns what the layer says about `name` in its directory `dir`.
    pub fn ask(&self, dir: &Arc<dyn LayerDir>, name: &OsStr) -> Result<Answer<DirAt, FileAt>> {
        let by_name = self.dialect.wh_names == WhNames::Whiteouts;
        if by_name && wh::parse(name) != wh::Name::Plain {
            return Ok(Answer::Silent);
        }
        // A name too long for this file system can't be in it.
        let stat = match dir.stat(Some(name)) {
            Err(error) if error.is(Errno::NAMETOOLONG) => None,
            other => other.on(self)?,
        };
        let Some(stat) = stat else {
            return match by_name && self.has_whiteout_file(dir, name)? {
                true => Ok(Answer::Hidden(Whiteout::Name)),
                false => Ok(Answer::Silent),
            };
        };
        match stat.kind {
            FileKind::Dir => self.directory(dir, name, stat),
            FileKind::File => self.regular(dir, name, stat),
            _ if self.is_whiteout_device(&stat) => Ok(Answer::Hidden(Whiteout::Device)),
            _ => {
                let file = FileAt {
                    dir: Arc::clone(dir),
                    name: name.to_owned(),
                    stat,
                    blocks: None,
                };
                Ok(Answer::File {
                    file,
                    regular: false,
                    data: Data::Here,
                })
            }
        }
    }

    fn is_whiteout_device(&self, stat: &Stat) -> bool {
        self.dialect.prefix.is_some() && stat.is_null_device()
    }

    fn has_whiteout_file(&self, dir: &Arc<dyn LayerDir>, name: &OsStr) -> Result<bool> {
        match wh::whiteout(name) {
            None => Ok(false),
            Some(hiding) => Ok(dir.stat(Some(&hiding)).on(self)?.is_some()),
        }
    }

    fn directory(
        &self,
        above: &Arc<dyn LayerDir>,
        name: &OsStr,
        stat: Stat,
    ) -> Result<Answer<DirAt, FileAt>> {
        let listed = self.listed(&**above, name)?;
        let mark = match self.may_have(&listed, Mark::Opaque) {
            true => self.parsed((&**above, Some(name)), Mark::Opaque, Opaque::parse)?,
            false => None,
        };
        let dir = above.subdir(name);
        let opaque = mark == Some(Opaque::Opaque) || self.opaque_by_name(above, name, &*dir)?;
        let redirect = match !opaque && self.may_have(&listed, Mark::Redirect) {
            true => self.redirect(above, name)?,
            false => None,
        };
        let xattr_whiteouts = mark == Some(Opaque::XattrWhiteouts);
        Ok(Answer::Dir {
            dir: DirAt {
                dir,
                stat,
                xattr_whiteouts,
            },
            opaque,
            redirect,
        })
    }

    /// Returns whether a directory in a tree with `.wh.` names is opaque: by the opaque file, by
    /// fuse-overlayfs's xattr, or by a whiteout of its own name next to it.
    fn opaque_by_name(
        &self,
        above: &Arc<dyn LayerDir>,
        name: &OsStr,
        dir: &dyn LayerDir,
    ) -> Result<bool> {
        if self.dialect.wh_names == WhNames::Plain {
            return Ok(false);
        }
        let sentinel = match dir.stat(Some(OsStr::new(wh::OPAQUE))) {
            // This process has no access to another user's directory: it can reach nothing in
            // it, and nothing below through it.
            Err(error) if error.is(Errno::ACCESS) => None,
            found => found.on(self)?,
        };
        let opaque = OsStr::new(FUSE_OVERLAYFS_OPAQUE);
        let xattr = match dir.xattr(None, opaque) {
            // Listing xattrs needs no permission, but reading one does, even if it is not set.
            Err(error)
                if error.is(Errno::ACCESS)
                    && dir
                        .xattr_names(None)
                        .is_ok_and(|all| !all.contains(&opaque.to_owned())) =>
            {
                None
            }
            read => read.on(self)?,
        };
        Ok(sentinel.is_some()
            || xattr.as_deref() == Some(b"y")
            || self.has_whiteout_file(above, name)?)
    }

    fn redirect(&self, dir: &Arc<dyn LayerDir>, name: &OsStr) -> Result<Option<Redirect>> {
        let redirect = self.parsed((&**dir, Some(name)), Mark::Redirect, Redirect::parse)?;
        if redirect.is_some() {
            self.check_trust(&**dir, name, Mark::Redirect)?;
        }
        Ok(redirect)
    }

    fn regular(
        &self,
        dir: &Arc<dyn LayerDir>,
        name: &OsStr,
        stat: Stat,
    ) -> Result<Answer<DirAt, FileAt>> {
        // The kernel's lookup reads such a file as a whiteout whether or not its directory has
        // `opaque=x`.
        let listed = self.listed(&**dir, name)?;
        if stat.size_bytes == 0
            && self.may_have(&listed, Mark::Whiteout)
            && self.mark(&**dir, Some(name), Mark::Whiteout)?.is_some()
        {
            return Ok(Answer::Hidden(Whiteout::Xattr));
        }
        let mut blocks = None;
        let metacopy = match self.may_have(&listed, Mark::Metacopy) {
            true => self.parsed((&**dir, Some(name)), Mark::Metacopy, Metacopy::parse)?,
            false => None,
        };
        let data = match metacopy {
            None => Data::Here,
            Some(Metacopy::Unsettled) => {
                blocks = Some(self.block_map(dir, name)?);
                Data::Here
            }
            Some(Metacopy::DataBelow(_)) => {
                self.check_trust(&**dir, name, Mark::Metacopy)?;
                Data::Below(self.redirect(dir, name)?)
            }
        };
        let file = FileAt {
            dir: Arc::clone(dir),
            name: name.to_owned(),
            stat,
            blocks,
        };
        Ok(Answer::File {
            file,
            regular: true,
            data,
        })
    }

    /// Returns the name of an unsettled file's map. Errors if this layer was not opened with its
    /// maps: only the engine that wrote such a file, or a reader of its work directory, may read
    /// it.
    fn block_map(&self, dir: &Arc<dyn LayerDir>, name: &OsStr) -> Result<Box<str>> {
        let unsettled = || Error::Unsettled {
            layer: self.layer.name(),
            path: self.path(&**dir, Some(name)),
        };
        let (Some(prefix), Some(_)) = (self.dialect.prefix, self.layer.block_maps()) else {
            return Err(unsettled());
        };
        let value = dir.xattr(Some(name), prefix.xattr(Mark::Blocks));
        let value = value.on(self)?;
        let value = value.ok_or_else(unsettled)?;
        block_map::parse_name(&value).ok_or_else(|| Error::Blocks {
            layer: self.layer.name(),
            path: self.path(&**dir, Some(name)),
            why: "the mark that names its map is damaged".to_owned(),
        })
    }

    /// Returns the names that `dir` has or hides, each with whether it hides it. May contain a name
    /// twice: see [`wh`].
    pub fn names(&self, dir: &DirAt) -> Result<Vec<(OsString, bool)>> {
        let entries = self.entries(dir)?;
        Ok(entries.into_iter().map(|at| (at.name, at.hides)).collect())
    }

    /// As [`Reader::names`], with type and inode number.
    pub fn entries(&self, dir: &DirAt) -> Result<Vec<Named>> {
        let listed = dir.dir.names().on(self)?;
        let mut names = Vec::with_capacity(listed.len());
        for RawEntry { name, kind, ino } in listed {
            match (self.dialect.wh_names, wh::parse(&name)) {
                (WhNames::Plain, _) | (WhNames::Whiteouts, wh::Name::Plain) => {}
                (WhNames::Whiteouts, wh::Name::Whiteout(hidden)) => {
                    names.push(Named {
                        name: hidden.to_owned(),
                        hides: true,
                        kind,
                        ino,
                    });
                    continue;
                }
                (WhNames::Whiteouts, wh::Name::Opaque | wh::Name::Reserved) => continue,
                (WhNames::Whiteouts, wh::Name::Malformed) => {
                    let reason = format!(
                        "{:?} names nothing to hide",
                        name.as_bytes().escape_ascii().to_string()
                    );
                    let source = vellum_format::MarkError {
                        mark: "whiteout",
                        reason,
                    };
                    return Err(Error::Mark {
                        layer: self.layer.name(),
                        path: dir.dir.path(),
                        source,
                    });
                }
            }
            let hides = match kind {
                FileKind::Char => {
                    let stat = dir.dir.stat(Some(&name)).on(self)?;
                    stat.is_some_and(|stat| self.is_whiteout_device(&stat))
                }
                FileKind::File if dir.xattr_whiteouts => {
                    let stat = dir.dir.stat(Some(&name)).on(self)?;
                    stat.is_some_and(|stat| stat.size_bytes == 0)
                        && self.mark(&*dir.dir, Some(&name), Mark::Whiteout)?.is_some()
                }
                _ => false,
            };
            names.push(Named {
                name,
                hides,
                kind,
                ino,
            });
        }
        Ok(names)
    }
}

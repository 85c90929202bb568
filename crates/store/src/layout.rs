//! The paths under the store's root: every path that this crate uses is made here, and parsed in
//! `located.rs`.
//!
//! The root is 0700 and belongs to the store alone, so whole paths can be used. But the functions
//! here open a file or directory of the store only if it is one (`vellum_sys::plain`): they follow
//! no link and wait for no pipe. What is *inside* a tree is entered through a directory descriptor
//! (see `walk.rs`). The names are part of the on-disk format (`docs/format.md`): changing one
//! orphans what older programs wrote.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use vellum_format::Digest;
use vellum_sys::{
    Dir, FileKind,
    plain::{self, Links},
    rooted::{self, Access},
};

use crate::{
    driver::{DriverKind, TreeId},
    error::{IoContext, Result, StoreError},
    located::{CONTENT, CONTENT_UNUSED, DATABASE, DATABASE_COMPANIONS, Located, RESERVE, Shelf},
};

/// The paths of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The layout of the store at `root`, which need not exist. The links that lead to it are
    /// resolved now, so that none is followed later.
    pub fn find(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).on("find", root)?;
        for there in root.ancestors() {
            if let (Ok(real), Ok(rest)) = (fs::canonicalize(there), root.strip_prefix(there)) {
                return Ok(Self::new(match rest.as_os_str().is_empty() {
                    true => real,
                    false => real.join(rest),
                }));
            }
        }
        Ok(Self::new(root))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn database(&self) -> PathBuf {
        self.root.join(DATABASE)
    }

    /// Refuses a database, or a file that accompanies it, that is not a regular file: SQLite would
    /// follow a link and wait for a pipe.
    pub fn check_database(&self) -> Result<()> {
        for suffix in [""].iter().chain(&DATABASE_COMPANIONS) {
            let mut path = self.database().into_os_string();
            path.push(suffix);
            let path = PathBuf::from(path);
            // Only a look: opening and closing the file here would release SQLite's locks.
            if let Some(found) = plain::stat(&path).map_err(damaged)?
                && !found.is_file()
            {
                let error = plain::wrong_kind("open", &path, found.kind, FileKind::File);
                return Err(damaged(error));
            }
        }
        Ok(())
    }

    /// Refuses a root that has files, none of them a store's: it is probably a typo, and a store
    /// among another program's files is hard to find and to remove.
    pub fn refuse_anothers(&self) -> Result<()> {
        let mut other = None;
        for path in entries(self.root())? {
            let name = path.file_name().unwrap_or_default();
            match Located::of(Path::new(name)) {
                // Every ext4 has a directory of that name.
                Located::LostFound => {}
                Located::Stranger => other = other.or(Some(path)),
                _ => return Ok(()),
            }
        }
        match other {
            None => Ok(()),
            Some(path) => Err(StoreError::NotAStore {
                path: self.root().to_owned(),
                why: format!("it has no database, but other files ({})", path.display()),
            }),
        }
    }

    pub fn reserve(&self) -> PathBuf {
        self.root.join(RESERVE)
    }

    pub fn staging(&self) -> PathBuf {
        self.shelf(Shelf::Staging)
    }

    pub fn trash(&self) -> PathBuf {
        self.shelf(Shelf::Trash)
    }

    pub fn records(&self) -> PathBuf {
        self.shelf(Shelf::Records)
    }

    pub fn generation(&self) -> PathBuf {
        self.shelf(Shelf::Generation)
    }

    pub fn record(&self, tree: &TreeId) -> PathBuf {
        self.records().join(format!("{tree}.json"))
    }

    pub fn driver(&self, driver: DriverKind) -> PathBuf {
        self.shelf(Shelf::Trees(driver))
    }

    pub fn tree(&self, driver: DriverKind, tree: &TreeId) -> PathBuf {
        self.driver(driver).join(tree.as_str())
    }

    pub fn blobs(&self) -> PathBuf {
        self.shelf(Shelf::Blobs)
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub fn recipes(&self) -> PathBuf {
        self.shelf(Shelf::Recipes)
    }

    pub fn recipe(&self, diff_id: &Digest) -> PathBuf {
        self.recipes().join(diff_id.hex())
    }

    pub fn volumes(&self) -> PathBuf {
        self.shelf(Shelf::Volumes)
    }

    /// Says what `path` is, which may be absolute or relative to the root; `None` if it is not in
    /// the store.
    pub fn locate(&self, path: &Path) -> Option<Located> {
        let absolute = self.root().join(path);
        let below = absolute.strip_prefix(self.root()).ok()?;
        Some(Located::of(below))
    }

    /// Returns the path of a shelf.
    pub fn shelf(&self, shelf: Shelf) -> PathBuf {
        self.root().join(shelf.dir())
    }

    /// Returns everything on a shelf that is not a shelf itself, sorted by name; nothing if the
    /// shelf is missing.
    pub fn holds(&self, shelf: Shelf) -> Result<Vec<(PathBuf, Located)>> {
        let is_shelf = |path: &Path| Shelf::all().any(|other| self.shelf(other) == path);
        let read = |path: PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let located = name.map_or(Located::Stranger, |name| shelf.read(name));
            (path, located)
        };
        let mut entries = entries(&self.shelf(shelf))?;
        entries.retain(|path| !is_shelf(path));
        Ok(entries.into_iter().map(read).collect())
    }

    /// Creates the directories that every store has; existing ones are unchanged.
    pub fn create(&self) -> Result<()> {
        make_dir(&self.root, 0o700)?;
        for dir in [self.staging(), self.trash(), self.records(), self.recipes()] {
            make_dir(&dir, 0o700)?;
        }
        make_dir(&self.root.join(CONTENT), 0o700)?;
        make_dir(&self.blobs(), 0o700)?;
        make_dir(&self.root.join(CONTENT_UNUSED), 0o700)?;
        make_dir(&self.volumes(), 0o711)
    }
}

/// Returns the paths of a directory's entries; none if it is missing. Errors: `Damaged` if it is
/// not a directory, but a link for example.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = match self::dir(dir) {
        Ok(list) => list,
        Err(StoreError::Sys(e)) if e.is_not_found() => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut paths = list
        .entries()?
        .map(|entry| Ok(dir.join(entry?.name)))
        .collect::<Result<Vec<_>>>()?;
    paths.sort_unstable();
    Ok(paths)
}

/// Creates a directory of exactly `mode`, whatever the umask, unless it exists. Errors: `Damaged`
/// if something else has its name.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    let (parent, name) = match plain::place("make", path, Links::Nowhere) {
        Err(e) if e.is_not_found() => {
            fs::DirBuilder::new()
                .mode(0o755)
                .recursive(true)
                .create(path.parent().unwrap_or(path))
                .on("create", path)?;
            plain::place("make", path, Links::Nowhere)
        }
        found => found,
    }
    .map_err(damaged)?;
    match parent.mkdir(name, 0o700) {
        Ok(()) => set_mode(path, mode),
        Err(e) if e.is_exists() => dir(path).map(drop),
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(rooted::set_mode_fd(dir(path)?, mode)?)
}

/// Flushes a directory: names made, renamed or removed in it are durable on return.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    Ok(dir(path)?.sync()?)
}

/// Flushes a directory or a regular file.
pub(crate) fn sync_any(path: &Path) -> Result<()> {
    match is_dir(path)? {
        true => sync_dir(path),
        false => plain::open(path, Access::Read, Links::Nowhere)
            .map_err(damaged)?
            .sync_all()
            .on("sync", path),
    }
}

/// True if something (anything, a dangling link too) has this name.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).on("stat", path),
    }
}

/// True if a directory has this name. Errors: `Damaged` if something on the way is not a directory.
pub(crate) fn is_dir(path: &Path) -> Result<bool> {
    let found = plain::stat(path).map_err(damaged)?;
    Ok(found.is_some_and(|found| found.is_dir()))
}

/// Opens a directory of the store. Errors: `Damaged` if it is something else; `Sys` with ENOENT.
pub(crate) fn dir(path: &Path) -> Result<Dir> {
    plain::dir(path, Links::Nowhere).map_err(damaged)
}

/// Opens a regular file of the store for reading; `None` if there is none. Errors: `Damaged` if it
/// is something else.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    match plain::open(path, Access::Read, Links::Nowhere) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(damaged(e)),
    }
}

/// Larger than the record of any tree, image or container.
const SMALL_BYTES: u64 = 64 << 20;

/// Returns all of a small file of the store; `None` if there is none. Errors: `Damaged` if it is
/// not a regular file, or a huge one.
pub(crate) fn read_small(path: &Path) -> Result<Option<Vec<u8>>> {
    match plain::read(path, SMALL_BYTES, Links::Nowhere) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(damaged(e)),
    }
}

/// Opens a file or directory to be locked: a file for writing where that is possible, since NFS
/// gives no exclusive lock on it otherwise (EBADF). NFS leaves a directory's lock to this machine.
/// `None` if it is neither: no process of ours locks that.
pub(crate) fn open_to_lock(path: &Path) -> Result<Option<File>> {
    let missing = || StoreError::Io {
        op: "open",
        path: path.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    };
    let found = plain::stat(path).map_err(damaged)?.ok_or_else(missing)?;
    let opened = match (found.is_dir(), found.is_file()) {
        (true, _) => plain::dir(path, Links::Nowhere).map(|dir| File::from(OwnedFd::from(dir))),
        (_, true) => match plain::open(path, Access::ReadWrite, Links::Nowhere) {
            Err(e) if !e.is_not_found() => plain::open(path, Access::Read, Links::Nowhere),
            other => other,
        },
        (false, false) => return Ok(None),
    };
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.is_not_found() => Err(missing()),
        Err(e) => Err(damaged(e)),
    }
}

/// Turns "it is a named pipe, not a regular file" into damage; other errors are unchanged.
pub(crate) fn damaged(error: vellum_sys::Error) -> StoreError {
    match plain::is_wrong_kind(&error) {
        true => StoreError::Damaged {
            what: error.path.display().to_string(),
            why: vellum_sys::with_causes(&error.source),
        },
        false => error.into(),
    }
}

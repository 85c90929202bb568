//! Where things lie under the store's root: every path the room uses is made here.
//!
//! The root is 0700 and belongs to the store alone, so its own names are trusted and plain paths serve. What lies
//! *inside* a tree is not: that is only ever entered through a directory descriptor (see `walk.rs`). The names are part of
//! the on-disk format (`docs/format.md`): changing one orphans what older programs wrote.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    driver::{DriverKind, TreeId},
    error::{IoContext, Result},
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

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn database(&self) -> PathBuf {
        self.root.join("vellum.db")
    }

    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    pub fn generation(&self) -> PathBuf {
        self.root.join("generation")
    }

    pub fn record(&self, tree: &TreeId) -> PathBuf {
        self.records().join(format!("{tree}.json"))
    }

    pub fn driver(&self, driver: DriverKind) -> PathBuf {
        self.root.join(driver.as_str())
    }

    pub fn tree(&self, driver: DriverKind, tree: &TreeId) -> PathBuf {
        self.driver(driver).join(tree.as_str())
    }

    pub fn blob_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join("content").join(digest.algorithm().as_str())
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blob_dir(digest).join(digest.hex())
    }

    pub fn recipes(&self) -> PathBuf {
        self.root.join("recipes")
    }

    pub fn recipe(&self, diff_id: &Digest) -> PathBuf {
        self.recipes().join(diff_id.hex())
    }

    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Makes the directories that every store has; those that are there stay as they are.
    pub fn create(&self) -> Result<()> {
        make_dir(&self.root, 0o700)?;
        for dir in [self.staging(), self.trash(), self.records(), self.recipes()] {
            make_dir(&dir, 0o700)?;
        }
        make_dir(&self.root.join("content"), 0o700)?;
        make_dir(&self.root.join("content/sha256"), 0o700)?;
        make_dir(&self.root.join("content/sha512"), 0o700)?;
        make_dir(&self.volumes(), 0o711)
    }
}

/// Makes a directory of exactly `mode`, whatever the umask, unless it is there.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => set_mode(path, mode),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::DirBuilder::new()
                .mode(0o755)
                .recursive(true)
                .create(path.parent().unwrap_or(path))
                .on("make", path)?;
            fs::DirBuilder::new()
                .mode(0o700)
                .create(path)
                .on("make", path)?;
            set_mode(path, mode)
        }
        Err(e) => Err(e).on("make", path),
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).on("set the mode of", path)
}

/// Flushes a directory: names made, renamed or removed in it are durable on return.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|dir| dir.sync_all())
        .on("sync", path)
}

/// True if something (anything, a dangling link too) has this name.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).on("look at", path),
    }
}

//! A layer that is a directory on disk.
//!
//! A handle is its parent's handle and a name; the descriptor is opened when first needed, one
//! component at a time from the nearest ancestor that has one. So paths longer than the kernel's
//! limit work, and a walk can close descriptors without losing its place. The number of open
//! descriptors is bounded for the whole process, as the system's limit is: to open a new one, the
//! oldest is closed. Nothing outside the root is ever reached: components are opened beneath their
//! parent's descriptor, never following a symbolic link.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use rustix::io::Errno;
use vellum_sys::handle::{self, FileHandle};
use vellum_sys::room::Room;
use vellum_sys::{Dir, Result, Stat, sync, xattr};

use crate::layer::blocks::BlockMaps;
use crate::layer::{Dialect, Layer, LayerDir, RawEntry};

/// A directory on disk as a layer.
#[derive(Debug)]
pub struct DirLayer {
    name: String,
    dialect: Dialect,
    root: Arc<Handle>,
    maps: Option<Arc<BlockMaps>>,
}

impl DirLayer {
    /// Creates a layer from an open directory. `name` is for messages, usually the directory's
    /// path.
    pub fn new(root: Dir, name: impl Into<String>, dialect: Dialect) -> DirLayer {
        let root = Handle {
            above: RwLock::new(None),
            open: Mutex::new(Some(Arc::new(root))),
            pinned: AtomicBool::new(true),
        };
        DirLayer {
            name: name.into(),
            dialect,
            root: Arc::new(root),
            maps: None,
        }
    }

    /// Returns the same layer as the upper layer that these maps belong to: files copied up block
    /// by block can be read.
    pub fn with_block_maps(self, maps: Option<Arc<BlockMaps>>) -> DirLayer {
        DirLayer { maps, ..self }
    }

    /// Returns the root directory's handle with its concrete type.
    pub(crate) fn root_handle(&self) -> Arc<DirHandle> {
        Arc::new(DirHandle(Arc::clone(&self.root)))
    }

    /// Opens a directory by a trusted path as a layer.
    pub fn open(path: &Path, dialect: Dialect) -> Result<DirLayer> {
        Ok(DirLayer::new(
            Dir::open(path)?,
            path.display().to_string(),
            dialect,
        ))
    }
}

impl Layer for DirLayer {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn root(&self) -> Arc<dyn LayerDir> {
        self.root_handle()
    }

    fn block_maps(&self) -> Option<Arc<BlockMaps>> {
        self.maps.clone()
    }
}

/// One directory. The root has no parent and always keeps its descriptor.
#[derive(Debug)]
struct Handle {
    /// Changes only when the engine that owns the tree moves the directory.
    above: RwLock<Option<(Arc<Handle>, OsString)>>,
    open: Mutex<Option<Arc<Dir>>>,
    /// Never closes its descriptor.
    pinned: AtomicBool,
}

/// The handles with an open descriptor, oldest first, without roots. Some may have closed it since,
/// or be gone: at most [`OPEN_MAX`] are open, often fewer.
static OPEN: Mutex<Open> = Mutex::new(Open(VecDeque::new()));

/// With 500 layers, whose roots stay open, this stays below the usual limit of 1024.
const OPEN_MAX: usize = 256;

struct Open(VecDeque<Weak<Handle>>);

impl Open {
    /// Adds a handle that was opened. Returns one that must close its descriptor.
    fn enter(&mut self, handle: &Arc<Handle>) -> Option<Arc<Handle>> {
        self.0.push_back(Arc::downgrade(handle));
        match self.0.len() > OPEN_MAX {
            true => self.0.pop_front()?.upgrade(),
            false => None,
        }
    }
}

/// Drops the parent handles one by one: by default a chain of them is dropped recursively, and a
/// deep enough tree would overflow the stack.
impl Drop for Handle {
    fn drop(&mut self) {
        let take = |handle: &mut Handle| match handle.above.get_mut() {
            Ok(above) => above.take(),
            Err(poisoned) => poisoned.into_inner().take(),
        };
        let mut above = take(self);
        while let Some((handle, _)) = above {
            above = Arc::into_inner(handle).and_then(|mut handle| take(&mut handle));
        }
    }
}

/// The public handle; a separate type because subdirectories need the shared pointer.
#[derive(Debug)]
pub(crate) struct DirHandle(Arc<Handle>);

impl DirHandle {
    /// Returns the directory's descriptor, for changing the directory's content. Don't keep it:
    /// the number of open descriptors is bounded.
    pub fn dir(&self) -> Result<Arc<Dir>> {
        self.0.dir()
    }

    /// Returns a handle of the subdirectory `name`, with its concrete type; nothing is opened or
    /// checked yet.
    pub fn sub(&self, name: &OsStr) -> Arc<DirHandle> {
        Arc::new(DirHandle(Arc::new(Handle {
            above: RwLock::new(Some((Arc::clone(&self.0), name.to_owned()))),
            open: Mutex::new(None),
            pinned: AtomicBool::new(false),
        })))
    }

    /// Creates a handle of an open directory outside any layer; it keeps the descriptor.
    pub fn pinned(dir: Arc<Dir>) -> Arc<DirHandle> {
        Arc::new(DirHandle(Arc::new(Handle {
            above: RwLock::new(None),
            open: Mutex::new(Some(dir)),
            pinned: AtomicBool::new(true),
        })))
    }

    /// Returns a handle of the same directory with its own descriptor: it follows the directory
    /// when that is moved. No directory may move during the call.
    pub fn held(&self) -> Result<Arc<DirHandle>> {
        let dir = self.0.dir()?;
        // Only for the path in messages.
        let above = self.0.above().clone();
        Ok(Arc::new(DirHandle(Arc::new(Handle {
            above: RwLock::new(above),
            open: Mutex::new(Some(dir)),
            pinned: AtomicBool::new(true),
        }))))
    }

    /// Makes the handle keep its descriptor: the directory is about to lose its name.
    pub fn pin(&self) -> Result<()> {
        self.0.pinned.store(true, Ordering::Relaxed);
        self.0.dir().map(drop).inspect_err(|_| self.unpin())
    }

    /// Undoes [`DirHandle::pin`].
    pub fn unpin(&self) {
        self.0.pinned.store(false, Ordering::Relaxed);
    }

    /// Notes that the directory was moved: from now on it is `name` in `parent`. Every handle below
    /// follows.
    pub fn moved(&self, parent: &DirHandle, name: &OsStr) {
        *self.0.above_mut() = Some((Arc::clone(&parent.0), name.to_owned()));
    }
}

impl Handle {
    fn above(&self) -> std::sync::RwLockReadGuard<'_, Option<(Arc<Handle>, OsString)>> {
        // The value is replaced as a whole, so it is consistent even if another thread panicked.
        sync::read(&self.above)
    }

    fn above_mut(&self) -> std::sync::RwLockWriteGuard<'_, Option<(Arc<Handle>, OsString)>> {
        sync::write(&self.above)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Dir>>> {
        // The slot is replaced as a whole, so it is consistent even if another thread panicked.
        sync::lock(&self.open)
    }

    fn release(&self) {
        if !self.pinned.load(Ordering::Relaxed) {
            *self.slot() = None;
        }
    }

    /// Returns the descriptor, opening it if needed; parents are open only as long as needed.
    fn dir(self: &Arc<Self>) -> Result<Arc<Dir>> {
        if let Some(dir) = &*self.slot() {
            return Ok(Arc::clone(dir));
        }
        // From here up to the nearest open handle, then down again: no recursion at any depth.
        let mut names = Vec::new();
        let mut at = Arc::clone(self);
        let mut dir = loop {
            if let Some(dir) = &*at.slot() {
                break Arc::clone(dir);
            }
            let above = at.above().clone();
            let Some((above, name)) = above else {
                unreachable!("the root keeps its descriptor");
            };
            names.push(name);
            at = above;
        };
        names.reverse();
        for step in steps(&names) {
            // This process may have no access to another user's directory, although the
            // directory itself is visible to all.
            dir = Arc::new(match dir.open_dir_quietly(&step) {
                Err(error) if error.is(Errno::ACCESS) => dir.open_dir_unlisted(&step)?,
                opened => opened?,
            });
        }
        *self.slot() = Some(Arc::clone(&dir));
        let oldest = sync::lock(&OPEN).enter(self);
        if let Some(oldest) = oldest {
            oldest.release();
        }
        Ok(dir)
    }
}

/// Joins names to paths within the kernel's limit, each as long as possible.
fn steps(names: &[OsString]) -> Vec<PathBuf> {
    /// The kernel's limit is 4096 with the final NUL.
    const PATH_MAX_BYTES: usize = 4095;
    let mut steps: Vec<PathBuf> = Vec::new();
    for name in names {
        match steps.last_mut() {
            Some(step) if step.as_os_str().len() + 1 + name.len() <= PATH_MAX_BYTES => {
                step.push(name)
            }
            _ => steps.push(PathBuf::from(name)),
        }
    }
    steps
}

impl LayerDir for DirHandle {
    fn path(&self) -> PathBuf {
        let mut names = Vec::new();
        let mut at = Arc::clone(&self.0);
        loop {
            let above = at.above().clone();
            let Some((above, name)) = above else { break };
            names.push(name);
            at = above;
        }
        names.into_iter().rev().collect()
    }

    fn stat(&self, name: Option<&OsStr>) -> Result<Option<Stat>> {
        let dir = self.0.dir()?;
        match name {
            Some(name) => dir.stat_opt(name),
            None => dir.stat_self().map(Some),
        }
    }

    fn subdir(&self, name: &OsStr) -> Arc<dyn LayerDir> {
        self.sub(name)
    }

    fn names(&self) -> Result<Vec<RawEntry>> {
        let entries = self.0.dir()?.entries()?;
        entries
            .map(|entry| {
                entry.map(|entry| RawEntry {
                    name: entry.name,
                    kind: entry.kind,
                    ino: entry.ino,
                })
            })
            .collect()
    }

    fn xattr_names(&self, name: Option<&OsStr>) -> Result<Vec<OsString>> {
        let dir = self.0.dir()?;
        match name {
            Some(name) => xattr::list(&dir, name),
            None => xattr::list_fd(&*dir),
        }
    }

    fn xattr(&self, name: Option<&OsStr>, attr: &OsStr) -> Result<Option<Vec<u8>>> {
        let dir = self.0.dir()?;
        match name {
            Some(name) => xattr::get(&dir, name, attr),
            None => xattr::get_fd(&*dir, attr),
        }
    }

    fn read_link(&self, name: &OsStr) -> Result<OsString> {
        self.0.dir()?.read_link(name)
    }

    fn open_file(&self, name: &OsStr) -> Result<File> {
        // A layer does not change, not even its access times; and the caller has checked the name.
        self.0.dir()?.open_known_file_quietly(name)
    }

    fn open_path(&self, name: Option<&OsStr>) -> Result<OwnedFd> {
        let dir = self.0.dir()?;
        match name {
            Some(name) => dir.open_path(name),
            None => dir.dup().map(OwnedFd::from),
        }
    }

    fn handle(&self, name: Option<&OsStr>) -> Result<Option<FileHandle>> {
        let dir = self.0.dir()?;
        match name {
            Some(name) => handle::at(&dir, name),
            None => handle::of(&*dir),
        }
    }

    fn room(&self) -> Result<Room> {
        vellum_sys::room::of(&*self.0.dir()?)
    }

    fn flags(&self) -> Result<u32> {
        // The held descriptor may be an `O_PATH` one, from which flags can't be read.
        vellum_sys::flags::get(self.0.dir()?.open_dir_quietly(".")?)
    }

    fn release(&self) {
        self.0.release();
    }
}

//! A layer that is a directory on disk.
//!
//! A handle is its parent's handle and a name; the descriptor is opened when first needed, one
//! component below the nearest ancestor that has one. So paths longer than the kernel takes are
//! reached, and a walk can give descriptors back without losing its place. How many are open at
//! once is bounded for the whole process, since that is what the system's limit counts: the oldest
//! gives its descriptor back for a new one. Nothing outside the root is ever reached: components
//! are opened beneath their parent's descriptor, never following a symbolic link.

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
    /// Makes a layer of an open directory. `name` is for messages: the directory's path, as a rule.
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

    /// The same as the upper layer whose maps these are: files copied up block by block can be
    /// read.
    pub fn with_block_maps(self, maps: Option<Arc<BlockMaps>>) -> DirLayer {
        DirLayer { maps, ..self }
    }

    /// Returns the handle of the root directory as what it is.
    pub(crate) fn root_handle(&self) -> Arc<DirHandle> {
        Arc::new(DirHandle(Arc::clone(&self.root)))
    }

    /// Opens a directory by a trusted path and makes a layer of it.
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

/// One directory. The root has nothing above and always keeps its descriptor.
#[derive(Debug)]
struct Handle {
    /// Changes only when the engine that owns the tree moves the directory.
    above: RwLock<Option<(Arc<Handle>, OsString)>>,
    open: Mutex<Option<Arc<Dir>>>,
    /// Does not give its descriptor back.
    pinned: AtomicBool,
}

/// The handles that hold a descriptor, oldest first, roots not counted. Some may have given it back
/// meanwhile, or be gone: at most [`OPEN_MAX`] are open, often fewer.
static OPEN: Mutex<Open> = Mutex::new(Open(VecDeque::new()));

/// With 500 layers, whose roots stay open, this leaves room in the usual limit of 1024.
const OPEN_MAX: usize = 256;

struct Open(VecDeque<Weak<Handle>>);

impl Open {
    /// Takes in a handle that was opened. Returns one that has to give its descriptor back.
    fn enter(&mut self, handle: &Arc<Handle>) -> Option<Arc<Handle>> {
        self.0.push_back(Arc::downgrade(handle));
        match self.0.len() > OPEN_MAX {
            true => self.0.pop_front()?.upgrade(),
            false => None,
        }
    }
}

/// Lets go of the handles above one by one: left to itself, a chain of them is dropped by
/// recursion, and a tree made deep enough would overflow the stack.
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

/// What is handed out; a type of its own because subdirectories need the shared pointer.
#[derive(Debug)]
pub(crate) struct DirHandle(Arc<Handle>);

impl DirHandle {
    /// Returns the directory's descriptor, for changing what is in it. Don't keep it: it may be
    /// given back.
    pub fn dir(&self) -> Result<Arc<Dir>> {
        self.0.dir()
    }

    /// Returns a handle of the subdirectory `name`, as what it is; nothing is opened or checked
    /// yet.
    pub fn sub(&self, name: &OsStr) -> Arc<DirHandle> {
        Arc::new(DirHandle(Arc::new(Handle {
            above: RwLock::new(Some((Arc::clone(&self.0), name.to_owned()))),
            open: Mutex::new(None),
            pinned: AtomicBool::new(false),
        })))
    }

    /// Makes a handle of an open directory that belongs to no layer; it keeps the descriptor.
    pub fn pinned(dir: Arc<Dir>) -> Arc<DirHandle> {
        Arc::new(DirHandle(Arc::new(Handle {
            above: RwLock::new(None),
            open: Mutex::new(Some(dir)),
            pinned: AtomicBool::new(true),
        })))
    }

    /// Returns a handle of the same directory that holds its own descriptor: it stays with the
    /// directory whatever is moved. The caller keeps directories from moving meanwhile.
    pub fn held(&self) -> Result<Arc<DirHandle>> {
        let dir = self.0.dir()?;
        // For the path in messages alone.
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

    /// Takes [`DirHandle::pin`] back.
    pub fn unpin(&self) {
        self.0.pinned.store(false, Ordering::Relaxed);
    }

    /// Says that the directory was moved: from now on it is `name` in `parent`. Every handle below
    /// follows.
    pub fn moved(&self, parent: &DirHandle, name: &OsStr) {
        *self.0.above_mut() = Some((Arc::clone(&parent.0), name.to_owned()));
    }
}

impl Handle {
    fn above(&self) -> std::sync::RwLockReadGuard<'_, Option<(Arc<Handle>, OsString)>> {
        // The value is replaced whole, so it is good even if another thread panicked with it.
        sync::read(&self.above)
    }

    fn above_mut(&self) -> std::sync::RwLockWriteGuard<'_, Option<(Arc<Handle>, OsString)>> {
        sync::write(&self.above)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Dir>>> {
        // The slot is replaced whole, so it is good even if another thread panicked with it.
        sync::lock(&self.open)
    }

    fn release(&self) {
        if !self.pinned.load(Ordering::Relaxed) {
            *self.slot() = None;
        }
    }

    /// Returns the descriptor, opening it and nothing above it for longer than needed.
    fn dir(self: &Arc<Self>) -> Result<Arc<Dir>> {
        if let Some(dir) = &*self.slot() {
            return Ok(Arc::clone(dir));
        }
        // From here up to the nearest handle that is open, then down again: no recursion, whatever
        // the depth.
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
            // Another user's directory may be closed to this process, and yet everybody may see
            // that it is there.
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

/// Joins names to paths that the kernel takes, each as long as possible.
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
        // A layer does not change, not even when it was last read; and who opens has looked at the
        // name.
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
        // What is held may be one that takes no such questions.
        vellum_sys::flags::get(self.0.dir()?.open_dir_quietly(".")?)
    }

    fn release(&self) {
        self.0.release();
    }
}

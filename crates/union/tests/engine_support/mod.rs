//! Shared by the engine's tests: layers on ext4, an engine on them, the kernel's overlayfs on the
//! same layers, and both views as trees that can be compared.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::Prefix;
use vellum_sys::FileKind;
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Ignore;
use vellum_testkit::tree::{Entry as Seen, Kind, hash};
use vellum_testkit::{FsKind, Scratch, Tree, needs_root};
use vellum_union::engine::{
    Attr, Caller, Durability, Engine, EngineOptions, Entry, NewNode, NodeId, RenameMode, SetAttr,
    UpperOptions,
};
use vellum_union::{Dialect, DirLayer, Error, Layer, Result};

pub const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// Layers in their own file system.
pub struct Rig {
    pub scratch: Scratch,
    /// The top one first.
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub base: PathBuf,
}

impl Rig {
    /// Creates empty layers on a new ext4; `None` (with a message) if this process may not mount.
    pub fn new(lowers: usize) -> Option<Rig> {
        Rig::on(FsKind::Ext4, lowers)
    }

    pub fn on(kind: FsKind, lowers: usize) -> Option<Rig> {
        if !needs_root("engine on its own file system") {
            return None;
        }
        let scratch = Scratch::new();
        let base = match scratch.file_system("fs", kind, 64) {
            Ok(base) => base,
            Err(why) => {
                vellum_testkit::untested(&format!("engine on {kind:?}"), why);
                return None;
            }
        };
        Some(Rig::below(scratch, base, lowers))
    }

    /// Creates empty layers where tests create files: needs no privilege, and the kernel mounts
    /// nothing.
    pub fn anywhere(lowers: usize) -> Rig {
        let scratch = Scratch::new();
        let base = scratch.dir("fs");
        Rig::below(scratch, base, lowers)
    }

    fn below(scratch: Scratch, base: PathBuf, lowers: usize) -> Rig {
        let lowers = (0..lowers)
            .map(|index| scratch.dir(format!("fs/l{index}")))
            .collect();
        Rig {
            lowers,
            upper: scratch.dir("fs/u"),
            work: scratch.dir("fs/w"),
            base,
            scratch,
        }
    }

    pub fn options(&self) -> EngineOptions {
        options(&self.lowers, &self.upper, &self.work)
    }

    pub fn open(&self) -> Engine {
        // The kernel releases an upper some time after the unmount if another process is just
        // being started.
        for _ in 0..3000 {
            match Engine::open(self.options()) {
                Err(Error::BadUpper { why, .. }) if why.contains("the kernel") => {}
                other => return other.unwrap(),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("the kernel keeps the upper");
    }

    /// The layers as the kernel shows them, with all features on.
    pub fn kernel(&self) -> Tree {
        let target = self.mount_kernel(&self.upper, &self.work);
        let tree = Tree::read(&target).unwrap();
        self.scratch.unmount(&target);
        tree
    }

    /// Mounts the kernel's overlayfs on the same lowers.
    pub fn mount_kernel(&self, upper: &Path, work: &Path) -> PathBuf {
        let target = self.scratch.dir("merged");
        let overlay = Overlay {
            lowers: self.lowers.clone(),
            data_lowers: Vec::new(),
            upper: Some((upper.to_owned(), work.to_owned())),
            options: Vec::new(),
        }
        .option("redirect_dir", "on")
        .option("metacopy", "on")
        .option("index", "on")
        .option("xino", "on");
        // A mount namespace created in between has a copy of the previous mount, and the kernel
        // then calls the upper busy.
        for _ in 0..1200 {
            match overlay.mount(&self.scratch, &target) {
                Err(error) if error.contains("os error 16") => {}
                other => {
                    other.unwrap();
                    return target;
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the upper stays busy");
    }

    /// Closes the engine, and asserts that a fresh engine and the kernel show what it showed.
    #[track_caller]
    pub fn agree(&self, engine: Engine) -> Tree {
        let live = view(&engine);
        engine.close().unwrap();
        let kernel = self.kernel();
        live.assert_same(&kernel, Ignore::default());
        let again = self.open();
        view(&again).assert_same(&live, Ignore::default());
        again.close().unwrap();
        live
    }
}

pub fn options(lowers: &[PathBuf], upper: &Path, work: &Path) -> EngineOptions {
    let layer = |path: &PathBuf| -> Arc<dyn Layer> {
        Arc::new(DirLayer::open(path, Dialect::kernel(Prefix::Trusted)).unwrap())
    };
    EngineOptions {
        upper: Some(UpperOptions {
            durability: Durability::Volatile,
            ..UpperOptions::new(upper.to_owned(), work.to_owned(), Prefix::Trusted)
        }),
        ..EngineOptions::new(lowers.iter().map(layer).collect())
    }
}

/// Opens an engine; waits as long as another namespace's copy of a kernel mount keeps the upper
/// busy.
pub fn open(options: impl Fn() -> EngineOptions) -> Engine {
    for _ in 0..1200 {
        match Engine::open(options()) {
            Err(Error::BadUpper { why, .. }) if why.contains("the kernel has it") => {}
            other => return other.unwrap(),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the upper stays busy");
}

/// An engine used by paths, as a program uses a mount. It forgets every node that it looks up.
pub struct User<'a> {
    pub engine: &'a Engine,
    pub caller: Caller,
}

pub fn user(engine: &Engine) -> User<'_> {
    User {
        engine,
        caller: ROOT,
    }
}

/// A looked-up entry, forgotten when dropped.
pub struct HeldEntry<'a> {
    engine: &'a Engine,
    pub node: NodeId,
    pub attr: Option<Attr>,
}

impl Drop for HeldEntry<'_> {
    fn drop(&mut self) {
        if self.node != NodeId::ROOT {
            self.engine.forget(self.node, 1);
        }
    }
}

impl<'a> User<'a> {
    pub fn hold(&self, entry: Entry) -> HeldEntry<'a> {
        HeldEntry {
            engine: self.engine,
            node: entry.node,
            attr: Some(entry.attr),
        }
    }

    pub fn find(&self, path: impl AsRef<Path>) -> Result<HeldEntry<'a>> {
        let mut at = HeldEntry {
            engine: self.engine,
            node: NodeId::ROOT,
            attr: None,
        };
        for name in path.as_ref().iter() {
            let entry = self.engine.lookup(at.node, name)?;
            at = self.hold(entry.ok_or(vellum_union::Refusal::NotFound)?);
        }
        Ok(at)
    }

    /// Returns the parent directory of `path`, and the name in it.
    pub fn above<'p>(&self, path: &'p Path) -> Result<(HeldEntry<'a>, &'p OsStr)> {
        let name = path.file_name().expect("a path with a name");
        Ok((self.find(path.parent().expect("a parent"))?, name))
    }

    pub fn attr(&self, path: impl AsRef<Path>) -> Result<Attr> {
        let held = self.find(path)?;
        self.engine.attr(held.node)
    }

    pub fn make(&self, path: impl AsRef<Path>, what: NewNode, mode: u32) -> Result<HeldEntry<'a>> {
        let (dir, name) = self.above(path.as_ref())?;
        let entry = self
            .engine
            .privileged()
            .create(dir.node, name, &what, mode, &self.caller)?;
        Ok(self.hold(entry))
    }

    pub fn file(&self, path: impl AsRef<Path>, content: &str) -> Result<()> {
        let held = match self.find(path.as_ref()) {
            Ok(held) => held,
            Err(_) => self.make(path, NewNode::File, 0o644)?,
        };
        let truncated = SetAttr {
            size_bytes: Some(0),
            ..SetAttr::default()
        };
        self.engine.privileged().set_attr(held.node, &truncated)?;
        if !content.is_empty() {
            self.engine
                .privileged()
                .write(held.node, 0, content.as_bytes(), false)?;
        }
        Ok(())
    }

    pub fn mkdir(&self, path: impl AsRef<Path>) -> Result<()> {
        self.make(path, NewNode::Dir, 0o755).map(drop)
    }

    pub fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        let (dir, name) = self.above(path.as_ref())?;
        self.engine.privileged().unlink(dir.node, name)
    }

    pub fn rmdir(&self, path: impl AsRef<Path>) -> Result<()> {
        let (dir, name) = self.above(path.as_ref())?;
        self.engine.privileged().rmdir(dir.node, name)
    }

    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.rename_as(from, to, RenameMode::Replace)
    }

    pub fn rename_as(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        mode: RenameMode,
    ) -> Result<()> {
        let (from_dir, from) = self.above(from.as_ref())?;
        let (to_dir, to) = self.above(to.as_ref())?;
        self.engine
            .privileged()
            .rename(from_dir.node, from, to_dir.node, to, mode)
    }

    pub fn link(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let held = self.find(from)?;
        let (dir, name) = self.above(to.as_ref())?;
        let entry = self.engine.privileged().link(held.node, dir.node, name)?;
        self.hold(entry);
        Ok(())
    }

    pub fn set(&self, path: impl AsRef<Path>, change: SetAttr) -> Result<Attr> {
        let held = self.find(path)?;
        self.engine.privileged().set_attr(held.node, &change)
    }

    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) -> Result<Attr> {
        let mode = Some(mode);
        self.set(
            path,
            SetAttr {
                mode,
                ..SetAttr::default()
            },
        )
    }

    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let held = self.find(path)?;
        read_all(self.engine, held.node)
    }

    pub fn names(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        let held = self.find(path)?;
        names(self.engine, held.node)
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.find(path).is_ok()
    }
}

pub fn read_all(engine: &Engine, node: NodeId) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match engine.read(node, content.len() as u64, &mut buffer)? {
            0 => return Ok(content),
            count => content.extend_from_slice(&buffer[..count]),
        }
    }
}

pub fn names(engine: &Engine, dir: NodeId) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    engine.list(dir, 0, &mut |listing| {
        names.push(listing.name);
        std::ops::ControlFlow::Continue(())
    })?;
    names.sort();
    Ok(names)
}

/// Returns everything the engine shows, in the form of the kernel's view.
#[track_caller]
pub fn view(engine: &Engine) -> Tree {
    let mut tree = Tree::default();
    look(engine, NodeId::ROOT, PathBuf::new(), &mut tree);
    tree.group_links();
    tree
}

#[track_caller]
fn look(engine: &Engine, node: NodeId, path: PathBuf, tree: &mut Tree) {
    let attr = engine.attr(node).unwrap();
    if attr.kind == FileKind::Dir {
        for name in names(engine, node).unwrap() {
            let below = path.join(&name);
            let entry = engine.lookup(node, &name).unwrap();
            let entry = entry.unwrap_or_else(|| panic!("{below:?} is listed, but can't be found"));
            look(engine, entry.node, below, tree);
            engine.forget(entry.node, 1);
        }
    }
    let seen = seen(engine, node, &attr);
    tree.entries.insert(path, seen);
}

#[track_caller]
fn seen(engine: &Engine, node: NodeId, attr: &Attr) -> Seen {
    let xattrs = engine.xattr_names(node).unwrap();
    let xattrs = xattrs.into_iter().filter_map(|name| {
        engine
            .xattr(node, &name)
            .unwrap()
            .map(|value| (name, value))
    });
    let is_file = attr.kind == FileKind::File;
    Seen {
        kind: match attr.kind {
            FileKind::Dir => Kind::Directory,
            FileKind::File => Kind::File,
            FileKind::Symlink => Kind::Symlink,
            FileKind::Fifo => Kind::Fifo,
            FileKind::Socket => Kind::Socket,
            FileKind::Block => Kind::Block,
            FileKind::Char => Kind::Character,
        },
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        mtime: (attr.mtime.sec, attr.mtime.nsec),
        size: if is_file { attr.size_bytes } else { 0 },
        rdev: attr.rdev,
        target: (attr.kind == FileKind::Symlink).then(|| engine.read_link(node).unwrap()),
        content: is_file.then(|| hash(&read_all(engine, node).unwrap()[..]).unwrap()),
        xattrs: xattrs.collect(),
        linked_with: None,
        identity: (0, attr.ino),
    }
}

/// Returns the refusal in a result, which must be one.
#[track_caller]
pub fn refusal<T>(result: Result<T>) -> vellum_union::Refusal {
    match result {
        Err(Error::Refused { refusal }) => refusal,
        Err(other) => panic!("{other}: {:?}", std::error::Error::source(&other)),
        Ok(_) => panic!("it succeeded"),
    }
}

/// Lets a copied upper use the copied index of hard links, which names the original upper by its
/// file handle.
pub fn forget_upper(work: &Path) {
    for prefix in ["trusted", "user"] {
        let mark = format!("{prefix}.overlay.upper");
        match rustix::fs::removexattr(work.join("index"), mark.as_str()) {
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOENT) => {}
            // A mark that a plain user can't remove, none can have set.
            Err(rustix::io::Errno::PERM) if prefix == "trusted" => {}
            Err(error) => panic!("{mark}: {error}"),
        }
    }
}

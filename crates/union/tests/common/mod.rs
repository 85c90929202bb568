//! Shared by the tests with real trees: layers written by the kernel, and our view of them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::Prefix;
use vellum_sys::FileKind;
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::{Entry, Kind, hash};
use vellum_testkit::{Scratch, Tree, needs_root};
use vellum_union::{ChangeKind, Dialect, DirLayer, Form, Layer, Node, Stack, changes};

/// An overlay mounted by the kernel, and its directories.
pub struct Rig {
    pub scratch: Scratch,
    /// The top one first.
    pub lowers: Vec<PathBuf>,
    pub data_lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub merged: PathBuf,
    pub options: Vec<(String, String)>,
    uppers: usize,
}

pub const ALL_ON: &[(&str, &str)] = &[("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")];

impl Rig {
    /// Creates directories only; `None` (with a message) if this process may not mount.
    pub fn new(lowers: usize, options: &[(&str, &str)]) -> Option<Rig> {
        if !needs_root("kernel overlay") {
            return None;
        }
        let scratch = Scratch::new();
        let lowers = (0..lowers)
            .map(|index| scratch.dir(format!("l{index}")))
            .collect();
        let options = options
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        let (upper, merged) = (scratch.dir("u0"), scratch.dir("merged"));
        Some(Rig {
            scratch,
            lowers,
            data_lowers: Vec::new(),
            upper,
            merged,
            options,
            uppers: 0,
        })
    }

    pub fn mount(&self) {
        let work = self.scratch.dir(format!("w{}", self.uppers));
        let overlay = Overlay {
            lowers: self.lowers.clone(),
            data_lowers: self.data_lowers.clone(),
            upper: Some((self.upper.clone(), work)),
            options: self.options.clone(),
        };
        // A mount namespace created in between (another test's container) has a copy of the
        // previous mount, and with index=on the kernel then calls the upper busy.
        for _ in 0..1200 {
            match overlay.mount(&self.scratch, &self.merged) {
                Err(error) if error.contains("os error 16") => {}
                other => return other.unwrap(),
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the upper stays busy");
    }

    pub fn unmount(&self) {
        self.scratch.unmount(&self.merged);
    }

    /// Makes the upper the top lower and starts a new one. Not while mounted.
    pub fn push(&mut self) {
        self.lowers.insert(0, self.upper.clone());
        self.uppers += 1;
        self.upper = self.scratch.dir(format!("u{}", self.uppers));
    }

    pub fn prefix(&self) -> Prefix {
        match self.options.iter().any(|(key, _)| key == "userxattr") {
            true => Prefix::User,
            false => Prefix::Trusted,
        }
    }

    pub fn dialect(&self) -> Dialect {
        Dialect::kernel(self.prefix())
    }

    /// Our view of upper and lowers.
    pub fn stack(&self) -> Stack {
        let all: Vec<_> = std::iter::once(&self.upper).chain(&self.lowers).collect();
        stack_of(&all, &self.data_lowers, self.dialect())
    }

    /// The lines of `docker diff`.
    pub fn listing(&self) -> Vec<String> {
        lines(&self.stack(), Form::Listing)
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.merged.join(below)
    }
}

pub fn stack_of(layers: &[&PathBuf], data: &[PathBuf], dialect: Dialect) -> Stack {
    let open = |path: &Path| Arc::new(DirLayer::open(path, dialect).unwrap()) as Arc<dyn Layer>;
    let layers = layers.iter().map(|path| open(path)).collect();
    Stack::with_data_layers(layers, data.iter().map(|path| open(path)).collect()).unwrap()
}

pub fn lines(stack: &Stack, form: Form) -> Vec<String> {
    let line = |change: vellum_union::Change| {
        assert_eq!(change.node.is_none(), change.kind == ChangeKind::Deleted);
        let opaque = if change.opaque { " opaque" } else { "" };
        format!("{} {}{opaque}", change.kind.letter(), change.path.display())
    };
    changes(stack, form)
        .unwrap()
        .map(|change| line(change.unwrap()))
        .collect()
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

pub fn whiteout(path: &Path) {
    let mode = rustix::fs::Mode::empty();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::CharacterDevice,
        mode,
        0,
    )
    .unwrap();
}

pub fn touch(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// Our view as a tree, to compare with that of a mount.
pub fn picture(stack: &Stack) -> Tree {
    let mut tree = Tree::default();
    for node in stack.walk() {
        let node = node.unwrap();
        tree.entries.insert(node.path().to_owned(), entry(&node));
    }
    tree.group_links();
    tree
}

pub fn entry(node: &Node) -> Entry {
    let stat = node.stat();
    let kind = match stat.kind {
        FileKind::Dir => Kind::Directory,
        FileKind::File => Kind::File,
        FileKind::Symlink => Kind::Symlink,
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
        FileKind::Block => Kind::Block,
        FileKind::Char => Kind::Character,
    };
    Entry {
        kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: (stat.mtime.sec, stat.mtime.nsec),
        size: if kind == Kind::File {
            stat.size_bytes
        } else {
            0
        },
        rdev: stat.rdev,
        target: (kind == Kind::Symlink).then(|| node.read_link().unwrap()),
        content: (kind == Kind::File).then(|| hash(node.open_data().unwrap()).unwrap()),
        xattrs: node.xattrs().unwrap(),
        linked_with: None,
        identity: node.identity(),
    }
}

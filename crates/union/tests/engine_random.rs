//! Random operations on an engine and, by plain system calls, on an ordinary directory that began
//! with the same content. Each must have the same result on both, both must look the same all the
//! time, and every file must keep its inode number; also when the engine is closed and reopened in
//! between, and when the kernel's overlayfs mounts its layers.

mod engine_support;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use engine_support::{Rig, User, read_all, user, view};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use vellum_sys::xattr::SetMode;
use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::script::{self, Script};
use vellum_testkit::tree::{Ignore, Kind};
use vellum_testkit::{FsKind, Rng, Tree};
use vellum_union::engine::{Engine, NewNode, NodeId, RenameMode, SetAttr, SetTime};
use vellum_union::{Error, Refusal};

/// The errno a program gets for an error of the engine.
fn errno(error: &Error) -> i32 {
    use rustix::io::Errno;
    let errno = match error {
        Error::Refused { refusal } => match refusal {
            Refusal::NotFound => Errno::NOENT,
            Refusal::Exists => Errno::EXIST,
            Refusal::NotADirectory => Errno::NOTDIR,
            Refusal::IsADirectory => Errno::ISDIR,
            Refusal::NotEmpty => Errno::NOTEMPTY,
            Refusal::ReadOnly => Errno::ROFS,
            Refusal::NotPermitted => Errno::PERM,
            Refusal::CrossDevice => Errno::XDEV,
            Refusal::Invalid => Errno::INVAL,
            Refusal::NoAttribute => Errno::NODATA,
            Refusal::UnmappedId => Errno::OVERFLOW,
            Refusal::NameTooLong => Errno::NAMETOOLONG,
            Refusal::Unsupported => Errno::OPNOTSUPP,
            Refusal::Stale => Errno::STALE,
            other => panic!("{other}"),
        },
        Error::Io { source, .. } => return source.errno().unwrap_or(0),
        other => panic!("{other}: {:?}", std::error::Error::source(other)),
    };
    errno.raw_os_error()
}

/// One operation, done by both sides.
#[derive(Debug, Clone)]
enum Op {
    Create(PathBuf, Vec<u8>),
    Mkdir(PathBuf, u32),
    Symlink(PathBuf, PathBuf),
    Node(PathBuf, NewNode),
    Write(PathBuf, u64, Vec<u8>),
    Truncate(PathBuf, u64),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    Utimes(PathBuf, i64, u32),
    SetXattr(PathBuf, &'static str, Vec<u8>),
    RemoveXattr(PathBuf, &'static str),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    RemoveTree(PathBuf),
    Rename(PathBuf, PathBuf, RenameMode),
    Link(PathBuf, PathBuf),
    /// Opens a file, to be used after it has lost its name.
    Hold(PathBuf),
    /// Writes to, or truncates, the n-th opened file.
    WriteHeld(usize, u64, Vec<u8>),
    TruncateHeld(usize, u64),
    ChmodHeld(usize, u32),
    DropHeld(usize),
}

const XATTRS: &[&str] = &[
    "user.a",
    "user.b",
    "trusted.t",
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
    "trusted.overlay.overlay.metacopy",
    "user.overlay.whiteout",
];

fn choose(rng: &mut Rng, plain: &Path, paths: &[PathBuf], held: usize) -> Op {
    let any = rng.pick(paths).clone();
    // In a directory or, sometimes, in something that is not one.
    let beside = rng.pick(paths);
    let new = match beside.parent() {
        // Only one side follows links on the way.
        Some(dir) if plain.join(beside).is_symlink() || rng.chance(70) => dir.join(rng.name()),
        _ => beside.join(rng.name()),
    };
    let other = rng.pick(paths).clone();
    match rng.below(34) {
        0..=2 => Op::Create(new, rng.bytes(9000)),
        3..=4 => Op::Mkdir(new, 0o700 | rng.below(0o10000) as u32),
        5 => Op::Symlink(new, PathBuf::from(rng.name())),
        6 => Op::Node(
            new,
            rng.pick(&[
                NewNode::Fifo,
                NewNode::Socket,
                NewNode::Char(1, 3),
                NewNode::Block(7, 99),
                NewNode::Char(0, 0),
            ])
            .clone(),
        ),
        7..=9 => Op::Write(any, rng.below(30_000) as u64, rng.bytes(5000)),
        10 => Op::Truncate(any, *rng.pick(&[0, 1, 4096, 5000, 50_000])),
        11..=12 => Op::Chmod(any, rng.below(0o10000) as u32),
        13 => Op::Chown(any, rng.below(3) as u32, rng.below(3) as u32),
        14 => Op::Utimes(
            any,
            rng.below(1 << 30) as i64,
            rng.below(1_000_000_000) as u32,
        ),
        15..=16 => Op::SetXattr(any, XATTRS[rng.below(XATTRS.len())], rng.bytes(40)),
        17 => Op::RemoveXattr(any, XATTRS[rng.below(XATTRS.len())]),
        18..=19 => Op::Unlink(any),
        20 => Op::Rmdir(any),
        21 => Op::RemoveTree(any),
        22..=24 => Op::Rename(any, new, RenameMode::Replace),
        25 => Op::Rename(any, other, RenameMode::Replace),
        26 => Op::Rename(any, new, RenameMode::NoReplace),
        27 => Op::Rename(any, other, RenameMode::Exchange),
        28..=29 => Op::Link(any, new),
        30 => Op::Hold(any),
        31 if held > 0 => Op::WriteHeld(rng.below(held), rng.below(9000) as u64, rng.bytes(3000)),
        32 if held > 0 => match rng.chance(50) {
            true => Op::TruncateHeld(rng.below(held), rng.below(9000) as u64),
            false => Op::ChmodHeld(rng.below(held), rng.below(0o10000) as u32),
        },
        33 if held > 0 => Op::DropHeld(rng.below(held)),
        _ => Op::Unlink(any),
    }
}

/// The ordinary directory.
struct Plain {
    root: PathBuf,
    held: Vec<fs::File>,
}

impl Plain {
    fn regular(&self, path: &Path) -> io::Result<PathBuf> {
        let path = self.root.join(path);
        match path.symlink_metadata()?.is_file() {
            true => Ok(path),
            false => Err(io::Error::from_raw_os_error(22)),
        }
    }

    fn run(&mut self, op: &Op) -> io::Result<()> {
        let at = |path: &PathBuf| self.root.join(path);
        match op {
            Op::Create(path, content) => {
                use std::os::unix::fs::OpenOptionsExt;
                let file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o644)
                    .open(at(path))?;
                file.write_all_at(content, 0)
            }
            Op::Mkdir(path, mode) => Ok(rustix::fs::mkdir(at(path), Mode::from_raw_mode(*mode))?),
            Op::Symlink(path, to) => symlink(to, at(path)),
            Op::Node(path, what) => {
                let (kind, dev) = match what {
                    NewNode::Fifo => (FileType::Fifo, 0),
                    NewNode::Socket => (FileType::Socket, 0),
                    // A union refuses this.
                    NewNode::Char(0, 0) => {
                        // The kernel checks the parent first.
                        let parent = at(path).parent().map(fs::symlink_metadata);
                        let is_dir = parent.transpose()?.is_some_and(|meta| meta.is_dir());
                        return Err(io::Error::from_raw_os_error(if is_dir { 1 } else { 20 }));
                    }
                    NewNode::Char(a, b) => (FileType::CharacterDevice, rustix::fs::makedev(*a, *b)),
                    NewNode::Block(a, b) => (FileType::BlockDevice, rustix::fs::makedev(*a, *b)),
                    _ => unreachable!("not chosen"),
                };
                let mode = Mode::from_raw_mode(0o640);
                Ok(rustix::fs::mknodat(CWD, at(path), kind, mode, dev)?)
            }
            Op::Write(path, offset, bytes) => fs::OpenOptions::new()
                .write(true)
                .open(self.regular(path)?)?
                .write_all_at(bytes, *offset),
            Op::Truncate(path, size) => fs::OpenOptions::new()
                .write(true)
                .open(self.regular(path)?)?
                .set_len(*size),
            Op::Chmod(path, mode) => {
                let path = at(path);
                match path.symlink_metadata()?.is_symlink() {
                    true => Err(io::Error::from_raw_os_error(95)),
                    false => fs::set_permissions(path, fs::Permissions::from_mode(*mode)),
                }
            }
            Op::Chown(path, uid, gid) => {
                std::os::unix::fs::lchown(at(path), Some(*uid), Some(*gid))
            }
            Op::Utimes(path, sec, nsec) => {
                let time = Timespec {
                    tv_sec: *sec,
                    tv_nsec: (*nsec).into(),
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                Ok(rustix::fs::utimensat(CWD, at(path), &times, flags)?)
            }
            Op::SetXattr(path, name, value) => {
                let flags = XattrFlags::empty();
                Ok(rustix::fs::lsetxattr(at(path), *name, value, flags)?)
            }
            Op::RemoveXattr(path, name) => Ok(rustix::fs::lremovexattr(at(path), *name)?),
            Op::Unlink(path) => Ok(rustix::fs::unlinkat(CWD, at(path), AtFlags::empty())?),
            Op::Rmdir(path) => Ok(rustix::fs::unlinkat(CWD, at(path), AtFlags::REMOVEDIR)?),
            Op::RemoveTree(path) => match at(path).symlink_metadata()?.is_dir() {
                true => fs::remove_dir_all(at(path)),
                false => Err(io::Error::from_raw_os_error(20)),
            },
            Op::Rename(from, to, mode) => {
                let flags = match mode {
                    RenameMode::NoReplace => RenameFlags::NOREPLACE,
                    RenameMode::Exchange => RenameFlags::EXCHANGE,
                    _ => RenameFlags::empty(),
                };
                Ok(rustix::fs::renameat_with(
                    CWD,
                    at(from),
                    CWD,
                    at(to),
                    flags,
                )?)
            }
            Op::Link(from, to) => Ok(rustix::fs::linkat(
                CWD,
                at(from),
                CWD,
                at(to),
                AtFlags::empty(),
            )?),
            Op::Hold(path) => {
                let path = self.regular(path)?;
                let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
                self.held.push(file);
                Ok(())
            }
            Op::WriteHeld(index, offset, bytes) => self.held[*index].write_all_at(bytes, *offset),
            Op::TruncateHeld(index, size) => self.held[*index].set_len(*size),
            Op::ChmodHeld(index, mode) => {
                self.held[*index].set_permissions(fs::Permissions::from_mode(*mode))
            }
            Op::DropHeld(index) => {
                self.held.swap_remove(*index);
                Ok(())
            }
        }
    }
}

/// The union, used as a mount would use it.
struct Ours {
    engine: Engine,
    held: Vec<NodeId>,
    /// The layers hide no name of a lower file: a hidden one still counts, as in the kernel.
    links_are_whole: bool,
    /// Inode numbers are compared.
    numbers_stay: bool,
}

impl Ours {
    fn run(&mut self, op: &Op) -> Result<(), Error> {
        let mut who = user(&self.engine);
        who.caller.umask = umask();
        let refuse = |refusal: Refusal| Err(Error::from(refusal));
        let regular = |path: &PathBuf| {
            let held = who.find(path)?;
            match self.engine.attr(held.node)?.kind {
                vellum_sys::FileKind::File => Ok(held),
                _ => Err(Error::from(Refusal::Invalid)),
            }
        };
        // The checks that the kernel does before it calls a file system.
        let place = |path: &'_ PathBuf| -> Result<(), Error> {
            match path.parent() {
                None => refuse(Refusal::Exists),
                Some(parent) => match who.attr(parent)?.kind {
                    vellum_sys::FileKind::Dir => Ok(()),
                    _ => refuse(Refusal::NotADirectory),
                },
            }
        };
        match op {
            Op::Create(path, content) => {
                place(path)?;
                let held = who.make(path, NewNode::File, 0o644)?;
                self.engine
                    .privileged()
                    .write(held.node, 0, content, true)
                    .map(drop)
            }
            Op::Mkdir(path, mode) => {
                place(path)?;
                // As the kernel's vfs_mkdir does for all file systems.
                who.make(path, NewNode::Dir, mode & 0o1777).map(drop)
            }
            Op::Symlink(path, to) => {
                place(path)?;
                who.make(path, NewNode::Symlink(to.clone().into()), 0o777)
                    .map(drop)
            }
            Op::Node(path, what) => {
                place(path)?;
                who.make(path, what.clone(), 0o640).map(drop)
            }
            Op::Write(path, offset, bytes) => {
                let held = regular(path)?;
                write(&self.engine, held.node, *offset, bytes)
            }
            Op::Truncate(path, size) => {
                let held = regular(path)?;
                truncate(&who, held.node, *size)
            }
            Op::Chmod(path, mode) => {
                let held = who.find(path)?;
                match self.engine.attr(held.node)?.kind {
                    vellum_sys::FileKind::Symlink => refuse(Refusal::Unsupported),
                    _ => who.chmod(path, *mode).map(drop),
                }
            }
            Op::Chown(path, uid, gid) => {
                let change = SetAttr {
                    uid: Some(*uid),
                    gid: Some(*gid),
                    ..SetAttr::default()
                };
                who.set(path, change).map(drop)
            }
            Op::Utimes(path, sec, nsec) => {
                let time = SetTime::To(vellum_sys::Timespec::new(*sec, *nsec));
                let change = SetAttr {
                    atime: Some(time),
                    mtime: Some(time),
                    ..SetAttr::default()
                };
                who.set(path, change).map(drop)
            }
            Op::SetXattr(path, name, value) => {
                let held = who.find(path)?;
                user_xattrs(&self.engine, held.node, name)?;
                let name = OsStr::new(name);
                self.engine
                    .privileged()
                    .set_xattr(held.node, name, value, SetMode::Any)
            }
            Op::RemoveXattr(path, name) => {
                let held = who.find(path)?;
                user_xattrs(&self.engine, held.node, name)?;
                self.engine
                    .privileged()
                    .remove_xattr(held.node, OsStr::new(name))
            }
            Op::Unlink(path) if path.as_os_str().is_empty() => refuse(Refusal::IsADirectory),
            Op::Unlink(path) => who.unlink(path),
            Op::Rmdir(path) => who.rmdir(path),
            Op::RemoveTree(path) => remove_tree(&who, path),
            Op::Rename(from, to, mode) => who.rename_as(from, to, *mode),
            Op::Link(from, to) => {
                let held = who.find(from)?;
                place(to)?;
                if who.exists(to) {
                    return refuse(Refusal::Exists);
                }
                if self.engine.attr(held.node)?.kind == vellum_sys::FileKind::Dir {
                    return refuse(Refusal::NotPermitted);
                }
                who.link(from, to)
            }
            Op::Hold(path) => {
                let held = regular(path)?;
                let node = held.node;
                std::mem::forget(held);
                self.held.push(node);
                Ok(())
            }
            Op::WriteHeld(index, offset, bytes) => {
                write(&self.engine, self.held[*index], *offset, bytes)
            }
            Op::TruncateHeld(index, size) => truncate(&who, self.held[*index], *size),
            Op::ChmodHeld(index, mode) => {
                let change = SetAttr {
                    mode: Some(*mode),
                    ..SetAttr::default()
                };
                let node = self.held[*index];
                self.engine.privileged().set_attr(node, &change).map(drop)
            }
            Op::DropHeld(index) => {
                let node = self.held.swap_remove(*index);
                self.engine.forget(node, 1);
                Ok(())
            }
        }
    }
}

/// The umask of the plain calls.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    u32::from_str_radix(mask.unwrap().trim(), 8).unwrap()
}

/// Refuses what the kernel refuses itself: `user.` on anything but a file or directory.
fn user_xattrs(engine: &Engine, node: NodeId, name: &str) -> Result<(), Error> {
    use vellum_sys::FileKind;
    let kind = engine.attr(node)?.kind;
    match name.starts_with("user.") && !matches!(kind, FileKind::File | FileKind::Dir) {
        true => Err(Refusal::NotPermitted.into()),
        false => Ok(()),
    }
}

fn write(engine: &Engine, node: NodeId, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        // Root keeps set-uid bits when it writes.
        done += engine
            .privileged()
            .write(node, offset + done as u64, &bytes[done..], false)?;
    }
    Ok(())
}

fn truncate(who: &User<'_>, node: NodeId, size: u64) -> Result<(), Error> {
    let change = SetAttr {
        size_bytes: Some(size),
        ..SetAttr::default()
    };
    who.engine.privileged().set_attr(node, &change).map(drop)
}

/// As `rm -r` does it.
fn remove_tree(who: &User<'_>, path: &Path) -> Result<(), Error> {
    let attr = who.attr(path)?;
    if attr.kind != vellum_sys::FileKind::Dir {
        return Err(Refusal::NotADirectory.into());
    }
    for name in who.names(path)? {
        let below = path.join(name);
        match who.attr(&below)?.kind {
            vellum_sys::FileKind::Dir => remove_tree(who, &below)?,
            _ => who.unlink(&below)?,
        }
    }
    match path.as_os_str().is_empty() {
        true => Err(Error::from(Refusal::Invalid)),
        false => who.rmdir(path),
    }
}

/// Maps an inode of the ordinary directory (with its creation time, since numbers are reused) to
/// its number in the union.
type Pairs = HashMap<(u64, i64, u32), u64>;

fn pairs(plain: &Path, ours: &Tree) -> Pairs {
    let mut pairs = Pairs::new();
    let mut back = BTreeMap::new();
    for (path, entry) in &ours.entries {
        let stat = rustix::fs::statx(
            CWD,
            plain.join(path),
            AtFlags::SYMLINK_NOFOLLOW,
            rustix::fs::StatxFlags::ALL,
        )
        .unwrap();
        let key = (stat.stx_ino, stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        let ino = entry.identity.1;
        assert_eq!(
            *pairs.entry(key).or_insert(ino),
            ino,
            "{path:?}: two numbers for one file"
        );
        assert_eq!(
            *back.entry(ino).or_insert(key),
            key,
            "{path:?}: one number for two files"
        );
        let nlink = fs::symlink_metadata(plain.join(path)).unwrap().nlink();
        if entry.kind != Kind::Directory {
            assert!(nlink >= 1);
        }
    }
    pairs
}

#[track_caller]
fn compare(ours: &Ours, plain: &Plain, known: &mut Pairs) {
    let seen = view(&ours.engine);
    let ignore = Ignore {
        mtimes: true,
        // Xattrs of lower files are lost with the copy, as the warning says.
        xattrs: !ours.numbers_stay,
        ..Ignore::default()
    };
    let mut expected = Tree::read(&plain.root).unwrap();
    expected.group_links();
    seen.assert_same(&expected, ignore);
    if !ours.numbers_stay {
        return;
    }
    let now = pairs(&plain.root, &seen);
    for (key, ino) in &now {
        if let Some(before) = known.get(key) {
            assert_eq!(before, ino, "an inode number changed");
        }
    }
    *known = now;
    for (file, node) in plain.held.iter().zip(&ours.held) {
        let mut expected = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut expected, 0).unwrap();
        assert!(
            read_all(&ours.engine, *node).unwrap() == expected,
            "an open file differs"
        );
        let (meta, attr) = (file.metadata().unwrap(), ours.engine.attr(*node).unwrap());
        assert_eq!(
            (attr.mode, attr.size_bytes),
            (meta.mode() & 0o7777, meta.len()),
            "an open file differs"
        );
        if ours.links_are_whole {
            assert_eq!(u64::from(attr.nlink), meta.nlink(), "an open file differs");
        }
    }
}

/// Creates two layers, the upper one written by the kernel with all its marks; and the same as an
/// ordinary directory.
fn prepare(rng: &mut Rng, rig: &mut Rig, storm: Storm) -> Plain {
    if storm.apart {
        let other = rig.scratch.file_system("other", FsKind::Xfs, 300);
        let other = other.or_else(|_| rig.scratch.file_system("memory", FsKind::Tmpfs, 64));
        rig.lowers[1] = other.expect("a second file system");
    }
    let bottom = rig.lowers[1].clone();
    grow(rng, &bottom, 25);
    Churn {
        trusted_xattrs: false,
        links: storm.links,
        ..Churn::ALL
    }
    .run(rng, &bottom, 60);
    let top = rig.lowers.remove(0);
    let work = rig.scratch.dir("fs/w0");
    let overlay = vellum_testkit::kernel::Overlay {
        lowers: vec![bottom.clone()],
        data_lowers: Vec::new(),
        upper: Some((top.clone(), work)),
        options: Vec::new(),
    };
    let target = rig.scratch.dir("before");
    overlay
        .option("redirect_dir", "on")
        .option("metacopy", "on")
        .option("index", "off")
        .mount(&rig.scratch, &target)
        .unwrap();
    if storm.middle {
        Churn {
            links: false,
            trusted_xattrs: false,
            ..Churn::ALL
        }
        .run(rng, &target, 40);
    }
    // Changed hard links of the lowest layer became separate files: the union shows them so.
    rig.scratch.unmount(&target);
    rig.lowers.insert(0, top);
    let both = vellum_testkit::kernel::Overlay {
        lowers: rig.lowers.clone(),
        ..Default::default()
    };
    both.option("redirect_dir", "follow")
        .option("metacopy", "on")
        .mount(&rig.scratch, &target)
        .unwrap();
    let root = match storm.xattrs {
        true => rig.scratch.join("fs/plain"),
        false => rig.scratch.join("fs/bare/plain"),
    };
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&target)
        .arg(&root)
        .status();
    assert!(copied.unwrap().success());
    rig.scratch.unmount(&target);
    Plain {
        root,
        held: Vec::new(),
    }
}

/// One step of a run.
#[derive(Debug, Clone)]
enum Step {
    Do(Op),
    /// The engine is closed, the kernel may have its turn, with changes from this seed, and the
    /// engine opens again.
    Reopen(u64),
}

impl Op {
    /// Returns which open file it is about.
    fn held(&self) -> Option<usize> {
        match self {
            Op::WriteHeld(at, ..)
            | Op::TruncateHeld(at, _)
            | Op::ChmodHeld(at, _)
            | Op::DropHeld(at) => Some(*at),
            _ => None,
        }
    }
}

fn storm(name: &str, storm: Storm, change: impl Fn(&mut vellum_union::engine::UpperOptions)) {
    let count = match std::env::var("VELLUM_OPS") {
        Ok(text) => text.parse().expect("VELLUM_OPS is a number"),
        Err(_) => storm.count,
    };
    let rng = Rng::for_test(name);
    script::play(|steps| attempt(steps, &mut rng.clone(), count, storm, &change));
}

fn attempt(
    steps: &mut Script<Step>,
    rng: &mut Rng,
    count: usize,
    storm: Storm,
    change: impl Fn(&mut vellum_union::engine::UpperOptions),
) {
    let Some(mut rig) = Rig::on(storm.on, 2) else {
        return;
    };
    if !storm.xattrs && !without_xattrs(&mut rig) {
        return;
    }
    let mut plain = prepare(rng, &mut rig, storm);
    let open = |rig: &Rig| {
        engine_support::open(|| {
            let mut options = rig.options();
            options.upper.iter_mut().for_each(&change);
            options
        })
    };
    let mut ours = Ours {
        engine: open(&rig),
        held: Vec::new(),
        links_are_whole: !storm.middle && storm.xattrs,
        numbers_stay: storm.xattrs,
    };
    let mut known = Pairs::new();
    compare(&ours, &plain, &mut known);
    let look_after = if steps.is_given() { 1 } else { 10 };
    for step in 0..count {
        let chosen = steps.next(|| match step % 150 == 149 {
            true => Step::Reopen(rng.next()),
            false => {
                let mut paths: Vec<_> = Tree::read(&plain.root)
                    .unwrap()
                    .entries
                    .into_keys()
                    .collect();
                // The root itself can't be created, moved or removed through a mount.
                paths.retain(|path| !path.as_os_str().is_empty());
                if paths.is_empty() {
                    paths.push(PathBuf::from("gone"));
                }
                Step::Do(choose(rng, &plain.root, &paths, plain.held.len()))
            }
        });
        match chosen {
            None => break,
            Some(Step::Do(op)) => both(&op, step, &mut ours, &mut plain, storm),
            Some(Step::Reopen(seed)) => {
                plain.held.clear();
                for node in ours.held.drain(..) {
                    ours.engine.forget(node, 1);
                }
                assert_eq!(ours.engine.live_nodes(), 1, "nodes are left behind");
                let live = view(&ours.engine);
                ours.engine.close().unwrap();
                between(&rig, &live, &plain, storm, seed);
                ours.engine = open(&rig);
                if !storm.turns {
                    view(&ours.engine).assert_same(&live, Ignore::default());
                }
                compare(&ours, &plain, &mut known);
            }
        }
        if step % look_after == look_after - 1 {
            compare(&ours, &plain, &mut known);
        }
    }
    ours.engine.close().unwrap();
}

/// Does `op` on both sides.
fn both(op: &Op, step: usize, ours: &mut Ours, plain: &mut Plain, storm: Storm) {
    let has_no_place = matches!(op, Op::SetXattr(..) | Op::RemoveXattr(..)) && !storm.xattrs;
    // The file was opened by a step that was left out.
    let was_not_opened = op.held().is_some_and(|at| at >= plain.held.len());
    if has_no_place || was_not_opened {
        return;
    }
    let found = ours.run(op);
    if matches!(&found, Err(error) if errno(error) == 18) {
        // If directories of lower layers can't move, programs copy them; this test skips the
        // move.
        assert!(matches!(op, Op::Rename(..)), "{op:?}");
        return;
    }
    let expected = plain.run(op);
    let same = match (&expected, &found) {
        (Ok(()), Ok(())) => true,
        (Err(expected), Err(found)) => match (expected.raw_os_error(), errno(found)) {
            // A directory that is not empty: POSIX allows both errors, and XFS returns the other.
            (Some(17), 39) => true,
            (expected, found) => expected == Some(found),
        },
        _ => false,
    };
    assert!(same, "step {step}: {op:?}: {expected:?} / {found:?}");
}

/// Lets the kernel use the layers while no engine does.
fn between(rig: &Rig, live: &Tree, plain: &Plain, storm: Storm, seed: u64) {
    if storm.kernel {
        rig.kernel().assert_same(live, Ignore::default());
    }
    if !storm.turns {
        return;
    }
    let target = rig.mount_kernel(&rig.upper, &rig.work);
    for root in [&target, &plain.root] {
        Churn::ALL.run(&mut Rng::seeded(seed), root, 40);
    }
    let kernel = Tree::read(&target).unwrap();
    rig.scratch.unmount(&target);
    let mut expected = Tree::read(&plain.root).unwrap();
    expected.group_links();
    let ignore = Ignore {
        mtimes: true,
        ..Ignore::default()
    };
    kernel.assert_same(&expected, ignore);
}

/// The setup of a run.
#[derive(Clone, Copy)]
struct Storm {
    /// Between the lowest layer and the upper one is one that the kernel wrote.
    middle: bool,
    /// The lowest layer has hard links.
    links: bool,
    /// The kernel shows the same.
    kernel: bool,
    /// The layers are on several file systems.
    apart: bool,
    /// The file system of the layers.
    on: FsKind,
    /// How many operations, unless the environment says.
    count: usize,
    /// Whenever the engine is closed, the kernel continues with its upper.
    turns: bool,
    /// The upper's file system has xattrs: without them numbers can't be recorded.
    xattrs: bool,
}

impl Storm {
    const ALL: Storm = Storm {
        middle: true,
        links: true,
        kernel: true,
        apart: false,
        on: FsKind::Ext4,
        count: 700,
        turns: false,
        xattrs: true,
    };
    const OURS: Storm = Storm {
        kernel: false,
        ..Storm::ALL
    };
}

#[test]
fn a_union_is_like_any_directory() {
    let weather = Storm {
        middle: false,
        ..Storm::ALL
    };
    storm("a_union_is_like_any_directory", weather, |_| {});
}

#[test]
fn a_union_on_an_upper_of_the_kernels_is_like_any_directory() {
    let name = "a_union_on_an_upper_of_the_kernels_is_like_any_directory";
    storm(name, Storm::ALL, |_| {});
}

#[test]
fn a_union_of_two_file_systems_is_like_any_directory() {
    let name = "a_union_of_two_file_systems_is_like_any_directory";
    let weather = Storm {
        middle: false,
        apart: true,
        ..Storm::ALL
    };
    storm(name, weather, |_| {});
}

#[test]
fn the_kernel_and_the_engine_take_turns() {
    let weather = Storm {
        middle: false,
        turns: true,
        ..Storm::ALL
    };
    storm("the_kernel_and_the_engine_take_turns", weather, |_| {});
}

/// Moves the upper, and the ordinary directory, to a file system without xattrs.
fn without_xattrs(rig: &mut Rig) -> bool {
    let target = rig.scratch.dir("fs/bare");
    let mounted = Command::new("mount")
        .args(["-t", "ramfs", "-o", "mode=0755", "ramfs"])
        .arg(&target)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        vellum_testkit::untested("an upper without xattrs", "no ramfs");
        return false;
    }
    rig.scratch.adopt_mount(&target);
    rig.upper = rig.scratch.dir("fs/bare/u");
    rig.work = rig.scratch.dir("fs/bare/w");
    true
}

#[test]
fn a_union_on_an_upper_without_xattrs_is_like_any_directory() {
    let name = "a_union_on_an_upper_without_xattrs_is_like_any_directory";
    let weather = Storm {
        xattrs: false,
        links: false,
        middle: false,
        count: 800,
        ..Storm::OURS
    };
    storm(name, weather, |upper| {
        upper.wh_names = vellum_union::WhNames::Whiteouts;
        upper.metacopy = false;
        upper.redirect_dir = false;
        upper.index = false;
    });
}

#[test]
fn a_union_on_any_file_system_is_like_any_directory() {
    let name = "a_union_on_any_file_system_is_like_any_directory";
    for on in [FsKind::Xfs, FsKind::Btrfs, FsKind::Tmpfs] {
        let weather = Storm {
            on,
            count: 500,
            ..Storm::ALL
        };
        storm(name, weather, |_| {});
    }
    let without_types = Storm {
        on: FsKind::Ext4NoFiletype,
        count: 500,
        middle: false,
        ..Storm::OURS
    };
    storm(name, without_types, |_| {});
}

#[test]
fn a_union_without_metacopy_is_like_any_directory() {
    let name = "a_union_without_metacopy_is_like_any_directory";
    storm(name, Storm::ALL, |upper| upper.metacopy = false);
}

#[test]
fn a_union_without_an_index_is_like_any_directory() {
    let name = "a_union_without_an_index_is_like_any_directory";
    let weather = Storm {
        links: false,
        ..Storm::OURS
    };
    storm(name, weather, |upper| upper.index = false);
}

#[test]
fn a_union_that_copies_blocks_is_like_any_directory() {
    let name = "a_union_that_copies_blocks_is_like_any_directory";
    storm(name, Storm::OURS, |upper| {
        upper.blocks_from_bytes = Some(4096)
    });
}

#[test]
fn a_union_that_keeps_records_is_like_any_directory() {
    let name = "a_union_that_keeps_records_is_like_any_directory";
    storm(name, Storm::OURS, |upper| {
        upper.prefix = vellum_format::Prefix::User;
        upper.records = vellum_union::Records::Read;
    });
}

#[test]
fn a_union_without_redirects_is_like_any_directory() {
    let name = "a_union_without_redirects_is_like_any_directory";
    storm(name, Storm::ALL, |upper| upper.redirect_dir = false);
}

#[test]
fn a_union_that_hides_by_name_is_like_any_directory() {
    let name = "a_union_that_hides_by_name_is_like_any_directory";
    storm(name, Storm::OURS, |upper| {
        upper.wh_names = vellum_union::WhNames::Whiteouts;
    });
}

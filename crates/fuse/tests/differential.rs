//! Operation by operation: a mount and the kernel's overlayfs on the same layers must give the same
//! errors, and the same attributes and bytes after each operation, through names and through
//! descriptors that stay open. There are remounts and kills in between, and at the end the kernel
//! mounts the result.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, XattrFlags};
use support::*;
use vellum_testkit::kernel::{Overlay, Since};
use vellum_testkit::script::{self, Script};
use vellum_testkit::tree::Tree;
use vellum_testkit::{Rng, Scratch};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Op {
    Make(PathBuf, usize),
    Mkdir(PathBuf, u32),
    Symlink(PathBuf),
    Fifo(PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    RemoveAll(PathBuf),
    Rename(PathBuf, PathBuf, RenameFlags),
    Link(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32),
    Times(PathBuf, i64),
    SetXattr(PathBuf, &'static str, usize),
    RemoveXattr(PathBuf, &'static str),
    Truncate(PathBuf, u64),
    Write(PathBuf, u64, usize),
    List(PathBuf),
    Read(PathBuf),
    /// Stores a descriptor in a slot.
    Open(usize, PathBuf, bool),
    Tmpfile(usize, PathBuf),
    LinkOpen(usize, PathBuf),
    WriteOpen(usize, u64, usize),
    ReadOpen(usize),
    CutOpen(usize, u64),
    PunchOpen(usize, u64, u64),
    ChmodOpen(usize, u32),
}

const SLOTS: usize = 4;
const XATTRS: [&str; 4] = [
    "user.x",
    "user.long name",
    "trusted.t",
    "trusted.overlay.opaque",
];

struct Kinds {
    /// Hard links, renamed directories, `trusted.` xattrs: operations that the kernel allows only
    /// root.
    all: bool,
    /// Files without a name.
    tmpfiles: bool,
}

fn path(rng: &mut Rng) -> PathBuf {
    let depth = 1 + rng.below(3);
    (0..depth).map(|_| *rng.pick(&NAMES)).collect()
}

fn op(rng: &mut Rng, kinds: &Kinds) -> Op {
    let slot = rng.below(SLOTS);
    let xattr = match XATTRS[rng.below(if kinds.all { 4 } else { 2 })] {
        // Where marks can't be set through a mount, another attribute that is not a mark.
        "trusted.overlay.opaque" if !Since::EscapedMarks.is_here() => "trusted.t",
        xattr => xattr,
    };
    let mode = 0o700 | rng.below(0o10000) as u32;
    match rng.below(46) {
        0..=2 => Op::Make(path(rng), rng.below(9000)),
        3 | 4 => Op::Mkdir(path(rng), mode),
        5 => Op::Symlink(path(rng)),
        6 => Op::Fifo(path(rng)),
        7..=9 => Op::Unlink(path(rng)),
        10 => Op::Rmdir(path(rng)),
        11 => Op::RemoveAll(path(rng)),
        12..=16 => Op::Rename(path(rng), path(rng), RenameFlags::empty()),
        17 => Op::Rename(path(rng), path(rng), RenameFlags::EXCHANGE),
        18 => Op::Rename(path(rng), path(rng), RenameFlags::NOREPLACE),
        19 | 20 if kinds.all => Op::Link(path(rng), path(rng)),
        19..=21 => Op::Chmod(path(rng), mode),
        22 => Op::Chown(path(rng), rng.below(3) as u32),
        23 => Op::Times(path(rng), rng.below(1 << 30) as i64),
        24 | 25 => Op::SetXattr(path(rng), xattr, rng.below(200)),
        26 => Op::RemoveXattr(path(rng), xattr),
        27 => Op::Truncate(path(rng), rng.below(12_000) as u64),
        28..=30 => Op::Write(path(rng), rng.below(12_000) as u64, 1 + rng.below(300)),
        31 => Op::List(path(rng)),
        32 => Op::Read(path(rng)),
        33..=36 => Op::Open(slot, path(rng), rng.chance(60)),
        37 if kinds.tmpfiles => Op::Tmpfile(slot, path(rng)),
        37 => Op::ReadOpen(slot),
        38 if kinds.all => Op::LinkOpen(slot, path(rng)),
        38..=41 => Op::WriteOpen(slot, rng.below(12_000) as u64, 1 + rng.below(300)),
        42 | 43 => Op::ReadOpen(slot),
        44 => match rng.below(3) {
            0 => Op::ChmodOpen(slot, mode & 0o777),
            _ => Op::CutOpen(slot, rng.below(12_000) as u64),
        },
        _ => Op::PunchOpen(slot, rng.below(12_000) as u64, 1 + rng.below(6000) as u64),
    }
}

/// One of the two mounts.
struct Side {
    root: PathBuf,
    slots: [Option<File>; SLOTS],
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (seed as usize + at / 3) as u8)
        .collect()
}

/// The kernel still counts a name for a lower file that has lost its last one.
fn about_open(file: &File) -> io::Result<String> {
    let meta = file.metadata()?;
    Ok(format!(
        "{:o} {}:{} {}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.size()
    ))
}

/// A short string that identifies contents.
fn sum(bytes: &[u8]) -> String {
    let sum = bytes
        .iter()
        .fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    format!("{} bytes {sum:x}", bytes.len())
}

fn regular(path: &Path) -> io::Result<()> {
    // Not followed, and without waiting for fifos.
    match path.symlink_metadata()?.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("no file")),
    }
}

fn about(meta: &fs::Metadata) -> String {
    let kind = meta.file_type();
    // The kernel counts 1 for a merged directory; sizes of directories are file-system specific.
    let dir = kind.is_dir();
    let (size, nlink) = if dir {
        (0, 0)
    } else {
        (meta.size(), meta.nlink())
    };
    // Not the times: the kernel's overlay changes them when it opens a metacopy for writing.
    format!(
        "{:o} {}:{} {size} bytes {nlink} links fifo {}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        kind.is_fifo(),
    )
}

impl Side {
    fn open(&self, slot: usize) -> io::Result<&File> {
        self.slots[slot]
            .as_ref()
            .ok_or_else(|| io::Error::other("nothing is open"))
    }

    /// Performs it, and reports the visible result.
    fn run(&mut self, op: &Op) -> io::Result<String> {
        let at = |path: &Path| self.root.join(path);
        let seen = |path: &Path| Ok(about(&fs::symlink_metadata(path)?));
        match op {
            Op::Make(path, length) => {
                let path = at(path);
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&path)?;
                file.write_all_at(&bytes(7, *length), 0)?;
                seen(&path)
            }
            Op::Mkdir(path, mode) => {
                rustix::fs::mkdir(at(path), (*mode).into())?;
                seen(&at(path))
            }
            Op::Symlink(path) => symlink("nowhere", at(path)).and_then(|()| seen(&at(path))),
            Op::Fifo(path) => {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(CWD, at(path), kind, 0o600.into(), 0)?;
                seen(&at(path))
            }
            Op::Unlink(path) => fs::remove_file(at(path)).map(|()| String::new()),
            Op::Rmdir(path) => fs::remove_dir(at(path)).map(|()| String::new()),
            Op::RemoveAll(path) => fs::remove_dir_all(at(path)).map(|()| String::new()),
            Op::Rename(from, to, flags) => {
                rustix::fs::renameat_with(CWD, at(from), CWD, at(to), *flags)?;
                seen(&at(to))
            }
            Op::Link(from, to) => {
                fs::hard_link(at(from), at(to))?;
                seen(&at(to))
            }
            Op::Chmod(path, mode) => {
                // Not through a symbolic link.
                if at(path).symlink_metadata()?.is_symlink() {
                    return Ok(String::new());
                }
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?;
                seen(&at(path))
            }
            Op::Chown(path, id) => {
                lchown(at(path), Some(*id), Some(id + 1))?;
                seen(&at(path))
            }
            Op::Times(path, seconds) => {
                let time = rustix::fs::Timespec {
                    tv_sec: *seconds,
                    tv_nsec: 5,
                };
                let times = rustix::fs::Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(CWD, at(path), &times, flags)?;
                let meta = fs::symlink_metadata(at(path))?;
                let (atime, mtime) = (
                    (meta.atime(), meta.atime_nsec()),
                    (meta.mtime(), meta.mtime_nsec()),
                );
                Ok(format!("{} {atime:?} {mtime:?}", about(&meta)))
            }
            Op::SetXattr(path, name, length) => {
                let value = bytes(1, *length);
                rustix::fs::lsetxattr(at(path), *name, &value, XattrFlags::empty())?;
                let mut got = vec![0; 300];
                let length = rustix::fs::lgetxattr(at(path), *name, &mut got[..])?;
                Ok(sum(&got[..length]))
            }
            Op::RemoveXattr(path, name) => {
                rustix::fs::lremovexattr(at(path), *name)?;
                Ok(String::new())
            }
            Op::Truncate(path, size) => {
                regular(&at(path))?;
                OpenOptions::new()
                    .write(true)
                    .open(at(path))?
                    .set_len(*size)?;
                seen(&at(path))
            }
            Op::Write(path, offset, length) => {
                regular(&at(path))?;
                let file = OpenOptions::new().write(true).open(at(path))?;
                file.write_all_at(&bytes(*offset, *length), *offset)?;
                seen(&at(path))
            }
            Op::List(path) => {
                let mut names: Vec<_> = fs::read_dir(at(path))?
                    .map(|entry| {
                        entry.map(|entry| {
                            (
                                entry.file_name(),
                                entry.file_type().is_ok_and(|kind| kind.is_dir()),
                            )
                        })
                    })
                    .collect::<io::Result<_>>()?;
                names.sort();
                Ok(format!("{names:?}"))
            }
            Op::Read(path) => {
                regular(&at(path))?;
                Ok(sum(&fs::read(at(path))?))
            }
            Op::Open(slot, path, write) => {
                regular(&at(path))?;
                let file = OpenOptions::new().read(true).write(*write).open(at(path))?;
                self.slots[*slot] = Some(file);
                Ok(String::new())
            }
            Op::Tmpfile(slot, path) => {
                use rustix::fs::OFlags;
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                let file = rustix::fs::open(at(path), flags, 0o640.into())?;
                self.slots[*slot] = Some(file.into());
                Ok(String::new())
            }
            Op::LinkOpen(slot, path) => {
                use std::os::fd::AsRawFd;
                let fd = format!("/proc/self/fd/{}", self.open(*slot)?.as_raw_fd());
                let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
                rustix::fs::linkat(CWD, fd, CWD, at(path), follow)?;
                seen(&at(path))
            }
            Op::WriteOpen(slot, offset, length) => {
                let file = self.open(*slot)?;
                file.write_all_at(&bytes(*offset, *length), *offset)?;
                Ok(about_open(file)?)
            }
            Op::ReadOpen(slot) => {
                let file = self.open(*slot)?;
                let mut content = vec![0; 20_000];
                let length = file.read_at(&mut content, 0)?;
                Ok(format!("{} {}", about_open(file)?, sum(&content[..length])))
            }
            Op::CutOpen(slot, size) => {
                let file = self.open(*slot)?;
                file.set_len(*size)?;
                Ok(about_open(file)?)
            }
            Op::PunchOpen(slot, offset, length) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(self.open(*slot)?, flags, *offset, *length)?;
                Ok(String::new())
            }
            Op::ChmodOpen(slot, mode) => {
                let file = self.open(*slot)?;
                file.set_permissions(fs::Permissions::from_mode(*mode))?;
                Ok(about_open(file)?)
            }
        }
    }
}

fn layer(rng: &mut Rng, dir: &Path, depth: usize, link: bool, links: &mut Vec<PathBuf>) {
    fs::create_dir_all(dir).unwrap();
    for name in NAMES {
        let at = dir.join(name);
        match rng.below(10) {
            0..=3 if depth > 0 => layer(rng, &at, depth - 1, link, links),
            4 if link && !links.is_empty() => fs::hard_link(rng.pick(links), &at).unwrap(),
            4..=6 => {
                fs::write(&at, bytes(rng.below(100) as u64, rng.below(9000))).unwrap();
                links.push(at);
            }
            7 => symlink("nowhere", &at).unwrap(),
            _ => {}
        }
    }
}

fn kernel(world: &World, (upper, work): (&str, &str), target: &Path, scratch: &Scratch) {
    let overlay = Overlay {
        lowers: vec![world.lower(""), world.beside("lower-2")],
        upper: Some((world.beside(upper), world.beside(work))),
        ..Overlay::default()
    };
    let features: &[_] = match world.is_user {
        true => &[("userxattr", "")],
        false => &[
            ("redirect_dir", "on"),
            ("metacopy", "on"),
            ("index", "on"),
            ("xino", "on"),
        ],
    };
    let overlay = features
        .iter()
        .fold(overlay, |overlay, (key, value)| overlay.option(key, value));
    // A mount namespace created in the meantime has a copy of the old mount, and the upper is busy.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match overlay.mount(scratch, target) {
            Ok(()) => return,
            Err(said) => assert!(
                said.contains("os error 16") && std::time::Instant::now() < deadline,
                "{said}"
            ),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// `VELLUM_ROUND` is the seed of one round, in which everything is compared after each step, to
/// find where a difference begins.
fn closely() -> bool {
    std::env::var_os("VELLUM_ROUND").is_some()
}

/// Reports every name in a tree.
fn everything(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().display();
            all.push(format!("{name} {}", about(&meta)));
            if meta.is_dir() {
                pending.push(path);
            }
        }
    }
    all.sort();
    all
}

/// The things done in turn.
#[derive(Debug, Clone)]
enum Step {
    Do(Op),
    Remount,
    /// The server is killed, and the union mounted again.
    Crash,
}

fn round(world: &World, seed: u64, count: usize) {
    eprintln!("seed of the round: {seed}");
    let attempts = std::cell::Cell::new(0);
    script::play(|steps| {
        attempts.set(attempts.get() + 1);
        let place = world.beside(format!("round-{seed}-{}", attempts.get()));
        let mut inner = world.inside(&place);
        inner.options.clone_from(&world.options);
        attempt(steps, &mut inner, seed, count);
        drop(inner);
        fs::remove_dir_all(place).unwrap();
    });
}

fn attempt(steps: &mut Script<Step>, world: &mut World, seed: u64, count: usize) {
    let mut rng = Rng::seeded(seed);
    let kinds = Kinds {
        all: !world.is_user,
        tmpfiles: Since::TmpfilesOnOverlays.is_here_for("files without a name beside the kernel's"),
    };
    let scratch = Scratch::new();
    for dir in ["lower-2", "judge-upper", "judge-work", "judge"] {
        fs::create_dir_all(world.beside(dir)).unwrap();
    }
    for lower in [world.lower(""), world.beside("lower-2")] {
        let mut links = Vec::new();
        layer(&mut rng, &lower, 2, kinds.all, &mut links);
    }
    world.more_lowers = vec![world.beside("lower-2")];
    let judge = world.beside("judge");
    kernel(world, ("judge-upper", "judge-work"), &judge, &scratch);
    world.mount();
    let side = |root: PathBuf| Side {
        root,
        slots: Default::default(),
    };
    let (mut ours, mut theirs) = (side(world.at("")), side(judge.clone()));
    let look_after = if steps.is_given() { 1 } else { 50 };
    for step in 0..count {
        let chosen = steps.next(|| match rng.below(100) {
            0 => Step::Remount,
            1 => Step::Crash,
            _ => Step::Do(op(&mut rng, &kinds)),
        });
        match chosen {
            None => break,
            Some(Step::Do(op)) => both(&op, step, &mut ours, &mut theirs),
            Some(again) => {
                ours.slots = Default::default();
                theirs.slots = Default::default();
                match again {
                    Step::Crash => {
                        world.crash();
                        world.mount();
                    }
                    _ => world.remount(),
                }
            }
        }
        if step % look_after == look_after - 1 {
            let wanted = Tree::read(&judge).unwrap();
            let differ = Tree::read(&world.at(""))
                .unwrap()
                .differences(&wanted, IGNORE);
            assert!(differ.is_empty(), "seed {seed} step {step}: {differ:#?}");
        }
    }
    drop((ours, theirs));
    let wanted = Tree::read(&judge).unwrap();
    scratch.unmount(&judge);
    world.remount();
    Tree::read(&world.at(""))
        .unwrap()
        .assert_same(&wanted, IGNORE);
    world.unmount();
    kernel(world, ("upper", "work"), &judge, &scratch);
    Tree::read(&judge).unwrap().assert_same(&wanted, IGNORE);
    scratch.unmount(&judge);
}

/// Performs `op` on both sides.
fn both(op: &Op, step: usize, ours: &mut Side, theirs: &mut Side) {
    let told = |result: io::Result<String>| match result {
        Ok(seen) => seen,
        Err(error) => format!("error {:?}", error.raw_os_error()),
    };
    let (we, they) = (told(ours.run(op)), told(theirs.run(op)));
    let on_slot = match op {
        Op::WriteOpen(slot, ..)
        | Op::ReadOpen(slot)
        | Op::CutOpen(slot, _)
        | Op::PunchOpen(slot, ..)
        | Op::ChmodOpen(slot, _) => Some(*slot),
        _ => None,
    };
    match on_slot {
        // The kernel can't copy up an open lower file whose name now belongs to another file.
        Some(slot) if they == "error Some(17)" => {
            (ours.slots[slot], theirs.slots[slot]) = (None, None);
        }
        _ => assert!(we == they, "step {step}: {op:?}:\nwe   {we}\nthey {they}"),
    }
    if closely() {
        eprintln!("step {step}: {op:?}: {we}");
        let (we, they) = (everything(&ours.root), everything(&theirs.root));
        let differ: Vec<_> = we
            .iter()
            .zip(&they)
            .filter(|(we, they)| we != they)
            .collect();
        assert!(differ.is_empty(), "step {step}: {differ:#?}");
    }
}

#[test]
fn a_mount_does_what_the_kernels_does_step_by_step() {
    let name = "a_mount_does_what_the_kernels_does_step_by_step";
    everywhere(name, |world| {
        if world.is_user {
            // What the kernel allows only root.
            for option in ["noindex", "noredirect", "nometacopy"] {
                world.option(option);
            }
        }
        let mut rng = Rng::for_test(name);
        let slow = std::env::var_os("VELLUM_SLOW").is_some();
        if let Ok(seed) = std::env::var("VELLUM_ROUND") {
            return round(world, seed.parse().unwrap(), 400);
        }
        for _ in 0..if slow { 60 } else { 4 } {
            round(world, rng.next(), 400);
        }
    });
}

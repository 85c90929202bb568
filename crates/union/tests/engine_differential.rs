//! Random operations, each done by the engine and by the kernel's overlayfs on the same lower
//! layers: the same answers, the same tree after each round, live, after a remount, and when the
//! kernel mounts what the engine wrote.

mod engine_support;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_support::{Rig, User, options, user, view};
use rustix::io::Errno;
use vellum_format::Prefix;
use vellum_testkit::kernel::Since;
use vellum_testkit::script::{self, Script};
use vellum_testkit::tree::Ignore;
use vellum_testkit::{FsKind, PlainUser, Rng, Scratch, Tree};
use vellum_union::engine::{Caller, Engine, NewNode, RenameMode, SetAttr};
use vellum_union::{Dialect, DirLayer, Error, Refusal};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Op {
    File(PathBuf, String),
    Mkdir(PathBuf),
    Symlink(PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    Rename(PathBuf, PathBuf, RenameMode),
    Link(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32),
    Xattr(PathBuf, &'static str, u8),
    Truncate(PathBuf, u64),
    Append(PathBuf, u8),
}

fn path(rng: &mut Rng) -> PathBuf {
    let depth = 1 + rng.below(3);
    (0..depth).map(|_| *rng.pick(&NAMES)).collect()
}

fn op(rng: &mut Rng, links: bool) -> Op {
    match rng.below(26) {
        0..=3 => Op::File(path(rng), format!("content {}", rng.below(1000))),
        4..=6 => Op::Mkdir(path(rng)),
        7 => Op::Symlink(path(rng)),
        8..=10 => Op::Unlink(path(rng)),
        11..=12 => Op::Rmdir(path(rng)),
        13..=17 => Op::Rename(path(rng), path(rng), RenameMode::Replace),
        18 => Op::Rename(path(rng), path(rng), RenameMode::Exchange),
        19 => Op::Rename(path(rng), path(rng), RenameMode::NoReplace),
        20 if links => Op::Link(path(rng), path(rng)),
        20 | 21 => Op::Chmod(path(rng), rng.below(0o10000) as u32),
        22 => Op::Chown(path(rng), rng.below(3) as u32),
        23 => {
            // If marks can't be set through a mount, use an ordinary xattr.
            let mark = match Since::EscapedMarks.is_here() {
                true => "trusted.overlay.opaque",
                false => "trusted.x",
            };
            let names = ["user.x", mark, "user.overlay.x", "security.y"];
            let at = rng.below(names.len());
            Op::Xattr(path(rng), names[at], rng.below(200) as u8)
        }
        24 => Op::Truncate(path(rng), rng.below(20) as u64),
        _ => Op::Append(path(rng), rng.below(200) as u8),
    }
}

fn errno(error: &Error) -> i32 {
    let errno = match error {
        Error::Io { source, .. } => return source.errno().unwrap_or(0),
        Error::Refused { refusal } => match refusal {
            Refusal::NotFound => Errno::NOENT,
            Refusal::Exists => Errno::EXIST,
            Refusal::NotADirectory => Errno::NOTDIR,
            Refusal::IsADirectory => Errno::ISDIR,
            Refusal::NotEmpty => Errno::NOTEMPTY,
            Refusal::NotPermitted => Errno::PERM,
            Refusal::CrossDevice => Errno::XDEV,
            Refusal::Invalid => Errno::INVAL,
            other => panic!("{other}"),
        },
        other => panic!("{other}: {:?}", std::error::Error::source(other)),
    };
    errno.raw_os_error()
}

fn by_engine(user: &User<'_>, op: &Op) -> Result<(), Error> {
    match op {
        Op::File(path, content) => {
            let held = user.make(path, NewNode::File, 0o644)?;
            user.engine
                .privileged()
                .write(held.node, 0, content.as_bytes(), false)?;
            Ok(())
        }
        Op::Mkdir(path) => user.mkdir(path),
        Op::Symlink(path) => user
            .make(path, NewNode::Symlink("target".into()), 0o777)
            .map(drop),
        Op::Unlink(path) => user.unlink(path),
        Op::Rmdir(path) => user.rmdir(path),
        Op::Rename(from, to, mode) => user.rename_as(from, to, *mode),
        Op::Link(from, to) => user.link(from, to),
        Op::Chmod(path, mode) => user.chmod(path, *mode).map(drop),
        Op::Chown(path, id) => {
            let change = SetAttr {
                uid: Some(*id),
                gid: Some(id + 1),
                ..SetAttr::default()
            };
            user.set(path, change).map(drop)
        }
        Op::Xattr(path, name, value) => {
            let held = user.find(path)?;
            let any = vellum_sys::xattr::SetMode::Any;
            user.engine
                .privileged()
                .set_xattr(held.node, name.as_ref(), &[*value], any)
        }
        Op::Truncate(path, size) => {
            let held = user.find(path)?;
            let change = SetAttr {
                size_bytes: Some(*size),
                ..SetAttr::default()
            };
            user.engine
                .privileged()
                .set_attr(held.node, &change)
                .map(drop)
        }
        Op::Append(path, byte) => {
            let held = user.find(path)?;
            let size = user.engine.attr(held.node)?.size_bytes;
            user.engine
                .privileged()
                .write(held.node, size, &[*byte], false)
                .map(drop)
        }
    }
}

fn by_kernel(root: &Path, op: &Op) -> std::io::Result<()> {
    use std::fs;
    let at = |path: &PathBuf| root.join(path);
    match op {
        Op::File(path, content) => {
            use std::io::Write;
            let mut file = fs::File::create_new(at(path))?;
            file.write_all(content.as_bytes())
        }
        Op::Mkdir(path) => fs::create_dir(at(path)),
        Op::Symlink(path) => std::os::unix::fs::symlink("target", at(path)),
        Op::Unlink(path) => fs::remove_file(at(path)),
        Op::Rmdir(path) => fs::remove_dir(at(path)),
        Op::Rename(from, to, mode) => {
            use rustix::fs::RenameFlags;
            let flags = match mode {
                RenameMode::Replace => RenameFlags::empty(),
                RenameMode::NoReplace => RenameFlags::NOREPLACE,
                RenameMode::Exchange => RenameFlags::EXCHANGE,
                RenameMode::Whiteout => RenameFlags::WHITEOUT,
            };
            let cwd = rustix::fs::CWD;
            Ok(rustix::fs::renameat_with(
                cwd,
                at(from),
                cwd,
                at(to),
                flags,
            )?)
        }
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Chmod(path, _) if at(path).is_symlink() => Err(Errno::OPNOTSUPP.into()),
        Op::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)),
        Op::Chown(path, id) => std::os::unix::fs::lchown(at(path), Some(*id), Some(id + 1)),
        Op::Xattr(path, name, value) => {
            let path = CString::new(at(path).as_os_str().as_bytes()).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            Ok(rustix::fs::lsetxattr(&path, *name, &[*value], flags)?)
        }
        Op::Truncate(path, size) => {
            // Don't follow links, and don't wait for a fifo.
            check_regular(&at(path))?;
            fs::OpenOptions::new()
                .write(true)
                .open(at(path))?
                .set_len(*size)
        }
        Op::Append(path, byte) => {
            use std::io::Write;
            check_regular(&at(path))?;
            let mut file = fs::OpenOptions::new().append(true).open(at(path))?;
            file.write_all(&[*byte])
        }
    }
}

fn check_regular(path: &Path) -> std::io::Result<()> {
    let kind = path.symlink_metadata()?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(Errno::ISDIR.into()),
        _ => Err(Errno::INVAL.into()),
    }
}

/// Returns whether two different answers are both right.
fn alike(op: &Op, engine: i32, kernel: i32) -> bool {
    let one_of = |errno: Errno, others: &[Errno]| {
        engine == errno.raw_os_error() && others.iter().any(|other| other.raw_os_error() == kernel)
    };
    engine == kernel
        // The VFS checks the path of the second name before it looks for the first, and similar.
        || one_of(Errno::NOENT, &[Errno::NOTDIR, Errno::XDEV, Errno::LOOP])
        || one_of(Errno::NOTDIR, &[Errno::NOENT, Errno::LOOP])
        || matches!(op, Op::Rename(..) | Op::Link(..)) && engine != 0 && kernel != 0
        // Writing to something that is not a file: the engine gets a node, the kernel opens first.
        || matches!(op, Op::Append(..) | Op::Truncate(..)) && engine != 0 && kernel != 0
        // Symbolic links have no user xattrs, for which there are two errors.
        || matches!(op, Op::Xattr(..)) && engine != 0 && kernel != 0
}

fn layer(rng: &mut Rng, dir: &Path, depth: usize) {
    for name in NAMES {
        let at = dir.join(name);
        match rng.below(10) {
            0..=3 if depth > 0 => {
                std::fs::create_dir(&at).unwrap();
                layer(rng, &at, depth - 1);
            }
            4..=6 => std::fs::write(&at, format!("lower {}", rng.below(1000))).unwrap(),
            7 => std::os::unix::fs::symlink("nowhere", &at).unwrap(),
            _ => {}
        }
    }
}

fn ignore() -> Ignore {
    Ignore {
        // The two are not changed at the same moment.
        mtimes: true,
        ..Ignore::default()
    }
}

/// One step of a run.
#[derive(Debug, Clone)]
enum Step {
    Do(Op),
    /// The engine is closed and opened again.
    Reopen,
}

fn round(rng: &mut Rng, kind: FsKind, links: bool, count: usize) {
    let seed = rng.next();
    script::play(|steps| attempt(steps, &mut Rng::seeded(seed), kind, links, count));
}

fn attempt(steps: &mut Script<Step>, rng: &mut Rng, kind: FsKind, links: bool, count: usize) {
    let Some(rig) = Rig::on(kind, 2) else { return };
    for lower in &rig.lowers {
        layer(rng, lower, 2);
    }
    let (judge_upper, judge_work) = (rig.scratch.dir("fs/ju"), rig.scratch.dir("fs/jw"));
    let merged = rig.mount_kernel(&judge_upper, &judge_work);
    let open = || rig.open();
    let mut engine = open();
    let look_after = if steps.is_given() { 1 } else { 20 };
    for step in 0..count {
        let chosen = steps.next(|| match rng.chance(3) {
            true => Step::Reopen,
            false => Step::Do(op(rng, links)),
        });
        match chosen {
            None => break,
            Some(Step::Reopen) => {
                engine.close().unwrap();
                engine = open();
            }
            Some(Step::Do(op)) => {
                same_answer(
                    &op,
                    step,
                    by_engine(&user(&engine), &op),
                    by_kernel(&merged, &op),
                );
            }
        }
        if step % look_after == look_after - 1 {
            let kernel = Tree::read(&merged).unwrap();
            let differ = view(&engine).differences(&kernel, ignore());
            assert!(differ.is_empty(), "step {step}: {differ:#?}");
        }
    }
    let live = view(&engine);
    let numbers: Vec<_> = live.entries.values().map(|entry| entry.identity).collect();
    engine.close().unwrap();
    let kernel = Tree::read(&merged).unwrap();
    rig.scratch.unmount(&merged);
    live.assert_same(&kernel, ignore());
    let engine = open();
    let again = view(&engine);
    again.assert_same(&live, Ignore::default());
    let after: Vec<_> = again.entries.values().map(|entry| entry.identity).collect();
    assert_eq!(numbers, after, "inode numbers after a remount");
    engine.close().unwrap();
    let differ = rig.kernel().differences(&live, Ignore::default());
    assert!(differ.is_empty(), "mounted by the kernel: {differ:#?}");
}

/// How many rounds: few by default, more on request.
fn rounds() -> usize {
    let asked = std::env::var("VELLUM_ROUNDS").ok();
    asked.map_or(12, |asked| {
        asked.parse().expect("VELLUM_ROUNDS is a number")
    })
}

#[test]
fn the_engine_does_what_the_kernel_does() {
    let mut rng = Rng::for_test("engine against kernel");
    for _ in 0..rounds() {
        round(&mut rng, FsKind::Ext4, false, 120);
    }
}

#[test]
fn the_engine_does_what_the_kernel_does_with_hard_links() {
    let mut rng = Rng::for_test("engine against kernel, links");
    for _ in 0..rounds() {
        round(&mut rng, FsKind::Ext4, true, 120);
    }
}

#[test]
fn the_engine_does_what_the_kernel_does_on_other_file_systems() {
    let mut rng = Rng::for_test("engine against kernel, elsewhere");
    for kind in [FsKind::Tmpfs, FsKind::Xfs, FsKind::Btrfs] {
        // The kernel refuses an index whose handles don't name the file system.
        if kind == FsKind::Tmpfs && !Since::EveryUuid.is_here_for("an upper on tmpfs with index=on")
        {
            continue;
        }
        for _ in 0..rounds().div_ceil(6) {
            round(&mut rng, kind, true, 120);
        }
    }
}

/// The test below as its user sees it: this program, run as that user.
#[test]
fn as_a_plain_user() {
    let Some(place) = std::env::var_os("VELLUM_TEST_AS_USER") else {
        return;
    };
    assert_ne!(rustix::process::geteuid().as_raw(), 0);
    let place = PathBuf::from(place);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let rng = Rng::for_test("engine of a plain user");
    let attempts = std::cell::Cell::new(0);
    script::play(|steps| {
        attempts.set(attempts.get() + 1);
        let place = place.join(attempts.get().to_string());
        std::fs::create_dir(&place).unwrap();
        attempt_of_a_plain_user(steps, &mut rng.clone(), &place);
    });
}

fn attempt_of_a_plain_user(steps: &mut Script<Step>, rng: &mut Rng, place: &Path) {
    let at = |name: &str| place.join(name);
    for name in ["l", "u", "w", "plain"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    layer(rng, &at("l"), 2);
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(at("l").join("."))
        .arg(at("plain"))
        .status();
    assert!(copied.unwrap().success());
    let open = || {
        let mut options = options(&[at("l")], &at("u"), &at("w"));
        if let Some(upper) = &mut options.upper {
            upper.prefix = Prefix::User;
        }
        let kernel = Dialect::kernel(Prefix::User);
        options.lowers = vec![Arc::new(DirLayer::open(&at("l"), kernel).unwrap())];
        Engine::open(options).unwrap()
    };
    // As the kernel leaves it: without any permissions, although the user owns it.
    std::fs::create_dir(at("w").join("work")).unwrap();
    let nothing = PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(at("w").join("work"), nothing).unwrap();
    let mut engine = open();
    let caller = Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        umask: 0o022,
    };
    let look_after = if steps.is_given() { 1 } else { 20 };
    for step in 0..1500 {
        let chosen = steps.next(|| match (rng.chance(2), op(rng, true)) {
            (true, _) => Step::Reopen,
            // If a user may not search a directory, neither may the engine.
            (false, Op::Chmod(path, mode)) => Step::Do(Op::Chmod(path, mode | 0o700)),
            (false, op) => Step::Do(op),
        });
        match chosen {
            None => break,
            Some(Step::Reopen) => {
                engine.close().unwrap();
                engine = open();
            }
            Some(Step::Do(op)) => {
                let user = User {
                    engine: &engine,
                    caller,
                };
                same_answer(
                    &op,
                    step,
                    by_engine(&user, &op),
                    by_kernel(&at("plain"), &op),
                );
            }
        }
        if step % look_after == look_after - 1 {
            let plain = Tree::read(&at("plain")).unwrap();
            let differ = view(&engine).differences(&plain, ignore());
            assert!(differ.is_empty(), "step {step}: {differ:#?}");
        }
    }
    engine.close().unwrap();
}

/// Asserts that both sides give the same answer.
fn same_answer(op: &Op, step: usize, ours: Result<(), Error>, theirs: std::io::Result<()>) {
    let ours = ours.as_ref().map_or_else(errno, |()| 0);
    let theirs = theirs.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0);
    let what = format!("step {step}: {op:?}: engine {ours}, the other {theirs}");
    assert!(alike(op, ours, theirs), "{what}");
}

#[test]
fn a_plain_users_union_is_like_any_directory() {
    let scratch = Scratch::new();
    let Some(user) = PlainUser::with_one_id(&scratch) else {
        return;
    };
    let place = user.home().join("layers");
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(user.id), Some(user.id)).unwrap();
    let program = user.borrow_program(&std::env::current_exe().unwrap());
    let mut at = std::ffi::OsString::from("VELLUM_TEST_AS_USER=");
    at.push(&place);
    let seed =
        std::env::var("VELLUM_SEED").map_or(String::new(), |seed| format!("VELLUM_SEED={seed}"));
    let run = user
        .command("env")
        .arg(at)
        .args((!seed.is_empty()).then_some(seed))
        .arg(program)
        .args(["--exact", "as_a_plain_user", "--nocapture"])
        .output()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        run.status.success(),
        "{}\n{}",
        said(&run.stdout),
        said(&run.stderr)
    );
    assert!(
        said(&run.stdout).contains("1 passed"),
        "{}",
        said(&run.stdout)
    );
}

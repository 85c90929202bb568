//! Each kind of change, with the process killed, or a system call failing, at every call it makes: afterwards there is
//! what was before or what was wanted, for a fresh engine and for the kernel, and nothing is left in the staging
//! directory.
//!
//! The change is made by this very program, started again under strace as the test `child`.

mod engine_support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use engine_support::{Rig, User, options, user, view};
use vellum_format::Prefix;
use vellum_testkit::Tree;
use vellum_testkit::fault::{self, Effect};
use vellum_testkit::tree::Ignore;
use vellum_union::engine::{
    Durability, Engine, EngineOptions, NewNode, NodeId, RenameMode, SetAttr,
};
use vellum_union::{Error, Records, Refusal, Result, WhNames};

/// What is done beforehand, undisturbed, and what is done then.
type Case = (
    &'static str,
    fn(&User<'_>) -> Result<()>,
    fn(&User<'_>) -> Result<()>,
);

fn nothing(_: &User<'_>) -> Result<()> {
    Ok(())
}

const CASES: &[Case] = &[
    ("create", nothing, |u| {
        u.make("new", NewNode::File, 0o640).map(drop)
    }),
    ("create in a lower directory", nothing, |u| {
        u.make("a/b/new", NewNode::Dir, 0o750).map(drop)
    }),
    (
        "create over a whiteout",
        |u| u.unlink("f"),
        |u| u.make("f", NewNode::File, 0o640).map(drop),
    ),
    (
        "make a directory over a whiteout",
        |u| {
            u.unlink("c/w")?;
            u.rmdir("c")
        },
        |u| u.mkdir("c"),
    ),
    ("chmod", nothing, |u| u.chmod("a/b/y", 0o600).map(drop)),
    ("truncate", nothing, |u| {
        let size_bytes = Some(1);
        u.set(
            "a/x",
            SetAttr {
                size_bytes,
                ..SetAttr::default()
            },
        )
        .map(drop)
    }),
    ("unlink", nothing, |u| u.unlink("f")),
    (
        "unlink a copy",
        |u| u.chmod("f", 0o600).map(drop),
        |u| u.unlink("f"),
    ),
    ("unlink a hard link", nothing, |u| u.unlink("h1")),
    ("chmod a hard link", nothing, |u| {
        u.chmod("h1", 0o600).map(drop)
    }),
    (
        "unlink the last hard link",
        |u| {
            u.unlink("h1")?;
            u.unlink("h2")
        },
        |u| u.unlink("a/h3"),
    ),
    (
        "rmdir",
        |u| {
            u.mkdir("a/n")?;
            u.unlink("a/b/y")?;
            u.unlink("a/b/z")
        },
        |u| u.rmdir("a/b"),
    ),
    ("link", nothing, |u| u.link("f", "a/l")),
    (
        "link a hard link over a whiteout",
        |u| u.unlink("c/w"),
        |u| u.link("h2", "c/w"),
    ),
    ("rename a file", nothing, |u| u.rename("f", "c/f")),
    ("rename a file over another", nothing, |u| {
        u.rename("a/x", "f")
    }),
    ("rename a directory", nothing, |u| u.rename("a", "c/a")),
    (
        "rename a directory over an empty one",
        |u| {
            u.unlink("c/w")?;
            u.mkdir("n")?;
            u.file("n/1", "1")
        },
        |u| u.rename("n", "c"),
    ),
    (
        "rename a directory over a whiteout",
        |u| {
            u.rename("a", "q")?;
            u.mkdir("n")
        },
        |u| u.rename("n", "a"),
    ),
    ("make a link", nothing, |u| {
        u.make("a/l", NewNode::Symlink("x".into()), 0o777).map(drop)
    }),
    (
        "make a device over a whiteout",
        |u| u.unlink("f"),
        |u| u.make("f", NewNode::Char(1, 3), 0o600).map(drop),
    ),
    (
        "link a file without a name",
        |u| u.unlink("c/w"),
        |u| {
            let dir = u.find("c")?;
            let made = u.hold(u.engine.privileged().tmpfile(dir.node, 0o644, &u.caller)?);
            let entry = u
                .engine
                .privileged()
                .link(made.node, dir.node, OsStr::new("w"))?;
            u.hold(entry);
            Ok(())
        },
    ),
    ("set an xattr", nothing, |u| {
        let held = u.find("c/w")?;
        let any = vellum_sys::xattr::SetMode::Any;
        u.engine
            .privileged()
            .set_xattr(held.node, OsStr::new("user.x"), b"1", any)
    }),
    (
        "rmdir of a lower directory",
        |u| u.unlink("c/w"),
        |u| u.rmdir("c"),
    ),
    ("exchange a file and a directory", nothing, |u| {
        u.rename_as("f", "a/b", RenameMode::Exchange)
    }),
    ("exchange", nothing, |u| {
        u.rename_as("a", "c", RenameMode::Exchange)
    }),
];

/// The calls that change something. strace counts each by itself.
const CHANGING: &[&str] = &[
    "mkdirat",
    "mknodat",
    "renameat",
    "renameat2",
    "linkat",
    "symlinkat",
    "unlinkat",
    "write",
    "pwrite64",
    "ftruncate",
    "truncate",
    "copy_file_range",
    "fsync",
    "fdatasync",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "fchownat",
    "fchown",
    "fchmodat",
    CHMOD,
    "fchmod",
    "utimensat",
    "openat",
    "openat2",
];

/// What only reads can't crash anything, but it can fail.
const READING: &[&str] = &[
    "getxattr",
    "lgetxattr",
    "fgetxattr",
    "listxattr",
    "llistxattr",
    "flistxattr",
    "statx",
    "getdents64",
    "name_to_handle_at",
];

/// Younger than some straces.
const CHMOD: &str = "fchmodat2";

/// The kinds of calls that this strace knows.
fn known() -> Vec<&'static str> {
    static KNOWN: OnceLock<Vec<&str>> = OnceLock::new();
    KNOWN.get_or_init(ask).clone()
}

fn ask() -> Vec<&'static str> {
    let chmod = Command::new("strace")
        .args(["-qq", "-e", "trace=fchmodat2", "true"])
        .stderr(std::process::Stdio::null())
        .status();
    let knows_chmod = chmod.is_ok_and(|status| status.success());
    if !knows_chmod {
        vellum_testkit::untested("fchmodat2 killed or failing", "strace does not know it");
    }
    let mut known = [CHANGING, READING].concat();
    known.retain(|&calls| calls != CHMOD || knows_chmod);
    known
}

/// Between looks at these the change is made.
const BEGIN: &str = "/vellum-test-the-change-begins";
const END: &str = "/vellum-test-the-change-ends";

/// What the directories begin with in which whiteouts are names.
const BY_NAME: &str = "names";
/// The same, where owners and modes are recorded.
const RECORDED: &str = "records";
/// The kernel's own.
const PLAIN: &str = "plain";

fn full(rig_lowers: &[PathBuf], at: &Path) -> EngineOptions {
    let mut options = options(rig_lowers, &at.join("u"), &at.join("w"));
    if let Some(upper) = &mut options.upper {
        upper.durability = Durability::Full;
        let name = at.file_name().unwrap().to_str().unwrap();
        match name.split_once('-') {
            Some((BY_NAME, _)) => upper.wh_names = WhNames::Whiteouts,
            Some((RECORDED, _)) => (upper.records, upper.prefix) = (Records::Read, Prefix::User),
            _ => {}
        }
    }
    options
}

#[test]
fn child() {
    let Some(place) = std::env::var_os("VELLUM_TEST_CHANGE_AT") else {
        return;
    };
    let place = PathBuf::from(place);
    let case = std::env::var("VELLUM_TEST_CHANGE").unwrap();
    let case = CASES.iter().find(|(name, ..)| *name == case).unwrap();
    let base = place.parent().unwrap();
    let lowers = [base.join("l0"), base.join("l1")];
    let engine = Engine::open(full(&lowers, &place)).unwrap();
    let user = user(&engine);
    hold_all(&engine, NodeId::ROOT);
    let _ = std::fs::symlink_metadata(BEGIN);
    let done = case.2(&user);
    let _ = std::fs::symlink_metadata(END);
    // Whatever failed, the union is in use and right.
    let after = user.mkdir("after");
    let live = view(&engine);
    let shown = live.entries.keys().map(|path| path.display().to_string());
    std::fs::write(place.join("live"), shown.collect::<Vec<_>>().join("\n")).unwrap();
    engine.close().unwrap();
    if let Err(error) = done {
        eprintln!(
            "the change failed: {error}: {:?}",
            std::error::Error::source(&error)
        );
    }
    after.unwrap();
}

/// Looks everything up for good, as a kernel with much memory does.
fn hold_all(engine: &Engine, dir: NodeId) {
    for name in engine_support::names(engine, dir).unwrap() {
        let entry = engine.lookup(dir, &name).unwrap().unwrap();
        if entry.attr.kind == vellum_sys::FileKind::Dir {
            hold_all(engine, entry.node);
        }
    }
}

struct Bench {
    rig: Rig,
    runs: usize,
    dialect: &'static str,
}

impl Bench {
    fn new(dialect: &'static str) -> Option<Bench> {
        if !fault::available() {
            return None;
        }
        let rig = Rig::new(2)?;
        rig.scratch.file("fs/l1/a/x", "xyz");
        rig.scratch.file("fs/l1/a/b/y", "y");
        rig.scratch.file("fs/l0/a/b/z", "z");
        rig.scratch.file("fs/l1/c/w", "w");
        rig.scratch.file("fs/l1/f", "f");
        let link = rig.scratch.file("fs/l0/h1", "h");
        std::fs::hard_link(&link, rig.base.join("l0/h2")).unwrap();
        std::fs::hard_link(&link, rig.base.join("l0/a/h3")).unwrap();
        Some(Bench {
            rig,
            runs: 0,
            dialect,
        })
    }

    /// A new upper, with what the case wants done beforehand.
    fn prepare(&mut self, case: &Case) -> PathBuf {
        self.runs += 1;
        let place = self
            .rig
            .scratch
            .dir(format!("fs/{}-{}", self.dialect, self.runs));
        std::fs::create_dir(place.join("u")).unwrap();
        std::fs::create_dir(place.join("w")).unwrap();
        let engine = Engine::open(full(&self.rig.lowers, &place)).unwrap();
        case.1(&user(&engine)).unwrap();
        engine.close().unwrap();
        place
    }

    /// The tree with the change not made, and with the change made.
    ///
    /// Nothing if it can't be made in this dialect: moving directories that have something below takes redirects.
    fn both(&mut self, case: &Case) -> Option<[Tree; 2]> {
        let moves = case.0.starts_with("exchange")
            || case.0.starts_with("rename a directory over a whiteout");
        if self.dialect == BY_NAME && moves {
            return None;
        }
        let place = self.prepare(case);
        let engine = Engine::open(full(&self.rig.lowers, &place)).unwrap();
        let old = view(&engine);
        match case.2(&user(&engine)) {
            Err(Error::Refused {
                refusal: Refusal::CrossDevice,
            }) if self.dialect == BY_NAME => return None,
            other => other.unwrap(),
        }
        let new = view(&engine);
        engine.close().unwrap();
        assert!(
            !old.differences(&new, ignore()).is_empty(),
            "{}: nothing changes",
            case.0
        );
        self.gone(&place);
        Some([old, new])
    }

    fn gone(&self, place: &Path) {
        std::fs::remove_dir_all(place).unwrap();
    }

    /// Which calls the change makes: of each kind, the first and the last, counted from the start of the thread.
    fn calls(&mut self, case: &Case) -> Vec<(&'static str, u32, u32)> {
        let place = self.prepare(case);
        let log = self.rig.scratch.join("log");
        let run = Command::new("strace")
            .args(["-f", "-qq", "-y", "-o"])
            .arg(&log)
            .arg(format!("-etrace={},lstat", known().join(",")))
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env("VELLUM_TEST_CHANGE_AT", &place)
            .env("VELLUM_TEST_CHANGE", case.0)
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stdout)
        );
        self.gone(&place);
        let log = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
        let mark = |mark: &str| log.lines().position(|line| line.contains(mark)).unwrap();
        let (begin, end) = (mark(BEGIN), mark(END));
        let thread = log.lines().nth(begin).unwrap().split(' ').next().unwrap();
        let mut counts: BTreeMap<&str, (u32, u32, u32)> = BTreeMap::new();
        for (at, line) in log.lines().enumerate() {
            let mut words = line.split_whitespace();
            if words.next() != Some(thread) {
                continue;
            }
            let call = words.next().unwrap_or_default().split('(').next();
            let mut calls = CHANGING.iter().chain(READING);
            let kind = calls.find(|name| Some(**name) == call);
            let Some(kind) = kind else { continue };
            let (count, first, last) = counts.entry(kind).or_default();
            *count += 1;
            if at > begin && at < end {
                *first = if *first == 0 { *count } else { *first };
                *last = *count;
            }
        }
        let counts = counts.into_iter().filter(|(_, (_, first, _))| *first > 0);
        counts
            .map(|(kind, (_, first, last))| (kind, first, last))
            .collect()
    }

    fn run(&mut self, case: &Case, calls: &str, effect: Effect, n: u32) -> PathBuf {
        let place = self.prepare(case);
        let environment = [
            ("VELLUM_TEST_CHANGE_AT", place.as_os_str()),
            ("VELLUM_TEST_CHANGE", OsStr::new(case.0)),
        ];
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", "child", "--nocapture"];
        let run = fault::run(&program, &arguments, &environment, calls, effect, n);
        assert!(
            run.hit,
            "{}: {calls} {n} was not reached: {}",
            case.0, run.stderr
        );
        place
    }

    #[track_caller]
    fn check(&mut self, what: &str, place: &Path, [old, new]: &[Tree; 2]) {
        let without_after = |mut tree: Tree| {
            tree.entries.remove(Path::new("after"));
            tree
        };
        let is = |tree: &Tree| {
            let to = |wanted: &Tree| tree.differences(wanted, ignore());
            let differ = (to(old), to(new));
            assert!(
                differ.0.is_empty() || differ.1.is_empty(),
                "{what}: neither the old tree: {:#?}\nnor the new: {:#?}",
                differ.0,
                differ.1
            );
            differ.1.is_empty()
        };
        let engine = Engine::open(full(&self.rig.lowers, place)).unwrap();
        let fresh = without_after(view(&engine));
        engine.close().unwrap();
        let is_new = is(&fresh);
        if let Ok(live) = std::fs::read_to_string(place.join("live")) {
            let shown: Vec<_> = live.lines().filter(|path| *path != "after").collect();
            let paths = fresh.entries.keys().map(|path| path.display().to_string());
            assert_eq!(
                shown,
                paths.collect::<Vec<_>>(),
                "{what}: live, and opened again"
            );
        }
        if self.dialect == PLAIN {
            let merged = self.rig.mount_kernel(&place.join("u"), &place.join("w"));
            let kernel = without_after(Tree::read(&merged).unwrap());
            self.rig.scratch.unmount(&merged);
            let seen = is(&kernel);
            assert_eq!(seen, is_new, "{what}: the kernel sees the other tree");
        }
        // The kernel lets go of an upper some time after the unmounting, when another process is just being started.
        let engine = loop {
            match Engine::open(full(&self.rig.lowers, place)) {
                Err(Error::BadUpper { why, .. }) if why.contains("the kernel") => {}
                other => break other.unwrap(),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        engine.close().unwrap();
        let left: Vec<_> = std::fs::read_dir(place.join("w/work"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().starts_with('#'))
            .collect();
        assert!(
            left.is_empty(),
            "{what}: {left:?} is left in the staging directory"
        );
        self.gone(place);
    }
}

fn ignore() -> Ignore {
    Ignore {
        mtimes: true,
        ..Ignore::default()
    }
}

fn every_call(dialect: &'static str, effects: &[Effect], kinds: &[&str]) {
    let Some(mut bench) = Bench::new(dialect) else {
        return;
    };
    let only = std::env::var("VELLUM_TEST_CASE").ok();
    let mut hits = 0;
    for case in CASES {
        if only.as_ref().is_some_and(|only| only != case.0) {
            continue;
        }
        let Some(both) = bench.both(case) else {
            continue;
        };
        for (calls, first, last) in bench.calls(case) {
            if !kinds.contains(&calls) {
                continue;
            }
            for n in first..=last {
                for &effect in effects {
                    let place = bench.run(case, calls, effect, n);
                    let what = format!("{}: {effect:?} at {calls} {n} ({first}..={last})", case.0);
                    bench.check(&what, &place, &both);
                    hits += 1;
                }
            }
        }
    }
    assert!(hits > 0);
    eprintln!("{hits} runs");
}

#[test]
fn killed_at_every_call_there_is_the_old_or_the_new() {
    every_call(PLAIN, &[Effect::Kill], CHANGING);
}

/// The kernel does not read these, so here the engine is alone.
#[test]
fn killed_where_whiteouts_are_names_there_is_the_old_or_the_new() {
    every_call(BY_NAME, &[Effect::Kill], CHANGING);
}

/// Nor does it read these.
#[test]
fn killed_where_owners_are_recorded_there_is_the_old_or_the_new() {
    every_call(RECORDED, &[Effect::Kill], CHANGING);
}

#[test]
fn failing_at_every_call_there_is_the_old_or_the_new() {
    every_call(PLAIN, &[Effect::Fail("EIO")], &[CHANGING, READING].concat());
}

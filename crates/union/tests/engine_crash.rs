//! Each type of change, with the power cut, the process killed or a system call failing at every
//! call it makes: afterwards a fresh engine and the kernel show the old state or the new one, and
//! the staging directory is empty.
//!
//! In this process, with the testkit's fault injection; once for each change also with a real
//! process, which is this program, started again under strace as the test `child`.

mod engine_support;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use engine_support::{Rig, User, forget_upper, options, user, view};
use vellum_format::Prefix;
use vellum_testkit::Tree;
use vellum_testkit::fault;
use vellum_testkit::seam::{self, Counted, Effect};
use vellum_testkit::tree::Ignore;
use vellum_union::engine::{
    Durability, Engine, EngineOptions, NewNode, NodeId, RenameMode, SetAttr,
};
use vellum_union::{Error, Records, Refusal, Result, WhNames};

/// The preparation, undisturbed, and then the change.
type Case = (
    &'static str,
    fn(&User<'_>) -> Result<()>,
    fn(&User<'_>) -> Result<()>,
);

fn nothing(_: &User<'_>) -> Result<()> {
    Ok(())
}

/// Writes a byte, and makes it durable.
fn write(u: &User<'_>, path: &str, offset: u64) -> Result<()> {
    let held = u.find(path)?;
    u.engine
        .privileged()
        .write(held.node, offset, b"W", false)?;
    u.engine.sync(held.node, false)
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
    ("write over a part", nothing, |u| write(u, "a/x", 1)),
    ("append", nothing, |u| write(u, "a/b/y", 1)),
    ("write to a hard link", nothing, |u| write(u, "h2", 0)),
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

/// The prefix of directories in which whiteouts are names.
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

/// Makes the change that its environment names, in a real process that gets killed.
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
    hold_all(&engine, NodeId::ROOT);
    case.2(&user(&engine)).unwrap();
}

/// Looks everything up and forgets nothing, as a kernel with much memory does.
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
        if !seam::available() {
            return None;
        }
        let rig = match dialect {
            RECORDED => Rig::anywhere(2),
            _ => Rig::new(2)?,
        };
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

    fn place(&mut self) -> PathBuf {
        self.runs += 1;
        let name = format!("fs/{}-{}", self.dialect, self.runs);
        self.rig.scratch.dir(name)
    }

    /// Creates a new upper with the case's preparation.
    fn prepare(&mut self, case: &Case) -> PathBuf {
        let place = self.place();
        std::fs::create_dir(place.join("u")).unwrap();
        std::fs::create_dir(place.join("w")).unwrap();
        let engine = Engine::open(full(&self.rig.lowers, &place)).unwrap();
        case.1(&user(&engine)).unwrap();
        engine.close().unwrap();
        place
    }

    /// Returns the tree before the change, and after it.
    ///
    /// `None` if the change can't be made in this dialect: moving directories with something below
    /// needs redirects.
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

    /// An engine that has looked up everything, as under a kernel with much memory.
    fn engine(&self, place: &Path) -> Engine {
        let engine = Engine::open(full(&self.rig.lowers, place)).unwrap();
        hold_all(&engine, NodeId::ROOT);
        engine
    }

    /// Stops the change, or lets it fail, at its n-th call. After a failure the union is still in
    /// use and right.
    fn disturb(&mut self, case: &Case, counted: Counted, n: u32, effect: Effect) -> Disturbed {
        let place = self.prepare(case);
        let engine = self.engine(&place);
        let root = match counted {
            Counted::Changes => &place,
            Counted::All => &self.rig.base,
        };
        let run = seam::run(root, counted, n, effect, || case.2(&user(&engine)));
        let call = run.hit.clone();
        let done = run.value();
        if effect == Effect::Stop {
            return Disturbed {
                place,
                call,
                done,
                live: None,
            };
        }
        user(&engine).mkdir("after").unwrap();
        let live = Some(view(&engine));
        engine.close().unwrap();
        Disturbed {
            place,
            call,
            done,
            live,
        }
    }

    #[track_caller]
    fn check(&self, what: &str, place: &Path, live: Option<Tree>, [old, new]: &[Tree; 2]) -> bool {
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
        if let Some(live) = live {
            let differ = without_after(live).differences(&fresh, ignore());
            assert!(
                differ.is_empty(),
                "{what}: live, and opened again: {differ:#?}"
            );
        }
        if self.dialect == PLAIN {
            let merged = self.rig.mount_kernel(&place.join("u"), &place.join("w"));
            let kernel = without_after(Tree::read(&merged).unwrap());
            self.rig.scratch.unmount(&merged);
            let seen = is(&kernel);
            assert_eq!(seen, is_new, "{what}: the kernel sees the other tree");
        }
        // The kernel releases an upper some time after the unmount if another process is just
        // being started.
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
        is_new
    }
}

/// The result of a change that was disturbed at one of its calls.
struct Disturbed {
    place: PathBuf,
    call: Option<seam::Call>,
    done: Result<()>,
    /// What the engine showed afterwards, if it was still running.
    live: Option<Tree>,
}

fn ignore() -> Ignore {
    Ignore {
        mtimes: true,
        ..Ignore::default()
    }
}

/// Runs the cases that are possible in a dialect, each with the tree before and after.
fn every_case(dialect: &'static str, mut attempt: impl FnMut(&mut Bench, &Case, &[Tree; 2])) {
    let Some(mut bench) = Bench::new(dialect) else {
        return;
    };
    let only = std::env::var("VELLUM_TEST_CASE").ok();
    for case in CASES {
        if only.as_ref().is_some_and(|only| only != case.0) {
            continue;
        }
        if let Some(both) = bench.both(case) {
            attempt(&mut bench, case, &both);
        }
    }
}

fn every_call(dialect: &'static str, counted: Counted, effect: Effect) {
    every_case(dialect, |bench, case, both| {
        let hits = seam::each(2000, |n| {
            let Disturbed {
                place,
                call,
                done,
                live,
            } = bench.disturb(case, counted, n, effect);
            let at = call
                .as_ref()
                .map_or("the end".to_owned(), seam::Call::to_string);
            let what = format!("{}: {effect:?} at call {n}, {at}: {done:?}", case.0);
            let is_new = bench.check(&what, &place, live, both);
            assert!(is_new || done.is_err(), "{what}: it is not there");
            call
        });
        assert!(hits > 0, "{}: nothing was hit", case.0);
    });
}

fn every_moment(dialect: &'static str) {
    every_case(dialect, |bench, case, both| {
        let place = bench.prepare(case);
        let engine = bench.engine(&place);
        let (done, moments) = seam::moments(&place, || case.2(&user(&engine)));
        done.unwrap();
        drop(engine);
        for moment in moments {
            let at = moment
                .before
                .as_ref()
                .map_or("the end".to_owned(), seam::Call::to_string);
            let what = format!(
                "{}: the power is cut before {at}, {:?} lost",
                case.0, moment.loses
            );
            let place = bench.place();
            moment.tree.write_to(&place);
            forget_upper(&place.join("w"));
            bench.check(&what, &place, None, both);
        }
        bench.gone(&place);
    });
}

#[test]
fn a_kill_at_every_call_leaves_the_old_or_the_new() {
    every_call(PLAIN, Counted::Changes, Effect::Stop);
}

/// The kernel does not read these, so only the engine is checked.
#[test]
fn a_kill_with_whiteouts_by_name_leaves_the_old_or_the_new() {
    every_call(BY_NAME, Counted::Changes, Effect::Stop);
}

/// The kernel does not read these either. They need no privilege.
#[test]
fn a_kill_with_recorded_owners_leaves_the_old_or_the_new() {
    every_call(RECORDED, Counted::Changes, Effect::Stop);
}

#[test]
fn a_failure_at_every_call_leaves_the_old_or_the_new() {
    every_call(
        PLAIN,
        Counted::All,
        Effect::Fail(rustix::io::Errno::IO.raw_os_error()),
    );
}

#[test]
fn a_power_cut_at_every_call_leaves_the_old_or_the_new() {
    every_moment(PLAIN);
}

#[test]
fn a_power_cut_with_whiteouts_by_name_leaves_the_old_or_the_new() {
    every_moment(BY_NAME);
}

#[test]
fn a_power_cut_with_recorded_owners_leaves_the_old_or_the_new() {
    every_moment(RECORDED);
}

/// With a real process, at the last call of each type that the change makes.
#[test]
fn a_killed_process_leaves_the_old_or_the_new() {
    if !fault::available() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    every_case(PLAIN, |bench, case, both| {
        let mut hits = 0;
        for calls in [
            "renameat,renameat2",
            "fsetxattr,setxattr,lsetxattr",
            "unlinkat",
            "linkat",
            "mkdirat",
        ] {
            let place = bench.prepare(case);
            let environment = [
                ("VELLUM_TEST_CHANGE_AT", place.as_os_str()),
                ("VELLUM_TEST_CHANGE", OsStr::new(case.0)),
            ];
            let arguments = ["--exact", "child"];
            let run = fault::run(
                &program,
                &arguments,
                &environment,
                calls,
                fault::Effect::Kill,
                1,
            );
            bench.check(
                &format!("{}: killed at {calls}", case.0),
                &place,
                None,
                both,
            );
            hits += usize::from(run.hit);
        }
        assert!(hits > 0, "{}: no kill met it", case.0);
    });
}

//! Files copied up block by block, and settling them, with the process killed or a system call
//! failing at every call, and a real process killed at random moments: afterwards a fresh engine
//! shows the old bytes or the new ones, and so does every program once the upper is settled.
//!
//! The real process is this program, started again as the test `child`.

mod engine_support;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use engine_support::{Rig, options};
use rustix::io::Errno;
use vellum_format::Prefix;
use vellum_sys::Cancel;
use vellum_testkit::FsKind;
use vellum_testkit::rng::Rng;
use vellum_testkit::seam::{self, Counted, Effect};
use vellum_union::engine::{
    Durability, Engine, EngineOptions, NodeId, SetAttr, SettleOptions, Settled, settle,
};
use vellum_union::{Dialect, DirLayer, Layer, Result};

const SIZE: usize = 200_001;
const PUNCH: u32 = 3;

/// One change of the file `f`.
#[derive(Clone, Copy)]
enum Step {
    Write(u64, usize),
    Resize(u64),
    Punch(u64, u64),
    Sync,
}

const STEPS: &[Step] = &[
    Step::Write(70_000, 10),
    Step::Sync,
    Step::Write(12_000, 30_000),
    Step::Punch(20_000, 25_000),
    Step::Resize(150_001),
    Step::Resize(180_000),
    Step::Sync,
    Step::Write(149_990, 30),
    Step::Resize(100_000),
    Step::Write(120_000, 5000),
];

impl Step {
    fn apply(self, number: usize, bytes: &mut Vec<u8>) {
        match self {
            Step::Write(at, length) => {
                let end = at as usize + length;
                bytes.resize(bytes.len().max(end), 0);
                bytes[at as usize..end].fill(0xf0 + number as u8);
            }
            Step::Resize(size) => bytes.resize(size as usize, 0),
            Step::Punch(at, length) => bytes[at as usize..(at + length) as usize].fill(0),
            Step::Sync => {}
        }
    }

    fn perform(self, number: usize, engine: &Engine, node: NodeId) -> Result<()> {
        match self {
            Step::Write(at, length) => {
                let data = vec![0xf0 + number as u8; length];
                let count = engine.privileged().write(node, at, &data, false)?;
                // The file system was full in the middle: writing the rest reports that.
                match count == length {
                    true => Ok(()),
                    false => engine
                        .privileged()
                        .write(node, at + count as u64, &data[count..], false)
                        .map(drop),
                }
            }
            Step::Resize(size) => {
                let change = SetAttr {
                    size_bytes: Some(size),
                    ..SetAttr::default()
                };
                engine.privileged().set_attr(node, &change).map(drop)
            }
            Step::Punch(at, length) => engine.privileged().fallocate(node, PUNCH, at, length),
            Step::Sync => engine.sync(node, true),
        }
    }
}

fn lower_bytes() -> Vec<u8> {
    (0..SIZE).map(|i| (i / 7 % 199) as u8 + 1).collect()
}

/// The file's content after each number of steps.
fn states() -> Vec<Vec<u8>> {
    let mut bytes = lower_bytes();
    let mut states = vec![bytes.clone()];
    for (number, step) in STEPS.iter().enumerate() {
        step.apply(number, &mut bytes);
        states.push(bytes.clone());
    }
    states
}

fn engine_options(lower: &Path, place: &Path) -> EngineOptions {
    let mut options = options(&[lower.to_owned()], &place.join("u"), &place.join("w"));
    let upper = options.upper.as_mut().unwrap();
    upper.blocks_from_bytes = Some(4096);
    upper.durability = Durability::Full;
    options
}

fn settle_place(lower: &Path, place: &Path) -> Result<Settled> {
    let lower = DirLayer::open(lower, Dialect::kernel(Prefix::Trusted)).unwrap();
    let lower: Arc<dyn Layer> = Arc::new(lower);
    let options = SettleOptions {
        upper: place.join("u"),
        work: place.join("w"),
        prefix: Prefix::Trusted,
        lowers: vec![lower],
        data_lowers: Vec::new(),
    };
    settle(&options, &mut |_| {}, &Cancel::new())
}

fn find(engine: &Engine) -> Result<NodeId> {
    let entry = engine.lookup(NodeId::ROOT, OsStr::new("f"))?;
    Ok(entry.expect("it is there").node)
}

/// Makes the changes until one fails, and reports each.
fn change(options: EngineOptions, mut made: impl FnMut(usize)) {
    let Ok(engine) = Engine::open(options) else {
        return;
    };
    let Ok(node) = find(&engine) else { return };
    for (number, step) in STEPS.iter().enumerate() {
        if step.perform(number, &engine, node).is_err() {
            break;
        }
        made(number);
    }
    // A failure here is caused by the crash.
    drop(engine.close());
}

/// Does what its environment says. Each completed step leaves a link.
#[test]
fn child() {
    let Some(place) = std::env::var_os("VELLUM_TEST_BLOCKS_AT") else {
        return;
    };
    let place = PathBuf::from(place);
    let lower = place.parent().unwrap().join("l0");
    if std::env::var_os("VELLUM_TEST_BLOCKS_SETTLE").is_some() {
        drop(settle_place(&lower, &place));
        return;
    }
    change(engine_options(&lower, &place), |number| {
        std::os::unix::fs::symlink("x", place.join(format!("done{number}"))).unwrap();
    });
}

struct Bench {
    rig: Rig,
    lower: PathBuf,
    place: PathBuf,
}

impl Bench {
    fn new() -> Option<Bench> {
        let rig = Rig::on(FsKind::Ext4, 1)?;
        let lower = rig.lowers[0].clone();
        std::fs::write(lower.join("f"), lower_bytes()).unwrap();
        let place = rig.base.join("place");
        Some(Bench { rig, lower, place })
    }

    fn fresh(&self) {
        // Left by the previous run.
        let _ = std::fs::remove_dir_all(&self.place);
        self.rig.scratch.dir("fs/place/u");
        self.rig.scratch.dir("fs/place/w");
    }

    fn options(&self) -> EngineOptions {
        engine_options(&self.lower, &self.place)
    }

    /// How many steps the real process completed.
    fn done(&self) -> usize {
        (0..STEPS.len())
            .take_while(|number| self.place.join(format!("done{number}")).is_symlink())
            .count()
    }

    /// The content that a fresh engine reads.
    fn content(&self) -> Vec<u8> {
        let engine = Engine::open(self.options()).unwrap();
        let node = find(&engine).unwrap();
        let mut bytes = vec![0; SIZE + 1000];
        let count = engine.read(node, 0, &mut bytes).unwrap();
        bytes.truncate(count);
        let size_bytes = engine.attr(node).unwrap().size_bytes;
        assert_eq!(size_bytes, count as u64);
        engine.close().unwrap();
        bytes
    }

    /// Checks that each byte is old or new; the same in a second read, and once settled.
    #[track_caller]
    fn check(&self, states: &[Vec<u8>], done: usize, what: &str) {
        let (old, new) = (&states[done], &states[(done + 1).min(STEPS.len())]);
        let got = self.content();
        assert!(
            got.len() == old.len() || got.len() == new.len() || {
                // A write that was interrupted.
                (old.len()..new.len()).contains(&got.len())
            },
            "{what}: {} bytes after {done} steps",
            got.len()
        );
        for (at, byte) in got.iter().enumerate() {
            let is = |state: &Vec<u8>| state.get(at) == Some(byte);
            assert!(
                is(old) || is(new),
                "{what}: byte {at} is {byte} after {done} steps"
            );
        }
        assert!(self.content() == got, "{what}: it changed by being opened");
        assert!(
            settle_place(&self.lower, &self.place).unwrap().complete,
            "{what}"
        );
        match std::fs::read(self.place.join("u/f")) {
            Ok(settled) => assert!(settled == got, "{what}: settled"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{what}"),
        }
        let maps = self.place.join("w/vellum/blocks");
        let left = std::fs::read_dir(maps).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{what}: maps are left");
        let incompat = self.place.join("w").join("work/incompat");
        assert!(!incompat.exists(), "{what}: kernels are kept away");
    }

    /// Makes all changes, undisturbed.
    fn all_steps(&self) {
        let mut done = 0;
        change(self.options(), |_| done += 1);
        assert_eq!(done, STEPS.len());
    }
}

#[test]
fn a_kill_at_any_call_leaves_old_or_new() {
    changed_at_every_call(Counted::Changes, Effect::Stop);
}

#[test]
fn a_failure_of_any_call_leaves_old_or_new() {
    changed_at_every_call(Counted::All, Effect::Fail(Errno::IO.raw_os_error()));
    changed_at_every_call(
        Counted::Changes,
        Effect::FailFrom(Errno::NOSPC.raw_os_error()),
    );
}

#[test]
fn a_settling_killed_or_failing_at_any_call_can_be_continued() {
    settled_at_every_call(Counted::Changes, Effect::Stop);
    settled_at_every_call(Counted::All, Effect::Fail(Errno::IO.raw_os_error()));
}

fn changed_at_every_call(counted: Counted, effect: Effect) {
    let states = states();
    at_every_call(
        counted,
        effect,
        |bench| bench.fresh(),
        |bench, n, root| {
            let options = bench.options();
            let run = seam::run(root, counted, n, effect, || {
                let mut done = 0;
                change(options, |_| done += 1);
                done
            });
            let what = format!("{effect:?} at call {n}, {:?}", run.hit);
            let hit = run.hit.clone();
            bench.check(&states, run.value(), &what);
            hit
        },
    );
}

fn settled_at_every_call(counted: Counted, effect: Effect) {
    let states = states();
    let begin = |bench: &Bench| {
        bench.fresh();
        bench.all_steps();
    };
    at_every_call(counted, effect, begin, |bench, n, root| {
        let run = seam::run(root, counted, n, effect, || {
            drop(settle_place(&bench.lower, &bench.place)); // it may fail
        });
        bench.check(
            &states,
            STEPS.len(),
            &format!("{effect:?} at call {n}, {:?}", run.hit),
        );
        run.hit
    });
}

fn at_every_call(
    counted: Counted,
    effect: Effect,
    begin: impl Fn(&Bench),
    attempt: impl Fn(&Bench, u32, &Path) -> Option<seam::Call>,
) {
    if !seam::available() {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let root = match counted {
        Counted::Changes => &bench.place,
        Counted::All => &bench.rig.base,
    };
    let hits = seam::each(2000, |n| {
        begin(&bench);
        attempt(&bench, n, root)
    });
    eprintln!("{effect:?} at {hits} calls");
    assert!(hits > 20, "only {hits} calls were hit");
}

#[test]
fn a_kill_at_any_moment_leaves_old_or_new() {
    let Some(bench) = Bench::new() else { return };
    let states = states();
    let mut rng = Rng::for_test("kills at random moments");
    for run in 0..60 {
        let settles = run % 3 == 0;
        bench.fresh();
        if settles {
            bench.all_steps();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child"])
            .stdout(std::process::Stdio::null())
            .env("VELLUM_TEST_BLOCKS_AT", &bench.place);
        if settles {
            command.env("VELLUM_TEST_BLOCKS_SETTLE", "1");
        }
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(60_000) as u64));
        // It may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
        let done = match settles {
            true => STEPS.len(),
            false => bench.done(),
        };
        bench.check(&states, done, &format!("run {run}"));
    }
}

//! Crashes, full disks and concurrent processes: this program runs itself as the victim.
//!
//! A victim that prepares, commits, removes or imports is killed at the first and the third system
//! call of each kind that changes something. The store must then open, hold exactly what it held
//! before or after the step, show every committed layer's data whole, and be free of litter after
//! one gc. The same with calls that fail for lack of space. `faults.rs` does it at every call, in
//! one process.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::steps::*;
use common::*;
use vellum_store::*;
use vellum_testkit::fault::{self, Effect};
use vellum_testkit::{FsKind, Scratch, needs_root, untested};

const STEP: &str = "VELLUM_CRASH_STEP";
const STORE: &str = "VELLUM_CRASH_STORE";
const DRIVER: &str = "VELLUM_CRASH_DRIVER";

/// Creates, commits and removes, as one of many processes; keys of different processes differ,
/// layers are shared.
fn hammer(store: &Store) -> Outcome {
    let me = std::process::id();
    for round in 0..15 {
        let k = key(&format!("{me}/{round}"));
        store.prepare(&k, &kept(Some("base")))?;
        if round % 3 == 0 {
            store.commit(&key(&format!("{me} layer {round}")), &k, Commit::default())?;
            continue;
        }
        store.update(&k, &[LabelChange::Set("round".into(), round.to_string())])?;
        store.remove(
            &k,
            if round % 3 == 1 {
                Sweep::Now
            } else {
                Sweep::Later
            },
        )?;
        if round % 5 == 0 {
            store.gc(false)?;
        }
    }
    import(store)
}

fn run_victim(
    store: &Path,
    driver: DriverKind,
    name: &str,
    calls: &str,
    effect: Effect,
    n: u32,
) -> fault::Run {
    let me = std::env::current_exe().expect("this program");
    let environment = [
        (STEP, OsStr::new(name)),
        (STORE, store.as_os_str()),
        (DRIVER, OsStr::new(driver.as_str())),
    ];
    fault::run::<&str>(&me, &[], &environment, calls, effect, n)
}

fn some_crashes(driver: DriverKind, effect: Effect, steps: &[&str]) {
    let scratch = Scratch::new();
    let model = scratch.join("model");
    pattern(&model, driver);
    let before = holds(&open_at(&model, driver));
    let store = scratch.join("store");
    let mut hits = 0;
    for name in steps {
        // The result of the step when nothing goes wrong.
        copy(&model, &store);
        step(name, &open_at(&store, driver)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let after = holds(&open_at(&store, driver));
        for calls in fault::CHANGES {
            for n in [1, 3] {
                copy(&model, &store);
                let run = run_victim(&store, driver, name, calls, effect, n);
                let context = format!(
                    "{driver} {name}, {effect:?} at {calls} number {n}: {}",
                    run.stderr
                );
                let now = holds(&open_at(&store, driver));
                if is_single(name) {
                    assert!(now == before || now == after, "{context}: {now:?}");
                }
                if run.status.success() {
                    assert_eq!(now, after, "{context}");
                }
                assert_whole(&store, driver, &context);
                hits += usize::from(run.hit);
            }
        }
    }
    println!("  {driver} {effect:?}: {hits} runs were hit");
    // With far fewer the faults no longer reach the steps.
    assert!(hits >= 5 * steps.len(), "{hits} in {steps:?}");
}

fn a_killed_process_loses_nothing_and_leaves_nothing_half_made() {
    if fault::available() {
        some_crashes(DriverKind::Overlay2, Effect::Kill, &STEPS);
        if needs_root("owners and links of whole trees") {
            some_crashes(DriverKind::Overlay, Effect::Kill, &["commit"]);
            some_crashes(DriverKind::Native, Effect::Kill, &["prepare"]);
        }
    }
}

fn calls_that_fail_leave_the_store_whole() {
    if fault::available() {
        some_crashes(
            DriverKind::Overlay2,
            Effect::Fail("ENOSPC"),
            &["prepare", "commit", "import"],
        );
        some_crashes(
            DriverKind::Overlay2,
            Effect::FailFrom("EIO"),
            &["commit", "import", "remove"],
        );
    }
}

fn a_full_disk_loses_nothing_and_work_continues_after_a_gc() {
    if !needs_root("a small file system") {
        return;
    }
    let scratch = Scratch::new();
    let disk = match scratch.file_system("disk", FsKind::Ext4, 16) {
        Ok(disk) => disk,
        Err(why) => return untested("a small file system", why),
    };
    let root = disk.join("store");
    pattern(&root, DriverKind::Overlay2);
    let store = open_at(&root, DriverKind::Overlay2);
    let mut made: Vec<SnapshotKey> = Vec::new();
    let failed = loop {
        let k = key(&format!("fill {}", made.len()));
        let filled = store.prepare(&k, &kept(None)).and_then(|parts| {
            let Shape::Plain { root, .. } = parts.shape else {
                panic!()
            };
            fs::write(root.join("f"), vec![1; 900_000]).map_err(|source| StoreError::Io {
                op: "write",
                path: root,
                source,
            })
        });
        match filled.and_then(|()| {
            store.commit(&key(&format!("full {}", made.len())), &k, Commit::default())
        }) {
            Ok(info) => made.push(info.key),
            Err(error) => break error,
        }
        assert!(made.len() < 100, "the disk never fills");
    };
    assert_eq!(failed.class(), Class::NoSpace, "{failed}");
    // Fill what is left, so that truly nothing fits.
    let rest = scratch_rest(&disk);
    // A commit may succeed: the space for its record is reserved beforehand. Then there is no
    // `work` to remove.
    for name in ["prepare", "import", "container", "remove", "gc", "commit"] {
        let outcome = step_in_child(&root, name);
        println!("  on the full disk, {name}: {}", outcome.trim());
        if name == "remove" {
            assert!(
                outcome.contains("exit status: 0"),
                "removing frees space, so it works on a full disk"
            );
        }
    }
    for layer in &made {
        let bytes = fs::read(content_of(&store, layer, "f")).unwrap();
        assert!(bytes.len() == 900_000 && bytes.iter().all(|b| *b == 1));
    }
    drop(store);
    fs::remove_dir_all(rest).unwrap();
    let store = open_at(&root, DriverKind::Overlay2);
    for layer in &made {
        store.remove(layer, Sweep::Now).unwrap();
    }
    drop(store);
    assert_whole(&root, DriverKind::Overlay2, "after the full disk");
    import(&open_at(&root, DriverKind::Overlay2)).unwrap();
}

/// Fills a disk to the last block and returns the directory that holds the files.
fn scratch_rest(disk: &Path) -> PathBuf {
    let rest = disk.join("rest");
    fs::create_dir(&rest).unwrap();
    for size in [1 << 20, 1 << 16, 1 << 12] {
        for i in 0.. {
            let path = rest.join(format!("{size}-{i}"));
            let filled =
                fs::write(&path, vec![0; size]).and_then(|()| fs::File::open(&path)?.sync_all());
            if filled.is_err() {
                break;
            }
        }
    }
    rest
}

fn victim(root: &Path, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .env(STEP, name)
        .env(STORE, root)
        .env(DRIVER, "overlay2");
    command
}

fn step_in_child(root: &Path, name: &str) -> String {
    let output = victim(root, name).output().expect("a child");
    format!(
        "{} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )
}

fn many_processes_share_a_store() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    // For half of them even the store has not been created in advance.
    let early: Vec<_> = (0..4)
        .map(|_| victim(&root, "open").spawn().expect("a child"))
        .collect();
    for mut child in early {
        assert!(child.wait().expect("a child").success());
    }
    pattern_in(&root);
    let children: Vec<_> = (0..6)
        .map(|_| victim(&root, "hammer").spawn().expect("a child"))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("a child").success());
    }
    let store = open_at(&root, DriverKind::Overlay2);
    let all = holds(&store);
    assert_eq!(
        all.iter().filter(|what| what.contains(" layer ")).count(),
        6 * 5,
        "{all:?}"
    );
    assert_eq!(store.images().unwrap().len(), 1);
    drop(store);
    assert_whole(&root, DriverKind::Overlay2, "after the crowd");
}

fn pattern_in(root: &Path) {
    pattern(root, DriverKind::Overlay2);
}

fn main() {
    let environment = |name| std::env::var_os(name);
    if let (Some(name), Some(root)) = (environment(STEP), environment(STORE)) {
        let driver = environment(DRIVER)
            .and_then(|d| d.to_str()?.parse().ok())
            .unwrap_or_default();
        let options = StoreOptions {
            driver,
            ..StoreOptions::new(root)
        };
        let outcome = Store::open(&options).and_then(|store| match name.to_str() {
            Some("open") => store.uuid().map(drop),
            Some("hammer") => hammer(&store),
            Some(name) => step(name, &store),
            None => Ok(()),
        });
        if let Err(error) = outcome {
            let source = std::error::Error::source(&error)
                .map(|e| format!(": {e}"))
                .unwrap_or_default();
            eprintln!("{error}{source}");
            std::process::exit(1);
        }
        return;
    }
    run_named(&[
        ("many_processes_share_a_store", many_processes_share_a_store),
        (
            "a_full_disk_loses_nothing_and_work_continues_after_a_gc",
            a_full_disk_loses_nothing_and_work_continues_after_a_gc,
        ),
        (
            "a_killed_process_loses_nothing_and_leaves_nothing_half_made",
            a_killed_process_loses_nothing_and_leaves_nothing_half_made,
        ),
        (
            "calls_that_fail_leave_the_store_whole",
            calls_that_fail_leave_the_store_whole,
        ),
    ]);
}

//! Stores of older programs: their content is migrated, whatever interrupts it, and the way back
//! stays open.
//!
//! `fixtures/schema-2.tar.gz` is a store as the last program with schema 2 left it, at its commit
//! 404326b: two drivers, three images, three containers, a volume; every row of it still in
//! SQLite's log, `vellum.db-wal`. This program runs itself as the victim that is killed, as in
//! `crash.rs`.

mod common;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use common::*;
use vellum_store::*;
use vellum_testkit::{
    FsKind, Scratch,
    fault::{self, Effect},
    needs_root, untested,
};

const STEP: &str = "VELLUM_MIGRATION_STEP";
const STORE: &str = "VELLUM_MIGRATION_STORE";

/// Unpacks the store of schema 2 below `scratch`.
fn schema_2(scratch: &Scratch) -> PathBuf {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schema-2.tar.gz");
    let done = Command::new("tar")
        .arg("-xzf")
        .arg(archive)
        .arg("-C")
        .arg(scratch.path())
        .status()
        .expect("tar runs");
    assert!(done.success());
    scratch.join("s")
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to); // the copy of the run before
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.expect("cp runs").success());
}

/// What the store of schema 2 holds, as its own program listed it.
const IMAGES: [(&str, &[&str]); 3] = [
    ("71a73994d828", &["docker.io/library/plain:1"]),
    ("a2d3cb50de6d", &["docker.io/library/base:1"]),
    (
        "d5d9da2b4345",
        &["docker.io/library/app:2", "registry.example/app:stable"],
    ),
];
const CONTAINERS: [(&str, &str); 3] = [
    ("7d7b35d97b2e", "site"),
    ("a7cd3db93cd8", "box"),
    ("c97989f554d1", "flat"),
];

#[track_caller]
fn assert_all_there(store: &Store, context: &str) {
    let images: BTreeSet<(String, Vec<String>)> = store
        .images()
        .unwrap()
        .into_iter()
        .map(|image| (image.id.hex()[..12].to_owned(), image.tags))
        .collect();
    let expect = IMAGES.map(|(id, tags)| {
        (
            id.to_owned(),
            tags.iter().map(|tag| (*tag).to_owned()).collect(),
        )
    });
    assert_eq!(images, expect.into(), "{context}");
    let containers: BTreeSet<(String, String)> = store
        .containers()
        .unwrap()
        .into_iter()
        .map(|container| (container.id[..12].to_owned(), container.name))
        .collect();
    let expect = CONTAINERS.map(|(id, name)| (id.to_owned(), name.to_owned()));
    assert_eq!(containers, expect.into(), "{context}");
    assert_nothing_lost(store, context);
}

/// Images, containers and data are there; names may be older ones, and what was removed since may
/// be back.
#[track_caller]
fn assert_nothing_lost(store: &Store, context: &str) {
    let images = store.images().unwrap();
    for (id, _) in IMAGES {
        assert!(
            images.iter().any(|image| image.id.hex().starts_with(id)),
            "{context}: {id}"
        );
    }
    let containers = store.containers().unwrap();
    for (id, _) in CONTAINERS {
        assert!(
            containers.iter().any(|found| found.id.starts_with(id)),
            "{context}: {id}"
        );
    }
    let data = store.volume("data").unwrap().path;
    assert_eq!(
        fs::read(data.join("f")).unwrap(),
        b"precious\n",
        "{context}"
    );
    let mine = containers
        .iter()
        .find(|found| found.id.starts_with("a7cd3db93cd8"));
    let mine = mine.unwrap().snapshot.clone();
    let layers = store.tree(&mine).unwrap().layers();
    assert_eq!(
        fs::read(layers[0].dir.join("etc/mine")).unwrap(),
        b"mine\n",
        "{context}"
    );
    let two = layers.iter().map(|layer| layer.dir.join("etc/two"));
    assert_eq!(two.filter(|path| path.exists()).count(), 1, "{context}");
}

/// A migrated store: complete, nothing of it collected, all its record files stamped.
#[track_caller]
fn assert_migrated(root: &Path, context: &str) {
    let store = open_at(root, DriverKind::Overlay2);
    assert_eq!(store.rolled_back(), None, "{context}");
    assert_all_there(&store, context);
    let check = CheckOptions {
        deep: true,
        heal: false,
    };
    assert_eq!(store.check(check).unwrap(), [], "{context}");
    for garbage in store.gc(false).unwrap() {
        // Only what a kill left in staging.
        assert!(
            matches!(&garbage.thing, Thing::Path(path) if path.starts_with(root.join("staging"))),
            "{context}: {garbage:?}"
        );
    }
    assert_all_there(&store, context);
    let id = store.uuid().unwrap();
    let mut files = 0;
    for entry in fs::read_dir(root.join("records")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(
            text.contains(&id) && text.contains("\"generation\": "),
            "{context}: {text}"
        );
        files += 1;
    }
    assert_eq!(files, 5 + IMAGES.len() + CONTAINERS.len(), "{context}");
    for old in ["vellum.db-wal", "vellum.db-shm"] {
        assert!(!root.join(old).exists(), "{context}: {old}");
    }
}

fn an_older_store_opens_with_everything_in_it() {
    let scratch = Scratch::new();
    let root = schema_2(&scratch);
    assert_migrated(&root, "migrated");
    assert_migrated(&root, "opened again");
}

/// Runs `step` on copies of `model`, with `effect` at each of its system calls in turn.
fn every_fault(model: &Path, step: &str, effect: Effect, look: impl Fn(&Path, &str)) {
    let me = std::env::current_exe().expect("this program");
    let root = model.with_file_name("victim");
    let mut hits = 0;
    for calls in fault::CHANGES {
        hits += fault::each(400, |n| {
            copy(model, &root);
            let environment = [(STEP, OsStr::new(step)), (STORE, root.as_os_str())];
            let run = fault::run::<&str>(&me, &[], &environment, calls, effect, n);
            look(
                &root,
                &format!("{step}, {effect:?} at {calls} number {n}: {}", run.stderr),
            );
            run
        });
    }
    println!("  {step} {effect:?}: {hits} runs were hit");
    assert!(hits >= 40, "the faults no longer reach the step: {hits}");
}

fn a_migration_cut_short_anywhere_is_finished_by_the_next_command() {
    if !fault::available() {
        return;
    }
    let scratch = Scratch::new();
    let model = schema_2(&scratch);
    for effect in [
        Effect::Kill,
        Effect::Fail("ENOSPC"),
        Effect::FailFrom("EIO"),
    ] {
        every_fault(&model, "open", effect, assert_migrated);
    }
}

fn a_rebuild_cut_short_anywhere_loses_nothing() {
    if !fault::available() {
        return;
    }
    let scratch = Scratch::new();
    let model = schema_2(&scratch);
    drop(open_at(&model, DriverKind::Overlay2));
    // A database that has gone back in time: here the old one must not be used again.
    fs::write(model.join("vellum.db"), b"").unwrap();
    every_fault(&model, "rebuild", Effect::Kill, |root, context| {
        let options = StoreOptions::new(root);
        let store = match Store::open(&options) {
            Ok(store) => store,
            Err(refused) => {
                assert!(refused.lost_its_database(), "{context}: {refused}");
                let (store, rebuilt) = Store::rebuild(&options).unwrap();
                assert_eq!(rebuilt.lost, [], "{context}");
                store
            }
        };
        assert_all_there(&store, context);
        store.gc_rebuilt(false).unwrap();
        assert_all_there(&store, context);
        assert_eq!(
            store.check(CheckOptions::default()).unwrap(),
            [],
            "{context}"
        );
    });
}

/// What an older log lost is not litter: it looks the same as what a crash left, so it is restored
/// and held.
fn rows_that_an_older_log_lost_are_restored_and_nothing_is_deleted() {
    let scratch = Scratch::new();
    let model = schema_2(&scratch);
    let log = fs::read(model.join("vellum.db-wal")).unwrap();
    let frame = 24 + 4096;
    let frames = (log.len() - 32) / frame;
    let (mut opened, mut refused) = (0, 0);
    let root = scratch.join("victim");
    for kept in (0..=frames).step_by(7).chain([frames]) {
        for harm in ["cut", "bad byte"] {
            copy(&model, &root);
            let mut bad = log.clone();
            match harm {
                "cut" => bad.truncate(32 + kept * frame),
                _ if kept < frames => bad[32 + kept * frame + 100] ^= 1,
                _ => continue,
            }
            fs::write(root.join("vellum.db-wal"), &bad).unwrap();
            let context = format!("{harm} after {kept} of {frames} frames");
            let options = StoreOptions::new(&root);
            let store = match Store::open(&options) {
                Ok(store) => {
                    opened += 1;
                    store
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.lost_its_database(), "{context}: {error}");
                    Store::rebuild(&options).unwrap().0
                }
            };
            store.gc(false).unwrap();
            assert_nothing_lost(&store, &context);
        }
    }
    println!("  {opened} opened, {refused} refused");
    assert!(opened > 20 && refused > 0);
}

/// The documented way back: the older program's `check --rebuild` reads the record files.
fn an_older_program_refuses_the_store_by_name_and_can_rebuild_all_of_it() {
    let Some(older) = std::env::var_os("VELLUM_OLDER_PROGRAM") else {
        return untested(
            "going back to the program before",
            "VELLUM_OLDER_PROGRAM names no vellum of commit 404326b",
        );
    };
    let scratch = Scratch::new();
    let root = schema_2(&scratch);
    assert_migrated(&root, "migrated");
    let run_dir = scratch.dir("run");
    let run = |arguments: &[&str]| {
        let output = Command::new(&older)
            .arg("--root")
            .arg(&root)
            .arg("--run-dir")
            .arg(&run_dir)
            .args(arguments)
            .output()
            .expect("the older program runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (done, _, error) = run(&["ls"]);
    assert!(!done && error.contains("made by a newer vellum"), "{error}");
    assert!(run(&["check", "--rebuild", "--force"]).0);
    let (_, containers, _) = run(&["ls"]);
    let (_, images, _) = run(&["images"]);
    for (_, name) in CONTAINERS {
        assert!(containers.contains(name), "{containers}");
    }
    for name in ["plain:1", "base:1", "app:2", "registry.example/app:stable"] {
        assert!(images.contains(name), "{images}");
    }
    assert!(run(&["gc", "--rebuilt"]).0 && run(&["check"]).0);
    assert!(run(&["create", "--name", "later", "app:2"]).0);
    // And forward again.
    let store = open_at(&root, DriverKind::Overlay2);
    assert_eq!(store.rolled_back(), None);
    assert!(store.container("later").is_ok() && store.container("box").is_ok());
    assert_eq!(store.gc(false).unwrap(), []);
}

/// As after the documented way back: the older program's database knows every tree, and has another
/// id than the mark.
fn a_store_that_an_older_program_has_taken_over_is_migrated_again() {
    let scratch = Scratch::new();
    let root = schema_2(&scratch);
    let old = scratch.join("old");
    copy(&root, &old);
    assert_migrated(&root, "once");
    for name in ["vellum.db", "vellum.db-wal"] {
        fs::copy(old.join(name), root.join(name)).unwrap();
    }
    let marks = root.join("generation");
    let mark = fs::read_dir(&marks)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let other = format!("{}-{:016x}", "5".repeat(32), 9);
    fs::rename(mark, marks.join(other)).unwrap();
    assert_migrated(&root, "again");
}

fn an_older_database_restored_after_the_migration_is_noticed() {
    let scratch = Scratch::new();
    let root = schema_2(&scratch);
    let old = scratch.join("old");
    copy(&root, &old);
    let store = open_at(&root, DriverKind::Overlay2);
    let kept = PrepareOptions {
        keep: Keep::UntilRemoved,
        ..on(None)
    };
    store.prepare(&key("later"), &kept).unwrap();
    drop(store);
    for name in ["vellum.db", "vellum.db-wal"] {
        fs::copy(old.join(name), root.join(name)).unwrap();
    }
    let _ = fs::remove_file(root.join("vellum.db-journal"));
    let options = StoreOptions::new(&root);
    let refused = Store::open(&options).unwrap_err();
    assert!(
        matches!(refused, StoreError::RolledBack { .. }),
        "{refused}"
    );
    let (store, rebuilt) = Store::rebuild(&options).unwrap();
    assert_eq!(rebuilt.lost, []);
    assert_all_there(&store, "rebuilt");
    assert!(store.exists(&key("later")).unwrap());
}

/// Its file was created without the flag and is replaced by one that has it; also in a directory
/// whose name is not text.
fn an_older_database_on_btrfs_is_written_in_place_from_then_on() {
    if !needs_root("a file system that copies on write") {
        return;
    }
    let scratch = Scratch::new();
    let disk = match scratch.file_system("disk", FsKind::Btrfs, 128) {
        Ok(disk) => disk,
        Err(why) => return untested("btrfs", why),
    };
    let root = disk.join(OsStr::from_bytes(b"st\xffre"));
    copy(&schema_2(&scratch), &root);
    assert_migrated(&root, "on btrfs");
    for name in ["vellum.db", "vellum.db-journal"] {
        let flags = vellum_sys::flags::get(fs::File::open(root.join(name)).unwrap()).unwrap();
        assert_ne!(flags & vellum_sys::flags::NO_COPY, 0, "{name}: {flags:#x}");
    }
}

fn main() {
    if let (Some(step), Some(root)) = (std::env::var_os(STEP), std::env::var_os(STORE)) {
        let options = StoreOptions::new(root);
        let done = match step.to_str() {
            Some("rebuild") => Store::rebuild(&options).map(drop),
            _ => Store::open(&options).map(drop),
        };
        if let Err(error) = done {
            eprintln!("{error}");
            std::process::exit(1);
        }
        return;
    }
    run_named(&[
        (
            "an_older_store_opens_with_everything_in_it",
            an_older_store_opens_with_everything_in_it,
        ),
        (
            "a_migration_cut_short_anywhere_is_finished_by_the_next_command",
            a_migration_cut_short_anywhere_is_finished_by_the_next_command,
        ),
        (
            "a_rebuild_cut_short_anywhere_loses_nothing",
            a_rebuild_cut_short_anywhere_loses_nothing,
        ),
        (
            "rows_that_an_older_log_lost_are_restored_and_nothing_is_deleted",
            rows_that_an_older_log_lost_are_restored_and_nothing_is_deleted,
        ),
        (
            "an_older_program_refuses_the_store_by_name_and_can_rebuild_all_of_it",
            an_older_program_refuses_the_store_by_name_and_can_rebuild_all_of_it,
        ),
        (
            "an_older_database_on_btrfs_is_written_in_place_from_then_on",
            an_older_database_on_btrfs_is_written_in_place_from_then_on,
        ),
        (
            "a_store_that_an_older_program_has_taken_over_is_migrated_again",
            a_store_that_an_older_program_has_taken_over_is_migrated_again,
        ),
        (
            "an_older_database_restored_after_the_migration_is_noticed",
            an_older_database_restored_after_the_migration_is_noticed,
        ),
    ]);
}

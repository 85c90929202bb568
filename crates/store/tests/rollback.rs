//! A database that goes back in time, belongs to another store, or is gone: nothing is deleted,
//! reading works, a rebuild restores everything.
//!
//! Each test replaces `vellum.db`, like a restored backup, a bad disk or a mistake, and then does
//! what a command would do next.

mod common;
#[path = "common/furnished.rs"]
mod furnished;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use common::*;
use furnished::*;
use vellum_format::Digest;
use vellum_store::*;
use vellum_testkit::Scratch;

fn options(root: &Path) -> StoreOptions {
    StoreOptions::new(root)
}

/// Every path below `root` except the database's: what gc must not touch.
fn paths(root: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("vellum.db") || name == "reserve" {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            all.insert(path);
        }
    }
    all
}

fn save_database(root: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["vellum.db", "vellum.db-journal"] {
        fs::copy(root.join(name), to.join(name)).unwrap();
    }
}

fn put_database_back(from: &Path, root: &Path) {
    for name in ["vellum.db", "vellum.db-journal"] {
        // A new inode, as after a restore.
        fs::remove_file(root.join(name)).unwrap();
        fs::copy(from.join(name), root.join(name)).unwrap();
    }
}

/// In a store whose database has gone back in time nothing is changed and everything can be read.
#[track_caller]
fn assert_only_read(root: &Path, context: &str) {
    let before = paths(root);
    let store = Store::open(&options(root)).unwrap_or_else(|e| panic!("{context}: {e}"));
    assert!(
        store.rolled_back().is_some(),
        "{context}: nothing is noticed"
    );
    let refused = |result: Result<()>| match result {
        Err(StoreError::RolledBack { .. }) => {}
        other => panic!("{context}: {other:?}"),
    };
    refused(store.gc(false).map(drop));
    refused(store.gc(true).map(drop));
    refused(store.sweep().map(drop));
    refused(store.prepare(&key("x"), &on(None)).map(drop));
    refused(store.remove(&key("work"), Sweep::Now));
    refused(store.remove_container("box", Sweep::Now).map(drop));
    refused(store.remove_image(&Digest::of(b"app")).map(drop));
    refused(store.tag("t:1", &Digest::of(b"app")).map(drop));
    refused(store.lease("l").map(drop));
    refused(store.put_blob(b"new", None).map(drop));
    refused(
        store
            .commit(&key("x"), &key("spare"), Commit::default())
            .map(drop),
    );
    refused(store.create_volume("x", &Labels::new()).map(drop));
    let new = NewContainer {
        id: "x".into(),
        name: "x".into(),
        image: None,
        image_name: None,
        config: String::new(),
        volumes: vec![],
    };
    refused(
        store
            .create_container(&new, &key("x"), &on(Some("base")))
            .map(drop),
    );
    refused(store.stage_layer_on(None).map(drop));
    refused(
        store
            .check(CheckOptions {
                heal: true,
                deep: false,
            })
            .map(drop),
    );
    let found = store.check(CheckOptions::default()).unwrap();
    assert!(
        found
            .iter()
            .any(|finding| finding.why.contains("back in time")),
        "{context}: {found:?}"
    );
    holds(&store);
    drop(store);
    assert_same(&paths(root), &before, context);
}

#[track_caller]
fn assert_same(now: &BTreeSet<PathBuf>, before: &BTreeSet<PathBuf>, context: &str) {
    let differ: Vec<_> = now.symmetric_difference(before).collect();
    assert!(differ.is_empty(), "{context}: {differ:?}");
}

#[test]
fn a_restored_database_is_noticed_after_any_change_and_nothing_is_deleted() {
    for name in CHANGES {
        let scratch = Scratch::new();
        let root = scratch.join("store");
        drop(furnish(&root));
        save_database(&root, &scratch.join("backup"));
        let store = open_at(&root, DriverKind::Overlay2);
        change(&store, name);
        let whole = holds(&store);
        drop(store);
        put_database_back(&scratch.join("backup"), &root);
        assert_only_read(&root, name);
        let (store, rebuilt) = Store::rebuild(&options(&root)).unwrap();
        assert_eq!(rebuilt.lost, [], "{name}");
        assert_eq!(holds(&store), whole, "{name}");
        let gone = store.gc(false).unwrap();
        assert_eq!(gone, [], "{name}");
        assert_eq!(store.check(CheckOptions::default()).unwrap(), [], "{name}");
    }
}

#[test]
fn a_lost_mark_leaves_the_record_files_to_prove_it() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    drop(furnish(&root));
    save_database(&root, &scratch.join("backup"));
    let store = open_at(&root, DriverKind::Overlay2);
    // A record file may be one step ahead without any fault.
    for name in ["prepare", "container", "commit"] {
        change(&store, name);
    }
    drop(store);
    put_database_back(&scratch.join("backup"), &root);
    fs::remove_dir_all(root.join("generation")).unwrap();
    assert_only_read(&root, "without a mark");
}

#[test]
fn a_mark_left_behind_by_a_power_loss_proves_nothing() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    drop(furnish(&root));
    let copy = scratch.join("mark");
    let only = |dir: &Path| fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let behind = only(&root.join("generation"));
    fs::create_dir(&copy).unwrap();
    let store = open_at(&root, DriverKind::Overlay2);
    change(&store, "prepare");
    let whole = holds(&store);
    drop(store);
    fs::rename(only(&root.join("generation")), &behind).unwrap();
    let store = open_at(&root, DriverKind::Overlay2);
    assert_eq!(store.rolled_back(), None);
    assert_eq!(store.gc(false).unwrap(), []);
    assert_eq!(holds(&store), whole);
    // Even with the mark as old as the database, the collector still asks the record files.
    save_database(&root, &scratch.join("backup"));
    let behind = only(&root.join("generation"));
    for name in ["commit", "container"] {
        change(&store, name);
    }
    drop(store);
    put_database_back(&scratch.join("backup"), &root);
    fs::rename(only(&root.join("generation")), &behind).unwrap();
    let before = paths(&root);
    let store = open_at(&root, DriverKind::Overlay2);
    let refused = store.gc(false).unwrap_err();
    assert!(
        matches!(refused, StoreError::RolledBack { .. }),
        "{refused}"
    );
    assert!(
        store.prepare(&key("x"), &on(None)).is_err(),
        "it is known from then on"
    );
    assert_same(&paths(&root), &before, "refused");
}

#[test]
fn the_database_of_another_store_is_noticed() {
    let scratch = Scratch::new();
    let (root, other) = (scratch.join("store"), scratch.join("other"));
    let whole = holds(&furnish(&root));
    let stranger = furnish(&other);
    // Further ahead than ours, so that only the id differs.
    for round in 0..30 {
        stranger.put_blob(&[round], None).unwrap();
    }
    drop(stranger);
    save_database(&other, &scratch.join("backup"));
    put_database_back(&scratch.join("backup"), &root);
    assert_only_read(&root, "another store's");
    let (store, rebuilt) = Store::rebuild(&options(&root)).unwrap();
    assert_eq!((rebuilt.lost, holds(&store)), (vec![], whole));
    assert_eq!(store.gc(false).unwrap(), []);
}

#[test]
fn a_store_that_has_held_a_tree_never_opens_as_new() {
    /// What happens to the store's files.
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 8] = [
        ("emptied", |root| {
            fs::write(root.join("vellum.db"), b"").unwrap()
        }),
        ("removed", |root| {
            fs::remove_file(root.join("vellum.db")).unwrap()
        }),
        ("emptied, without a journal", |root| {
            fs::write(root.join("vellum.db"), b"").unwrap();
            fs::remove_file(root.join("vellum.db-journal")).unwrap();
        }),
        ("emptied, without a mark", |root| {
            fs::write(root.join("vellum.db"), b"").unwrap();
            fs::remove_dir_all(root.join("generation")).unwrap();
        }),
        ("emptied, without record files", |root| {
            fs::write(root.join("vellum.db"), b"").unwrap();
            fs::remove_dir_all(root.join("records")).unwrap();
        }),
        ("emptied, with the trees alone", |root| {
            fs::write(root.join("vellum.db"), b"").unwrap();
            fs::remove_dir_all(root.join("records")).unwrap();
            fs::remove_dir_all(root.join("generation")).unwrap();
        }),
        ("emptied, with the mark alone", |root| {
            fs::write(root.join("vellum.db"), b"").unwrap();
            fs::remove_dir_all(root.join("records")).unwrap();
            fs::remove_dir_all(root.join("overlay2")).unwrap();
        }),
        ("replaced by an empty database", |root| {
            fs::remove_file(root.join("vellum.db")).unwrap();
            let empty = rusqlite::Connection::open(root.join("vellum.db")).unwrap();
            empty
                .execute_batch("CREATE TABLE t (x); DROP TABLE t; VACUUM")
                .unwrap();
        }),
    ];
    for (name, harm) in harms {
        let scratch = Scratch::new();
        let root = scratch.join("store");
        drop(furnish(&root));
        harm(&root);
        let before = paths(&root);
        for create in [true, false] {
            let refused = Store::open(&StoreOptions {
                create,
                ..options(&root)
            })
            .unwrap_err();
            assert!(
                matches!(refused, StoreError::NoDatabase { .. }),
                "{name}: {refused}"
            );
            assert!(refused.lost_its_database(), "{name}");
        }
        assert_same(&paths(&root), &before, name);
    }
}

#[test]
fn what_a_rebuild_cannot_restore_is_kept_until_it_is_released() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    let store = furnish(&root);
    let tree = store.stat(&key("spare")).unwrap().tree;
    drop(store);
    fs::write(root.join("vellum.db"), b"").unwrap();
    fs::write(
        root.join("records").join(format!("{}.json", tree.as_str())),
        b"",
    )
    .unwrap();
    let (store, rebuilt) = Store::rebuild(&options(&root)).unwrap();
    assert_eq!(rebuilt.lost.len(), 1, "{:?}", rebuilt.lost);
    let dir = store.driver_home(DriverKind::Overlay2).join(tree.as_str());
    store.gc(false).unwrap();
    assert!(dir.is_dir());
    let would = store.gc_rebuilt(true).unwrap();
    let tree = Thing::Path(dir.clone());
    assert!(would.iter().any(|it| it.thing == tree), "{would:?}");
    assert!(dir.is_dir());
    store.gc_rebuilt(false).unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_server_notices_a_database_that_goes_back_under_it() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    let store = furnish(&root);
    save_database(&root, &scratch.join("backup"));
    change(&store, "prepare");
    change(&store, "container");
    // In place, as `cp` writes: the server's descriptors stay on the file.
    for name in ["vellum.db", "vellum.db-journal"] {
        let bytes = fs::read(scratch.join("backup").join(name)).unwrap();
        fs::write(root.join(name), bytes).unwrap();
    }
    let before = paths(&root);
    let refused = store.remove(&key("work"), Sweep::Now).unwrap_err();
    assert!(
        matches!(refused, StoreError::RolledBack { .. }),
        "{refused}"
    );
    assert!(store.gc(false).is_err());
    assert_same(&paths(&root), &before, "refused");
}

#[test]
fn no_bad_byte_of_the_database_makes_gc_remove_what_is_needed() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    drop(furnish(&root));
    let database = root.join("vellum.db");
    let good = fs::read(&database).unwrap();
    let trees = |root: &Path| {
        let names = fs::read_dir(root.join("overlay2")).unwrap();
        names
            .map(|entry| entry.unwrap().file_name())
            .collect::<BTreeSet<_>>()
    };
    let whole = trees(&root);
    // Headers of every page, where one byte affects many rows, and more between them.
    let offsets = (0..good.len()).filter(|at| at % 4096 < 12 || at % 509 == 0);
    let mut tried = 0;
    for at in offsets {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        fs::write(&database, &bad).unwrap();
        if let Ok(store) = Store::open(&options(&root)) {
            // A page may be unused: then nothing is wrong, and nothing is removed.
            let _ = store.gc(false);
        }
        assert_eq!(trees(&root), whole, "byte {at}");
        fs::write(&database, &good).unwrap();
        let _ = fs::remove_dir_all(root.join("generation")); // a good run may have moved it
        tried += 1;
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn stale_record_files_are_rewritten_by_the_next_command() {
    type Change = fn(&Store);
    let changes: [(&str, Change); 3] = [
        ("\"name\": \"crate\"", |store| {
            store.rename_container("box", "crate").unwrap()
        }),
        ("app:2", |store| {
            store.tag("app:2", &Digest::of(b"app")).unwrap();
        }),
        ("\"k\": \"v\"", |store| {
            let label = LabelChange::Set("k".into(), "v".into());
            store.update(&key("work"), &[label]).unwrap();
        }),
    ];
    for (text, change) in changes {
        let scratch = Scratch::new();
        let root = scratch.join("store");
        let store = furnish(&root);
        change(&store);
        let whole = holds(&store);
        drop(store);
        // The state after a command that was killed before its file had the name, or whose file a
        // bad disk has lost.
        let records = fs::read_dir(root.join("records")).unwrap();
        let written: Vec<PathBuf> = records
            .map(|entry| entry.unwrap().path())
            .filter(|path| fs::read_to_string(path).unwrap().contains(text))
            .collect();
        assert_eq!(written.len(), 1, "{text}");
        fs::write(&written[0], b"").unwrap();
        drop(open_at(&root, DriverKind::Overlay2));
        fs::remove_file(root.join("vellum.db")).unwrap();
        let (store, rebuilt) = Store::rebuild(&options(&root)).unwrap();
        assert_eq!((rebuilt.lost, holds(&store)), (vec![], whole), "{text}");
    }
}

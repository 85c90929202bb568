//! Broken parents in the database and in record files: every call ends and names them, and nothing
//! is deleted.

mod common;

use std::fs;

use common::{key, on, open};
use rusqlite::{Connection, params};
use vellum_store::{
    CheckOptions, Class, Commit, DriverKind, Finding, LayerCommit, Store, StoreOptions,
};
use vellum_testkit::Scratch;

/// A store with a chain of layers, `l0` at the bottom, and a writable snapshot `box` on the top
/// one.
fn chain(scratch: &Scratch, layers: usize) -> Store {
    let store = open(scratch, DriverKind::Overlay2);
    let mut parent = None;
    for at in 0..layers {
        let name = format!("l{at}");
        let staged = store.stage_layer(None).unwrap();
        let commit = LayerCommit::new(key(&name), parent.clone());
        store.commit_layer(staged, commit).unwrap();
        parent = Some(key(&name));
    }
    let top = format!("l{}", layers - 1);
    store.prepare(&key("box"), &on(Some(&top))).unwrap();
    store
}

fn database(store: &Store) -> Connection {
    let connection = Connection::open(store.root().join("vellum.db")).unwrap();
    connection
        .pragma_update(None, "foreign_keys", false)
        .unwrap();
    connection
}

/// Makes `parent` the parent of `child`, whatever that means.
fn stand(store: &Store, child: &str, parent: &str) {
    let changed = database(store)
        .execute(
            "UPDATE snapshots SET parent = (SELECT id FROM snapshots WHERE key = ?2) WHERE key = ?1",
            params![child.as_bytes(), parent.as_bytes()],
        )
        .unwrap();
    assert_eq!(changed, 1);
}

fn is_told(found: &[Finding], words: &[&str]) -> bool {
    found
        .iter()
        .any(|finding| !finding.healed && words.iter().all(|word| finding.why.contains(word)))
}

#[track_caller]
fn names_it(store: &Store, words: &[&str]) {
    for deep in [false, true] {
        let found = store.check(CheckOptions { heal: true, deep }).unwrap();
        assert!(is_told(&found, words), "{found:?}");
    }
    let trees = || fs::read_dir(store.root().join("overlay2")).unwrap().count();
    let before = trees();
    let refusals = [
        store.gc(true).map(drop),
        store.gc(false).map(drop),
        store.tree(&key("box")).map(drop),
        store.usage(&key("box")).map(drop),
        store.view(&key("view"), &on(Some("l1"))).map(drop),
        store.prepare(&key("new"), &on(Some("l1"))).map(drop),
        store
            .commit(&key("made"), &key("box"), Commit::default())
            .map(drop),
    ];
    for refused in refusals {
        let refused = refused.unwrap_err();
        assert_eq!(refused.class(), Class::Damaged, "{refused}");
        let text = refused.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    assert_eq!(trees(), before, "something was deleted");
    // What needs no ancestors still works.
    store.stat(&key("box")).unwrap();
    store.reasons_of(&key("l0")).unwrap();
    let why = store.why(&store.root().join("trash")).unwrap();
    assert!(!why.reasons.is_empty());
}

#[test]
fn a_cycle_of_parents_is_named_and_nothing_is_deleted() {
    let cycles: [(&str, &str); 4] = [("l1", "l1"), ("l1", "l2"), ("l0", "l3"), ("l0", "box")];
    for (child, parent) in cycles {
        let scratch = Scratch::new();
        let store = chain(&scratch, 4);
        stand(&store, child, parent);
        names_it(&store, &["cycle"]);
        drop(store);
        let options = StoreOptions::new(scratch.join("store"));
        let (rebuilt, what) = Store::rebuild(&options).unwrap();
        assert_eq!((what.snapshots, what.lost.len()), (5, 0));
        assert_eq!(rebuilt.check(CheckOptions::default()).unwrap(), []);
    }
}

#[test]
fn a_missing_parent_is_named_and_nothing_is_deleted() {
    let scratch = Scratch::new();
    let store = chain(&scratch, 3);
    database(&store)
        .execute(
            "UPDATE snapshots SET parent = 4711 WHERE key = ?1",
            [b"l1".as_slice()],
        )
        .unwrap();
    names_it(&store, &["l1", "missing"]);
}

#[test]
fn a_chain_of_absurd_length_is_named_quickly() {
    let scratch = Scratch::new();
    let store = chain(&scratch, 2);
    let mut database = database(&store);
    let tx = database.transaction().unwrap();
    for at in 0..20_000 {
        let link: String = format!("{at:026}")
            .bytes()
            .map(|digit| char::from(digit + b'A' - b'0'))
            .collect();
        tx.execute(
            "INSERT INTO snapshots (key, kind, parent, keep, driver, tree, link, labels, created_ns, updated_ns) \
             VALUES (?1, 3, (SELECT max(id) FROM snapshots WHERE kind = 3), 1, 'overlay2', ?2, ?3, '{}', 1, 1)",
            params![format!("long-{at:05}").as_bytes(), format!("{at:064x}"), link],
        )
        .unwrap();
    }
    tx.commit().unwrap();
    let refused = store
        .prepare(&key("new"), &on(Some("long-19999")))
        .unwrap_err();
    assert!(refused.to_string().contains("more than"), "{refused}");
    let refused = store.gc(false).unwrap_err();
    assert!(refused.to_string().contains("more than"), "{refused}");
}

#[test]
fn a_rebuild_leaves_out_cycles_and_names_them() {
    let scratch = Scratch::new();
    let store = chain(&scratch, 4);
    let tree = |name: &str| store.stat(&key(name)).unwrap().tree.to_string();
    let rewrite = |name: &str, parent: &str| {
        let path = store
            .root()
            .join("records")
            .join(format!("{}.json", tree(name)));
        let mut record: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["parent"] = parent.into();
        fs::write(&path, record.to_string()).unwrap();
    };
    rewrite("l1", &tree("l2"));
    let lone = store.prepare(&key("lone"), &on(None)).unwrap();
    drop(lone);
    rewrite("lone", &"f".repeat(64));
    let root = store.root().to_owned();
    drop(store);
    let (rebuilt, what) = Store::rebuild(&StoreOptions::new(&root)).unwrap();
    // l0 is restored; the cycle of l1 and l2, its descendants, and those whose parent is missing
    // are not.
    assert_eq!(what.snapshots, 1);
    assert!(
        is_told(&what.lost, &["cycle", "l1", "l2"]),
        "{:?}",
        what.lost
    );
    assert!(is_told(&what.lost, &["lone", "missing"]), "{:?}", what.lost);
    assert!(rebuilt.exists(&key("l0")).unwrap());
    assert!(!rebuilt.exists(&key("l1")).unwrap());
}

#[test]
fn a_rebuild_of_a_long_chain_takes_one_look_at_each_record() {
    let scratch = Scratch::new();
    let store = chain(&scratch, 300);
    let root = store.root().to_owned();
    drop(store);
    let (_, what) = Store::rebuild(&StoreOptions::new(&root)).unwrap();
    assert_eq!(
        (what.snapshots, what.lost.len()),
        (301, 0),
        "{:?}",
        what.lost
    );
}

#[test]
fn derived_files_that_form_a_cycle_are_repaired_from_the_record() {
    let scratch = Scratch::new();
    let store = chain(&scratch, 2);
    let tree = store.stat(&key("box")).unwrap().tree;
    let dir = store.root().join("overlay2").join(tree.as_str());
    let own = fs::read_to_string(dir.join("link")).unwrap();
    for text in [
        format!("l/{own}"),
        format!("l/{own}:").repeat(5000),
        String::new(),
    ] {
        fs::write(dir.join("lower"), &text).unwrap();
        let found = store
            .check(CheckOptions {
                heal: true,
                deep: false,
            })
            .unwrap();
        assert!(found.iter().all(|finding| finding.healed), "{found:?}");
        assert!(found.iter().any(|finding| finding.what.ends_with("lower")));
    }
    let old = scratch.join("old");
    let store = common::open_at(&old, DriverKind::Overlay);
    let staged = store.stage_layer_on(None).unwrap();
    store
        .commit_layer(staged, LayerCommit::new(key("l"), None))
        .unwrap();
    store.prepare(&key("box"), &on(Some("l"))).unwrap();
    let tree = store.stat(&key("box")).unwrap().tree.to_string();
    let id = old.join("overlay").join(&tree).join("lower-id");
    for text in [tree.clone(), tree.repeat(10_000), String::new()] {
        fs::write(&id, text).unwrap();
        let found = store
            .check(CheckOptions {
                heal: true,
                deep: false,
            })
            .unwrap();
        assert!(
            found.iter().all(|finding| finding.healed) && found.len() == 1,
            "{found:?}"
        );
    }
}

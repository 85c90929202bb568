//! Each error of the store that other tests recognise only by its class, provoked as a caller meets
//! it, by its variant and the beginning of its text. `docs/errors.md` has the remedies.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::*;
use vellum_format::Digest;
use vellum_store::{
    Commit, DriverKind, LabelChange, NewContainer, PrepareOptions, SnapshotKey, Store, StoreError,
    StoreOptions, Sweep,
};
use vellum_testkit::Scratch;
use vellum_testkit::seam::{self, Counted, Effect};

/// Checks that a call was refused with this variant, in a text that begins like this.
macro_rules! check {
    ($refused:expr, $variant:ident, $begins:expr) => {{
        let error = match $refused {
            Ok(done) => panic!("{} was expected, but: {done:?}", stringify!($variant)),
            Err(error) => error,
        };
        assert!(matches!(error, StoreError::$variant { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with($begins), "{text}");
    }};
}

fn small(scratch: &Scratch) -> Store {
    Store::open(&StoreOptions {
        driver: DriverKind::Native,
        busy_timeout_ms: 50,
        ..StoreOptions::new(scratch.join("store"))
    })
    .unwrap()
}

fn commit(store: &Store, name: &str, from: &str) -> Result<(), StoreError> {
    store
        .commit(&key(name), &key(from), Commit::default())
        .map(drop)
}

#[test]
fn each_refusal_of_a_snapshot_has_its_own_error() {
    let scratch = Scratch::new();
    let store = small(&scratch);
    store.prepare(&key("active"), &on(None)).unwrap();
    store.prepare(&key("b"), &on(None)).unwrap();
    commit(&store, "base", "b").unwrap();
    store.prepare(&key("child"), &on(Some("base"))).unwrap();
    store.prepare(&key("o"), &on(None)).unwrap();
    commit(&store, "other", "o").unwrap();

    let missing = store.stat(&key("none"));
    check!(missing, NotFound, "snapshot none does not exist");
    let again = store.prepare(&key("active"), &on(None));
    check!(again, AlreadyExists, "snapshot active already exists");
    let on_active = store.prepare(&key("new"), &on(Some("active")));
    check!(
        on_active,
        ParentNotCommitted,
        "parent active is active, and only a committed snapshot can be a parent"
    );
    let twice = commit(&store, "new", "base");
    check!(twice, NotActive, "snapshot base is committed, not active");
    let parent = store.remove(&key("base"), Sweep::Now);
    check!(
        parent,
        HasChildren,
        "cannot remove snapshot base: it is the parent of child"
    );
    let elsewhere = Commit {
        parent: Some(key("other")),
        settle: Some(|_, _, _| Ok(())),
        ..Commit::default()
    };
    let elsewhere = store.commit(&key("new"), &key("child"), elsewhere);
    check!(
        elsewhere,
        ParentMismatch,
        "the parent of snapshot child is base, not other"
    );
    let nameless = store.view(&key(""), &on(None));
    check!(nameless, Invalid, "a snapshot key must not be empty");
    let unsettled = Commit {
        parent: Some(key("base")),
        ..Commit::default()
    };
    let unsettled = store.commit(&key("new"), &key("active"), unsettled);
    check!(unsettled, Unsupported, "");
    check!(
        "zfs".parse::<DriverKind>(),
        UnknownDriver,
        "unknown storage driver \"zfs\"; known drivers: "
    );
}

#[test]
fn what_a_container_uses_is_not_removed_and_its_user_is_named() {
    let scratch = Scratch::new();
    let store = small(&scratch);
    store
        .create_volume("data", &vellum_store::Labels::new())
        .unwrap();
    let new = NewContainer {
        id: "id1".into(),
        name: "box".into(),
        image: None,
        image_name: None,
        config: "{}".into(),
        volumes: vec!["data".into()],
    };
    let tree = key("tree");
    store
        .create_container(&new, &tree, &PrepareOptions::default())
        .unwrap();
    let volume = store.remove_volume("data");
    check!(volume, InUse, "volume data is in use by ");
    let snapshot = store.remove(&tree, Sweep::Now);
    check!(snapshot, InUse, "snapshot tree is in use by ");
}

#[test]
fn another_process_that_holds_a_lock_is_waited_for_and_then_named() {
    let scratch = Scratch::new();
    let store = small(&scratch);
    store.prepare(&key("tree"), &on(None)).unwrap();
    let mut records = fs::read_dir(store.root().join("records")).unwrap();
    let held = fs::File::open(records.next().unwrap().unwrap().path()).unwrap();
    held.lock().unwrap();
    let label = [LabelChange::Set("a".into(), "b".into())];
    check!(store.update(&key("tree"), &label), Busy, "the store ");
}

#[test]
fn what_the_disk_has_lost_or_others_have_replaced_is_named() {
    let scratch = Scratch::new();
    let store = small(&scratch);
    let digest: Digest = store.put_blob(b"hello", None).unwrap();
    let blob = store.root().join("content/sha256").join(digest.hex());
    fs::write(blob, b"hullo").unwrap();
    check!(
        store.read_blob(&digest, 5),
        DigestMismatch,
        "blob on disk: expected sha256:"
    );

    store.prepare(&key("tree"), &on(None)).unwrap();
    let tree = store.stat(&key("tree")).unwrap().tree;
    let tree = store.driver_home(DriverKind::Native).join(tree.as_str());
    fs::remove_dir_all(tree).unwrap();
    check!(store.tree(&key("tree")), Damaged, "");

    let outside = scratch.dir("outside");
    let staging = store.root().join("staging");
    fs::remove_dir(&staging).unwrap();
    symlink(&outside, &staging).unwrap();
    let name = format!("{} is not the store's own directory: ", staging.display());
    check!(store.gc(false), Diverted, name.as_str());
    fs::remove_file(&staging).unwrap();
    fs::create_dir(&staging).unwrap();

    let database = rusqlite::Connection::open(store.root().join("vellum.db")).unwrap();
    database.execute_batch("DROP TABLE volumes").unwrap();
    check!(store.volumes(), Database, "database: cannot ");

    let missing = Store::open(&StoreOptions {
        create: false,
        ..StoreOptions::new(scratch.join("missing"))
    });
    check!(missing, Io, "cannot ");
}

/// A disk that breaks while a transaction is committed, and stays broken, so that not even the
/// outcome can be found out.
#[test]
fn a_disk_that_breaks_during_a_commit_leaves_the_outcome_to_the_next_command() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let effect = Effect::FailFrom(rustix::io::Errno::IO.raw_os_error());
    let label = [LabelChange::Set("a".into(), "b".into())];
    let mut uncertain = 0;
    seam::each(500, |n| {
        let root = scratch.dir(format!("store{n}"));
        let store = open_at(&root, DriverKind::Native);
        let tree: SnapshotKey = key("tree");
        store.prepare(&tree, &on(None)).unwrap();
        let run = seam::run(&root, Counted::Changes, n, effect, || {
            store.update(&tree, &label).map(drop)
        });
        let hit = run.hit.clone();
        if let Err(error @ StoreError::Uncertain { .. }) = run.value() {
            let text = error.to_string();
            assert!(
                text.starts_with("database: the disk failed while a change was committed"),
                "{text}"
            );
            uncertain += 1;
        }
        drop(store);
        // The disk works again, and the next command knows.
        let labels = open_at(&root, DriverKind::Native)
            .stat(&tree)
            .unwrap()
            .labels;
        assert!(labels.is_empty() || labels["a"] == "b", "{labels:?}");
        hit
    });
    assert!(uncertain > 0, "no call of a commit leaves its outcome open");
}

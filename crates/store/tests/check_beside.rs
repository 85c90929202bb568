//! Checks while a store is being changed: a change in progress is neither a finding nor undone.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::*;
use vellum_format::Digest;
use vellum_store::check::CheckOptions;
use vellum_store::*;
use vellum_testkit::Scratch;

const ROUNDS: usize = 12;

/// One layer with a file, then all that is changed in a layer's record.
fn layers(store: &Store, worker: usize, round: usize) {
    let base = key(&format!("layer {worker}"));
    let (active, name) = (
        key(&format!("active {worker} {round}")),
        key(&format!("layer {worker} {round}")),
    );
    let parent = (round > 0).then_some(base.clone());
    let parts = store
        .prepare(
            &active,
            &PrepareOptions {
                parent,
                keep: Keep::UntilRemoved,
                ..PrepareOptions::default()
            },
        )
        .unwrap();
    let root = match &parts.shape {
        Shape::Plain { root, .. } => root.clone(),
        Shape::Overlay(overlay) => overlay.upper.as_ref().unwrap().dir.clone(),
    };
    fs::write(root.join("file"), vec![b'x'; 5000]).unwrap();
    let label = |value: usize| [LabelChange::Set("round".into(), value.to_string())];
    store.update(&active, &label(round)).unwrap();
    if round == 0 {
        store.commit(&base, &active, Commit::default()).unwrap();
        return;
    }
    let commit = Commit {
        count: Count::Later,
        ..Commit::default()
    };
    store.commit(&name, &active, commit).unwrap();
    store.count(&name).unwrap();
    store.update(&base, &label(round)).unwrap();
    if round.is_multiple_of(2) {
        store.remove(&name, Sweep::Later).unwrap();
    }
}

/// Names, containers, and the records of both.
fn images(store: &Store, image: &Digest, worker: usize, round: usize) {
    let tag = format!("name-{}:{worker}", round % 3);
    store.tag(&tag, image).unwrap();
    let new = NewContainer {
        id: format!("id-{worker}-{round}"),
        name: format!("box-{worker}-{round}"),
        image: Some(*image),
        image_name: None,
        config: "{}".into(),
        volumes: vec![],
    };
    let snapshot = key(&format!("container {worker} {round}"));
    store
        .create_container(&new, &snapshot, &PrepareOptions::default())
        .unwrap();
    store
        .rename_container(&new.id, &format!("renamed-{worker}-{round}"))
        .unwrap();
    store.set_container_config(&new.id, "[1]").unwrap();
    store.untag(&tag).unwrap();
    if round.is_multiple_of(2) {
        store.remove_container(&new.id, Sweep::Now).unwrap();
    }
}

fn image_without_layers(blob: &Digest, tags: &[&str]) -> NewImage {
    NewImage {
        id: *blob,
        manifest: *blob,
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        layers: vec![],
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
    }
}

fn at_work(root: &Path, driver: DriverKind) {
    let store = open_at(root, driver);
    let blob = store.put_blob(b"configuration", None).unwrap();
    let image = image_without_layers(&blob, &["image:1"]);
    store.put_image(&image).unwrap();
    let left = AtomicUsize::new(4);
    let healing = AtomicBool::new(true);
    thread::scope(|scope| {
        for worker in 0..4 {
            let (left, blob) = (&left, &blob);
            scope.spawn(move || {
                // Like another process: with connections and locks of its own.
                let store = open_at(root, driver);
                struct Done<'a>(&'a AtomicUsize);
                impl Drop for Done<'_> {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, Ordering::SeqCst);
                    }
                }
                let _done = Done(left);
                for round in 0..ROUNDS {
                    match worker {
                        0 | 1 => layers(&store, worker, round),
                        _ => images(&store, blob, worker, round),
                    }
                }
            });
        }
        while left.load(Ordering::SeqCst) > 0 {
            let options = CheckOptions {
                heal: healing.fetch_xor(true, Ordering::SeqCst),
                deep: true,
            };
            let found = store.check(options).unwrap();
            assert_eq!(found, [], "{driver}, {options:?}");
        }
    });
    let found = store.check(CheckOptions::default()).unwrap();
    assert_eq!(found, [], "{driver}, afterwards");
    for worker in [0, 1] {
        let base = store.stat(&key(&format!("layer {worker}"))).unwrap();
        assert_eq!(base.labels["round"], (ROUNDS - 1).to_string());
        for round in (1..ROUNDS).step_by(2) {
            let name = key(&format!("layer {worker} {round}"));
            assert!(store.stat(&name).unwrap().usage.is_some());
        }
    }
    assert_eq!(store.containers().unwrap().len(), ROUNDS);
    assert!(
        store
            .containers()
            .unwrap()
            .iter()
            .all(|one| one.name.starts_with("renamed-") && one.config == "[1]")
    );
    assert_eq!(store.image(&blob).unwrap().tags, ["image:1"]);
    // No repair may have restored what was removed.
    store.gc(false).unwrap();
    let left: Vec<_> = store.gc(true).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_check_during_changes_finds_nothing_and_undoes_nothing() {
    for driver in DriverKind::ALL {
        let scratch = Scratch::new();
        at_work(&scratch.join("store"), driver);
    }
}

/// Another process holds the lock on `path` and does not release it.
fn held(path: &Path) -> fs::File {
    let file = fs::File::open(path).unwrap();
    file.lock().unwrap();
    file
}

#[test]
fn waiting_for_a_record_lock_ends() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    let store = Store::open(&StoreOptions {
        driver: DriverKind::Native,
        busy_timeout_ms: 50,
        ..StoreOptions::new(&root)
    })
    .unwrap();
    let records = root.join("records");
    store.prepare(&key("tree"), &on(None)).unwrap();
    let record = fs::read_dir(&records).unwrap().next().unwrap();
    let record = record.unwrap().path();
    let label = [LabelChange::Set("a".into(), "b".into())];

    let lock = held(&record);
    let refused = store.update(&key("tree"), &label).unwrap_err();
    assert_eq!(refused.class(), Class::Busy, "{refused}");
    lock.unlock().unwrap();
    store.update(&key("tree"), &label).unwrap();

    let blob = store.put_blob(b"configuration", None).unwrap();
    let image = image_without_layers(&blob, &[]);
    let lock = held(&records);
    let refused = store.put_image(&image).unwrap_err();
    assert_eq!(refused.class(), Class::Busy, "{refused}");
    lock.unlock().unwrap();
    store.put_image(&image).unwrap();
    assert_eq!(store.check(CheckOptions::default()).unwrap(), []);
}

#[test]
fn gc_keeps_a_record_file_that_may_be_written_just_now() {
    let scratch = Scratch::new();
    let root = scratch.join("store");
    let store = Store::open(&StoreOptions {
        busy_timeout_ms: 50,
        ..StoreOptions::new(&root)
    })
    .unwrap();
    let records = root.join("records");
    let left = records.join(format!("image-{}.json", Digest::of(b"gone").hex()));
    fs::write(&left, b"{}").unwrap();
    let lock = held(&records);
    let refused = store.gc(false).unwrap_err();
    assert_eq!(refused.class(), Class::Busy, "{refused}");
    assert!(left.exists());
    lock.unlock().unwrap();
    store.gc(false).unwrap();
    assert!(!left.exists());
}

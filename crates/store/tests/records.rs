//! Layers, blobs, images, containers, volumes, leases; df, check and rebuild.

mod common;

use std::time::{Duration, Instant};
use std::{fs, io::Write, path::Path};

use common::*;
use vellum_format::Digest;
use vellum_store::*;
use vellum_testkit::Scratch;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Stages, fills and commits one layer like an import.
fn import_layer(
    store: &Store,
    parent: Option<&SnapshotKey>,
    name: &str,
    lease: &Lease,
) -> ImageLayer {
    let staged = match parent {
        None => store.stage_layer_on(None),
        Some(parent) if store.layer_driver(Some(parent)).unwrap() != DriverKind::Overlay2 => {
            store.stage_layer_on(Some(parent))
        }
        Some(_) => store.stage_layer(None),
    }
    .unwrap();
    fs::write(staged.root().join(name), vec![b'x'; 10_000]).unwrap();
    let diff_id = Digest::of(name.as_bytes());
    let mut recipe = store.stage_file().unwrap();
    recipe.write_all(b"recipe").unwrap();
    let snapshot = SnapshotKey::from(&Digest::of(format!("chain {name}").as_bytes()));
    let mut commit = LayerCommit::new(snapshot.clone(), parent.cloned());
    commit.diff_id = Some(diff_id);
    commit.recipe = Some(recipe);
    commit.lease = Some(lease.id().clone());
    let registered = store.commit_layer(staged, commit).unwrap();
    assert_eq!(registered.info().diff_id.as_ref(), Some(&diff_id));
    ImageLayer {
        snapshot,
        diff_id,
        blob: None,
    }
}

/// Imports an image of layers with these names.
fn import(store: &Store, tag: &str, names: &[&str]) -> ImageRecord {
    let lease = store.lease("import").unwrap();
    let mut layers: Vec<ImageLayer> = Vec::new();
    for name in names {
        let parent = layers.last().map(|layer| layer.snapshot.clone());
        layers.push(import_layer(store, parent.as_ref(), name, &lease));
    }
    let config = store
        .put_blob(format!("config {names:?}").as_bytes(), Some(lease.id()))
        .unwrap();
    let manifest = store
        .put_blob(format!("manifest {names:?}").as_bytes(), Some(lease.id()))
        .unwrap();
    let image = NewImage {
        id: config,
        manifest,
        media_type: MANIFEST.into(),
        layers,
        tags: vec![tag.into()],
    };
    store.put_image_and_end(&image, lease.id()).unwrap();
    store.image(&config).unwrap()
}

fn container(store: &Store, name: &str, image: &ImageRecord) -> (ContainerRecord, TreeParts) {
    let new = NewContainer {
        id: format!("{name}-id"),
        name: name.into(),
        image: Some(image.id),
        image_name: None,
        config: "{}".into(),
        volumes: vec![],
    };
    let options = PrepareOptions {
        parent: image.top().cloned(),
        ..PrepareOptions::default()
    };
    store
        .create_container(
            &new,
            &SnapshotKey::from(format!("container/{name}")),
            &options,
        )
        .unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn images_share_layers_and_gc_frees_the_rest() {
    for driver in DriverKind::ALL {
        let scratch = Scratch::new();
        let store = open(&scratch, driver);
        let one = import(&store, "one:latest", &["a", "b"]);
        let two = import(&store, "two:latest", &["a", "c"]);
        assert_eq!(one.layers[0], two.layers[0]);
        assert!(store.gc(false).unwrap().is_empty(), "{driver}");
        let (made, _) = container(&store, "box", &one);
        let df = store.df().unwrap();
        assert_eq!(df.layers.len(), 3);
        assert!(
            df.images
                .iter()
                .all(|image| image.shared.bytes > 0 && image.exclusive.bytes > 0),
            "{df:?}"
        );
        assert_eq!(df.containers[0].shared, {
            let mut sum = df
                .layers
                .iter()
                .find(|l| l.key == one.layers[0].snapshot)
                .unwrap()
                .usage;
            sum += df
                .layers
                .iter()
                .find(|l| l.key == one.layers[1].snapshot)
                .unwrap()
                .usage;
            sum
        });
        assert_eq!(
            store.remove_image(&one.id).unwrap_err().class(),
            Class::FailedPrecondition
        );
        let top = store.stat(one.top().unwrap()).unwrap();
        let why = store
            .why(&store.driver_home(driver).join(top.tree.as_str()))
            .unwrap();
        assert_eq!(why.reasons.len(), 2, "{why:?}");
        assert_eq!(
            store
                .remove(one.top().unwrap(), Sweep::Now)
                .unwrap_err()
                .class(),
            Class::FailedPrecondition
        );
        store.remove_container(&made.id, Sweep::Now).unwrap();
        store.remove_image(&one.id).unwrap();
        let gone = store.gc(false).unwrap();
        assert_eq!(
            gone.iter()
                .filter(|g| matches!(g.thing, Thing::Snapshot(_)))
                .count(),
            1
        );
        assert_eq!(
            gone.iter()
                .filter(|g| matches!(g.thing, Thing::Blob(_)))
                .count(),
            2
        );
        assert_eq!(
            gone.iter()
                .filter(|g| matches!(g.thing, Thing::Recipe(_)))
                .count(),
            1
        );
        assert!(gone.iter().all(|g| g.fate == Fate::Gone));
        assert_eq!(
            store
                .check(CheckOptions {
                    deep: true,
                    heal: false
                })
                .unwrap(),
            []
        );
        store.remove_image(&two.id).unwrap();
        let dirs = ["trash", "staging", "records", "recipes", "content/sha256"];
        let left = || {
            let full = |dir: &&str| !names(&store.root().join(dir)).is_empty();
            dirs.into_iter().filter(full).collect::<Vec<_>>()
        };
        // A process that another test starts has copies of all descriptors, and so of their locks,
        // until it executes its program. What is locked is left for the next time.
        let until = Instant::now() + Duration::from_secs(20);
        store.gc(false).unwrap();
        while !left().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            store.gc(false).unwrap();
        }
        assert_eq!(left(), [""; 0], "{driver}");
    }
}

#[test]
fn a_layer_that_another_process_committed_is_not_stored_twice() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let (mut first, mut second) = (vec![], vec![]);
    for batch in [&mut first, &mut second] {
        for (name, parent) in [("a", None), ("b", Some("a")), ("c", Some("b"))] {
            let staged = store.stage_layer(None).unwrap();
            fs::write(staged.root().join(name), name).unwrap();
            batch.push((staged, LayerCommit::new(key(name), parent.map(key))));
        }
    }
    second.push((
        store.stage_layer(None).unwrap(),
        LayerCommit::new(key("d"), Some(key("c"))),
    ));
    let lease = store.lease("test").unwrap();
    second[0].1.lease = Some(lease.id().clone());
    assert!(
        store
            .commit_layers(first)
            .unwrap()
            .iter()
            .all(|r| matches!(r, Registered::New(_)))
    );
    let again = store.commit_layers(second).unwrap();
    assert!(
        again[..3]
            .iter()
            .all(|r| matches!(r, Registered::Existing(_))),
        "{again:?}"
    );
    assert!(matches!(again[3], Registered::New(_)));
    assert_eq!(names(&store.driver_home(DriverKind::Overlay2)).len(), 5);
    // The parents of the new layer are the trees that stayed, and its own files say so.
    assert_eq!(store.check(CheckOptions::default()).unwrap(), []);
    let Shape::Overlay(overlay) = store.tree(&key("d")).unwrap().shape else {
        panic!()
    };
    let tops: Vec<_> = overlay.lowers[1..]
        .iter()
        .map(|layer| names(&layer.dir))
        .collect();
    assert_eq!(tops, [["c"], ["b"], ["a"]]);
    assert_eq!(store.reasons_of(&key("a")).unwrap().len(), 1);
}

#[test]
fn blobs_are_verified_while_they_are_written() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let digest = Digest::of(b"hello");
    let mut writer = store.blob_writer(Some(&digest)).unwrap();
    writer.write_all(b"hullo").unwrap();
    assert!(matches!(
        writer.commit(None).unwrap_err(),
        StoreError::DigestMismatch { .. }
    ));
    assert!(store.blob(&digest).unwrap().is_none());
    assert!(names(&store.root().join("content/sha256")).is_empty());
    assert!(names(&store.root().join("staging")).is_empty());
    let mut writer = store.blob_writer(Some(&digest)).unwrap();
    writer.write_all(b"hello").unwrap();
    writer.commit(None).unwrap();
    assert_eq!(store.read_blob(&digest, 5).unwrap(), b"hello");
    assert!(store.read_blob(&digest, 4).is_err());
    fs::write(
        store.root().join("content/sha256").join(digest.hex()),
        b"hullo",
    )
    .unwrap();
    assert_eq!(
        store.read_blob(&digest, 5).unwrap_err().class(),
        Class::Damaged
    );
    assert!(store.check(CheckOptions::default()).unwrap().is_empty());
    assert_eq!(
        store
            .check(CheckOptions {
                deep: true,
                heal: false
            })
            .unwrap()
            .len(),
        1
    );
    store.gc(false).unwrap();
    assert_eq!(
        store.open_blob(&digest).unwrap_err().class(),
        Class::NotFound
    );
}

#[test]
fn manifest_and_tags_change_together_or_not_at_all() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let one = import(&store, "app:latest", &["a"]);
    let two = import(&store, "app:latest", &["a", "b"]);
    assert_eq!(store.resolve_tag("app:latest").unwrap(), Some(two.id));
    assert!(store.image(&one.id).unwrap().tags.is_empty());
    let mut broken = NewImage {
        id: one.id,
        manifest: one.manifest,
        media_type: MANIFEST.into(),
        layers: one.layers.clone(),
        tags: vec!["app:latest".into(), String::new()],
    };
    assert_eq!(
        store.put_image(&broken).unwrap_err().class(),
        Class::InvalidArgument
    );
    assert_eq!(store.resolve_tag("app:latest").unwrap(), Some(two.id));
    broken.tags.pop();
    let moved = store.put_image(&broken).unwrap();
    assert_eq!(
        moved,
        [MovedTag {
            name: "app:latest".into(),
            from: two.id
        }]
    );
    broken.layers[0].snapshot = key("missing");
    assert_eq!(
        store.put_image(&broken).unwrap_err().class(),
        Class::NotFound
    );
    assert_eq!(store.image(&one.id).unwrap().layers, one.layers);
    assert_eq!(
        store.images_by_prefix(&one.id.hex()[..12]).unwrap(),
        std::slice::from_ref(&one.id)
    );
    assert_eq!(store.untag("app:latest").unwrap(), one.id);
    assert_eq!(store.tags().unwrap(), []);
}

#[test]
fn containers_own_their_snapshot_and_volumes_outlive_them() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let image = import(&store, "app", &["a"]);
    let volume = store.create_volume("data", &Labels::new()).unwrap();
    assert_eq!(store.create_volume("data", &Labels::new()).unwrap(), volume);
    fs::write(volume.path.join("f"), b"x").unwrap();
    for bad in ["", "..", "a/b", ".x", "-x", "a b"] {
        assert_eq!(
            store
                .create_volume(bad, &Labels::new())
                .unwrap_err()
                .class(),
            Class::InvalidArgument,
            "{bad}"
        );
    }
    let new = NewContainer {
        id: "id1".into(),
        name: "one".into(),
        image: Some(image.id),
        image_name: Some("app".into()),
        config: "{\"a\":1}".into(),
        volumes: vec!["data".into()],
    };
    let options = PrepareOptions {
        parent: image.top().cloned(),
        ..PrepareOptions::default()
    };
    let (made, parts) = store.create_container(&new, &key("c1"), &options).unwrap();
    assert_eq!(store.container("one").unwrap(), made);
    assert_eq!(store.container("id1").unwrap(), made);
    assert_eq!(store.tree(&made.snapshot).unwrap(), parts);
    let again = store.create_container(
        &NewContainer {
            id: "id2".into(),
            ..new.clone()
        },
        &key("c2"),
        &options,
    );
    assert_eq!(again.unwrap_err().class(), Class::AlreadyExists);
    assert!(!store.exists(&key("c2")).unwrap());
    let missing = NewContainer {
        id: "id3".into(),
        name: "three".into(),
        volumes: vec!["no".into()],
        ..new.clone()
    };
    assert_eq!(
        store
            .create_container(&missing, &key("c3"), &options)
            .unwrap_err()
            .class(),
        Class::NotFound
    );
    store.rename_container("id1", "uno").unwrap();
    store.set_container_config("id1", "{}").unwrap();
    assert_eq!(store.container("uno").unwrap().config, "{}");
    assert_eq!(store.container("one").unwrap_err().class(), Class::NotFound);
    assert_eq!(
        store.remove(&key("c1"), Sweep::Now).unwrap_err().class(),
        Class::FailedPrecondition
    );
    assert_eq!(
        store.remove_volume("data").unwrap_err().class(),
        Class::FailedPrecondition
    );
    assert!(store.gc(false).unwrap().is_empty());
    store.remove_container("id1", Sweep::Now).unwrap();
    assert!(!store.exists(&key("c1")).unwrap());
    assert_eq!(store.volumes().unwrap().len(), 1);
    assert!(store.volume_usage("data").unwrap().inodes >= 2);
    store.remove_volume("data").unwrap();
    assert!(names(&store.root().join("volumes")).is_empty());
}

#[test]
fn a_lost_database_is_rebuilt_from_the_trees() {
    for driver in DriverKind::ALL {
        let scratch = Scratch::new();
        let store = open(&scratch, driver);
        let image = import(&store, "app:latest", &["a", "b"]);
        let (made, parts) = container(&store, "box", &image);
        store.create_volume("data", &Labels::new()).unwrap();
        store
            .update(&made.snapshot, &[LabelChange::Set("k".into(), "v".into())])
            .unwrap();
        let info = store.stat(&made.snapshot).unwrap();
        let layer = store.stat(image.top().unwrap()).unwrap();
        drop(store);
        let root = scratch.join("store");
        for name in ["vellum.db", "vellum.db-wal", "vellum.db-shm"] {
            let _ = fs::remove_file(root.join(name)); // which of them are there depends on who closed last
        }
        let refused = Store::open(&StoreOptions {
            driver,
            ..StoreOptions::new(&root)
        })
        .unwrap_err();
        assert!(refused.lost_its_database(), "{refused}");
        let (store, rebuilt) = Store::rebuild(&StoreOptions {
            driver,
            ..StoreOptions::new(&root)
        })
        .unwrap();
        assert_eq!(rebuilt.lost, []);
        assert_eq!(
            (
                rebuilt.snapshots,
                rebuilt.images,
                rebuilt.containers,
                rebuilt.blobs,
                rebuilt.volumes
            ),
            (3, 1, 1, 2, 1)
        );
        assert_eq!(store.stat(&made.snapshot).unwrap(), info);
        assert_eq!(store.stat(image.top().unwrap()).unwrap(), layer);
        assert_eq!(store.image(&image.id).unwrap(), image);
        assert_eq!(store.container("box").unwrap(), made);
        assert_eq!(store.tree(&made.snapshot).unwrap(), parts);
        assert_eq!(
            store
                .check(CheckOptions {
                    deep: true,
                    heal: false
                })
                .unwrap(),
            []
        );
        let would: Vec<_> = store.gc_rebuilt(true).unwrap();
        let gone: Vec<_> = store.gc_rebuilt(false).unwrap();
        for (found, fate) in [(would, Fate::Would), (gone, Fate::Gone)] {
            let found: Vec<_> = found.into_iter().map(|it| (it.thing, it.fate)).collect();
            assert_eq!(found, [(Thing::Lease("rebuilt".into()), fate)]);
        }
        assert_eq!(store.gc_rebuilt(false).unwrap(), []);
    }
}

#[test]
fn check_repairs_what_is_derived_and_names_what_is_lost() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let image = import(&store, "app", &["a", "b"]);
    let top = store.stat(image.top().unwrap()).unwrap();
    let home = store.driver_home(DriverKind::Overlay2);
    let dir = home.join(top.tree.as_str());
    let link = fs::read_to_string(dir.join("link")).unwrap();
    fs::write(dir.join("link"), b"").unwrap();
    fs::write(dir.join("lower"), b"l/").unwrap();
    fs::remove_file(home.join("l").join(&link)).unwrap();
    fs::remove_file(dir.join("committed")).unwrap();
    fs::write(
        store
            .root()
            .join("records")
            .join(format!("{}.json", top.tree)),
        b"",
    )
    .unwrap();
    let only_told = store.check(CheckOptions::default()).unwrap();
    assert_eq!(only_told.len(), 5, "{only_told:?}");
    assert!(only_told.iter().all(|f| !f.healed));
    let healed = store
        .check(CheckOptions {
            heal: true,
            deep: false,
        })
        .unwrap();
    assert_eq!(healed.len(), 5);
    assert!(healed.iter().all(|f| f.healed));
    assert_eq!(store.check(CheckOptions::default()).unwrap(), []);
    assert_eq!(fs::read_to_string(dir.join("link")).unwrap(), link);
    fs::remove_dir_all(dir.join("diff")).unwrap();
    let lost = store
        .check(CheckOptions {
            heal: true,
            deep: false,
        })
        .unwrap();
    assert!(
        lost.iter().any(|f| !f.healed && f.why.contains("lost")),
        "{lost:?}"
    );
    let refused = store.tree(image.top().unwrap()).unwrap_err();
    assert_eq!(refused.class(), Class::Damaged);
    // One damaged tree doesn't affect the others.
    assert!(store.tree(&image.layers[0].snapshot).is_ok());
    assert_eq!(store.images().unwrap().len(), 1);
}

#[test]
fn a_lease_of_a_dead_process_holds_nothing() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let over = store
        .begin_lease("over", Life::Until(jiff::Timestamp::UNIX_EPOCH))
        .unwrap();
    store
        .prepare(
            &key("a"),
            &PrepareOptions {
                lease: Some(over),
                ..Default::default()
            },
        )
        .unwrap();
    let long = store.begin_lease("long", Life::Forever).unwrap();
    store
        .prepare(
            &key("b"),
            &PrepareOptions {
                lease: Some(long.clone()),
                ..Default::default()
            },
        )
        .unwrap();
    store.gc(false).unwrap();
    assert!(!store.exists(&key("a")).unwrap() && store.exists(&key("b")).unwrap());
    assert!(
        store
            .hold(&long, &LeaseResource::Snapshot(key("b")))
            .unwrap()
    );
    assert!(
        !store
            .hold(&long, &LeaseResource::Snapshot(key("a")))
            .unwrap()
    );
    store.end_lease(&long).unwrap();
    assert_eq!(
        store
            .hold(&long, &LeaseResource::Snapshot(key("b")))
            .unwrap_err()
            .class(),
        Class::NotFound
    );
    store.gc(false).unwrap();
    assert!(!store.exists(&key("b")).unwrap());
}

#[test]
fn why_and_gc_agree_about_everything_in_a_store() {
    for driver in DriverKind::ALL {
        let scratch = Scratch::new();
        let store = open(&scratch, driver);
        let one = import(&store, "one:latest", &["a", "b"]);
        container(&store, "box", &one);
        store.create_volume("held", &Labels::new()).unwrap();
        // What dead commands leave, and what other programs create.
        let root = store.root().to_owned();
        let (tree, other) = ("0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
        for dir in [
            format!("overlay2/{tree}"),
            "overlay2/stranger".into(),
            "staging/x".into(),
            "trash/x".into(),
            "volumes/nobodys".into(),
            "volumes/nobodys.json".into(),
            "lost+found".into(),
        ] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in [
            format!("records/{other}.json"),
            format!("records/image-{tree}.json"),
            "records/stranger".into(),
            format!("records/{tree}.json.stranger"),
            "overlay2/l/stranger".into(),
            "content/sha256/stranger".into(),
            "recipes/odd".into(),
            format!("recipes/{tree}"),
            format!("content/sha256/{tree}"),
            "vellum.db.1".into(),
            "stranger".into(),
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let doomed: Vec<_> = store
            .gc(true)
            .unwrap()
            .into_iter()
            .filter_map(|garbage| match garbage.thing {
                Thing::Path(path) => Some(path),
                _ => None,
            })
            .collect();
        assert_eq!(doomed.len(), 10, "{driver}: {doomed:?}");
        let mut all: Vec<_> = names(&root)
            .into_iter()
            .map(|name| root.join(name))
            .collect();
        for dir in [
            "overlay2",
            "overlay2/l",
            "overlay",
            "native",
            "staging",
            "trash",
            "volumes",
            "records",
            "recipes",
            "content/sha256",
            "generation",
        ] {
            let dir = root.join(dir);
            if dir.exists() {
                all.extend(names(&dir).into_iter().map(|name| dir.join(name)));
            }
        }
        for path in all {
            let why = store.why(&path).unwrap();
            let goes = doomed.contains(&path);
            assert_eq!(why.reasons.is_empty(), goes, "{driver} {path:?}: {why:?}");
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_ours = !name.contains("stranger");
            let is_left_alone = why.reasons == [Reason::Stranger];
            assert_eq!(is_left_alone, !is_ours, "{driver} {path:?}: {why:?}");
        }
    }
}

//! A store with some of everything, every change that can be made to it, and what it holds
//! afterwards.

use std::{collections::BTreeSet, path::Path};

use vellum_format::Digest;
use vellum_store::*;

use crate::common::*;

/// The changes to a furnished store, each on its own or in this order: each is at least one
/// transaction.
pub const CHANGES: [&str; 12] = [
    "prepare",
    "view",
    "commit",
    "update",
    "remove",
    "container",
    "rename",
    "image",
    "tag",
    "untag",
    "lease",
    "volume",
];

pub fn change(store: &Store, name: &str) {
    let kept = |parent| PrepareOptions {
        keep: Keep::UntilRemoved,
        ..on(parent)
    };
    match name {
        "prepare" => drop(store.prepare(&key("new"), &kept(Some("base"))).unwrap()),
        "view" => drop(store.view(&key("look"), &kept(Some("base"))).unwrap()),
        "commit" => drop(
            store
                .commit(&key("layer"), &key("work"), Commit::default())
                .unwrap(),
        ),
        "update" => {
            let label = LabelChange::Set("k".into(), "v".into());
            store.update(&key("spare"), &[label]).unwrap();
        }
        "remove" => store.remove(&key("spare"), Sweep::Now).unwrap(),
        "container" => drop(container(store, "another")),
        "rename" => store.rename_container("box", "crate").unwrap(),
        "image" => {
            image(store, "other:1", b"other");
        }
        "tag" => {
            store.tag("app:2", &Digest::of(b"app")).unwrap();
        }
        "untag" => {
            store.untag("app:1").unwrap();
        }
        "lease" => drop(store.begin_lease("a promise", Life::Forever).unwrap()),
        "volume" => drop(store.create_volume("more", &Labels::new()).unwrap()),
        other => panic!("no change {other}"),
    }
}

pub fn container(store: &Store, name: &str) -> ContainerRecord {
    let new = NewContainer {
        id: name.into(),
        name: name.into(),
        image: None,
        image_name: None,
        config: "{}".into(),
        volumes: vec![],
    };
    store
        .create_container(&new, &key(&format!("c-{name}")), &on(Some("base")))
        .unwrap()
        .0
}

pub fn image(store: &Store, tag: &str, config: &[u8]) -> Digest {
    let id = store.put_blob(config, None).unwrap();
    let manifest = store
        .put_blob(format!("manifest of {id}").as_bytes(), None)
        .unwrap();
    let new = NewImage {
        id,
        manifest,
        media_type: "m".into(),
        layers: vec![ImageLayer {
            snapshot: key("base"),
            diff_id: Digest::of(b"base"),
            blob: None,
        }],
        tags: vec![tag.into()],
    };
    store.put_image(&new).unwrap();
    id
}

/// A store with a layer, two writable trees on it, an image and a container.
pub fn furnish(root: &Path) -> Store {
    let store = open_at(root, DriverKind::Overlay2);
    let kept = |parent| PrepareOptions {
        keep: Keep::UntilRemoved,
        ..on(parent)
    };
    store.prepare(&key("b"), &kept(None)).unwrap();
    store
        .commit(&key("base"), &key("b"), Commit::default())
        .unwrap();
    store.prepare(&key("work"), &kept(Some("base"))).unwrap();
    store.prepare(&key("spare"), &kept(Some("base"))).unwrap();
    container(&store, "box");
    image(&store, "app:1", b"app");
    store
}

/// What a store holds, as a set of words.
pub fn holds(store: &Store) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    store
        .walk::<StoreError>(&[], |info| {
            all.insert(format!("{} {} {:?}", info.kind, info.key, info.labels));
            Ok(())
        })
        .unwrap();
    for image in store.images().unwrap() {
        all.insert(format!("image {} {:?}", image.id, image.tags));
    }
    for container in store.containers().unwrap() {
        all.insert(format!("container {} {}", container.id, container.name));
    }
    for volume in store.volumes().unwrap() {
        all.insert(format!("volume {}", volume.name));
    }
    all
}

//! Steps on a store, and what must hold after a crash in any of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use vellum_format::Digest;
use vellum_store::*;

use super::{key, on, open_at};

/// Steps that a victim can perform.
pub const STEPS: [&str; 7] = [
    "prepare",
    "view",
    "commit",
    "remove",
    "import",
    "container",
    "gc",
];

/// Returns whether a step is one transaction.
pub fn is_single(name: &str) -> bool {
    ["prepare", "view", "commit", "remove"].contains(&name)
}

pub type Outcome<T = ()> = std::result::Result<T, StoreError>;

/// What the victim does.
pub fn step(name: &str, store: &Store) -> Outcome {
    match name {
        "prepare" => store.prepare(&key("new"), &kept(Some("base"))).map(drop),
        "view" => store.view(&key("look"), &kept(Some("base"))).map(drop),
        "commit" => store
            .commit(&key("layer"), &key("work"), Commit::default())
            .map(drop),
        "remove" => store.remove(&key("work"), Sweep::Now),
        "import" => import(store),
        "container" => {
            let new = NewContainer {
                id: "id".into(),
                name: "box".into(),
                image: None,
                image_name: None,
                config: "{}".into(),
                volumes: vec!["data".into()],
            };
            store.create_volume("data", &Labels::new())?;
            store.create_container(&new, &key("c"), &on(Some("base")))?;
            store.rename_container("id", "crate")?;
            store.remove_container("id", Sweep::Now)?;
            store.remove_volume("data")
        }
        "gc" => store.gc(false).map(drop),
        other => panic!("no step {other}"),
    }
}

pub fn kept(parent: Option<&str>) -> PrepareOptions {
    PrepareOptions {
        keep: Keep::UntilRemoved,
        ..on(parent)
    }
}

pub fn import(store: &Store) -> Outcome {
    let lease = store.lease("import")?;
    let mut batch = Vec::new();
    let mut layers = Vec::new();
    let mut parent: Option<SnapshotKey> = None;
    for name in ["one", "two"] {
        let staged = match store.default_driver() {
            DriverKind::Overlay2 => store.stage_layer(None)?,
            _ => store.stage_layer_on(parent.as_ref())?,
        };
        write_content(&staged.root().join(name))?;
        let mut recipe = store.stage_file()?;
        let write = recipe.write_all(b"recipe");
        write.map_err(|source| StoreError::Io {
            op: "write",
            path: PathBuf::new(),
            source,
        })?;
        let diff_id = Digest::of(name.as_bytes());
        let snapshot = SnapshotKey::from(&Digest::of(name.as_bytes()));
        let mut commit = LayerCommit::new(snapshot.clone(), parent.clone());
        commit.diff_id = Some(diff_id);
        commit.recipe = Some(recipe);
        commit.lease = Some(lease.id().clone());
        layers.push(ImageLayer {
            snapshot: snapshot.clone(),
            diff_id,
            blob: None,
        });
        parent = Some(snapshot);
        match store.default_driver() {
            DriverKind::Overlay2 => batch.push((staged, commit)),
            _ => drop(store.commit_layer(staged, commit)?),
        }
    }
    store.commit_layers(batch)?;
    let id = store.put_blob(b"config", Some(lease.id()))?;
    let manifest = store.put_blob(b"manifest", Some(lease.id()))?;
    let image = NewImage {
        id,
        manifest,
        media_type: "m".into(),
        layers,
        tags: vec!["app:1".into()],
    };
    store.put_image_and_end(&image, lease.id()).map(drop)
}

pub const CONTENT_BYTES: usize = 20_000;

/// Puts files of known content into the directory `at`. A full disk is part of the tests.
pub fn write_content(at: &Path) -> Outcome {
    let fill = || -> std::io::Result<()> {
        fs::create_dir_all(at)?;
        (0..4u8).try_for_each(|i| fs::write(at.join(format!("f{i}")), vec![i; CONTENT_BYTES]))
    };
    fill().map_err(|source| StoreError::Io {
        op: "write",
        path: at.to_owned(),
        source,
    })
}

pub fn assert_content(at: &Path) {
    for i in 0..4u8 {
        let bytes = fs::read(at.join(format!("f{i}"))).expect("a committed file");
        assert!(
            bytes == vec![i; CONTENT_BYTES],
            "{} is damaged",
            at.display()
        );
    }
}

/// Creates the store that victims get a copy of: a base layer, a writable tree on it, garbage for
/// gc.
pub fn pattern(root: &Path, driver: DriverKind) {
    let store = open_at(root, driver);
    let at = |parts: TreeParts| match parts.shape {
        Shape::Plain { root, .. } => root,
        Shape::Overlay(overlay) => overlay.upper.expect("an upper").dir,
    };
    write_content(&at(store.prepare(&key("b"), &kept(None)).unwrap()).join("base")).unwrap();
    store
        .commit(&key("base"), &key("b"), Commit::default())
        .unwrap();
    write_content(&at(store.prepare(&key("work"), &kept(Some("base"))).unwrap()).join("work"))
        .unwrap();
    store.prepare(&key("garbage"), &on(Some("base"))).unwrap();
    store.put_blob(b"garbage", None).unwrap();
}

pub fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to); // the copy of the run before
    let done = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .expect("cp runs");
    assert!(done.success());
}

/// What a store holds, as a set of words.
pub fn holds(store: &Store) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    store
        .walk::<StoreError>(&[], |info| {
            all.insert(format!("{} {}", info.kind, info.key));
            Ok(())
        })
        .unwrap();
    all.extend(
        store
            .images()
            .unwrap()
            .iter()
            .map(|image| format!("image {} {:?}", image.id, image.tags)),
    );
    all.extend(
        store
            .containers()
            .unwrap()
            .iter()
            .map(|c| format!("container {}", c.name)),
    );
    all.extend(
        store
            .volumes()
            .unwrap()
            .iter()
            .map(|v| format!("volume {}", v.name)),
    );
    all
}

/// Checks everything that must hold after any crash, and that one gc leaves no litter.
#[track_caller]
pub fn assert_whole(root: &Path, driver: DriverKind, context: &str) {
    let store = open_at(root, driver);
    let damage: Vec<_> = store
        .check(CheckOptions {
            heal: true,
            deep: true,
        })
        .unwrap_or_else(|e| panic!("{context}: check: {e}"))
        .into_iter()
        .filter(|finding| !finding.healed)
        .collect();
    assert_eq!(damage, [], "{context}");
    for (name, file) in [("base", "base"), ("layer", "work"), ("work", "work")] {
        if store.exists(&key(name)).unwrap() {
            assert_content(&content_of(&store, &key(name), file));
        }
    }
    for name in ["one", "two"] {
        let layer = SnapshotKey::from(&Digest::of(name.as_bytes()));
        if store.exists(&layer).unwrap() {
            assert_content(&content_of(&store, &layer, name));
            assert!(
                store
                    .open_recipe(&Digest::of(name.as_bytes()))
                    .unwrap()
                    .is_some(),
                "{context}: recipe"
            );
        }
    }
    for image in store.images().unwrap() {
        store.read_blob(&image.manifest, 100).unwrap();
    }
    let before: BTreeSet<String> = holds(&store)
        .into_iter()
        .filter(|what| kept_anyway(what))
        .collect();
    for garbage in store.gc(false).unwrap() {
        assert_eq!(garbage.fate, Fate::Gone, "{context}: {garbage:?}");
    }
    let after = holds(&store);
    assert!(
        before.is_subset(&after),
        "{context}: gc took {before:?} -> {after:?}"
    );
    // Nothing exists that no record names.
    let count = |dir: &str| fs::read_dir(root.join(dir)).map_or(0, |list| list.count());
    let words = |word: &str| after.iter().filter(|what| what.starts_with(word)).count();
    let snapshots = words("active ") + words("view ") + words("committed ");
    assert_eq!((count("staging"), count("trash")), (0, 0), "{context}");
    let home = store.driver_home(driver);
    let links = usize::from(home.join("l").exists());
    assert_eq!(
        fs::read_dir(&home).unwrap().count() - links,
        snapshots,
        "{context}: trees"
    );
    assert_eq!(
        count("records"),
        snapshots + words("image ") + words("container "),
        "{context}: records"
    );
    assert_eq!(count("volumes"), words("volume "), "{context}: volumes");
    if links == 1 {
        assert_eq!(
            fs::read_dir(home.join("l")).unwrap().count(),
            snapshots,
            "{context}: links"
        );
    }
    assert_eq!(
        store
            .check(CheckOptions {
                heal: false,
                deep: true
            })
            .unwrap(),
        [],
        "{context}"
    );
}

/// Everything except the pattern's garbage and a dead import's layers survives a gc.
pub fn kept_anyway(what: &str) -> bool {
    !what.contains("garbage") && !what.contains("sha256:")
}

/// The directory of a snapshot's own content, without mounting: victims write straight into uppers.
pub fn content_of(store: &Store, name: &SnapshotKey, file: &str) -> PathBuf {
    let layers = store.tree(name).unwrap().layers();
    let found = layers
        .iter()
        .map(|layer| layer.dir.join(file))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} has no {file}"))
}

//! Crashes, full disks and crowds, on a real process: this program runs itself as the victim.
//!
//! For every kind of system call that changes something, and every n, a victim that prepares, commits, removes or
//! imports is killed at the n-th call. The store must then open, hold exactly what it held before or after the step, show
//! every committed layer's data whole, and be free of litter after one gc. The same with calls that fail for want of space.

mod common;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use common::*;
use vellum_format::Digest;
use vellum_store::*;
use vellum_testkit::{
    FsKind, Scratch,
    fault::{self, Effect},
    needs_root, untested,
};

const STEP: &str = "VELLUM_CRASH_STEP";
const STORE: &str = "VELLUM_CRASH_STORE";
const DRIVER: &str = "VELLUM_CRASH_DRIVER";

/// Steps a victim can take.
const STEPS: [&str; 7] = [
    "prepare",
    "view",
    "commit",
    "remove",
    "import",
    "container",
    "gc",
];

type Outcome<T = ()> = std::result::Result<T, StoreError>;

/// What the victim does.
fn step(name: &str, store: &Store) -> Outcome {
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
        "hammer" => hammer(store),
        other => panic!("no step {other}"),
    }
}

fn kept(parent: Option<&str>) -> PrepareOptions {
    PrepareOptions {
        keep: Keep::UntilRemoved,
        ..on(parent)
    }
}

fn import(store: &Store) -> Outcome {
    let lease = store.lease("import")?;
    let mut batch = Vec::new();
    let mut layers = Vec::new();
    let mut parent: Option<SnapshotKey> = None;
    for name in ["one", "two"] {
        let staged = match store.default_driver() {
            DriverKind::Overlay2 => store.stage_layer(None)?,
            _ => store.stage_layer_on(parent.as_ref())?,
        };
        write_content(&staged.root().join(name));
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

/// Makes, commits and removes, as one of many processes; keys of different processes differ, layers are shared.
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

const CONTENT_BYTES: usize = 20_000;

/// Puts files of known content into the directory `at`.
fn write_content(at: &Path) {
    let fill = || -> std::io::Result<()> {
        fs::create_dir_all(at)?;
        (0..4u8).try_for_each(|i| fs::write(at.join(format!("f{i}")), vec![i; CONTENT_BYTES]))
    };
    if let Err(error) = fill() {
        // The victim's own files: a full disk is part of the test.
        eprintln!("{}: {error}", at.display());
        std::process::exit(1);
    }
}

fn assert_content(at: &Path) {
    for i in 0..4u8 {
        let bytes = fs::read(at.join(format!("f{i}"))).expect("a committed file");
        assert!(
            bytes == vec![i; CONTENT_BYTES],
            "{} is damaged",
            at.display()
        );
    }
}

/// Makes the store that victims get a copy of: a base layer, a writable tree on it, garbage for gc.
fn pattern(root: &Path, driver: DriverKind) {
    let store = open_at(root, driver);
    let at = |parts: TreeParts| match parts.shape {
        Shape::Plain { root, .. } => root,
        Shape::Overlay(overlay) => overlay.upper.expect("an upper").dir,
    };
    write_content(&at(store.prepare(&key("b"), &kept(None)).unwrap()).join("base"));
    store
        .commit(&key("base"), &key("b"), Commit::default())
        .unwrap();
    write_content(&at(store.prepare(&key("work"), &kept(Some("base"))).unwrap()).join("work"));
    store.prepare(&key("garbage"), &on(Some("base"))).unwrap();
    store.put_blob(b"garbage", None).unwrap();
}

fn copy(from: &Path, to: &Path) {
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
fn holds(store: &Store) -> BTreeSet<String> {
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
fn assert_whole(root: &Path, driver: DriverKind, context: &str) {
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
    // Nothing lies around that no record names.
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

/// Everything but what the pattern left as garbage, or a dead import's layers, outlives a gc.
fn kept_anyway(what: &str) -> bool {
    !what.contains("garbage") && !what.contains("sha256:")
}

/// The directory of a snapshot's own content, without mounting: victims write straight into uppers.
fn content_of(store: &Store, name: &SnapshotKey, file: &str) -> PathBuf {
    let layers = store.tree(name).unwrap().layers();
    let found = layers
        .iter()
        .map(|layer| layer.dir.join(file))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} has no {file}"))
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

fn every_crash(driver: DriverKind, effect: Effect, steps: &[&str]) {
    let scratch = Scratch::new();
    let model = scratch.join("model");
    pattern(&model, driver);
    let before = holds(&open_at(&model, driver));
    let store = scratch.join("store");
    let mut hits = 0;
    for name in steps {
        // What the step leads to when nothing goes wrong.
        copy(&model, &store);
        step(name, &open_at(&store, driver)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let after = holds(&open_at(&store, driver));
        for calls in fault::CHANGES {
            hits += fault::each(400, |n| {
                copy(&model, &store);
                let run = run_victim(&store, driver, name, calls, effect, n);
                let context = format!(
                    "{driver} {name}, {effect:?} at {calls} number {n}: {}",
                    run.stderr
                );
                let now = holds(&open_at(&store, driver));
                let single = ["prepare", "view", "commit", "remove"].contains(name);
                if single {
                    assert!(now == before || now == after, "{context}: {now:?}");
                }
                if run.status.success() {
                    assert_eq!(now, after, "{context}");
                }
                assert_whole(&store, driver, &context);
                run
            });
        }
    }
    println!("  {driver} {effect:?}: {hits} runs were hit");
    // Far fewer, and the faults no longer reach the steps.
    assert!(hits >= 10 * steps.len() as u32, "{hits} in {steps:?}");
}

fn killed_at_every_change_nothing_is_lost_or_half_made() {
    if fault::available() {
        every_crash(DriverKind::Overlay2, Effect::Kill, &STEPS);
        if needs_root("owners and links of whole trees") {
            every_crash(DriverKind::Overlay, Effect::Kill, &["commit"]);
            every_crash(DriverKind::Native, Effect::Kill, &["prepare"]);
        }
    }
}

fn failing_calls_leave_the_store_whole() {
    if fault::available() {
        every_crash(
            DriverKind::Overlay2,
            Effect::Fail("ENOSPC"),
            &["prepare", "commit", "import"],
        );
        every_crash(
            DriverKind::Overlay2,
            Effect::FailFrom("EIO"),
            &["commit", "import", "remove"],
        );
    }
}

fn a_full_disk_loses_nothing_and_work_goes_on_after_a_gc() {
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
    // A commit may succeed: what its record needs is there beforehand. Then there is no `work` to remove.
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

/// Fills a disk to the last block and returns the directory that holds the filling.
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
    // Not even the making of the store is done in advance for half of them.
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
            "a_full_disk_loses_nothing_and_work_goes_on_after_a_gc",
            a_full_disk_loses_nothing_and_work_goes_on_after_a_gc,
        ),
        (
            "killed_at_every_change_nothing_is_lost_or_half_made",
            killed_at_every_change_nothing_is_lost_or_half_made,
        ),
        (
            "failing_calls_leave_the_store_whole",
            failing_calls_leave_the_store_whole,
        ),
    ]);
}

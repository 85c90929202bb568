//! On random stores, gc keeps exactly what `why` explains, and `df` and `check` say the same.
//!
//! A store is the list of steps that made it, generated from a seed. A failing list is tried again
//! with fewer steps, and the fewest that still fail are printed with the seed. `VELLUM_SEED`
//! repeats one.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use common::*;
use jiff::Timestamp;
use vellum_format::Digest;
use vellum_store::*;
use vellum_testkit::script::fewest;
use vellum_testkit::{Scratch, rng::Rng};

/// Names are numbers below this, so that steps use each other's objects.
const NAMES: usize = 6;

/// What holds a new snapshot.
#[derive(Clone, Copy, Debug)]
enum Hold {
    Nothing,
    UntilRemoved,
    Lease(usize),
}

/// One step. A refusal by the store is not a failure.
#[derive(Clone, Copy, Debug)]
enum Step {
    Layer(usize, Option<usize>, Hold),
    Prepare(usize, Option<usize>, Hold),
    View(usize, Option<usize>, Hold),
    Remove(&'static str, usize),
    Container(usize, Option<usize>),
    RemoveContainer(usize),
    Image(usize, usize),
    RemoveImage(usize),
    Blob(usize, Option<usize>),
    Volume(usize),
    RemoveVolume(usize),
    /// One that is alive, or one that has expired.
    Lease(usize, bool),
    HoldSnapshot(usize, usize),
    HoldBlob(usize, usize),
    HoldRecipe(usize, usize),
    EndLease(usize),
    /// Something without a record, on a shelf.
    Litter(&'static str),
    Collect,
}

const LITTER: [&str; 10] = [
    "overlay2/TREE",
    "overlay2/stranger",
    "overlay2/l/AAAAAAAAAAAAAAAAAAAAAAAAAA",
    "records/TREE.json",
    "records/image-TREE.json",
    "records/container-TREE.json",
    "recipes/TREE",
    "content/sha256/TREE",
    "volumes/nobodys",
    "staging/nobodys",
];

fn hold(rng: &mut Rng) -> Hold {
    match rng.below(4) {
        0 => Hold::Nothing,
        1 => Hold::UntilRemoved,
        _ => Hold::Lease(rng.below(NAMES)),
    }
}

/// Some leases and layers first, so that little is refused later, then random steps.
fn steps(rng: &mut Rng, count: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..NAMES {
        steps.push(Step::Lease(n, rng.chance(50)));
    }
    for n in 0..NAMES {
        let parent = n.checked_sub(1).map(|below| rng.below(below + 1));
        let parent = parent.filter(|_| rng.chance(60));
        steps.push(Step::Layer(n, parent, hold(rng)));
    }
    for _ in 0..count {
        let (n, m) = (rng.below(NAMES), rng.below(NAMES));
        let parent = rng.chance(75).then_some(m);
        steps.push(match rng.below(24) {
            0..2 => Step::Layer(n, parent, hold(rng)),
            2 => Step::Prepare(n, parent, hold(rng)),
            3 => Step::View(n, parent, hold(rng)),
            4 => Step::Remove(rng.pick::<&str>(&["layer", "work", "view"]), n),
            5..8 => Step::Container(n, parent),
            8 => Step::RemoveContainer(n),
            9..12 => Step::Image(n, m),
            12 => Step::RemoveImage(n),
            13..15 => Step::Blob(n, rng.chance(50).then_some(m)),
            15 => Step::Volume(n),
            16 => Step::RemoveVolume(n),
            17 => Step::Lease(n, rng.chance(50)),
            18 => Step::HoldSnapshot(n, m),
            19 => Step::HoldBlob(n, m),
            20 => Step::HoldRecipe(n, m),
            21 => Step::EndLease(n),
            22 => Step::Litter(rng.pick::<&str>(&LITTER)),
            _ if rng.chance(40) => Step::Collect,
            _ => Step::Litter(rng.pick::<&str>(&LITTER)),
        });
    }
    steps
}

fn name(kind: &str, n: usize) -> SnapshotKey {
    key(&format!("{kind}-{n}"))
}

fn lease(n: usize) -> LeaseId {
    LeaseId::new(format!("lease-{n}"))
}

fn diff_id(n: usize) -> Digest {
    Digest::of(format!("tar of {n}").as_bytes())
}

fn blob(n: usize) -> Vec<u8> {
    format!("blob {n}").into_bytes()
}

fn options(parent: Option<usize>, hold: Hold) -> PrepareOptions {
    let mut options = PrepareOptions {
        parent: parent.map(|parent| name("layer", parent)),
        ..PrepareOptions::default()
    };
    match hold {
        Hold::Nothing => {}
        Hold::UntilRemoved => options.keep = Keep::UntilRemoved,
        Hold::Lease(n) => options.lease = Some(lease(n)),
    }
    options
}

fn take(store: &Store, step: Step) -> Result<(), StoreError> {
    match step {
        Step::Layer(n, parent, hold) => {
            let options = options(parent, hold);
            let staged = store.stage_layer_on(options.parent.as_ref())?;
            let mut recipe = store.stage_file()?;
            std::io::Write::write_all(&mut recipe, &blob(n)).unwrap();
            let commit = LayerCommit {
                keep: options.keep,
                lease: options.lease,
                diff_id: Some(diff_id(n)),
                recipe: Some(recipe),
                ..LayerCommit::new(name("layer", n), options.parent)
            };
            store.commit_layer(staged, commit).map(drop)
        }
        Step::Prepare(n, parent, hold) => store
            .prepare(&name("work", n), &options(parent, hold))
            .map(drop),
        Step::View(n, parent, hold) => store
            .view(&name("view", n), &options(parent, hold))
            .map(drop),
        Step::Remove(kind, n) => store.remove(&name(kind, n), Sweep::Later),
        Step::Container(n, parent) => {
            let new = NewContainer {
                id: format!("id-{n}"),
                name: format!("box-{n}"),
                image: None,
                image_name: None,
                config: "{}".into(),
                volumes: vec![],
            };
            let options = options(parent, Hold::Nothing);
            let made = store.create_container(&new, &name("box", n), &options);
            made.map(drop)
        }
        Step::RemoveContainer(n) => {
            let removed = store.remove_container(&format!("id-{n}"), Sweep::Now);
            removed.map(drop)
        }
        Step::Image(n, top) => {
            let id = store.put_blob(&blob(n), None)?;
            let manifest = store.put_blob(format!("manifest {n}").as_bytes(), None)?;
            let layer = ImageLayer {
                snapshot: name("layer", top),
                diff_id: diff_id(top),
                // As long as the layer that came uncompressed, whose blob has its diff id.
                blob: Some(LayerBlob {
                    media_type: "m".into(),
                    digest: Digest::of(&blob(top)),
                    size_bytes: 1,
                }),
            };
            let new = NewImage {
                id,
                manifest,
                media_type: "m".into(),
                layers: vec![layer],
                tags: vec![format!("image:{n}")],
            };
            store.put_image(&new).map(drop)
        }
        Step::RemoveImage(n) => store.remove_image(&Digest::of(&blob(n))).map(drop),
        Step::Blob(n, held) => {
            let held = held.map(lease);
            store.put_blob(&blob(n), held.as_ref()).map(drop)
        }
        Step::Volume(n) => {
            let made = store.create_volume(&format!("volume-{n}"), &Labels::new());
            made.map(drop)
        }
        Step::RemoveVolume(n) => store.remove_volume(&format!("volume-{n}")),
        Step::Lease(n, lives) => {
            let life = match lives {
                true => Life::Process,
                false => Life::Until(Timestamp::UNIX_EPOCH),
            };
            store.begin_lease_as(&lease(n), "a test", life)
        }
        Step::HoldSnapshot(n, m) => {
            let held = LeaseResource::Snapshot(name("layer", m));
            store.hold(&lease(n), &held).map(drop)
        }
        Step::HoldBlob(n, m) => {
            let held = LeaseResource::Blob(Digest::of(&blob(m)));
            store.hold(&lease(n), &held).map(drop)
        }
        Step::HoldRecipe(n, m) => {
            let held = LeaseResource::Recipe(diff_id(m));
            store.hold(&lease(n), &held).map(drop)
        }
        Step::EndLease(n) => store.end_lease(&lease(n)),
        Step::Litter(place) => {
            let path = place.replace("TREE", &"0123456789abcdef".repeat(4));
            let path = store.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match place.starts_with("overlay2/l/") {
                true => drop(std::os::unix::fs::symlink("../nowhere/diff", path)),
                false => fs::create_dir_all(path).unwrap(),
            }
            Ok(())
        }
        Step::Collect => store.gc(false).map(drop),
    }
}

/// Everything on the store's shelves.
fn paths(store: &Store) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = DriverKind::ALL.map(|kind| store.driver_home(kind)).into();
    dirs.push(store.driver_home(DriverKind::Overlay2).join("l"));
    let others = [
        "records",
        "content/sha256",
        "recipes",
        "volumes",
        "staging",
        "trash",
    ];
    dirs.extend(others.map(|dir| store.root().join(dir)));
    let entries = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok());
    entries
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect()
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    holds.then_some(()).ok_or_else(what)
}

/// Makes a store by these steps and returns what its answers contradict each other about.
fn agree(driver: DriverKind, steps: &[Step]) -> Result<(), String> {
    let scratch = Scratch::new();
    let store = open(&scratch, driver);
    for step in steps {
        // Refused, for lack of a parent for example.
        let _ = take(&store, *step);
    }
    let found = store.check(CheckOptions::default()).unwrap();
    ensure(found.is_empty(), || format!("check: {found:?}"))?;

    let would = store.gc(true).unwrap();
    let mut doomed = BTreeSet::new();
    for garbage in &would {
        if let Thing::Snapshot(key) = &garbage.thing {
            doomed.insert(key.clone());
        }
    }
    let df = store.df().unwrap();
    let mut freed = Usage::default();
    for layer in &df.layers {
        let goes = doomed.contains(&layer.key);
        ensure(layer.needed != goes, || {
            format!("df says {layer:?}, gc takes it: {goes}")
        })?;
        if goes {
            freed += layer.usage;
        }
    }
    ensure(df.unused_layers() == freed, || {
        format!("df: {:?}, gc: {freed:?}", df.unused_layers())
    })?;
    let mut keys = BTreeSet::new();
    store
        .walk::<StoreError>(&[], |info| {
            keys.insert(info.key);
            Ok(())
        })
        .unwrap();
    for key in &keys {
        let (reasons, goes) = (store.reasons_of(key).unwrap(), doomed.contains(key));
        ensure(reasons.is_empty() == goes, || {
            format!("{key} is kept by {reasons:?}, gc takes it: {goes}")
        })?;
    }
    let explained: BTreeMap<PathBuf, Why> = paths(&store)
        .into_iter()
        .map(|path| (path.clone(), store.why(&path).unwrap()))
        .collect();

    let did = store.gc(false).unwrap();
    ensure(did.len() == would.len(), || {
        format!("would take {would:?}, took {did:?}")
    })?;
    for (path, why) in &explained {
        let is_there = fs::symlink_metadata(path).is_ok();
        ensure(is_there != why.reasons.is_empty(), || {
            format!("{}: {why:?}, there: {is_there}", path.display())
        })?;
    }
    for key in &keys {
        let is_there = store.exists(key).unwrap();
        ensure(is_there != doomed.contains(key), || {
            format!("{key}: there: {is_there}")
        })?;
    }
    let again = store.gc(true).unwrap();
    ensure(again.is_empty(), || format!("a second time: {again:?}"))?;
    let deep = CheckOptions {
        deep: true,
        heal: false,
    };
    let found = store.check(deep).unwrap();
    ensure(found.is_empty(), || {
        format!("check after the collection: {found:?}")
    })?;
    let unused = store.df().unwrap().unused_layers();
    ensure(unused == Usage::default(), || {
        format!("df after the collection: {unused:?}")
    })
}

#[test]
fn gc_keeps_exactly_what_why_explains() {
    let seeds: Vec<u64> = match std::env::var("VELLUM_SEED") {
        Ok(seed) => vec![seed.parse().expect("VELLUM_SEED is a number")],
        Err(_) => (1..=12).collect(),
    };
    for seed in seeds {
        let mut rng = Rng::seeded(seed);
        let driver = *rng.pick(&DriverKind::ALL);
        let steps = steps(&mut rng, 30);
        if let Err(why) = agree(driver, &steps) {
            let steps = fewest(steps, |steps| agree(driver, steps).is_err());
            let why = agree(driver, &steps).err().unwrap_or(why);
            panic!("VELLUM_SEED={seed} {driver}: {why}\nafter {steps:?}");
        }
    }
}

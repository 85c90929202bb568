//! Helpers shared by the store's tests.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod steps;

use std::path::{Path, PathBuf};

use vellum_store::{
    Commit, DriverKind, PrepareOptions, Shape, SnapshotKey, Store, StoreOptions, TreeParts,
};
use vellum_testkit::{Scratch, kernel};

/// Opens a store of `driver` below `scratch`.
pub fn open(scratch: &Scratch, driver: DriverKind) -> Store {
    open_at(&scratch.join("store"), driver)
}

/// Opens the store at `root`.
pub fn open_at(root: &Path, driver: DriverKind) -> Store {
    Store::open(&StoreOptions {
        driver,
        ..StoreOptions::new(root)
    })
    .expect("the store opens")
}

/// A key from text.
pub fn key(text: &str) -> SnapshotKey {
    SnapshotKey::from(text)
}

/// Options with a parent.
pub fn on(parent: Option<&str>) -> PrepareOptions {
    PrepareOptions {
        parent: parent.map(key),
        ..PrepareOptions::default()
    }
}

/// Shows a tree somewhere: mounts it if it is stacked. The directory is removed with `scratch`.
pub fn show(scratch: &Scratch, parts: &TreeParts, at: &str) -> PathBuf {
    match &parts.shape {
        Shape::Plain { root, .. } => root.clone(),
        Shape::Overlay(overlay) => {
            let target = scratch.dir(at);
            let upper = overlay.upper.as_ref().zip(overlay.work.as_ref());
            kernel::Overlay {
                lowers: overlay
                    .lowers
                    .iter()
                    .map(|layer| layer.dir.clone())
                    .collect(),
                upper: upper.map(|(upper, work)| (upper.dir.clone(), work.clone())),
                ..kernel::Overlay::default()
            }
            .option("index", "off")
            .option("redirect_dir", "nofollow")
            .option("metacopy", "off")
            .mount(scratch, &target)
            .expect("the tree mounts");
            target
        }
    }
}

/// Unmounts what [`show`] mounted.
pub fn hide(scratch: &Scratch, parts: &TreeParts, at: &Path) {
    if matches!(parts.shape, Shape::Overlay(_)) {
        scratch.unmount(at);
    }
}

/// Prepares `k` on `parent`, lets `fill` write into the shown tree, and commits it as `name`.
pub fn layer(
    scratch: &Scratch,
    store: &Store,
    name: &str,
    parent: Option<&str>,
    fill: impl FnOnce(&Path),
) {
    let k = key(&format!("extract {name}"));
    let parts = store.prepare(&k, &on(parent)).expect("prepare");
    let at = show(scratch, &parts, &format!("m/{}", name.replace('/', "_")));
    fill(&at);
    hide(scratch, &parts, &at);
    store
        .commit(&key(name), &k, Commit::default())
        .expect("commit");
}

/// Runs the named tests of a program that has a `main` of its own: all, or those whose name
/// contains the first argument.
pub fn run_named(tests: &[(&str, fn())]) {
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter.as_str()))
        {
            let begun = std::time::Instant::now();
            test();
            let seconds = begun.elapsed().as_secs_f64();
            println!("test {name} ... ok ({seconds:.1} s)");
        }
    }
}

//! Snapshots that another program keeps account of, left half done by a killed server.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vellum_service::config::{Partial, Surroundings, resolve};
use vellum_service::containerd::snapshots::{self, ClientSettings, GID_MAPPING, UID_MAPPING};
use vellum_service::{Context, progress};
use vellum_store::{Keep, PrepareOptions, SnapshotKey};
use vellum_sys::Cancel;
use vellum_testkit::{Scratch, needs_root};

fn context(dir: &Path) -> Context {
    let around = Surroundings {
        rootless: false,
        uid: 0,
        environment: BTreeMap::new(),
        system_file: PathBuf::from("/nonexistent"),
    };
    let settings = Partial {
        root: Some(dir.join("store")),
        run_dir: Some(dir.join("run")),
        ..Partial::default()
    };
    let config = resolve(&around, None, settings).unwrap();
    Context::new(config, Cancel::new(), progress::silent())
}

#[test]
fn a_half_mapped_snapshot_is_finished_at_the_next_mount() {
    if !needs_root("mapped ids") {
        return;
    }
    let scratch = Scratch::new();
    let ctx = context(scratch.path());
    let client = ClientSettings {
        remap_ids: true,
        ..ClientSettings::default()
    };
    let base = snapshots::NewSnapshot {
        key: "unpacking".into(),
        ..Default::default()
    };
    snapshots::prepare(&ctx, client, &base).unwrap();
    snapshots::commit(&ctx, "base", "unpacking", BTreeMap::new(), None).unwrap();
    // The state after the store's part: what maps the ids is not decided yet.
    let mapping = |label: &str| (label.to_owned(), "0:100000:65536".to_owned());
    let options = PrepareOptions {
        parent: Some(SnapshotKey::from("containerd/base")),
        labels: [UID_MAPPING, GID_MAPPING].map(mapping).into(),
        keep: Keep::UntilRemoved,
        ..PrepareOptions::default()
    };
    let key = SnapshotKey::from("containerd/k");
    ctx.store().unwrap().prepare(&key, &options).unwrap();

    let mounts = snapshots::mounts(&ctx, client, "k").unwrap();
    let option = |name: &str| {
        let options = mounts[0].options.iter();
        options
            .filter_map(|option| option.strip_prefix(name))
            .next()
    };
    assert_eq!(option("uidmap="), Some("0:100000:65536"));
    let upper = std::fs::metadata(option("upperdir=").unwrap()).unwrap();
    assert_eq!((upper.uid(), upper.gid()), (100_000, 100_000));
    // Now it stays so, whatever the server's settings are.
    let later = snapshots::mounts(&ctx, ClientSettings::default(), "k").unwrap();
    assert_eq!(later, mounts);
    let shown = snapshots::stat(&ctx, client, "k").unwrap().labels;
    assert_eq!(shown, options.labels);
}

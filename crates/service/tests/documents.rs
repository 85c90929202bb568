//! Images with unusual documents, brought into a store.

mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::{context, load_path};
use vellum_format::Digest;
use vellum_service::image::{
    LoadRequest, LoadSource, SaveFormat, SaveRequest, SaveTarget, images, load, save,
};
use vellum_service::mount::mount_image;
use vellum_service::mount::umount::umount_path;
use vellum_service::progress::{Meter, Progress, Silent, Unit};
use vellum_testkit::{Scratch, needs_root};

fn put_blob(layout: &Path, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({"digest": digest.to_string(), "size": bytes.len()})
}

/// A layout whose images have no layers: each has this root file system and these annotations.
fn layout(scratch: &Scratch, name: &str, images: &[(Value, Value)]) -> PathBuf {
    let layout = scratch.dir(name);
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let mut entries = Vec::new();
    for (at, (rootfs, annotations)) in images.iter().enumerate() {
        let config = json!({"os": "linux", "author": at.to_string(), "rootfs": rootfs, "config": {"Labels": {"a": null}}});
        let manifest = json!({"schemaVersion": 2, "config": put_blob(&layout, config.to_string().as_bytes()), "layers": null});
        let mut entry = put_blob(&layout, manifest.to_string().as_bytes());
        entry["annotations"] = annotations.clone();
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion": "1.0.0"}"#,
    )
    .unwrap();
    layout
}

#[test]
fn an_image_without_layers_is_an_empty_directory() {
    if !needs_root("mounting an image") {
        return;
    }
    let scratch = Scratch::new();
    let named = |n: &str| json!({"io.containerd.image.name": format!("docker.io/library/{n}:1")});
    let kinds = [
        ("list", json!({"type": "layers", "diff_ids": []})),
        ("null", json!({"type": "layers", "diff_ids": null})),
        ("type", json!({"type": "layers"})),
        ("empty", json!({})),
        ("absent", Value::Null),
    ];
    let all: Vec<_> = kinds
        .iter()
        .map(|(n, rootfs)| (rootfs.clone(), named(n)))
        .collect();
    let vellum = context(&scratch, "store");
    load_path(&vellum, &layout(&scratch, "layout", &all)).unwrap();
    let target = scratch.dir("target");
    for (name, _) in &kinds {
        mount_image(&vellum, &format!("{name}:1"), &target).unwrap();
        let found = std::fs::read_dir(&target).unwrap().count();
        let refused = std::fs::write(target.join("x"), "").unwrap_err();
        umount_path(&vellum, &target, false).unwrap();
        assert_eq!(found, 0, "{name}");
        assert_eq!(refused.raw_os_error(), Some(30), "{name}: read-only");
    }
    // Saved and loaded again: the same images.
    let saved = scratch.join("saved.tar");
    let request = SaveRequest {
        images: kinds.iter().map(|(name, _)| format!("{name}:1")).collect(),
        target: SaveTarget::Path(saved.clone()),
        format: SaveFormat::DockerArchive,
        compression: None,
    };
    save(&vellum, &request).unwrap();
    let other = context(&scratch, "other");
    load_path(&other, &saved).unwrap();
    let ids = |context| {
        let mut ids: Vec<String> = images(context, None)
            .unwrap()
            .into_iter()
            .map(|i| i.id)
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&other), ids(&vellum));
    assert_eq!(ids(&other).len(), kinds.len());
}

/// Keeps the warnings.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Progress for Warnings {
    fn meter(&self, _: &str, _: Unit, _: Option<u64>) -> Box<dyn Meter> {
        Box::new(Silent)
    }
    fn say(&self, _: &str) {}
    fn warn(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

#[test]
fn invalid_names_are_left_out_with_a_warning() {
    const FULL: &str = "io.containerd.image.name";
    const SHORT: &str = "org.opencontainers.image.ref.name";
    let zeros = "0".repeat(64);
    let rows = [
        (json!({SHORT: "Foo/Bar:1"}), None, true),
        (json!({SHORT: "x/y:1.0+git"}), None, true),
        (json!({SHORT: "/a/b"}), None, true),
        (json!({SHORT: format!("x/y@sha256:{zeros}")}), None, true),
        (json!({SHORT: "1.0+git"}), None, false),
        (json!({SHORT: "latest"}), None, false),
        (json!({SHORT: "a b"}), None, false),
        (json!({SHORT: ""}), None, false),
        (json!({SHORT: null}), None, false),
        (json!({"other": "x"}), None, false),
        (Value::Null, None, false),
        (json!({SHORT: "t:1"}), Some("t:1"), false),
        (
            json!({SHORT: "localhost:5000/t"}),
            Some("localhost:5000/t:latest"),
            false,
        ),
        (
            json!({FULL: "docker.io/library/t:1", SHORT: "1.0+git"}),
            Some("t:1"),
            false,
        ),
        (
            json!({FULL: "Foo/bar baz:1", SHORT: "u:1"}),
            Some("u:1"),
            false,
        ),
    ];
    for (at, (annotations, expect, warned)) in rows.into_iter().enumerate() {
        let scratch = Scratch::new();
        let mut vellum = context(&scratch, "store");
        let warnings = Arc::new(Warnings::default());
        vellum.progress = warnings.clone();
        let what = annotations.to_string();
        let path = layout(
            &scratch,
            &format!("layout-{at}"),
            &[(json!({}), annotations)],
        );
        let loaded = load_path(&vellum, &path).unwrap();
        assert_eq!(
            loaded[0].names,
            Vec::from_iter(expect.map(str::to_owned)),
            "{what}"
        );
        assert_eq!(!warnings.0.lock().unwrap().is_empty(), warned, "{what}");
        // A given name is the one that counts, and no warning is needed.
        warnings.0.lock().unwrap().clear();
        let request = LoadRequest {
            source: LoadSource::Path(path),
            name: Some("mine:1".to_owned()),
            platform: None,
        };
        assert_eq!(
            load(&vellum, &request).unwrap()[0].names,
            ["mine:1"],
            "{what}"
        );
        assert!(warnings.0.lock().unwrap().is_empty(), "{what}");
    }
}

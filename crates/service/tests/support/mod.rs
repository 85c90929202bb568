//! A store in a scratch directory, and its images as trees.
#![allow(dead_code)] // each test program uses a part of it
#![allow(clippy::result_large_err)] // the verbs' own error

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vellum_service::config::{Partial, Surroundings, resolve};
use vellum_service::image::{BroughtIn, LoadRequest, LoadSource, load};
use vellum_service::{Cancel, Context, progress};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::{Scratch, Tree};

/// A context on a new store below `scratch`.
pub fn context(scratch: &Scratch, name: &str) -> Context {
    context_with(scratch, name, Partial::default())
}

/// The same with settings.
pub fn context_with(scratch: &Scratch, name: &str, settings: Partial) -> Context {
    let around = Surroundings {
        rootless: false,
        uid: 0,
        environment: BTreeMap::new(),
        system_file: PathBuf::from("/nonexistent"),
    };
    let settings = Partial {
        root: Some(scratch.join(name).join("store")),
        run_dir: Some(scratch.join(name).join("run")),
        ..settings
    };
    scratch.dir(name);
    let config = resolve(&around, None, settings).unwrap();
    Context::new(config, Cancel::new(), progress::silent())
}

/// Loads an archive or layout.
pub fn load_path(context: &Context, path: &Path) -> vellum_service::Result<Vec<BroughtIn>> {
    let request = LoadRequest {
        source: LoadSource::Path(path.to_owned()),
        name: None,
        platform: None,
    };
    load(context, &request)
}

/// Mounts an image's layers with the kernel and takes a picture.
pub fn picture(scratch: &Scratch, context: &Context, image: &str) -> Tree {
    let store = context.store().unwrap();
    let record = vellum_service::names::image(context, image).unwrap();
    let tree = store.tree(record.top().unwrap()).unwrap();
    let dirs: Vec<PathBuf> = tree.layers().into_iter().map(|l| l.dir).collect();
    if dirs.len() == 1 {
        return Tree::read(&dirs[0]).unwrap();
    }
    let target = scratch.dir(format!("picture-{}", scratch_number()));
    Overlay {
        lowers: dirs,
        ..Overlay::default()
    }
    .mount(scratch, &target)
    .unwrap();
    let tree = Tree::read(&target).unwrap();
    scratch.unmount(&target);
    tree
}

fn scratch_number() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The sha256 of every layer file that `manifest.json` of a docker-archive names.
pub fn archive_layers(path: &Path) -> Vec<String> {
    let script = r#"
import hashlib, json, sys, tarfile
with tarfile.open(sys.argv[1]) as tar:
    for image in json.load(tar.extractfile("manifest.json")):
        for name in image["Layers"]:
            print(hashlib.sha256(tar.extractfile(name).read()).hexdigest())
"#;
    let out = vellum_testkit::clients::run(
        std::process::Command::new("python3")
            .arg("-c")
            .arg(script)
            .arg(path),
    )
    .unwrap();
    out.lines().map(str::to_owned).collect()
}

/// Packs `members` of directory `from` as a layer: each under its name, directories without their
/// content.
pub fn layer_of(scratch: &Scratch, name: &str, from: &Path, members: &[&str]) -> PathBuf {
    let path = scratch.join(name);
    vellum_testkit::clients::run(
        std::process::Command::new("tar")
            .args([
                "--format=pax",
                "--no-recursion",
                "--xattrs",
                "--xattrs-include=user.*",
            ])
            .arg("-cf")
            .arg(&path)
            .arg("-C")
            .arg(from)
            .args(members),
    )
    .unwrap();
    path
}

/// Writes a docker-archive called `image:latest` of these layers, in which layers are links and
/// listed last to first.
pub fn archive_of(scratch: &Scratch, name: &str, layers: &[PathBuf]) -> PathBuf {
    let dir = scratch.dir(format!("{name}.d"));
    let mut diff_ids = Vec::new();
    let mut files = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let bytes = std::fs::read(layer).unwrap();
        diff_ids.push(vellum_format::Digest::of(&bytes).to_string());
        std::fs::create_dir(dir.join(at.to_string())).unwrap();
        std::fs::write(dir.join(format!("{at}.tar")), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../{at}.tar"), dir.join(format!("{at}/layer.tar")))
            .unwrap();
        files.push(format!("{at}/layer.tar"));
    }
    let config = serde_json::json!({
        "architecture": vellum_image::Platform::host().architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["image:latest"], "Layers": files}]);
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let mut members: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    members.sort();
    members.reverse();
    let path = scratch.join(name);
    vellum_testkit::clients::run(
        std::process::Command::new("tar")
            .arg("-cf")
            .arg(&path)
            .arg("-C")
            .arg(&dir)
            .args(members),
    )
    .unwrap();
    path
}

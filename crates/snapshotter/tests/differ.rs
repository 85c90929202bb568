//! The differ with a fake containerd: layers from its content store into snapshots, and new layers
//! back.

#[path = "support/fake_containerd.rs"]
mod fake_containerd;
#[path = "support/opaque.rs"]
mod opaque;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fake_containerd::{FakeContainerd, NAMESPACE};
use tonic::{Code, Request};
use vellum_format::Digest;
use vellum_image::compression::Encoder;
use vellum_image::packing::Packing;
use vellum_image::{Compression, LayerWriter, TarEntry, TarKind};
use vellum_service::config::{Partial, Surroundings, resolve};
use vellum_service::containerd::snapshots::{
    self, ClientSettings, MountEntry, NewSnapshot, Prepared,
};
use vellum_service::{Cancel, Context, progress};
use vellum_snapshotter::api::services::diff::v1 as wire;
use vellum_snapshotter::api::services::diff::v1::diff_server::Diff as _;
use vellum_snapshotter::api::types::{Descriptor, Mount};
use vellum_snapshotter::content::Containerd;
use vellum_snapshotter::differ::Differ;
use vellum_snapshotter::shared::Shared;
use vellum_sys::{Dir, Timespec, xattr};
use vellum_testkit::clients::run;
use vellum_testkit::tree::{Ignore, Tree};
use vellum_testkit::{Scratch, is_root, untested};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

struct World {
    scratch: Scratch,
    containerd: FakeContainerd,
    context: Arc<Context>,
    differ: Differ,
}

/// `None`, and recorded as untested, where the layers' marks can't be created.
fn world(files: bool) -> Option<World> {
    if !is_root() {
        untested("differ", "the test does not run as root");
        return None;
    }
    let scratch = Scratch::new();
    let around = Surroundings {
        rootless: false,
        uid: 0,
        environment: BTreeMap::new(),
        system_file: PathBuf::from("/nonexistent"),
    };
    let settings = Partial {
        root: Some(scratch.join("store")),
        run_dir: Some(scratch.join("run")),
        ..Partial::default()
    };
    let config = resolve(&around, None, settings).unwrap();
    let context = Context::new(config, Cancel::new(), progress::silent());
    let shared = Arc::new(Shared::new(context, ClientSettings::default()));
    let containerd = FakeContainerd::default();
    if files {
        containerd.state.lock().unwrap().root = Some(scratch.dir("content"));
    }
    let socket = scratch.join("sock");
    containerd.serve(&socket);
    Some(World {
        context: shared.context(),
        differ: Differ::new(shared, Containerd::at(&socket).unwrap()),
        containerd,
        scratch,
    })
}

impl World {
    fn prepare(&self, key: &str, parent: Option<&str>) -> Vec<MountEntry> {
        let new = NewSnapshot {
            key: key.into(),
            parent: parent.map(str::to_owned),
            ..NewSnapshot::default()
        };
        match snapshots::prepare(&self.context, ClientSettings::default(), &new).unwrap() {
            Prepared::New(mounts) => mounts,
            Prepared::Known { chain } => panic!("{chain} is known"),
        }
    }

    fn view(&self, key: &str, parent: &str) -> Vec<MountEntry> {
        let new = NewSnapshot {
            key: key.into(),
            parent: Some(parent.into()),
            ..NewSnapshot::default()
        };
        snapshots::view(&self.context, ClientSettings::default(), &new).unwrap()
    }

    fn commit(&self, name: &str, key: &str) {
        snapshots::commit(&self.context, name, key, BTreeMap::new(), None).unwrap();
    }

    async fn apply(
        &self,
        mounts: &[MountEntry],
        digest: &str,
    ) -> Result<Descriptor, tonic::Status> {
        let request = wire::ApplyRequest {
            diff: Some(Descriptor {
                media_type: GZIP.into(),
                digest: digest.into(),
                ..Descriptor::default()
            }),
            mounts: wired(mounts),
            ..wire::ApplyRequest::default()
        };
        let answer = self.differ.apply(called(request)).await?;
        Ok(answer.into_inner().applied.unwrap())
    }

    /// Returns what the mount shows.
    fn shown(&self, mounts: &[MountEntry]) -> Tree {
        let [mount] = mounts else {
            panic!("not one mount: {mounts:?}")
        };
        let at = self.scratch.dir("shown");
        let mut command = std::process::Command::new("mount");
        if mount.kind != "bind" {
            command.args(["-t", &mount.kind]);
        }
        command.arg("-o").arg(mount.options.join(","));
        run(command.arg(&mount.source).arg(&at)).unwrap();
        self.scratch.adopt_mount(&at);
        let tree = Tree::read(&at).unwrap();
        self.scratch.unmount(&at);
        tree
    }

    /// Unpacks layers onto each other and commits them as `1`, `2`, ...
    async fn image(&self, layers: &[Vec<u8>]) {
        for (at, layer) in layers.iter().enumerate() {
            let parent = (at > 0).then(|| at.to_string());
            let mounts = self.prepare("unpacking", parent.as_deref());
            let blob = packed(Compression::Gzip, layer);
            let applied = self.apply(&mounts, &self.containerd.add(blob)).await;
            assert_eq!(applied.unwrap().digest, Digest::of(layer).to_string());
            self.commit(&(at + 1).to_string(), "unpacking");
        }
    }
}

/// A call as containerd makes it.
fn called<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = NAMESPACE.parse().unwrap();
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    request
}

fn wired(mounts: &[MountEntry]) -> Vec<Mount> {
    mounts
        .iter()
        .map(|entry| Mount {
            r#type: entry.kind.clone(),
            source: entry.source.clone(),
            target: entry.target.clone(),
            options: entry.options.clone(),
        })
        .collect()
}

fn upper(mounts: &[MountEntry]) -> PathBuf {
    let options = &mounts[0].options;
    let upper = options.iter().find_map(|o| o.strip_prefix("upperdir="));
    PathBuf::from(upper.unwrap_or(&mounts[0].source))
}

fn lowers(mounts: &[MountEntry]) -> Vec<PathBuf> {
    let options = &mounts[0].options;
    let lowers = options.iter().find_map(|o| o.strip_prefix("lowerdir="));
    let lowers = lowers.unwrap_or_default().split(':');
    lowers
        .filter(|dir| !dir.is_empty())
        .map(Into::into)
        .collect()
}

fn entry(path: &str, kind: TarKind, mode: u32) -> TarEntry {
    TarEntry {
        path: path.into(),
        kind,
        mode,
        uid: 7,
        gid: 8,
        mtime: Timespec::new(1_000_000_000, 5),
        xattrs: Vec::new(),
    }
}

struct Layer(LayerWriter<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(LayerWriter::new(Vec::new()))
    }

    fn dir(mut self, path: &str, mode: u32) -> Self {
        let entry = entry(path, TarKind::Directory, mode);
        self.0.append(&entry, &mut std::io::empty()).unwrap();
        self
    }

    fn file(mut self, path: &str, content: &str) -> Self {
        let kind = TarKind::File {
            size_bytes: content.len() as u64,
        };
        let entry = entry(path, kind, 0o640);
        self.0.append(&entry, &mut content.as_bytes()).unwrap();
        self
    }

    fn link(mut self, path: &str, target: &str) -> Self {
        let kind = TarKind::HardLink {
            target: target.into(),
        };
        let entry = entry(path, kind, 0o644);
        self.0.append(&entry, &mut std::io::empty()).unwrap();
        self
    }

    fn gone(mut self, path: &str) -> Self {
        self.0.whiteout(Path::new(path)).unwrap();
        self
    }

    fn opaque(mut self, path: &str) -> Self {
        self.0.opaque(Path::new(path)).unwrap();
        self
    }

    fn tar(self) -> Vec<u8> {
        self.0.finish().unwrap()
    }
}

fn packed(compression: Compression, tar: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn base() -> Vec<u8> {
    Layer::new()
        .dir("etc", 0o750)
        .file("etc/a", "a")
        .link("etc/b", "etc/a")
        .dir("old", 0o755)
        .file("old/x", "x")
        .tar()
}

fn is_whiteout(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.mode() & 0o170000 == 0o020000 && meta.rdev() == 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_goes_from_the_content_store_straight_into_the_upper() {
    for (files, compression) in [
        (true, Compression::Gzip),
        (false, Compression::Zstd),
        (true, Compression::None),
    ] {
        let Some(world) = world(files) else { return };
        world.image(&[base()]).await;
        let mounts = world.prepare("next", Some("1"));
        let upper = upper(&mounts);
        let layer = Layer::new()
            .gone("etc/a")
            .file("etc/new", "new")
            .dir("old", 0o700)
            .opaque("old")
            .file("old/y", "y")
            .tar();
        let blob = packed(compression, &layer);
        let applied = world
            .apply(&mounts, &world.containerd.add(blob))
            .await
            .unwrap();
        assert_eq!(applied.digest, Digest::of(&layer).to_string());
        assert_eq!(applied.size, layer.len() as i64);
        assert_eq!(applied.media_type, "application/vnd.oci.image.layer.v1.tar");

        assert_eq!(std::fs::read(upper.join("etc/new")).unwrap(), b"new");
        assert!(is_whiteout(&upper.join("etc/a")));
        let opaque = xattr::get(
            &Dir::open(&upper).unwrap(),
            OsStr::new("old"),
            OsStr::new("trusted.overlay.opaque"),
        );
        assert_eq!(opaque.unwrap().as_deref(), Some(&b"y"[..]));
        // A directory that the layer does not list looks as below.
        let etc = std::fs::metadata(upper.join("etc")).unwrap();
        assert_eq!(
            (etc.permissions().mode() & 0o7777, etc.uid(), etc.gid()),
            (0o750, 7, 8)
        );
        // The base's hard links are one file.
        let lower = PathBuf::from(&world.view("look", "1")[0].source);
        let nlink = |name: &str| std::fs::metadata(lower.join(name)).unwrap().nlink();
        assert_eq!((nlink("etc/a"), nlink("etc/b")), (2, 2));
        let reads = world.containerd.state.lock().unwrap().reads;
        assert_eq!(
            reads,
            if files { 0 } else { 2 },
            "the file is read where there is one"
        );
        drop(world.scratch);
    }
}

/// A layer that only makes a directory opaque doesn't list it. The result is the directory below,
/// but empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_has_one_tree_whether_its_layers_knew_their_parents_or_not() {
    let Some(world) = world(false) else { return };
    for (about, layers) in opaque::STACKS {
        for own in [true, false] {
            let mut shown = [false, true].map(|rebase| (rebase, Tree::default()));
            for (rebase, tree) in &mut shown {
                // The base of most stacks is unpacked once.
                let name = |at: usize| match at == 0 && layers[0] == opaque::BASE {
                    true => format!("base {own}"),
                    false => format!("{about} {own} {rebase} {at}"),
                };
                let there = |at: usize| {
                    snapshots::stat(&world.context, ClientSettings::default(), &name(at)).is_ok()
                };
                let prepare = |at: usize| {
                    let parent = (at > 0).then(|| name(at - 1));
                    let mut labels = BTreeMap::new();
                    if *rebase {
                        labels.insert("containerd.io/snapshot.ref".to_owned(), name(at));
                        if let Some(parent) = &parent {
                            let label = "containerd.io/snapshot/parent-chain-id";
                            labels.insert(label.to_owned(), parent.clone());
                        }
                    }
                    let new = NewSnapshot {
                        key: format!("{} unpacking", name(at)),
                        parent: parent.filter(|_| !*rebase),
                        labels,
                    };
                    match snapshots::prepare(&world.context, ClientSettings::default(), &new)
                        .unwrap()
                    {
                        Prepared::New(mounts) => mounts,
                        Prepared::Known { chain } => panic!("{chain} is known"),
                    }
                };
                let commit = |at: usize| {
                    let parent = (*rebase && at > 0).then(|| name(at - 1));
                    let key = format!("{} unpacking", name(at));
                    let labels = BTreeMap::new();
                    let parent = parent.as_deref();
                    snapshots::commit(&world.context, &name(at), &key, labels, parent).unwrap();
                };
                let todo: Vec<usize> = (0..layers.len()).filter(|&at| !there(at)).collect();
                for &at in &todo {
                    let (layer, mounts) = (layers[at], prepare(at));
                    match own {
                        true => {
                            let blob = packed(
                                Compression::Gzip,
                                &opaque::tar(layer, &world.scratch.dir("layer")),
                            );
                            let digest = world.containerd.add(blob);
                            world.apply(&mounts, &digest).await.unwrap();
                        }
                        false => {
                            opaque::unpack_as_containerd(layer, &upper(&mounts), &lowers(&mounts));
                        }
                    }
                    if !*rebase {
                        commit(at);
                    }
                }
                if *rebase {
                    todo.into_iter().for_each(commit);
                }
                let key = format!("look {}", name(0));
                let mounts = world.view(&key, &name(layers.len() - 1));
                *tree = world.shown(&mounts);
                snapshots::remove(&world.context, ClientSettings::default(), &key).unwrap();
            }
            let found = shown[0].1.differences(
                &shown[1].1,
                Ignore {
                    directory_mtimes: true,
                    ..Ignore::default()
                },
            );
            let unpacker = if own { "Vellum" } else { "containerd" };
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert!(
                found.is_empty(),
                "{about}, by {unpacker}:\n{}",
                found.join("\n")
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_a_namespace_finds_its_blob() {
    let Some(world) = world(true) else { return };
    let digest = world.containerd.add(packed(Compression::Gzip, &base()));
    let request = wire::ApplyRequest {
        diff: Some(Descriptor {
            media_type: GZIP.into(),
            digest,
            ..Descriptor::default()
        }),
        mounts: wired(&world.prepare("one", None)),
        ..wire::ApplyRequest::default()
    };
    world.differ.apply(Request::new(request)).await.unwrap();
    // Only the caller's target is written to.
    let request = wire::DiffRequest::default();
    let refused = world.differ.diff(Request::new(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_differ_writes_only_into_what_is_being_unpacked() {
    let Some(world) = world(true) else { return };
    world.image(&[base()]).await;
    let digest = world.containerd.add(packed(Compression::Gzip, &base()));
    let layer = PathBuf::from(&world.view("look", "1")[0].source);
    let bind = |source: &Path, options: &[&str]| {
        vec![MountEntry {
            kind: "bind".into(),
            source: source.display().to_string(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
            ..MountEntry::default()
        }]
    };
    // A committed layer, whatever the mount says.
    let error = world
        .apply(&bind(&layer, &["rw"]), &digest)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let error = world
        .apply(&world.view("view", "1"), &digest)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    // A directory in the store that belongs to no snapshot.
    let inside = world.context.root().join("content");
    let error = world
        .apply(&bind(&inside, &["rw"]), &digest)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error}");
    assert_eq!(
        std::fs::read_dir(&inside).unwrap().count(),
        2,
        "sha256 and sha512"
    );
    // Another snapshotter's directory is accepted as given, under another name too.
    let foreign = world.scratch.dir("foreign");
    let link = world.scratch.join("link");
    symlink(&foreign, &link).unwrap();
    world
        .apply(&bind(&link, &["rw", "rbind"]), &digest)
        .await
        .unwrap();
    assert_eq!(std::fs::read(foreign.join("etc/b")).unwrap(), b"a");
    // A damaged blob.
    let hex = digest.strip_prefix("sha256:").unwrap();
    let file = world.scratch.join("content/blobs/sha256").join(hex);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = world
        .apply(&world.prepare("bad", None), &digest)
        .await
        .unwrap_err();
    assert_ne!(error.code(), Code::Unimplemented, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_differ_cant_do_is_left_to_the_next() {
    let Some(world) = world(true) else { return };
    let digest = world.containerd.add(packed(Compression::Gzip, &base()));
    let mount = |kind: &str, options: &[&str]| MountEntry {
        kind: kind.into(),
        source: "/".into(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
        ..MountEntry::default()
    };
    for mounts in [
        vec![mount("fuse3.vellum", &["lowerdir=/"])],
        vec![mount("ext4", &["loop"])],
        vec![mount("overlay", &["upperdir=/tmp", "uidmap=0:1:1"])],
        vec![mount("bind", &[]), mount("bind", &[])],
    ] {
        let error = world.apply(&mounts, &digest).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
    }
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/octet-stream",
    ] {
        let request = wire::ApplyRequest {
            diff: Some(Descriptor {
                media_type: media_type.into(),
                digest: digest.clone(),
                ..Descriptor::default()
            }),
            ..wire::ApplyRequest::default()
        };
        let error = world.differ.apply(called(request)).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
        let request = wire::DiffRequest {
            media_type: media_type.into(),
            ..wire::DiffRequest::default()
        };
        let error = world.differ.diff(called(request)).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
    }
}

/// Returns a line for each entry `m` of a layer, as Python's reader sees it.
fn told(blob: &[u8], what: &str) -> String {
    let scratch = Scratch::new();
    let path = scratch.file("layer", blob);
    let script = format!("import sys, tarfile\nfor m in tarfile.open(sys.argv[1]): print({what})");
    let out = std::process::Command::new("python3")
        .args(["-c", &script])
        .arg(path)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Returns the names in a layer, with their times.
fn listed(blob: &[u8]) -> Vec<(String, u64)> {
    let text = told(blob, "int(m.mtime), m.name");
    text.lines()
        .map(|line| {
            let (time, name) = line.split_once(' ').unwrap();
            (name.to_owned(), time.parse().unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diff_is_the_layer_that_was_written_and_is_held_by_a_lease() {
    let Some(world) = world(true) else { return };
    if vellum_testkit::clients::find("python3").is_none() {
        untested("differ", "python3 is not installed");
        return;
    }
    let second = Layer::new().dir("var", 0o755).file("var/v", "v").tar();
    world.image(&[base(), second]).await;
    let mounts = world.prepare("box", Some("2"));
    let dir = upper(&mounts);
    std::fs::create_dir_all(dir.join("etc")).unwrap();
    std::fs::set_permissions(dir.join("etc"), PermissionsExt::from_mode(0o750)).unwrap();
    std::fs::write(dir.join("etc/made"), "made").unwrap();
    let epoch = 1_500_000_000;
    let diff = |right: &[MountEntry], left: &[MountEntry]| wire::DiffRequest {
        left: wired(left),
        right: wired(right),
        labels: [("mine".to_owned(), "kept".to_owned())].into(),
        source_date_epoch: Some(prost_types::Timestamp {
            seconds: epoch,
            nanos: 0,
        }),
        ..wire::DiffRequest::default()
    };
    let left = world.view("left", "2");
    let answer = world
        .differ
        .diff(called(diff(&mounts, &left)))
        .await
        .unwrap();
    let blob = answer.into_inner().diff.unwrap();
    assert_eq!(blob.media_type, GZIP);
    let (bytes, labels) = {
        let state = world.containerd.state.lock().unwrap();
        assert_eq!(
            state.leases.len(),
            1,
            "no lease came along, so one was made"
        );
        let (id, labels) = state.leases.first_key_value().unwrap();
        assert!(labels.contains_key("containerd.io/gc.expire"));
        assert_eq!(state.written_under, [Some(id.clone())]);
        (
            state.blobs[&blob.digest].clone(),
            state.labels[&blob.digest].clone(),
        )
    };
    assert_eq!(blob.size, bytes.len() as i64);
    assert_eq!(labels["mine"], "kept");
    let mut tar = Vec::new();
    flate(&bytes).read_to_end(&mut tar).unwrap();
    assert_eq!(
        labels["containerd.io/uncompressed"],
        Digest::of(&tar).to_string()
    );
    let names = listed(&bytes);
    let expected = ["etc", "etc/made"].map(|name| (name.to_owned(), epoch as u64));
    assert_eq!(names, expected, "times after the epoch are the epoch");

    // A committed layer against its parent, with the caller's lease.
    let mut request = called(diff(&world.view("right", "2"), &world.view("below", "1")));
    let lease = "theirs".parse().unwrap();
    request.metadata_mut().insert("containerd-lease", lease);
    let answer = world.differ.diff(request).await.unwrap();
    let blob = answer.into_inner().diff.unwrap();
    let state = world.containerd.state.lock().unwrap();
    assert_eq!(state.leases.len(), 1);
    assert_eq!(state.written_under[1].as_deref(), Some("theirs"));
    let names: Vec<String> = listed(&state.blobs[&blob.digest])
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["var", "var/v"]);
}

/// Waits until containerd has this many leases.
async fn leases(world: &World, count: usize) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while world.containerd.state.lock().unwrap().leases.len() != count {
        assert!(std::time::Instant::now() < end, "not {count} leases");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_the_differ_ends_with_its_use() {
    let Some(world) = world(true) else { return };
    world.image(&[base()]).await;
    let mounts = world.prepare("box", Some("1"));
    std::fs::write(upper(&mounts).join("made"), "made").unwrap();
    let diff = |left: &[MountEntry]| wire::DiffRequest {
        left: wired(left),
        right: wired(&mounts),
        ..wire::DiffRequest::default()
    };
    // A failed write leaves no lease.
    let nowhere = [MountEntry {
        kind: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec!["lowerdir=/nonexistent:/neither".into()],
    }];
    world.differ.diff(called(diff(&nowhere))).await.unwrap_err();
    leases(&world, 0).await;
    // A layer is held until an image names it.
    let left = world.view("left", "1");
    let answer = world.differ.diff(called(diff(&left))).await.unwrap();
    let blob = answer.into_inner().diff.unwrap();
    leases(&world, 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    leases(&world, 1).await;
    let manifest = world.containerd.add(b"a manifest".to_vec());
    let name = ("containerd.io/gc.ref.content.l.0".to_owned(), blob.digest);
    {
        let mut state = world.containerd.state.lock().unwrap();
        state.labels.insert(manifest, [name].into());
    }
    leases(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_containerd_is_reported_with_its_path_and_the_flag() {
    let Some(world) = world(false) else { return };
    world.image(&[base()]).await;
    let mounts = world.prepare("box", Some("1"));
    let digest = Digest::of(b"any").to_string();
    let dir = world.scratch.dir("sockets");
    let closed = dir.join("closed");
    drop(std::os::unix::net::UnixListener::bind(&closed).unwrap());
    let other = dir.join("other");
    let listener = tokio::net::UnixListener::bind(&other).unwrap();
    let (reporter, health) = tonic_health::server::health_reporter();
    drop(reporter);
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(
        server.serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)),
    );
    for (socket, code, why) in [
        (
            dir.join("none"),
            Code::Unavailable,
            "No such file or directory",
        ),
        (closed, Code::Unavailable, "Connection refused"),
        (dir.clone(), Code::Unavailable, "Connection refused"),
        (other, Code::Unimplemented, "no content store"),
    ] {
        let shared = Arc::new(Shared::new(
            Context::new(
                world.context.config.clone(),
                Cancel::new(),
                progress::silent(),
            ),
            ClientSettings::default(),
        ));
        let differ = Differ::new(shared, Containerd::at(&socket).unwrap());
        let apply = wire::ApplyRequest {
            diff: Some(Descriptor {
                media_type: GZIP.into(),
                digest: digest.clone(),
                ..Descriptor::default()
            }),
            mounts: wired(&mounts),
            ..wire::ApplyRequest::default()
        };
        let without = Request::new(apply.clone());
        let diff = wire::DiffRequest {
            left: wired(&mounts),
            right: wired(&mounts),
            ..wire::DiffRequest::default()
        };
        for status in [
            differ.apply(called(apply)).await.unwrap_err(),
            differ.apply(without).await.unwrap_err(),
            differ.diff(called(diff)).await.unwrap_err(),
        ] {
            let said = status.message();
            assert_eq!(status.code(), code, "{said}");
            let path = socket.display().to_string();
            for part in [path.as_str(), "--containerd", why] {
                assert!(said.contains(part), "no {part} in: {said}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_has_the_containers_own_ids_whatever_maps_them() {
    let Some(world) = world(true) else { return };
    if vellum_testkit::clients::find("python3").is_none() {
        untested("differ", "python3 is not installed");
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        untested("differ", "no FUSE");
        return;
    }
    world.image(&[base()]).await;
    let mapping = |label: &str| (label.to_owned(), "0:100000:65536".to_owned());
    // Ids outside the container's are the host's, and the kernel leaves them so.
    let kernel = [("mine", 100_007), ("roots", 100_000), ("hosts", 3)];
    let engine = [("mine", 7), ("roots", 0), ("hosts", 3)];
    for (key, remap_ids, owners) in [("k", true, kernel), ("e", false, engine)] {
        let new = NewSnapshot {
            key: key.into(),
            parent: Some("1".into()),
            labels: [snapshots::UID_MAPPING, snapshots::GID_MAPPING]
                .map(mapping)
                .into(),
        };
        let client = ClientSettings {
            remap_ids,
            ..ClientSettings::default()
        };
        let Prepared::New(mounts) = snapshots::prepare(&world.context, client, &new).unwrap()
        else {
            panic!("nothing is unpacked");
        };
        let by_kernel = mounts[0].kind == "overlay";
        assert_eq!(by_kernel, remap_ids, "{mounts:?}");
        let dir = upper(&mounts);
        for (name, id) in owners {
            std::fs::write(dir.join(name), name).unwrap();
            std::os::unix::fs::chown(dir.join(name), Some(id), Some(id)).unwrap();
        }
        let request = wire::DiffRequest {
            left: wired(&world.view(&format!("{key}-left"), "1")),
            right: wired(&mounts),
            ..wire::DiffRequest::default()
        };
        let answer = world.differ.diff(called(request)).await.unwrap();
        let blob = answer.into_inner().diff.unwrap();
        let state = world.containerd.state.lock().unwrap();
        let entries = told(&state.blobs[&blob.digest], "m.name, m.uid, m.gid");
        let entries: Vec<&str> = entries.lines().collect();
        assert_eq!(entries, ["hosts 3 3", "mine 7 7", "roots 0 0"], "{key}");
    }
}

/// Trees that are more than one layer apart are compared as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_that_are_further_apart_are_compared() {
    let Some(world) = world(true) else { return };
    if vellum_testkit::clients::find("python3").is_none() {
        untested("differ", "python3 is not installed");
        return;
    }
    let second = Layer::new().gone("etc/b").file("top", "t").tar();
    let third = Layer::new().gone("old").tar();
    world.image(&[base(), second, third]).await;
    let request = wire::DiffRequest {
        left: wired(&world.view("left", "1")),
        right: wired(&world.view("right", "3")),
        ..wire::DiffRequest::default()
    };
    let answer = world.differ.diff(called(request)).await.unwrap();
    let blob = answer.into_inner().diff.unwrap();
    let state = world.containerd.state.lock().unwrap();
    let names: Vec<String> = listed(&state.blobs[&blob.digest])
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["etc", "etc/.wh.b", ".wh.old", "top"]);
}

fn flate(bytes: &[u8]) -> impl Read + '_ {
    vellum_image::compression::Decoder::new(Packing::Layer(Compression::Gzip), bytes).unwrap()
}

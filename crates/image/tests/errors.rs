//! Errors of this crate that no other test provokes: broken disks and writers, narrow user
//! namespaces, and sources and sinks that fail. `docs/errors.md` has the remedies.

mod support;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use support::{Layers, random_image, reference};
use vellum_format::Digest;
use vellum_image::manifest::ManifestError;
use vellum_image::registry::{
    ExchangeError, HostOptions, RegistryError, RegistryOptions, RegistrySource, push,
};
use vellum_image::sink::{self, LayerSupply, OutLayer, SinkOptions, SupplyError};
use vellum_image::source::docker_root::DockerRoot;
use vellum_image::source::oci_layout::OciLayout;
use vellum_image::source::{ImageSource, SourceError};
use vellum_image::verify::{Found, compare, outline};
use vellum_image::{
    ApplyTarget, Cancel, Compression, Error, LayerStream, LayerWriter, Limits, Platform, Privilege,
    TarEntry, TarKind, TargetMarks, apply,
};
use vellum_sys::{Dir, Timespec};
use vellum_testkit::seam::{self, Counted, Effect};
use vellum_testkit::{Rng, Scratch, untested};

const BROKEN: i32 = rustix::io::Errno::IO.raw_os_error();

fn file(path: &str) -> TarEntry {
    TarEntry {
        path: PathBuf::from(path),
        kind: TarKind::File { size_bytes: 7 },
        mode: 0o644,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Timespec::new(1, 0),
        xattrs: vec![("user.a".into(), b"v".to_vec())],
    }
}

fn tar(entry: &TarEntry) -> Vec<u8> {
    let mut writer = LayerWriter::new(Vec::new());
    writer.append(entry, &mut &b"content"[..]).unwrap();
    writer.finish().unwrap()
}

fn target(root: &Path) -> ApplyTarget {
    ApplyTarget {
        root: Dir::open(root).unwrap(),
        marks: TargetMarks::Plain,
        privilege: Privilege::Full,
        donor: None,
    }
}

fn apply_to(root: &Path, tar: &[u8], recipe: &mut Vec<u8>) -> Result<(), Error> {
    let (limits, cancel) = (Limits::default(), Cancel::new());
    let tar = Box::new(Cursor::new(tar.to_vec()));
    let stream = LayerStream::open(tar, &limits, &cancel)?;
    apply(stream, &target(root), Some(recipe), &limits, &cancel).map(drop)
}

#[test]
fn a_broken_disk_under_a_layer_is_named_with_what_was_done_to_which_file() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let layer = tar(&file("d/f"));
    let mut seen = BTreeSet::new();
    seam::each(200, |n| {
        let root = scratch.dir(format!("tree{n}"));
        let work = || apply_to(&root, &layer, &mut Vec::new());
        let run = seam::run(&root, Counted::Changes, n, Effect::Fail(BROKEN), work);
        let hit = run.hit.clone();
        match run.value() {
            Ok(()) => {}
            Err(error @ Error::Apply { .. }) => {
                assert!(error.to_string().starts_with("cannot "), "{error}");
                seen.insert("apply");
            }
            Err(error @ Error::Xattr { .. }) => {
                let text = "cannot set extended attribute user.a of 'd/f'";
                assert_eq!(error.to_string(), text);
                seen.insert("xattr");
            }
            Err(other) => panic!("call {n}, {hit:?}: {other:?}"),
        }
        hit
    });
    assert_eq!(seen, BTreeSet::from(["apply", "xattr"]));
}

#[test]
fn a_tree_that_cant_be_read_is_an_error_of_its_verification() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    let mut recipe = Vec::new();
    apply_to(&tree, &tar(&file("d/f")), &mut recipe).unwrap();
    let mut seen = 0;
    seam::each(300, |n| {
        let again = target(&scratch.dir(format!("outline{n}")));
        let (limits, cancel) = (Limits::default(), Cancel::new());
        let work = || {
            let tree = Dir::open(&tree).map_err(|error| Error::Read(error.source))?;
            let mut recipe = Cursor::new(&recipe);
            let outlined = outline(&mut recipe, &tree, &again, &|_| (), &limits, &cancel)?;
            let found = Found {
                tree: &tree,
                inherited: None,
                right: &mut HashMap::new(),
                unsaid: &HashSet::new(),
                root_time: false,
            };
            compare(&again.root, &outlined, found, &cancel).map(|list| list.len())
        };
        let run = seam::run(&tree, Counted::All, n, Effect::Fail(BROKEN), work);
        let hit = run.hit.clone();
        if let Err(error @ Error::Verify { .. }) = run.value() {
            assert!(
                error.to_string().ends_with("in the layer's tree"),
                "{error}"
            );
            seen += 1;
        }
        hit
    });
    assert!(seen > 0);
}

#[test]
fn an_archive_that_cant_be_written_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = LayerWriter::new(Full).append(&file("f"), &mut &b"content"[..]);
    assert!(matches!(error, Err(Error::Write(_))), "{error:?}");
}

/// Runs the test `name` of this program again by way of `wrapper`.
#[track_caller]
fn again(name: &str, wrapper: &[&str]) {
    let (program, arguments) = wrapper.split_first().unwrap();
    let said = Command::new(program)
        .args(arguments)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("VELLUM_TEST_AGAIN", "1")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr),
    );
    assert!(said.status.success(), "{out}\n{err}");
}

fn is_again() -> bool {
    std::env::var_os("VELLUM_TEST_AGAIN").is_some()
}

#[test]
fn an_owner_that_a_user_namespace_lacks_is_named() {
    if !is_again() {
        let made = Command::new("unshare").args(["-Ur", "true"]).output();
        if !made.is_ok_and(|done| done.status.success()) {
            return untested("a namespace with one id", "it can't be created");
        }
        let name = "an_owner_that_a_user_namespace_lacks_is_named";
        return again(name, &["unshare", "-Ur"]);
    }
    let scratch = Scratch::new();
    let layer = TarEntry {
        uid: 1000,
        gid: 1001,
        ..file("f")
    };
    let error = apply_to(&scratch.dir("tree"), &tar(&layer), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::UnmappedOwner { .. }), "{error:?}");
    let text = "'f' belongs to 1000:1001, which this user namespace does not map";
    assert_eq!(error.to_string(), text);
}

fn sink_options(scratch: &Scratch) -> SinkOptions {
    SinkOptions {
        compression: Compression::Gzip,
        spool_dir: scratch.path().to_owned(),
        jobs: 1,
    }
}

/// Gives its layers, and is then told to stop.
struct Stopped {
    layers: Layers,
    stop: AtomicBool,
}

impl LayerSupply for Stopped {
    fn write_tar(&self, layer: &OutLayer, out: &mut dyn Write) -> Result<(), SupplyError> {
        self.layers.write_tar(layer, out)?;
        self.stop.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn kept_blob(&self, _: &Digest) -> Result<Option<Box<dyn Read + Send>>, SupplyError> {
        Ok(None)
    }

    fn go_on(&self) -> Result<(), SupplyError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err("told to stop".into()),
            false => Ok(()),
        }
    }
}

#[test]
fn a_sink_says_whether_the_layer_the_file_or_the_user_ended_it() {
    let scratch = Scratch::new();
    let mut rng = Rng::for_test("sinks that fail");
    let (image, layers) = random_image(&mut rng, "a:1", &[3000]);
    let images = std::slice::from_ref(&image);
    let how = sink_options(&scratch);
    let write = |supply: &dyn LayerSupply, to: &str| {
        sink::oci_layout::write_directory(images, supply, &scratch.join(to), &how)
            .map(drop)
            .unwrap_err()
    };
    let error = write(&Layers::default(), "one");
    assert!(matches!(error, SourceError::Supply { .. }), "{error:?}");
    let text = format!("layer {} can't be written", image.layers[0].diff_id);
    assert_eq!(error.to_string(), text);

    scratch.file("file", "");
    let error = write(&layers, "file/below");
    assert!(matches!(error, SourceError::Io { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        scratch.join("file/below").display().to_string()
    );

    let stopped = Stopped {
        layers,
        stop: AtomicBool::new(false),
    };
    let error = write(&stopped, "two");
    assert!(matches!(error, SourceError::Stopped(_)), "{error:?}");
}

#[test]
fn a_directory_that_is_no_data_root_is_refused_with_what_it_is() {
    let scratch = Scratch::new();
    for (driver, why) in [
        ("x", "its driver is x, not overlay2"),
        ("", "not a Docker data root"),
    ] {
        let root = scratch.dir(format!("root-{driver}"));
        if !driver.is_empty() {
            scratch.dir(format!("root-{driver}/image/{driver}"));
        }
        let error = DockerRoot::open(&root).map(drop).unwrap_err();
        assert!(
            matches!(error, SourceError::NotADataRoot { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("can't be adopted: ") && text.contains(why),
            "{text}"
        );
    }
}

/// Writes a layout with this configuration, and layers of this type that it doesn't have.
fn layout(scratch: &Scratch, name: &str, config: &[u8], layer: &str, digest: &str) -> PathBuf {
    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    let layout = scratch.dir(name);
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest.to_string()
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI,
        "artifactType": "application/x-chart",
        "config": {"mediaType": "x", "digest": put(config), "size": config.len()},
        "layers": [{"mediaType": layer, "digest": digest, "size": 5}],
    })
    .to_string();
    let entry =
        json!({"mediaType": OCI, "digest": put(manifest.as_bytes()), "size": manifest.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    fs::write(layout.join("index.json"), index).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    layout
}

#[test]
fn artifacts_foreign_layers_and_foreign_digests_are_told_apart() {
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let scratch = Scratch::new();
    let open = |layout: &Path| OciLayout::from_directory(layout, &Platform::host());
    let layer = Digest::of(b"layer").to_string();

    let chart = layout(&scratch, "chart", b"[]", GZIP, &layer);
    let error = open(&chart).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "it is an artifact (application/x-chart), not an image"
    );
    assert!(
        matches!(error, SourceError::Manifest(ManifestError::Artifact(_))),
        "{error:?}"
    );

    let config = json!({
        "architecture": Platform::host().architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let config = config.to_string().into_bytes();
    let foreign = layout(&scratch, "foreign", &config, FOREIGN, &layer);
    let error = open(&foreign)
        .unwrap()
        .open_layer(0, 0)
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, SourceError::Manifest(ManifestError::ForeignLayer(_))),
        "{error:?}"
    );

    let other = layout(
        &scratch,
        "other",
        &config,
        GZIP,
        "md5:d41d8cd98f00b204e9800998ecf8427e",
    );
    let error = open(&other).map(drop).unwrap_err();
    assert!(
        matches!(error, SourceError::Manifest(ManifestError::Digest(_))),
        "{error:?}"
    );
}

fn pull(name: &str, options: &RegistryOptions) -> RegistryError {
    let opened = RegistrySource::open(
        &reference(name),
        &Platform::host(),
        options,
        &Cancel::default(),
    );
    match opened.map(drop).unwrap_err() {
        SourceError::Registry(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn settings_and_names_that_no_registry_can_have_are_refused_first() {
    let scratch = Scratch::new();
    let mut options = RegistryOptions::default();
    let host = HostOptions {
        ca_file: Some(scratch.join("missing.crt")),
        ..HostOptions::default()
    };
    options.hosts.insert("127.0.0.1:1".into(), host);
    let error = pull("127.0.0.1:1/x:1", &options);
    assert!(
        matches!(error, RegistryError::Certificate { .. }),
        "{error:?}"
    );

    let host = HostOptions {
        mirrors: vec!["ftp://mirror".into()],
        ..HostOptions::default()
    };
    options.hosts.insert("127.0.0.1:1".into(), host);
    let error = pull("127.0.0.1:1/x:1", &options);
    assert!(
        matches!(error, RegistryError::BadMirror { .. }),
        "{error:?}"
    );

    let mut rng = Rng::for_test("no tag");
    let (image, layers) = random_image(&mut rng, "a:1", &[10]);
    let to = reference(&format!("127.0.0.1:1/x@{}", Digest::of(b"")));
    let pushed = push(
        &image,
        &to,
        &layers,
        &RegistryOptions::default(),
        &sink_options(&scratch),
        &Cancel::default(),
        &|_, _| {},
    );
    let error = pushed.map(drop).unwrap_err();
    assert!(
        matches!(error, SourceError::Registry(RegistryError::NoTag(_))),
        "{error:?}"
    );
}

#[test]
fn a_server_that_nothing_runs_is_unreachable() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut options = RegistryOptions::default();
    options.retry.attempts = 1;
    let error = pull(&format!("{address}/x:1"), &options);
    assert!(
        matches!(
            error,
            RegistryError::Unreachable {
                source: ExchangeError::Connect(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn without_descriptors_the_registry_client_says_that_it_cant_run() {
    if !is_again() {
        let name = "without_descriptors_the_registry_client_says_that_it_cant_run";
        return again(name, &["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"]);
    }
    let mut all = Vec::new();
    while let Ok(one) = fs::File::open("/dev/null") {
        all.push(one);
    }
    let error = pull("127.0.0.1:1/x:1", &RegistryOptions::default());
    drop(all);
    assert!(matches!(error, RegistryError::Runtime(_)), "{error:?}");
}

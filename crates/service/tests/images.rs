//! Images in and out of the store, judged by other tools.

mod support;

use std::path::Path;
use std::process::Command;

use support::{archive_layers, archive_of, context, context_with, layer_of, load_path, picture};
use vellum_image::Compression;
use vellum_service::config::Partial;
use vellum_service::image::{
    ImportRequest, ImportSource, PullRequest, PushRequest, SaveFormat, SaveRequest, SaveTarget,
    history, images, import, inspect_image, pull, push, rmi, save, tag,
};
use vellum_service::mount::mount_image;
use vellum_service::names::image;
use vellum_service::progress::{Meter, Progress, Unit};
use vellum_service::{Context, Error};
use vellum_store::DriverKind;
use vellum_testkit::clients::{
    Access, Buildah, Dockerd, Home, Podman, Registry, Skopeo, Umoci, available, small_image,
};
use vellum_testkit::tree::Ignore;
use vellum_testkit::{Scratch, Tree, needs_root};

const SMALL: &str = "vellum-demo-small:latest";

fn save_to(
    context: &Context,
    image: &str,
    path: &Path,
    format: SaveFormat,
) -> vellum_service::image::SavedImage {
    let request = SaveRequest {
        images: vec![image.to_owned()],
        target: SaveTarget::Path(path.to_owned()),
        format,
        compression: None,
    };
    save(context, &request).unwrap().remove(0)
}

/// Every tool archives the root directory's own attributes differently.
const BUT_ROOT: Ignore = Ignore {
    directory_mtimes: false,
    mtimes: false,
    nanoseconds: false,
    root: true,
    hard_links: false,
    owners: false,
    xattrs: false,
};

/// Go's archive/tar, which dockerd, umoci and buildah share, drops attributes with empty values and
/// fractions of a second.
fn as_go_sees(mut tree: Tree) -> Tree {
    for entry in tree.entries.values_mut() {
        entry.xattrs.retain(|_, value| !value.is_empty());
    }
    tree
}

const GO: Ignore = Ignore {
    nanoseconds: true,
    ..BUT_ROOT
};

#[test]
fn a_saved_image_has_the_layers_it_was_loaded_with() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let vellum = context(&scratch, "one");
    let loaded = load_path(&vellum, &archive).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].names, [SMALL]);
    assert_eq!(loaded[0].present_layers, 0);

    let saved = scratch.join("saved.tar");
    save_to(&vellum, SMALL, &saved, SaveFormat::DockerArchive);
    assert_eq!(
        archive_layers(&saved),
        archive_layers(&archive),
        "byte for byte"
    );

    // Loading the saved archive gives the same image, and nothing is unpacked twice.
    let again = load_path(&vellum, &saved).unwrap();
    assert_eq!(again[0].id, loaded[0].id);
    assert_eq!(again[0].new_layers, 0);
    let other = context(&scratch, "two");
    let copied = load_path(&other, &saved).unwrap();
    assert_eq!(copied[0].id, loaded[0].id);
    picture(&scratch, &other, SMALL).assert_same(&picture(&scratch, &vellum, SMALL), BUT_ROOT);
}

#[test]
fn every_driver_shows_the_same_tree() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let mut pictures = Vec::new();
    for driver in DriverKind::ALL {
        let settings = Partial {
            storage_driver: Some(driver),
            ..Partial::default()
        };
        let vellum = context_with(&scratch, driver.as_str(), settings);
        load_path(&vellum, &archive).unwrap();
        pictures.push(picture(&scratch, &vellum, SMALL));
        let saved = scratch.join(format!("{driver}.tar"));
        save_to(&vellum, SMALL, &saved, SaveFormat::DockerArchive);
        assert_eq!(archive_layers(&saved), archive_layers(&archive), "{driver}");
    }
    pictures[1].assert_same(&pictures[0], BUT_ROOT);
    pictures[2].assert_same(&pictures[0], BUT_ROOT);
}

#[test]
fn whiteouts_of_nothing_leave_no_trace() {
    if !needs_root("overlay mounts") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    for name in [
        "d/file",
        "d/.wh.ghost",
        "new/file",
        "new/.wh.ghost",
        ".wh.ghost",
    ] {
        scratch.file(Path::new("tree").join(name), name);
    }
    let base = layer_of(
        &scratch,
        "base.tar",
        &tree,
        &["./", "d", "d/file", "d/.wh.ghost", ".wh.ghost"],
    );
    let top = layer_of(
        &scratch,
        "top.tar",
        &tree,
        &["new", "new/file", "new/.wh.ghost", "d/.wh.ghost"],
    );
    let archive = archive_of(&scratch, "image.tar", &[base, top]);
    for driver in DriverKind::ALL {
        let settings = Partial {
            storage_driver: Some(driver),
            ..Partial::default()
        };
        let vellum = context_with(&scratch, driver.as_str(), settings);
        load_path(&vellum, &archive).unwrap();
        // Names that the kernel lists but can't look up would fail here.
        let seen = picture(&scratch, &vellum, "image");
        let names: Vec<_> = seen
            .entries
            .keys()
            .map(|path| path.to_str().unwrap())
            .collect();
        assert_eq!(names, ["", "d", "d/file", "new", "new/file"], "{driver}");
    }
}

#[test]
fn an_opaque_root_hides_all_below_with_every_driver() {
    if !needs_root("overlay mounts") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    for name in [
        "gone/file",
        "both/below",
        "both/above",
        "both/.wh.ghost",
        ".wh.gone",
        "old",
        "new",
        "again",
        ".wh..wh..opq",
        ".wh.new",
        ".wh.ghost",
    ] {
        scratch.file(Path::new("tree").join(name), name);
    }
    let layer = |name: &str, members: &[&str]| layer_of(&scratch, name, &tree, members);
    let base = layer("base.tar", &["gone", "gone/file", "both/below"]);
    let middle = layer("middle.tar", &["old", "again", ".wh.gone"]);
    let top = [
        "new",
        "again",
        "both/above",
        ".wh..wh..opq",
        ".wh.new",
        ".wh.ghost",
        "both/.wh.ghost",
    ];
    let top_first = layer("first.tar", &top);
    let reversed: Vec<_> = top.iter().rev().copied().collect();
    let top_last = layer("last.tar", &reversed);
    let after = layer("after.tar", &["old"]);
    for (name, layers, expect) in [
        (
            "alone",
            &[top_first.clone()][..],
            &["again", "both", "both/above", "new"][..],
        ),
        (
            "last",
            &[base.clone(), middle.clone(), top_first],
            &["again", "both", "both/above", "new"],
        ),
        (
            "between",
            &[base, middle, top_last, after],
            &["again", "both", "both/above", "new", "old"],
        ),
    ] {
        let archive = archive_of(&scratch, &format!("image-{name}.tar"), layers);
        for driver in DriverKind::ALL {
            let settings = Partial {
                storage_driver: Some(driver),
                ..Partial::default()
            };
            let vellum = context_with(&scratch, &format!("{name}-{driver}"), settings);
            load_path(&vellum, &archive).unwrap();
            let seen = picture(&scratch, &vellum, "image");
            let names: Vec<_> = seen.entries.keys().skip(1).collect();
            let expect: Vec<_> = expect.iter().map(Path::new).collect();
            assert_eq!(names, expect, "{name} with {driver}");
            let saved = scratch.join(format!("{name}-{driver}.tar"));
            save_to(&vellum, "image", &saved, SaveFormat::DockerArchive);
            assert_eq!(archive_layers(&saved), archive_layers(&archive), "{driver}");
        }
    }
}

/// A layer of one file with this PAX record, written by hand, with this many bytes of end marker.
fn layer_with(scratch: &Scratch, name: &str, record: &str, end: usize) -> std::path::PathBuf {
    let header = |name: &str, kind: u8, size: usize| {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    };
    let mut bytes = header("x", b'x', record.len()).to_vec();
    bytes.extend_from_slice(record.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend_from_slice(&header("file", b'0', 0));
    bytes.resize(bytes.len() + end, 0);
    scratch.file(name, bytes)
}

#[test]
fn an_image_shows_the_names_of_its_attributes_with_every_driver() {
    if !needs_root("trusted attributes") {
        return;
    }
    let scratch = Scratch::new();
    let record = "41 SCHILY.xattr.trusted.overlay.opaque=y\n";
    assert_eq!(record.len(), 41);
    let base = layer_with(&scratch, "base.tar", record, 1024);
    let tree = scratch.dir("tree");
    scratch.file("tree/more", "more");
    let top = layer_of(&scratch, "top.tar", &tree, &["more"]);
    for (name, layers) in [("one", &[base.clone()][..]), ("two", &[base, top])] {
        let archive = archive_of(&scratch, &format!("{name}.tar"), layers);
        for driver in DriverKind::ALL {
            let settings = Partial {
                storage_driver: Some(driver),
                ..Partial::default()
            };
            let vellum = context_with(&scratch, &format!("{name}-{driver}"), settings);
            load_path(&vellum, &archive).unwrap();
            let target = scratch.dir(format!("{name}-{driver}.view"));
            mount_image(&vellum, "image", &target).unwrap();
            let seen = Tree::read(&target).unwrap();
            vellum_testkit::clients::run(Command::new("umount").arg(&target)).unwrap();
            let attributes: Vec<_> = seen.entries[Path::new("file")].xattrs.keys().collect();
            assert_eq!(
                attributes,
                ["trusted.overlay.opaque"],
                "{name} with {driver}"
            );
        }
    }
}

/// Collects the user's warnings.
#[derive(Default)]
struct Warnings(std::sync::Mutex<Vec<String>>);

impl Progress for Warnings {
    fn meter(&self, _: &str, _: Unit, _: Option<u64>) -> Box<dyn Meter> {
        Box::new(vellum_service::progress::Silent)
    }
    fn say(&self, _: &str) {}
    fn warn(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

#[test]
fn an_import_without_an_end_marker_says_so() {
    let scratch = Scratch::new();
    let record = "39 SCHILY.xattr.com.apple.provenance=a\n";
    assert_eq!(record.len(), 39);
    for (name, record, end, expect) in [
        ("whole", "", 1024, &[][..]),
        ("unmarked", "", 0, &["no end marker"]),
        ("foreign", record, 1024, &["com.apple.provenance of 'file'"]),
        (
            "both",
            record,
            512,
            &["no end marker", "com.apple.provenance"],
        ),
    ] {
        let tar = layer_with(&scratch, name, record, end);
        let mut vellum = context(&scratch, &format!("store-{name}"));
        let warnings = std::sync::Arc::new(Warnings::default());
        vellum.progress = warnings.clone();
        let request = ImportRequest {
            source: ImportSource::Path(tar.clone()),
            name: Some(name.to_owned()),
            changes: Vec::new(),
            message: None,
            platform: None,
        };
        import(&vellum, &request).unwrap();
        let said = std::mem::take(&mut *warnings.0.lock().unwrap());
        assert_eq!(said.len(), expect.len(), "{said:?}");
        for (said, expect) in said.iter().zip(expect) {
            assert!(said.contains(expect), "{said}");
        }
        let archive = archive_of(&scratch, &format!("{name}.image.tar"), &[tar]);
        load_path(&vellum, &archive).unwrap();
        let said = std::mem::take(&mut *warnings.0.lock().unwrap());
        assert!(said.is_empty(), "it is there already: {said:?}");
    }
}

#[test]
fn directories_that_a_layer_implies_look_as_below() {
    if !needs_root("owners") {
        return;
    }
    use std::os::unix::fs::{PermissionsExt, chown};
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    let odd = scratch.dir("tree/odd/deep");
    for (path, mode, owner) in [
        (&tree, 0o711, 5),
        (&tree.join("odd"), 0o1770, 6),
        (&odd, 0o700, 7),
    ] {
        chown(path, Some(owner), Some(owner + 10)).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    std::fs::write(odd.join("one"), "1").unwrap();
    rustix::fs::setxattr(&odd, "user.mark", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    std::fs::write(odd.join("two"), "2").unwrap();
    std::fs::write(odd.join(".wh.one"), "").unwrap();
    let base = layer_of(
        &scratch,
        "base.tar",
        &tree,
        &["./", "odd", "odd/deep", "odd/deep/one"],
    );
    let upper = layer_of(&scratch, "upper.tar", &tree, &["odd/deep/two"]);
    let top = layer_of(&scratch, "top.tar", &tree, &["odd/deep/.wh.one"]);
    let archive = archive_of(&scratch, "image.tar", &[base, upper, top]);
    for driver in DriverKind::ALL {
        let settings = Partial {
            storage_driver: Some(driver),
            ..Partial::default()
        };
        let vellum = context_with(&scratch, driver.as_str(), settings);
        load_path(&vellum, &archive).unwrap();
        let seen = picture(&scratch, &vellum, "image");
        for (path, mode, owner) in [("", 0o711, 5), ("odd", 0o1770, 6), ("odd/deep", 0o700, 7)] {
            let entry = &seen.entries[Path::new(path)];
            assert_eq!(
                (entry.mode, entry.uid, entry.gid),
                (mode, owner, owner + 10),
                "{path:?} in {driver}"
            );
        }
        assert_eq!(
            seen.entries[Path::new("odd/deep")].xattrs.len(),
            1,
            "{driver}"
        );
        let names: Vec<_> = seen.entries.keys().filter_map(|p| p.to_str()).collect();
        assert_eq!(names, ["", "odd", "odd/deep", "odd/deep/two"], "{driver}");
    }
}

#[test]
fn a_layer_may_occur_twice_and_an_image_may_have_none() {
    if !needs_root("owners") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    std::fs::write(tree.join("one"), "1").unwrap();
    std::fs::write(tree.join("two"), "2").unwrap();
    std::fs::write(tree.join(".wh.two"), "").unwrap();
    let one = layer_of(&scratch, "one.tar", &tree, &["one", "two"]);
    let gone = layer_of(&scratch, "gone.tar", &tree, &[".wh.two"]);
    let twice = archive_of(
        &scratch,
        "twice.tar",
        &[one.clone(), gone.clone(), one.clone(), gone],
    );
    let none = archive_of(&scratch, "none.tar", &[]);
    for driver in DriverKind::ALL {
        let settings = Partial {
            storage_driver: Some(driver),
            keep_blobs: Some(true),
            ..Partial::default()
        };
        let vellum = context_with(&scratch, driver.as_str(), settings);
        assert_eq!(load_path(&vellum, &twice).unwrap()[0].new_layers, 4);
        let seen = picture(&scratch, &vellum, "image");
        let names: Vec<_> = seen.entries.keys().filter_map(|p| p.to_str()).collect();
        assert_eq!(names, ["", "one"], "{driver}");
        let saved = scratch.join("saved.tar");
        save_to(&vellum, "image", &saved, SaveFormat::DockerArchive);
        assert_eq!(archive_layers(&saved), archive_layers(&twice), "{driver}");
        // Loaded from a layout that names the same blob twice, and kept.
        let layout = scratch.join(format!("layout-{driver}"));
        save_to(&vellum, "image", &layout, SaveFormat::OciDirectory);
        let again = context_with(
            &scratch,
            &format!("again-{driver}"),
            Partial {
                storage_driver: Some(driver),
                keep_blobs: Some(true),
                ..Partial::default()
            },
        );
        load_path(&again, &layout).unwrap();
        assert!(
            save_to(
                &again,
                "image",
                &scratch.join(format!("kept-{driver}")),
                SaveFormat::OciDirectory
            )
            .same_manifest
        );

        let empty = load_path(&vellum, &none).unwrap();
        assert_eq!((empty[0].new_layers, empty[0].present_layers), (0, 0));
        assert_eq!(empty[0].moved_names.len(), 1);
        save_to(&vellum, "image", &saved, SaveFormat::DockerArchive);
        assert_eq!(archive_layers(&saved).len(), 0);
        assert_eq!(history(&vellum, "image").unwrap().len(), 0);
    }
}

/// Requests a stop as soon as the first layer begins.
struct StopAtFirst(vellum_service::Cancel);

impl Progress for StopAtFirst {
    fn meter(&self, what: &str, _: Unit, _: Option<u64>) -> Box<dyn Meter> {
        if what.starts_with("layer") {
            self.0.cancel();
        }
        Box::new(vellum_service::progress::Silent)
    }
    fn say(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

#[test]
fn stopping_in_the_middle_leaves_nothing_staged_and_the_next_load_works() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let mut vellum = context(&scratch, "middle");
    vellum.progress = std::sync::Arc::new(StopAtFirst(vellum.cancel.clone()));
    let error = load_path(&vellum, &archive).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    let store = vellum.store().unwrap();
    assert!(store.images().unwrap().is_empty());
    assert_eq!(
        std::fs::read_dir(store.root().join("staging"))
            .unwrap()
            .count(),
        0
    );
    let again = context(&scratch, "middle");
    assert_eq!(load_path(&again, &archive).unwrap()[0].new_layers, 10);
}

#[test]
fn two_loads_at_once_store_each_layer_once() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    context(&scratch, "both").store().unwrap();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let loads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    load_path(&context(&scratch, "both"), &archive).unwrap()[0]
                        .id
                        .clone()
                })
            })
            .collect();
        loads.into_iter().map(|l| l.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    let vellum = context(&scratch, "both");
    let trees = std::fs::read_dir(vellum.root().join("overlay2"))
        .unwrap()
        .count();
    assert_eq!(trees, 11, "ten layers and the directory of links");
    let saved = scratch.join("saved.tar");
    save_to(&vellum, SMALL, &saved, SaveFormat::DockerArchive);
    assert_eq!(archive_layers(&saved), archive_layers(&archive));
}

#[test]
fn docker_and_podman_read_what_was_saved_and_the_other_way_round() {
    if !available(&["dockerd", "docker", "podman"]) {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let vellum = context(&scratch, "vellum");
    load_path(&vellum, &archive).unwrap();
    let saved = scratch.join("saved.tar");
    save_to(&vellum, SMALL, &saved, SaveFormat::DockerArchive);
    let ours = picture(&scratch, &vellum, SMALL);

    let docker = Dockerd::start(&home, &[]).unwrap();
    docker.load(&saved).unwrap();
    let target = scratch.dir("docker");
    docker.mount_image(SMALL, &target).unwrap();
    scratch.adopt_mount(&target);
    as_go_sees(Tree::read(&target).unwrap()).assert_same(&as_go_sees(ours.clone()), GO);
    docker.docker(&["rmi", SMALL]).unwrap();
    let oci = scratch.join("oci.tar");
    save_to(&vellum, SMALL, &oci, SaveFormat::OciArchive);
    docker.load(&oci).unwrap();
    let from_docker = home.join("docker.tar");
    docker
        .docker(&["save", "--output", from_docker.to_str().unwrap(), SMALL])
        .unwrap();
    let second = context(&scratch, "from-docker");
    let loaded = load_path(&second, &from_docker).unwrap();
    assert_eq!(loaded[0].names, [SMALL]);
    assert_eq!(archive_layers(&from_docker), archive_layers(&archive));
    picture(&scratch, &second, SMALL).assert_same(&ours, BUT_ROOT);

    let podman = Podman::new(&home).unwrap();
    podman.load(&saved).unwrap();
    for format in ["docker-archive", "oci-archive"] {
        let path = home.join(format);
        podman
            .podman(&[
                "save",
                "--format",
                format,
                "--output",
                path.to_str().unwrap(),
                SMALL,
            ])
            .unwrap();
        let third = context(&scratch, format);
        let loaded = load_path(&third, &path).unwrap();
        picture(&scratch, &third, &loaded[0].id).assert_same(&ours, BUT_ROOT);
    }
}

#[test]
fn oci_layouts_pass_through_skopeo_and_umoci() {
    if !available(&["skopeo", "umoci"]) {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let vellum = context(&scratch, "vellum");
    let loaded = load_path(&vellum, &archive).unwrap();
    let ours = picture(&scratch, &vellum, SMALL);
    let layout = scratch.join("layout");
    let first = save_to(&vellum, SMALL, &layout, SaveFormat::OciDirectory);
    let second = save_to(
        &vellum,
        SMALL,
        &scratch.join("layout-2"),
        SaveFormat::OciDirectory,
    );
    assert_eq!(
        first.manifest, second.manifest,
        "compression gives the same bytes each time"
    );

    let bundle = scratch.join("bundle");
    let rootfs = Umoci.unpack(&layout, "latest", &bundle).unwrap();
    as_go_sees(Tree::read(&rootfs).unwrap()).assert_same(&as_go_sees(ours.clone()), GO);

    let skopeo = Skopeo::new(&home).unwrap();
    let from = format!("oci:{}:latest", layout.display());
    for (name, to, options) in [
        (
            "gzip",
            format!("oci:{}:x", scratch.join("gzip").display()),
            &["--dest-compress"][..],
        ),
        (
            "zstd",
            format!("oci:{}:x", scratch.join("zstd").display()),
            &["--dest-compress", "--dest-compress-format", "zstd"][..],
        ),
        (
            "oci.tar",
            format!("oci-archive:{}:x", scratch.join("oci.tar").display()),
            &[][..],
        ),
        (
            "docker.tar",
            format!(
                "docker-archive:{}:x/y:z",
                scratch.join("docker.tar").display()
            ),
            &[][..],
        ),
    ] {
        skopeo.copy_with(&from, &to, options).unwrap();
        let other = context(&scratch, &format!("from-{name}"));
        let found = load_path(&other, &scratch.join(name)).unwrap();
        assert_eq!(found[0].id, loaded[0].id, "{name}");
        picture(&scratch, &other, &found[0].id).assert_same(&ours, BUT_ROOT);
    }

    let tar = scratch.join("ours.oci.tar");
    save_to(&vellum, SMALL, &tar, SaveFormat::OciArchive);
    skopeo
        .copy(
            &format!("oci-archive:{}:latest", tar.display()),
            &format!("dir:{}", scratch.join("d").display()),
        )
        .unwrap();
    // umoci adds a layer; its image loads too.
    std::fs::write(rootfs.join("added"), "by umoci").unwrap();
    Umoci.repack(&layout, "latest", &bundle).unwrap();
    let other = context(&scratch, "repacked");
    let found = load_path(&other, &layout).unwrap();
    let after = picture(&scratch, &other, &found[0].id);
    assert!(
        after
            .differences(&ours, Ignore::default())
            .iter()
            .any(|d| format!("{d:?}").contains("added"))
    );
}

#[test]
fn images_that_buildah_made_load() {
    if !available(&["buildah", "podman"]) {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let podman = Podman::new(&home).unwrap();
    podman.load(&archive).unwrap();
    let buildah = Buildah::new(&home).unwrap();
    let container = buildah.from(SMALL).unwrap();
    buildah
        .shell(
            &container,
            "echo hello > /made && rm -rf /etc/passwd && mkdir -p /new/dir",
        )
        .unwrap();
    let mounted = Tree::read(&buildah.mount(&container).unwrap()).unwrap();
    for kind in ["oci-archive", "docker-archive"] {
        let path = home.join(kind);
        buildah
            .commit(
                &container,
                &format!("{kind}:{}:made/image:1", path.display()),
            )
            .unwrap();
        let vellum = context(&scratch, kind);
        let loaded = load_path(&vellum, &path).unwrap();
        let ours = as_go_sees(picture(&scratch, &vellum, &loaded[0].id));
        ours.assert_same(&as_go_sees(mounted.clone()), GO);
    }
}

#[test]
fn a_registry_keeps_what_is_pushed_and_layers_are_fetched_once() {
    if !available(&["docker-registry"]) {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let vellum = context(&scratch, "vellum");
    let loaded = load_path(&vellum, &archive).unwrap();
    let name = format!("{}/small:1", registry.host());
    tag(&vellum, SMALL, &name).unwrap();
    let request = PushRequest {
        image: name.clone(),
        destination: None,
        compression: Compression::Gzip,
        insecure: false,
        auth_file: None,
    };
    let pushed = push(&vellum, &request).unwrap();
    assert_eq!(pushed.present_layers, 0);
    let again = push(&vellum, &request).unwrap();
    assert_eq!((again.sent_layers, &again.manifest), (0, &pushed.manifest));

    let settings = Partial {
        keep_blobs: Some(true),
        ..Partial::default()
    };
    let other = context_with(&scratch, "other", settings);
    let wanted = PullRequest {
        image: name.clone(),
        ..PullRequest::default()
    };
    let pulled = pull(&other, &wanted).unwrap();
    assert_eq!(
        (&pulled.id, &pulled.manifest),
        (&loaded[0].id, &pushed.manifest)
    );
    picture(&scratch, &other, &name).assert_same(&picture(&scratch, &vellum, SMALL), BUT_ROOT);
    assert_eq!(pull(&other, &wanted).unwrap().new_layers, 0);
    // Blobs were kept: the output is the input, manifest included.
    let out = save_to(
        &other,
        &name,
        &scratch.join("kept"),
        SaveFormat::OciDirectory,
    );
    assert!(out.same_manifest);
    assert_eq!(out.manifest, pushed.manifest);
}

#[test]
fn a_bad_layer_leaves_nothing_behind() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let vellum = context(&scratch, "good");
    load_path(&vellum, &archive).unwrap();
    let layout = scratch.join("layout");
    save_to(&vellum, SMALL, &layout, SaveFormat::OciDirectory);
    // The largest blob gets one bit changed near its end.
    let blobs = layout.join("blobs/sha256");
    let largest = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(|p| p.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 0x10;
    std::fs::write(&largest, bytes).unwrap();

    let fresh = context(&scratch, "fresh");
    let error = load_path(&fresh, &layout).unwrap_err();
    assert!(!matches!(error, Error::Cancelled), "{error:?}");
    let store = fresh.store().unwrap();
    assert!(store.images().unwrap().is_empty());
    let mut snapshots = 0;
    store
        .walk(&[], |_| -> Result<(), vellum_store::StoreError> {
            snapshots += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(snapshots, 0, "no layer is recorded");
    let staging = store.root().join("staging");
    assert_eq!(
        std::fs::read_dir(staging).unwrap().count(),
        0,
        "nothing is left staged"
    );
}

#[test]
fn stopping_a_load_leaves_the_store_as_it_was() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let vellum = context(&scratch, "stopped");
    vellum.cancel.cancel();
    let error = load_path(&vellum, &archive).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert!(vellum.store().unwrap().images().unwrap().is_empty());
}

#[test]
fn names_come_and_go() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let vellum = context(&scratch, "names");
    let loaded = load_path(&vellum, &archive).unwrap();
    let id = loaded[0].id.clone();
    for text in [
        SMALL,
        "vellum-demo-small",
        "docker.io/library/vellum-demo-small:latest",
        &id,
        &id[7..19],
    ] {
        assert_eq!(image(&vellum, text).unwrap().id.to_string(), id, "{text}");
    }
    assert!(matches!(
        image(&vellum, "nothing"),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        image(&vellum, "NOT A NAME"),
        Err(Error::NotFound { .. })
    ));

    assert_eq!(tag(&vellum, SMALL, "other:1").unwrap(), None);
    assert_eq!(images(&vellum, None).unwrap()[0].names, ["other:1", SMALL]);
    assert_eq!(images(&vellum, Some("other")).unwrap().len(), 1);
    assert_eq!(images(&vellum, Some("absent")).unwrap().len(), 0);
    assert!(
        matches!(rmi(&vellum, &id, false), Err(Error::InUse { .. })),
        "two names"
    );
    let removed = rmi(&vellum, "other:1", false).unwrap();
    assert_eq!(
        (removed.names, removed.image),
        (vec!["other:1".to_owned()], None)
    );
    let removed = rmi(&vellum, SMALL, false).unwrap();
    assert_eq!(removed.image.as_deref(), Some(id.as_str()));
    assert!(images(&vellum, None).unwrap().is_empty());

    // A name that moves to another image is reported.
    load_path(&vellum, &archive).unwrap();
    let tree = scratch.dir("tree");
    std::fs::write(tree.join("file"), "x").unwrap();
    let request = ImportRequest {
        source: ImportSource::Path(tree),
        name: Some(SMALL.to_owned()),
        changes: Vec::new(),
        message: None,
        platform: None,
    };
    let imported = import(&vellum, &request).unwrap();
    assert_eq!(imported.moved_names[0].0, SMALL);
}

#[test]
fn history_and_inspect_tell_every_layer() {
    if !needs_root("loading images with devices and owners") {
        return;
    }
    let (home, scratch) = (Home::new().unwrap(), Scratch::new());
    let archive = small_image(&home).unwrap();
    let vellum = context(&scratch, "history");
    let loaded = load_path(&vellum, &archive).unwrap();
    let steps = history(&vellum, SMALL).unwrap();
    let layers = steps.iter().filter(|s| s.diff_id.is_some()).count();
    assert_eq!(layers, loaded[0].new_layers);
    let inspected = inspect_image(&vellum, SMALL).unwrap();
    assert_eq!(inspected["layers"].as_array().unwrap().len(), layers);
    assert_eq!(inspected["id"], loaded[0].id);
    assert_eq!(
        inspected["config"]["rootfs"]["diff_ids"]
            .as_array()
            .unwrap()
            .len(),
        layers
    );
}

#[test]
fn a_directory_becomes_an_image() {
    if !needs_root("devices and owners") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    std::fs::create_dir(tree.join("dir")).unwrap();
    std::fs::write(tree.join("dir/file"), vec![7; 100_000]).unwrap();
    std::fs::hard_link(tree.join("dir/file"), tree.join("link")).unwrap();
    std::os::unix::fs::symlink("dir/file", tree.join("symlink")).unwrap();
    std::os::unix::fs::chown(tree.join("dir"), Some(12), Some(34)).unwrap();
    let vellum = context(&scratch, "import");
    let request = ImportRequest {
        source: ImportSource::Path(tree.clone()),
        name: Some("made/of:tree".to_owned()),
        changes: vec!["CMD [\"/bin/sh\"]".to_owned(), "ENV A=b".to_owned()],
        message: Some("a test".to_owned()),
        platform: None,
    };
    let imported = import(&vellum, &request).unwrap();
    picture(&scratch, &vellum, "made/of:tree").assert_same(&Tree::read(&tree).unwrap(), BUT_ROOT);
    let inspected = inspect_image(&vellum, &imported.id).unwrap();
    assert_eq!(inspected["config"]["config"]["Cmd"][0], "/bin/sh");
    assert_eq!(
        history(&vellum, "made/of:tree").unwrap()[0]
            .comment
            .as_deref(),
        Some("a test")
    );

    // The same tree as a tar.
    let tar = scratch.join("tree.tar.gz");
    vellum_testkit::clients::run(
        Command::new("tar")
            .arg("-czf")
            .arg(&tar)
            .arg("-C")
            .arg(&tree)
            .arg("."),
    )
    .unwrap();
    let request = ImportRequest {
        source: ImportSource::Path(tar),
        name: Some("made/of:tar".to_owned()),
        ..request
    };
    import(&vellum, &request).unwrap();
    picture(&scratch, &vellum, "made/of:tar").assert_same(
        &Tree::read(&tree).unwrap(),
        Ignore {
            nanoseconds: true,
            ..BUT_ROOT
        },
    );
}

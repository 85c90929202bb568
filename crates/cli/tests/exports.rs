//! Images of the store as Podman's additional image stores: every driver, a plain user, kills, and
//! the newer Podman.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::podman::{LIMITS, VELLUM, call, done_in_the_end, plain_image};
use support::{World, archive, layer, said, small};
use vellum_testkit::clients::{Home, Vellum, available, small_image};
use vellum_testkit::fault::{self, CHANGES, Effect};
use vellum_testkit::tree::Ignore;
use vellum_testkit::{PlainUser, Scratch};

#[test]
fn podman_reads_exported_images_in_place() {
    if !available(&["podman", "runc", "busybox", "python3"]) {
        return;
    }
    let home = Home::new().unwrap();
    let vellum = Vellum::new(VELLUM, &home, "vellum").unwrap();
    vellum
        .load_as(&small_image(&home).unwrap(), "localhost/demo:1")
        .unwrap();
    let shared = home.join("shared");
    let dir = shared.to_str().unwrap();
    let export = ["export", "containers-storage", dir];
    let planned = vellum
        .run(&[&export[..], &["--dry-run", "--json"]].concat())
        .unwrap();
    assert!(planned.contains("\"layers\": 10"), "{planned}");
    assert!(!shared.exists());
    vellum.run(&export).unwrap();

    // The kernel mounts.
    let store = format!("overlay.imagestore={dir}");
    let options = ["--storage-opt", &store];
    let podman = |args: &[&str]| done_in_the_end(args, || call(&home, "reader", &options, args));
    let listed = podman(&[
        "images",
        "--format",
        "{{.Repository}}:{{.Tag}} {{.ReadOnly}}",
    ]);
    assert_eq!(listed, "localhost/demo:1 true\n");
    let script = "cat /app/version; ls /odd/links; echo new > /etc/new; rm /etc/app.conf";
    let run = [
        &["run", "--name", "box"],
        &LIMITS[..],
        &["localhost/demo:1", "sh", "-c", script],
    ]
    .concat();
    assert_eq!(podman(&run), "version 2\ndeep\nfirst\nloop\n");
    // Nothing was unpacked, and the layers above are Podman's own.
    let own = podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let again = [
        &["run", "--rm"],
        &LIMITS[..],
        &["localhost/mine:1", "cat", "/etc/new"],
    ]
    .concat();
    assert_eq!(podman(&again), "new\n", "{own}");

    // Podman compares what it sends with the digests; Vellum compares what comes back with the diff
    // ids.
    let saved = home.join("saved.tar");
    podman(&[
        "save",
        "--quiet",
        "--format",
        "docker-archive",
        "--output",
        saved.to_str().unwrap(),
        "localhost/demo:1",
    ]);
    vellum.load_as(&saved, "localhost/demo:back").unwrap();
    let ids = |name: &str| {
        vellum
            .run(&["inspect", name])
            .unwrap()
            .matches("sha256:")
            .count()
    };
    assert_eq!(ids("localhost/demo:1"), ids("localhost/demo:back"));
    let before = vellum.image_tree("localhost/demo:1", &home).unwrap();
    before.assert_same(
        &vellum.image_tree("localhost/demo:back", &home).unwrap(),
        Ignore {
            root: true,
            ..Ignore::default()
        },
    );

    // The layers stay as long as the export, and a new export replaces the previous one.
    vellum
        .run(&["rmi", "localhost/demo:1", "localhost/demo:back"])
        .unwrap();
    vellum.run(&["gc"]).unwrap();
    assert_eq!(podman(&again), "new\n");
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--force", "localhost/mine:1"]);
    vellum.run(&export).unwrap();
    assert_eq!(podman(&["images", "--format", "{{.Repository}}"]), "");
    vellum.run(&[&export[..], &["--remove"]].concat()).unwrap();
    assert!(!shared.exists());
    vellum.run(&["gc"]).unwrap();
    assert!(vellum.run(&["check"]).is_ok());

    // Foreign files stay.
    fs::create_dir_all(shared.join("overlay")).unwrap();
    assert!(
        vellum.run(&export).is_err() && vellum.run(&[&export[..], &["--remove"]].concat()).is_err()
    );
    assert!(shared.join("overlay").exists());
}

#[test]
fn exported_images_of_every_driver_are_read_by_podman() {
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    std::thread::scope(|scope| {
        for driver in ["overlay", "native"] {
            let archive = &archive;
            scope.spawn(move || read_by_podman(driver, archive));
        }
    });
}

fn read_by_podman(driver: &str, archive: &Path) {
    let home = Home::new().unwrap();
    let vellum = Vellum::new(VELLUM, &home, "vellum").unwrap();
    let on = |args: &[&str]| {
        vellum
            .run(&[&["--storage-driver", driver], args].concat())
            .unwrap()
    };
    on(&["load", "--quiet", archive.to_str().unwrap()]);
    let shared = home.join("shared");
    let export = ["export", "containers-storage", shared.to_str().unwrap()];
    on(&export);

    let store = format!("overlay.imagestore={}", shared.display());
    let options = ["--storage-opt", &store];
    let podman = |args: &[&str]| done_in_the_end(args, || call(&home, "reader", &options, args));
    // A file that a layer deleted is gone, although the trees below still have it.
    let script =
        "ls /odd /usr/share/doc; stat -c %s /srv/large.bin; echo new > /etc/new; rm /etc/group";
    let run = ["run", "--name", "box"];
    let run = [
        &run,
        &LIMITS[..],
        &["localhost/plain:1", "sh", "-c", script],
    ]
    .concat();
    assert_eq!(
        podman(&run),
        "/odd:\nlinks\n\n/usr/share/doc:\nREADME\n3145728\n",
        "{driver}"
    );
    let changed = podman(&["diff", "box"]);
    let changed: BTreeSet<&str> = changed.lines().collect();
    assert!(
        changed.is_superset(&["A /etc/new", "C /etc", "D /etc/group"].into()),
        "{driver}: {changed:?}"
    );
    podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let again = ["run", "--rm"];
    let look = "cat /etc/new; ls /odd; ls -d /etc/group 2> /dev/null || echo gone";
    let again = [&again, &LIMITS[..], &["localhost/mine:1", "sh", "-c", look]].concat();
    assert_eq!(podman(&again), "new\nlinks\ngone\n", "{driver}");
    // Podman compares what it sends with the layers' digests.
    for (image, file) in [("localhost/plain:1", "plain"), ("localhost/mine:1", "mine")] {
        let saved = home.join(file);
        let save = ["save", "--quiet", "--format", "docker-archive", "--output"];
        podman(&[&save[..], &[saved.to_str().unwrap(), image]].concat());
        on(&[
            "load",
            "--quiet",
            "--tag",
            "localhost/back:1",
            saved.to_str().unwrap(),
        ]);
    }
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--force", "localhost/mine:1"]);
    on(&[&export[..], &["--remove"]].concat());
}

#[test]
fn a_plain_users_podman_reads_the_users_exports() {
    if !available(&["podman", "runc", "busybox", "python3"]) {
        return;
    }
    let scratch = Scratch::new();
    let home = Home::new().unwrap();
    let Some(user) = PlainUser::new(&scratch) else {
        return;
    };
    let _holder = Holder(&user);
    let images = [plain_image(&scratch), small_image(&home).unwrap()];
    for image in &images {
        fs::set_permissions(image, Permissions::from_mode(0o644)).unwrap();
    }
    let program = user.borrow_program(Path::new(VELLUM));
    let short = scratch.dir("r");
    std::os::unix::fs::chown(&short, Some(user.id), Some(user.id)).unwrap();
    let vellum = |args: &[&str]| said(user.command(&program).args(args).output().unwrap());
    let ok = |args: &[&str]| {
        let said = vellum(args);
        assert_eq!(said.code, 0, "{args:?}: {}", said.err);
        said.out
    };
    ok(&["load", "--quiet", images[0].to_str().unwrap()]);
    let shared = user.home().join("shared");
    let export = ["export", "containers-storage", shared.to_str().unwrap()];
    ok(&export);
    let podman = |args: &[&str]| {
        let mut run = user.command("timeout");
        run.args(["-k", "5", "120", "podman", "--root"]);
        run.arg(user.home().join("reader"));
        run.arg("--runroot").arg(short.join("r"));
        run.arg("--tmpdir").arg(short.join("t"));
        run.args(["--storage-driver", "overlay", "--runtime", "runc"]);
        run.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        run.arg("--storage-opt")
            .arg(format!("overlay.imagestore={}", shared.display()));
        done_in_the_end(args, || {
            let mut again = Command::new(run.get_program());
            again.args(run.get_args()).args(args);
            said(again.output().unwrap())
        })
    };
    let script =
        "stat -c '%u %g' /etc/passwd; ls /odd; rm /etc/group; echo new > /etc/new; cat /etc/new";
    let run = ["run", "--name", "box", "--log-driver", "k8s-file"];
    let run = [
        &run,
        &LIMITS[..],
        &["localhost/plain:1", "sh", "-c", script],
    ]
    .concat();
    podman(&run);
    // Podman may lose what a short container prints; its log has it.
    assert_eq!(podman(&["logs", "box"]), "0 0\nlinks\nnew\n");
    podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let saved = short.join("saved");
    let save = ["save", "--quiet", "--format", "docker-archive", "--output"];
    podman(&[&save[..], &[saved.to_str().unwrap(), "localhost/mine:1"]].concat());
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--force", "localhost/mine:1"]);

    // Devices are records in a plain user's store: that image is refused by name, and the export
    // stays as it was.
    ok(&[
        "load",
        "--quiet",
        "--tag",
        "localhost/small:1",
        images[1].to_str().unwrap(),
    ]);
    let refused = vellum(&export);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused
            .err
            .contains("kept as a record (user.containers.override_stat)")
            && refused
                .err
                .contains("hint: `vellum save IMAGE | podman load`"),
        "{}",
        refused.err
    );
    assert_eq!(
        podman(&["images", "--format", "{{.Repository}} {{.ReadOnly}}"]),
        "localhost/plain true\n"
    );
    ok(&[&export[..], &["localhost/plain:1"]].concat());
    podman(&["system", "migrate"]);
    ok(&[&export[..], &["--remove"]].concat());
    assert!(!shared.exists());
}

/// Ends the process that keeps the user's namespaces, even after a failure.
struct Holder<'a>(&'a PlainUser);

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        if let Err(e) = vellum_service::rootless::stop(&self.0.run_dir().join("vellum")) {
            eprintln!("a namespace holder stays: {e}");
        }
    }
}

/// Checks everything in an export (records, links, layers below, tar-splits), and returns the names
/// of its images.
#[track_caller]
fn whole(dir: &Path) -> BTreeSet<String> {
    let json = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(dir.join(path)).unwrap()).unwrap()
    };
    let layers = json("overlay-layers/layers.json");
    let mut known = BTreeSet::new();
    for layer in layers.as_array().unwrap() {
        let id = layer["id"].as_str().unwrap();
        if let Some(parent) = layer["parent"].as_str().filter(|parent| !parent.is_empty()) {
            assert!(known.contains(parent), "{id}'s parent comes later");
        }
        known.insert(id.to_owned());
        let own = dir.join("overlay").join(id);
        assert!(own.join("diff").read_dir().unwrap().next().is_some());
        let link = fs::read_to_string(own.join("link")).unwrap();
        assert!(dir.join("overlay/l").join(link).read_dir().is_ok());
        for below in fs::read_to_string(own.join("lower"))
            .unwrap_or_default()
            .split(':')
            .filter(|below| !below.is_empty())
        {
            assert!(dir.join("overlay").join(below).read_dir().is_ok());
        }
        let split = dir.join(format!("overlay-layers/{id}.tar-split.gz"));
        let test = Command::new("gzip").arg("-t").arg(split).status();
        assert!(test.unwrap().success());
    }
    let images = json("overlay-images/images.json");
    let images = images.as_array().unwrap().iter();
    images
        .flat_map(|image| {
            assert!(known.contains(image["layer"].as_str().unwrap()));
            let files = dir
                .join("overlay-images")
                .join(image["id"].as_str().unwrap());
            assert!(files.join("manifest").exists());
            image["names"].as_array().unwrap().clone()
        })
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn an_export_killed_anywhere_is_the_old_one_or_the_new_one() {
    let Some(world) = World::new() else { return };
    if !fault::available() {
        return;
    }
    let second = archive(
        &world.scratch,
        "second:1",
        &[layer().dir("etc").file("etc/second", "2\n").done()],
        json!({}),
    );
    let small = small(&world.scratch);
    world.ok(&["load", small.to_str().unwrap()]);
    world.ok(&["load", second.to_str().unwrap()]);
    let dir = world.scratch.join("shared");
    let at = dir.to_str().unwrap();
    let export = ["export", "containers-storage", at];
    let old: BTreeSet<_> = ["docker.io/library/small:1".to_owned()].into();
    let mut new = old.clone();
    new.insert("docker.io/library/second:1".to_owned());
    let config = world.scratch.file("vellum.toml", "");
    let killed = |args: &[&str], calls: &str, n: u32| {
        let (root, run_dir) = (world.root(), world.run_dir());
        let places = [
            "--root",
            root.to_str().unwrap(),
            "--run-dir",
            run_dir.to_str().unwrap(),
        ];
        let run = fault::run(
            Path::new(VELLUM),
            &[&places[..], args].concat(),
            &[("VELLUM_CONFIG", config.as_os_str())],
            calls,
            Effect::Kill,
            n,
        );
        assert!(
            run.hit || run.status.success(),
            "{calls} {n}: {}",
            run.stderr
        );
        run.hit
    };
    let (mut hits, mut went_through) = (0, 0);
    for calls in CHANGES {
        let mut n = 1;
        world.ok(&[&export[..], &["small:1"]].concat());
        while killed(&export, calls, n) {
            hits += 1;
            let found = whole(&dir);
            assert!(found == old || found == new, "{calls} {n}: {found:?}");
            went_through += u32::from(found == new);
            // What it left doesn't get in the way, and is removed.
            world.ok(&[&export[..], &["small:1"]].concat());
            assert_eq!(whole(&dir), old, "{calls} {n}");
            n = n * 2 + 1;
        }
        assert_eq!(whole(&dir), new, "{calls}");
        // A removal has removed it or not; the next one does.
        let mut n = 1;
        let remove = [&export[..], &["--remove"]].concat();
        while killed(&remove, calls, n) {
            hits += 1;
            if dir.exists() {
                assert_eq!(whole(&dir), new, "removal, {calls} {n}");
                world.ok(&remove);
            }
            world.ok(&export);
            n = n * 2 + 1;
        }
        assert!(!dir.exists());
    }
    assert!(
        hits > 20,
        "only {hits} kills: the test is not what it is meant to be"
    );
    assert!(went_through > 0, "none was killed after it was published");
    // No lease is left that keeps layers: nothing stays after the images are removed.
    world.ok(&["rmi", "small:1", "second:1"]);
    world.ok(&["gc"]);
    let left: Vec<_> = fs::read_dir(world.root().join("overlay2"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "l")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let litter = fs::read_dir(world.scratch.path()).unwrap();
    let litter: Vec<_> = litter
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with(".vellum-staged"))
        .collect();
    assert!(litter.is_empty(), "{litter:?}");
}

//! Uppers written by other programs first: an upper keeps the dialect of its marks, and the next
//! program sees all changes.

mod support;

use std::fs;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::layered::{ALL, World, command, read, wait_free};
use support::{Said, said};
use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::clients::{Home, available, small_image};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{Rng, Tree, untested};

/// The properties that must be equal in two unions that were changed one after the other.
const LOOSELY: Ignore = Ignore {
    root: true,
    directory_mtimes: true,
    mtimes: true,
    ..ALL
};

/// The state of an upper before Vellum uses it for the first time.
struct Begun {
    name: &'static str,
    make: fn(&World),
    /// Whether names are hidden by `.wh.` files.
    by_name: bool,
}

fn kernel(world: &World, options: &[(&str, &str)], change: impl Fn(&Path)) {
    let target = world.scratch.dir("kernel");
    let overlay = Overlay {
        lowers: vec![world.at("top"), world.at("base")],
        upper: Some((world.at("upper"), world.at("work"))),
        ..Overlay::default()
    };
    let overlay = options
        .iter()
        .fold(overlay, |all, (key, value)| all.option(key, value));
    overlay.mount(&world.scratch, &target).unwrap();
    change(&target);
    world.scratch.unmount(&target);
}

fn fuse_overlayfs(world: &World, change: impl Fn(&Path)) {
    let target = world.scratch.dir("theirs");
    let text = target.to_str().unwrap();
    let done = said(
        command("fuse-overlayfs", &["-o", &world.options(), text])
            .output()
            .unwrap(),
    );
    assert_eq!(done.code, 0, "{}", done.err);
    world.scratch.adopt_mount(&target);
    change(&target);
    world.scratch.unmount(&target);
}

const BEGUN: &[Begun] = &[
    Begun {
        name: "empty",
        make: |_| {},
        by_name: false,
    },
    Begun {
        name: "a plain file",
        make: |world| {
            fs::write(world.at("upper/plain"), "x").unwrap();
        },
        by_name: false,
    },
    Begun {
        name: "plain files, deep",
        make: |world| {
            fs::create_dir_all(world.at("upper/a/b/c")).unwrap();
            fs::write(world.at("upper/a/b/c/wh.x"), "x").unwrap();
        },
        by_name: false,
    },
    Begun {
        name: "the kernel's, with a new file",
        make: |world| kernel(world, &[], |at| fs::write(at.join("new"), "x").unwrap()),
        by_name: false,
    },
    Begun {
        name: "the kernel's, with redirects and an index",
        make: |world| {
            kernel(world, &[("redirect_dir", "on"), ("index", "on")], |at| {
                fs::write(at.join("new"), "x").unwrap();
            });
        },
        by_name: false,
    },
    Begun {
        name: "the kernel's, with a name that looks like a mark",
        make: |world| {
            kernel(world, &[], |at| {
                fs::write(at.join(".wh.only-a-name"), "x").unwrap()
            })
        },
        by_name: false,
    },
    Begun {
        name: "the kernel's, without its root's attributes",
        make: |world| {
            kernel(world, &[], |at| {
                fs::remove_file(at.join("both")).unwrap();
                fs::write(at.join(".wh.only-a-name"), "x").unwrap();
            });
            for name in [
                "trusted.overlay.origin",
                "trusted.overlay.impure",
                "trusted.overlay.uuid",
            ] {
                let status = command(
                    "setfattr",
                    &["-x", name, world.at("upper").to_str().unwrap()],
                );
                // Not every kernel writes every one of them.
                let _ = { status }.stderr(Stdio::null()).status().unwrap();
            }
            fs::remove_dir_all(world.at("work/work")).unwrap();
        },
        by_name: false,
    },
    Begun {
        name: "the kernel's, with userxattr",
        make: |world| {
            kernel(world, &[("userxattr", "")], |at| {
                fs::remove_file(at.join("both")).unwrap()
            });
            fs::write(world.at("upper/.wh.x"), "").unwrap();
        },
        by_name: false,
    },
    Begun {
        name: "a .wh. file",
        make: |world| {
            fs::write(world.at("upper/.wh.nothing"), "").unwrap();
        },
        by_name: true,
    },
    Begun {
        name: "a .wh. file, deep",
        make: |world| {
            fs::create_dir_all(world.at("upper/a/b")).unwrap();
            fs::write(world.at("upper/a/b/.wh.x"), "").unwrap();
        },
        by_name: true,
    },
    Begun {
        name: "an opaque directory of an archive, beside a device 0:0",
        make: |world| {
            fs::create_dir(world.at("upper/a")).unwrap();
            fs::write(world.at("upper/a/.wh..wh..opq"), "").unwrap();
            let at = world.at("upper/w");
            let made = command("mknod", &[at.to_str().unwrap(), "c", "0", "0"])
                .status()
                .unwrap();
            assert!(made.success());
        },
        by_name: true,
    },
];

/// Mounts, and returns the command's standard error.
fn mount(world: &World) -> (PathBuf, String) {
    let merged = world.at("merged");
    let text = merged.to_str().unwrap();
    let done = world.vellum(&["overlay", "-o", &world.options(), text]);
    assert_eq!(done.code, 0, "{}", done.err);
    world.scratch.adopt_mount(&merged);
    (merged, done.err)
}

fn explained(world: &World) -> Said {
    world.vellum(&["explain", "-o", &world.options(), "/"])
}

#[test]
fn an_upper_keeps_the_dialect_of_its_marks() {
    for begun in BEGUN {
        let Some(world) = World::new() else { return };
        let name = begun.name;
        (begun.make)(&world);
        let form = if begun.by_name {
            ".wh. files"
        } else {
            "devices 0:0"
        };
        let line = format!("whiteouts in the upper are {form}\n");
        let said = explained(&world);
        assert!(
            said.out.ends_with(&line),
            "{name}: {} {}",
            said.out,
            said.err
        );
        let (merged, told) = mount(&world);
        assert_eq!(
            told.contains("and continues to"),
            begun.by_name,
            "{name}: {told}"
        );
        fs::remove_file(merged.join("gone")).unwrap();
        let moved = fs::rename(merged.join("dir"), merged.join("moved"));
        let expect = if begun.by_name {
            Err(ErrorKind::CrossesDevices)
        } else {
            Ok(())
        };
        assert_eq!(moved.map_err(|e| e.kind()), expect, "{name}");
        fs::remove_dir_all(merged.join(if begun.by_name { "dir" } else { "moved" })).unwrap();
        fs::create_dir(merged.join("dir")).unwrap();
        let live = Tree::read(&merged).unwrap();
        world.unmount();
        assert_eq!(world.at("upper/.wh.gone").exists(), begun.by_name, "{name}");

        // The same again, and no message is repeated.
        let (merged, told) = mount(&world);
        assert_eq!(told, "", "{name}");
        live.assert_same(&Tree::read(&merged).unwrap(), Ignore::default());
        world.unmount();
        assert!(explained(&world).out.ends_with(&line), "{name}");

        // The kernel shows the correct tree, or refuses.
        let target = world.scratch.dir("kernel");
        let overlay = Overlay {
            lowers: vec![world.at("top"), world.at("base")],
            upper: Some((world.at("upper"), world.at("work"))),
            ..Overlay::default()
        };
        let overlay = overlay.option("redirect_dir", "on").option("index", "on");
        let overlay = match name.contains("userxattr") {
            // Its marks are in the other xattr namespace, where Vellum as root neither reads nor
            // writes any.
            true => continue,
            false => overlay,
        };
        let mounted = overlay.mount(&world.scratch, &target);
        assert_eq!(mounted.is_ok(), !begun.by_name, "{name}: {mounted:?}");
        if mounted.is_ok() {
            assert!(
                !target.join("gone").exists() && !target.join("dir/inner").exists(),
                "{name}"
            );
            world.scratch.unmount(&target);
        }
    }
}

#[test]
fn an_upper_of_fuse_overlayfs_keeps_its_marks() {
    let Some(world) = World::new() else { return };
    if !available(&["fuse-overlayfs"]) {
        return;
    }
    fuse_overlayfs(&world, |at| {
        fs::remove_file(at.join("both")).unwrap();
        fs::remove_dir_all(at.join("dir")).unwrap();
    });
    let (merged, _) = mount(&world);
    assert!(!merged.join("both").exists() && !merged.join("dir").exists());
    fs::remove_file(merged.join("gone")).unwrap();
    world.unmount();
    fuse_overlayfs(&world, |at| {
        for name in ["both", "gone", "dir"] {
            assert!(!at.join(name).exists(), "{name}");
        }
    });
}

#[test]
fn fuse_overlayfs_sees_what_is_below_our_upper() {
    let Some(world) = World::new() else { return };
    if !available(&["fuse-overlayfs"]) {
        return;
    }
    let (merged, _) = mount(&world);
    fs::write(merged.join("new"), "x").unwrap();
    fs::remove_file(merged.join("gone")).unwrap();
    world.unmount();
    fuse_overlayfs(&world, |at| {
        assert_eq!(read(&at.join("dir/inner/file")), "deep\n");
        assert!(at.join("new").exists() && !at.join("gone").exists());
    });
}

/// Creates three uppers, each on the previous ones, with differently named work directories next to
/// them.
#[test]
fn uppers_work_as_lower_layers_whatever_their_work_directories_are_called() {
    let Some(world) = World::new() else { return };
    let at = |below: &str| world.at(below).display().to_string();
    let merged = world.at("merged");
    let mut lowers = format!("{}:{}", at("top"), at("base"));
    let mount = |options: &str| {
        let done = world.vellum(&["overlay", "-o", options, merged.to_str().unwrap()]);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.out);
        world.scratch.adopt_mount(&merged);
    };
    let mut name = String::from("dir");
    for (upper, work) in [("u1", "w1"), ("u2", "work"), ("u3", "the third's")] {
        world.scratch.dir(upper);
        world.scratch.dir(work);
        let (upper, work) = (at(upper), at(work));
        mount(&format!(
            "lowerdir={lowers},upperdir={upper},workdir={work}"
        ));
        let next = format!("{name}-moved");
        fs::rename(merged.join(&name), merged.join(&next)).unwrap();
        let mode = fs::Permissions::from_mode(0o600 + name.len() as u32 % 8);
        fs::set_permissions(merged.join("both"), mode).unwrap();
        fs::create_dir_all(merged.join("again/and")).unwrap();
        fs::remove_dir_all(merged.join("again")).unwrap();
        fs::create_dir(merged.join("again")).unwrap();
        name = next;
        world.scratch.unmount(&merged);
        wait_free(Path::new(&upper));
        lowers = format!("{upper}:{lowers}");
    }
    let ours = || {
        mount(&format!("lowerdir={lowers}"));
        let tree = Tree::read(&merged);
        world.scratch.unmount(&merged);
        tree
    };
    let shown = ours().unwrap();
    assert_eq!(
        read_in(&world, &lowers, &format!("{name}/inner/file")),
        "deep\n"
    );
    let target = world.scratch.dir("kernel");
    Overlay {
        lowers: lowers.split(':').map(PathBuf::from).collect(),
        ..Overlay::default()
    }
    .option("redirect_dir", "follow")
    .option("metacopy", "on")
    .mount(&world.scratch, &target)
    .unwrap();
    shown.assert_same(&Tree::read(&target).unwrap(), Ignore::default());
    world.scratch.unmount(&target);

    // A neighbour that only knows the inode number may come from an archive and claim to be a work
    // directory.
    let record = world.at("w1/vellum/layer");
    let text = read(&record);
    let (before, born) = text.split_once("\"upper_born\":[").unwrap();
    let (_, after) = born.split_once(']').unwrap();
    for claimed in ["null", "[1700000000,0]"] {
        fs::write(&record, format!("{before}\"upper_born\":{claimed}{after}")).unwrap();
        assert!(ours().is_err(), "{claimed}");
    }
    fs::write(&record, text).unwrap();
    ours().unwrap();
}

/// Reads one file of a union without a mount.
fn read_in(world: &World, lowers: &str, path: &str) -> String {
    let said = world.vellum(&["cat", "-o", &format!("lowerdir={lowers}"), path]);
    assert_eq!(said.code, 0, "{}", said.err);
    said.out
}

#[test]
fn a_lower_layer_with_partly_copied_files_is_reported_at_the_mount() {
    let Some(world) = World::new() else { return };
    let big = world.at("base/big");
    fs::write(&big, vec![b'x'; 8 << 20]).unwrap();
    let (merged, _) = mount(&world);
    let change = |path: &Path| {
        let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.seek(SeekFrom::Start(5 << 20)).unwrap();
        file.write_all(b"changed").unwrap();
    };
    change(&merged.join("big"));
    world.unmount();
    let at = |below: &str| world.at(below).display().to_string();
    let options = format!("lowerdir={}:{}", at("upper"), at("base"));
    let args = ["overlay", "-o", &options, merged.to_str().unwrap()];
    let told = world.vellum(&args);
    assert_eq!(told.code, 0, "{}", told.err);
    if told.err.is_empty() {
        world.scratch.adopt_mount(&merged);
        assert_eq!(fs::read(merged.join("big")).unwrap().len(), 8 << 20);
        untested("files copied in part", "this file system shares blocks");
        return;
    }
    let remedy = format!("vellum settle {} {}", at("upper"), at("work"));
    assert!(told.err.contains(&remedy), "{}", told.err);
    world.scratch.adopt_mount(&merged);
    assert!(fs::read(merged.join("big")).is_err());
    world.scratch.unmount(&merged);
    world.on_free_layers(&["settle", &at("upper"), &at("work")]);
    let told = world.vellum(&args);
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    world.scratch.adopt_mount(&merged);
    assert_eq!(
        &fs::read(merged.join("big")).unwrap()[5 << 20..][..8],
        b"changedx"
    );
    world.scratch.unmount(&merged);
}

/// A directory on the kernel's overlay, like a container's file system, with two layers, an upper
/// and a work directory in it.
fn in_a_container(world: &World) -> (PathBuf, String) {
    for dir in ["c/lower", "c/upper", "c/work", "c/merged"] {
        world.scratch.dir(dir);
    }
    let outer = Overlay {
        lowers: vec![world.at("c/lower")],
        upper: Some((world.at("c/upper"), world.at("c/work"))),
        ..Overlay::default()
    };
    outer.mount(&world.scratch, &world.at("c/merged")).unwrap();
    for dir in ["low/dir/inner", "up", "work", "merged"] {
        fs::create_dir_all(world.at("c/merged").join(dir)).unwrap();
    }
    let at = |below: &str| world.at("c/merged").join(below);
    fs::write(at("low/dir/inner/file"), "deep\n").unwrap();
    fs::write(at("low/gone"), "soon\n").unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("low").display(),
        at("up").display(),
        at("work").display()
    );
    (at("merged"), options)
}

#[test]
fn files_hide_names_where_no_device_0_0_can_be_created() {
    let Some(world) = World::new() else { return };
    let (merged, options) = in_a_container(&world);
    let text = merged.to_str().unwrap();
    let probe = world.at("c/merged/probe");
    let made = command("mknod", &[probe.to_str().unwrap(), "c", "0", "0"])
        .stderr(Stdio::null())
        .status();
    if made.unwrap().success() {
        untested(
            "an upper without whiteouts",
            "this kernel's overlay takes devices 0:0",
        );
        return;
    }
    let done = world.vellum(&["overlay", "-o", &options, text]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("takes no devices 0:0"), "{}", done.err);
    world.scratch.adopt_mount(&merged);
    fs::remove_file(merged.join("gone")).unwrap();
    let moved = command(
        "mv",
        &[
            merged.join("dir").to_str().unwrap(),
            merged.join("moved").to_str().unwrap(),
        ],
    );
    assert!({ moved }.status().unwrap().success());
    let long = "n".repeat(252);
    fs::write(merged.join(&long), "new names of any length come and go").unwrap();
    fs::remove_file(merged.join(&long)).unwrap();
    let names = |at: &Path| {
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&merged), ["moved"]);
    assert_eq!(read(&merged.join("moved/inner/file")), "deep\n");
    world.scratch.unmount(&merged);
    wait_free(&world.at("c/merged/up"));

    // Reported once, and the union is the same afterwards.
    let done = world.vellum(&["overlay", "-o", &options, text]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    world.scratch.adopt_mount(&merged);
    assert_eq!(names(&merged), ["moved"]);
    world.scratch.unmount(&merged);
    wait_free(&world.at("c/merged/up"));

    // If the kernel's overlay can mount the same directories, it must not show what was removed.
    let overlay = Overlay {
        lowers: vec![world.at("c/merged/low")],
        upper: Some((world.at("c/merged/up"), world.at("c/merged/work"))),
        ..Overlay::default()
    };
    assert!(overlay.mount(&world.scratch, &merged).is_err());
}

#[test]
fn a_union_on_a_union_needs_no_options() {
    let Some(world) = World::new() else { return };
    let (outer, _) = mount(&world);
    for dir in ["in/low/dir", "in/up", "in/work", "in/merged"] {
        fs::create_dir_all(outer.join(dir)).unwrap();
    }
    let low = outer.join("in/low");
    for name in ["gone", "changed", "dir/moved", "linked"] {
        fs::write(low.join(name), name).unwrap();
    }
    fs::hard_link(low.join("linked"), low.join("dir/link")).unwrap();
    let options = format!(
        "lowerdir={0}/low,upperdir={0}/up,workdir={0}/work",
        outer.join("in").display()
    );
    let merged = outer.join("in/merged");
    let inner = |told: bool| {
        let done = world.vellum(&["overlay", "-o", &options, merged.to_str().unwrap()]);
        assert_eq!(
            (done.code, done.err.contains("no devices 0:0")),
            (0, told),
            "{}",
            done.err
        );
        world.scratch.adopt_mount(&merged);
    };
    inner(true);
    fs::remove_file(merged.join("gone")).unwrap();
    fs::write(merged.join("changed"), "new").unwrap();
    fs::write(merged.join("linked"), "new").unwrap();
    let moved = [merged.join("dir"), merged.join("other")].map(|at| at.display().to_string());
    assert!(
        command("mv", &[&moved[0], &moved[1]])
            .status()
            .unwrap()
            .success()
    );
    let check = || {
        let mut names: Vec<_> = fs::read_dir(&merged)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["changed", "linked", "other"]);
        assert_eq!(read(&merged.join("changed")), "new");
        assert_eq!(read(&merged.join("other/moved")), "dir/moved");
    };
    check();
    for outer_too in [false, true] {
        world.scratch.unmount(&merged);
        wait_free(&outer.join("in/up"));
        if outer_too {
            world.unmount();
            mount(&world);
        }
        inner(false);
        check();
    }
    world.scratch.unmount(&merged);
    wait_free(&outer.join("in/up"));
}

/// Makes the same random changes in a union on a union, without options, and in a union on a disk
/// that is limited to what the other can have: no devices 0:0, so that directories from below don't
/// move, and no file handles, so that nothing indexes hard links.
#[test]
fn a_union_works_on_a_union() {
    let Some(world) = World::new() else { return };
    let mut rng = Rng::for_test("a_union_works_on_a_union");
    let churn = Churn {
        links: true,
        trusted_xattrs: false,
        devices: false,
    };
    let (outer, _) = mount(&world);
    let sides = [
        (outer.join("in"), ""),
        (world.scratch.dir("judge"), ",wh=whiteouts,index=off"),
    ];
    let seed = rng.next();
    for (at, _) in &sides {
        for dir in ["low", "up", "work", "merged"] {
            fs::create_dir_all(at.join(dir)).unwrap();
        }
        grow(&mut Rng::seeded(seed), &at.join("low"), 60);
    }
    let mount_in = |(at, more): &(PathBuf, &str)| {
        let merged = at.join("merged");
        let at = at.display();
        let options = format!("lowerdir={at}/low,upperdir={at}/up,workdir={at}/work{more}");
        let done = world.vellum(&["overlay", "-o", &options, merged.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{}", done.err);
        world.scratch.adopt_mount(&merged);
        merged
    };
    let unmount = |(at, _): &(PathBuf, &str)| {
        world.scratch.unmount(&at.join("merged"));
        wait_free(&at.join("up"));
    };
    for step in 0..3 {
        let [inner, wanted] = sides.each_ref().map(|side| {
            let merged = mount_in(side);
            churn.run(&mut Rng::seeded(seed + 1 + step), &merged, 120);
            Tree::read(&merged).unwrap()
        });
        inner.assert_same(&wanted, LOOSELY);
        sides.iter().for_each(unmount);
        // The outer union, too, has only what is on disk now.
        world.unmount();
        mount(&world);
        let again = Tree::read(&mount_in(&sides[0])).unwrap();
        again.assert_same(&wanted, LOOSELY);
        unmount(&sides[0]);
    }
}

#[test]
fn a_store_in_a_container_uses_a_driver_that_works_there() {
    let Some(world) = World::new() else { return };
    in_a_container(&world);
    let home = Home::new().unwrap();
    let image = small_image(&home).unwrap();
    let root = world.at("c/merged/store").display().to_string();
    let run = world.at("run").display().to_string();
    let vellum = |args: &[&str]| {
        let all = ["--root", &root, "--run-dir", &run]
            .into_iter()
            .chain(args.iter().copied());
        world.vellum(&all.collect::<Vec<_>>())
    };
    // If requested explicitly, it is an error that says what to do, and leaves nothing.
    let refused = vellum(&["--storage-driver", "overlay2", "info"]);
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(
        refused.err.contains("takes no devices 0:0"),
        "{}",
        refused.err
    );
    assert!(!Path::new(&root).join("overlay2").exists());

    let loaded = vellum(&["load", "-i", image.to_str().unwrap()]);
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    assert!(
        loaded.err.contains("using the storage driver native"),
        "{}",
        loaded.err
    );
    let made = vellum(&[
        "create",
        "--mount",
        "--name",
        "box",
        "vellum-demo-small:latest",
    ]);
    assert_eq!((made.code, made.err.as_str()), (0, ""), "reported once");
    let merged = PathBuf::from(made.out.trim());
    fs::remove_dir_all(merged.join("etc")).unwrap();
    assert!(!merged.join("etc").exists());
    for args in [
        &["umount", "--all"][..],
        &["check"],
        &["rm", "box"],
        &["gc"],
    ] {
        let done = vellum(args);
        assert_eq!(done.code, 0, "{args:?}: {} {}", done.out, done.err);
    }
    let info = vellum(&["info", "--json"]);
    assert!(info.out.contains("\"driver\": \"native\""), "{}", info.out);
    let whiteouts = "\"whiteouts\": \".wh. files\"";
    assert!(info.out.contains(whiteouts), "{}", info.out);
}

//! Containers through the real command: from archive to archive, every method and driver, many layers, copies, runs.

mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;
use support::{World, archive, layer, small, with_shell};
use vellum_sys::{Dir, mount, xattr};
use vellum_testkit::tree::Ignore;
use vellum_testkit::{FsKind, Tree, untested};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes the same changes in any mounted tree of the small image.
fn change(tree: &Path) {
    std::fs::write(tree.join("etc/new"), "new\n").unwrap();
    std::fs::remove_file(tree.join("etc/top")).unwrap();
    std::fs::write(tree.join("etc/hostname"), "above\n").unwrap();
    std::fs::set_permissions(
        tree.join("dir/inner"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
}

const CHANGED: &str = "C /dir\nC /dir/inner\nC /etc\nC /etc/hostname\nA /etc/new\nD /etc/top";

#[test]
fn the_whole_way_from_archive_to_archive() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    assert_eq!(world.ok(&["create", "--name", "box", "small:1"]), "box");
    let tree = world.mounted("box");
    assert!(!tree.join("etc/gone").exists());
    assert_eq!(
        std::fs::read_to_string(tree.join("link")).unwrap(),
        "below\n"
    );
    change(&tree);
    assert_eq!(world.ok(&["diff", "box"]), CHANGED);
    let before = Tree::read(&tree).unwrap();
    let id = world.ok(&[
        "commit", "--author", "me", "-m", "why", "-c", "ENV B=2", "box", "small:2",
    ]);
    assert!(id.starts_with("sha256:"), "{id}");
    let saved = world.scratch.join("saved.tar");
    world.ok(&["save", "-o", text(&saved), "small:2"]);

    // The container goes on, and what it holds is still a change.
    assert_eq!(world.ok(&["diff", "box"]), CHANGED);

    let other = World::new().unwrap();
    other.ok(&["load", text(&saved)]);
    assert_eq!(other.json(&["inspect", "small:2"])[0]["id"], id);
    other.ok(&["create", "--name", "copy", "small:2"]);
    let copy = other.mounted("copy");
    Tree::read(&copy).unwrap().assert_same(
        &before,
        Ignore {
            root: true,
            ..Ignore::default()
        },
    );
    assert_eq!(other.ok(&["diff", "copy"]), "");
    let history = other.json(&["history", "--json", "small:2"]);
    assert!(history.to_string().contains("why"), "{history}");
    let config = &other.json(&["inspect", "small:2"])[0]["config"];
    assert_eq!(config["config"]["Env"], json!(["A=1", "B=2"]));
    assert_eq!(config["author"], "me");

    world.ok(&["umount", "box"]);
    world.ok(&["rm", "box"]);
    world.ok(&["rmi", "small:1", "small:2"]);
    world.ok(&["gc"]);
    assert_eq!(world.json(&["df", "--json"])["total"]["inodes"], 0);
    assert_eq!(world.json(&["check", "--json"]), json!([]));
}

#[test]
fn the_tar_of_a_diff_is_the_layer_that_commit_makes() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    change(&world.mounted("box"));
    let tar = world
        .command(&["diff", "--tar", "box"])
        .output()
        .unwrap()
        .stdout;
    let digest = vellum_image::Digest::of(&tar).to_string();
    world.ok(&["commit", "box", "small:2"]);
    let layers = world.json(&["inspect", "small:2"])[0]["config"]["rootfs"]["diff_ids"].clone();
    assert_eq!(layers[2], digest);
}

#[test]
fn every_driver_shows_the_same_tree_and_commits_the_same_layer() {
    let mut seen: Vec<(Tree, serde_json::Value)> = Vec::new();
    for driver in ["overlay2", "overlay", "native"] {
        let Some(world) = World::with(&["--storage-driver", driver]) else {
            return;
        };
        world.ok(&["load", text(&small(&world.scratch))]);
        world.ok(&["create", "--name", "box", "small:1"]);
        let tree = world.mounted("box");
        change(&tree);
        assert_eq!(world.ok(&["diff", "box"]), CHANGED, "{driver}");
        world.ok(&["commit", "box", "small:2"]);
        world.ok(&["create", "--name", "again", "small:2"]);
        let again = Tree::read(&world.mounted("again")).unwrap();
        again.assert_same(
            &Tree::read(&tree).unwrap(),
            Ignore {
                root: true,
                ..Ignore::default()
            },
        );
        let ls = world.json(&["ls", "--json"]);
        assert!(
            ls.as_array().unwrap().iter().all(|c| c["driver"] == driver),
            "{ls}"
        );
        seen.push((again, ls));
        world.ok(&["rm", "--force", "box", "again"]);
        assert_eq!(world.ok(&["check", "--quiet"]), "", "{driver}");
    }
}

#[test]
fn a_changed_driver_hides_nothing() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "old", "small:1"]);
    let native = ["--storage-driver", "native"];
    let with = |args: &[&str]| world.ok(&[&native[..], args].concat());
    assert!(with(&["images"]).contains("small:1"));
    assert!(with(&["ls"]).contains("old"));
    with(&["create", "--name", "new", "small:1"]);
    for name in ["old", "new"] {
        let tree = with(&["mount", name]);
        assert_eq!(
            std::fs::read_to_string(Path::new(&tree).join("etc/top")).unwrap(),
            "top\n"
        );
    }
    with(&["commit", "new", "small:2"]);
    let info: serde_json::Value = serde_json::from_str(&with(&["info", "--json"])).unwrap();
    assert_eq!(info["driver"], "native");
    assert_eq!(info["snapshots"][0][0], "overlay2");
}

#[test]
fn each_mount_method_shows_one_to_five_hundred_layers() {
    let Some(world) = World::new() else { return };
    for count in [1, 2, 128, 129, 500] {
        let layers: Vec<Vec<u8>> = (0..count)
            .map(|n| {
                layer()
                    .file(&format!("layer-{n:03}"), n.to_string())
                    .file("top", n.to_string())
                    .done()
            })
            .collect();
        let tag = format!("deep:{count}");
        world.ok(&[
            "load",
            text(&archive(&world.scratch, &tag, &layers, json!({}))),
        ]);
        for method in ["layer-fds", "lowerdir-plus", "option-page"] {
            let name = format!("box-{count}-{method}");
            world.ok(&["create", "--name", &name, &tag]);
            let args = ["--mount-method", method, "mount", &name];
            let said = world.run(&args);
            if said.code != 0 && said.err.contains("needs Linux") {
                untested(method, said.err);
                continue;
            }
            // One page holds 128 short names; what it doesn't hold is refused by name.
            if method == "option-page" && count > 129 {
                assert_eq!(said.code, 1, "{said:?}");
                assert!(
                    said.err.contains("layers take") && said.err.contains("hint:"),
                    "{}",
                    said.err
                );
                continue;
            }
            if method == "option-page" && count == 129 && said.code != 0 {
                assert!(said.err.contains("layers take"), "{}", said.err);
                continue;
            }
            assert_eq!(said.code, 0, "{args:?}: {}", said.err);
            let tree = Path::new(said.out.trim_end());
            assert_eq!(
                std::fs::read_dir(tree).unwrap().count(),
                count + 1,
                "{name}"
            );
            assert_eq!(
                std::fs::read_to_string(tree.join("top")).unwrap(),
                (count - 1).to_string()
            );
            std::fs::write(tree.join("layer-000"), "changed").unwrap();
            assert_eq!(world.ok(&["diff", &name]), "C /layer-000");
            world.ok(&["umount", &name]);
        }
    }
}

#[test]
fn a_store_lies_anywhere_whatever_its_path_is_made_of() {
    let Some(world) = World::new() else { return };
    let archive = small(&world.scratch);
    let mut name = b"a:b,c d\\e=f\"g%20\xff\n".to_vec();
    name.resize(250, b'x');
    let odd = world
        .scratch
        .join(OsStr::from_bytes(&name))
        .join("more")
        .join("x".repeat(80));
    std::fs::create_dir_all(&odd).unwrap();
    let with = |args: &[&str]| {
        let out = world.command_at(&odd, args).output().unwrap();
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        out.stdout
    };
    with(&["load", text(&archive)]);
    for method in ["layer-fds", "lowerdir-plus", "option-page"] {
        with(&["create", "--name", method, "small:1"]);
        let out = world
            .command_at(&odd, &["--mount-method", method, "mount", method])
            .output()
            .unwrap();
        if String::from_utf8_lossy(&out.stderr).contains("needs Linux") {
            untested(method, "this kernel lacks it");
            continue;
        }
        assert!(
            out.status.success(),
            "{method}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let tree = out.stdout.strip_suffix(b"\n").unwrap();
        change(Path::new(OsStr::from_bytes(tree)));
        assert_eq!(
            String::from_utf8(with(&["diff", method]))
                .unwrap()
                .trim_end(),
            CHANGED,
            "{method}"
        );
        with(&["commit", method, &format!("{method}:1")]);
    }
    for args in [
        &["ls", "--json"][..],
        &["info", "--json"],
        &["mount", "--json"],
        &["inspect", "layer-fds"],
    ] {
        assert!(
            serde_json::from_slice::<serde_json::Value>(&with(args)).is_ok(),
            "{args:?}"
        );
    }
    with(&["umount", "--all"]);
    with(&["check"]);
}

#[test]
fn more_layers_than_the_kernel_takes_are_mounted_by_vellums_engine() {
    let Some(world) = World::new() else { return };
    let layers: Vec<Vec<u8>> = (0..501)
        .map(|n| layer().file(&format!("f{n}"), "").done())
        .collect();
    world.ok(&[
        "load",
        text(&archive(&world.scratch, "deep:501", &layers, json!({}))),
    ]);
    world.ok(&["create", "--name", "box", "deep:501"]);
    let err = world.fails(1, &["--engine", "kernel", "mount", "box"]);
    assert!(
        err.starts_with("error: 501 layers are more than the 500 the kernel mounts\nhint: "),
        "{err}"
    );
    let plan = world.ok(&["mount", "box", "--dry-run"]);
    assert!(
        plan.starts_with("engine by fuse\nbecause 501 layers are more than"),
        "{plan}"
    );
    let tree = world.mounted("box");
    assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 501);
    std::fs::remove_file(tree.join("f7")).unwrap();
    assert_eq!(world.ok(&["diff", "box"]), "D /f7");
    world.ok(&["umount", "box"]);
    assert!(!world.mounted("box").join("f7").exists());
}

/// Every verb does with a mount of the engine what it does with one of the kernel.
#[test]
fn a_container_lives_on_vellums_engine_as_on_the_kernels() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    let tree = PathBuf::from(world.ok(&["--engine", "vellum", "mount", "box"]));
    let source = |at: &Path| {
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = table.lines().find(|l| l.contains(text(at)));
        line.map(|l| l.split(' ').nth(2).unwrap().to_owned())
    };
    assert_eq!(source(&tree).as_deref(), Some("fuse.vellum"));
    std::fs::write(tree.join("etc/new"), "new\n").unwrap();
    std::fs::rename(tree.join("etc"), tree.join("moved")).unwrap();
    // Idempotent, whatever engine is named now: it is mounted.
    assert_eq!(world.ok(&["mount", "box"]), text(&tree));
    let diff = world.ok(&["diff", "box"]);
    assert!(
        diff.contains("D /etc\n") && diff.contains("A /moved/new"),
        "{diff}"
    );
    assert!(world.ok(&["ls"]).contains("mounted"));
    let at = world.scratch.dir("at");
    world.ok(&["mount", "box", text(&at)]);
    let user = std::fs::File::open(at.join("moved/new")).unwrap();
    let busy = world.fails(1, &["umount", "box"]);
    assert!(busy.contains("in use: process"), "{busy}");
    let busy = world.fails(1, &["rm", "box"]);
    assert!(busy.contains("in use"), "{busy}");
    drop(user);
    world.ok(&["commit", "box", "mine:1"]);
    world.fails(1, &["settle", "box"]);
    world.ok(&["umount", "box"]);
    assert!(world.ok(&["settle", "box"]).starts_with("settled 0 files"));
    assert_eq!(source(&tree), None);
    // Who wants the kernel is told why not; who leaves the choice gets the engine that can read it.
    let err = world.fails(1, &["--engine", "kernel", "mount", "box"]);
    assert!(err.contains("Vellum's own engine"), "{err}");
    assert!(
        world
            .ok(&["mount", "box", "--dry-run"])
            .starts_with("engine by fuse")
    );
    world.ok(&[
        "--engine",
        "vellum",
        "mount",
        "--image",
        "mine:1",
        "--at",
        text(&at),
    ]);
    assert_eq!(
        std::fs::read_to_string(at.join("moved/new")).unwrap(),
        "new\n"
    );
    assert!(
        std::fs::write(at.join("x"), "x").is_err(),
        "an image is read-only"
    );
    world.ok(&["umount", text(&at)]);
    world.ok(&["mount", "box"]);
    world.ok(&["rm", "--force", "box"]);
    assert_eq!(source(&tree), None);
    world.ok(&["check"]);
    // The committed image is plain: the kernel shows it.
    world.ok(&["create", "--name", "next", "mine:1"]);
    let plan = world.ok(&["mount", "next", "--dry-run"]);
    assert!(plan.starts_with("overlay by"), "{plan}");
    let info = world.ok(&["--engine", "vellum", "info"]);
    assert!(info.contains("engine = vellum (flag --engine)"), "{info}");
}

#[test]
fn docker_compatible_leaves_no_marks() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    for (name, compatible) in [("own", false), ("docker", true)] {
        world.ok(&["create", "--name", name, "small:1"]);
        let mut args = vec!["mount", name];
        if compatible {
            args.insert(0, "--docker-compatible");
        }
        let tree = world.ok(&args);
        let tree = Path::new(&tree);
        let renamed = std::fs::rename(tree.join("dir"), tree.join("moved"));
        std::fs::set_permissions(
            tree.join("etc/hostname"),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        let upper = world.json(&["inspect", name])[0]["tree"]["upper"]
            .as_str()
            .unwrap()
            .to_owned();
        let upper = Dir::open(Path::new(&upper)).unwrap();
        let etc = upper.open_dir("etc").unwrap();
        let metacopy = xattr::get(
            &etc,
            "hostname".as_ref(),
            "trusted.overlay.metacopy".as_ref(),
        )
        .unwrap();
        assert_eq!(metacopy.is_some(), !compatible, "{name}");
        assert_eq!(renamed.is_ok(), !compatible, "{name}");
        if compatible {
            assert_eq!(
                renamed.unwrap_err().raw_os_error(),
                Some(18),
                "EXDEV, as in Docker"
            );
            assert_eq!(
                etc.stat("hostname").unwrap().blocks_512,
                8,
                "the data was copied"
            );
        }
    }
}

#[test]
fn an_upper_keeps_the_features_it_was_first_mounted_with() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "old", "small:1"]);
    let tree = world.mounted("old");
    std::fs::rename(tree.join("dir"), tree.join("moved")).unwrap();
    world.ok(&["umount", "old"]);
    world.ok(&["create", "--name", "new", "small:1"]);
    let options = |name: &str| {
        let plan = world.json(&["--docker-compatible", "mount", "--dry-run", "--json", name]);
        plan["options"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(options("old").contains(&"redirect_dir=on".to_owned()));
    assert!(options("new").contains(&"redirect_dir=nofollow".to_owned()));
    let tree = world.ok(&["--docker-compatible", "mount", "old"]);
    assert_eq!(
        std::fs::read_to_string(Path::new(&tree).join("moved/inner")).unwrap(),
        "inner\n"
    );
}

#[test]
fn a_copy_of_a_directory_is_writable_and_the_directory_stays() {
    let Some(world) = World::new() else { return };
    let dir = world.scratch.dir("source");
    world.scratch.file("source/sub/file", "content\n");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o751)).unwrap();
    let before = Tree::read(&dir).unwrap();
    world.ok(&["create", "--from", text(&dir), "--name", "copy"]);
    let tree = world.mounted("copy");
    assert_eq!(tree.metadata().unwrap().mode() & 0o7777, 0o751);
    assert_eq!(world.ok(&["diff", "copy"]), "");
    std::fs::write(tree.join("sub/file"), "changed\n").unwrap();
    std::fs::rename(tree.join("sub"), tree.join("moved")).unwrap();
    assert_eq!(
        world.ok(&["diff", "copy"]),
        "A /moved\nA /moved/file\nD /sub"
    );
    Tree::read(&dir).unwrap().assert_same(
        &before,
        Ignore {
            root: true,
            ..Ignore::default()
        },
    );
    // Without an image below, the whole tree is the new image's one layer.
    world.ok(&["commit", "copy", "copied:1"]);
    world.ok(&["create", "--name", "again", "copied:1"]);
    let again = world.mounted("again");
    assert_eq!(
        std::fs::read_to_string(again.join("moved/file")).unwrap(),
        "changed\n"
    );
    assert_eq!(
        world.json(&["inspect", "copied:1"])[0]["layers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // gc between two copies takes the empty layer away and the next create makes it anew.
    world.ok(&["rm", "-f", "copy"]);
    world.ok(&["gc"]);
    world.ok(&["create", "--from", text(&dir)]);
    let err = world.fails(2, &["create", "--from", text(world.scratch.path())]);
    assert!(err.contains("lie one in the other"), "{err}");
    let err = world.fails(2, &["create", "--from", text(&dir.join("sub/file"))]);
    assert!(err.contains("is no directory"), "{err}");
}

#[test]
fn mounts_are_idempotent_and_bound_where_wanted() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    let tree = world.mounted("box");
    assert_eq!(world.mounted("box"), tree);
    let (at, ro) = (world.scratch.dir("at"), world.scratch.dir("ro"));
    assert_eq!(world.ok(&["mount", "box", text(&at)]), text(&at));
    world.ok(&["mount", "box", text(&ro), "--read-only"]);
    std::fs::write(at.join("etc/x"), "x").unwrap();
    assert_eq!(std::fs::read_to_string(ro.join("etc/x")).unwrap(), "x");
    assert_eq!(
        std::fs::write(ro.join("etc/y"), "y")
            .unwrap_err()
            .raw_os_error(),
        Some(30)
    );
    assert_eq!(
        world.json(&["mount", "--json"]).as_array().unwrap().len(),
        3
    );
    world.ok(&["umount", text(&ro)]);
    assert_eq!(
        world.json(&["mount", "--json"]).as_array().unwrap().len(),
        2
    );
    let err = world.fails(1, &["rm", "box"]);
    assert!(
        err.contains("it is mounted at") && err.contains("hint: `vellum umount` it first"),
        "{err}"
    );
    world.ok(&["umount", "box"]);
    world.ok(&["umount", "box"]);
    assert_eq!(world.json(&["mount", "--json"]), json!([]));
    assert!(!tree.exists());
    // An image by itself, read-only, by each method; what others have mounted is not touched.
    let foreign = world.scratch.dir("foreign");
    for dir in ["l/A", "l/B"] {
        world.scratch.dir(dir);
    }
    // As Docker does where its layers don't fit the page: names relative to its directory.
    let done = std::process::Command::new("mount")
        .args([
            "-t",
            "overlay",
            "overlay",
            "-o",
            "ro,lowerdir=l/A:l/B",
            "foreign",
        ])
        .current_dir(world.scratch.path())
        .status();
    assert!(done.unwrap().success());
    world.scratch.adopt_mount(&foreign);
    for method in ["layer-fds", "lowerdir-plus", "option-page"] {
        let said = world.run(&[
            "--mount-method",
            method,
            "mount",
            "--image",
            "small:1",
            "--at",
            text(&at),
        ]);
        if said.err.contains("needs Linux") {
            untested(method, said.err);
            continue;
        }
        assert_eq!(said.code, 0, "{said:?}");
        assert_eq!(
            std::fs::read_to_string(at.join("etc/top")).unwrap(),
            "top\n"
        );
        assert!(std::fs::write(at.join("etc/y"), "y").is_err());
        match method {
            "layer-fds" => world.ok(&["umount", text(&at)]),
            _ => world.ok(&["umount", "--all"]),
        };
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0, "{method}");
        assert!(mount::is_mount_point(&foreign).unwrap(), "{method}");
    }
    let err = world.fails(2, &["umount", text(&at)]);
    assert!(err.contains("nothing of this store is mounted"), "{err}");
}

#[test]
fn a_busy_mount_is_left_and_its_users_are_named() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    let tree = world.mounted("box");
    let held = std::fs::File::open(tree.join("etc/top")).unwrap();
    let err = world.fails(1, &["umount", "box"]);
    assert!(
        err.contains(&format!("process {}", std::process::id())) && err.contains("--force"),
        "{err}"
    );
    assert!(tree.join("etc/top").exists());
    world.ok(&["umount", "--force", "box"]);
    assert!(!tree.exists());
    drop(held);
}

#[test]
fn cp_goes_in_and_out_by_dockers_rules() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    world.scratch.file("from/sub/a", "a\n");
    let from = world.scratch.join("from");
    symlink("sub/a", from.join("link")).unwrap();
    std::fs::hard_link(from.join("sub/a"), from.join("sub/b")).unwrap();
    world.ok(&["cp", text(&from), "box:/fresh"]);
    world.ok(&["cp", text(&from), "box:/etc"]);
    world.ok(&["cp", &format!("{}/.", text(&from)), "box:/dir"]);
    world.ok(&["cp", &format!("{}/link", text(&from)), "box:/etc/as-link"]);
    world.ok(&[
        "cp",
        "-L",
        &format!("{}/link", text(&from)),
        "box:/etc/as-file",
    ]);
    // It was not mounted and is not.
    assert_eq!(world.json(&["mount", "--json"]), json!([]));
    let tree = world.mounted("box");
    for file in ["fresh/sub/a", "etc/from/sub/a", "dir/sub/a", "etc/as-file"] {
        assert_eq!(
            std::fs::read_to_string(tree.join(file)).unwrap(),
            "a\n",
            "{file}"
        );
    }
    assert_eq!(
        tree.join("fresh/sub/a").metadata().unwrap().ino(),
        tree.join("fresh/sub/b").metadata().unwrap().ino()
    );
    assert!(
        tree.join("etc/as-link")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
    assert_eq!(
        std::fs::read_to_string(tree.join("dir/inner")).unwrap(),
        "inner\n",
        "directories are filled up"
    );

    let out = world.scratch.join("out");
    world.ok(&["cp", "box:/etc/top", text(&out)]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "top\n");
    let dir = world.scratch.dir("outdir");
    world.ok(&["cp", "box:/fresh/.", text(&dir)]);
    assert_eq!(std::fs::read_to_string(dir.join("sub/a")).unwrap(), "a\n");
    let tar = world
        .command(&["cp", "box:/fresh", "-"])
        .output()
        .unwrap()
        .stdout;
    let back = world.run_with_input(&["cp", "-", "box:/etc/from"], &tar);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(
        std::fs::read_to_string(tree.join("etc/from/fresh/sub/a")).unwrap(),
        "a\n"
    );

    for (args, expect) in [
        (["cp", "box:/nope", "x"], "cannot find /nope"),
        (["cp", text(&from), "box:/etc/top"], "is a file"),
        (
            ["cp", text(&out), "box:/no/such/dir"],
            "cannot find /no/such/dir",
        ),
        (["cp", text(&out), "box:/etc/top/"], "no directory"),
    ] {
        let said = world.run(&args);
        assert!(
            said.code != 0 && said.err.contains(expect),
            "{args:?}: {said:?}"
        );
    }
}

#[test]
fn cp_never_leaves_the_containers_root() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    let tree = world.mounted("box");
    let outside = world.scratch.dir("outside");
    std::fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, tree.join("absolute")).unwrap();
    let up = "../".repeat(40) + text(&outside).trim_start_matches('/');
    symlink(&up, tree.join("climbing")).unwrap();
    symlink("/proc/self/root", tree.join("magic")).unwrap();
    let file = world.scratch.file("in", "in");
    for link in ["absolute", "climbing", "magic"] {
        // Inside the container these links lead nowhere.
        assert_ne!(
            world
                .run(&["cp", text(&file), &format!("box:/{link}/planted")])
                .code,
            0,
            "{link}"
        );
        assert_ne!(
            world
                .run(&[
                    "cp",
                    &format!("box:/{link}/secret"),
                    text(&world.scratch.join("stolen"))
                ])
                .code,
            0
        );
    }
    let above = format!("box:/{}{}/secret", "../".repeat(40), text(&outside));
    assert_ne!(
        world
            .run(&["cp", &above, text(&world.scratch.join("stolen"))])
            .code,
        0
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert!(!world.scratch.join("stolen").exists());
    // A link to the container's own root leads to the container's own root.
    symlink("/", tree.join("self")).unwrap();
    world.ok(&["cp", text(&file), "box:/self/etc/landed"]);
    assert_eq!(
        std::fs::read_to_string(tree.join("etc/landed")).unwrap(),
        "in"
    );
    assert!(!Path::new("/etc/landed").exists());
}

#[test]
fn run_passes_on_code_input_environment_and_volumes() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    assert_eq!(world.ok(&["run", "--rm", "shell:1"]), "hello");
    assert_eq!(
        world
            .run(&["run", "--rm", "shell:1", "sh", "-c", "exit 7"])
            .code,
        7
    );
    assert_eq!(
        world.ok(&[
            "run",
            "--rm",
            "-e",
            "B=2",
            "-w",
            "/tmp",
            "shell:1",
            "sh",
            "-c",
            "echo $A$B; pwd"
        ]),
        "12\n/tmp"
    );
    assert_eq!(
        world.ok(&["run", "--rm", "-u", "app", "shell:1", "id"]),
        "uid=1000(app) gid=1000(app) groups=50(team)"
    );
    assert_eq!(
        world
            .run_with_input(&["run", "--rm", "-i", "shell:1", "cat"], b"through")
            .out,
        "through"
    );
    assert_eq!(
        world.ok(&["run", "--rm", "shell:1", "cat"]),
        "",
        "no input unless asked for"
    );
    let bound = world.scratch.dir("bound");
    std::fs::write(bound.join("x"), "x").unwrap();
    let ro = format!("{}:/bound:ro", text(&bound));
    let script = "echo v > /cache/f; cat /bound/x; echo y > /bound/y";
    let said = world.run(&[
        "run",
        "--rm",
        "-v",
        "cache:/cache",
        "-v",
        &ro,
        "shell:1",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!((said.code, said.out.as_str()), (1, "x"), "{said:?}");
    assert!(!bound.join("y").exists());
    // The volume is shared and outlives its first container.
    assert_eq!(
        world.ok(&["run", "--rm", "-v", "cache:/c", "shell:1", "cat", "/c/f"]),
        "v"
    );
    // Without --rm the container stays, with what was written, and can be run again.
    world.ok(&[
        "run",
        "--name",
        "kept",
        "shell:1",
        "sh",
        "-c",
        "echo kept > /file",
    ]);
    assert_eq!(
        world.ok(&["run", "--container", "kept", "cat", "/file"]),
        "kept"
    );
    assert_eq!(world.json(&["mount", "--json"]), json!([]));
    assert_eq!(world.json(&["ls", "--json"]).as_array().unwrap().len(), 1);
    let said = world.run(&["run", "--rm", "--runtime", "/no/such/runtime", "shell:1"]);
    assert!(
        said.code == 1 && said.err.contains("there is no runtime") && said.err.contains("hint:"),
        "{said:?}"
    );
    assert_eq!(
        world.json(&["ls", "--json"]).as_array().unwrap().len(),
        1,
        "--rm holds after a failure too"
    );
}

#[test]
fn a_running_container_is_not_removed_and_gets_the_signals() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    world.ok(&["create", "--name", "box", "shell:1"]);
    let script = "trap 'exit 9' TERM; echo up > /up; while :; do sleep 0.05; done";
    let mut child = world
        .command(&["run", "--container", "box", "sh", "-c", script])
        .spawn()
        .unwrap();
    let upper = world.json(&["inspect", "box"])[0]["tree"]["upper"]
        .as_str()
        .unwrap()
        .to_owned();
    while !Path::new(&upper).join("up").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
    }
    let err = world.fails(1, &["rm", "--force", "box"]);
    assert!(err.contains("`vellum run`"), "{err}");
    let err = world.fails(1, &["run", "--container", "box", "sh"]);
    assert!(err.contains("under way"), "{err}");
    assert_eq!(world.json(&["ls", "--json"])[0]["state"], "running");
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    // Ctrl-C is the command's own affair: from a terminal it gets it there.
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(
        child.try_wait().unwrap().is_none(),
        "it ended at an interrupt that was not its own"
    );
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert_eq!(world.json(&["ls", "--json"])[0]["state"], "created");
    world.ok(&["rm", "box"]);
}

#[test]
fn a_bundle_runs_by_itself() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    world.ok(&["create", "--name", "box", "shell:1"]);
    let dir = world.scratch.join("bundle");
    let config = world.ok(&["bundle", "box", text(&dir), "echo", "bundled"]);
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    assert_eq!(spec["root"]["path"], "rootfs");
    assert_eq!(spec["process"]["args"], json!(["echo", "bundled"]));
    let id = format!("vellum-test-{}", std::process::id());
    let state = world.scratch.dir("runc");
    let out = std::process::Command::new("runc")
        .arg("--root")
        .arg(&state)
        .args(["run", "--bundle"])
        .arg(&dir)
        .arg(&id)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "bundled\n", "{out:?}");
    let err = world.fails(2, &["bundle", "box", text(&dir)]);
    assert!(err.contains("holds a bundle already"), "{err}");
}

#[test]
fn a_size_limit_is_kept_or_refused_with_a_reason() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    let facts = world.json(&["info", "--json"]);
    if facts["project_quota"] == "enforced" {
        untested(
            "the refusal of size limits",
            "the scratch file system has project quotas",
        );
        return;
    }
    let err = world.fails(1, &["create", "--size", "10M", "small:1"]);
    assert!(err.contains("project quota"), "{err}");
    assert_eq!(
        world.json(&["ls", "--json"]),
        json!([]),
        "a refused container is none"
    );
}

#[test]
fn a_size_limit_stops_writing_where_project_quotas_are_kept() {
    let Some(world) = World::new() else { return };
    let disk = match world.scratch.file_system("disk", FsKind::Xfs, 512) {
        Ok(disk) => disk,
        Err(why) => return untested("size limits on xfs", why),
    };
    let mount = |command: &str, args: &[&str]| {
        let done = std::process::Command::new(command).args(args).status();
        done.is_ok_and(|status| status.success())
    };
    let image = world.scratch.join("disk.img");
    world.scratch.unmount(&disk);
    if !mount("mount", &["-o", "loop,prjquota", text(&image), text(&disk)]) {
        return untested(
            "size limits on xfs",
            "the kernel mounts no xfs with prjquota",
        );
    }
    world.scratch.adopt_mount(&disk);
    let root = disk.join("root");
    let with = |args: &[&str]| support::said(world.command_at(&root, args).output().unwrap());
    assert_eq!(with(&["load", text(&small(&world.scratch))]).code, 0);
    let said = with(&["create", "--name", "box", "--size", "8M", "small:1"]);
    if said.err.contains("quota") {
        return untested("size limits on xfs", said.err);
    }
    assert_eq!(said.code, 0, "{said:?}");
    let tree = with(&["mount", "box"]).out;
    let tree = Path::new(tree.trim_end());
    std::fs::write(tree.join("fits"), vec![1; 4 << 20]).unwrap();
    let error = std::fs::write(tree.join("too-much"), vec![1; 16 << 20]).unwrap_err();
    assert!(
        matches!(error.raw_os_error(), Some(28 | 122)),
        "ENOSPC or EDQUOT: {error}"
    );
    std::fs::remove_file(tree.join("too-much")).unwrap();
    std::fs::write(tree.join("fits-again"), vec![1; 1 << 20]).unwrap();
    assert_eq!(
        with(&["inspect", "box"])
            .out
            .matches("\"size_limit_bytes\": 8388608")
            .count(),
        1
    );
    assert_eq!(with(&["rm", "--force", "box"]).code, 0);
}

#[test]
fn a_file_system_that_takes_no_overlay_is_mounted_by_vellums_engine() {
    let Some(world) = World::new() else { return };
    let disk = match world
        .scratch
        .file_system("disk", FsKind::Ext4NoFiletype, 64)
    {
        Ok(disk) => disk,
        Err(why) => return untested("stores on ext4 without file types", why),
    };
    if !Path::new("/dev/fuse").exists() {
        return untested("stores on ext4 without file types", "there is no /dev/fuse");
    }
    let root = disk.join("root");
    let archive = small(&world.scratch);
    for driver in ["overlay2", "overlay"] {
        let with = |args: &[&str]| {
            let args = [&["--storage-driver", driver], args].concat();
            let said = support::said(world.command_at(&root, &args).output().unwrap());
            assert_eq!(said.code, 0, "{driver} {args:?}: {said:?}");
            said.out
        };
        let name = format!("box-{driver}");
        let made = format!("made-{driver}:1");
        if driver == "overlay2" {
            with(&["load", text(&archive)]);
        }
        with(&["create", "--name", &name, "small:1"]);
        let plan = with(&["mount", &name, "--dry-run"]);
        assert!(plan.contains("d_type"), "{plan}");
        let tree = with(&["mount", &name]);
        let tree = Path::new(tree.trim_end());
        assert_eq!(
            std::fs::read_to_string(tree.join("etc/top")).unwrap(),
            "top\n"
        );
        std::fs::remove_file(tree.join("etc/top")).unwrap();
        std::fs::create_dir(tree.join("new")).unwrap();
        std::fs::write(tree.join("new/file"), "new").unwrap();
        let diff = with(&["diff", &name]);
        assert!(
            diff.contains("D /etc/top") && diff.contains("A /new/file"),
            "{diff}"
        );
        with(&["umount", &name]);
        with(&["commit", &name, &made]);
        let next = format!("next-{driver}");
        with(&["create", "--name", &next, &made]);
        let tree = with(&["mount", &next]);
        let tree = Path::new(tree.trim_end());
        assert_eq!(
            std::fs::read_to_string(tree.join("new/file")).unwrap(),
            "new"
        );
        assert!(!tree.join("etc/top").exists());
        with(&["rm", "--force", &name]);
        with(&["rm", "--force", &next]);
    }
    let said = support::said(world.command_at(&root, &["check"]).output().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn a_file_system_that_takes_no_overlay_is_named_with_a_way_out() {
    let Some(world) = World::new() else { return };
    let disk = match world
        .scratch
        .file_system("disk", FsKind::Ext4NoFiletype, 64)
    {
        Ok(disk) => disk,
        Err(why) => return untested("stores on ext4 without file types", why),
    };
    let root = disk.join("root");
    let with = |driver: &str, args: &[&str]| {
        let args = [&["--engine", "kernel", "--storage-driver", driver], args].concat();
        support::said(world.command_at(&root, &args).output().unwrap())
    };
    let archive = small(&world.scratch);
    let refused = with("overlay2", &["load", text(&archive)]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.err.contains("d_type") || refused.err.contains("file type"),
        "{}",
        refused.err
    );
    let native = with("native", &["load", text(&archive)]);
    assert_eq!(native.code, 0, "{native:?}");
    assert_eq!(
        with("native", &["create", "--name", "box", "small:1"]).code,
        0
    );
    let tree = with("native", &["mount", "box"]).out;
    assert_eq!(
        std::fs::read_to_string(Path::new(tree.trim_end()).join("etc/top")).unwrap(),
        "top\n"
    );
}

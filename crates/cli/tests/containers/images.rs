//! From archive to archive: loading, changing, committing and saving gives the same result with
//! every driver and wherever the store is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{Tree, untested};

use super::changes::{CHANGED, change, text};
use crate::support::{World, small};

#[test]
fn an_image_goes_from_archive_to_archive() {
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

    // The container continues, and its contents still count as changes.
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
    let digest = vellum_format::Digest::of(&tar).to_string();
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
fn a_store_works_at_any_path() {
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
fn a_copy_of_a_directory_is_writable_and_the_original_unchanged() {
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
    // gc between two copies removes the empty layer, and the next create makes it again.
    world.ok(&["rm", "-f", "copy"]);
    world.ok(&["gc"]);
    world.ok(&["create", "--from", text(&dir)]);
    let err = world.fails(2, &["create", "--from", text(world.scratch.path())]);
    assert!(err.contains("contains the other"), "{err}");
    let err = world.fails(2, &["create", "--from", text(&dir.join("sub/file"))]);
    assert!(err.contains("is not a directory"), "{err}");
}

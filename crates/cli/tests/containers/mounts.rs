//! How a container is mounted by the kernel: every method, any number of layers, the features of
//! its upper, and who keeps a mount busy.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;
use vellum_sys::{Dir, mount, xattr};
use vellum_testkit::untested;

use super::changes::text;
use crate::support::{World, archive, layer, small};

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
            // One page holds 128 short names; more layers are refused with the reason.
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
        err.contains("it is mounted at")
            && err.contains("hint: unmount it first (`vellum umount`)"),
        "{err}"
    );
    world.ok(&["umount", "box"]);
    world.ok(&["umount", "box"]);
    assert_eq!(world.json(&["mount", "--json"]), json!([]));
    assert!(!tree.exists());
    // An image itself, read-only, by each method; foreign mounts are not touched.
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

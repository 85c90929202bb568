//! Files copied in and out of containers.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use serde_json::json;

use super::changes::text;
use crate::support::{World, small};

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

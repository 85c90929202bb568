//! Containers of a size limit.

use std::path::Path;

use serde_json::json;
use vellum_testkit::{FsKind, untested};

use super::changes::text;
use crate::support::{World, small};

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
    let kernel = ["--engine", "kernel", "create"];
    let err = world.fails(1, &[&kernel[..], &["--size", "10M", "small:1"]].concat());
    assert!(err.contains("project quota"), "{err}");
    let err = world.fails(1, &[&kernel[..], &["--inodes", "10", "small:1"]].concat());
    assert!(err.contains("Vellum's engine"), "{err}");
    assert_eq!(
        world.json(&["ls", "--json"]),
        json!([]),
        "a refused container is none"
    );
}

#[test]
fn limits_are_kept_by_vellums_engine_where_there_are_no_project_quotas() {
    let Some(world) = World::new() else { return };
    if !Path::new("/dev/fuse").exists() {
        return untested("limits kept by the engine", "there is no /dev/fuse");
    }
    world.ok(&["load", text(&small(&world.scratch))]);
    if world.json(&["info", "--json"])["project_quota"] == "enforced" {
        return untested(
            "limits kept by the engine",
            "the scratch file system has project quotas",
        );
    }
    world.ok(&[
        "create", "--name", "box", "--size", "8M", "--inodes", "20", "small:1",
    ]);
    let plan = world.ok(&["mount", "box", "--dry-run"]);
    assert!(
        plan.contains("size=8388608") && plan.contains("inodes=20"),
        "{plan}"
    );
    // Again after an unmount: the limit is the container's and not the mount's.
    for _ in 0..2 {
        let tree = world.ok(&["mount", "box"]);
        let tree = Path::new(tree.trim_end());
        std::fs::write(tree.join("fits"), vec![1; 4 << 20]).unwrap();
        let error = std::fs::write(tree.join("too-much"), vec![1; 16 << 20]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28), "{error}");
        std::fs::remove_file(tree.join("too-much")).unwrap();
        let made = (0..40).take_while(|n| std::fs::write(tree.join(n.to_string()), "").is_ok());
        let made = made.count();
        assert!((5..20).contains(&made), "{made}");
        for n in 0..made {
            std::fs::remove_file(tree.join(n.to_string())).unwrap();
        }
        world.ok(&["umount", "box"]);
    }
    let shown = world.json(&["inspect", "box"]);
    assert_eq!(
        (&shown[0]["size_limit_bytes"], &shown[0]["inode_limit"]),
        (&json!(8 << 20), &json!(20))
    );
    world.ok(&["rm", "box"]);
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
    let with =
        |args: &[&str]| crate::support::said(world.command_at(&root, args).output().unwrap());
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

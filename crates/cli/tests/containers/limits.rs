//! Containers with a size limit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use vellum_testkit::{FsKind, untested};

use super::changes::text;
use crate::support::{World, small};

#[test]
fn a_size_limit_is_enforced_or_refused_with_a_reason() {
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
fn vellums_engine_enforces_limits_without_project_quotas() {
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
        fs::write(tree.join("fits"), vec![1; 4 << 20]).unwrap();
        let error = fs::write(tree.join("too-much"), vec![1; 16 << 20]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28), "{error}");
        fs::remove_file(tree.join("too-much")).unwrap();
        let made = (0..40).take_while(|n| fs::write(tree.join(n.to_string()), "").is_ok());
        let made = made.count();
        assert!((5..20).contains(&made), "{made}");
        for n in 0..made {
            fs::remove_file(tree.join(n.to_string())).unwrap();
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
fn a_size_limit_stops_writes_where_project_quotas_work() {
    let Some(world) = World::new() else { return };
    let archive = small(&world.scratch);
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let below = format!("{kind:?}");
        let disk = match world.scratch.file_system_with_quotas(&below, kind, 512) {
            Ok(disk) => disk,
            Err(why) => {
                untested(&format!("size limits on {kind:?}"), why);
                continue;
            }
        };
        for engine in ["kernel", "vellum"] {
            let with = |args: &[&str]| {
                let args = [&["--engine", engine], args].concat();
                let output = world.command_at(&disk.join(engine), &args).output();
                let said = crate::support::said(output.unwrap());
                assert_eq!(said.code, 0, "{kind:?}, {args:?}: {said:?}");
                said.out.trim_end().to_owned()
            };
            with(&["load", text(&archive)]);
            quotas_limit(&with, &format!("{kind:?}, {engine}"));
        }
    }
}

/// Writes a file just after another was removed. XFS frees the space of the removed file with a
/// delay.
fn written_in_the_end(path: &Path, content: &[u8]) {
    let mut tries = 0;
    while let Err(error) = fs::write(path, content) {
        tries += 1;
        assert!(tries < 100, "{}: {error}", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Containers have the same limits with either engine, and no limit if none was set.
fn quotas_limit(with: &dyn Fn(&[&str]) -> String, what: &str) {
    with(&["create", "--name", "small", "--size", "8M", "small:1"]);
    with(&["create", "--name", "large", "--size", "24M", "small:1"]);
    with(&["create", "--name", "free", "small:1"]);
    let plan = with(&["mount", "small", "--dry-run"]);
    assert!(
        !plan.contains("size="),
        "{what}: the engine counts nothing: {plan}"
    );
    let content = |mib: usize| vec![1; mib << 20];
    // Again after an unmount: the limit is the tree's and not the mount's.
    for _ in 0..2 {
        let mounted = |name: &str| PathBuf::from(with(&["mount", name]));
        let (small, large, free) = (mounted("small"), mounted("large"), mounted("free"));
        fs::write(small.join("fits"), content(4)).unwrap();
        let error = fs::write(small.join("too-much"), content(16)).unwrap_err();
        // XFS projects get ENOSPC, ext4 projects get EDQUOT.
        assert!(
            matches!(error.raw_os_error(), Some(28 | 122)),
            "{what}: {error}"
        );
        fs::remove_file(small.join("too-much")).unwrap();
        written_in_the_end(&small.join("fits-again"), &content(1));
        fs::write(large.join("fits"), content(16)).unwrap();
        fs::write(large.join("too-much"), content(16)).unwrap_err();
        fs::write(free.join("fits"), content(32)).unwrap();
        for (name, mounted) in [("small", small), ("large", large), ("free", free)] {
            for file in fs::read_dir(&mounted).unwrap() {
                let file = file.unwrap();
                if file.file_type().unwrap().is_file() {
                    fs::remove_file(file.path()).unwrap();
                }
            }
            with(&["umount", name]);
        }
    }
    for (name, limit) in [("small", json!(8 << 20)), ("large", json!(24 << 20))] {
        let shown: Value = serde_json::from_str(&with(&["inspect", name])).unwrap();
        assert_eq!(shown[0]["size_limit_bytes"], limit, "{what}");
    }
    with(&["rm", "small", "large", "free"]);
}

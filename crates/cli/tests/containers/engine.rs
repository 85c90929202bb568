//! Containers that Vellum's own engine mounts: because the user asked for it, or because the
//! kernel's overlayfs can't mount them.

use std::path::{Path, PathBuf};

use serde_json::json;
use vellum_testkit::{FsKind, untested};

use super::changes::text;
use crate::support::{World, archive, layer, small};

/// Every verb works on a mount of the engine as on a mount of the kernel.
#[test]
fn a_container_works_the_same_on_vellums_engine_and_the_kernels() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    let tree = PathBuf::from(world.ok(&["--engine", "vellum", "mount", "box"]));
    let source = |at: &Path| {
        let table = vellum_testkit::scratch::mount_table();
        let line = table.lines().find(|l| l.contains(text(at)))?;
        let (_, kind) = line.split_once(" - ")?;
        kind.split(' ').next().map(str::to_owned)
    };
    assert_eq!(source(&tree).as_deref(), Some("fuse.vellum"));
    std::fs::write(tree.join("etc/new"), "new\n").unwrap();
    std::fs::rename(tree.join("etc"), tree.join("moved")).unwrap();
    // Idempotent, whatever engine is named now, because it is already mounted.
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
    // With `--engine kernel` the error says why not; with `auto` the engine that can read it is
    // used.
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

/// Returns a place for a store on a file system that the kernel's overlayfs refuses; `None`, and
/// reported, if there is none.
fn root_without_overlay(world: &World) -> Option<PathBuf> {
    let made = world
        .scratch
        .file_system("disk", FsKind::Ext4NoFiletype, 64);
    match made {
        Ok(disk) => Some(disk.join("root")),
        Err(why) => {
            untested("stores on ext4 without file types", why);
            None
        }
    }
}

#[test]
fn a_file_system_without_overlay_support_is_mounted_by_vellums_engine() {
    let Some(world) = World::new() else { return };
    let Some(root) = root_without_overlay(&world) else {
        return;
    };
    if !Path::new("/dev/fuse").exists() {
        return untested("stores on ext4 without file types", "there is no /dev/fuse");
    }
    let archive = small(&world.scratch);
    for driver in ["overlay2", "overlay"] {
        let with = |args: &[&str]| {
            let args = [&["--storage-driver", driver], args].concat();
            let said = crate::support::said(world.command_at(&root, &args).output().unwrap());
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
    let said = crate::support::said(world.command_at(&root, &["check"]).output().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn a_file_system_without_overlay_support_is_named_with_a_way_out() {
    let Some(world) = World::new() else { return };
    let Some(root) = root_without_overlay(&world) else {
        return;
    };
    let with = |driver: &str, args: &[&str]| {
        let args = [&["--engine", "kernel", "--storage-driver", driver], args].concat();
        crate::support::said(world.command_at(&root, &args).output().unwrap())
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

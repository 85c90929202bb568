//! A tree is released before it is removed: a process works in it, another mount namespace holds
//! it, or something foreign is mounted over it.

use std::process::{Command, Stdio};

use vellum_sys::Dir;
use vellum_sys::mount::{self, BindOptions, Method, OverlayMount};
use vellum_sys::mountinfo;
use vellum_sys::rooted::Removal;

/// A mounted overlay in a directory laid out as a tree of the store.
fn mounted() -> Option<(vellum_testkit::Scratch, std::path::PathBuf)> {
    if !vellum_testkit::needs_root("mounting") {
        return None;
    }
    let scratch = vellum_testkit::Scratch::new();
    let tree = scratch.path().join("tree");
    for dir in ["base/d", "lower", "tree/diff", "tree/work", "tree/merged"] {
        std::fs::create_dir_all(scratch.path().join(dir)).unwrap();
    }
    let overlay = OverlayMount {
        lowers: vec![scratch.path().join("base"), scratch.path().join("lower")],
        upper: Some(tree.join("diff")),
        work: Some(tree.join("work")),
        ..OverlayMount::default()
    };
    let method = Method::OptionPage {
        home: scratch.path().to_path_buf(),
    };
    mount::overlay(&overlay, &tree.join("merged"), &method).unwrap();
    std::fs::write(tree.join("merged/file"), "x").unwrap();
    Some((scratch, tree))
}

fn remove(scratch: &vellum_testkit::Scratch) -> Removal {
    // As the store does it: into the trash first, then piece by piece.
    let dir = Dir::open(scratch.path()).unwrap();
    dir.rename("tree", &dir, "trash", vellum_sys::RenameFlags::NOREPLACE)
        .unwrap();
    dir.remove_tree("trash").unwrap()
}

#[test]
fn removal_succeeds_while_a_process_sits_in_the_tree() {
    let Some((scratch, tree)) = mounted() else {
        return;
    };
    let mut sitter = Command::new("sh")
        .args([
            "-c",
            "exec 3>held; echo in; read x; echo late >&3 && echo kept",
        ])
        .current_dir(tree.join("merged/d"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(sitter.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(mount::unmount_all(&tree).unwrap(), 1);
    assert_eq!(remove(&scratch), Removal::Gone);
    drop(sitter.stdin.take());
    assert!(
        sitter.wait().unwrap().code().is_some(),
        "the process is left to end by itself"
    );
}

#[test]
fn removal_succeeds_while_another_mount_namespace_holds_it() {
    let Some((scratch, tree)) = mounted() else {
        return;
    };
    let mut holder = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            "echo in; read x",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(holder.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line, "in\n");
    assert_eq!(mount::unmount_all(&tree).unwrap(), 1);
    // The other namespace still has it, and is found by name.
    let found = mountinfo::find_overlay_holders(&tree.join("diff"), None).unwrap();
    assert!(
        found.iter().any(|h| h.mount_point == tree.join("merged")),
        "{found:?}"
    );
    assert_eq!(remove(&scratch), Removal::Gone);
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

#[test]
fn removal_succeeds_while_something_is_mounted_over_it() {
    let Some((scratch, tree)) = mounted() else {
        return;
    };
    let foreign = scratch.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("precious"), "x").unwrap();
    for place in [tree.join("merged/d"), tree.join("merged"), tree.clone()] {
        mount::bind(&foreign, &place, BindOptions::default()).unwrap();
    }
    // Those attached to a detached mount go with it and are not counted.
    assert!(mount::unmount_all(&tree).unwrap() >= 3);
    assert!(mountinfo::read().unwrap().beneath(&tree).is_empty());
    assert_eq!(remove(&scratch), Removal::Gone);
    assert_eq!(
        std::fs::read_to_string(foreign.join("precious")).unwrap(),
        "x"
    );
    assert_eq!(mount::unmount_all(&tree).unwrap(), 0);
}

//! `check --repair` under living mounts: what they show at once, and what is reported until they
//! are made anew.

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::damaged::{Times, load_with_blobs, low_and_top, script};
use support::{Said, World};

/// Whether a row is about the lower or the upper layer, the damage, the path, whether its repair
/// counts later in a kernel mount, and what a mount then shows.
type Row = (bool, &'static str, &'static str, bool, &'static str);

const LOW: bool = true;
const TOP: bool = false;

const ROWS: &[Row] = &[
    (
        LOW,
        "printf X | dd of=file conv=notrunc",
        "/file",
        false,
        "test \"$(cat file)\" = content",
    ),
    (
        LOW,
        "echo much more >> file",
        "/file",
        false,
        "test \"$(cat file)\" = content",
    ),
    (
        LOW,
        "touch -m -d @1 tool",
        "/tool",
        false,
        "test $(stat -c %Y tool) = 1600000000",
    ),
    (
        LOW,
        "setfattr -n user.kept -v other xattr",
        "/xattr",
        false,
        "test $(getfattr --only-values -n user.kept xattr) = value",
    ),
    (
        LOW,
        "chmod 4755 tool",
        "/tool",
        true,
        "test $(stat -c %a tool) = 755",
    ),
    (
        LOW,
        "chown 7:8 file",
        "/file",
        true,
        "test $(stat -c %u:%g file) = 5:6",
    ),
    (
        LOW,
        "setfattr -x security.capability ping",
        "/ping",
        true,
        "getfattr -n security.capability ping",
    ),
    (
        LOW,
        "setfacl -b acl",
        "/acl",
        true,
        "getfacl acl | grep user:daemon:rwx",
    ),
    (LOW, "rm tool", "/tool", true, "test \"$(cat tool)\" = tool"),
    (
        LOW,
        "touch d/extra",
        "/d/extra",
        true,
        "! ls d | grep extra",
    ),
    (
        LOW,
        "rm link; cp -p tool link",
        "/link",
        true,
        "test $(readlink link) = etc/keep",
    ),
    (
        LOW,
        "rm -r d; ln -s etc d",
        "/d",
        true,
        "test \"$(cat d/inner)\" = inner && ! test -L d",
    ),
    (
        TOP,
        "rm etc/secret",
        "/etc/secret",
        true,
        "! test -e etc/secret && ! ls etc | grep secret",
    ),
    (
        TOP,
        "setfattr -x trusted.overlay.opaque opq",
        "/opq",
        true,
        "! test -e opq/old && ! ls opq | grep old",
    ),
];

/// Runs a shell test in a directory.
#[track_caller]
fn shows(dir: &Path, test: &str, when: &str) {
    let said = Command::new("sh")
        .args(["-ec", test])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(said.status.success(), "{when}: {test}: {said:?}");
}

/// Returns what is said about mounts.
fn stale(said: &Said) -> Vec<Value> {
    let all: Value = serde_json::from_str(&said.out).unwrap();
    let all = all.as_array().unwrap().iter();
    all.filter(|one| one["mount"].is_string())
        .cloned()
        .collect()
}

fn repairs_count_when_they_are_said_to(engine: &'static str) {
    let Some(world) = World::with(&["--engine", engine]) else {
        return;
    };
    load_with_blobs(&world);
    let (low, top) = low_and_top(&world.root(), "overlay2");
    world.ok(&["create", "--name", "box", "everything:1"]);
    world.ok(&["create", "--name", "idle", "everything:1"]);
    for (of_low, damage, path, later, test) in ROWS {
        let tree = if *of_low { &low } else { &top };
        let times = Times::of(tree);
        script(&world, tree, damage);
        if !damage.starts_with("touch -m") {
            times.restore(false);
        }
        let place = world.mounted("box");
        // The mount knows everything as it is damaged.
        shows(
            &place,
            "ls -lR . > /dev/null; cat file tool opq/* || true",
            damage,
        );
        let later = *later || engine == "vellum";
        for round in ["first", "second"] {
            let said = world.run(&["check", "--repair", "--json"]);
            assert_eq!(
                said.code,
                i32::from(later),
                "{engine}: {damage}: {round}: {said:?}"
            );
            let stale = stale(&said);
            assert_eq!(stale.len(), usize::from(later), "{damage}: {stale:#?}");
            for one in stale {
                let what = one["what"].as_str().unwrap();
                assert!(what.starts_with("container box, mounted at "), "{what}");
                assert_eq!(one["mount"].as_str().unwrap(), place.to_str().unwrap());
                assert_eq!(one["paths"], serde_json::json!([path]), "{damage}: {one}");
                assert_eq!(one["healed"], false);
            }
        }
        if !later {
            shows(&place, test, "in the living mount");
        }
        let said = world.run(&["check", "--trees"]);
        assert_eq!(said.code, i32::from(later), "{engine}: {damage}: {said:?}");
        world.ok(&["umount", "box"]);
        let place = world.mounted("box");
        let said = world.run(&["check", "--repair", "--json"]);
        assert_eq!(
            (said.code, said.out.trim()),
            (0, "[]"),
            "{engine}: {damage}: {said:?}"
        );
        shows(&place, test, "in a fresh mount");
        world.ok(&["umount", "box"]);
    }
}

#[test]
fn repairs_under_a_kernel_mount_count_when_they_are_said_to() {
    repairs_count_when_they_are_said_to("kernel");
}

#[test]
fn repairs_under_a_mount_of_vellums_engine_are_reported_until_it_is_made_anew() {
    repairs_count_when_they_are_said_to("vellum");
}

/// An image's mount, and a mount in another namespace, are found too.
#[test]
fn mounts_of_images_and_in_other_namespaces_are_named() {
    let Some(world) = World::new() else { return };
    load_with_blobs(&world);
    let (low, _) = low_and_top(&world.root(), "overlay2");
    let place = world.scratch.dir("image");
    let at = place.to_str().unwrap();
    world.ok(&["mount", "--image", "everything:1", "--at", at]);
    let mut other = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            "echo ready; read line",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
    script(&world, &low, "chmod 4755 tool");
    let said = world.run(&["check", "--repair"]);
    assert_eq!(said.code, 1, "{said:?}");
    let at = format!(
        "mounted at {} and 1 more places or namespaces",
        place.display()
    );
    assert!(said.out.contains(&at), "{said:?}");
    assert!(
        said.out.contains("shows /tool as before the repair"),
        "{said:?}"
    );
    // The other namespace still has it.
    world.ok(&["umount", place.to_str().unwrap()]);
    let said = world.run(&["check", "--trees"]);
    assert_eq!(said.code, 1, "{said:?}");
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(world.ok(&["check", "--repair"]), "");
}

//! Trees of layers that were changed behind the store's back: `check --trees` names each path and
//! what about it differs, and finds nothing else.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::damaged::{DAMAGE, HARMLESS, In, Times, everything, low_and_top, script, trees};
use support::{World, small};
use vellum_testkit::{PlainUser, Scratch};

/// Returns the findings of a check that must find something.
#[track_caller]
fn findings(world: &World, how: &str) -> Vec<Value> {
    let said = world.run(&["check", "--trees", "--json"]);
    assert_eq!(said.code, 1, "{how}: {said:?}");
    serde_json::from_str::<Value>(&said.out)
        .unwrap()
        .as_array()
        .unwrap()
        .clone()
}

fn damage_is_found(driver: &'static str) {
    let Some(world) = World::with(&["--storage-driver", driver]) else {
        return;
    };
    let image = everything(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    assert_eq!(world.ok(&["check", "--trees", "--json"]), "[]");
    let (low, top) = low_and_top(&world.root(), driver);
    let mut count = 0;
    for (place, damage, undo, paths, says) in DAMAGE {
        let tree = match place {
            In::Low => &low,
            In::Top if driver == "overlay2" => &top,
            In::Whole if driver != "overlay2" => &top,
            In::Top | In::Whole => continue,
        };
        let times = Times::of(tree);
        script(&world, tree, damage);
        if !damage.starts_with("touch") {
            times.restore(false);
        }
        let found = findings(&world, damage);
        let at: BTreeSet<&str> = found
            .iter()
            .map(|one| one["path"].as_str().unwrap())
            .collect();
        let expected: BTreeSet<&str> = paths.iter().copied().collect();
        assert_eq!(at, expected, "{driver}: {damage}: {found:#?}");
        let said = |one: &&Value| one["why"].as_str().unwrap().contains(says);
        let one = found.iter().find(said);
        let one = one.unwrap_or_else(|| panic!("{driver}: {damage}: {says}: {found:#?}"));
        assert!(one["layer"].as_str().unwrap().starts_with("sha256:"));
        assert_eq!(one["images"], json!(["everything:1"]));
        assert!(
            one["what"].as_str().unwrap().contains("(everything:1) /"),
            "{one}"
        );
        script(&world, tree, undo);
        times.restore(true);
        count += 1;
    }
    assert_eq!(
        world.ok(&["check", "--trees", "--json"]),
        "[]",
        "{driver}, afterwards"
    );
    for change in HARMLESS {
        let times = Times::of(&low);
        script(&world, &low, change);
        times.restore(false);
        assert_eq!(
            world.ok(&["check", "--trees", "--json"]),
            "[]",
            "{driver}: {change}"
        );
    }
    println!("{driver}: {count} kinds of damage");
}

#[test]
fn every_damage_to_a_tree_of_overlay2_is_named() {
    damage_is_found("overlay2");
}

#[test]
fn every_damage_to_a_tree_of_overlay_is_named() {
    damage_is_found("overlay");
}

#[test]
fn every_damage_to_a_tree_of_native_is_named() {
    damage_is_found("native");
}

#[test]
fn a_deep_check_includes_the_trees_and_one_image_can_be_chosen() {
    let Some(world) = World::new() else { return };
    for image in [everything(&world.scratch), small(&world.scratch)] {
        world.ok(&["load", "--input", image.to_str().unwrap()]);
    }
    assert_eq!(world.ok(&["check", "--deep"]), "");
    let inner: Vec<_> = trees(&world.root(), "overlay2")
        .into_iter()
        .filter(|tree| tree.join("dir/inner").exists())
        .collect();
    script(&world, &inner[0], "chmod 4755 dir/inner");
    let said = world.run(&["check", "--deep"]);
    assert_eq!(said.code, 1, "{said:?}");
    let line = said.out.trim_end();
    assert!(
        line.starts_with("layer ")
            && line.ends_with("(small:1) /dir/inner: mode is 4755, should be 0644"),
        "{said:?}"
    );
    assert!(said.err.contains("layers verified: 4"), "{said:?}");
    let said = world.run(&["check", "--trees", "--image", "small:1"]);
    assert_eq!((said.code, said.out.trim_end()), (1, line), "{said:?}");
    assert!(said.err.contains("layers verified: 2"), "{said:?}");
    assert_eq!(
        world.ok(&["check", "--trees", "--image", "everything:1"]),
        ""
    );
    world.fails(2, &["check", "--image", "small:1"]);
    world.fails(2, &["check", "--trees", "--image", "small:1", "--heal"]);
    world.fails(1, &["check", "--trees", "--image", "nothing:1"]);
    // Another time of the base's root is a consequence, also in the layer above.
    script(&world, &inner[0], "touch extra");
    let found = findings(&world, "another file");
    let at: Vec<&str> = found
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect();
    assert_eq!(at, ["/dir/inner", "/extra"], "{found:#?}");
    // Nothing of it stays.
    assert!(
        fs::read_dir(world.root().join("staging"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_committed_layer_is_verified() {
    for driver in ["overlay2", "overlay", "native"] {
        let Some(world) = World::with(&["--storage-driver", driver]) else {
            return;
        };
        let image = everything(&world.scratch);
        world.ok(&["load", "--input", image.to_str().unwrap()]);
        world.ok(&["create", "--name", "box", "everything:1"]);
        let tree = world.mounted("box");
        let changes = "rm etc/new; rm -r d; mkdir d; echo x > d/x; chmod 700 .; chmod 640 file; \
                       mv tool moved; ln su su2; echo more >> etc/keep; mkdir -p a/b; touch a/b/c";
        script(&world, &tree, changes);
        world.ok(&["umount", "box"]);
        world.ok(&["commit", "box", "committed:1"]);
        let said = world.run(&["check", "--trees"]);
        assert_eq!(
            (said.code, said.out.as_str()),
            (0, ""),
            "{driver}: {said:?}"
        );
        assert!(
            said.err.contains("layers verified: 3"),
            "{driver}: {said:?}"
        );
        assert!(!said.err.contains("not verified"), "{driver}: {said:?}");
    }
}

/// What a plain user can't create is recorded, and the records are verified too.
#[test]
fn the_trees_of_a_plain_user_are_verified() {
    let scratch = Scratch::new();
    let Some(user) = PlainUser::new(&scratch) else {
        return;
    };
    let vellum = user.borrow_program(Path::new(env!("CARGO_BIN_EXE_vellum")));
    let image = everything(&scratch);
    fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let run = |args: &[&str]| support::said(user.command(&vellum).args(args).output().unwrap());
    let said = run(&["load", "--input", image.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    let said = run(&["check", "--trees"]);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    let (low, top) = low_and_top(&user.home().join(".local/share/vellum"), "overlay2");
    let owner = fs::metadata(low.join("tool")).unwrap();
    let cases: [(&Path, &str, &str, &str, &str); 7] = [
        (
            &low,
            "chmod 4755 tool",
            "chmod 755 tool",
            "/tool",
            "mode is 4755",
        ),
        (
            &low,
            "setfattr -n user.containers.override_stat -v 0:0:4755 null",
            "setfattr -n user.containers.override_stat -v 0:0:0666:char-1-3 null",
            "/null",
            "user.containers.override_stat is '0:0:4755'",
        ),
        (
            &low,
            "mv file file2",
            "mv file2 file",
            "/file",
            "is missing",
        ),
        (
            &low,
            "printf X | dd of=tool conv=notrunc; touch -d @1600000000.123456789 tool",
            "printf t | dd of=tool conv=notrunc; touch -d @1600000000.123456789 tool",
            "/tool",
            "its content differs",
        ),
        (
            &top,
            "setfattr -x user.overlay.opaque opq",
            "setfattr -n user.overlay.opaque -v y opq",
            "/opq",
            "is not opaque",
        ),
        (
            &low,
            "touch d/extra",
            "rm d/extra",
            "/d/extra",
            "does not list",
        ),
        (
            &top,
            "mv etc/secret $AWAY",
            "mv $AWAY/secret etc/",
            "/etc/secret",
            "is missing",
        ),
    ];
    let away = scratch.dir("away");
    for (tree, damage, undo, path, says) in cases {
        let record = "user.containers.override_stat";
        let before = Command::new("getfattr")
            .args(["--only-values", "-n", record, "null"])
            .current_dir(&low)
            .output()
            .unwrap();
        let before = String::from_utf8(before.stdout).unwrap();
        let undo = undo.replace("0:0:0666:char-1-3", &before);
        let times = Times::of(tree);
        let act = |script: &str| {
            let mut sh = Command::new("sh");
            sh.args(["-ec", script])
                .current_dir(tree)
                .env("AWAY", &away);
            let done = sh.output().unwrap();
            assert!(done.status.success(), "{script}: {done:?}");
        };
        act(damage);
        times.restore(false);
        let said = run(&["check", "--trees"]);
        assert_eq!(said.code, 1, "{damage}: {said:?}");
        assert!(
            said.out.contains(path) && said.out.contains(says),
            "{damage}: {said:?}"
        );
        act(&undo);
        times.restore(true);
    }
    assert_eq!(owner.uid(), fs::metadata(low.join("tool")).unwrap().uid());
    chown(low.join("tool"), Some(user.first_subid + 7), None).unwrap();
    let said = run(&["check", "--trees"]);
    assert!(
        said.code == 1 && said.out.contains("/tool: owner is 8"),
        "{said:?}"
    );
    chown(low.join("tool"), Some(owner.uid()), None).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(low.join("tool"), mode).unwrap();
    let said = run(&["check", "--trees"]);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
}

#[test]
fn a_check_of_trees_beside_other_commands_finds_nothing() {
    for driver in ["overlay2", "native"] {
        let Some(world) = World::with(&["--storage-driver", driver]) else {
            return;
        };
        let (everything, small) = (everything(&world.scratch), small(&world.scratch));
        let (everything, small) = (everything.to_str().unwrap(), small.to_str().unwrap());
        world.ok(&["load", "--input", everything]);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..6 {
                    world.ok(&["load", "--input", small]);
                    world.ok(&["create", "--name", "box", "small:1"]);
                    let tree = world.mounted("box");
                    fs::write(tree.join("new"), "new").unwrap();
                    world.ok(&["umount", "box"]);
                    world.ok(&["commit", "box", "committed:1"]);
                    world.ok(&["rm", "box"]);
                    world.ok(&["rmi", "committed:1", "small:1"]);
                    world.ok(&["gc"]);
                }
                over.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            let mut checks = 0;
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                let said = world.run(&["check", "--trees"]);
                assert_eq!(
                    (said.code, said.out.as_str()),
                    (0, ""),
                    "{driver}: {said:?}"
                );
                assert!(!said.err.contains("not verified"), "{driver}: {said:?}");
                checks += 1;
            }
            println!("{driver}: {checks} checks");
        });
        world.ok(&["gc"]);
        assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]");
    }
}

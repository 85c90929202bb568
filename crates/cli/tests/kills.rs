//! Commands on containers killed at their system calls: nothing is ever half done, and the next
//! command works.

mod support;

use std::path::Path;

use serde_json::json;
use support::{World, small};
use vellum_testkit::fault::{self, CHANGES, Effect};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Kills `args` at the first, third, seventh, ... call of each kind; `after` checks what is left.
///
/// `before` creates what the command works on, and returns its name. Returns how many runs were
/// killed.
fn killed(
    world: &World,
    before: impl Fn(&World, &str),
    args: impl Fn(&str) -> Vec<String>,
    after: impl Fn(&World, &str),
) -> u32 {
    let mut hits = 0;
    for (kind, calls) in CHANGES.iter().enumerate() {
        let mut n = 1;
        loop {
            let name = format!("k-{kind}-{n}");
            before(world, &name);
            let mut arguments = vec![
                "--root".to_owned(),
                text(&world.root()).to_owned(),
                "--run-dir".to_owned(),
                text(&world.run_dir()).to_owned(),
            ];
            arguments.extend(args(&name));
            let program = Path::new(env!("CARGO_BIN_EXE_vellum"));
            let config = world.scratch.file("vellum.toml", "");
            let environment = [("VELLUM_CONFIG", config.as_os_str())];
            let run = fault::run(program, &arguments, &environment, calls, Effect::Kill, n);
            if run.hit {
                hits += 1;
                after(world, &name);
            } else {
                assert!(run.status.success(), "{calls} {n}: {}", run.stderr);
            }
            // gc removes what is left, and the check finds nothing.
            let _ = world.run(&["rm", "--force", &name]);
            world.ok(&["gc"]);
            assert_eq!(
                world.json(&["check", "--heal", "--json"]),
                json!([]),
                "{calls} {n}"
            );
            for litter in ["staging", "trash"] {
                assert_eq!(
                    std::fs::read_dir(world.root().join(litter))
                        .unwrap()
                        .count(),
                    0,
                    "{calls} {n}: {litter}"
                );
            }
            if !run.hit {
                break;
            }
            n = n * 2 + 1;
        }
    }
    hits
}

fn prepared() -> Option<World> {
    let world = World::new()?;
    if !fault::available() {
        return None;
    }
    world.ok(&["load", text(&small(&world.scratch))]);
    Some(world)
}

fn changed(world: &World, name: &str) {
    world.ok(&["create", "--name", name, "small:1"]);
    let tree = world.mounted(name);
    std::fs::write(tree.join("etc/new"), "new\n").unwrap();
    std::fs::remove_file(tree.join("etc/top")).unwrap();
    world.ok(&["umount", name]);
}

const CHANGED: &str = "C /etc\nA /etc/new\nD /etc/top";

#[test]
fn a_create_killed_anywhere_makes_a_container_or_none() {
    let Some(world) = prepared() else { return };
    let hits = killed(
        &world,
        |_, _| {},
        |name| {
            ["create", "--name", name, "small:1"]
                .map(str::to_owned)
                .to_vec()
        },
        |world, name| {
            if world.run(&["inspect", name]).code == 0 {
                assert_eq!(
                    std::fs::read_to_string(world.mounted(name).join("etc/top")).unwrap(),
                    "top\n"
                );
            } else {
                world.ok(&["create", "--name", name, "small:1"]);
            }
        },
    );
    assert!(
        hits > 8,
        "only {hits} kills: the test is not what it is meant to be"
    );
}

#[test]
fn a_mount_or_umount_killed_anywhere_is_done_by_the_next() {
    let Some(world) = prepared() else { return };
    let check = |world: &World, name: &str| {
        let tree = world.mounted(name);
        assert_eq!(
            std::fs::read_to_string(tree.join("etc/new")).unwrap(),
            "new\n"
        );
        assert!(!tree.join("etc/top").exists());
        assert_eq!(world.ok(&["diff", name]), CHANGED);
        world.ok(&["umount", name]);
        assert_eq!(world.json(&["mount", "--json"]), json!([]));
    };
    let mounts = killed(
        &world,
        changed,
        |name| ["mount", name].map(str::to_owned).to_vec(),
        check,
    );
    let umounts = killed(
        &world,
        |world, name| {
            changed(world, name);
            world.mounted(name);
        },
        |name| ["umount", name].map(str::to_owned).to_vec(),
        check,
    );
    assert!(mounts + umounts > 4, "only {mounts} and {umounts} kills");
}

#[test]
fn a_commit_killed_anywhere_makes_an_image_or_none_and_the_container_goes_on() {
    let Some(world) = prepared() else { return };
    let hits = killed(
        &world,
        changed,
        |name| ["commit", name, "made:1"].map(str::to_owned).to_vec(),
        |world, name| {
            assert_eq!(world.ok(&["diff", name]), CHANGED);
            if world.run(&["inspect", "made:1"]).code != 0 {
                world.ok(&["commit", name, "made:1"]);
            }
            world.ok(&["create", "--name", "from-made", "made:1"]);
            let tree = world.mounted("from-made");
            assert_eq!(
                std::fs::read_to_string(tree.join("etc/new")).unwrap(),
                "new\n"
            );
            assert!(!tree.join("etc/top").exists());
            world.ok(&["rm", "--force", "from-made"]);
            world.ok(&["rmi", "made:1"]);
        },
    );
    assert!(
        hits > 12,
        "only {hits} kills: the test is not what it is meant to be"
    );
}

#[test]
fn an_rm_killed_anywhere_removes_a_container_or_leaves_it_whole() {
    let Some(world) = prepared() else { return };
    let hits = killed(
        &world,
        changed,
        |name| ["rm", name].map(str::to_owned).to_vec(),
        |world, name| {
            if world.run(&["inspect", name]).code == 0 {
                assert_eq!(world.ok(&["diff", name]), CHANGED);
                world.mounted(name);
            }
        },
    );
    assert!(
        hits > 6,
        "only {hits} kills: the test is not what it is meant to be"
    );
}

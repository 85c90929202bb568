//! Containers that run, and bundles for those who run them.

use std::path::Path;

use serde_json::json;

use super::changes::text;
use crate::support::{World, with_shell};

#[test]
fn run_passes_on_code_input_environment_and_volumes() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    assert_eq!(world.ok(&["run", "--rm", "shell:1"]), "hello");
    assert_eq!(
        world
            .run(&["run", "--rm", "shell:1", "sh", "-c", "exit 7"])
            .code,
        7
    );
    assert_eq!(
        world.ok(&[
            "run",
            "--rm",
            "-e",
            "B=2",
            "-w",
            "/tmp",
            "shell:1",
            "sh",
            "-c",
            "echo $A$B; pwd"
        ]),
        "12\n/tmp"
    );
    assert_eq!(
        world.ok(&["run", "--rm", "-u", "app", "shell:1", "id"]),
        "uid=1000(app) gid=1000(app) groups=50(team),1000(app)"
    );
    assert_eq!(
        world
            .run_with_input(&["run", "--rm", "-i", "shell:1", "cat"], b"through")
            .out,
        "through"
    );
    assert_eq!(
        world.ok(&["run", "--rm", "shell:1", "cat"]),
        "",
        "no input unless asked for"
    );
    let bound = world.scratch.dir("bound");
    std::fs::write(bound.join("x"), "x").unwrap();
    let ro = format!("{}:/bound:ro", text(&bound));
    let script = "echo v > /cache/f; cat /bound/x; echo y > /bound/y";
    let said = world.run(&[
        "run",
        "--rm",
        "-v",
        "cache:/cache",
        "-v",
        &ro,
        "shell:1",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!((said.code, said.out.as_str()), (1, "x"), "{said:?}");
    assert!(!bound.join("y").exists());
    // The volume is shared and outlives its first container.
    assert_eq!(
        world.ok(&["run", "--rm", "-v", "cache:/c", "shell:1", "cat", "/c/f"]),
        "v"
    );
    // Without --rm the container stays, with what was written, and can be run again.
    world.ok(&[
        "run",
        "--name",
        "kept",
        "shell:1",
        "sh",
        "-c",
        "echo kept > /file",
    ]);
    assert_eq!(
        world.ok(&["run", "--container", "kept", "cat", "/file"]),
        "kept"
    );
    assert_eq!(world.json(&["mount", "--json"]), json!([]));
    assert_eq!(world.json(&["ls", "--json"]).as_array().unwrap().len(), 1);
    let said = world.run(&["run", "--rm", "--runtime", "/no/such/runtime", "shell:1"]);
    assert!(
        said.code == 1 && said.err.contains("there is no runtime") && said.err.contains("hint:"),
        "{said:?}"
    );
    assert_eq!(
        world.json(&["ls", "--json"]).as_array().unwrap().len(),
        1,
        "--rm holds after a failure too"
    );
}

#[test]
fn a_running_container_is_not_removed_and_gets_the_signals() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    world.ok(&["create", "--name", "box", "shell:1"]);
    let script = "trap 'exit 9' TERM; echo up > /up; while :; do sleep 0.05; done";
    let mut child = world
        .command(&["run", "--container", "box", "sh", "-c", script])
        .spawn()
        .unwrap();
    let upper = world.json(&["inspect", "box"])[0]["tree"]["upper"]
        .as_str()
        .unwrap()
        .to_owned();
    while !Path::new(&upper).join("up").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
    }
    let err = world.fails(1, &["rm", "--force", "box"]);
    assert!(err.contains("`vellum run`"), "{err}");
    let err = world.fails(1, &["run", "--container", "box", "sh"]);
    assert!(err.contains("under way"), "{err}");
    assert_eq!(world.json(&["ls", "--json"])[0]["state"], "running");
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    // Ctrl-C is the command's own affair: from a terminal it gets it there.
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(
        child.try_wait().unwrap().is_none(),
        "it ended at an interrupt that was not its own"
    );
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert_eq!(world.json(&["ls", "--json"])[0]["state"], "created");
    world.ok(&["rm", "box"]);
}

#[test]
fn a_bundle_runs_by_itself() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    world.ok(&["create", "--name", "box", "shell:1"]);
    let dir = world.scratch.join("bundle");
    let config = world.ok(&["bundle", "box", text(&dir), "echo", "bundled"]);
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    assert_eq!(spec["root"]["path"], "rootfs");
    assert_eq!(spec["process"]["args"], json!(["echo", "bundled"]));
    let id = format!("vellum-test-{}", std::process::id());
    let state = world.scratch.dir("runc");
    let out = std::process::Command::new("runc")
        .arg("--root")
        .arg(&state)
        .args(["run", "--bundle"])
        .arg(&dir)
        .arg(&id)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "bundled\n", "{out:?}");
    let err = world.fails(2, &["bundle", "box", text(&dir)]);
    assert!(err.contains("holds a bundle already"), "{err}");
}

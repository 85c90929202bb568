//! Running containers, and bundles for other runtimes.

use std::path::Path;

use serde_json::json;

use super::changes::text;
use crate::support::{World, archive, layer, with_shell};

/// The flags that a command in a new container has in these tests.
const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

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
        said.code == 125 && said.err.contains("there is no runtime") && said.err.contains("hint:"),
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
    let err = world.fails(125, &["run", "--container", "box", "sh"]);
    assert!(err.contains("is using it"), "{err}");
    assert_eq!(world.json(&["ls", "--json"])[0]["state"], "running");
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    // Ctrl-C is left to the command, which gets it from its terminal.
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
    assert!(err.contains("already holds a bundle"), "{err}");
}

/// As with Docker and Podman, whatever follows the image is the command's, options of `run` and of
/// `vellum` too.
#[test]
fn words_after_the_image_belong_to_the_command() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    world.ok(&["create", "--name", "box", "shell:1"]);
    let echo = ["--entrypoint", "echo"];
    let new = [&RUN[..], &echo, &["shell:1"]].concat();
    let old = [&["run"][..], &echo, &["--container", "box"]].concat();
    for words in [
        &["--help"][..],
        &["--version"],
        &["-v", "x"],
        &["--root", "/nowhere"],
        &["--config", "/nowhere"],
        &["--name", "q", "sh"],
        &["--rm", "--container", "x"],
        &["a", "--rm", "--", "-q"],
    ] {
        for before in [&new, &old] {
            if before == &old && words[0].starts_with('-') {
                continue;
            }
            let said = world.run(&[before, words].concat());
            assert_eq!(said.out.trim_end(), words.join(" "), "{said:?}");
            assert_eq!(said.code, 0, "{said:?}");
        }
    }
    assert_eq!(world.ok(&["ls", "--ids"]).lines().count(), 1);
}

#[test]
fn run_distinguishes_its_failures_from_the_commands() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    let code = |words: &[&str]| {
        let said = world.run(&[&RUN[..], words].concat());
        assert_eq!(said.out, "", "{words:?}");
        assert_eq!(said.err.is_empty(), said.code < 125, "{words:?}: {said:?}");
        said.code
    };
    assert_eq!(code(&["shell:1", "sh", "-c", "exit 1"]), 1);
    assert_eq!(code(&["shell:1", "nosuch"]), 127);
    assert_eq!(code(&["shell:1", "/bin/nosuch"]), 127);
    assert_eq!(code(&["shell:1", "/etc/passwd"]), 126);
    assert_eq!(code(&["shell:1", "/etc"]), 126);
    for before in [
        &["nosuch:1", "sh"][..],
        &["--user", "nobody", "shell:1", "sh"],
        &["--workdir", "relative", "shell:1", "sh"],
        &["--volume", "/nosuch/source:/x", "shell:1", "sh"],
        &["--env", "=x", "shell:1", "sh"],
        &["--entrypoint", "", "shell:1"],
        &["--runtime", "/no/such/runtime", "shell:1", "sh"],
        &["--nosuch-flag", "shell:1", "sh"],
        &["--network", "nosuch", "shell:1", "sh"],
        &[],
    ] {
        assert_eq!(code(before), 125, "{before:?}");
    }
    // Other verbs keep their codes.
    assert_eq!(world.run(&["ls", "--nosuch-flag"]).code, 2);
    assert_eq!(world.run(&["create", "nosuch:1"]).code, 1);
    // A runtime with crun's messages, and one that fails for another reason.
    for (words, expect) in [
        (
            "executable file `x` not found in $PATH: No such file or directory",
            127,
        ),
        ("the path `/x` exists but it is not executable", 126),
        ("mount `x` to `y`: Permission denied", 125),
    ] {
        let script = format!(
            "#!/bin/sh\n[ \"$3\" = --log ] || exit 0\necho '{{\"level\": \"error\", \"msg\": \"{words}\"}}' >\"$4\"\necho failed >&2\nexit 1\n"
        );
        let runtime = world.scratch.file("runtime.sh", script);
        std::fs::set_permissions(
            &runtime,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        assert_eq!(
            code(&["--runtime", text(&runtime), "shell:1", "x"]),
            expect,
            "{words}"
        );
    }
}

#[test]
fn files_that_reveal_the_host_are_hidden_in_containers() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    let mut hidden: Vec<String> = [
        "acpi",
        "asound",
        "interrupts",
        "kcore",
        "keys",
        "latency_stats",
        "sched_debug",
        "scsi",
        "timer_list",
        "timer_stats",
    ]
    .map(|name| format!("/proc/{name}"))
    .into();
    hidden.extend(["/sys/devices/virtual/powercap", "/sys/firmware"].map(str::to_owned));
    for cpu in std::fs::read_dir("/sys/devices/system/cpu").unwrap() {
        hidden.push(
            cpu.unwrap()
                .path()
                .join("thermal_throttle")
                .display()
                .to_string(),
        );
    }
    // For each that exists, what can be read or listed.
    let script = "for p in \"$@\"; do [ ! -e $p ] || { [ -d $p ] && ls $p || cat $p; }; done";
    let mut command = [&RUN[..], &["shell:1", "sh", "-c", script, "sh"]].concat();
    command.extend(hidden.iter().map(String::as_str));
    assert_eq!(world.ok(&command), "");
    let there = hidden
        .iter()
        .filter(|path| Path::new(path).exists())
        .count();
    assert!(there > 0, "the machine has none of them");
}

#[test]
fn each_container_gets_its_own_volumes_of_the_image() {
    let Some(world) = World::new() else { return };
    let Some(shell) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&shell)]);
    let busybox = std::fs::read("/usr/bin/busybox")
        .or_else(|_| std::fs::read("/bin/busybox"))
        .unwrap();
    let mut tar = layer().dir("bin").program("bin/busybox", &busybox);
    for name in ["cat", "ls", "sh", "stat"] {
        tar = tar.symlink(&format!("bin/{name}"), "busybox");
    }
    let tar = tar.dir("data").file("data/f", "of the image\n").done();
    let config = json!({ "Volumes": { "/data": {}, "/new/deep": {} }, "Cmd": ["/bin/sh"] });
    world.ok(&[
        "load",
        text(&archive(&world.scratch, "vol:1", &[tar], config)),
    ]);
    let volumes = || {
        world
            .json(&["volume", "ls", "--json"])
            .as_array()
            .unwrap()
            .clone()
    };

    // A volume starts with what its container has at that path, including file capabilities.
    world.ok(&["create", "--name", "box", "vol:1"]);
    let mounted = world.mounted("box");
    let file = std::fs::File::open(mounted.join("data/f")).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let name = std::ffi::OsStr::new("security.capability");
    vellum_sys::xattr::set_fd(&file, name, &capability, vellum_sys::xattr::SetMode::Any).unwrap();
    drop(file);
    std::os::unix::fs::chown(mounted.join("data"), Some(7), Some(8)).unwrap();
    world.ok(&["umount", "box"]);
    let run = |script: &str| world.ok(&["run", "--container", "box", "sh", "-c", script]);
    assert_eq!(
        run(
            "cat /data/f; stat -c '%u %g' /data; ls /new/deep; echo mine >/data/own; echo deep >/new/deep/x; echo layer >/layer"
        ),
        "of the image\n7 8"
    );
    let all = volumes();
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all.iter()
            .all(|volume| volume["containers"] == json!(["box"])),
        "{all:?}"
    );
    let of_data = all
        .iter()
        .map(|volume| Path::new(volume["path"].as_str().unwrap()).join("f"))
        .find(|path| path.exists())
        .unwrap();
    let file = std::fs::File::open(&of_data).unwrap();
    let kept = vellum_sys::xattr::get_fd(&file, name).unwrap();
    assert_eq!(kept.as_deref(), Some(&capability[..]));

    // It is outside the layers, and stays with the container even when it is emptied.
    let changes = world.ok(&["diff", "box"]);
    assert!(
        changes.contains("/layer") && !changes.contains("own") && !changes.contains("deep/x"),
        "{changes}"
    );
    assert_eq!(
        run("cat /data/own /new/deep/x; cd /data; for f in *; do busybox rm $f; done"),
        "mine\ndeep"
    );
    assert_eq!(run("ls /data"), "");
    let err = world.fails(
        1,
        &["volume", "rm", "--force", all[0]["name"].as_str().unwrap()],
    );
    assert!(err.contains("container box"), "{err}");
    // Another container has its own, which is removed with it.
    assert_eq!(
        world.ok(&[&RUN[..], &["vol:1", "cat", "/data/f"]].concat()),
        "of the image"
    );
    assert_eq!(volumes().len(), 2);
    world.ok(&["volume", "create", "cache"]);
    world.ok(&["rm", "--force", "box"]);
    let left = volumes();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0]["name"], "cache");
}

#[test]
fn an_interrupted_copy_of_a_volume_starts_again() {
    let Some(world) = World::new() else { return };
    let Some(image) = with_shell(&world.scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    world.ok(&["load", text(&image)]);
    world.ok(&["create", "--name", "box", "shell:1"]);
    world.ok(&["commit", "--change", "VOLUME /etc", "box", "vol:1"]);
    world.ok(&["create", "--name", "cut", "vol:1"]);
    let run = || world.ok(&["run", "--container", "cut", "cat", "/etc/group"]);
    let content = run();
    let data = world.json(&["volume", "ls", "--json"])[0]["path"]
        .as_str()
        .unwrap()
        .to_owned();
    let (data, home) = (Path::new(&data), Path::new(&data).parent().unwrap());
    // Killed while it copied: a part of the copy, an empty volume, no mark.
    std::fs::remove_file(home.join("_filled")).unwrap();
    std::fs::remove_dir_all(data).unwrap();
    std::fs::create_dir(data).unwrap();
    std::fs::create_dir(home.join("_filling")).unwrap();
    std::fs::write(home.join("_filling/group"), "half").unwrap();
    assert_eq!(run(), content);
    // Killed before the mark.
    std::fs::remove_file(home.join("_filled")).unwrap();
    assert_eq!(run(), content);
    assert!(home.join("_filled").exists() && !home.join("_filling").exists());
}

//! What users and scripts rely on: exit codes, error texts, JSON fields, settings, signals, pipes,
//! many commands at once.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{World, archive, layer, small};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store with one image and one mounted container.
fn world() -> Option<World> {
    let world = World::new()?;
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    world.mounted("box");
    Some(world)
}

#[track_caller]
fn fields(value: &Value, expect: &[&str]) {
    let Value::Object(object) = value else {
        panic!("no object: {value}")
    };
    let names: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    let expect: BTreeSet<&str> = expect.iter().copied().collect();
    assert_eq!(names, expect);
}

#[test]
fn json_has_these_fields() {
    let Some(world) = world() else { return };
    world.ok(&["volume", "create", "cache", "--label", "a=b"]);
    let created = world.json(&["create", "--json", "small:1"]);
    fields(&created, &["id", "name"]);
    let ls = world.json(&["ls", "--json", "--size", "box"]);
    fields(
        &ls[0],
        &[
            "id",
            "name",
            "image",
            "image_id",
            "created",
            "state",
            "mounts",
            "driver",
            "labels",
            "size_bytes",
            "size_inodes",
        ],
    );
    fields(
        &world.json(&["mount", "--json"])[0],
        &["engine", "id", "name", "path"],
    );
    fields(
        &world.json(&["mount", "--dry-run", "--json", "box"]),
        &[
            "kind",
            "method",
            "lowers",
            "upper",
            "work",
            "options",
            "read_only",
        ],
    );
    std::fs::write(world.mounted("box").join("x"), "").unwrap();
    assert_eq!(
        world.json(&["diff", "--json", "box"]),
        json!([{ "kind": "A", "path": "/x" }])
    );
    fields(
        &world.json(&["volume", "ls", "--json"])[0],
        &["name", "path", "created", "labels", "containers"],
    );
    let df = world.json(&["df", "--json"]);
    fields(
        &df,
        &[
            "items",
            "content",
            "recipes",
            "lost_found",
            "unused_layers",
            "total",
        ],
    );
    fields(
        &df["items"][0],
        &["kind", "id", "names", "exclusive", "shared", "users"],
    );
    fields(&df["total"], &["bytes", "inodes"]);
    let committed = world.json(&["commit", "--json", "box", "small:2"]);
    assert!(committed["id"].as_str().unwrap().starts_with("sha256:"));
    world.ok(&["rmi", "small:2"]);
    // A tree without a record, as a crash would leave it: the image's layers are gone already.
    std::fs::create_dir(world.root().join("overlay2").join("0".repeat(64))).unwrap();
    fields(
        &world.json(&["gc", "--dry-run", "--json"])[0],
        &["kind", "what", "why", "fate"],
    );
    fields(
        &world.json(&["info", "--json"]),
        &[
            "version",
            "driver",
            "snapshots",
            "root",
            "run_dir",
            "backing_filesystem",
            "supports_d_type",
            "whiteouts",
            "fuse_io_uring",
            "native_diff",
            "userxattr",
            "project_quota",
            "reflink",
            "schema",
            "images",
            "containers",
            "volumes",
            "kernel",
            "mount_method",
            "max_layers",
            "rootless",
            "limits",
            "settings",
        ],
    );
    fields(
        &world.json(&["config", "show", "--json"])[0],
        &["name", "value", "source"],
    );
    fields(
        &world.json(&["why", "--json", "overlay2"]),
        &["what", "kept_by"],
    );
    assert_eq!(world.json(&["check", "--json"]), json!([]));
    let inspected = world.json(&["inspect", "box", "small:1", "cache"]);
    let kinds: Vec<_> = (0..3)
        .map(|at| inspected[at]["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["container", "image", "volume"]);
}

#[test]
fn errors_say_what_and_why_and_what_to_do() {
    let Some(world) = world() else { return };
    for (code, args, lines) in [
        (
            1,
            &["mount", "nope"][..],
            "error: there is no container `nope`\nhint: `vellum ls` lists them\n",
        ),
        (
            1,
            &["create", "nope"],
            "error: there is no image `nope`\nhint: `vellum images` lists them; `vellum pull` or `vellum load` gets one\n",
        ),
        (
            1,
            &["create", "--name", "box", "small:1"],
            "error: the name `box` is taken by another container\nhint: choose another name, or remove or rename that one\n",
        ),
        (
            2,
            &["create", "--name", "-x", "small:1"],
            "error: unexpected argument '-x' found",
        ),
        (
            2,
            &["rename", "box", "a/b"],
            "error: `a/b` can't name a container\nhint: letters, digits, `_`, `.` and `-`, beginning with a letter or digit\n",
        ),
        (
            1,
            &["volume", "rm", "nope"],
            "error: there is no volume `nope`\nhint: `vellum volume ls` lists them\n",
        ),
        (
            2,
            &["--mount-opt", "index=on", "mount", "box"],
            "error: --mount-opt index=on: index=on is not supported yet",
        ),
        (
            2,
            &["--mount-opt", "fast", "mount", "box"],
            "error: --mount-opt fast: `fast` is not a mount option of Vellum",
        ),
        (
            2,
            &["--docker-compatible", "--mount-opt", "metacopy=on", "ls"],
            "error: docker-compatible (flag --docker-compatible) and mount.metacopy = on (flag --mount-opt) exclude each other",
        ),
        (
            2,
            &["--storage-driver", "aufs", "ls"],
            "error: invalid value 'aufs' for '--storage-driver <NAME>'",
        ),
        (
            2,
            &["umount"],
            "error: the following required arguments were not provided",
        ),
        (
            2,
            &["frobnicate"],
            "error: there is no command `frobnicate`\nhint: `vellum --help` lists all commands",
        ),
        (
            125,
            &["run", "-v", "nocolon", "small:1"],
            "error: cannot bind `nocolon`: it has no colon\nhint: write SOURCE:PATH",
        ),
        (
            125,
            &["run", "--cap-add", "FLY", "small:1"],
            "error: `FLY` is not a capability\n",
        ),
        (
            2,
            &["cp", "a", "b"],
            "error: one of the two must be in a container: CONTAINER:PATH\n",
        ),
        (
            2,
            &["commit", "box", "x:1", "-c", "FLY high"],
            "error: `FLY high` can't be applied",
        ),
        (1, &["load", "/no/such/archive"], "error: "),
    ] {
        let err = world.fails(code, args);
        assert!(err.starts_with(lines), "{args:?} says:\n{err}");
        assert!(
            !err.contains('\x1b'),
            "no colours without a terminal: {err}"
        );
    }
    // Before anything is created or covered.
    let others = world.scratch.path().join("others");
    std::fs::create_dir_all(others.join("photos")).unwrap();
    std::fs::create_dir(others.join("lost+found")).unwrap();
    let refused = support::said(world.command_at(&others, &["info"]).output().unwrap());
    assert_eq!(refused.code, 1, "{refused:?}");
    let err = refused.err;
    assert!(err.contains("is not a vellum store"), "{err}");
    assert!(
        err.contains("choose another directory with --root"),
        "{err}"
    );
    assert_eq!(std::fs::read_dir(&others).unwrap().count(), 2);
    for place in ["/", text(&world.root()), text(world.scratch.path())] {
        for words in [
            &["mount", "box", place][..],
            &["mount", "--image", "small:1", place],
        ] {
            let err = world.fails(2, words);
            assert!(err.contains("would cover"), "{err}");
        }
    }
    let nowhere = text(&others).to_owned() + "/nowhere";
    for words in [
        &["install"][..],
        &["install", "--dry-run"],
        &["status"],
        &["uninstall"],
    ] {
        let err = world.fails(2, &[&["node"], words, &["--host-root", &nowhere]].concat());
        assert!(err.contains("is not a directory"), "{err}");
    }
    assert!(!Path::new(&nowhere).exists());
    // With several names, each is tried; a failure shows in the exit code.
    world.ok(&["create", "--name", "other", "small:1"]);
    let said = world.run(&["rm", "nope", "other"]);
    assert_eq!((said.code, said.out.as_str()), (1, "other\n"));
}

/// A mistyped root, or a disk that is not mounted, is not answered with a new, healthy store.
#[test]
fn only_what_puts_something_in_creates_a_store() {
    let Some(world) = world() else { return };
    let typo = world.scratch.path().join("typo");
    let image = small(&world.scratch);
    for words in [
        &["check"][..],
        &["check", "--trees", "--json"],
        &["ls"],
        &["images"],
        &["df"],
        &["gc"],
        &["why", "x"],
        &["rm", "box"],
        &["umount", "--all"],
        &["mount"],
        &["save", "small:1"],
        &["run", "small:1"],
    ] {
        let said = support::said(world.command_at(&typo, words).output().unwrap());
        let code = if words[0] == "run" { 125 } else { 1 };
        assert_eq!(said.code, code, "{words:?}: {said:?}");
        assert!(said.err.contains("there is no vellum store in"), "{said:?}");
        assert!(said.err.contains("check --root"), "{said:?}");
        assert!(!typo.exists(), "{words:?}");
    }
    let loaded = support::said(
        world
            .command_at(&typo, &["load", text(&image)])
            .output()
            .unwrap(),
    );
    assert_eq!(loaded.code, 0, "{loaded:?}");
    assert!(loaded.err.contains("created a new store in"), "{loaded:?}");
    let list = support::said(world.command_at(&typo, &["images"]).output().unwrap());
    assert!(list.out.contains("small:1"), "{list:?}");
}

/// What a command did, or found already done, is said once, on standard error.
#[test]
fn nothing_is_done_without_a_word() {
    let Some(world) = world() else { return };
    let new = world.scratch.path().join("new");
    let volumes = || support::said(world.command_at(&new, &["volume", "ls"]).output().unwrap());
    let said = volumes();
    assert!(said.err.contains("created a new store in"), "{said:?}");
    let said = volumes();
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    world.ok(&["umount", "box"]);
    for (words, says) in [
        (&["umount", "box"][..], "box is not mounted\n"),
        (&["umount", "--all"], "nothing is mounted\n"),
        (&["--quiet", "umount", "box"], ""),
    ] {
        let said = world.run(words);
        assert_eq!((said.code, said.err.as_str()), (0, says), "{words:?}");
    }
    world.ok(&["mount", "--read-only", "box"]);
    let err = world.fails(2, &["mount", "box"]);
    assert!(err.contains("`box` is mounted read-only"), "{err}");
    world.ok(&["umount", "box"]);
    // Images without a name can be asked for by what the listing shows.
    world.ok(&["tag", "small:1", "kept:1"]);
    assert_eq!(world.ok(&["images", "--ids", "<none>"]), "");
    let id = world.ok(&["commit", "box"]);
    let unnamed = world.ok(&["images", "--ids", "<none>"]);
    assert!(
        id.contains(unnamed.trim()) && unnamed.trim().len() == 12,
        "{id}: {unnamed}"
    );
}

#[test]
fn names_and_unique_id_prefixes_are_accepted() {
    let Some(world) = world() else { return };
    let id = world.ok(&["ls", "--ids", "box"]);
    assert_eq!(id.len(), 64);
    world.ok(&["rename", &id[..8], "renamed"]);
    assert_eq!(world.json(&["inspect", &id])[0]["name"], "renamed");
    let image = world.ok(&["images", "--ids"]);
    world.ok(&["create", "--name", "by-id", &image]);
    for n in 0..17 {
        world.ok(&["create", "--name", &format!("many-{n}"), "small:1"]);
    }
    // Among nineteen random ids, two begin with the same digit.
    let ids: Vec<String> = world
        .ok(&["ls", "--ids"])
        .lines()
        .map(str::to_owned)
        .collect();
    let digit = "0123456789abcdef"
        .chars()
        .find(|d| ids.iter().filter(|id| id.starts_with(*d)).count() > 1)
        .unwrap();
    let err = world.fails(1, &["mount", &digit.to_string()]);
    assert!(
        err.starts_with(&format!("error: `{digit}` matches several containers: ")),
        "{err}"
    );
    assert!(
        err.ends_with("hint: write more of the id, or a whole name\n"),
        "{err}"
    );
}

#[test]
fn flags_win_over_environment_over_files() {
    let Some(world) = World::new() else { return };
    let file = world.scratch.file(
        "own.toml",
        "storage-driver = \"native\"\njobs = 3\n[mount]\nmetacopy = \"off\"\n",
    );
    let show = |args: &[&str], environment: Option<(&str, &str)>| -> (String, String) {
        let mut command = world.command(&[args, &["config", "show", "--json"]].concat());
        command.env("VELLUM_CONFIG", &file);
        if let Some((name, value)) = environment {
            command.env(name, value);
        }
        let said = support::said(command.output().unwrap());
        let all: Value = serde_json::from_str(&said.out).unwrap();
        let line = all
            .as_array()
            .unwrap()
            .iter()
            .find(|l| l["name"] == "storage-driver")
            .unwrap();
        (
            line["value"].as_str().unwrap().to_owned(),
            line["source"].as_str().unwrap().to_owned(),
        )
    };
    let of = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(show(&[], None), of("native", text(&file)));
    let environment = Some(("VELLUM_STORAGE_DRIVER", "overlay"));
    assert_eq!(
        show(&[], environment),
        of("overlay", "environment VELLUM_STORAGE_DRIVER")
    );
    assert_eq!(
        show(&["--storage-driver", "overlay2"], environment),
        of("overlay2", "flag --storage-driver")
    );
    // info names the sources too.
    let said = support::said(
        world
            .command(&["info"])
            .env("VELLUM_CONFIG", &file)
            .output()
            .unwrap(),
    );
    assert!(
        said.out.contains(&format!(" jobs = 3 ({})\n", text(&file))),
        "{}",
        said.out
    );
    // An invalid setting stops every command.
    let broken = world
        .scratch
        .file("broken.toml", "storage-drivr = \"native\"\n");
    let said = support::said(
        world
            .command(&["ls"])
            .env("VELLUM_CONFIG", &broken)
            .output()
            .unwrap(),
    );
    assert_eq!(said.code, 2);
    assert!(
        said.err.contains("broken.toml")
            && said.err.contains("caused by:")
            && said.err.contains("storage-drivr"),
        "{}",
        said.err
    );
}

#[test]
fn dockers_settings_are_converted() {
    let Some(world) = World::new() else { return };
    let daemon = world.scratch.file(
        "daemon.json",
        r#"{"storage-driver":"overlay2","storage-opts":["overlay2.size=1G"],"registry-mirrors":["http://m:5000"]}"#,
    );
    let out = world.scratch.join("made/vellum.toml");
    world.ok(&["config", "import", text(&daemon), "-o", text(&out)]);
    let said = support::said(
        world
            .command(&["config", "show"])
            .env("VELLUM_CONFIG", &out)
            .output()
            .unwrap(),
    );
    assert!(
        said.out
            .lines()
            .any(|l| l.starts_with("size ") && l.contains("1073741824")),
        "{}",
        said.out
    );
    let err = world.fails(1, &["config", "import", text(&daemon), "-o", text(&out)]);
    assert!(err.contains("already exists"), "{err}");
    assert_eq!(
        world.ok(&[
            "config",
            "import",
            "--options",
            "DOCKER_STORAGE_OPTIONS=\"-s overlay --storage-opt overlay2.size=5M\""
        ]),
        "storage-driver = \"overlay\"\nsize = 5242880"
    );
    let err = world.fails(2, &["config", "import", "--options", "-s devicemapper"]);
    assert!(err.contains("has no counterpart in Vellum"), "{err}");
}

#[test]
fn a_closed_pipe_ends_a_command_silently() {
    let Some(world) = world() else { return };
    let tree = world.mounted("box");
    for n in 0..20_000 {
        std::fs::write(tree.join(format!("a-file-with-a-rather-long-name-{n}")), "").unwrap();
    }
    for args in [
        &["diff", "box"][..],
        &["diff", "--tar", "box"],
        &["diff", "--json", "box"],
        &["cp", "box:/", "-"],
    ] {
        let mut child = world
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 16];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let out = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() && err.is_empty(),
            "{args:?}: {:?} {err}",
            out.status
        );
    }
}

#[test]
fn ctrl_c_stops_a_load_and_leaves_only_what_gc_removes() {
    let Some(world) = World::new() else { return };
    let big = layer().file("big", vec![7; 64 << 20]).done();
    let bytes = std::fs::read(archive(&world.scratch, "big:1", &[big], json!({}))).unwrap();
    let mut child = world
        .command(&["load", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&bytes[..32 << 20]).unwrap();
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    // It notices when the next bytes arrive.
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        let _ = stdin.write_all(&[7; 4096]);
        std::thread::sleep(Duration::from_millis(5));
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "it does not stop"
        );
    }
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(
        out.status.code(),
        Some(130),
        "{:?} {err}",
        out.status.signal()
    );
    let left = world.json(&["gc", "--dry-run", "--json"]);
    let said = match left.as_array().unwrap().len() {
        0 => "error: stopped; nothing is left for `vellum gc` to remove\n".to_owned(),
        1 => "`vellum gc` would now remove 1 item (".to_owned(),
        count => format!("`vellum gc` would now remove {count} items ("),
    };
    assert!(err.contains("error: stopped; "), "{err}");
    assert!(err.contains(&said), "{err} {left}");
    assert_eq!(world.json(&["images", "--json"]), json!([]));
    world.ok(&["gc"]);
    assert_eq!(world.json(&["check", "--json"]), json!([]));
    assert_eq!(world.json(&["df", "--json"])["total"]["inodes"], 0);
    assert_eq!(
        world.run_with_input(&["load"], &bytes).code,
        0,
        "and the next one succeeds"
    );
}

#[test]
fn many_commands_at_once_neither_fail_nor_mix_up() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..3 {
                    let name = format!("box-{n}-{round}");
                    world.ok(&["create", "--name", &name, "small:1"]);
                    let tree = world.mounted(&name);
                    std::fs::write(tree.join("own"), &name).unwrap();
                    assert_eq!(world.ok(&["diff", &name]), "A /own");
                    if round == 0 {
                        world.ok(&["commit", &name, &format!("small:{name}")]);
                    }
                    world.ok(&["umount", &name]);
                    world.ok(&["rm", &name]);
                }
            });
        }
    });
    assert_eq!(world.json(&["ls", "--json"]), json!([]));
    assert_eq!(
        world.json(&["images", "--json"]).as_array().unwrap().len(),
        9
    );
    assert_eq!(world.json(&["check", "--json"]), json!([]));
    // If several want the same name, one gets it.
    let won = std::thread::scope(|scope| {
        let world = &world;
        let tries: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(move || world.run(&["create", "--name", "one", "small:1"]).code == 0)
            })
            .collect();
        tries
            .into_iter()
            .map(|t| t.join().unwrap())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(won, 1);
    assert_eq!(world.json(&["ls", "--json"]).as_array().unwrap().len(), 1);
    // All mount it at the same place, and it is mounted once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.mounted("one"));
        }
    });
    assert_eq!(
        world.json(&["mount", "--json"]).as_array().unwrap().len(),
        1
    );
}

#[test]
fn removing_a_volume_with_data_asks_first() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.ok(&["volume", "create", "cache"]), "cache");
    assert_eq!(
        world.ok(&["volume", "create", "cache"]),
        "cache",
        "it already exists"
    );
    let path = world.json(&["volume", "ls", "--json"])[0]["path"]
        .as_str()
        .unwrap()
        .to_owned();
    std::fs::write(Path::new(&path).join("f"), "").unwrap();
    let err = world.fails(1, &["volume", "rm", "cache"]);
    assert!(
        err.contains("holds data") && err.contains("--force"),
        "{err}"
    );
    assert!(Path::new(&path).exists());
    world.ok(&["volume", "rm", "--force", "cache"]);
    assert!(!Path::new(&path).exists());
    assert_eq!(world.ok(&["volume", "create"]).len(), 32);
}

#[test]
fn completions_and_man_pages_come_from_the_command_itself() {
    let Some(world) = World::new() else { return };
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = world.ok(&["completions", shell]);
        assert!(script.contains("VELLUM_COMPLETE"), "{shell}");
    }
    let dir = world.scratch.join("man");
    world.ok(&["man", text(&dir)]);
    let page = std::fs::read_to_string(dir.join("vellum-run.1")).unwrap();
    assert!(
        page.contains("vellum run \\-\\-rm") || page.contains("vellum run --rm"),
        "examples are on the page"
    );
    assert!(dir.join("vellum.1").exists() && dir.join("vellum-volume-create.1").exists());
}

#[test]
fn foreign_verbs_and_typing_errors_get_a_hint() {
    let Some(world) = world() else { return };
    for (args, code, says) in [
        (&["exec", "box", "sh"][..], 2, "`vellum bundle"),
        (&["logs", "box"], 2, "`vellum run`"),
        (&["build", "."], 2, "`buildah bud`"),
        (&["image", "ls"], 2, "`vellum images`"),
        (&["lod"], 2, "did you mean `vellum load`?"),
        (&["run", "-d", "small:1"], 125, "`vellum bundle`"),
        (
            &["mount", "small:1"],
            1,
            "`vellum mount --image small:1 DIR`",
        ),
        (&["commit", "small:1", "x"], 1, "that is an image"),
        (&["history", "smal:1"], 1, "did you mean `small:1`?"),
        (
            &["diff", "bx-with-a-name"],
            1,
            "did you mean `box-with-a-name`?",
        ),
        (&["save", "box-with-a-name"], 1, "that is a container"),
        (
            &["rmi", "box-with-a-name"],
            1,
            "`vellum rm box-with-a-name`",
        ),
        (&["rm", "small:1"], 1, "`vellum rmi small:1`"),
        (&["create", "small:2"], 1, "did you mean `small:1`?"),
        (&["create", "small"], 1, "did you mean `small:1`?"),
        (&["image", "prune"], 2, "neither images nor containers"),
        (&["images", "--format", "x"], 2, "`--json`"),
        (&["ls", "--filter", "name=x"], 2, "a pattern"),
        (&["run", "-p", "80:80", "small:1"], 125, "--network"),
        (&["run", "--privileged", "small:1"], 125, "--cap-add"),
        (
            &["run", "--nmae", "x", "small:1"],
            125,
            "did you mean `--name`?",
        ),
        (&["mount", "--image", "small:1"], 2, "DIR"),
        (&["tag", "small:1", "sha256:abc"], 2, "other than sha256"),
        (
            &["why", "box-with-a-name"],
            2,
            "`vellum inspect box-with-a-name`",
        ),
        (&["why", "overlay2/nope"], 1, "`vellum inspect NAME`"),
        (&["help", "lod"], 2, "did you mean `vellum load`?"),
    ] {
        if args[0] == "diff" {
            world.ok(&["create", "--name", "box-with-a-name", "small:1"]);
        }
        let err = world.fails(code, args);
        assert!(err.contains(says), "{args:?}: {err}");
        assert_eq!(err.matches("hint:").count(), 1, "{args:?}: {err}");
    }
    for args in [
        &["frobnicate"][..],
        &["start", "box"],
        &["diff", "quite-another"],
    ] {
        let err = support::said(world.command(args).output().unwrap()).err;
        assert!(!err.contains("did you mean"), "{args:?}: {err}");
    }
    let page = world.ok(&["help", "volume", "ls"]);
    assert!(page.contains("Usage: vellum volume ls"), "{page}");
    assert_eq!(world.ok(&["version"]), world.ok(&["--version"]));
}

#[test]
fn listings_accept_dockers_and_podmans_flags() {
    let Some(world) = world() else { return };
    world.ok(&["tag", "small:1", "other:2"]);
    world.ok(&["create", "--name", "a", "small:1"]);
    let ids = world.ok(&["images", "-q"]);
    assert_eq!(ids.trim().len(), 12, "{ids}");
    assert!(world.ok(&["images", "--no-trunc"]).contains(ids.trim()));
    // Before the verb it only suppresses messages, as for all verbs.
    assert!(world.ok(&["-q", "images"]).contains("small:1"));
    assert!(world.ok(&["--quiet", "ls"]).contains("box"));
    let both = world.ok(&["ps", "-aq"]);
    assert_eq!((both.lines().count(), both.trim().len()), (2, 25), "{both}");
    for (pattern, found) in [
        ("sm*", 1),
        ("*:2", 1),
        ("other", 1),
        ("oth?r", 1),
        ("thr", 0),
        ("s[a-m]all", 1),
        ("x*", 0),
    ] {
        let lines = world.ok(&["images", "--quiet", pattern]).lines().count();
        assert_eq!(lines, found, "{pattern}");
    }
    world.ok(&["rm", "a"]);
    assert!(world.ok(&["prune", "--dry-run"]).len() < 1000);
}

/// Returns what a shell offers when the tab key is pressed after these words.
fn offered(world: &World, words: &[&str]) -> Vec<String> {
    let last = words.len().to_string();
    let out = Command::new(env!("CARGO_BIN_EXE_vellum"))
        .env("VELLUM_COMPLETE", "fish")
        .env("_CLAP_COMPLETE_INDEX", last)
        .env("VELLUM_ROOT", world.root())
        .args(["--", "vellum"])
        .args(words)
        .output()
        .unwrap();
    let out = support::said(out);
    assert_eq!((out.code, out.err.as_str()), (0, ""));
    let value = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    out.out.lines().map(value).collect()
}

#[test]
fn shell_completion_offers_verbs_options_and_names() {
    let Some(world) = world() else { return };
    world.ok(&["create", "--name", "another", "small:1"]);
    world.ok(&["volume", "create", "cache"]);
    for (words, offers) in [
        (&["um"][..], &["umount"][..]),
        (&["umount", ""], &["another", "box"]),
        (&["rm", "an"], &["another"]),
        (&["diff", "b"], &["box"]),
        (&["create", "sm"], &["small:1"]),
        (&["run", "--rm", "sm"], &["small:1"]),
        (&["inspect", ""], &["another", "box", "cache", "small:1"]),
        (&["volume", "rm", ""], &["cache"]),
        (&["mount", "--image", "s"], &["small:1"]),
        (&["commit", "--mess"], &["--message"]),
    ] {
        let found = offered(&world, words);
        for offer in offers {
            assert!(
                found.iter().any(|found| found == offer),
                "{words:?}: {found:?}"
            );
        }
    }
    let nothing = offered(&world, &["diff", "nothing-like-it"]);
    assert_eq!(nothing, [""; 0]);
}

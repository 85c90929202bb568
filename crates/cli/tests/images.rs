//! Images with the real command: pipes, signals, crashes, full disks, registries with their logins
//! and settings.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use vellum_testkit::clients::{Access, CuttingProxy, Home, Registry, available, run, small_image};
use vellum_testkit::fault::{self, CHANGES, Effect};
use vellum_testkit::{Rng, Scratch, needs_root};

const SMALL: &str = "vellum-demo-small:latest";

struct World {
    scratch: Scratch,
    home: Home,
}

impl World {
    /// `None`, and recorded as untested, if not run as root.
    fn new() -> Option<World> {
        if !needs_root("images with devices and owners") {
            return None;
        }
        Some(World {
            scratch: Scratch::new(),
            home: Home::new().unwrap(),
        })
    }

    /// A `vellum` command on the store called `store`, in its own environment.
    fn command(&self, store: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        command.args(self.place(store)).args(arguments);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.scratch.dir("home"))
            .stdin(Stdio::null());
        command
    }

    fn place(&self, store: &str) -> [PathBuf; 4] {
        let root = self.scratch.join(store);
        [
            "--root".into(),
            root.clone(),
            "--run-dir".into(),
            root.with_extension("run"),
        ]
    }

    #[track_caller]
    fn ok(&self, store: &str, arguments: &[&str]) -> String {
        said(self.command(store, arguments).output().unwrap())
    }

    #[track_caller]
    fn fails(&self, store: &str, arguments: &[&str]) -> String {
        let out = self.command(store, arguments).output().unwrap();
        assert!(!out.status.success(), "{arguments:?} succeeded");
        String::from_utf8(out.stderr).unwrap()
    }

    /// Two small layers with all kinds of calls, as a docker-archive called `tiny:latest`.
    fn tiny(&self) -> PathBuf {
        let dir = self.scratch.dir("tiny");
        let script = r#"
import hashlib, io, json, sys, tarfile
def layer(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, data in entries:
            info = tarfile.TarInfo(name); info.type = kind; info.mtime = 1700000000
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE): info.linkname = data; data = ""
            if kind == tarfile.CHRTYPE: info.devmajor, info.devminor = 1, 3
            info.size = len(data); tar.addfile(info, io.BytesIO(data.encode()))
    return out.getvalue()
T = tarfile
layers = [
    layer([("a", T.DIRTYPE, ""), ("a/file", T.REGTYPE, "x" * 3000), ("a/link", T.LNKTYPE, "a/file"),
           ("a/symlink", T.SYMTYPE, "file"), ("a/null", T.CHRTYPE, ""), ("b", T.DIRTYPE, ""), ("b/gone", T.REGTYPE, "y")]),
    layer([("a/new", T.REGTYPE, "z"), ("b/.wh.gone", T.REGTYPE, ""), ("c", T.DIRTYPE, ""), ("c/.wh..wh..opq", T.REGTYPE, "")]),
]
config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers",
    "diff_ids": ["sha256:" + hashlib.sha256(l).hexdigest() for l in layers]}}).encode()
with tarfile.open(sys.argv[1], "w") as tar:
    for name, data in [("0.tar", layers[0]), ("1.tar", layers[1]), ("config", config), ("manifest.json", json.dumps(
            [{"Config": "config", "RepoTags": ["tiny:latest"], "Layers": ["0.tar", "1.tar"]}]).encode())]:
        info = tarfile.TarInfo(name); info.size = len(data); tar.addfile(info, io.BytesIO(data))
"#;
        let path = dir.join("tiny.tar");
        run(Command::new("python3").arg("-c").arg(script).arg(&path)).unwrap();
        path
    }

    fn staged(&self, store: &str) -> usize {
        std::fs::read_dir(self.scratch.join(store).join("staging")).map_or(0, Iterator::count)
    }
}

#[track_caller]
fn said(out: Output) -> String {
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        out.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&out.stderr)
    );
    text.trim_end().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The digests of the layers of a docker-archive.
fn layers(path: &Path) -> String {
    let script = r#"
import hashlib, json, sys, tarfile
with tarfile.open(sys.argv[1]) as tar:
    for image in json.load(tar.extractfile("manifest.json")):
        for name in image["Layers"]:
            print(hashlib.sha256(tar.extractfile(name).read()).hexdigest())
"#;
    run(Command::new("python3").arg("-c").arg(script).arg(path)).unwrap()
}

#[test]
fn archives_pass_through_pipes() {
    let Some(world) = World::new() else { return };
    let archive = small_image(&world.home).unwrap();
    run(Command::new("gzip").arg("-k").arg(&archive)).unwrap();
    let packed = archive.with_extension("tar.gz");
    let mut load = world.command("store", &["load"]);
    load.stdin(std::fs::File::open(&packed).unwrap());
    assert_eq!(said(load.output().unwrap()), SMALL);

    // A pipe that can't seek at all.
    let mut cat = Command::new("cat")
        .arg(&archive)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut load = world.command("second", &["load", "--input", "-"]);
    load.stdin(cat.stdout.take().unwrap());
    assert_eq!(said(load.output().unwrap()), SMALL);
    assert!(cat.wait().unwrap().success());
    assert_eq!(world.staged("second"), 0, "the copy has no name");

    let saved = world.scratch.join("saved.tar");
    let mut save = world.command("store", &["save", SMALL]);
    save.stdout(std::fs::File::create(&saved).unwrap());
    said(save.output().unwrap());
    assert_eq!(layers(&saved), layers(&archive));

    // A reader that stops early is not a failure.
    let mut save = world.command("store", &["save", SMALL]);
    let mut child = save
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn input_that_is_not_an_image_is_refused_plainly() {
    let Some(world) = World::new() else { return };
    let file = world.scratch.file("file", "no archive at all");
    assert!(
        world
            .fails("store", &["load", text(&file)])
            .contains("neither a docker-archive nor an OCI layout")
    );
    let tar = world.scratch.join("plain.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(world.scratch.path())
        .arg("file"))
    .unwrap();
    let said = world.fails("store", &["load", text(&tar)]);
    assert!(
        said.contains("hint:") && said.contains("vellum import"),
        "{said}"
    );
    let cut = world.scratch.join("cut.tar");
    let archive = small_image(&world.home).unwrap();
    let bytes = std::fs::read(&archive).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(
        world
            .fails("store", &["load", text(&cut)])
            .contains("cut short")
    );
    assert!(world.fails("store", &["save", "absent"]).contains("absent"));
    assert_eq!(world.ok("store", &["images", "--ids"]), "");
}

#[test]
fn a_load_killed_anywhere_leaves_a_sound_store() {
    let Some(world) = World::new() else { return };
    if !fault::available() {
        return;
    }
    let archive = world.tiny();
    world.ok("whole", &["load", text(&archive)]);
    let mut hits = 0;
    for (at, calls) in CHANGES.iter().enumerate() {
        // The first calls of each kind one by one, later ones in growing steps.
        let mut n = 1;
        loop {
            let store = format!("killed-{at}-{n}");
            let place = world.place(&store);
            let mut arguments: Vec<&str> = place.iter().map(|p| text(p)).collect();
            arguments.extend(["load", text(&archive)]);
            let outcome = fault::run(
                Path::new(env!("CARGO_BIN_EXE_vellum")),
                &arguments,
                &[],
                calls,
                Effect::Kill,
                n,
            );
            if !outcome.hit {
                break;
            }
            hits += 1;
            // Perhaps it was killed before there was a store.
            world.ok(&store, &["info"]);
            let images = world.ok(&store, &["images", "--ids"]);
            assert!(images.lines().count() <= 1, "{calls} {n}");
            // An image's record next to the database is written last; it is derived data, and is
            // repaired.
            world.ok(&store, &["check", "--heal"]);
            world.ok(&store, &["check"]);
            world.ok(&store, &["load", text(&archive)]);
            world.ok(&store, &["gc"]);
            assert_eq!(world.staged(&store), 0, "{calls} {n}: litter after gc");
            let saved = world.scratch.join("saved.tar");
            world.ok(&store, &["save", "--output", text(&saved), "tiny"]);
            assert_eq!(layers(&saved), layers(&archive), "{calls} {n}");
            std::fs::remove_dir_all(world.scratch.join(&store)).unwrap();
            n = 2 * n + 1;
        }
    }
    assert!(
        hits > 20,
        "only {hits} kills: the test is not what it is meant to be"
    );
}

#[test]
fn a_full_disk_is_reported_and_leaves_the_store_usable() {
    let Some(world) = World::new() else { return };
    if !fault::available() {
        return;
    }
    let archive = world.tiny();
    for (at, calls) in ["write", "mkdir,mkdirat", "link,linkat", "symlink,symlinkat"]
        .iter()
        .enumerate()
    {
        for n in [3, 6, 9] {
            let store = format!("full-{at}-{n}");
            world.ok(&store, &["info"]);
            let place = world.place(&store);
            let mut arguments: Vec<&str> = place.iter().map(|p| text(p)).collect();
            arguments.extend(["load", text(&archive)]);
            let program = Path::new(env!("CARGO_BIN_EXE_vellum"));
            let outcome = fault::run(
                program,
                &arguments,
                &[],
                calls,
                Effect::FailFrom("ENOSPC"),
                n,
            );
            if outcome.status.success() {
                continue;
            }
            assert!(outcome.hit, "{calls} {n}: {}", outcome.stderr);
            // All or nothing: perhaps only the output found no space.
            assert!(
                world.ok(&store, &["images", "--ids"]).lines().count() <= 1,
                "{calls} {n}"
            );
            // If every write fails, the error can't be printed either.
            let told = outcome.stderr.contains("No space left") && outcome.stderr.contains("hint:");
            assert!(*calls == "write" || told, "{calls} {n}: {}", outcome.stderr);
            world.ok(&store, &["gc"]);
            assert_eq!(world.staged(&store), 0, "{calls} {n}");
            assert_eq!(world.ok(&store, &["load", text(&archive)]), "tiny:latest");
        }
    }
}

#[test]
fn ctrl_c_in_a_pull_ends_it_at_once_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    // A registry that answers the first request and then stops answering.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (asked, is_asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 4096];
            let got = std::io::Read::read(&mut stream, &mut request).unwrap_or(0);
            if String::from_utf8_lossy(&request[..got]).starts_with("GET /v2/ ") {
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                );
            } else {
                held.push(stream);
                let _ = asked.send(());
            }
        }
    });
    let mut pull = world.command("store", &["pull", "--insecure", &format!("{host}/x")]);
    let mut child = pull
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    is_asked.recv_timeout(Duration::from_secs(60)).unwrap();
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    // The registry never answers again: without the signal the command would not end.
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(world.ok("store", &["images", "--ids"]), "");
    assert_eq!(world.staged("store"), 0);
}

/// A docker-archive of `tiny` pushed to `registry`; returns its name there.
fn push_tiny(world: &World, registry: &Registry, environment: &[(&str, &Path)]) -> String {
    let archive = world.tiny();
    world.ok("first", &["load", text(&archive)]);
    let name = format!("{}/some/tiny:1", registry.host());
    let mut push = world.command("first", &["push", "tiny", &name]);
    push.envs(environment.iter().copied());
    assert!(said(push.output().unwrap()).starts_with("sha256:"));
    name
}

#[test]
fn logins_are_found_where_docker_and_podman_keep_them() {
    let Some(world) = World::new() else { return };
    if !available(&["docker-registry"]) {
        return;
    }
    let registry = Registry::start(&world.home, "registry", Access::Password).unwrap();
    // "vellum:secret" in base64.
    let login = format!(
        r#"{{"auths":{{"{}":{{"auth":"dmVsbHVtOnNlY3JldA=="}}}}}}"#,
        registry.host()
    );
    let docker = world.scratch.dir("docker");
    std::fs::write(docker.join("config.json"), &login).unwrap();
    let name = push_tiny(&world, &registry, &[("DOCKER_CONFIG", &docker)]);

    let refused = world.fails("second", &["pull", &name]);
    assert!(
        refused.contains("refuses access") && refused.contains("hint:"),
        "{refused}"
    );

    let runtime = world.scratch.dir("runtime/containers");
    std::fs::write(runtime.join("auth.json"), &login).unwrap();
    let plain = world.scratch.file("auth.json", &login);
    // A credential helper, as Docker Desktop and clouds have them.
    let helpers = world.scratch.dir("bin");
    world.scratch.script(
        "bin/docker-credential-test",
        "#!/bin/sh\nread server\nprintf '{\"ServerURL\":\"%s\",\"Username\":\"vellum\",\"Secret\":\"secret\"}' \"$server\"\n",
    );
    let with_helper = world.scratch.dir("with-helper");
    let config = format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, registry.host());
    std::fs::write(with_helper.join("config.json"), config).unwrap();
    let mut path = helpers.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let path = PathBuf::from(path);

    let runtime = world.scratch.join("runtime");
    let ways: [(&str, &[(&str, &Path)]); 4] = [
        ("docker", &[("DOCKER_CONFIG", &docker)]),
        ("podman", &[("XDG_RUNTIME_DIR", &runtime)]),
        ("file", &[("REGISTRY_AUTH_FILE", &plain)]),
        (
            "helper",
            &[("DOCKER_CONFIG", &with_helper), ("PATH", &path)],
        ),
    ];
    for (way, environment) in ways {
        let mut pull = world.command(&format!("store-{way}"), &["pull", &name]);
        pull.envs(environment.iter().copied());
        assert_eq!(said(pull.output().unwrap()), name, "{way}");
    }
    let flag = world.ok("flag", &["pull", "--auth-file", text(&plain), &name]);
    assert_eq!(flag, name);
}

#[test]
fn settings_say_how_registries_are_reached() {
    let Some(world) = World::new() else { return };
    if !available(&["docker-registry", "openssl"]) {
        return;
    }
    let tls = Registry::start(&world.home, "tls", Access::Tls).unwrap();
    let settings = world.scratch.file(
        "vellum.toml",
        format!(
            "[registry.\"{0}\"]\nca-file = \"{1}\"\n[registry.\"registry.invalid\"]\nmirrors = [\"https://{0}/some\"]\n",
            tls.host(),
            tls.authority().display()
        ),
    );
    let name = push_tiny(&world, &tls, &[("VELLUM_CONFIG", &settings)]);
    let mut pull = world.command("trusting", &["pull", &name]);
    assert_eq!(
        said(pull.env("VELLUM_CONFIG", &settings).output().unwrap()),
        name
    );
    let refused = world.fails("doubting", &["pull", &name]);
    assert!(refused.contains("ca-file"), "{refused}");
    let mut pull = world.command("mirrored", &["pull", "registry.invalid/tiny:1"]);
    let said = said(pull.env("VELLUM_CONFIG", &settings).output().unwrap());
    assert_eq!(said, "registry.invalid/tiny:1");
}

#[test]
fn a_pull_over_a_bad_line_ends_well() {
    let Some(world) = World::new() else { return };
    if !available(&["docker-registry"]) {
        return;
    }
    let registry = Registry::start(&world.home, "registry", Access::Open).unwrap();
    let tree = world.scratch.dir("tree");
    let mut rng = Rng::for_test("bad line");
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.next().to_le_bytes())
        .take(300_000)
        .flatten()
        .collect();
    std::fs::write(tree.join("noise"), &noise).unwrap();
    let name = format!("{}/noise:1", registry.host());
    world.ok("first", &["import", text(&tree), &name]);
    world.ok("first", &["push", &name]);
    let proxy = CuttingProxy::start(&registry.host(), 5, 300_000).unwrap();
    let bad = format!("{}/noise:1", proxy.host());
    world.ok("second", &["pull", &bad]);
    assert_eq!(proxy.cuts_left(), 0);
    let id = |store: &str| world.ok(store, &["images", "--ids", "--no-trunc"]);
    assert_eq!(id("first"), id("second"));
}

/// A commit must not wait for data that could have been written earlier: big files are sent to disk
/// while the layer is still being read. The kernel may ignore the request; only the sync at the end
/// counts.
#[test]
fn a_layer_goes_to_disk_while_it_is_read() {
    let Some(world) = World::new().filter(|_| fault::available()) else {
        return;
    };
    let tree = world.scratch.dir("tree");
    // Zeros would become a hole.
    std::fs::write(tree.join("big"), vec![b'x'; 8 << 20]).unwrap();
    let log = world.scratch.join("calls");
    let import = |tree: &Path, store: &str, inject: &[&str]| {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-e", "trace=sync_file_range,syncfs"])
            .args(inject)
            .arg("-o")
            .arg(&log)
            .arg(env!("CARGO_BIN_EXE_vellum"))
            .args(world.place(store))
            .args(["import", text(tree), "big:1"]);
        said(command.output().unwrap());
        std::fs::read_to_string(&log).unwrap()
    };
    let begun = |calls: &str| {
        let sync = calls.find("syncfs(").expect("a layer is synced");
        calls[..sync].matches("sync_file_range(").count()
    };
    let calls = import(&tree, "store", &[]);
    assert!(begun(&calls) >= 8, "{calls}");
    // Small files are sent the same way, as far as the sending thread keeps up.
    let small = world.scratch.dir("small");
    for n in 0..600 {
        std::fs::write(small.join(format!("{n}")), vec![b'x'; 16 << 10]).unwrap();
    }
    let calls = import(&small, "small-store", &[]);
    assert!(
        begun(&calls) >= 48,
        "{} files were sent early",
        begun(&calls)
    );
    let refused = import(
        &tree,
        "other",
        &["-e", "inject=sync_file_range:error=ENOSYS"],
    );
    assert!(refused.contains("ENOSYS"), "{refused}");
}

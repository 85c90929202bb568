//! Podman and Buildah with Vellum as their mount program: what they show, save and build is what the kernel's overlay gives them.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::{Said, archive, layer, said};
use vellum_testkit::clients::{Home, Vellum, available, find, small_image};
use vellum_testkit::tree::Ignore;
use vellum_testkit::{PlainUser, Scratch, untested};

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");
const SCENARIO: &str = include_str!("support/podman_scenario.sh");
const AS_PLAIN_USER: &str = include_str!("support/as_plain_user.sh");

/// Both reports, or the lines that differ.
fn assert_same(kernel: &Said, vellum: &Said) {
    assert_eq!(kernel.code, 0, "the kernel's: {}", kernel.err);
    assert_eq!(vellum.code, 0, "{}\n{}", tail(&vellum.out), vellum.err);
    let (kernel, vellum): (Vec<_>, Vec<_>) =
        (kernel.out.lines().collect(), vellum.out.lines().collect());
    let only = |a: &[&str], b: &[&str]| -> Vec<String> {
        a.iter()
            .filter(|line| !b.contains(line))
            .map(|line| (*line).to_owned())
            .collect()
    };
    assert_eq!(
        only(&kernel, &vellum),
        only(&vellum, &kernel),
        "only in one of the two"
    );
    assert_eq!(kernel, vellum);
    assert!(kernel.len() > 100, "{kernel:?}");
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Runs both at once and returns what the kernel's overlay gave and what Vellum gave.
fn both(run: impl Fn(&str) -> Command + Sync) -> (Said, Said) {
    let one = |name: &str| said(run(name).output().unwrap());
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| one("kernel"));
        let vellum = one("vellum");
        (kernel.join().unwrap(), vellum)
    })
}

#[test]
fn podman_and_buildah_get_the_same_from_vellum_as_from_the_kernel() {
    if !available(&["podman", "buildah", "runc", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let program = home.join("fuse-overlayfs");
    symlink(VELLUM, &program).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = Command::new("sh");
        run.args(["-c", SCENARIO, "sh"])
            .arg(home.join(name))
            .arg(home.join(&name[..1]))
            .arg(&archive);
        if name == "vellum" {
            run.arg(&program);
        }
        run
    });
    assert_same(&kernel, &vellum);
}

/// What a plain user can unpack: no devices, and no owner beyond his range.
fn plain_image(scratch: &Scratch) -> PathBuf {
    let busybox = fs::read(find("busybox").unwrap()).unwrap();
    let mut base = layer().dir("bin").program("bin/busybox", &busybox);
    for applet in [
        "cat", "chmod", "chown", "dd", "echo", "ln", "ls", "mkdir", "mkfifo", "mv", "rm", "sh",
        "sleep", "stat", "tail",
    ] {
        base = base.symlink(&format!("bin/{applet}"), "busybox");
    }
    let base = base
        .dir("etc")
        .file("etc/group", "root:x:0:\n")
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .done();
    let files = layer()
        .dir("odd")
        .file("odd/gone", "x")
        .dir("odd/links")
        .file("odd/links/first", "1\n")
        .symlink("odd/links/loop", "loop")
        .dir("srv")
        .file("srv/large.bin", vec![7; 3 << 20])
        .dir("tmp")
        .dir("usr")
        .dir("usr/share")
        .dir("usr/share/doc")
        .file("usr/share/doc/old", "old\n")
        .dir("usr/share/vellum")
        .dir("usr/share/vellum/libs-0")
        .file("usr/share/vellum/libs-0/text", "libs 0\n")
        .done();
    let changes = layer()
        .dir("odd")
        .whiteout("odd/gone")
        .dir("usr/share/doc")
        .file("usr/share/doc/README", "new\n")
        .whiteout("usr/share/doc/old")
        .done();
    archive(
        scratch,
        "localhost/plain:1",
        &[base, files, changes],
        json!({ "Env": ["PATH=/bin"] }),
    )
}

#[test]
fn a_plain_user_gets_the_same_from_vellum_as_from_the_kernel() {
    if !available(&["podman", "buildah", "runc", "busybox"]) {
        return;
    }
    let scratch = Scratch::new();
    let Some(user) = PlainUser::new(&scratch) else {
        return;
    };
    if !user.give_fuse() {
        return untested("FUSE for plain users", "there is no /dev/fuse");
    }
    let archive = plain_image(&scratch);
    let program = user.borrow_program(Path::new(VELLUM));
    let named = scratch.dir("names").join("fuse-overlayfs");
    symlink(&program, &named).unwrap();
    // Podman takes no longer path for its sockets than 50 letters.
    for short in ["k", "v"] {
        let dir = scratch.dir(short);
        let give = Command::new("chown")
            .arg(user.id.to_string())
            .arg(dir)
            .status();
        assert!(give.unwrap().success());
    }
    fs::set_permissions(&archive, Permissions::from_mode(0o644)).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = user.command("sh");
        run.args(["-c", SCENARIO, "sh"])
            .arg(user.home().join(name))
            .arg(scratch.join(&name[..1]))
            .arg(&archive);
        if name == "vellum" {
            run.arg(&named);
        }
        run
    });
    assert_same(&kernel, &vellum);
}

/// Where the newer programs meet Vellum: a home, and in it the directory that they see as `/exchange`, with Vellum's program in it.
fn newer() -> Option<(Home, PathBuf)> {
    if std::env::var_os("VELLUM_SLOW").is_none() {
        untested("newer podman", "only in the slow tier: make test-slow");
        return None;
    }
    if !available(&["debootstrap", "python3", "busybox", "unshare"]) {
        return None;
    }
    let home = Home::new().unwrap();
    let exchange = home.dir("exchange").unwrap();
    fs::copy(VELLUM, exchange.join("fuse-overlayfs")).unwrap();
    Some((home, exchange))
}

/// A command in the newer programs' root.
fn in_newer(exchange: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/forky-root.sh");
    let mut run = Command::new(script);
    run.env("EXCHANGE", exchange).arg("run");
    run
}

#[test]
fn newer_podman_and_buildah_get_the_same_from_vellum_as_from_the_kernel() {
    let Some((home, exchange)) = newer() else {
        return;
    };
    fs::rename(small_image(&home).unwrap(), exchange.join("small.tar")).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = in_newer(&exchange);
        run.args(["sh", "-c", SCENARIO, "sh"]);
        run.arg(format!("/exchange/{name}"))
            .arg(format!("/run/{}", &name[..1]))
            .arg("/exchange/small.tar");
        if name == "vellum" {
            run.arg("/exchange/fuse-overlayfs");
        }
        run
    });
    assert_same(&kernel, &vellum);
}

#[test]
fn a_plain_user_of_newer_podman_and_buildah_gets_the_same_from_vellum_as_from_the_kernel() {
    let Some((home, exchange)) = newer() else {
        return;
    };
    if !Path::new("/dev/fuse").exists() {
        return untested("FUSE for plain users", "there is no /dev/fuse");
    }
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    fs::copy(archive, exchange.join("plain.tar")).unwrap();
    fs::write(exchange.join("as_plain_user.sh"), AS_PLAIN_USER).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = in_newer(&exchange);
        run.args(["sh", "/exchange/as_plain_user.sh"])
            .arg(format!("/exchange/{name}"))
            .args(["env", "RUNTIME=crun", "sh", "-c", SCENARIO, "sh"])
            .arg(format!("/exchange/{name}/all"))
            .arg(format!("/run/user/61234/{}", &name[..1]))
            .arg("/exchange/plain.tar");
        if name == "vellum" {
            run.arg("/exchange/fuse-overlayfs");
        }
        run
    });
    drop(home);
    assert_same(&kernel, &vellum);
}

/// podman on a store of its own below `home`, with Vellum as mount program.
fn podman(home: &Home, store: &str, options: &[&str], args: &[&str]) -> String {
    let program = home.join("fuse-overlayfs");
    if !program.exists() {
        symlink(VELLUM, &program).unwrap();
    }
    let program = format!("overlay.mount_program={}", program.display());
    let options = [&["--storage-opt", &program], options].concat();
    done_in_the_end(args, || call(home, store, &options, args))
}

/// One call of podman.
fn call(home: &Home, store: &str, options: &[&str], args: &[&str]) -> Said {
    let mut run = Command::new("timeout");
    run.args(["-k", "5", "120", "podman", "--root"])
        .arg(home.join(store));
    run.arg("--runroot").arg(home.join(&format!("{store}-run")));
    run.arg("--tmpdir").arg(home.join(&format!("{store}-tmp")));
    run.args(["--storage-driver", "overlay", "--runtime", "runc"]);
    run.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    said(run.args(options).args(args).output().unwrap())
}

/// What podman says once it succeeds. A removal is tried again: podman's own clean-up behind an ended container may be at it.
fn done_in_the_end(args: &[&str], call: impl Fn() -> Said) -> String {
    let mut done = call();
    for _ in 0..30 {
        if done.code == 0 || !args[0].starts_with("rm") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
        done = call();
    }
    assert_eq!(done.code, 0, "podman {args:?}: {}", done.err);
    done.out
}

const LIMITS: [&str; 6] = [
    "--network",
    "none",
    "--ulimit",
    "nofile=1000:1000",
    "--ulimit",
    "nproc=1000:1000",
];

#[test]
fn containers_with_ids_of_their_own_see_their_own_ids() {
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    let podman = |args: &[&str]| podman(&home, "s", &[], args);
    podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    let script = "stat -c '%u %g' /bin/busybox; echo x > /new; chown 3:4 /new; chmod 4755 /new; rm -r /srv; stat -c '%a %u %g' /new; ls -d /srv || echo gone";
    let mapped = [
        "--uidmap",
        "0:100000:65536",
        "--gidmap",
        "0:100000:65536",
        "--name",
        "box",
        "localhost/plain:1",
        "sh",
        "-c",
        script,
    ];
    assert_eq!(
        podman(&[&["run"], &LIMITS[..], &mapped].concat()),
        "0 0\n4755 3 4\ngone\n"
    );
    // On disk they are what an image can hold, and nothing was copied for the other ids.
    podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let plain = [
        "--rm",
        "localhost/mine:1",
        "stat",
        "-c",
        "%a %u %g",
        "/new",
        "/bin/busybox",
    ];
    assert_eq!(
        podman(&[&["run"], &LIMITS[..], &plain].concat()),
        "4755 3 4\n755 0 0\n"
    );
    let changed = podman(&["diff", "box"]);
    assert!(
        changed.contains("A /new") && changed.contains("D /srv") && !changed.contains("/bin"),
        "{changed}"
    );
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--all", "--force"]);
}

#[test]
fn with_force_mask_images_are_readable_on_disk_and_themselves_in_the_container() {
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    let podman = |args: &[&str]| {
        podman(
            &home,
            "s",
            &["--storage-opt", "overlay.force_mask=shared"],
            args,
        )
    };
    podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    let script = "chmod 600 /etc/passwd; chown 5:6 /etc/passwd; echo x > /new; chmod 711 /new; stat -c '%a %u %g' /etc/passwd /new /bin/busybox";
    let made = podman(
        &[
            &["run"],
            &LIMITS[..],
            &["--name", "box", "localhost/plain:1", "sh", "-c", script],
        ]
        .concat(),
    );
    assert_eq!(made, "600 5 6\n711 0 0\n755 0 0\n");
    podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let again = [
        "--rm",
        "localhost/mine:1",
        "stat",
        "-c",
        "%a %u %g",
        "/etc/passwd",
        "/new",
    ];
    assert_eq!(
        podman(&[&["run"], &LIMITS[..], &again].concat()),
        "600 5 6\n711 0 0\n"
    );
    let overlay = fs::read_dir(home.join("s/overlay")).unwrap();
    let news = overlay.map(|entry| entry.unwrap().path().join("diff/new"));
    let modes = news.filter_map(|new| Some(fs::metadata(new).ok()?.permissions().mode() & 0o777));
    // The image's has the mask; the container's own is its user's until it is committed.
    let mut modes: Vec<u32> = modes.collect();
    modes.sort_unstable();
    assert_eq!(modes, [0o600, 0o755]);
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--all", "--force"]);
}

#[test]
fn images_of_an_additional_store_run_read_only() {
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    podman(
        &home,
        "shared",
        &[],
        &["load", "--quiet", "--input", archive.to_str().unwrap()],
    );
    let shared = format!("overlay.imagestore={}", home.join("shared").display());
    let podman = |args: &[&str]| podman(&home, "own", &["--storage-opt", &shared], args);
    let listed = podman(&["images", "--format", "{{.Repository}} {{.ReadOnly}}"]);
    assert_eq!(listed, "localhost/plain true\n");
    let script = "echo y > /etc/new; cat /etc/new /odd/links/first";
    let said = podman(
        &[
            &["run"],
            &LIMITS[..],
            &["--rm", "localhost/plain:1", "sh", "-c", script],
        ]
        .concat(),
    );
    assert_eq!(said, "y\n1\n");
}

#[test]
fn podman_reads_exported_images_in_place() {
    if !available(&["podman", "runc", "busybox", "python3"]) {
        return;
    }
    let home = Home::new().unwrap();
    let vellum = Vellum::new(VELLUM, &home, "vellum").unwrap();
    vellum
        .load_as(&small_image(&home).unwrap(), "localhost/demo:1")
        .unwrap();
    let shared = home.join("shared");
    let dir = shared.to_str().unwrap();
    let export = ["export", "containers-storage", dir];
    let planned = vellum
        .run(&[&export[..], &["--dry-run", "--json"]].concat())
        .unwrap();
    assert!(planned.contains("\"layers\": 10"), "{planned}");
    assert!(!shared.exists());
    vellum.run(&export).unwrap();

    // The kernel mounts.
    let store = format!("overlay.imagestore={dir}");
    let options = ["--storage-opt", &store];
    let podman = |args: &[&str]| done_in_the_end(args, || call(&home, "reader", &options, args));
    let listed = podman(&[
        "images",
        "--format",
        "{{.Repository}}:{{.Tag}} {{.ReadOnly}}",
    ]);
    assert_eq!(listed, "localhost/demo:1 true\n");
    let script = "cat /app/version; ls /odd/links; echo new > /etc/new; rm /etc/app.conf";
    let run = [
        &["run", "--name", "box"],
        &LIMITS[..],
        &["localhost/demo:1", "sh", "-c", script],
    ]
    .concat();
    assert_eq!(podman(&run), "version 2\ndeep\nfirst\nloop\n");
    // Nothing was unpacked, and what stands on it is Podman's own.
    let own = podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let again = [
        &["run", "--rm"],
        &LIMITS[..],
        &["localhost/mine:1", "cat", "/etc/new"],
    ]
    .concat();
    assert_eq!(podman(&again), "new\n", "{own}");

    // Podman compares what it sends with the digests; Vellum compares what comes back with the diff ids.
    let saved = home.join("saved.tar");
    podman(&[
        "save",
        "--quiet",
        "--format",
        "docker-archive",
        "--output",
        saved.to_str().unwrap(),
        "localhost/demo:1",
    ]);
    vellum.load_as(&saved, "localhost/demo:back").unwrap();
    let ids = |name: &str| {
        vellum
            .run(&["inspect", name])
            .unwrap()
            .matches("sha256:")
            .count()
    };
    assert_eq!(ids("localhost/demo:1"), ids("localhost/demo:back"));
    let before = vellum.image_tree("localhost/demo:1", &home).unwrap();
    before.assert_same(
        &vellum.image_tree("localhost/demo:back", &home).unwrap(),
        Ignore {
            root: true,
            ..Ignore::default()
        },
    );

    // The layers stay while the export does, and an export takes the place of the one before.
    vellum
        .run(&["rmi", "localhost/demo:1", "localhost/demo:back"])
        .unwrap();
    vellum.run(&["gc"]).unwrap();
    assert_eq!(podman(&again), "new\n");
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--force", "localhost/mine:1"]);
    vellum.run(&export).unwrap();
    assert_eq!(podman(&["images", "--format", "{{.Repository}}"]), "");
    vellum.run(&[&export[..], &["--remove"]].concat()).unwrap();
    assert!(!shared.exists());
    vellum.run(&["gc"]).unwrap();
    assert!(vellum.run(&["check"]).is_ok());

    // What is somebody else's stays.
    fs::create_dir_all(shared.join("overlay")).unwrap();
    assert!(
        vellum.run(&export).is_err() && vellum.run(&[&export[..], &["--remove"]].concat()).is_err()
    );
    assert!(shared.join("overlay").exists());
}

//! Podman and Buildah with Vellum as their mount program: what they show, save and build is what the kernel's overlay gives them.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::{Said, archive, layer, said};
use vellum_testkit::clients::{Home, available, find, small_image};
use vellum_testkit::{PlainUser, Scratch, untested};

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");
const SCENARIO: &str = include_str!("support/podman_scenario.sh");

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

#[test]
fn newer_podman_and_buildah_get_the_same_from_vellum_as_from_the_kernel() {
    if std::env::var_os("VELLUM_SLOW").is_none() {
        return untested("newer podman", "only in the slow tier: make test-slow");
    }
    if !available(&["debootstrap", "python3", "busybox", "unshare"]) {
        return;
    }
    let home = Home::new().unwrap();
    let exchange = home.dir("exchange").unwrap();
    fs::rename(small_image(&home).unwrap(), exchange.join("small.tar")).unwrap();
    fs::copy(VELLUM, exchange.join("fuse-overlayfs")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/forky-root.sh");
    let (kernel, vellum) = both(|name| {
        let mut run = Command::new(&script);
        run.env("EXCHANGE", &exchange)
            .args(["run", "sh", "-c", SCENARIO, "sh"]);
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

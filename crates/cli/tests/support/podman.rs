//! Podman in tests: this machine's, and a newer one in its own root file system.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use vellum_testkit::clients::{Home, available, find};
use vellum_testkit::{Scratch, untested};

use super::{Said, archive, layer, said};

pub const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");
pub const AS_PLAIN_USER: &str = include_str!("as_plain_user.sh");

/// What a plain user can unpack: no devices, and no owner outside the user's range.
pub fn plain_image(scratch: &Scratch) -> PathBuf {
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

/// The place shared with the newer programs: a home, and in it the directory that they see as
/// `/exchange`, with Vellum's program in it.
pub fn newer() -> Option<(Home, PathBuf)> {
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
pub fn in_newer(exchange: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/forky-root.sh");
    let mut run = Command::new(script);
    run.env("EXCHANGE", exchange).arg("run");
    run
}

/// Runs podman on its own store below `home`, with Vellum as the mount program.
pub fn podman(home: &Home, store: &str, options: &[&str], args: &[&str]) -> String {
    let program = home.join("fuse-overlayfs");
    if !program.exists() {
        symlink(VELLUM, &program).unwrap();
    }
    let program = format!("overlay.mount_program={}", program.display());
    let options = [&["--storage-opt", &program], options].concat();
    done_in_the_end(args, || call(home, store, &options, args))
}

/// One call of podman.
pub fn call(home: &Home, store: &str, options: &[&str], args: &[&str]) -> Said {
    let mut run = Command::new("timeout");
    run.args(["-k", "5", "120", "podman", "--root"])
        .arg(home.join(store));
    run.arg("--runroot").arg(home.join(&format!("{store}-run")));
    run.arg("--tmpdir").arg(home.join(&format!("{store}-tmp")));
    run.args(["--storage-driver", "overlay", "--runtime", "runc"]);
    run.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    said(run.args(options).args(args).output().unwrap())
}

/// Returns podman's output once it succeeds. A removal is retried, because podman's own clean-up
/// after an ended container may still be running.
pub fn done_in_the_end(args: &[&str], call: impl Fn() -> Said) -> String {
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

pub const LIMITS: [&str; 6] = [
    "--network",
    "none",
    "--ulimit",
    "nofile=1000:1000",
    "--ulimit",
    "nproc=1000:1000",
];

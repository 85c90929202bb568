//! containerd's own test suite for snapshotters, from Debian's packages, against the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use vellum_testkit::clients::{Home, available, run};
use vellum_testkit::untested;

/// What is served in turn: the name the suite runs under, and the command's flags.
///
/// By the name the suite leaves out what overlayfs can't do: containerd 2's renames of directories of a lower layer.
const SERVED: [(&str, &str); 4] = [
    ("fuse-overlayfs", "--engine vellum"),
    ("overlayfs", ""),
    ("overlayfs", "--storage-driver overlay"),
    ("vellum", "--storage-driver native"),
];

/// With redirects nothing needs to be left out.
const WITH_REDIRECTS: [(&str, &str); 2] = [
    ("vellum", "--mount-opt redirect_dir=on"),
    ("vellum", "--engine vellum --mount-opt redirect_dir=on"),
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../snapshotter/tests/suite")
}

/// Runs the compiled suite once for everything that is served.
fn run_all(suite: &Path, served: &[(&str, &str)]) {
    // Not on tmpfs or overlay, where overlays can't be; and short.
    let home = Home::new().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_vellum"));
    let path = std::env::var("PATH").unwrap_or_default();
    let one = |(name, flags): (&str, &str)| {
        let said = run(Command::new(suite)
            .args(["-test.root", "-test.v", "-test.parallel", "4"])
            .args(["-test.timeout", "9m"])
            .current_dir(home.path())
            .env("TMPDIR", home.path())
            .env("VELLUM", bin)
            .env("VELLUM_NAME", name)
            .env("VELLUM_ARGUMENTS", flags)
            // mount.fuse3 finds the engine there.
            .env(
                "PATH",
                format!("{}:{path}", bin.parent().unwrap().display()),
            ))
        .unwrap_or_else(|error| panic!("{name} {flags}: {error}"));
        let passed = said.matches("--- PASS: TestSuite/").count();
        let skipped = said.matches("--- SKIP: TestSuite/").count();
        assert!(
            passed + skipped >= 21 && skipped <= 1,
            "{name} {flags}:\n{said}"
        );
    };
    let one = &one;
    // Two at once: each waits for the disk much of its time.
    std::thread::scope(|scope| {
        for half in served.chunks(served.len().div_ceil(2)) {
            scope.spawn(move || half.iter().copied().for_each(one));
        }
    });
}

#[test]
fn containerd_s_suite_passes_with_every_driver_and_engine() {
    const SUITE: &str =
        "/usr/share/gocode/src/github.com/containerd/containerd/snapshots/testsuite";
    if !available(&["go", "mount.fuse3"]) {
        return;
    }
    if !Path::new(SUITE).is_dir() {
        untested(
            "containerd's suite",
            "golang-github-containerd-containerd-dev is not installed",
        );
        return;
    }
    let home = Home::new().unwrap();
    // Kept between runs: compiling it takes a minute.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    let suite = home.join("suite");
    run(Command::new("go")
        .args(["test", "-c", "-o"])
        .arg(&suite)
        .arg(".")
        .current_dir(sources())
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOFLAGS", "")
        .env("GOCACHE", &cache))
    .unwrap();
    run_all(&suite, &SERVED);
}

#[test]
fn containerd_2_s_suite_passes_with_every_driver_and_engine() {
    if std::env::var_os("VELLUM_SLOW").is_none() {
        untested(
            "containerd 2's suite",
            "only in the slow tier: make test-slow",
        );
        return;
    }
    if !available(&["debootstrap", "unshare", "mount.fuse3"]) {
        return;
    }
    let home = Home::new().unwrap();
    let exchange = home.dir("x").unwrap();
    for file in std::fs::read_dir(sources()).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, exchange.join(file.file_name().unwrap())).unwrap();
    }
    const BUILD: &str = "cd /exchange && GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=/var/tmp/go-cache \
        CGO_ENABLED=0 go test -tags containerd2 -c -o /exchange/suite .";
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/forky-root.sh");
    run(Command::new(script)
        .args(["run", "sh", "-ec", BUILD])
        .env("EXCHANGE", &exchange))
    .unwrap();
    run_all(
        &exchange.join("suite"),
        &[SERVED.as_slice(), &WITH_REDIRECTS].concat(),
    );
}

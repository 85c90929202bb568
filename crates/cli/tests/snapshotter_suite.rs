//! containerd's own test suite for snapshotters, from Debian's packages, against the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use vellum_testkit::clients::{Home, available, run};
use vellum_testkit::untested;

/// The servers under test: the name that the suite runs under, and the command's flags.
///
/// The suite chooses by name what to skip because overlayfs can't do it: in containerd 2, renames
/// of directories from a lower layer.
const SERVED: [(&str, &str); 4] = [
    ("fuse-overlayfs", "--engine vellum"),
    ("overlayfs", ""),
    ("overlayfs", "--storage-driver overlay"),
    ("vellum", "--storage-driver native"),
];

/// With redirects nothing needs to be skipped.
const WITH_REDIRECTS: [(&str, &str); 2] = [
    ("vellum", "--mount-opt redirect_dir=on"),
    ("vellum", "--engine vellum --mount-opt redirect_dir=on"),
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../snapshotter/tests/suite")
}

/// Runs the compiled suite once for each server under test.
fn run_all(suite: &Path, served: &[(&str, &str)]) {
    // Not on tmpfs or overlay, where overlays don't work; and the path must be short.
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
    // Two at once, because each waits for the disk much of the time.
    std::thread::scope(|scope| {
        for half in served.chunks(served.len().div_ceil(2)) {
            scope.spawn(move || half.iter().copied().for_each(one));
        }
    });
}

/// Compiles the suite with the glue code for one containerd version, in GOPATH mode, and runs it.
fn compile_and_run(
    go: &Path,
    gopath: &Path,
    tags: &str,
    cache: &str,
    served: &[(&str, &str)],
    environment: &[(&str, &Path)],
) {
    let home = Home::new().unwrap();
    let suite = home.join("suite");
    run(Command::new(go)
        .args(["test", "-tags", tags, "-c", "-o"])
        .arg(&suite)
        .arg(".")
        .current_dir(sources())
        .env("GO111MODULE", "off")
        .env("GOPATH", gopath)
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0")
        // Kept between runs: compiling it takes a minute.
        .env(
            "GOCACHE",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(cache),
        )
        .envs(environment.iter().copied()))
    .unwrap();
    run_all(&suite, served);
}

#[test]
fn containerds_suite_passes_with_every_driver_and_engine() {
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
    let gopath = Path::new("/usr/share/gocode");
    compile_and_run(Path::new("go"), gopath, "", "go", &SERVED, &[]);
}

#[test]
fn the_suite_of_containerd_2_passes_with_every_driver_and_engine() {
    if !available(&["mount.fuse3"]) {
        return;
    }
    let fetched = std::env::var_os("CONTAINERD_2_SUITE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/containerd-2-suite"),
        PathBuf::from,
    );
    if !fetched.join(".complete").exists() {
        untested(
            "containerd 2's suite",
            "its sources are not there: scripts/containerd-2-suite.sh make fetches them",
        );
        return;
    }
    let fetched = std::fs::canonicalize(fetched).unwrap();
    let goroot = fetched.join("go");
    compile_and_run(
        &goroot.join("bin/go"),
        &fetched.join("usr/share/gocode"),
        "containerd2",
        "go-2",
        &[SERVED.as_slice(), &WITH_REDIRECTS].concat(),
        &[("GOROOT", &goroot), ("GOTOOLCHAIN", Path::new("local"))],
    );
}

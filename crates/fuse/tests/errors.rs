//! Why there is no mount, or why it was not continued: the errors that users see in the text of
//! `vellum overlay`. `docs/errors.md` has the remedies.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use vellum_format::Prefix;
use vellum_fuse::{Error, Handover, MountOptions, Mounter, mount, take_over};
use vellum_testkit::seam::{self, Counted, Effect};
use vellum_testkit::{Scratch, is_root, untested};
use vellum_union::engine::{Engine, EngineOptions, UpperOptions};
use vellum_union::{Dialect, DirLayer};

fn dir(at: &Path, name: &str) -> PathBuf {
    let dir = at.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// The options of a union below `at` with the lower layer `lower`.
fn union(at: &Path, lower: &str) -> EngineOptions {
    let layer = DirLayer::open(&dir(at, lower), Dialect::kernel(Prefix::Trusted)).unwrap();
    let mut options = EngineOptions::new(vec![Arc::new(layer)]);
    let (upper, work) = (dir(at, "upper"), dir(at, "work"));
    options.upper = Some(UpperOptions::new(upper, work, Prefix::Trusted));
    options
}

fn usual() -> MountOptions {
    MountOptions {
        io_uring: false,
        ..MountOptions::default()
    }
}

/// Records the test as untested where the kernel can't mount for this process.
fn can_mount() -> bool {
    let can = is_root() && Path::new("/dev/fuse").exists();
    if !can {
        untested("FUSE mounts", "no root, or no /dev/fuse");
    }
    can
}

/// In a run by [`again`], the directory for the test. It is removed by the first run: this one may
/// lack what that takes.
fn is_again() -> Option<PathBuf> {
    std::env::var_os("VELLUM_TEST_AGAIN").map(PathBuf::from)
}

/// Runs the test `name` of this program again by way of `wrapper`.
#[track_caller]
fn again(name: &str, wrapper: &[&str]) {
    let scratch = Scratch::new();
    let (program, arguments) = wrapper.split_first().unwrap();
    let said = Command::new(program)
        .args(arguments)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("VELLUM_TEST_AGAIN", scratch.path())
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
}

#[test]
fn without_the_device_the_error_names_the_module() {
    let name = "without_the_device_the_error_names_the_module";
    let Some(at) = is_again() else {
        if can_mount() {
            let script = "mount -t tmpfs none /dev && exec \"$@\"";
            again(name, &["unshare", "-m", "sh", "-c", script, "sh"]);
        }
        return;
    };
    let engine = Engine::open(union(&at, "lower")).unwrap();
    let options = MountOptions {
        mounter: Mounter::Kernel,
        ..usual()
    };
    let error = mount(engine, &dir(&at, "merged"), &options).unwrap_err();
    assert!(
        matches!(error, Error::NoDevice { missing: true, .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().starts_with("FUSE is not available here"),
        "{error}"
    );
}

#[test]
fn a_helper_that_fails_is_named_with_the_mount_point() {
    let name = "a_helper_that_fails_is_named_with_the_mount_point";
    let Some(at) = is_again() else {
        return again(name, &["/usr/bin/env", "PATH=/nonexistent"]);
    };
    let layer = DirLayer::open(&dir(&at, "lower"), Dialect::kernel(Prefix::User)).unwrap();
    let engine = Engine::open(EngineOptions::new(vec![Arc::new(layer)])).unwrap();
    let options = MountOptions {
        mounter: Mounter::Fusermount,
        ..usual()
    };
    let target = dir(&at, "merged");
    let error = mount(engine, &target, &options).unwrap_err();
    assert!(matches!(error, Error::Fusermount { .. }), "{error:?}");
    let text = format!("fusermount3 can't mount on {}: ", target.display());
    assert!(error.to_string().starts_with(&text), "{error}");
}

#[test]
fn a_successor_takes_over_nothing_but_its_own_union() {
    let error = Handover::from_descriptors(Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Handover { .. }), "{error:?}");

    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let target = scratch.dir("merged");
    let engine = Engine::open(union(scratch.path(), "lower")).unwrap();
    let session = mount(engine, &target, &usual()).unwrap();
    scratch.adopt_mount(&target);
    let handover = session.hand_over().map_err(|not| not.error).unwrap();
    let error = take_over(union(scratch.path(), "other"), handover, &usual()).unwrap_err();
    assert!(matches!(error, Error::Successor { .. }), "{error:?}");
    assert_eq!(error.to_string(), "the union can't be handed over");
}

/// The disk breaks after the last write and before the end.
#[test]
fn a_disk_that_breaks_before_the_end_is_an_error_of_the_close() {
    if !can_mount() || !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let target = scratch.dir("merged");
    let engine = Engine::open(union(scratch.path(), "lower")).unwrap();
    let session = mount(engine, &target, &usual()).unwrap();
    // By another process: this one must not wait for itself.
    let script = "echo content > \"$0/file\" && umount \"$0\"";
    let done = Command::new("sh")
        .args(["-c", script])
        .arg(&target)
        .status();
    assert!(done.unwrap().success());
    let effect = Effect::FailFrom(rustix::io::Errno::IO.raw_os_error());
    let run = seam::run(scratch.path(), Counted::Changes, 1, effect, || {
        session.wait()
    });
    let hit = run.hit.clone();
    let error = run.value().unwrap_err();
    assert!(matches!(error, Error::Close { .. }), "{hit:?}: {error:?}");
    assert_eq!(error.to_string(), "the union could not be closed");
}

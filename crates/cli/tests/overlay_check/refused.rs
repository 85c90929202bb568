//! An overlay that is mounted is not checked: the error names the mount.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use vellum_testkit::clients::available;

use crate::rig::Rig;
use crate::support::layered::{VELLUM, command, wait_free};
use crate::support::{Said, said};

/// Checks through the command, with these lower layers and perhaps an upper.
fn ask(lowers: &[PathBuf], upper: Option<&Rig>) -> Said {
    let lowers: Vec<_> = lowers
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let mut check = command(VELLUM, &["check", "--layers", &lowers.join(":")]);
    if let Some(rig) = upper {
        check.arg("--upper").arg(rig.at("upper"));
        check.arg("--work").arg(rig.at("work"));
    }
    said(check.output().unwrap())
}

#[track_caller]
fn assert_refused(done: &Said, names: &[&str]) {
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{}", done.err);
    for name in names {
        assert!(done.err.contains(name), "{name}: {}", done.err);
    }
    assert!(done.err.contains("unmount it first"), "{}", done.err);
}

#[test]
fn an_overlay_that_the_kernel_has_mounted_is_refused() {
    let Some(rig) = Rig::new() else { return };
    let merged = rig.mount(&[("index", "on")]).unwrap();
    let upper = rig.at("upper").display().to_string();
    let place = merged.display().to_string();
    assert_refused(
        &ask(&rig.lowers, Some(&rig)),
        &[&upper, &place, "is mounted: process"],
    );
    // Also as a layer below another.
    assert_refused(
        &ask(&[rig.at("upper"), rig.at("base")], None),
        &[&upper, &place],
    );
    // But the layers below may be mounted as often as one likes.
    let below = ask(&rig.lowers, None);
    assert_eq!(below.code, 0, "{}", below.err);
    rig.unmount();
    rig.assert_clean("unmounted");
}

#[test]
fn a_mount_in_another_namespace_is_refused() {
    let Some(rig) = Rig::new() else { return };
    let script = "mount -t overlay overlay -o \"$1\" \"$2\" && echo mounted && read line";
    let mut other = command(
        "unshare",
        &["--mount", "--propagation", "private", "sh", "-c"],
    );
    other
        .args([script, "sh", &rig.options()])
        .arg(rig.at("merged"));
    let mut other = other
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 8];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut word).unwrap();
    let merged = rig.at("merged").display().to_string();
    let done = ask(&rig.lowers, Some(&rig));
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_refused(&done, &[&merged, "process"]);
    rig.assert_clean("unmounted");
}

#[test]
fn an_overlay_that_vellums_engine_has_mounted_is_refused() {
    let Some(rig) = Rig::new() else { return };
    let merged = rig.at("merged");
    let mut mount = command(VELLUM, &["overlay", "-o", &rig.options()]);
    let done = said(mount.arg(&merged).output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
    rig.scratch.adopt_mount(&merged);
    let place = merged.display().to_string();
    assert_refused(
        &ask(&rig.lowers, Some(&rig)),
        &["Vellum's engine uses it", &place],
    );
    assert_refused(&ask(&[rig.at("upper")], None), &["Vellum's engine uses it"]);
    assert_eq!(ask(&rig.lowers, None).code, 0);
    rig.unmount();
    wait_free(&rig.at("upper"));
    rig.assert_clean("unmounted");
}

#[test]
fn an_overlay_that_fuse_overlayfs_has_mounted_is_refused() {
    if !available(&["fuse-overlayfs"]) {
        return;
    }
    let Some(rig) = Rig::new() else { return };
    let merged = rig.at("merged");
    let mut mount = command("fuse-overlayfs", &["-o", &rig.options()]);
    let done = said(mount.arg(&merged).output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
    rig.scratch.adopt_mount(&merged);
    let place = merged.display().to_string();
    assert_refused(&ask(&rig.lowers, Some(&rig)), &["fuse-overlayfs", &place]);
    assert_refused(&ask(&[rig.at("upper")], None), &["fuse-overlayfs"]);
    assert_eq!(ask(&rig.lowers, None).code, 0);
    rig.unmount();
    rig.assert_clean("unmounted");
}

#[test]
fn only_a_changing_mount_program_is_in_the_way() {
    if !available(&["fuse-overlayfs"]) {
        return;
    }
    let Some(rig) = Rig::new() else { return };
    let merged = rig.at("merged");
    let mount = |options: &str| {
        let mut mount = command("fuse-overlayfs", &["-o", options]);
        let done = said(mount.arg(&merged).current_dir(&rig.base).output().unwrap());
        assert_eq!(done.code, 0, "{}", done.err);
        rig.scratch.adopt_mount(&merged);
    };
    // The server leaves the directory that these paths start from.
    mount("lowerdir=top:base,upperdir=upper,workdir=work");
    assert_refused(&ask(&rig.lowers, Some(&rig)), &["fuse-overlayfs"]);
    rig.unmount();
    rig.assert_clean("unmounted");
    mount("lowerdir=upper:base");
    let below = ask(&[rig.at("upper"), rig.at("base")], None);
    assert_eq!(below.code, 0, "{}", below.err);
    rig.unmount();
}

#[test]
fn what_is_no_overlay_is_misuse() {
    let Some(rig) = Rig::new() else { return };
    fs::write(rig.at("file"), "").unwrap();
    let base = rig.at("base").display().to_string();
    let run = |args: &[&str]| said(command(VELLUM, args).output().unwrap());
    for (args, says) in [
        (
            &["check", "--layers", "/no/such/layer"][..],
            "there is no layer",
        ),
        (
            &["check", "--layers", &format!("{base}:")],
            "empty layer name",
        ),
        (&["check", "--layers", &base, "--work", &base], "--upper"),
        (&["check", "--upper", &base], "--layers"),
        (
            &["check", "--layers", &base, "--heal"],
            "cannot be used with",
        ),
    ] {
        let done = run(args);
        assert_eq!(done.code, 2, "{args:?}: {}", done.err);
        assert!(done.err.contains(says), "{args:?}: {}", done.err);
    }
    // A colon in a name is written as in a mount's options.
    fs::create_dir(rig.at("a:b")).unwrap();
    let escaped = rig.at(r"a\:b").display().to_string();
    assert_eq!(run(&["check", "--layers", &escaped]).code, 0);
    let without = run(&[
        "check",
        "--layers",
        &base,
        "--upper",
        rig.at("upper").to_str().unwrap(),
    ]);
    assert_eq!(without.code, 0);
    assert!(without.err.contains("not checked: "), "{}", without.err);
}

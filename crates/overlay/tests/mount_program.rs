//! The mount program alone, without the rest of Vellum, called like fuse-overlayfs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use vellum_testkit::{Scratch, needs_root};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vellum-fuse-overlayfs");

fn program(args: &[&str], here: &Path) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(PROGRAM).args(args).current_dir(here);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_mount_program_alone_serves_a_union() {
    if !needs_root("mounting") {
        return;
    }
    let scratch = Scratch::new();
    for dir in ["upper", "work", "merged"] {
        scratch.dir(dir);
    }
    scratch.file("lower/file", "below\n");
    let options = "lowerdir=lower,upperdir=upper,workdir=work,shiny=1";
    let done = program(&["-o", options, "merged"], scratch.path());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let merged = scratch.join("merged");
    scratch.adopt_mount(&merged);
    let told = "fuse-overlayfs: unknown argument ignored: shiny=1\n";
    assert_eq!(text(&done.stderr), told);
    assert_eq!(fs::read_to_string(merged.join("file")).unwrap(), "below\n");
    fs::write(merged.join("file"), "above\n").unwrap();
    scratch.unmount(&merged);
    let upper = scratch.join("upper");
    let mut wait = Command::new("flock");
    assert!(wait.arg(&upper).arg("true").status().unwrap().success());
    assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "above\n");
    let below = scratch.join("lower/file");
    assert_eq!(fs::read_to_string(below).unwrap(), "below\n");
}

#[test]
fn the_mount_program_alone_explains_itself() {
    let here = std::env::temp_dir();
    let version = program(&["--version"], &here);
    assert!(text(&version.stdout).contains("provided by Vellum"));
    let help = program(&["--help"], &here);
    assert!(text(&help.stdout).starts_with("usage: "));
    for (args, code, says) in [
        (&["-o"][..], 2, "error: -o needs a value\nhint: usage: "),
        (
            &["-o", "upperdir=/x", "/"],
            2,
            "error: no lower layer is given\nhint: ",
        ),
        (
            &["-o", "lowerdir=/", "/no/such/place"],
            1,
            "error: cannot find /no/such/place\n  caused by: ",
        ),
    ] {
        let done = program(args, &here);
        assert_eq!(done.status.code(), Some(code), "{args:?}");
        assert!(
            text(&done.stderr).starts_with(says),
            "{}",
            text(&done.stderr)
        );
    }
}

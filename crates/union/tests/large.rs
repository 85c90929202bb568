//! The cost of a diff depends on the changes, not on the tree.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{ALL_ON, Rig, stack_of};
use vellum_testkit::fault;
use vellum_union::{Form, changes};

/// The environment variable with the directory of the layers `u0` and `l0`, for the measured
/// process.
const LAYERS: &str = "VELLUM_TEST_DIFF_OF";

/// Makes the same ten changes in a tree of `dirs` directories with `files` files each, and returns
/// how many changes the diff finds and how many system calls it takes, as strace counts them.
fn diff_of_ten(dirs: usize, files: usize) -> Option<(usize, usize)> {
    let rig = Rig::new(1, ALL_ON)?;
    let lower = &rig.lowers[0];
    for dir in 0..dirs {
        let dir = lower.join(format!("top/dir{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..files {
            fs::File::create(dir.join(format!("file{file}"))).unwrap();
        }
    }
    rig.mount();
    for change in 0..10 {
        let dir = rig.path(&format!("top/dir{}", change * 7));
        match change % 3 {
            0 => fs::write(dir.join("file5"), "changed").unwrap(),
            1 => fs::remove_file(dir.join("file6")).unwrap(),
            _ => fs::write(dir.join("new"), "new").unwrap(),
        }
    }
    rig.unmount();
    let found = changes(&rig.stack(), Form::Listing)
        .unwrap()
        .map(Result::unwrap)
        .count();
    let log = rig.scratch.file("calls", "");
    let measured = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_measured_process", "--include-ignored"])
        .env(LAYERS, rig.upper.parent().unwrap())
        .output()
        .unwrap();
    assert!(measured.status.success(), "{measured:?}");
    let calls = fs::read_to_string(&log).unwrap().lines().count();
    Some((found, calls))
}

/// With `VELLUM_SLOW=1` the larger tree has 1,000,000 files.
#[test]
fn a_diff_costs_what_was_changed() {
    if !fault::available() {
        return;
    }
    let slow = std::env::var_os("VELLUM_SLOW").is_some();
    let (dirs, files) = if slow { (1000, 1000) } else { (200, 100) };
    let (Some((small, few)), Some((large, many))) = (diff_of_ten(70, 10), diff_of_ten(dirs, files))
    else {
        return;
    };
    let expected = 1 + 10 + 10;
    assert_eq!(
        (small, large),
        (expected, expected),
        "top, the directories, the files"
    );
    eprintln!(
        "700 files: {few} system calls, {} files: {many}",
        dirs * files
    );
    // The same changes; listing the larger lower directories would take far more.
    assert!(many <= few + few / 10, "{few} calls, {many} calls");
}

/// Not a separate test: it is run under strace.
#[test]
fn the_measured_process() {
    let Some(layers) = std::env::var_os(LAYERS) else {
        return;
    };
    let at = |name: &str| Path::new(&layers).join(OsStr::new(name));
    let dialect = vellum_union::Dialect::kernel(vellum_format::Prefix::Trusted);
    let stack = stack_of(&[&at("u0"), &at("l0")], &[], dialect);
    let found = changes(&stack, Form::Listing)
        .unwrap()
        .map(Result::unwrap)
        .count();
    assert!(found > 0);
}

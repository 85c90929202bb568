//! The standard POSIX file system test suite, on a mount and on the bare file system below it.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::*;
use vellum_testkit::{clients, untested};

const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
"#;

fn find() -> Option<PathBuf> {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let installed = home.join(".cargo/bin/pjdfstest");
    clients::find("pjdfstest").or_else(|| installed.exists().then_some(installed))
}

/// Returns the tests that fail below `dir`, and how many passed.
fn failures(program: &Path, settings: &Path, dir: &Path) -> (BTreeSet<String>, usize) {
    fs::create_dir(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("timeout")
        .args(["-k", "5", "300"])
        .arg(program)
        .arg("-c")
        .arg(settings)
        .arg("-p")
        .arg(dir)
        .env("RUST_BACKTRACE", "0")
        .current_dir(dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = |result: &'static str| {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(move |words| words.len() == 2 && words[1] == result)
            .map(|words| words[0].to_owned())
    };
    let passed = named("ok").count();
    assert!(passed > 100, "the suite did not run: {text}");
    (named("FAILED").collect(), passed)
}

#[test]
fn a_mount_passes_pjdfstest_as_the_bare_file_system_does() {
    let Some(program) = find() else {
        untested("pjdfstest", "it is not installed (cargo install pjdfstest)");
        return;
    };
    as_root(|world| {
        world.option("allow_other");
        for place in [world.beside(""), world.lower(""), world.upper("")] {
            fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let settings = world.beside("pjdfstest.toml");
        fs::write(&settings, SETTINGS).unwrap();
        let (bare, passed_bare) = failures(&program, &settings, &world.beside("bare"));
        world.mount();
        let (ours, passed) = failures(&program, &settings, &world.at("suite"));
        eprintln!("passed: {passed_bare} on the bare file system, {passed} on the mount");
        // These create the device 0:0, which is a whiteout here.
        let new: Vec<_> = ours
            .difference(&bare)
            .filter(|name| !name.ends_with("::char"))
            .collect();
        assert!(new.is_empty(), "these fail on the mount alone: {new:#?}");
    });
}

//! Trees made to do harm: the check ends, stays in the layers, and names what it could not read.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{Mode, mkdirat};
use vellum_testkit::{FsKind, PlainUser, Scratch, Tree, needs_root, untested};

use crate::rig::{Rig, errors, set};
use crate::support::layered::{VELLUM, command};
use crate::support::said;

/// Creates `depth` directories within each other.
fn dig(root: &Path, depth: usize) {
    let mut at = rustix::fs::open(root, rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    }
    let last = rustix::fs::openat(
        &at,
        "file",
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
        Mode::from_raw_mode(0o600),
    );
    rustix::fs::fsetxattr(
        last.unwrap(),
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

#[test]
fn deep_and_wide_trees_are_checked() {
    if !needs_root("trusted attributes") {
        return;
    }
    let scratch = Scratch::new();
    let base = match scratch.file_system("fs", FsKind::Ext4, 200) {
        Ok(base) => base,
        Err(why) => return untested("checks of overlays", why),
    };
    let rig = Rig::below(scratch, base);
    // Both layers, so that the deep directories are merged.
    dig(&rig.at("upper"), 1000);
    dig(&rig.at("base"), 3000);
    fs::create_dir(rig.at("upper/wide")).unwrap();
    for number in 0..10_000 {
        fs::write(rig.at(format!("upper/wide/{number}")), "").unwrap();
    }
    set(&rig.at("upper/wide/7777"), "trusted.overlay.impure", b"y");
    let found = errors(rig.check());
    let aspects: Vec<_> = found
        .iter()
        .map(|wrong| (wrong.role, wrong.aspect))
        .collect();
    let wanted = [
        ("upper", "opaque"),
        ("upper", "impure"),
        ("lower", "opaque"),
    ];
    assert_eq!(aspects, wanted, "{found:#?}");
    assert_eq!(found[0].path.components().count(), 1 + 1000 + 1);
    assert_eq!(found[1].path, Path::new("/wide/7777"));
    assert_eq!(found[2].path.components().count(), 1 + 3000 + 1);
    let removed = command("rm", &["-rf", "--"])
        .args([rig.at("upper/d"), rig.at("base/d")])
        .status();
    assert!(removed.unwrap().success());
}

#[test]
fn links_and_odd_names_lead_nowhere() {
    let Some(rig) = Rig::new() else { return };
    symlink("loop", rig.at("upper/loop")).unwrap();
    symlink("/", rig.at("upper/root")).unwrap();
    symlink("../base", rig.at("upper/below")).unwrap();
    symlink("self", rig.at("base/self")).unwrap();
    let odd = OsString::from_vec(b"\xff\n\\\"".to_vec());
    fs::create_dir(rig.at("upper").join(&odd)).unwrap();
    set(
        &rig.at("upper").join(&odd),
        "trusted.overlay.redirect",
        b"/root/etc",
    );
    fs::create_dir(rig.at("upper/through")).unwrap();
    set(
        &rig.at("upper/through"),
        "trusted.overlay.redirect",
        b"/self",
    );
    fs::create_dir(rig.at("upper/ring")).unwrap();
    fs::create_dir(rig.at("top/ring")).unwrap();
    fs::create_dir(rig.at("top/other")).unwrap();
    set(&rig.at("upper/ring"), "trusted.overlay.redirect", b"/other");
    set(&rig.at("top/other"), "trusted.overlay.redirect", b"/ring");
    let found = errors(rig.check());
    let mut paths: Vec<_> = found
        .iter()
        .map(|wrong| (wrong.role, wrong.path.clone(), wrong.aspect))
        .collect();
    paths.sort();
    let odd = Path::new("/").join(odd);
    let wanted = [
        ("lower", "/other".into(), "redirect"),
        ("upper", "/through".into(), "redirect"),
        ("upper", odd, "redirect"),
    ];
    assert_eq!(paths, wanted, "{found:#?}");
}

#[test]
fn attributes_of_64_kib_are_read() {
    let Some(rig) = Rig::new() else { return };
    // ext4 has no room for them.
    let base = match rig.scratch.file_system("large", FsKind::Xfs, 64) {
        Ok(base) => base,
        Err(why) => return untested("large attributes", why),
    };
    let rig = Rig::below(Scratch::new(), base);
    let value = vec![b'x'; 65_536];
    fs::create_dir(rig.at("upper/dir")).unwrap();
    fs::write(rig.at("upper/file"), "").unwrap();
    set(&rig.at("upper/dir"), "trusted.overlay.redirect", &value);
    set(&rig.at("upper/dir"), "trusted.overlay.opaque", &value);
    set(&rig.at("upper/file"), "trusted.overlay.origin", &value);
    set(&rig.at("upper/file"), "trusted.overlay.metacopy", &value);
    set(&rig.at("upper/file"), "user.harmless", &value);
    let found = errors(rig.check());
    let aspects: Vec<_> = found.iter().map(|wrong| wrong.aspect).collect();
    for aspect in ["redirect", "opaque", "origin", "metacopy"] {
        assert!(aspects.contains(&aspect), "{aspect}: {found:#?}");
    }
    let longest = found.iter().map(|wrong| wrong.line().len()).max();
    assert!(longest < Some(1000), "{found:#?}");
}

#[test]
fn what_a_plain_user_may_not_read_is_a_finding() {
    if !needs_root("working as another user") {
        return;
    }
    let scratch = Scratch::new();
    let Some(user) = PlainUser::with_one_id(&scratch) else {
        return;
    };
    let base = scratch.dir("layers");
    let rig = Rig::below(scratch, base.clone());
    fs::write(rig.at("base/file"), "").unwrap();
    for dir in ["upper/open", "upper/shut/inner"] {
        fs::create_dir_all(rig.at(dir)).unwrap();
    }
    // Root's: the user may neither list it nor take it over.
    fs::set_permissions(rig.at("upper/shut"), fs::Permissions::from_mode(0o700)).unwrap();
    set(&rig.at("upper/open"), "user.overlay.opaque", b"?");
    let program = user.borrow_program(Path::new(VELLUM));
    let mut check = user.command(&program);
    let at = |name: &str| rig.at(name).display().to_string();
    let lowers = format!("{}:{}", at("top"), at("base"));
    check.args(["check", "--json", "--layers", &lowers]);
    check.args(["--upper", &at("upper"), "--work", &at("work")]);
    let done = said(check.stdin(Stdio::null()).output().unwrap());
    assert_eq!(done.code, 1, "{}{}", done.out, done.err);
    assert!(done.err.starts_with("2 errors found"), "{}", done.err);
    // The layers are root's, so there may be more that this user can't see.
    assert!(done.out.contains("trusted.overlay.*"), "{}", done.out);
    let found: Vec<serde_json::Value> = serde_json::from_str(&done.out).unwrap();
    let errors: Vec<_> = found
        .iter()
        .filter(|wrong| wrong["severity"] == "error")
        .collect();
    let paths: Vec<_> = errors
        .iter()
        .map(|wrong| (&wrong["path"], &wrong["aspect"]))
        .collect();
    assert_eq!(paths.len(), 2, "{}", done.out);
    assert_eq!(
        (paths[0].0, paths[0].1),
        (&"/open".into(), &"opaque".into())
    );
    assert_eq!((paths[1].0, paths[1].1), (&"/shut".into(), &"read".into()));
}

#[test]
fn a_check_changes_nothing() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir_all(rig.at("base/dir/inner")).unwrap();
    fs::write(rig.at("base/file"), "content").unwrap();
    fs::hard_link(rig.at("base/file"), rig.at("base/twin")).unwrap();
    let merged = rig
        .mount(&[("index", "on"), ("redirect_dir", "on")])
        .unwrap();
    fs::rename(merged.join("dir"), merged.join("moved")).unwrap();
    fs::write(merged.join("file"), "changed").unwrap();
    rig.unmount();
    set(
        &rig.at("upper/moved"),
        "trusted.overlay.redirect",
        b"/no/where",
    );
    fs::create_dir_all(rig.at("staging/incompat/vellum-open")).unwrap();
    fs::write(rig.at("staging/#3f"), "half").unwrap();
    let look = || {
        ["top", "base", "upper", "work"].map(|name| {
            let tree = Tree::read(&rig.at(name)).unwrap();
            let times = tree.entries.keys().map(|path| {
                let found = rig.at(name).join(path).symlink_metadata().unwrap();
                (
                    path.clone(),
                    found.ctime(),
                    found.ctime_nsec(),
                    found.atime_nsec(),
                )
            });
            (times.collect::<Vec<_>>(), tree)
        })
    };
    // Access times follow the reading of the pictures themselves, so they are taken twice.
    let _ = look();
    let before = look();
    assert!(!errors(rig.check()).is_empty());
    assert!(before == look(), "something has changed");
}

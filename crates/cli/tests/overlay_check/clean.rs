//! Overlays that nothing has damaged.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::clients::available;
use vellum_testkit::{FsKind, PlainUser, Rng, Scratch, untested};

use crate::rig::{Rig, errors, get, index};
use crate::support::layered::{VELLUM, command, wait_free};
use crate::support::said;

/// How often each random test is repeated.
fn rounds(usual: usize, slow: usize) -> usize {
    match std::env::var_os("VELLUM_SLOW") {
        Some(_) => slow,
        None => usual,
    }
}

/// The features of the kernel's overlay, on and off.
const FEATURES: &[&[(&str, &str)]] = &[
    &[
        ("redirect_dir", "on"),
        ("index", "on"),
        ("metacopy", "on"),
        ("xino", "on"),
    ],
    &[
        ("redirect_dir", "nofollow"),
        ("index", "off"),
        ("metacopy", "off"),
        ("xino", "off"),
    ],
    &[("redirect_dir", "on"), ("index", "off"), ("metacopy", "on")],
    &[("redirect_dir", "on"), ("index", "on"), ("metacopy", "off")],
    &[("index", "on"), ("nfs_export", "on")],
    &[("userxattr", "")],
];

/// Fills the lower layers: the one at the bottom with hard links, the next as an overlay's upper.
fn lowers(rng: &mut Rng, rig: &Rig, features: &[(&str, &str)]) {
    grow(rng, &rig.at("base"), 12);
    let links = Churn {
        trusted_xattrs: false,
        ..Churn::ALL
    };
    links.run(rng, &rig.at("base"), 10);
    if !rig.at("base").is_dir() {
        // Once it was empty, the directory itself was all there was left to change.
        let _ = fs::remove_file(rig.at("base"));
        fs::create_dir(rig.at("base")).unwrap();
    }
    let below = Rig {
        scratch: Scratch::new(),
        base: rig.base.clone(),
        lowers: vec![rig.at("base")],
        user_xattr: false,
    };
    let merged = below.mount(features).unwrap();
    churn(features).run(rng, &merged, 12);
    below.unmount();
    // The former upper is the top layer of the next overlay.
    for (from, to) in [("top", "old"), ("upper", "top"), ("old", "upper")] {
        fs::rename(rig.at(from), rig.at(to)).unwrap();
    }
    fs::remove_dir_all(rig.at("work")).unwrap();
    fs::create_dir(rig.at("work")).unwrap();
}

fn churn(features: &[(&str, &str)]) -> Churn {
    Churn {
        // The kernel escapes marks that a user sets only in its own namespace.
        trusted_xattrs: features != [("userxattr", "")],
        ..Churn::ALL
    }
}

fn empty(rig: &Rig) {
    for name in ["top", "base", "upper", "work"] {
        fs::remove_dir_all(rig.at(name)).unwrap();
        fs::create_dir(rig.at(name)).unwrap();
    }
}

#[test]
fn what_the_kernel_wrote_is_found_clean() {
    // An unmount syncs the upper's file system: on tmpfs that takes no time.
    let (Some(on_disk), Some(in_memory)) = (Rig::new(), Rig::on(FsKind::Tmpfs)) else {
        return;
    };
    let mut rng = Rng::for_test("check of the kernel's overlays");
    let begun = Instant::now();
    let count = rounds(204, 5000);
    let mut seen = Seen::default();
    for round in 0..count {
        let features = FEATURES[round % FEATURES.len()];
        let rig = match round % 4 {
            0 => &on_disk,
            _ => &in_memory,
        };
        empty(rig);
        lowers(&mut rng, rig, features);
        for part in 0..1 + rng.below(2) {
            let merged = rig.mount(features).unwrap();
            churn(features).run(&mut rng, &merged, 20);
            rig.unmount();
            rig.assert_clean(&format!("round {round}.{part}, {features:?}"));
        }
        seen.count(rig);
    }
    println!("{count} overlays in {:?}: {seen:?}", begun.elapsed());
    assert!(seen.redirects > 0 && seen.metacopies > 0 && seen.indexed > 0 && seen.origins > 0);
}

/// What the random overlays have: a check of nothing proves nothing.
#[derive(Debug, Default)]
struct Seen {
    redirects: usize,
    metacopies: usize,
    origins: usize,
    indexed: usize,
}

impl Seen {
    fn count(&mut self, rig: &Rig) {
        let mut left = vec![rig.at("upper")];
        while let Some(path) = left.pop() {
            let has = |mark: &str| {
                let names = ["trusted", "user"].map(|space| format!("{space}.overlay.{mark}"));
                usize::from(names.iter().any(|name| get(&path, name).is_some()))
            };
            self.redirects += has("redirect");
            self.metacopies += has("metacopy");
            self.origins += has("origin");
            if path.symlink_metadata().unwrap().is_dir() {
                let entries = fs::read_dir(&path).unwrap();
                left.extend(entries.map(|entry| entry.unwrap().path()));
            }
        }
        if rig.at("work/index").exists() {
            self.indexed += index(rig).len();
        }
    }
}

#[test]
fn what_fuse_overlayfs_wrote_is_found_clean() {
    if !available(&["fuse-overlayfs"]) {
        return;
    }
    let Some(rig) = Rig::new() else { return };
    let mut rng = Rng::for_test("check of fuse-overlayfs's overlays");
    for round in 0..rounds(12, 200) {
        empty(&rig);
        grow(&mut rng, &rig.at("base"), 15);
        grow(&mut rng, &rig.at("top"), 8);
        let mut mount = command("fuse-overlayfs", &["-o"]);
        mount.arg(rig.options()).arg(rig.at("merged"));
        // Half of the rounds without devices.
        if round % 2 == 1 {
            mount.env("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1");
        }
        let done = said(mount.output().unwrap());
        assert_eq!(done.code, 0, "{}", done.err);
        rig.scratch.adopt_mount(&rig.at("merged"));
        let plain = Churn {
            trusted_xattrs: false,
            ..Churn::ALL
        };
        plain.run(&mut rng, &rig.at("merged"), 25);
        rig.unmount();
        rig.assert_clean(&format!("round {round}"));
    }
}

#[test]
fn what_vellums_engine_wrote_is_found_clean() {
    let Some(rig) = Rig::new() else { return };
    let mut rng = Rng::for_test("check of the engine's overlays");
    let ways = [
        "",
        ",userxattr",
        ",redirect_dir=off,metacopy=off,index=off",
        ",wh=whiteouts",
        ",blocks=4k",
    ];
    for round in 0..rounds(15, 300) {
        let way = ways[round % ways.len()];
        empty(&rig);
        grow(&mut rng, &rig.at("base"), 15);
        fs::write(rig.at("base/big"), vec![b'x'; 200_000]).unwrap();
        fs::hard_link(rig.at("base/big"), rig.at("base/twin")).unwrap();
        grow(&mut rng, &rig.at("top"), 8);
        for part in 0..1 + rng.below(2) {
            let merged = rig.at("merged");
            let mut mount = command(VELLUM, &["overlay", "-o"]);
            mount.arg(format!("{}{way}", rig.options())).arg(&merged);
            let done = said(mount.output().unwrap());
            assert_eq!(done.code, 0, "{way}: {}", done.err);
            rig.scratch.adopt_mount(&merged);
            Churn {
                trusted_xattrs: !way.contains("userxattr"),
                ..Churn::ALL
            }
            .run(&mut rng, &merged, 25);
            rig.unmount();
            wait_free(&rig.at("upper"));
            rig.assert_clean(&format!("round {round}.{part}, {way}"));
        }
    }
}

/// What a plain user does in a namespace, with everything that leaves marks there.
const IN_A_NAMESPACE: &str = "
    set -e; cd \"$1\"
    mkdir -p base/dir/inner top upper work merged
    echo deep > base/dir/inner/file; echo soon > base/gone; echo one > base/one
    ln base/one base/two; mkdir base/old; echo x > base/old/x
    unshare --user --map-root-user --mount sh -ec '
        mount -t overlay overlay -o lowerdir=top:base,upperdir=upper,workdir=work,userxattr merged
        cd merged
        rm gone; echo more >> one; rm -r old; mkdir old; chmod 700 dir/inner; ln dir/inner/file linked
        mv dir/inner/file elsewhere; echo new > new
        cd ..; umount merged
    '";

#[test]
fn a_plain_users_overlay_is_found_clean_by_the_user_and_by_root() {
    if !vellum_testkit::needs_root("working as another user") {
        return;
    }
    let scratch = Scratch::new();
    let Some(user) = PlainUser::with_one_id(&scratch) else {
        return;
    };
    let dir = scratch.dir("of-the-user");
    std::os::unix::fs::chown(&dir, Some(user.id), Some(user.id)).unwrap();
    let mut run = user.command("sh");
    run.args(["-c", IN_A_NAMESPACE, "sh"]).arg(&dir);
    let done = said(run.output().unwrap());
    if done.code != 0 && done.err.contains("mount") {
        return untested("overlays of plain users", done.err);
    }
    assert_eq!(done.code, 0, "{}", done.err);
    let mut rig = Rig::below(scratch, dir.clone());
    rig.assert_clean("by root");
    // The marks are found without being told which.
    assert!(get(&dir.join("upper/old"), "user.overlay.opaque").is_some());
    crate::rig::set(&dir.join("upper/old"), "user.overlay.opaque", b"?");
    let found = errors(rig.check());
    assert_eq!(found.len(), 1, "{found:#?}");
    crate::rig::set(&dir.join("upper/old"), "user.overlay.opaque", b"y");
    rig.user_xattr = true;
    rig.assert_clean("by root, who says which marks");
    let program = user.borrow_program(Path::new(VELLUM));
    let mut check = user.command(&program);
    let at = |name: &str| rig.at(name).display().to_string();
    let lowers = format!("{}:{}", at("top"), at("base"));
    check.args(["check", "--layers", &lowers]);
    check.args(["--upper", &at("upper"), "--work", &at("work")]);
    let done = said(check.stdin(Stdio::null()).output().unwrap());
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert!(!done.out.contains("error: "), "{}", done.out);
}

#[test]
fn layers_without_an_upper_and_data_only_layers_are_checked() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.at("data")).unwrap();
    fs::write(rig.at("data/blob"), "content").unwrap();
    fs::write(rig.at("top/file"), "").unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(rig.at("top/file"))
        .unwrap()
        .set_len(7)
        .unwrap();
    crate::rig::set(&rig.at("top/file"), "trusted.overlay.metacopy", b"");
    crate::rig::set(&rig.at("top/file"), "trusted.overlay.redirect", b"/blob");
    let list = format!(
        "{}:{}::{}",
        rig.at("top").display(),
        rig.at("base").display(),
        rig.at("data").display()
    );
    let said_by = |list: &str| {
        let mut check = command(VELLUM, &["check", "--json", "--layers", list]);
        said(check.output().unwrap())
    };
    let clean = said_by(&list);
    assert_eq!(
        (clean.code, clean.out.as_str()),
        (0, "[]\n"),
        "{}",
        clean.err
    );
    let without = said_by(list.split("::").next().unwrap());
    assert_eq!(without.code, 1, "{}", without.err);
    let found: serde_json::Value = serde_json::from_str(&without.out).unwrap();
    assert_eq!(found[0]["path"], "/file");
    assert_eq!(found[0]["aspect"], "metacopy");
    assert_eq!(found[0]["severity"], "error");
    assert_eq!(found[0]["layer"], rig.at("top").display().to_string());
    assert_eq!(found[0]["what"], rig.at("top/file").display().to_string());
}

#[test]
fn clean_overlays_are_clean_on_every_file_system() {
    if !vellum_testkit::needs_root("mounting file systems") {
        return;
    }
    let mut rng = Rng::for_test("check on every file system");
    for kind in [FsKind::Xfs, FsKind::Btrfs, FsKind::Tmpfs] {
        let scratch = Scratch::new();
        let base = match scratch.file_system("fs", kind, 64) {
            Ok(base) => base,
            Err(why) => {
                untested("checks of overlays", format!("{kind:?}: {why}"));
                continue;
            }
        };
        let rig = Rig::below(scratch, base);
        for features in FEATURES {
            empty(&rig);
            grow(&mut rng, &rig.at("base"), 20);
            let merged = match rig.mount(features) {
                Ok(merged) => merged,
                Err(why) => {
                    untested(
                        "checks of overlays",
                        format!("{kind:?}, {features:?}: {why}"),
                    );
                    continue;
                }
            };
            churn(features).run(&mut rng, &merged, 40);
            rig.unmount();
            rig.assert_clean(&format!("{kind:?}, {features:?}"));
        }
    }
}

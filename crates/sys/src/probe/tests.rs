//! Facts about real file systems, created in loop files where necessary.

use std::process::Command;

use super::*;
use crate::testing::{Scratch, can_mount};

/// Creates a file system in a file and mounts it; `None`, with a message, if its tools or kernel
/// support are missing.
fn loop_fs(
    scratch: &Scratch,
    kind: &str,
    size_mib: u64,
    mkfs: &[&str],
    options: &str,
) -> Option<std::path::PathBuf> {
    let name = crate::random::hex(8);
    let image = scratch.path().join(format!("{name}.img"));
    std::fs::File::create(&image)
        .unwrap()
        .set_len(size_mib << 20)
        .unwrap();
    let place = scratch.path().join(&name);
    std::fs::create_dir(&place).unwrap();
    let run = |command: &mut Command| -> Option<()> {
        match command.output() {
            Ok(out) if out.status.success() => Some(()),
            Ok(out) => {
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                vellum_testkit::untested(
                    &format!("{kind} {options}"),
                    said.lines().next().unwrap_or_default(),
                );
                None
            }
            Err(e) => {
                vellum_testkit::untested(kind, format!("{command:?}: {e}"));
                None
            }
        }
    };
    run(Command::new(format!("mkfs.{kind}")).args(mkfs).arg(&image))?;
    run(Command::new("mount")
        .args(["-t", kind, "-o", &format!("loop,{options}")])
        .arg(&image)
        .arg(&place))?;
    Some(place)
}

#[test]
fn probing_leaves_nothing_behind() {
    let tmp = tempfile::tempdir().unwrap();
    let facts = directory(tmp.path()).unwrap();
    assert!(facts.d_type && facts.unnamed_files, "{facts:?}");
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    let table = crate::mountinfo::read().unwrap();
    assert!(table.beneath(tmp.path()).is_empty());
    assert!(
        directory(&tmp.path().join("missing"))
            .unwrap_err()
            .is_not_found()
    );
}

#[test]
fn the_kernel_says_how_layers_can_be_given() {
    let Some(scratch) = can_mount() else { return };
    let facts = kernel();
    assert!(facts.may_mount && facts.has_overlay);
    // A mount must confirm what the probe says.
    for (claimed, method) in [
        (facts.has_layer_fds, crate::mount::Method::LayerFds),
        (facts.has_lowerdir_plus, crate::mount::Method::LowerdirPaths),
    ] {
        let lowers = ["a", "b"].map(|name| scratch.path().join(name));
        for lower in &lowers {
            std::fs::create_dir_all(lower).unwrap();
        }
        let mount = crate::mount::OverlayMount {
            lowers: lowers.into(),
            ..Default::default()
        };
        let found = crate::mount::overlay_detached(&mount, scratch.path(), &method);
        assert_eq!(found.is_ok(), claimed, "{method:?}: {found:?}");
    }
}

#[test]
fn facts_about_the_local_file_system_hold() {
    let Some(scratch) = can_mount() else { return };
    let facts = directory(scratch.path()).unwrap();
    assert!(facts.overlay.works(), "{facts:?}");
    assert!(!facts.overlay.is_nested);
    assert!(
        facts.overlay.redirect_dir && facts.overlay.metacopy && facts.overlay.index,
        "{facts:?}"
    );
    assert!(facts.whiteouts && facts.trusted_xattrs && facts.user_xattrs);
}

#[test]
fn an_overlay_cant_hold_an_upper() {
    let Some(scratch) = can_mount() else { return };
    let made = ["lower", "base", "upper", "work", "merged"].map(|name| scratch.path().join(name));
    for dir in &made {
        std::fs::create_dir(dir).unwrap();
    }
    let mount = crate::mount::OverlayMount {
        lowers: made[..2].to_vec(),
        upper: Some(made[2].clone()),
        work: Some(made[3].clone()),
        ..Default::default()
    };
    crate::mount::overlay(
        &mount,
        &made[4],
        &crate::mount::Method::OptionPage {
            home: scratch.path().into(),
        },
    )
    .unwrap();
    let facts = directory(&made[4]).unwrap();
    assert_eq!(facts.fs_name, "overlayfs");
    assert!(facts.overlay.is_nested);
    assert!(
        !facts.overlay.trusted,
        "this kernel accepts an overlay as upper: the plan may be widened"
    );
    assert!(!facts.overlay.refusal.is_empty() || facts.overlay.userxattr);
}

#[test]
fn xfs_clones_and_keeps_project_quotas() {
    let Some(scratch) = can_mount() else { return };
    let Some(plain) = loop_fs(&scratch, "xfs", 320, &["-q"], "rw") else {
        return;
    };
    let facts = directory(&plain).unwrap();
    assert_eq!(
        (facts.fs_name.as_str(), facts.project_quota),
        ("xfs", ProjectQuota::Off)
    );
    assert!(
        facts.reflink && facts.d_type && facts.overlay.works(),
        "{facts:?}"
    );
    let Some(quota) = loop_fs(&scratch, "xfs", 320, &["-q"], "prjquota") else {
        return;
    };
    let facts = directory(&quota).unwrap();
    assert_eq!(facts.project_quota, ProjectQuota::Enforced);
    limits_hold(&quota);
}

#[test]
fn ext4_keeps_project_quotas_too() {
    let Some(scratch) = can_mount() else { return };
    let made = ["-q", "-O", "project,quota", "-E", "quotatype=prjquota"];
    let Some(quota) = loop_fs(&scratch, "ext4", 64, &made, "prjquota") else {
        return;
    };
    let facts = directory(&quota).unwrap();
    assert_eq!(
        (facts.fs_name.as_str(), facts.project_quota),
        ("extfs", ProjectQuota::Enforced)
    );
    limits_hold(&quota);
}

/// ext4 exempts processes with CAP_SYS_RESOURCE, so this thread gives it up first.
#[track_caller]
fn limits_hold(place: &Path) {
    crate::quota::hold().unwrap();
    assert!(crate::quota::is_held());
    let dir = Dir::open(place).unwrap();
    dir.mkdir("limited", 0o700).unwrap();
    let limited = dir.open_dir("limited").unwrap();
    crate::quota::set_project(&limited, 77).unwrap();
    crate::quota::set_limit(&limited, 77, 4 << 20, 0).unwrap();
    assert_eq!(crate::quota::project(&limited).unwrap(), 77);
    limited.mkdir("sub", 0o700).unwrap();
    assert_eq!(
        crate::quota::project(limited.open_dir("sub").unwrap()).unwrap(),
        77
    );
    std::fs::write(place.join("limited/sub/fits"), vec![1; 2 << 20]).unwrap();
    let e = std::fs::write(place.join("limited/sub/large"), vec![1; 8 << 20]).unwrap_err();
    let e = Error::new("write", "large", e);
    assert!(e.is_no_space(), "{e}: {}", e.source);
    std::fs::write(place.join("free"), vec![1; 8 << 20]).unwrap();
    let usage = crate::quota::usage(&dir, 77).unwrap();
    assert_eq!(usage.limit_bytes, 4 << 20);
    assert!(
        usage.used_bytes >= 2 << 20 && usage.used_inodes >= 3,
        "{usage:?}"
    );
    assert_eq!(
        crate::quota::usage(&dir, 4_000_000).unwrap(),
        Default::default()
    );
}

#[test]
fn btrfs_clones() {
    let Some(scratch) = can_mount() else { return };
    let Some(place) = loop_fs(&scratch, "btrfs", 128, &["-q"], "rw") else {
        return;
    };
    let facts = directory(&place).unwrap();
    assert_eq!(facts.fs_name, "btrfs");
    assert!(
        facts.reflink && facts.d_type && facts.overlay.works(),
        "{facts:?}"
    );
    assert_eq!(facts.project_quota, ProjectQuota::Off);
}

#[test]
fn ext4_without_filetype_has_no_d_type() {
    let Some(scratch) = can_mount() else { return };
    let made = ["-q", "-O", "^filetype"];
    let Some(place) = loop_fs(&scratch, "ext4", 32, &made, "rw") else {
        return;
    };
    let facts = directory(&place).unwrap();
    assert!(!facts.d_type, "{facts:?}");
    let dir = Dir::open(&place).unwrap();
    dir.mkdir("d", 0o700).unwrap();
    dir.symlink("d", "l").unwrap();
    let kinds: Vec<_> = dir
        .entries()
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.name, e.kind))
        .collect();
    assert!(
        kinds.contains(&("l".into(), FileKind::Symlink))
            && kinds.contains(&("d".into(), FileKind::Dir))
    );
    assert_eq!(dir.remove_tree("d").unwrap(), crate::rooted::Removal::Gone);
}

#[test]
fn tmpfs_can_hold_layers() {
    let Some(scratch) = can_mount() else { return };
    let place = scratch.path().join("tmpfs");
    std::fs::create_dir(&place).unwrap();
    crate::mount::filesystem("tmpfs", Path::new("none"), &place, c"size=4m").unwrap();
    let facts = directory(&place).unwrap();
    assert_eq!(facts.fs_name, "tmpfs");
    assert!(
        facts.d_type && facts.overlay.trusted && !facts.reflink,
        "{facts:?}"
    );
}

#[test]
fn probing_is_cheap() {
    let tmp = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    directory(tmp.path()).unwrap();
    let took = start.elapsed();
    assert!(took.as_millis() < 2000, "{took:?}");
    eprintln!("directory probe: {took:?}");
    let start = std::time::Instant::now();
    kernel();
    eprintln!("kernel probe: {:?}", start.elapsed());
}

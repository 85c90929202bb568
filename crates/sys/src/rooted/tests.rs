//! Operations on names in a directory, on the file system the tests run on.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::attributes::chmod_through_path;
use super::*;
use crate::Timespec;

fn temp() -> (tempfile::TempDir, Dir) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Dir::open(tmp.path()).unwrap();
    (tmp, dir)
}

#[test]
fn names_that_are_paths_are_refused_before_the_kernel_sees_them() {
    let (_tmp, dir) = temp();
    for bad in ["", ".", "..", "a/b", "/", "a/"] {
        assert!(dir.stat(bad).unwrap_err().is(Errno::INVAL), "{bad:?}");
        assert!(dir.mkdir(bad, 0o700).is_err(), "{bad:?}");
        assert!(dir.create_file(bad, 0o600).is_err(), "{bad:?}");
        assert!(dir.remove_tree(bad).is_err(), "{bad:?}");
        assert!(dir.symlink("x", bad).is_err(), "{bad:?}");
        assert!(
            dir.rename("x", &dir, bad, RenameFlags::empty()).is_err(),
            "{bad:?}"
        );
    }
    assert!(dir.stat(OsStr::from_bytes(b"a\0b")).is_err());
}

#[test]
fn lookups_do_not_leave_the_directory() {
    let (tmp, dir) = temp();
    dir.create_dir_all("root/sub", 0o755).unwrap();
    let root = dir.open_dir("root").unwrap();
    std::fs::write(tmp.path().join("secret"), "s").unwrap();
    root.symlink("..", "up").unwrap();
    root.symlink("/etc", "abs").unwrap();
    root.symlink("sub", "inside").unwrap();
    for path in ["..", "../root", "sub/../..", "/etc", "/"] {
        assert!(root.open_dir(path).unwrap_err().is_cross_device(), "{path}");
    }
    for path in ["up", "abs", "inside", "inside/x"] {
        assert!(root.open_dir(path).is_err(), "{path}");
    }
    assert!(root.open_file("up/secret").is_err());
    assert!(root.open_file("../secret").is_err());
    root.open_dir("sub/..").unwrap();
    root.open_dir("").unwrap();
}

#[test]
fn attributes_are_set_on_the_name_itself() {
    let (tmp, dir) = temp();
    dir.create_file("f", 0o600).unwrap();
    dir.symlink("f", "l").unwrap();
    dir.set_mode("f", 0o4751).unwrap();
    assert_eq!(dir.stat("f").unwrap().mode, 0o4751);
    assert!(dir.set_mode("l", 0o777).is_err());
    // What kernels before 6.6 do.
    chmod_through_path(&dir, Path::new("f"), 0o4711).unwrap();
    assert_eq!(dir.stat("f").unwrap().mode, 0o4711);
    assert!(chmod_through_path(&dir, Path::new("l"), 0o777).is_err());
    let then = Timespec::new(-5, 123_456_789);
    dir.set_times("l", None, Some(then)).unwrap();
    assert_eq!(dir.stat("l").unwrap().mtime, then);
    assert_ne!(dir.stat("f").unwrap().mtime, then);
    let fd = dir.open_path("f").unwrap();
    set_mode_fd(&fd, 0o640).unwrap();
    set_times_fd(&fd, Some(then), Some(then)).unwrap();
    let stat = crate::stat::stat_fd(&fd).unwrap();
    assert_eq!((stat.mode, stat.mtime, stat.atime), (0o640, then, then));
    assert!(
        dir.set_owner("f", u32::MAX, 0)
            .unwrap_err()
            .is(Errno::INVAL)
    );
    let meta = std::fs::metadata(tmp.path().join("f")).unwrap();
    assert_eq!(
        (stat.ino, stat.dev, stat.uid),
        (meta.ino(), meta.dev(), meta.uid())
    );
    if rustix::process::geteuid().is_root() {
        dir.set_owner("l", 3_000_000_000, 7).unwrap();
        assert_eq!(dir.stat("l").unwrap().uid, 3_000_000_000);
        assert_eq!(dir.stat("f").unwrap().uid, 0);
        set_owner_fd(&fd, 1, 2).unwrap();
        assert_eq!(dir.stat("f").unwrap().gid, 2);
    }
}

#[test]
fn a_fifo_does_not_block_and_is_not_a_file() {
    let (_tmp, dir) = temp();
    dir.mknod("p", FileKind::Fifo, 0o600, (0, 0)).unwrap();
    assert!(dir.open_file("p").unwrap_err().is(Errno::INVAL));
    dir.symlink("p", "l").unwrap();
    assert!(dir.open_file("l").is_err());
    assert_eq!(dir.stat("p").unwrap().kind, FileKind::Fifo);
}

#[test]
fn unnamed_files_get_names() {
    let (_tmp, dir) = temp();
    let file = dir.create_unnamed(0o600).unwrap();
    dir.link_fd(&file, "named").unwrap();
    assert!(dir.link_fd(&file, "named").unwrap_err().is_exists());
    assert_eq!(dir.stat("named").unwrap().nlink, 1);
    dir.link(&dir, "named", "twice").unwrap();
    assert_eq!(dir.stat("twice").unwrap().nlink, 2);
}

#[test]
fn renaming_can_refuse_and_exchange() {
    let (_tmp, dir) = temp();
    dir.mkdir("a", 0o700).unwrap();
    dir.create_file("b", 0o600).unwrap();
    assert!(
        dir.rename("a", &dir, "b", RenameFlags::NOREPLACE)
            .unwrap_err()
            .is_exists()
    );
    dir.rename("a", &dir, "b", RenameFlags::EXCHANGE).unwrap();
    assert!(dir.stat("b").unwrap().is_dir());
}

#[test]
fn names_of_any_bytes_are_listed() {
    let (_tmp, dir) = temp();
    let names: Vec<OsString> = [&b"\xff\xfe"[..], b"new\nline", b"a:b,c\\d", b" ", b".wh.x"]
        .iter()
        .map(|n| OsStr::from_bytes(n).into())
        .collect();
    for name in &names {
        dir.create_file(name, 0o600).unwrap();
    }
    let mut got: Vec<OsString> = dir.entries().unwrap().map(|e| e.unwrap().name).collect();
    let mut want = names;
    got.sort();
    want.sort();
    assert_eq!(got, want);
}

#[test]
fn a_tree_deeper_than_paths_and_descriptors_is_removed() {
    let (tmp, dir) = temp();
    dir.mkdir("deep", 0o700).unwrap();
    let mut at = dir.open_dir("deep").unwrap();
    let name = "d".repeat(100);
    for level in 0..3000 {
        at.mkdir(&name, 0o700).unwrap();
        if level % 100 == 0 {
            at.create_file("f", 0o600).unwrap();
            at.mkdir("side", 0o700).unwrap();
        }
        at = at.open_dir(&name).unwrap();
    }
    assert_eq!(dir.remove_tree("deep").unwrap(), Removal::Gone);
    assert!(!tmp.path().join("deep").exists());
    assert_eq!(dir.remove_tree("deep").unwrap(), Removal::Gone);
}

#[test]
fn links_out_of_a_tree_are_removed_not_followed() {
    let (tmp, dir) = temp();
    std::fs::create_dir(tmp.path().join("kept")).unwrap();
    std::fs::write(tmp.path().join("kept/file"), "x").unwrap();
    dir.create_dir_all("t/a", 0o700).unwrap();
    dir.open_dir("t/a")
        .unwrap()
        .symlink(tmp.path().join("kept"), "out")
        .unwrap();
    dir.open_dir("t")
        .unwrap()
        .symlink("../kept", "out")
        .unwrap();
    assert_eq!(dir.remove_tree("t").unwrap(), Removal::Gone);
    assert!(tmp.path().join("kept/file").exists());
    dir.symlink("kept", "top").unwrap();
    assert_eq!(dir.remove_tree("top").unwrap(), Removal::Gone);
    assert!(tmp.path().join("kept/file").exists());
}

#[test]
fn modes_and_flags_dont_prevent_a_removal() {
    let (tmp, dir) = temp();
    dir.create_dir_all("t/sub", 0o700).unwrap();
    let sub = dir.open_dir("t/sub").unwrap();
    let file = sub.create_file("immutable", 0o400).unwrap();
    let top = dir.open_dir("t").unwrap();
    let appending = top.create_file("append", 0o400).unwrap();
    let flags = rustix::fs::ioctl_getflags(&file)
        .and_then(|f| rustix::fs::ioctl_setflags(&file, f | rustix::fs::IFlags::IMMUTABLE))
        .and_then(|()| rustix::fs::ioctl_getflags(&appending))
        .and_then(|f| rustix::fs::ioctl_setflags(&appending, f | rustix::fs::IFlags::APPEND))
        .and_then(|()| rustix::fs::ioctl_getflags(&sub))
        .and_then(|f| rustix::fs::ioctl_setflags(&sub, f | rustix::fs::IFlags::IMMUTABLE));
    if let Err(e) = flags {
        vellum_testkit::untested("inode flags", e);
    }
    dir.set_mode("t", 0o000).unwrap();
    assert_eq!(dir.remove_tree("t").unwrap(), Removal::Gone);
    assert!(!tmp.path().join("t").exists());
    std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
}

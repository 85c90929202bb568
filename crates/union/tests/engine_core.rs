//! The engine's foundations: live nodes, copying up, identity, opening and closing; compared with
//! the kernel's overlayfs on the same layers.

mod engine_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use engine_support::{Rig, names, options, user, view};
use vellum_testkit::seam::{self, Loses};
use vellum_testkit::tree::Ignore;
use vellum_union::Error;
use vellum_union::engine::{Engine, NodeId, SetAttr};

#[test]
fn an_upper_in_use_is_refused() {
    let Some(rig) = Rig::new(1) else { return };
    let engine = rig.open();
    let refused = |options| match Engine::open(options) {
        Err(Error::BadUpper { path, why }) => (path, why),
        other => panic!("{other:?}"),
    };
    let other = rig.scratch.dir("fs/other");
    let (path, why) = refused(options(&rig.lowers, &rig.upper, &other));
    assert_eq!(path, rig.upper);
    assert!(why.contains("another union"), "{why}");
    let (path, _) = refused(options(&rig.lowers, &other, &rig.work));
    assert_eq!(path, rig.work);
    engine.close().unwrap();
    rig.open().close().unwrap();
    // The kernel's, too.
    let target = rig.mount_kernel(&rig.upper, &rig.work);
    let (path, why) = refused(rig.options());
    assert_eq!(path, rig.upper);
    assert!(why.contains("kernel"), "{why}");
    rig.scratch.unmount(&target);
    rig.open().close().unwrap();
    // Neither contains the other.
    let within = rig.scratch.dir("fs/u/w");
    let (_, why) = refused(options(&rig.lowers, &rig.upper, &within));
    assert!(why.contains("contain each other"), "{why}");
}

#[test]
fn a_killed_engine_keeps_the_kernel_out_and_leaves_nothing_incomplete() {
    let Some(rig) = Rig::new(1) else { return };
    drop(rig.open());
    assert!(rig.work.join("work/incompat/vellum-open").is_dir());
    // Without close: as after a kill, except that this process still runs. The machine did not
    // crash, so nothing was lost.
    drop(rig.open());
    // After a crash of the machine, nothing in a volatile upper can be trusted.
    let volatile = rig.work.join("work/incompat/volatile");
    let boots = || fs::read_dir(&volatile).unwrap().flatten();
    let boot = boots().find(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("vellum-boot-")
    });
    fs::rename(boot.unwrap().path(), volatile.join("vellum-boot-another")).unwrap();
    let refused = Engine::open(rig.options());
    assert!(matches!(&refused, Err(Error::BadUpper { why, .. }) if why.contains("volatile")));
    fs::remove_dir_all(volatile).unwrap();
    fs::write(rig.work.join("work/#half"), "made").unwrap();
    fs::create_dir_all(rig.work.join("work/#tree/deep/er")).unwrap();
    rig.open().close().unwrap();
    let left: Vec<_> = fs::read_dir(rig.work.join("work")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    // Another program's mark.
    fs::create_dir_all(rig.work.join("work/incompat/frobnicate")).unwrap();
    let refused = Engine::open(rig.options());
    assert!(matches!(&refused, Err(Error::BadUpper { why, .. }) if why.contains("frobnicate")));
}

#[test]
fn an_index_is_neither_ignored_nor_used_with_other_layers() {
    let Some(rig) = Rig::new(2) else { return };
    fs::write(rig.lowers[0].join("a"), "x").unwrap();
    fs::hard_link(rig.lowers[0].join("a"), rig.lowers[0].join("b")).unwrap();
    let engine = rig.open();
    user(&engine).chmod("a", 0o600).unwrap();
    engine.close().unwrap();
    let mut off = rig.options();
    if let Some(upper) = &mut off.upper {
        upper.index = false;
    }
    let refused = Engine::open(off);
    assert!(matches!(&refused, Err(Error::BadUpper { why, .. }) if why.contains("index")));
    let mut swapped = rig.lowers.clone();
    swapped.swap(0, 1);
    let refused = Engine::open(options(&swapped, &rig.upper, &rig.work));
    assert!(matches!(&refused, Err(Error::BadUpper { why, .. }) if why.contains("another lower")));
    rig.open().close().unwrap();
}

/// Creates a lower layer with one of everything.
fn furnish(rig: &Rig) {
    let low = &rig.lowers[0];
    fs::create_dir_all(low.join("d/sub/deep")).unwrap();
    fs::set_permissions(low.join("d"), fs::Permissions::from_mode(0o3775)).unwrap();
    fs::write(low.join("d/sub/deep/f"), "content").unwrap();
    fs::set_permissions(low.join("d/sub/deep/f"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(low.join("d/big"), vec![7; 300_000]).unwrap();
    symlink("nowhere", low.join("d/link")).unwrap();
    let null = rustix::fs::makedev(1, 3);
    for (name, kind, dev) in [
        ("d/null", rustix::fs::FileType::CharacterDevice, null),
        ("d/pipe", rustix::fs::FileType::Fifo, 0),
        ("d/sock", rustix::fs::FileType::Socket, 0),
    ] {
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, low.join(name), kind, mode, dev).unwrap();
    }
    for path in ["d", "d/sub", "d/sub/deep/f", "d/big"] {
        set(rig, path, "user.mine", b"yes");
        set(rig, path, "trusted.mine", b"\0\xff");
    }
    // A capability: cap_net_raw+ep.
    set(
        rig,
        "d/big",
        "security.capability",
        &[
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    );
    for path in ["d/sub/deep/f", "d/link", "d/null", "d"] {
        std::os::unix::fs::lchown(low.join(path), Some(1234), Some(56)).unwrap();
    }
    fs::set_permissions(low.join("d/sub/deep/f"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(low.join("d"), fs::Permissions::from_mode(0o3775)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    for path in ["d/sub/deep/f", "d/big", "d/sub/deep", "d/sub", "d"] {
        fs::File::open(low.join(path))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    fs::hard_link(low.join("d/big"), low.join("other")).unwrap();
    fs::hard_link(low.join("d/big"), low.join("third")).unwrap();
}

fn set(rig: &Rig, path: &str, name: &str, value: &[u8]) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(rig.lowers[0].join(path), name, value, flags).unwrap();
}

#[test]
fn copying_up_changes_nothing_that_shows() {
    let Some(rig) = Rig::new(2) else { return };
    furnish(&rig);
    let engine = rig.open();
    let before = view(&engine);
    let who = user(&engine);
    for path in [
        "d/sub/deep/f",
        "d/link",
        "d/null",
        "d/pipe",
        "d/sock",
        "d/big",
    ] {
        let held = who.find(path).unwrap();
        let attr = engine.attr(held.node).unwrap();
        // A change to the same value, which still must be made in the upper layer.
        let same = SetAttr {
            uid: Some(attr.uid),
            mode: (attr.kind != vellum_sys::FileKind::Symlink).then_some(attr.mode),
            ..SetAttr::default()
        };
        let after = engine.privileged().set_attr(held.node, &same).unwrap();
        assert_eq!(
            (after.ino, after.nlink, after.mtime, after.size_bytes),
            (attr.ino, attr.nlink, attr.mtime, attr.size_bytes),
            "{path}"
        );
        assert!(rig.upper.join(path).symlink_metadata().is_ok() || path == "d/big");
    }
    // The owner was set again, which clears capabilities, as everywhere.
    let live = view(&engine);
    let mut expected = before.clone();
    for entry in expected.entries.values_mut() {
        entry.xattrs.retain(|name, _| name != "security.capability");
    }
    let mut shown = live.clone();
    for entry in shown.entries.values_mut() {
        entry.xattrs.retain(|name, _| name != "security.capability");
    }
    shown.assert_same(&expected, Ignore::default());
    for (path, entry) in &before.entries {
        assert_eq!(live.entries[path].identity, entry.identity, "{path:?}");
    }
    engine.close().unwrap();
    live.assert_same(&rig.kernel(), Ignore::default());
    let engine = rig.open();
    let again = view(&engine);
    again.assert_same(&live, Ignore::default());
    for (path, entry) in &before.entries {
        assert_eq!(
            again.entries[path].identity, entry.identity,
            "{path:?} after reopening"
        );
    }
    engine.close().unwrap();
}

#[test]
fn inode_numbers_match_the_kernels() {
    let Some(rig) = Rig::new(1) else { return };
    furnish(&rig);
    let target = rig.mount_kernel(&rig.upper, &rig.work);
    let chmod = |path: &str| {
        fs::set_permissions(target.join(path), fs::Permissions::from_mode(0o700)).unwrap();
    };
    chmod("d/sub/deep/f");
    chmod("other");
    fs::rename(target.join("d/sub"), target.join("moved")).unwrap();
    fs::write(target.join("d/big"), "short").unwrap();
    let numbers = |path: &str| fs::symlink_metadata(target.join(path)).unwrap().ino();
    let paths = [
        "d",
        "moved",
        "moved/deep",
        "moved/deep/f",
        "d/big",
        "other",
        "third",
        "d/link",
    ];
    let expected: Vec<_> = paths.iter().map(|path| (*path, numbers(path))).collect();
    let kernel = vellum_testkit::Tree::read(&target).unwrap();
    rig.scratch.unmount(&target);
    let engine = rig.open();
    view(&engine).assert_same(&kernel, Ignore::default());
    for (path, ino) in expected {
        assert_eq!(user(&engine).attr(path).unwrap().ino, ino, "{path}");
    }
    assert_eq!(user(&engine).attr("third").unwrap().nlink, 3);
    engine.close().unwrap();
}

#[test]
fn hard_links_of_a_lower_file_stay_one_file() {
    let Some(rig) = Rig::new(1) else { return };
    furnish(&rig);
    let engine = rig.open();
    let who = user(&engine);
    let before = who.attr("other").unwrap();
    assert_eq!(before.nlink, 3);
    who.chmod("d/big", 0o604).unwrap();
    for path in ["other", "third", "d/big"] {
        let attr = who.attr(path).unwrap();
        assert_eq!(
            (attr.ino, attr.nlink, attr.mode),
            (before.ino, 3, 0o604),
            "{path}"
        );
    }
    who.unlink("other").unwrap();
    assert_eq!(who.attr("third").unwrap().nlink, 2);
    let live = rig.agree(engine);
    let engine = rig.open();
    let who = user(&engine);
    for path in ["third", "d/big"] {
        let attr = who.attr(path).unwrap();
        assert_eq!(
            (attr.ino, attr.nlink, attr.mode),
            (before.ino, 2, 0o604),
            "{path}"
        );
    }
    assert!(!live.entries.contains_key(std::path::Path::new("other")));
    who.unlink("third").unwrap();
    who.unlink("d/big").unwrap();
    rig.agree(engine);
    assert_eq!(fs::read_dir(rig.work.join("index")).unwrap().count(), 0);
}

#[test]
fn index_entries_without_a_name_are_removed() {
    let Some(rig) = Rig::new(1) else { return };
    fs::write(rig.lowers[0].join("a"), "x").unwrap();
    fs::hard_link(rig.lowers[0].join("a"), rig.lowers[0].join("b")).unwrap();
    let engine = rig.open();
    user(&engine).chmod("a", 0o600).unwrap();
    user(&engine).unlink("b").unwrap();
    engine.close().unwrap();
    let index = || fs::read_dir(rig.work.join("index")).unwrap();
    let entry = index().next().unwrap().unwrap().path();
    let engine = rig.open();
    user(&engine).unlink("a").unwrap();
    engine.close().unwrap();
    assert_eq!(index().count(), 0);
    // As if killed before the entry was removed, and after the count was written.
    fs::write(&entry, "x").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(&entry, "trusted.overlay.nlink", b"U-1", flags).unwrap();
    let engine = rig.open();
    assert_eq!(index().count(), 0);
    assert!(names(&engine, NodeId::ROOT).unwrap().is_empty());
    engine.close().unwrap();
}

#[test]
fn listings_survive_concurrent_changes() {
    let Some(rig) = Rig::new(1) else { return };
    for index in 0..2000 {
        fs::write(rig.lowers[0].join(format!("f{index:04}")), "").unwrap();
    }
    let engine = rig.open();
    let who = user(&engine);
    let some = |cookie: u64, count: usize| {
        let mut found = Vec::new();
        let mut next = cookie;
        let mut take = |listing: vellum_union::engine::Listing| {
            if found.len() == count {
                return std::ops::ControlFlow::Break(());
            }
            next = listing.next;
            found.push(listing.name);
            std::ops::ControlFlow::Continue(())
        };
        engine.list(NodeId::ROOT, cookie, &mut take).unwrap();
        (found, next)
    };
    // Two readers, one of which removes what it reads, as rm -rf does.
    let (mut removed, mut slow) = (0_usize, some(0, 10));
    let mut seen = slow.0.clone();
    let mut cookie = 0;
    loop {
        let (found, next) = some(cookie, 37);
        if found.is_empty() {
            break;
        }
        for name in found {
            who.unlink(&name).unwrap();
            removed += 1;
        }
        cookie = next;
        who.file(format!("new{removed}"), "").unwrap();
        slow = some(slow.1, 5);
        seen.extend(slow.0.iter().cloned());
    }
    assert_eq!(removed, 2000);
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "given twice");
    let left = names(&engine, NodeId::ROOT).unwrap();
    assert!(
        left.iter()
            .all(|name| name.to_string_lossy().starts_with("new"))
    );
    assert_eq!(left.len(), removed.div_ceil(37));
    rig.agree(engine);
}

#[test]
fn forgotten_nodes_are_gone() {
    let Some(rig) = Rig::new(1) else { return };
    fs::create_dir_all(rig.lowers[0].join("a/b/c/d/e")).unwrap();
    fs::write(rig.lowers[0].join("a/b/c/d/e/f"), "").unwrap();
    let engine = rig.open();
    assert_eq!(engine.live_nodes(), 1);
    let deep = user(&engine).find("a/b/c/d/e/f").unwrap();
    // The front has forgotten its parent, which is still needed.
    assert_eq!(engine.live_nodes(), 2);
    let again = user(&engine).find("a/b/c").unwrap();
    assert_eq!(
        engine
            .lookup(NodeId::ROOT, "a".as_ref())
            .unwrap()
            .unwrap()
            .attr
            .nlink,
        3
    );
    drop((deep, again));
    assert_eq!(engine.live_nodes(), 2);
    engine.close().unwrap();
}

#[test]
fn a_directory_of_a_million_names() {
    let Some(rig) = Rig::new(1) else { return };
    let count = match std::env::var("VELLUM_SLOW") {
        Ok(_) => 1_000_000,
        Err(_) => 30_000,
    };
    let Ok(big) = rig
        .scratch
        .file_system("big", vellum_testkit::FsKind::Tmpfs, 1500)
    else {
        return;
    };
    let lower = big.join("lower");
    fs::create_dir_all(&lower).unwrap();
    for index in 0..count {
        let name = format!("{index:08}");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::RegularFile;
        rustix::fs::mknodat(rustix::fs::CWD, lower.join(name), kind, mode, 0).unwrap();
    }
    let engine = Engine::open(options(&[lower], &rig.upper, &rig.work)).unwrap();
    let mut cookie = 0;
    let mut found = 0;
    loop {
        let (before, from) = (found, cookie);
        let mut take = |listing: vellum_union::engine::Listing| {
            if found == before + 1000 {
                return std::ops::ControlFlow::Break(());
            }
            (found, cookie) = (found + 1, listing.next);
            std::ops::ControlFlow::Continue(())
        };
        engine.list(NodeId::ROOT, from, &mut take).unwrap();
        if found == before {
            break;
        }
    }
    assert_eq!(found, count);
    engine.close().unwrap();
}

/// In pages of 4 KiB.
fn resident_kib() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages = text.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    pages * 4
}

#[test]
fn memory_is_returned() {
    let Some(rig) = Rig::new(1) else { return };
    let (dirs, files) = match std::env::var("VELLUM_SLOW") {
        Ok(_) => (1000, 1000),
        Err(_) => (100, 1000),
    };
    let Ok(big) = rig
        .scratch
        .file_system("big", vellum_testkit::FsKind::Tmpfs, 1500)
    else {
        return;
    };
    let lower = big.join("lower");
    for dir in 0..dirs {
        let dir = lower.join(format!("d{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for index in 0..files {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let kind = rustix::fs::FileType::RegularFile;
            let name = dir.join(format!("file{index}"));
            rustix::fs::mknodat(rustix::fs::CWD, name, kind, mode, 0).unwrap();
        }
    }
    let engine = Engine::open(options(&[lower], &rig.upper, &rig.work)).unwrap();
    let before = resident_kib();
    let mut held = Vec::with_capacity(dirs * files);
    for dir in names(&engine, NodeId::ROOT).unwrap() {
        let dir = engine.lookup(NodeId::ROOT, &dir).unwrap().unwrap().node;
        for name in names(&engine, dir).unwrap() {
            held.push(engine.lookup(dir, &name).unwrap().unwrap().node);
        }
        held.push(dir);
    }
    let full = resident_kib();
    let count = held.len() as u64;
    for node in held {
        engine.forget(node, 1);
    }
    let after = resident_kib();
    eprintln!(
        "{count} nodes: {before} KiB, {full} KiB ({} bytes each), {after} KiB",
        (full - before) * 1024 / count
    );
    assert_eq!(engine.live_nodes(), 1);
    assert!(
        after < before + 32 * 1024,
        "{before} KiB before, {after} KiB after"
    );
    engine.close().unwrap();
}

#[test]
fn a_copied_upper_ignores_the_inode_numbers_of_its_old_place() {
    let Some(rig) = Rig::new(1) else { return };
    fs::write(rig.lowers[0].join("f"), "x").unwrap();
    let engine = rig.open();
    user(&engine).chmod("f", 0o600).unwrap();
    let before = user(&engine).attr("f").unwrap().ino;
    assert_eq!(before, fs::metadata(rig.lowers[0].join("f")).unwrap().ino());
    engine.close().unwrap();
    let other = rig
        .scratch
        .file_system("elsewhere", vellum_testkit::FsKind::Ext4, 32)
        .unwrap();
    let copy = |from: &std::path::Path, to: &str| {
        let to = other.join(to);
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([from, &to])
            .status();
        assert!(copied.unwrap().success());
        to
    };
    // Other files in between, so that the numbers differ there.
    for index in 0..20 {
        fs::write(other.join(format!("between{index}")), "").unwrap();
    }
    let lower = copy(&rig.lowers[0], "lower");
    let upper = copy(&rig.upper, "upper");
    let work = other.join("work");
    fs::create_dir(&work).unwrap();
    // The index is empty, so the root is not marked with a lower layer, and the copy is not
    // refused.
    let mut origin = [0; 256];
    let found = rustix::fs::lgetxattr(&upper, "trusted.overlay.origin", &mut origin);
    assert_eq!(found, Err(rustix::io::Errno::NODATA));
    let engine = Engine::open(options(&[lower], &upper, &work)).unwrap();
    let own = fs::metadata(upper.join("f")).unwrap().ino();
    assert_eq!(user(&engine).attr("f").unwrap().ino, own);
    engine.close().unwrap();
}

#[test]
fn a_nosuid_layer_is_copied_as_it_is() {
    let Some(rig) = Rig::new(1) else { return };
    let other = rig
        .scratch
        .file_system("nosuid", vellum_testkit::FsKind::Tmpfs, 1)
        .unwrap();
    let lower = other.join("lower");
    fs::create_dir(&lower).unwrap();
    fs::write(lower.join("f"), "x").unwrap();
    fs::set_permissions(lower.join("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    let remounted = std::process::Command::new("mount")
        .args(["-o", "remount,nosuid"])
        .arg(&other)
        .status();
    assert!(remounted.unwrap().success());
    let engine = Engine::open(options(&[lower], &rig.upper, &rig.work)).unwrap();
    let who = user(&engine);
    let time = vellum_union::engine::SetTime::Now;
    let touch = SetAttr {
        mtime: Some(time),
        ..SetAttr::default()
    };
    assert_eq!(who.set("f", touch).unwrap().mode, 0o4755);
    engine.close().unwrap();
    let mode = fs::metadata(rig.upper.join("f")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o4755);
}

#[test]
fn a_copied_link_of_a_plain_user_keeps_its_number_until_the_union_is_closed() {
    let Some(rig) = Rig::new(1) else { return };
    symlink("nowhere", rig.lowers[0].join("link")).unwrap();
    fs::write(rig.lowers[0].join("file"), "x").unwrap();
    let open = || {
        let mut options = rig.options();
        if let Some(upper) = &mut options.upper {
            upper.prefix = vellum_format::Prefix::User;
        }
        Engine::open(options).unwrap()
    };
    let engine = open();
    let who = user(&engine);
    let number = |path: &str| {
        fs::symlink_metadata(rig.lowers[0].join(path))
            .unwrap()
            .ino()
    };
    let touch = SetAttr {
        mtime: Some(vellum_union::engine::SetTime::Now),
        ..SetAttr::default()
    };
    for path in ["link", "file"] {
        assert_eq!(who.set(path, touch.clone()).unwrap().ino, number(path));
    }
    engine.close().unwrap();
    let engine = open();
    assert_eq!(user(&engine).attr("file").unwrap().ino, number("file"));
    // Links take no `user.` xattrs, so the number is not recorded.
    let own = fs::symlink_metadata(rig.upper.join("link")).unwrap().ino();
    assert_eq!(user(&engine).attr("link").unwrap().ino, own);
    engine.close().unwrap();
}

/// What other processes can see of a copy is whole, and has its owner before its mode: a copy of a
/// set-user-id program never belongs to the engine's own user. A killed engine leaves nothing else.
#[test]
fn a_copy_has_no_name_before_its_content_owner_and_mode() {
    if !seam::available() {
        return;
    }
    let Some(rig) = Rig::new(1) else { return };
    let content = vec![7; 200_000];
    let lower = rig.lowers[0].join("f");
    fs::write(&lower, &content).unwrap();
    std::os::unix::fs::chown(&lower, Some(1000), Some(1001)).unwrap();
    fs::set_permissions(&lower, fs::Permissions::from_mode(0o4755)).unwrap();
    let engine = rig.open();
    let who = user(&engine);
    let held = who.find("f").unwrap();
    let node = held.node;
    let (done, moments) = seam::moments(&rig.base, || {
        engine.privileged().write(node, 0, b"W", false).map(drop)
    });
    done.unwrap();
    drop(held);
    engine.close().unwrap();
    let mut seen = 0;
    let killed = moments.iter().filter(|one| one.loses == Loses::Nothing);
    for (number, moment) in killed.enumerate() {
        let tree = rig.scratch.dir(format!("moment{number}"));
        moment.tree.write_to(&tree);
        for dir in ["u", "w/work"] {
            for copy in files_below(&tree.join(dir)) {
                let meta = fs::metadata(&copy).unwrap();
                let found = (meta.len(), meta.uid(), meta.gid(), meta.mode() & 0o7777);
                let before = &moment.before;
                assert_eq!(found, (200_000, 1000, 1001, 0o4755), "{before:?}");
                assert_eq!(fs::read(&copy).unwrap()[1..], content[1..]);
                seen += 1;
            }
        }
        fs::remove_dir_all(&tree).unwrap();
    }
    assert!(seen > 1, "{seen}");
}

/// The regular files below `dir`.
fn files_below(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files_below(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

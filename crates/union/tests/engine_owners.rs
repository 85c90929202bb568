//! How owners, modes and xattrs are set and stored: mapped ids, records, escaped marks, ACLs.

mod engine_support;

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use engine_support::{ROOT, Rig, User, refusal, user, view};
use vellum_format::{IdRun, Prefix};
use vellum_sys::xattr::SetMode;
use vellum_sys::{FileKind, Timespec};
use vellum_testkit::kernel::Since;
use vellum_union::engine::{Caller, Engine, Holds, IdRules, NewNode, ReaderIds, SetAttr, SetTime};
use vellum_union::{Records, Refusal};

const ACL_ACCESS: &str = "system.posix_acl_access";

fn acl(user: u32) -> Vec<u8> {
    let mut acl = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0].to_vec();
    acl.extend_from_slice(&user.to_le_bytes());
    for (tag, allowed) in [(4, 4), (16, 4), (32, 0)] {
        acl.extend_from_slice(&[tag, 0, allowed, 0, 255, 255, 255, 255]);
    }
    acl
}

fn xattr(engine: &Engine, user: &User<'_>, path: &str, name: &str) -> Option<Vec<u8>> {
    let held = user.find(path).unwrap();
    engine.xattr(held.node, OsStr::new(name)).unwrap()
}

fn set(
    engine: &Engine,
    user: &User<'_>,
    path: &str,
    name: &str,
    value: &[u8],
) -> vellum_union::Result<()> {
    let held = user.find(path)?;
    engine
        .privileged()
        .set_xattr(held.node, OsStr::new(name), value, SetMode::Any)
}

#[test]
fn mapped_owners_are_right_on_both_sides_and_unmapped_ones_refused() {
    let Some(rig) = Rig::new(1) else { return };
    let lower = rig.scratch.file("fs/l0/f", "f");
    std::os::unix::fs::chown(&lower, Some(100_000), Some(100_001)).unwrap();
    let alien = rig.scratch.file("fs/l0/alien", "f");
    std::os::unix::fs::chown(&alien, Some(5), Some(5)).unwrap();
    std::os::unix::fs::chown(&rig.upper, Some(100_000), Some(100_000)).unwrap();
    let run = IdRun {
        inside: 0,
        outside: 100_000,
        count: 1000,
    };
    let mut options = rig.options();
    options.ids = IdRules {
        uids: vec![run],
        gids: vec![run],
        ..IdRules::default()
    };
    let engine = Engine::open(options).unwrap();
    let u = User {
        engine: &engine,
        caller: Caller {
            uid: 7,
            gid: 8,
            umask: 0o022,
        },
    };
    let shown = |path: &str| u.attr(path).map(|attr| (attr.uid, attr.gid));
    let stored = |path: &str| {
        let stat = std::fs::symlink_metadata(rig.upper.join(path)).unwrap();
        (stat.uid(), stat.gid())
    };
    assert_eq!(shown("f").unwrap(), (0, 1));
    assert_eq!(refusal(u.attr("alien")), Refusal::UnmappedId);
    assert_eq!(refusal(u.chmod("alien", 0o600)), Refusal::UnmappedId);
    u.make("new", NewNode::File, 0o644).unwrap();
    assert_eq!(
        (shown("new").unwrap(), stored("new")),
        ((7, 8), (100_007, 100_008))
    );
    u.unlink("f").unwrap();
    u.make("f", NewNode::Symlink("x".into()), 0o777).unwrap();
    assert_eq!(
        (shown("f").unwrap(), stored("f")),
        ((7, 8), (100_007, 100_008))
    );
    let chown = |uid| SetAttr {
        uid: Some(uid),
        ..SetAttr::default()
    };
    assert_eq!(refusal(u.set("new", chown(1000))), Refusal::UnmappedId);
    assert_eq!(u.set("new", chown(999)).unwrap().uid, 999);
    assert_eq!(stored("new"), (100_999, 100_008));
    set(&engine, &u, "new", ACL_ACCESS, &acl(30)).unwrap();
    assert_eq!(
        refusal(set(&engine, &u, "new", ACL_ACCESS, &acl(3000))),
        Refusal::UnmappedId
    );
    assert_eq!(xattr(&engine, &u, "new", ACL_ACCESS).unwrap(), acl(30));
    let upper = vellum_sys::Dir::open(&rig.upper).unwrap();
    let on_disk = vellum_sys::xattr::get(&upper, "new".as_ref(), ACL_ACCESS.as_ref());
    assert_eq!(on_disk.unwrap().unwrap(), acl(100_030));
    let stranger = User {
        engine: &engine,
        caller: Caller {
            uid: 5000,
            gid: 8,
            umask: 0,
        },
    };
    assert_eq!(refusal(stranger.mkdir("d")), Refusal::UnmappedId);
    engine.close().unwrap();
}

#[test]
fn owners_are_shown_to_a_reader_by_what_each_layer_holds() {
    let Some(rig) = Rig::new(3) else { return };
    for (path, owner) in [
        ("l1/below", 3),
        ("l1/dir/file", 3),
        ("l1/beyond", 2000),
        ("l1/like_a_host", 100_004),
        ("l2/copied", 3),
        ("l2/copied_host", 100_003),
        ("l0/top", 3),
        ("l0/host", 100_004),
        ("l0/alien", 2000),
        ("l0/dir/other", 5),
    ] {
        let file = rig.scratch.file(format!("fs/{path}"), "f");
        std::os::unix::fs::chown(&file, Some(owner), Some(owner)).unwrap();
    }
    std::os::unix::fs::chown(rig.lowers[0].join("dir"), Some(6), Some(6)).unwrap();
    let run = IdRun {
        inside: 100_000,
        outside: 0,
        count: 1000,
    };
    let mut options = rig.options();
    options.reader_ids = Some(ReaderIds {
        rules: IdRules {
            uids: vec![run],
            gids: vec![run],
            ..IdRules::default()
        },
        layers: vec![Holds::Both, Holds::Outside, Holds::Inside],
    });
    // With an upper layer it has no effect.
    let engine = Engine::open(options.clone()).unwrap();
    assert_eq!(user(&engine).attr("top").unwrap().uid, 3);
    engine.close().unwrap();
    options.upper = None;
    let engine = Engine::open(options).unwrap();
    let u = user(&engine);
    for (path, owner) in [
        ("below", 100_003),
        ("dir/file", 100_003),
        ("beyond", 2000),
        ("like_a_host", 65_534),
        ("copied", 3),
        ("copied_host", 100_003),
        ("top", 100_003),
        ("host", 100_004),
        ("dir/other", 100_005),
        ("dir", 100_006),
    ] {
        let attr = u.attr(path).unwrap();
        assert_eq!((attr.uid, attr.gid), (owner, owner), "{path}");
    }
    assert_eq!(refusal(u.attr("alien")), Refusal::UnmappedId);
    engine.close().unwrap();
}

#[test]
fn squashed_owners_are_one_for_all() {
    let Some(rig) = Rig::new(1) else { return };
    let lower = rig.scratch.file("fs/l0/f", "f");
    std::os::unix::fs::chown(&lower, Some(5), Some(6)).unwrap();
    let mut options = rig.options();
    options.ids = IdRules {
        squash_uid: Some(50),
        squash_gid: Some(60),
        ..IdRules::default()
    };
    let engine = Engine::open(options).unwrap();
    let u = User {
        engine: &engine,
        caller: Caller {
            uid: 7,
            gid: 8,
            umask: 0,
        },
    };
    let attr = u.attr("f").unwrap();
    assert_eq!((attr.uid, attr.gid), (50, 60));
    u.mkdir("d").unwrap();
    let stored = std::fs::metadata(rig.upper.join("d")).unwrap();
    assert_eq!((stored.uid(), stored.gid()), (50, 60));
    engine.close().unwrap();
}

/// As fuse-overlayfs with `xattr_permissions=2`: the upper's inodes belong to the daemon, and the
/// records count.
#[test]
fn recorded_owners_modes_and_kinds_come_back() {
    let Some(rig) = Rig::new(1) else { return };
    rig.scratch.file("fs/l0/f", "f");
    let mut options = rig.options();
    let upper = options.upper.as_mut().unwrap();
    (upper.records, upper.prefix) = (Records::Read, Prefix::User);
    let open = || Engine::open(options.clone()).unwrap();
    let engine = open();
    let u = User {
        engine: &engine,
        caller: Caller {
            uid: 7,
            gid: 8,
            umask: 0o022,
        },
    };
    u.make("d", NewNode::Dir, 0o2777).unwrap();
    u.make("null", NewNode::Char(1, 3), 0o666).unwrap();
    u.make("l", NewNode::Symlink("target".into()), 0o777)
        .unwrap();
    u.make("p", NewNode::Fifo, 0o600).unwrap();
    u.make("x", NewNode::File, 0o4755).unwrap();
    engine
        .privileged()
        .write(u.find("x").unwrap().node, 0, b"content", false)
        .unwrap();
    let chown = SetAttr {
        uid: Some(9),
        mode: Some(0o1700),
        ..SetAttr::default()
    };
    u.set("f", chown).unwrap();
    set(
        &engine,
        &u,
        "x",
        "security.capability",
        &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    .unwrap();
    set(&engine, &u, "x", ACL_ACCESS, &acl(30)).unwrap();
    assert_eq!(u.attr("x").unwrap().mode & 0o777, 0o640);
    assert_eq!(
        refusal(set(
            &engine,
            &u,
            "x",
            "user.containers.override_stat",
            b"0:0:777"
        )),
        Refusal::NotPermitted
    );
    let check = |u: &User<'_>| {
        let of = |path: &str| {
            let attr = u.attr(path).unwrap();
            (attr.kind, attr.mode, attr.uid, attr.gid)
        };
        assert_eq!(of("d"), (FileKind::Dir, 0o2755, 7, 8));
        assert_eq!(of("null"), (FileKind::Char, 0o644, 7, 8));
        assert_eq!(u.attr("null").unwrap().rdev, (1, 3));
        assert_eq!(of("l"), (FileKind::Symlink, 0o777, 7, 8));
        assert_eq!(
            u.engine.read_link(u.find("l").unwrap().node).unwrap(),
            "target"
        );
        assert_eq!(of("p"), (FileKind::Fifo, 0o600, 7, 8));
        assert_eq!(of("x"), (FileKind::File, 0o4640, 7, 8));
        assert_eq!(u.read("x").unwrap(), b"content");
        assert_eq!(of("f"), (FileKind::File, 0o1700, 9, 0));
        assert_eq!(xattr(u.engine, u, "x", ACL_ACCESS).unwrap(), acl(30));
        assert!(xattr(u.engine, u, "x", "security.capability").is_some());
    };
    check(&u);
    let live = view(&engine);
    engine.close().unwrap();
    // A symbolic link can't have a record; root sets its owner.
    for name in ["d", "null", "p", "x", "f"] {
        let stat = std::fs::symlink_metadata(rig.upper.join(name)).unwrap();
        assert_eq!(
            (stat.uid(), stat.permissions().mode() & 0o7077),
            (0, 0),
            "{name}"
        );
    }
    let engine = open();
    check(&User {
        engine: &engine,
        caller: ROOT,
    });
    view(&engine).assert_same(&live, Default::default());
    // Copied-up files can change owners like the rest; changing the owner clears setuid.
    let u = user(&engine);
    assert_eq!(
        u.set(
            "x",
            SetAttr {
                uid: Some(1),
                ..SetAttr::default()
            }
        )
        .unwrap()
        .mode,
        0o640
    );
    engine.close().unwrap();
}

#[test]
fn overlay_marks_set_through_the_union_belong_to_an_inner_one() {
    let Some(rig) = Rig::new(1) else { return };
    rig.scratch.file("fs/l0/d/f", "f");
    let engine = rig.open();
    let u = user(&engine);
    for name in [
        "trusted.overlay.opaque",
        "trusted.overlay.overlay.x",
        "user.overlay.opaque",
        "user.fuseoverlayfs.opaque",
    ] {
        set(&engine, &u, "d", name, b"y").unwrap();
        assert_eq!(xattr(&engine, &u, "d", name).unwrap(), b"y", "{name}");
        let held = u.find("d").unwrap();
        assert!(
            engine
                .xattr_names(held.node)
                .unwrap()
                .iter()
                .any(|listed| listed == name)
        );
    }
    assert_eq!(u.names("d").unwrap(), ["f"]);
    let held = u.find("d").unwrap();
    let remove = |name: &str| {
        engine
            .privileged()
            .remove_xattr(held.node, OsStr::new(name))
    };
    assert_eq!(
        refusal(remove("trusted.overlay.redirect")),
        Refusal::NoAttribute
    );
    assert_eq!(
        refusal(remove("trusted.overlay.origin")),
        Refusal::NoAttribute
    );
    remove("trusted.overlay.overlay.x").unwrap();
    drop(held);
    if Since::EscapedMarks.is_here_for("marks of an inner overlay, shown by the kernel") {
        rig.agree(engine);
    }
}

#[test]
fn removing_a_missing_xattr_copies_nothing_up() {
    let Some(rig) = Rig::new(1) else { return };
    rig.scratch.file("fs/l0/f", "f");
    let engine = rig.open();
    let u = user(&engine);
    let held = u.find("f").unwrap();
    assert_eq!(
        refusal(
            engine
                .privileged()
                .remove_xattr(held.node, "user.x".as_ref())
        ),
        Refusal::NoAttribute
    );
    assert_eq!(std::fs::read_dir(&rig.upper).unwrap().count(), 0);
    drop(held);
    engine.close().unwrap();
}

#[test]
fn chmod_chown_and_times_copy_no_data() {
    let Some(rig) = Rig::new(1) else { return };
    for name in ["a", "b", "c", "d"] {
        let file = rig.scratch.file(format!("fs/l0/{name}"), vec![7; 1 << 20]);
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o6755)).unwrap();
    }
    let engine = rig.open();
    let u = user(&engine);
    u.chmod("a", 0o4711).unwrap();
    let chown = SetAttr {
        uid: Some(1),
        gid: Some(2),
        ..SetAttr::default()
    };
    assert_eq!(u.set("b", chown).unwrap().mode, 0o755);
    let time = Timespec::new(-5, 123_456_789);
    let times = SetAttr {
        atime: Some(SetTime::To(time)),
        mtime: Some(SetTime::To(time)),
        ..SetAttr::default()
    };
    let attr = u.set("c", times).unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.mode), (time, time, 0o6755));
    set(&engine, &u, "d", "user.x", b"1").unwrap();
    let cleared = SetAttr {
        clear_privileges: true,
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    assert_eq!(u.set("d", cleared).unwrap().mode, 0o755);
    for name in ["a", "b", "c", "d"] {
        let stat = std::fs::metadata(rig.upper.join(name)).unwrap();
        assert!(
            stat.blocks() < 32 && stat.size() == 1 << 20,
            "{name}: {} blocks",
            stat.blocks()
        );
        assert_eq!(u.read(name).unwrap(), vec![7; 1 << 20]);
    }
    rig.agree(engine);
}

/// The flags of `chattr +i` and `+a`.
const IMMUTABLE: u32 = 0x10;
const APPEND_ONLY: u32 = 0x20;

#[test]
fn immutable_and_append_only_files_keep_their_names_and_attributes() {
    let Some(rig) = Rig::new(1) else { return };
    for name in ["lower", "meta", "d/f", "e/f"] {
        rig.scratch.file(format!("fs/l0/{name}"), "x");
    }
    // A file that is immutable in the lower layer.
    let lower = std::fs::File::open(rig.base.join("l0/lower")).unwrap();
    vellum_sys::flags::set(&lower, IMMUTABLE).unwrap();
    let check = |u: &User<'_>, path: &str| {
        let np = Refusal::NotPermitted;
        assert_eq!(refusal(u.unlink(path)), np, "{path}");
        assert_eq!(refusal(u.rename(path, "other")), np, "{path}");
        assert_eq!(refusal(u.rename("victim", path)), np, "{path}");
        assert_eq!(refusal(u.link(path, "other")), np, "{path}");
        assert_eq!(refusal(u.chmod(path, 0o600)), np, "{path}");
        let chown = SetAttr {
            uid: Some(1),
            ..SetAttr::default()
        };
        assert_eq!(refusal(u.set(path, chown)), np, "{path}");
        assert_eq!(
            refusal(set(u.engine, u, path, "user.x", b"1")),
            np,
            "{path}"
        );
    };
    let flag = |u: &User<'_>, path: &str, flags: u32| {
        let held = u.find(path).unwrap();
        u.engine.privileged().set_flags(held.node, flags).unwrap();
    };
    let engine = rig.open();
    let u = user(&engine);
    u.file("victim", "").unwrap();
    u.file("new", "").unwrap();
    u.chmod("meta", 0o640).unwrap();
    for (path, flags) in [
        ("new", IMMUTABLE),
        ("meta", APPEND_ONLY),
        ("d", IMMUTABLE),
        ("e", APPEND_ONLY),
    ] {
        flag(&u, path, flags);
    }
    for _ in 0..2 {
        let engine = &engine;
        let u = user(engine);
        for path in ["lower", "new", "meta"] {
            check(&u, path);
        }
        for dir in ["d", "e"] {
            let np = Refusal::NotPermitted;
            assert_eq!(refusal(u.unlink(format!("{dir}/f"))), np);
            assert_eq!(refusal(u.rename(format!("{dir}/f"), "other")), np);
            assert_eq!(refusal(u.rename(dir, "other")), np);
            assert_eq!(refusal(u.rmdir(dir)), Refusal::NotPermitted);
        }
        assert_eq!(refusal(u.mkdir("d/n")), Refusal::NotPermitted);
        assert_eq!(refusal(u.link("victim", "d/l")), Refusal::NotPermitted);
        let name = format!("e/{}", u.names("e").unwrap().len());
        u.file(name, "").unwrap();
        let now = SetAttr {
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        u.set("meta", now.clone()).unwrap();
        assert_eq!(refusal(u.set("new", now)), Refusal::NotPermitted);
    }
    for path in ["new", "meta", "d", "e", "lower"] {
        flag(&u, path, 0);
        u.rename(path, format!("{path}-moved")).unwrap();
    }
    engine.close().unwrap();
    vellum_sys::flags::set(&lower, 0).unwrap();
}

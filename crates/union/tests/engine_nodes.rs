//! Edge cases of nodes: without a name, with the longest name, at the end of the longest path.

mod engine_support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use engine_support::{ROOT, Rig, User, names, read_all, refusal, user};
use vellum_sys::xattr::SetMode;
use vellum_sys::{FileKind, Timespec};
use vellum_union::engine::{Action, Attrs, Engine, NewNode, NodeId, RenameMode, SetAttr, SetTime};
use vellum_union::{Error, Refusal};

/// Every call on a file whose last name is gone.
fn use_without_a_name(u: &User<'_>, path: &str) {
    let engine = u.engine;
    let held = u.find(path).unwrap();
    let content = read_all(engine, held.node).unwrap();
    let before = engine.attr(held.node).unwrap();
    u.unlink(path).unwrap();
    assert!(!u.exists(path), "{path}");
    let attr = engine.attr(held.node).unwrap();
    assert_eq!((attr.ino, attr.nlink), (before.ino, 0), "{path}");
    assert_eq!(read_all(engine, held.node).unwrap(), content, "{path}");
    let set = |change: SetAttr| engine.privileged().set_attr(held.node, &change).unwrap();
    let mode = Some(0o640);
    assert_eq!(
        set(SetAttr {
            mode,
            ..SetAttr::default()
        })
        .mode,
        0o640
    );
    let (uid, gid) = (Some(3), Some(4));
    let attr = set(SetAttr {
        uid,
        gid,
        ..SetAttr::default()
    });
    assert_eq!((attr.uid, attr.gid), (3, 4));
    let mtime = Some(SetTime::To(Timespec::new(1, 2)));
    assert_eq!(
        set(SetAttr {
            mtime,
            ..SetAttr::default()
        })
        .mtime,
        Timespec::new(1, 2)
    );
    let name = OsStr::new("user.x");
    engine
        .privileged()
        .set_xattr(held.node, name, b"1", SetMode::Create)
        .unwrap();
    assert_eq!(engine.xattr(held.node, name).unwrap().unwrap(), b"1");
    assert!(
        engine
            .xattr_names(held.node)
            .unwrap()
            .iter()
            .any(|at| at == name)
    );
    engine.privileged().remove_xattr(held.node, name).unwrap();
    engine
        .privileged()
        .write(held.node, 1, b"new", false)
        .unwrap();
    let size_bytes = Some(3);
    assert_eq!(
        set(SetAttr {
            size_bytes,
            ..SetAttr::default()
        })
        .size_bytes,
        3
    );
    assert_eq!(&read_all(engine, held.node).unwrap()[1..], b"ne", "{path}");
    engine.sync(held.node, false).unwrap();
    let root = NodeId::ROOT;
    assert_eq!(
        refusal(engine.privileged().link(held.node, root, "again".as_ref())),
        Refusal::NotFound
    );
    assert_eq!(engine.attr(held.node).unwrap().ino, before.ino);
}

#[test]
fn a_node_without_a_name_stays_usable_in_every_call() {
    let Some(rig) = Rig::new(1) else { return };
    for name in ["lower", "meta", "whole", "linked", "replaced"] {
        rig.scratch.file(format!("fs/l0/d/{name}"), "content");
    }
    fs::hard_link(rig.base.join("l0/d/linked"), rig.base.join("l0/linked")).unwrap();
    let engine = rig.open();
    let u = user(&engine);
    u.file("d/new", "content").unwrap();
    u.chmod("d/meta", 0o600).unwrap();
    u.file("d/whole", "content").unwrap();
    u.unlink("linked").unwrap();
    for name in ["new", "lower", "meta", "whole", "linked"] {
        use_without_a_name(&u, &format!("d/{name}"));
    }
    // Replaced, and replacing.
    let held = u.find("d/replaced").unwrap();
    u.file("d/by", "other").unwrap();
    u.rename("d/by", "d/replaced").unwrap();
    assert_eq!(read_all(&engine, held.node).unwrap(), b"content");
    engine
        .privileged()
        .write(held.node, 0, b"C", false)
        .unwrap();
    assert_eq!(u.read("d/replaced").unwrap(), b"other");
    assert_eq!(read_all(&engine, held.node).unwrap(), b"Content");
    drop(held);
    // A directory, from below and from above.
    u.unlink("d/replaced").unwrap();
    u.mkdir("n").unwrap();
    for dir in ["d", "n"] {
        let held = u.find(dir).unwrap();
        u.rmdir(dir).unwrap();
        u.file(dir, "in its place").unwrap();
        assert_eq!(engine.attr(held.node).unwrap().kind, FileKind::Dir);
        assert!(names(&engine, held.node).unwrap().is_empty());
        assert!(engine.lookup(held.node, "x".as_ref()).unwrap().is_none());
        let make = engine
            .privileged()
            .create(held.node, "x".as_ref(), &NewNode::Dir, 0o755, &ROOT);
        assert_eq!(refusal(make), Refusal::NotFound);
        let rename = engine.privileged().rename(
            NodeId::ROOT,
            dir.as_ref(),
            held.node,
            "x".as_ref(),
            RenameMode::Replace,
        );
        assert_eq!(refusal(rename), Refusal::NotFound);
    }
    rig.agree(engine);
}

#[test]
fn a_file_created_without_a_name_may_get_one_later() {
    let Some(rig) = Rig::new(1) else { return };
    rig.scratch.file("fs/l0/d/f", "f");
    let engine = rig.open();
    let u = user(&engine);
    let d = u.find("d").unwrap();
    u.unlink("d/f").unwrap();
    for name in ["new", "f"] {
        let made = u.hold(
            engine
                .privileged()
                .tmpfile(d.node, 0o666, &u.caller)
                .unwrap(),
        );
        assert_eq!(made.attr.as_ref().unwrap().nlink, 0);
        engine
            .privileged()
            .write(made.node, 0, name.as_bytes(), false)
            .unwrap();
        let entry = engine
            .privileged()
            .link(made.node, d.node, name.as_ref())
            .unwrap();
        assert_eq!(
            (entry.node, entry.attr.nlink, entry.attr.mode),
            (made.node, 1, 0o644)
        );
        u.hold(entry);
        assert_eq!(
            u.attr(Path::new("d").join(name)).unwrap().ino,
            made.attr.as_ref().unwrap().ino
        );
        assert_eq!(u.read(Path::new("d").join(name)).unwrap(), name.as_bytes());
    }
    u.hold(
        engine
            .privileged()
            .tmpfile(d.node, 0o600, &u.caller)
            .unwrap(),
    );
    drop(d);
    rig.agree(engine);
}

#[test]
fn names_are_any_255_bytes() {
    let Some(rig) = Rig::new(1) else { return };
    let every: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    let every = OsString::from_vec(every);
    let longest = OsString::from("n".repeat(255));
    rig.scratch
        .file(Path::new("fs/l0").join(&every), "every byte");
    rig.scratch
        .file(Path::new("fs/l0").join(&longest).join("f"), "f");
    rig.scratch.file("fs/l0/.wh.f", "no mark here");
    let engine = rig.open();
    let u = user(&engine);
    let other = OsString::from("m".repeat(255));
    u.rename(&longest, &other).unwrap();
    u.rename(&every, &longest).unwrap();
    u.rename(other.as_os_str(), &every).unwrap();
    u.unlink(".wh.f").unwrap();
    u.file(".wh.g", "").unwrap();
    u.mkdir(".wh..wh..opq").unwrap();
    let long = "n".repeat(256);
    assert_eq!(refusal(u.mkdir(&long)), Refusal::NameTooLong);
    assert_eq!(refusal(u.rename(&every, &long)), Refusal::NameTooLong);
    assert_eq!(u.read(Path::new(&every).join("f")).unwrap(), b"f");
    rig.agree(engine);
}

/// A directory `depth` levels below the root, with names that make its path far longer than a
/// system call accepts.
fn deep(depth: usize) -> PathBuf {
    (0..depth).map(|level| format!("{level:-<60}")).collect()
}

#[test]
fn paths_may_be_longer_than_the_kernel_takes() {
    let Some(rig) = Rig::new(1) else { return };
    let bottom = deep(120);
    let mut at = vellum_sys::Dir::open(&rig.lowers[0]).unwrap();
    for name in bottom.iter() {
        at.mkdir(name, 0o755).unwrap();
        at = at.open_dir(name).unwrap();
    }
    drop(at.create_file("f", 0o644).unwrap());
    at.mkdir("d", 0o755).unwrap();
    drop(at.open_dir("d").unwrap().create_file("in", 0o644).unwrap());
    let check = |engine: &Engine, changed: bool| {
        let u = user(engine);
        assert_eq!(
            u.read(bottom.join("f")).unwrap(),
            if changed { &b"new"[..] } else { b"" }
        );
        assert!(u.exists(bottom.join("made/g")));
        assert!(u.exists(bottom.join("e/in")), "a directory that moved");
        assert!(!u.exists(bottom.join("d")));
    };
    let engine = rig.open();
    let u = user(&engine);
    u.file(bottom.join("f"), "new").unwrap();
    u.mkdir(bottom.join("made")).unwrap();
    u.file(bottom.join("made/g"), "g").unwrap();
    u.rename(bottom.join("d"), bottom.join("e")).unwrap();
    // Farther away the redirect is a path, which would be too long.
    assert_eq!(
        refusal(u.rename(bottom.join("e"), "e")),
        Refusal::CrossDevice
    );
    u.rename(bottom.join("made/g"), "g").unwrap();
    u.rename("g", bottom.join("made/g")).unwrap();
    check(&engine, true);
    engine.close().unwrap();
    let engine = rig.open();
    check(&engine, true);
    engine.close().unwrap();
}

#[test]
fn an_upper_without_space_for_a_redirect_refuses_with_exdev() {
    let Some(rig) = Rig::new(1) else { return };
    let above = deep(66);
    let mut at = vellum_sys::Dir::open(&rig.lowers[0]).unwrap();
    for name in above.join("d").iter() {
        at.mkdir(name, 0o755).unwrap();
        at = at.open_dir(name).unwrap();
    }
    let engine = rig.open();
    let u = user(&engine);
    // 4028 bytes: a valid redirect, but more than ext4 keeps in a block of xattrs.
    match u.rename(above.join("d"), "d") {
        Err(Error::Refused {
            refusal: Refusal::CrossDevice,
        }) => assert!(u.exists(above.join("d"))),
        Ok(()) => assert!(u.exists("d")),
        Err(other) => panic!("{other}: {:?}", std::error::Error::source(&other)),
    }
    engine.close().unwrap();
}

/// The kernel writes at most 256 bytes by default, but reads more.
#[test]
fn redirects_longer_than_the_kernel_writes_are_read_by_it() {
    let Some(rig) = Rig::new(1) else { return };
    let above = deep(10);
    rig.scratch
        .file(Path::new("fs/l0").join(&above).join("d/f"), "f");
    rig.scratch
        .file(Path::new("fs/l0").join(&above).join("g"), "g");
    let engine = rig.open();
    let u = user(&engine);
    u.rename(above.join("d"), "d").unwrap();
    u.rename(above.join("g"), "g").unwrap();
    u.rename(above.iter().next().unwrap(), "top").unwrap();
    assert_eq!(u.read("d/f").unwrap(), b"f");
    let tree = rig.agree(engine);
    assert!(tree.entries.contains_key(Path::new("d/f")));
}

#[test]
fn a_call_reports_every_attribute_it_changed() {
    let Some(rig) = Rig::new(1) else {
        return;
    };
    fs::create_dir_all(rig.lowers[0].join("a/b")).unwrap();
    fs::write(rig.lowers[0].join("a/b/f"), "below").unwrap();
    let engine = rig.open();
    let user = user(&engine);
    let ids: Vec<NodeId> = ["a", "a/b", "a/b/f"]
        .iter()
        .map(|path| {
            let held = user.find(path).unwrap();
            let node = held.node;
            // The test keeps holding it.
            std::mem::forget(held);
            node
        })
        .collect();
    let [a, b, f] = ids[..] else { unreachable!() };
    let touched = |act: &dyn Fn(&Action<'_>)| {
        let action = engine.privileged();
        act(&action);
        let mut touched = action.touched();
        touched.sort_by_key(|(node, _)| *node);
        touched
    };
    // The first write changes the directories above, the next only the file.
    let write = |act: &Action<'_>| assert_eq!(act.write(f, 0, b"x", false).unwrap(), 1);
    let first = touched(&write);
    let nodes: Vec<_> = first.iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes, [NodeId::ROOT, a, b, f]);
    assert!(first.iter().all(|(_, attrs)| attrs.contains(Attrs::CTIME)));
    assert!(!first[2].1.contains(Attrs::MTIME));
    assert_eq!(touched(&write), [(f, Attrs::CONTENT)]);
    // A write by a caller that may not keep privileges clears them, if there are any.
    let suid = SetAttr {
        mode: Some(0o6755),
        ..SetAttr::default()
    };
    engine.privileged().set_attr(f, &suid).unwrap();
    let by_user = |act: &Action<'_>| assert_eq!(act.write(f, 0, b"y", true).unwrap(), 1);
    let [(_, attrs)] = touched(&by_user)[..] else {
        unreachable!()
    };
    assert!(attrs.contains(Attrs::MODE | Attrs::CONTENT));
    assert_eq!(engine.attr(f).unwrap().mode, 0o755);
    assert_eq!(touched(&by_user), [(f, Attrs::CONTENT)]);
    // A failed call reports them, too.
    let refused = touched(&|act| drop(act.rmdir(NodeId::ROOT, OsStr::new("a")).unwrap_err()));
    assert_eq!(refused, [(a, Attrs::ATIME)]);
    for node in [a, b, f] {
        engine.forget(node, 1);
    }
    engine.close().unwrap();
}

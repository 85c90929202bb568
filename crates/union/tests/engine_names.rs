//! Creating, removing and moving names on ext4, with the kernel's overlayfs as the judge of what is
//! on disk afterwards.

mod engine_support;

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use engine_support::{Rig, User, refusal, user};
use vellum_sys::xattr::SetMode;
use vellum_testkit::Tree;
use vellum_union::Refusal;
use vellum_union::engine::{Caller, NewNode, NodeId, SetAttr};

#[test]
fn a_removed_file_is_linked_again_only_if_its_layer_has_another_name() {
    for index in [false, true] {
        let Some(rig) = Rig::new(1) else { return };
        for name in ["one", "two"] {
            std::fs::write(rig.lowers[0].join(name), name).unwrap();
        }
        std::fs::hard_link(rig.lowers[0].join("two"), rig.lowers[0].join("other")).unwrap();
        let engine = engine_support::open(|| {
            let mut options = rig.options();
            options.upper.as_mut().unwrap().index = index;
            options
        });
        let user = user(&engine);
        let [one, two] = ["one", "two"].map(|name| user.find(name).unwrap());
        user.unlink("one").unwrap();
        user.unlink("two").unwrap();
        assert_eq!(engine.attr(one.node).unwrap().nlink, 0);
        assert_eq!(engine.attr(two.node).unwrap().nlink, 1);
        let link = |node, to: &str| {
            let entry = engine.privileged().link(node, NodeId::ROOT, to.as_ref())?;
            drop(user.hold(entry));
            Ok(())
        };
        assert_eq!(refusal(link(one.node, "one")), Refusal::NotFound);
        link(two.node, "again").unwrap();
        assert_eq!(user.read("again").unwrap(), b"two");
    }
}

#[test]
fn new_entries_are_visible_to_all() {
    let Some(rig) = Rig::new(1) else { return };
    let engine = rig.open();
    let user = user(&engine);
    user.mkdir("d").unwrap();
    user.make("d/f", NewNode::File, 0o4666).unwrap();
    user.make("d/l", NewNode::Symlink("f".into()), 0).unwrap();
    user.make("d/p", NewNode::Fifo, 0o600).unwrap();
    user.make("d/s", NewNode::Socket, 0o600).unwrap();
    user.make("d/null", NewNode::Char(1, 3), 0o666).unwrap();
    assert_eq!(
        refusal(user.make("w", NewNode::Char(0, 0), 0)),
        Refusal::NotPermitted
    );
    assert_eq!(refusal(user.mkdir("d")), Refusal::Exists);
    assert_eq!(user.attr("d/f").unwrap().mode, 0o4644);
    user.rename("d/f", "d/g").unwrap();
    user.rename("d", "e").unwrap();
    user.link("e/g", "h").unwrap();
    assert_eq!(user.attr("h").unwrap().nlink, 2);
    user.unlink("e/g").unwrap();
    assert_eq!(refusal(user.rmdir("e")), Refusal::NotEmpty);
    rig.agree(engine);
    assert_eq!(std::fs::metadata(rig.upper.join("h")).unwrap().nlink(), 1);
}

#[test]
fn removal_leaves_nothing_if_nothing_is_below() {
    let Some(rig) = Rig::new(1) else { return };
    let engine = rig.open();
    let user = user(&engine);
    user.file("f", "").unwrap();
    user.mkdir("d").unwrap();
    user.mkdir("d/e").unwrap();
    let held = user.find("d/e").unwrap();
    user.unlink("f").unwrap();
    user.rmdir("d/e").unwrap();
    assert_eq!(engine.attr(held.node).unwrap().nlink, 0);
    let inside = engine.privileged().create(
        held.node,
        "x".as_ref(),
        &NewNode::File,
        0o644,
        &engine_support::ROOT,
    );
    assert_eq!(refusal(inside), Refusal::NotFound);
    assert_eq!(engine_support::names(&engine, held.node).unwrap().len(), 0);
    drop(held);
    user.rmdir("d").unwrap();
    assert_eq!(refusal(user.unlink("d")), Refusal::NotFound);
    assert_eq!(std::fs::read_dir(&rig.upper).unwrap().count(), 0);
    rig.agree(engine);
}

#[test]
fn removed_lower_entries_stay_removed_and_recreated_ones_are_empty() {
    let Some(rig) = Rig::new(2) else { return };
    rig.scratch.file("fs/l1/d/f", "");
    rig.scratch.file("fs/l1/d/g", "");
    rig.scratch.file("fs/l0/d/h", "");
    rig.scratch.file("fs/l1/f", "");
    let engine = rig.open();
    let user = user(&engine);
    user.unlink("f").unwrap();
    assert!(!user.exists("f"));
    user.file("f", "").unwrap();
    user.unlink("f").unwrap();
    assert!(std::fs::symlink_metadata(rig.upper.join("f")).is_ok());
    let tree = rig.agree(engine);
    assert!(!tree.entries.contains_key(Path::new("f")));
}

/// The same entries created in a directory with a default ACL and setgid, in place and over
/// whiteouts: as ext4 creates them.
#[test]
fn new_entries_inherit_from_their_directory() {
    let Some(rig) = Rig::new(1) else { return };
    for name in ["w/f", "w/d/x", "w/l", "w/p"] {
        rig.scratch.file(format!("fs/l0/{name}"), "");
    }
    rig.scratch.dir("fs/u/w/d");
    let judge = rig.scratch.dir("fs/judge");
    let acl = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 7, 0, 0xe8, 3, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 5, 0, 255, 255, 255, 255],
    ]
    .concat();
    let default = OsStr::new("system.posix_acl_default");
    let engine = rig.open();
    let user = User {
        engine: &engine,
        caller: Caller {
            uid: 61_000,
            gid: 61_001,
            umask: 0o077,
        },
    };
    for name in ["w/f", "w/d/x", "w/l", "w/p"] {
        user.unlink(name).unwrap();
    }
    user.rmdir("w/d").unwrap();
    user.make("in-place", NewNode::Dir, 0o755).unwrap();
    for (round, with_acl) in [(0, false), (1, true)] {
        for place in ["in-place", "w"] {
            let dir = user.find(place).unwrap();
            let change = SetAttr {
                gid: Some(62_000),
                mode: Some(0o2777),
                ..SetAttr::default()
            };
            engine.privileged().set_attr(dir.node, &change).unwrap();
            if with_acl {
                engine
                    .privileged()
                    .set_xattr(dir.node, default, &acl, SetMode::Any)
                    .unwrap();
            }
            let at = Path::new(place);
            if round == 1 {
                for name in ["f", "l", "p"] {
                    user.unlink(at.join(name)).unwrap();
                }
                user.rmdir(at.join("d")).unwrap();
            }
            user.make(at.join("f"), NewNode::File, 0o666).unwrap();
            user.make(at.join("d"), NewNode::Dir, 0o777).unwrap();
            user.make(at.join("l"), NewNode::Symlink("x".into()), 0o777)
                .unwrap();
            user.make(at.join("p"), NewNode::Fifo, 0o666).unwrap();
        }
        let made = |path: &Path| {
            let tree = Tree::read(path).unwrap();
            let of = |entry: &vellum_testkit::tree::Entry| {
                (
                    entry.kind,
                    entry.mode,
                    entry.uid,
                    entry.gid,
                    entry.xattrs.clone(),
                )
            };
            let mut made: Vec<_> = tree
                .entries
                .iter()
                .filter(|(path, _)| !path.as_os_str().is_empty())
                .map(|(path, entry)| (path.clone(), of(entry)))
                .collect();
            for (_, (.., xattrs)) in &mut made {
                xattrs.retain(|name, _| !name.to_string_lossy().starts_with("trusted.overlay."));
            }
            made
        };
        let judged = judge_of(
            &judge.join(round.to_string()),
            with_acl.then_some((default, &acl)),
        );
        assert_eq!(
            made(&judged),
            made(&rig.upper.join("in-place")),
            "in place, round {round}"
        );
        assert_eq!(
            made(&judged),
            made(&rig.upper.join("w")),
            "over whiteouts, round {round}"
        );
    }
    rig.agree(engine);
}

/// The same on ext4.
fn judge_of(dir: &Path, acl: Option<(&OsStr, &Vec<u8>)>) -> std::path::PathBuf {
    std::fs::create_dir(dir).unwrap();
    let at = vellum_sys::Dir::open(dir).unwrap();
    vellum_sys::rooted::change_owner_fd(&at, None, Some(62_000)).unwrap();
    vellum_sys::rooted::set_mode_fd(&at, 0o2777).unwrap();
    if let Some((name, value)) = acl {
        vellum_sys::xattr::set_fd(&at, name, value, SetMode::Any).unwrap();
    }
    let script = "umask 077; cd \"$1\"; : > f; mkdir d; ln -s x l; mkfifo p";
    let made = std::process::Command::new("setpriv")
        .args(["--reuid", "61000", "--regid", "61001", "--clear-groups"])
        .args(["--inh-caps=+dac_override", "--ambient-caps=+dac_override"])
        .args(["sh", "-c", script, "sh"])
        .arg(dir)
        .status()
        .unwrap();
    assert!(made.success());
    dir.to_owned()
}

/// As when an upper moves from a machine where devices can be created to one where they can't.
#[test]
fn a_whiteout_device_is_replaced_where_whiteouts_are_names() {
    let Some(rig) = Rig::new(1) else { return };
    for name in ["made", "dir", "linked", "moved", "renamed"] {
        rig.scratch.file(format!("fs/l0/{name}"), "below");
    }
    rig.scratch.file("fs/l0/tree/file", "below");
    for name in ["made", "dir", "linked", "moved", "renamed", "tree"] {
        let whiteout = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, rig.upper.join(name), whiteout, mode, 0).unwrap();
    }
    rig.scratch.file("fs/u/own", "own");
    rig.scratch.file("fs/u/branch/leaf", "own");
    let open = || {
        let mut options = rig.options();
        if let Some(upper) = &mut options.upper {
            upper.wh_names = vellum_union::WhNames::Whiteouts;
        }
        vellum_union::engine::Engine::open(options).unwrap()
    };
    let engine = open();
    let names = |engine: &vellum_union::engine::Engine| {
        let mut names = engine_support::names(engine, NodeId::ROOT).unwrap();
        names.sort();
        names
    };
    assert_eq!(names(&engine), ["branch", "own"]);
    {
        let user = user(&engine);
        user.make("made", NewNode::File, 0o644).unwrap();
        user.mkdir("dir").unwrap();
        user.mkdir("tree").unwrap();
        user.link("own", "linked").unwrap();
        user.rename("own", "moved").unwrap();
        user.rename("branch", "renamed").unwrap();
        assert_eq!(user.names("tree").unwrap(), [""; 0]);
    }
    let shown = ["dir", "linked", "made", "moved", "renamed", "tree"];
    assert_eq!(names(&engine), shown);
    engine.close().unwrap();
    let engine = open();
    assert_eq!(names(&engine), shown);
    let user = user(&engine);
    assert_eq!(user.names("tree").unwrap(), [""; 0]);
    user.unlink("made").unwrap();
    user.rmdir("tree").unwrap();
    assert_eq!(names(&engine), ["dir", "linked", "moved", "renamed"]);
    assert_eq!(user.names("renamed").unwrap(), ["leaf"]);
}

//! How they become plain: by settling, stopped or not, or at the end of a mount.

use std::ffi::OsStr;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use vellum_sys::Cancel;
use vellum_testkit::FsKind;
use vellum_union::Error;
use vellum_union::engine::{NodeId, settle};

use super::rig::{
    MIB, content, find, is_unsettled, lower, maps, open, read, settle_now, settle_options,
};
use crate::engine_support::{ROOT, Rig};

#[test]
fn a_settled_upper_is_the_kernels() {
    let Some(rig) = Rig::on(FsKind::Ext4, 2) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 300_000);
    let sparse = std::fs::File::create(rig.lowers[1].join("sparse")).unwrap();
    sparse.set_len(20 * MIB).unwrap();
    sparse.write_all_at(b"data", 10 * MIB).unwrap();
    for name in ["f", "sparse"] {
        let layer = if name == "f" { 0 } else { 1 };
        let path = rig.lowers[layer].join(name);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4751)).unwrap();
    }
    let engine = open(&rig);
    for name in ["f", "sparse"] {
        let node = find(&engine, name);
        engine
            .privileged()
            .write(node, 70_000, b"new", false)
            .unwrap();
        engine
            .privileged()
            .link(node, NodeId::ROOT, OsStr::new(&format!("{name}-link")))
            .unwrap();
    }
    let sub = engine
        .privileged()
        .create(
            NodeId::ROOT,
            OsStr::new("dir"),
            &vellum_union::engine::NewNode::Dir,
            0o755,
            &ROOT,
        )
        .unwrap();
    engine
        .privileged()
        .rename(
            NodeId::ROOT,
            OsStr::new("f"),
            sub.node,
            OsStr::new("moved"),
            vellum_union::engine::RenameMode::Replace,
        )
        .unwrap();
    bytes[70_000..70_003].copy_from_slice(b"new");
    let refused = settle_now(&rig).unwrap_err();
    assert!(matches!(refused, Error::BadUpper { .. }), "{refused:?}");
    engine.close().unwrap();
    let before = std::fs::metadata(rig.upper.join("dir/moved")).unwrap();
    let mut last = Default::default();
    let settled = settle(&settle_options(&rig), &mut |now| last = now, &Cancel::new()).unwrap();
    assert!(settled.complete);
    assert_eq!((settled.done.files, settled.done.files_total), (2, 2));
    assert_eq!(last, settled.done);
    assert_eq!(settled.done.bytes, settled.done.bytes_total);
    assert!(maps(&rig).is_empty());
    assert!(!rig.work.join("work/incompat").exists());
    let after = std::fs::metadata(rig.upper.join("dir/moved")).unwrap();
    assert_eq!(
        (after.mtime(), after.mtime_nsec()),
        (before.mtime(), before.mtime_nsec())
    );
    assert_eq!(after.mode(), before.mode());
    assert!(!is_unsettled(&rig.upper.join("dir/moved")));
    let blocks = std::fs::metadata(rig.upper.join("sparse"))
        .unwrap()
        .blocks();
    assert!(blocks * 512 < MIB, "holes stay holes");
    let target = rig.mount_kernel(&rig.upper, &rig.work);
    assert!(content(&target.join("dir/moved")).unwrap() == bytes);
    assert!(content(&target.join("f-link")).unwrap() == bytes);
    let mut expected = vec![0; 20 << 20];
    expected[10 << 20..(10 << 20) + 4].copy_from_slice(b"data");
    expected[70_000..70_003].copy_from_slice(b"new");
    assert!(content(&target.join("sparse")).unwrap() == expected);
    rig.scratch.unmount(&target);
    // Nothing is left to do.
    assert_eq!(settle_now(&rig).unwrap().done.files_total, 0);
}

#[test]
fn a_stopped_settling_can_be_continued() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let path = rig.lowers[0].join("f");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(40 * MIB).unwrap();
    for at in (0..40 * MIB).step_by(4 << 20) {
        file.write_all_at(&[3; 4096], at).unwrap();
    }
    let engine = open(&rig);
    let node = find(&engine, "f");
    engine.privileged().write(node, 5, b"new", false).unwrap();
    let times = engine.attr(node).unwrap().mtime;
    engine.close().unwrap();
    let cancel = Cancel::new();
    let mut steps = 0;
    let settled = settle(
        &settle_options(&rig),
        &mut |now| {
            steps += u64::from(now.bytes > 0);
            if now.bytes > 0 {
                cancel.cancel();
            }
        },
        &cancel,
    )
    .unwrap();
    assert!(!settled.complete && steps == 1);
    assert!(is_unsettled(&rig.upper.join("f")));
    // Used and changed in between: the change counts, also its time.
    let engine = open(&rig);
    let node = find(&engine, "f");
    assert_eq!(engine.attr(node).unwrap().mtime, times);
    engine
        .privileged()
        .write(node, 39 * MIB, b"more", false)
        .unwrap();
    let times = engine.attr(node).unwrap().mtime;
    engine.close().unwrap();
    assert!(settle_now(&rig).unwrap().complete);
    let mut expected = std::fs::read(&path).unwrap();
    expected[5..8].copy_from_slice(b"new");
    expected[39 << 20..(39 << 20) + 4].copy_from_slice(b"more");
    assert!(std::fs::read(rig.upper.join("f")).unwrap() == expected);
    let engine = open(&rig);
    assert_eq!(engine.attr(find(&engine, "f")).unwrap().mtime, times);
}

#[test]
fn settling_works_at_any_depth() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let file = find(&engine, "f");
    engine.privileged().write(file, 9, b"new", false).unwrap();
    bytes[9..12].copy_from_slice(b"new");
    // Longer than the kernel's limit of 4096 bytes.
    let name = "n".repeat(200);
    let mut dir = NodeId::ROOT;
    for _ in 0..30 {
        let what = vellum_union::engine::NewNode::Dir;
        let made = engine
            .privileged()
            .create(dir, OsStr::new(&name), &what, 0o755, &ROOT);
        dir = made.unwrap().node;
    }
    let replace = vellum_union::engine::RenameMode::Replace;
    engine
        .privileged()
        .rename(NodeId::ROOT, OsStr::new("f"), dir, OsStr::new("f"), replace)
        .unwrap();
    engine.close().unwrap();
    let settled = settle_now(&rig).unwrap();
    assert!(settled.complete);
    assert_eq!(settled.done.files, 1);
    let engine = open(&rig);
    let mut dir = NodeId::ROOT;
    for _ in 0..30 {
        let entry = engine.lookup(dir, OsStr::new(&name)).unwrap().unwrap();
        dir = entry.node;
    }
    let entry = engine.lookup(dir, OsStr::new("f")).unwrap().unwrap();
    assert!(read(&engine, entry.node, 0, 300_000) == bytes);
}

#[test]
fn closing_can_settle() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 300_000);
    let engine = open(&rig);
    engine
        .privileged()
        .write(find(&engine, "f"), 9, b"new", false)
        .unwrap();
    let settled = engine.close_settled(&mut |_| {}, &Cancel::new()).unwrap();
    assert!(settled.unwrap().complete);
    bytes[9..12].copy_from_slice(b"new");
    assert!(std::fs::read(rig.upper.join("f")).unwrap() == bytes);
    assert!(!is_unsettled(&rig.upper.join("f")));
}

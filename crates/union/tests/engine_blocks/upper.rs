//! Other properties of such an engine: limits, flags, few descriptors.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use vellum_testkit::FsKind;
use vellum_union::engine::{Engine, NodeId};
use vellum_union::{Error, Refusal};

use super::rig::{MIB, block_options, find, lower, mark, open, read, resize};
use crate::engine_support::{ROOT, Rig};

#[test]
fn a_limit_refuses_what_does_not_fit() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    lower(&rig, "small", 30_000);
    let limited = |size: Option<u64>, inodes: Option<u64>| {
        let mut options = block_options(&rig);
        let upper = options.upper.as_mut().unwrap();
        upper.blocks_from_bytes = None;
        upper.limit.size_bytes = size;
        upper.limit.inodes = inodes;
        Engine::open(options).unwrap()
    };
    let is_limit = |error: Error| {
        matches!(
            error,
            Error::Refused {
                refusal: Refusal::LimitReached
            }
        )
    };
    let new = vellum_union::engine::NewNode::File;
    let engine = limited(Some(MIB), Some(5));
    let entry = engine
        .privileged()
        .create(NodeId::ROOT, OsStr::new("a"), &new, 0o644, &ROOT)
        .unwrap();
    let mut at = 0;
    while engine
        .privileged()
        .write(entry.node, at, &[1; 50_000], false)
        .is_ok()
    {
        at += 50_000;
        assert!(at < 2 * MIB);
    }
    assert!(at > MIB - 200_000, "{at}");
    // Copying up does not fit either, and leaves nothing.
    let before: Vec<_> = std::fs::read_dir(&rig.upper).unwrap().collect();
    engine
        .privileged()
        .write(entry.node, at, &[1; 4096], false)
        .ok();
    engine
        .privileged()
        .write(entry.node, at + 4096, &[1; 4096], false)
        .ok();
    let small = find(&engine, "small");
    let room = engine.statfs().unwrap();
    assert_eq!(room.blocks * u64::from(room.block_bytes), MIB);
    assert!(room.blocks_free * u64::from(room.block_bytes) < 100_000);
    if room.blocks_free * u64::from(room.block_bytes) < 30_000 {
        assert!(is_limit(
            engine
                .privileged()
                .write(small, 0, b"x", false)
                .unwrap_err()
        ));
        assert_eq!(std::fs::read_dir(&rig.upper).unwrap().count(), before.len());
    }
    // Overwriting needs no space, and freed space can be used.
    engine
        .privileged()
        .write(entry.node, 0, &[2; 50_000], false)
        .unwrap();
    resize(&engine, entry.node, 1000);
    engine.privileged().write(small, 0, b"x", false).unwrap();
    let made = ["b", "c", "d"].map(|name| {
        let made = engine
            .privileged()
            .create(NodeId::ROOT, OsStr::new(name), &new, 0o644, &ROOT);
        made.unwrap().node
    });
    let error = engine
        .privileged()
        .create(NodeId::ROOT, OsStr::new("e"), &new, 0o644, &ROOT)
        .unwrap_err();
    assert!(is_limit(error));
    engine
        .privileged()
        .unlink(NodeId::ROOT, OsStr::new("b"))
        .unwrap();
    // It exists as long as it is in use; a call that comes a moment too early waits for its end.
    let create = || {
        engine
            .privileged()
            .create(NodeId::ROOT, OsStr::new("e"), &new, 0o644, &ROOT)
    };
    assert!(is_limit(create().unwrap_err()));
    std::thread::scope(|scope| {
        scope.spawn(|| engine.forget(made[0], 1));
        let until = Instant::now() + Duration::from_secs(30);
        while let Err(error) = create() {
            assert!(is_limit(error) && Instant::now() < until);
        }
    });
    let free = engine.statfs().unwrap();
    engine.close().unwrap();
    // Saved figures, and figures counted after a crash, are the same.
    let engine = limited(Some(MIB), Some(5));
    assert_eq!(engine.statfs().unwrap().inodes_free, 0);
    assert_eq!(engine.statfs().unwrap().blocks_free, free.blocks_free);
    drop(engine);
    let engine = limited(Some(MIB), Some(5));
    let counted = engine.statfs().unwrap();
    assert_eq!(counted.inodes_free, 0);
    assert!(
        counted.blocks_free.abs_diff(free.blocks_free) <= 8,
        "{counted:?} {free:?}"
    );
}

#[test]
fn flags_are_kept_in_marks() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    const IMMUTABLE: u32 = 0x10;
    const APPEND: u32 = 0x20;
    const NO_DUMP: u32 = 0x40;
    std::fs::write(rig.lowers[0].join("f"), "lower").unwrap();
    let engine = open(&rig);
    let node = find(&engine, "f");
    let before = engine.flags(node).unwrap();
    engine
        .privileged()
        .set_flags(node, before | IMMUTABLE | NO_DUMP)
        .unwrap();
    assert_eq!(engine.flags(node).unwrap() & 0x70, IMMUTABLE | NO_DUMP);
    let denied = |error: Error| {
        matches!(
            error,
            Error::Refused {
                refusal: Refusal::NotPermitted
            }
        )
    };
    assert!(denied(
        engine.privileged().write(node, 0, b"x", false).unwrap_err()
    ));
    assert_eq!(read(&engine, node, 0, 9), b"lower");
    engine
        .privileged()
        .set_flags(node, before | APPEND)
        .unwrap();
    assert!(denied(
        engine.privileged().write(node, 0, b"x", false).unwrap_err()
    ));
    engine.privileged().write(node, 5, b"+", false).unwrap();
    engine.close().unwrap();
    let value = mark(&rig.upper.join("f"), "trusted.overlay.protattr");
    assert_eq!(value.as_deref(), Some(&b"a"[..]));
    let engine = open(&rig);
    let node = find(&engine, "f");
    assert_eq!(engine.flags(node).unwrap() & 0x70, APPEND);
    engine.privileged().set_flags(node, before).unwrap();
    engine.privileged().write(node, 0, b"L", false).unwrap();
    assert_eq!(read(&engine, node, 0, 9), b"Lower+");
    engine.close().unwrap();
}

#[test]
fn descriptors_stay_few() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    for file in 0..600 {
        std::fs::write(rig.lowers[0].join(format!("f{file}")), [7; 100]).unwrap();
    }
    let engine = open(&rig);
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let nodes: Vec<_> = (0..600)
        .map(|file| find(&engine, &format!("f{file}")))
        .collect();
    for node in &nodes {
        assert_eq!(read(&engine, *node, 0, 200).len(), 100);
        engine.privileged().write(*node, 50, b"x", false).unwrap();
    }
    let after = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests open files at the same time.
    assert!(after < before + 400, "{before} {after}");
    for node in &nodes {
        assert_eq!(read(&engine, *node, 50, 1), b"x");
    }
}

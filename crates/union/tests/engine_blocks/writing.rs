//! Reads return what was written to them, also with other users of the file and after kills and
//! crashes; and what it costs.

use std::ffi::OsStr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use vellum_testkit::rng::Rng;
use vellum_testkit::{FsKind, Scratch};
use vellum_union::Error;
use vellum_union::engine::{Engine, NodeId, SetAttr, Whence};

use super::rig::{
    MIB, content, find, is_unsettled, lower, maps, of, open, read, resize, settle_now,
};
use crate::engine_support::Rig;

/// Returns the bytes in use below a directory.
fn usage(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            bytes += usage(&entry.path());
        }
    }
    bytes
}

#[test]
fn one_byte_of_ten_gib_costs_less_than_a_mib() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    // Much larger than its file system: there is no space for a whole copy.
    let big = std::fs::File::create(rig.lowers[0].join("big")).unwrap();
    big.set_len(10 << 30).unwrap();
    let at = (5 << 30) + 12_345;
    big.write_all_at(&[7; 65536], at - 4096).unwrap();
    let engine = open(&rig);
    let node = find(&engine, "big");
    let before = usage(&rig.upper) + usage(&rig.work);
    assert_eq!(engine.privileged().write(node, at, b"!", false).unwrap(), 1);
    engine.sync(node, false).unwrap();
    let after = usage(&rig.upper) + usage(&rig.work);
    assert!(after - before < MIB, "{}", after - before);
    let mut expected = vec![7; 65536];
    expected[4096] = b'!';
    assert_eq!(read(&engine, node, at - 4096, 65536), expected);
    assert_eq!(engine.attr(node).unwrap().size_bytes, 10 << 30);
    assert_eq!(
        engine.seek(node, Whence::Data, 0).unwrap() / 65536,
        (at - 4096) / 65536
    );
    engine.close().unwrap();
    assert!(is_unsettled(&rig.upper.join("big")));
    let engine = open(&rig);
    let node = find(&engine, "big");
    assert_eq!(read(&engine, node, at - 4096, 65536), expected);
    // Truncating to 0 as the first change copies nothing, either.
    resize(&engine, node, 0);
    assert_eq!(read(&engine, node, 0, 100), b"");
    engine.close().unwrap();
    assert!(
        !is_unsettled(&rig.upper.join("big")),
        "nothing of the lower file is left"
    );
    assert!(maps(&rig).is_empty());
}

#[test]
fn a_fully_written_file_becomes_plain() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let node = find(&engine, "f");
    for part in 0..20 {
        assert!(part == 0 || is_unsettled(&rig.upper.join("f")));
        engine
            .privileged()
            .write(node, part * 10_000, &[9; 10_000], false)
            .unwrap();
    }
    assert!(!is_unsettled(&rig.upper.join("f")));
    assert!(maps(&rig).is_empty());
    assert!(!rig.work.join("work/incompat/vellum-blocks").exists());
    assert_eq!(
        std::fs::read(rig.upper.join("f")).unwrap(),
        vec![9; 200_000]
    );
    // Descriptors and later writes still work.
    engine.privileged().write(node, 5, b"later", false).unwrap();
    assert_eq!(read(&engine, node, 4, 7), b"\x09later\x09");
    engine.close().unwrap();
}

#[test]
fn truncated_bytes_never_come_back() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let bytes = lower(&rig, "f", 200_000);
    for reopen in [false, true] {
        let mut engine = open(&rig);
        let mut node = find(&engine, "f");
        engine.privileged().write(node, 0, b"x", false).unwrap();
        resize(&engine, node, 100_001);
        if reopen {
            // Killed before the truncation was recorded.
            drop(engine);
            engine = open(&rig);
            node = find(&engine, "f");
        }
        resize(&engine, node, 150_000);
        if reopen {
            drop(engine);
            engine = open(&rig);
            node = find(&engine, "f");
        }
        engine
            .privileged()
            .write(node, 160_000, b"end", false)
            .unwrap();
        let mut expected = bytes[..100_001].to_vec();
        expected[0] = b'x';
        expected.resize(160_000, 0);
        expected.extend_from_slice(b"end");
        assert!(read(&engine, node, 0, 300_000) == expected);
        engine.close().unwrap();
        let engine = open(&rig);
        let node = find(&engine, "f");
        assert!(read(&engine, node, 0, 300_000) == expected);
        engine
            .privileged()
            .unlink(NodeId::ROOT, OsStr::new("f"))
            .unwrap();
        engine.close().unwrap();
        assert!(maps(&rig).is_empty(), "the map goes with the last name");
        std::fs::remove_file(rig.upper.join("f")).unwrap();
    }
}

/// Makes a map look as if its last writer ran before the last boot.
fn as_of_another_boot(map: &Path) {
    use vellum_format::block_map::{BlockMapHeader, BlockRecord, Epoch, RECORD_BYTES};
    let mut bytes = std::fs::read(map).unwrap();
    let (header, length) = BlockMapHeader::parse(&bytes).unwrap();
    for (number, record) in bytes[length..].chunks_exact_mut(RECORD_BYTES).enumerate() {
        let number = number as u64;
        if let Some(BlockRecord::Opened(_)) = BlockRecord::parse(record, &header.id, number) {
            let before = BlockRecord::Opened(Epoch {
                boot: [1; 16],
                mount: 1,
            });
            record.copy_from_slice(&before.encode(&header.id, number));
        }
    }
    std::fs::write(map, bytes).unwrap();
}

#[test]
fn unsynced_bytes_are_old_after_a_power_cut() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let node = find(&engine, "f");
    engine
        .privileged()
        .write(node, 10, b"synced", false)
        .unwrap();
    engine.sync(node, true).unwrap();
    engine
        .privileged()
        .write(node, 100_000, b"not synced", false)
        .unwrap();
    drop(engine);
    // Power cut: the record is on disk, the data is not.
    let upper = std::fs::File::options()
        .write(true)
        .open(rig.upper.join("f"))
        .unwrap();
    upper.write_all_at(&[0; 8192], 98_304).unwrap();
    as_of_another_boot(&maps(&rig).pop().unwrap());
    bytes[10..16].copy_from_slice(b"synced");
    for write in [false, true, false] {
        let engine = open(&rig);
        let node = find(&engine, "f");
        assert!(read(&engine, node, 0, 300_000) == bytes);
        if write {
            // The rest of the block comes from below, not from the bytes in the upper inode.
            engine
                .privileged()
                .write(node, 100_000, b"again", false)
                .unwrap();
            bytes[100_000..100_005].copy_from_slice(b"again");
            assert!(read(&engine, node, 0, 300_000) == bytes);
        }
        engine.close().unwrap();
    }
    // Once closed, everything was synced.
    as_of_another_boot(&maps(&rig).pop().unwrap());
    assert!(settle_now(&rig).unwrap().complete);
    assert!(std::fs::read(rig.upper.join("f")).unwrap() == bytes);
}

#[test]
fn a_hard_link_of_a_file_copied_by_blocks_is_one_file() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "a", 200_000);
    std::fs::hard_link(rig.lowers[0].join("a"), rig.lowers[0].join("b")).unwrap();
    let engine = open(&rig);
    engine
        .privileged()
        .write(find(&engine, "a"), 70_000, b"new", false)
        .unwrap();
    bytes[70_000..70_003].copy_from_slice(b"new");
    assert!(read(&engine, find(&engine, "b"), 0, 300_000) == bytes);
    engine.close().unwrap();
    let engine = open(&rig);
    let node = find(&engine, "b");
    assert!(read(&engine, node, 0, 300_000) == bytes);
    engine
        .privileged()
        .write(node, 100_000, b"more", false)
        .unwrap();
    bytes[100_000..100_004].copy_from_slice(b"more");
    assert!(read(&engine, find(&engine, "a"), 0, 300_000) == bytes);
    engine
        .privileged()
        .unlink(NodeId::ROOT, OsStr::new("a"))
        .unwrap();
    assert!(read(&engine, node, 0, 300_000) == bytes);
    engine.close().unwrap();
    assert!(settle_now(&rig).unwrap().complete);
    assert!(maps(&rig).is_empty());
    let target = rig.mount_kernel(&rig.upper, &rig.work);
    assert!(content(&target.join("b")).unwrap() == bytes);
    assert!(!target.join("a").exists());
    rig.scratch.unmount(&target);
}

#[test]
fn threads_share_a_file_copied_by_blocks() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    const PART: usize = 300_000;
    const THREADS: usize = 4;
    let bytes = lower(&rig, "f", PART * THREADS);
    let engine = open(&rig);
    let node = find(&engine, "f");
    let seed = Rng::for_test("threads on one file").seed();
    let expected: Vec<u8> = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let (engine, mut own) = (&engine, bytes[thread * PART..][..PART].to_vec());
            let mut rng = Rng::seeded(seed + thread as u64);
            move || {
                for _ in 0..300 {
                    let at = rng.below(PART);
                    let length = (1 + rng.below(9000)).min(PART - at);
                    let offset = (thread * PART + at) as u64;
                    match rng.below(8) {
                        0 => {
                            engine
                                .privileged()
                                .fallocate(node, 3, offset, length as u64)
                                .unwrap();
                            own[at..at + length].fill(0);
                        }
                        1 => engine.sync(node, true).unwrap(),
                        2 => assert!(read(engine, node, offset, length) == own[at..at + length]),
                        3 => {
                            engine.attr(node).unwrap();
                            assert!(engine.seek(node, Whence::Hole, offset).is_ok());
                        }
                        _ => {
                            let data = vec![rng.next() as u8; length];
                            engine
                                .privileged()
                                .write(node, offset, &data, false)
                                .unwrap();
                            own[at..at + length].copy_from_slice(&data);
                        }
                    }
                }
                own
            }
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(work(thread)))
            .collect();
        let parts = threads.into_iter().map(|thread| thread.join().unwrap());
        parts.flatten().collect()
    });
    assert!(read(&engine, node, 0, PART * THREADS + 1) == expected);
    engine.close().unwrap();
    let engine = open(&rig);
    assert!(read(&engine, find(&engine, "f"), 0, PART * THREADS + 1) == expected);
    engine.close().unwrap();
    assert!(settle_now(&rig).unwrap().complete);
    assert!(std::fs::read(rig.upper.join("f")).unwrap() == expected);
}

#[test]
fn an_unlinked_file_stays_usable() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let node = find(&engine, "f");
    engine.privileged().write(node, 10, b"one", false).unwrap();
    engine
        .privileged()
        .unlink(NodeId::ROOT, OsStr::new("f"))
        .unwrap();
    engine
        .privileged()
        .write(node, 100_000, b"two", false)
        .unwrap();
    bytes[10..13].copy_from_slice(b"one");
    bytes[100_000..100_003].copy_from_slice(b"two");
    assert!(read(&engine, node, 0, 300_000) == bytes);
    resize(&engine, node, 50);
    resize(&engine, node, 60);
    assert_eq!(
        read(&engine, node, 48, 100),
        [&bytes[48..50], &[0; 10]].concat()
    );
    engine.forget(node, 1);
    engine.close().unwrap();
    assert!(maps(&rig).is_empty());
}

#[test]
fn a_full_file_system_leaves_old_or_new() {
    let Some(rig) = Rig::on(FsKind::Tmpfs, 1) else {
        return;
    };
    // Of 64 MiB; the lower layer is elsewhere.
    let scratch = Scratch::new();
    let size = 80 * MIB;
    let pattern = |at: u64| (at / 4096 % 251) as u8 + 1;
    let path = scratch.file("lower/big", "");
    let big = std::fs::File::options().write(true).open(&path).unwrap();
    for at in (0..size).step_by(4096) {
        big.write_all_at(&[pattern(at); 4096], at).unwrap();
    }
    let lowers = [path.parent().unwrap().to_owned()];
    let engine = Engine::open(of(&lowers, &rig.upper, &rig.work)).unwrap();
    let node = find(&engine, "big");
    let mut wrote_to = 0;
    let data = vec![0xff; 100_000];
    let full = loop {
        match engine.privileged().write(node, wrote_to, &data, false) {
            Ok(count) => wrote_to += count as u64,
            Err(error) => break error,
        }
    };
    match full {
        Error::Io { source, .. } => assert!(source.is_no_space(), "{source:?}"),
        other => panic!("{other:?}"),
    }
    assert!(wrote_to > 32 * MIB && wrote_to < 64 * MIB, "{wrote_to}");
    let check = |engine: &Engine, node: NodeId| {
        let mut at = 0;
        while at < size {
            let got = read(engine, node, at, 4096);
            for (byte, at) in got.iter().zip(at..) {
                let expected = if at < wrote_to { 0xff } else { pattern(at) };
                assert_eq!(*byte, expected, "{at} of {wrote_to}");
            }
            at += 4096;
        }
        assert_eq!(engine.attr(node).unwrap().size_bytes, size);
    };
    check(&engine, node);
    drop(engine);
    let engine = Engine::open(of(&lowers, &rig.upper, &rig.work)).unwrap();
    check(&engine, find(&engine, "big"));
}

#[test]
fn a_renamed_or_changed_file_keeps_its_blocks() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    std::fs::create_dir(rig.lowers[0].join("dir")).unwrap();
    let mut bytes = lower(&rig, "dir/f", 200_000);
    let engine = open(&rig);
    let dir = find(&engine, "dir");
    let node = engine.lookup(dir, OsStr::new("f")).unwrap().unwrap().node;
    // Attributes first: a metacopy becomes a file copied by blocks.
    let change = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    engine.privileged().set_attr(node, &change).unwrap();
    engine
        .privileged()
        .write(node, 150_000, b"new", false)
        .unwrap();
    bytes[150_000..150_003].copy_from_slice(b"new");
    assert!(is_unsettled(&rig.upper.join("dir/f")));
    let replace = vellum_union::engine::RenameMode::Replace;
    engine
        .privileged()
        .rename(
            NodeId::ROOT,
            OsStr::new("dir"),
            NodeId::ROOT,
            OsStr::new("dir2"),
            replace,
        )
        .unwrap();
    engine
        .privileged()
        .rename(dir, OsStr::new("f"), dir, OsStr::new("g"), replace)
        .unwrap();
    assert!(read(&engine, node, 0, 300_000) == bytes);
    engine.close().unwrap();
    let engine = open(&rig);
    let dir = find(&engine, "dir2");
    let entry = engine.lookup(dir, OsStr::new("g")).unwrap().unwrap();
    assert_eq!(entry.attr.mode, 0o600);
    assert!(read(&engine, entry.node, 0, 300_000) == bytes);
    engine.close().unwrap();
    assert!(settle_now(&rig).unwrap().complete);
    assert!(std::fs::read(rig.upper.join("dir2/g")).unwrap() == bytes);
    let target = rig.mount_kernel(&rig.upper, &rig.work);
    assert!(content(&target.join("dir2/g")).unwrap() == bytes);
    rig.scratch.unmount(&target);
}

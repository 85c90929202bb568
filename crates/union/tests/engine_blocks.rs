//! Files copied up block by block: what they cost, that nobody but Vellum reads them, that they are never read with
//! another lower file or a damaged map, and that they become plain: by themselves, or by a settling.

mod engine_support;

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_support::{Rig, options};
use vellum_format::Prefix;
use vellum_sys::{Cancel, xattr};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::rng::Rng;
use vellum_testkit::{FsKind, Scratch};
use vellum_union::engine::{
    Caller, Durability, Engine, EngineOptions, NodeId, SetAttr, SettleOptions, Settled, Whence,
    settle,
};
use vellum_union::{
    BlockMaps, Dialect, DirLayer, Error, Form, Layer, Node, Refusal, Result, Stack, changes,
};

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};
const MIB: u64 = 1 << 20;

fn block_options(rig: &Rig) -> EngineOptions {
    of(&rig.lowers, &rig.upper, &rig.work)
}

fn of(lowers: &[PathBuf], upper: &Path, work: &Path) -> EngineOptions {
    let mut options = options(lowers, upper, work);
    let upper = options.upper.as_mut().unwrap();
    upper.blocks_from_bytes = Some(64 * 1024);
    upper.durability = Durability::Full;
    options
}

fn open(rig: &Rig) -> Engine {
    Engine::open(block_options(rig)).unwrap()
}

fn find(engine: &Engine, name: &str) -> NodeId {
    let entry = engine.lookup(NodeId::ROOT, OsStr::new(name)).unwrap();
    entry.expect("it is there").node
}

fn read(engine: &Engine, node: NodeId, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    let count = engine.read(node, offset, &mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}

fn resize(engine: &Engine, node: NodeId, size: u64) {
    let change = SetAttr {
        size_bytes: Some(size),
        ..SetAttr::default()
    };
    engine.set_attr(node, &change).unwrap();
}

/// A lower file of `size` bytes, none of them zero.
fn lower(rig: &Rig, name: &str, size: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..size).map(|i| (i / 3 % 251) as u8 + 1).collect();
    std::fs::write(rig.lowers[0].join(name), &bytes).unwrap();
    bytes
}

fn layer(path: &Path) -> Arc<dyn Layer> {
    Arc::new(DirLayer::open(path, Dialect::kernel(Prefix::Trusted)).unwrap())
}

fn settle_options(rig: &Rig) -> SettleOptions {
    SettleOptions {
        upper: rig.upper.clone(),
        work: rig.work.clone(),
        prefix: Prefix::Trusted,
        lowers: rig.lowers.iter().map(|path| layer(path)).collect(),
        data_lowers: Vec::new(),
    }
}

fn settle_now(rig: &Rig) -> Result<Settled> {
    settle(&settle_options(rig), &mut |_| {}, &Cancel::new())
}

fn mark(path: &Path, name: &str) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).unwrap();
    xattr::get_fd(&file, OsStr::new(name)).unwrap()
}

fn is_unsettled(path: &Path) -> bool {
    let metacopy = mark(path, "trusted.overlay.metacopy");
    assert_eq!(
        metacopy.is_some(),
        mark(path, "trusted.overlay.vellum.blocks").is_some()
    );
    metacopy.is_some_and(|value| value.len() == 1)
}

/// Bytes in use below a directory.
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

fn maps(rig: &Rig) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(rig.work.join("vellum/blocks")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn one_byte_of_ten_gib_costs_less_than_a_mib() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    // Much larger than its file system: there is no room for a whole copy.
    let big = std::fs::File::create(rig.lowers[0].join("big")).unwrap();
    big.set_len(10 << 30).unwrap();
    let at = (5 << 30) + 12_345;
    big.write_all_at(&[7; 65536], at - 4096).unwrap();
    let engine = open(&rig);
    let node = find(&engine, "big");
    let before = usage(&rig.upper) + usage(&rig.work);
    assert_eq!(engine.write(node, at, b"!", false).unwrap(), 1);
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
    // The first write of a truncation to nothing copies nothing, either.
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
fn a_file_written_whole_is_plain_by_itself() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let node = find(&engine, "f");
    for part in 0..20 {
        assert!(part == 0 || is_unsettled(&rig.upper.join("f")));
        engine
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
    // Descriptors and later writes go on.
    engine.write(node, 5, b"later", false).unwrap();
    assert_eq!(read(&engine, node, 4, 7), b"\x09later\x09");
    engine.close().unwrap();
}

#[test]
fn what_was_cut_never_comes_back() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let bytes = lower(&rig, "f", 200_000);
    for reopen in [false, true] {
        let mut engine = open(&rig);
        let mut node = find(&engine, "f");
        engine.write(node, 0, b"x", false).unwrap();
        resize(&engine, node, 100_001);
        if reopen {
            // Killed before anything was said about the cut.
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
        engine.write(node, 160_000, b"end", false).unwrap();
        let mut expected = bytes[..100_001].to_vec();
        expected[0] = b'x';
        expected.resize(160_000, 0);
        expected.extend_from_slice(b"end");
        assert!(read(&engine, node, 0, 300_000) == expected);
        engine.close().unwrap();
        let engine = open(&rig);
        let node = find(&engine, "f");
        assert!(read(&engine, node, 0, 300_000) == expected);
        engine.unlink(NodeId::ROOT, OsStr::new("f")).unwrap();
        engine.close().unwrap();
        assert!(maps(&rig).is_empty(), "the map goes with the last name");
        std::fs::remove_file(rig.upper.join("f")).unwrap();
    }
}

/// Makes a map look as if its last writer ran before the machine was last started.
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
fn what_was_not_synced_before_a_power_cut_is_old() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let node = find(&engine, "f");
    engine.write(node, 10, b"synced", false).unwrap();
    engine.sync(node, true).unwrap();
    engine.write(node, 100_000, b"not synced", false).unwrap();
    drop(engine);
    // The power goes: the record is on disk, the data is not.
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
            // The rest of the block comes from below, not from what lies in the upper inode.
            engine.write(node, 100_000, b"again", false).unwrap();
            bytes[100_000..100_005].copy_from_slice(b"again");
            assert!(read(&engine, node, 0, 300_000) == bytes);
        }
        engine.close().unwrap();
    }
    // Once closed, it was all synced.
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
        .write(find(&engine, "a"), 70_000, b"new", false)
        .unwrap();
    bytes[70_000..70_003].copy_from_slice(b"new");
    assert!(read(&engine, find(&engine, "b"), 0, 300_000) == bytes);
    engine.close().unwrap();
    let engine = open(&rig);
    let node = find(&engine, "b");
    assert!(read(&engine, node, 0, 300_000) == bytes);
    engine.write(node, 100_000, b"more", false).unwrap();
    bytes[100_000..100_004].copy_from_slice(b"more");
    assert!(read(&engine, find(&engine, "a"), 0, 300_000) == bytes);
    engine.unlink(NodeId::ROOT, OsStr::new("a")).unwrap();
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
                            engine.fallocate(node, 3, offset, length as u64).unwrap();
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
                            engine.write(node, offset, &data, false).unwrap();
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
    engine.write(node, 10, b"one", false).unwrap();
    engine.unlink(NodeId::ROOT, OsStr::new("f")).unwrap();
    engine.write(node, 100_000, b"two", false).unwrap();
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
        match engine.write(node, wrote_to, &data, false) {
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

/// Reads a file through a mount; errors as the program sees them.
fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn no_kernel_mount_serves_an_unsettled_file() {
    for prefix in [Prefix::Trusted, Prefix::User] {
        let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
            return;
        };
        lower(&rig, "f", 200_000);
        let mut options = block_options(&rig);
        options.upper.as_mut().unwrap().prefix = prefix;
        let engine = Engine::open(options).unwrap();
        let node = find(&engine, "f");
        engine.write(node, 70_000, b"new", false).unwrap();
        engine.close().unwrap();
        let target = rig.scratch.dir("kernel");
        let overlay = |work: &Path| Overlay {
            lowers: rig.lowers.clone(),
            data_lowers: Vec::new(),
            upper: Some((rig.upper.clone(), work.to_owned())),
            options: match prefix {
                Prefix::Trusted => Vec::new(),
                Prefix::User => vec![("userxattr".to_owned(), String::new())],
            },
        };
        let with = |overlay: Overlay, set: &[(&str, &str)]| {
            let add = |overlay: Overlay, (key, value): &(&str, &str)| overlay.option(key, value);
            set.iter().fold(overlay, add)
        };
        let sets: &[&[(&str, &str)]] = match prefix {
            Prefix::Trusted => &[
                &[],
                &[("metacopy", "off")],
                &[("metacopy", "on")],
                &[
                    ("metacopy", "on"),
                    ("redirect_dir", "on"),
                    ("index", "on"),
                    ("xino", "on"),
                ],
                &[("redirect_dir", "nofollow")],
                &[
                    ("redirect_dir", "off"),
                    ("index", "off"),
                    ("metacopy", "off"),
                ],
                &[("volatile", "")],
            ],
            Prefix::User => &[&[], &[("xino", "on")], &[("volatile", "")]],
        };
        for set in sets {
            // Its own work directory is refused.
            let own = with(overlay(&rig.work), set).mount(&rig.scratch, &target);
            assert!(own.is_err(), "{set:?}");
            // With a fresh one, or as a lower layer, the mount comes, and the file is an error.
            let fresh = rig.scratch.dir("fs/fresh");
            with(overlay(&fresh), set)
                .mount(&rig.scratch, &target)
                .unwrap();
            refused(&target.join("f"), set);
            rig.scratch.unmount(&target);
            std::fs::remove_dir_all(&fresh).unwrap();
            let other = rig.scratch.dir("fs/other");
            let fresh = rig.scratch.dir("fs/fresh");
            let mut as_lower = overlay(&fresh);
            as_lower.lowers = [std::slice::from_ref(&rig.upper), &rig.lowers[..]].concat();
            as_lower.upper = Some((other.clone(), fresh.clone()));
            with(as_lower.clone(), set)
                .mount(&rig.scratch, &target)
                .unwrap();
            refused(&target.join("f"), set);
            rig.scratch.unmount(&target);
            if !set
                .iter()
                .any(|(key, _)| *key == "volatile" || *key == "index")
            {
                as_lower.upper = None;
                with(as_lower, set).mount(&rig.scratch, &target).unwrap();
                refused(&target.join("f"), set);
                rig.scratch.unmount(&target);
            }
            std::fs::remove_dir_all(&fresh).unwrap();
            std::fs::remove_dir_all(&other).unwrap();
        }
    }
}

#[track_caller]
fn refused(path: &Path, set: &[(&str, &str)]) {
    let error = content(path).expect_err("the kernel serves it");
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error()),
        "{set:?}"
    );
}

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
        engine.write(node, 70_000, b"new", false).unwrap();
        engine
            .link(node, NodeId::ROOT, OsStr::new(&format!("{name}-link")))
            .unwrap();
    }
    let sub = engine
        .create(
            NodeId::ROOT,
            OsStr::new("dir"),
            &vellum_union::engine::NewNode::Dir,
            0o755,
            &ROOT,
        )
        .unwrap();
    engine
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
fn a_settling_that_is_stopped_goes_on_later() {
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
    engine.write(node, 5, b"new", false).unwrap();
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
    // Used in between, and changed: the change counts, its time too.
    let engine = open(&rig);
    let node = find(&engine, "f");
    assert_eq!(engine.attr(node).unwrap().mtime, times);
    engine.write(node, 39 * MIB, b"more", false).unwrap();
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
fn depth_is_no_obstacle_to_a_settling() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let file = find(&engine, "f");
    engine.write(file, 9, b"new", false).unwrap();
    bytes[9..12].copy_from_slice(b"new");
    // Longer than the 4096 bytes that the kernel takes.
    let name = "n".repeat(200);
    let mut dir = NodeId::ROOT;
    for _ in 0..30 {
        let what = vellum_union::engine::NewNode::Dir;
        let made = engine.create(dir, OsStr::new(&name), &what, 0o755, &ROOT);
        dir = made.unwrap().node;
    }
    let replace = vellum_union::engine::RenameMode::Replace;
    engine
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
    engine.write(find(&engine, "f"), 9, b"new", false).unwrap();
    let settled = engine.close_settled(&mut |_| {}, &Cancel::new()).unwrap();
    assert!(settled.unwrap().complete);
    bytes[9..12].copy_from_slice(b"new");
    assert!(std::fs::read(rig.upper.join("f")).unwrap() == bytes);
    assert!(!is_unsettled(&rig.upper.join("f")));
}

#[test]
fn another_lower_file_is_an_error_and_never_read() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    engine.write(find(&engine, "f"), 0, b"new", false).unwrap();
    engine.close().unwrap();
    let path = rig.lowers[0].join("f");
    let aside = rig.lowers[0].join("aside");
    let expect = |why: &str| {
        let engine = open(&rig);
        let node = find(&engine, "f");
        let error = engine.read(node, 100_000, &mut [0; 100]).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Blocks { .. }) && text.contains(why),
            "{text}"
        );
        let error = engine.write(node, 100_000, b"x", false).unwrap_err();
        assert!(matches!(error, Error::Blocks { .. }), "{error:?}");
        engine.close().unwrap();
        assert!(matches!(
            settle_now(&rig).unwrap_err(),
            Error::Blocks { .. }
        ));
    };
    // An identical copy is another file.
    std::fs::rename(&path, &aside).unwrap();
    let status = std::process::Command::new("cp")
        .args(["-a", "--reflink=never"])
        .args([&aside, &path])
        .status();
    assert!(status.unwrap().success());
    expect("replaced");
    std::fs::write(&path, &bytes[..1000]).unwrap();
    expect("size");
    std::fs::remove_file(&path).unwrap();
    let engine = open(&rig);
    let error = engine
        .read(find(&engine, "f"), 100_000, &mut [0; 10])
        .unwrap_err();
    assert!(error.to_string().contains("in no layer below"), "{error}");
    engine.close().unwrap();
    std::fs::rename(&aside, &path).unwrap();
    let engine = open(&rig);
    assert_eq!(
        read(&engine, find(&engine, "f"), 100_000, 9),
        &bytes[100_000..100_009]
    );
    engine.close().unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"changed", 50)
        .unwrap();
    expect("changed");
}

#[test]
fn a_damaged_map_is_an_error_or_makes_no_difference() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let node = find(&engine, "f");
    for at in [0, 50_000, 120_000] {
        engine.write(node, at, b"new", false).unwrap();
        bytes[at as usize..at as usize + 3].copy_from_slice(b"new");
        engine.sync(node, true).unwrap();
    }
    resize(&engine, node, 190_000);
    bytes.truncate(190_000);
    engine.close().unwrap();
    let map = maps(&rig).pop().unwrap();
    let good = std::fs::read(&map).unwrap();
    let mut rng = Rng::for_test("damaged maps");
    let mut errors = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.below(8);
        std::fs::write(&map, &bad).unwrap();
        let stack = stack(&rig);
        let node = stack.lookup(Path::new("f")).unwrap().unwrap();
        match node.open_data() {
            Ok(mut data) => {
                let mut got = Vec::new();
                data.read_to_end(&mut got).unwrap();
                assert!(got == bytes, "byte {at}");
            }
            Err(Error::Blocks { .. }) => errors += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    // The others are in barriers, which are written twice.
    assert!(errors > good.len() / 4, "{errors} of {}", good.len());
    std::fs::remove_file(&map).unwrap();
    let node = stack(&rig).lookup(Path::new("f")).unwrap().unwrap();
    let error = node.open_data().unwrap_err();
    assert!(
        error.to_string().contains("not in this work directory"),
        "{error}"
    );
    std::fs::write(&map, &good).unwrap();
    assert!(settle_now(&rig).unwrap().complete);
    assert!(std::fs::read(rig.upper.join("f")).unwrap() == bytes);
}

/// The union as one who does not mount it reads it, with the maps of its work directory.
fn stack(rig: &Rig) -> Stack {
    let maps = BlockMaps::open(&rig.work).unwrap().map(Arc::new);
    let upper = DirLayer::open(&rig.upper, Dialect::kernel(Prefix::Trusted)).unwrap();
    let mut layers: Vec<Arc<dyn Layer>> = vec![Arc::new(upper.with_block_maps(maps))];
    layers.extend(rig.lowers.iter().map(|path| layer(path)));
    Stack::new(layers).unwrap()
}

#[test]
fn changes_are_read_through_the_map() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    engine
        .write(find(&engine, "f"), 100, b"new", false)
        .unwrap();
    bytes[100..103].copy_from_slice(b"new");
    // Also while the engine is open.
    for _ in 0..2 {
        let changed: Vec<_> = changes(&stack(&rig), Form::Layer)
            .unwrap()
            .collect::<Result<_>>()
            .unwrap();
        assert_eq!(changed.len(), 1);
        let node: &Node = changed[0].node.as_ref().unwrap();
        let mut data = node.open_data().unwrap();
        assert!(data.as_file().is_none());
        let mut got = Vec::new();
        data.read_to_end(&mut got).unwrap();
        assert!(got == bytes);
    }
    engine.close().unwrap();
    // Without the maps, and as a lower layer, it is an error that names it.
    let no_maps = Stack::new(vec![layer(&rig.upper), layer(&rig.lowers[0])]).unwrap();
    let error = no_maps.lookup(Path::new("f")).unwrap_err();
    assert!(matches!(error, Error::Unsettled { .. }), "{error:?}");
    let lowers = [rig.upper.clone(), rig.lowers[0].clone()];
    let (upper, work) = (rig.scratch.dir("fs/u2"), rig.scratch.dir("fs/w2"));
    let engine = Engine::open(of(&lowers, &upper, &work)).unwrap();
    let error = engine.lookup(NodeId::ROOT, OsStr::new("f")).unwrap_err();
    assert!(matches!(error, Error::Unsettled { .. }), "{error:?}");
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
    engine.set_attr(node, &change).unwrap();
    engine.write(node, 150_000, b"new", false).unwrap();
    bytes[150_000..150_003].copy_from_slice(b"new");
    assert!(is_unsettled(&rig.upper.join("dir/f")));
    let replace = vellum_union::engine::RenameMode::Replace;
    engine
        .rename(
            NodeId::ROOT,
            OsStr::new("dir"),
            NodeId::ROOT,
            OsStr::new("dir2"),
            replace,
        )
        .unwrap();
    engine
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

#[test]
fn a_file_of_a_limit_is_refused_what_does_not_fit() {
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
        .create(NodeId::ROOT, OsStr::new("a"), &new, 0o644, &ROOT)
        .unwrap();
    let mut at = 0;
    while engine.write(entry.node, at, &[1; 50_000], false).is_ok() {
        at += 50_000;
        assert!(at < 2 * MIB);
    }
    assert!(at > MIB - 200_000, "{at}");
    // Copying up does not fit either, and leaves nothing.
    let before: Vec<_> = std::fs::read_dir(&rig.upper).unwrap().collect();
    engine.write(entry.node, at, &[1; 4096], false).ok();
    engine.write(entry.node, at + 4096, &[1; 4096], false).ok();
    let small = find(&engine, "small");
    let room = engine.statfs().unwrap();
    assert_eq!(room.blocks * u64::from(room.block_bytes), MIB);
    assert!(room.blocks_free * u64::from(room.block_bytes) < 100_000);
    if room.blocks_free * u64::from(room.block_bytes) < 30_000 {
        assert!(is_limit(engine.write(small, 0, b"x", false).unwrap_err()));
        assert_eq!(std::fs::read_dir(&rig.upper).unwrap().count(), before.len());
    }
    // Overwriting needs nothing, and room given back can be used.
    engine.write(entry.node, 0, &[2; 50_000], false).unwrap();
    resize(&engine, entry.node, 1000);
    engine.write(small, 0, b"x", false).unwrap();
    for name in ["b", "c", "d"] {
        engine
            .create(NodeId::ROOT, OsStr::new(name), &new, 0o644, &ROOT)
            .unwrap();
    }
    let error = engine
        .create(NodeId::ROOT, OsStr::new("e"), &new, 0o644, &ROOT)
        .unwrap_err();
    assert!(is_limit(error));
    engine.unlink(NodeId::ROOT, OsStr::new("b")).unwrap();
    engine
        .create(NodeId::ROOT, OsStr::new("e"), &new, 0o644, &ROOT)
        .unwrap();
    let free = engine.statfs().unwrap();
    engine.close().unwrap();
    // Kept figures, and figures counted after a crash, are the same.
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
    assert!(denied(engine.write(node, 0, b"x", false).unwrap_err()));
    assert_eq!(read(&engine, node, 0, 9), b"lower");
    engine.set_flags(node, before | APPEND).unwrap();
    assert!(denied(engine.write(node, 0, b"x", false).unwrap_err()));
    engine.write(node, 5, b"+", false).unwrap();
    engine.close().unwrap();
    let value = mark(&rig.upper.join("f"), "trusted.overlay.protattr");
    assert_eq!(value.as_deref(), Some(&b"a"[..]));
    let engine = open(&rig);
    let node = find(&engine, "f");
    assert_eq!(engine.flags(node).unwrap() & 0x70, APPEND);
    engine.set_flags(node, before).unwrap();
    engine.write(node, 0, b"L", false).unwrap();
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
        engine.write(*node, 50, b"x", false).unwrap();
    }
    let after = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests open files at the same time.
    assert!(after < before + 400, "{before} {after}");
    for node in &nodes {
        assert_eq!(read(&engine, *node, 50, 1), b"x");
    }
}

//! The bytes of files in a live union, compared with bytes in memory: files that are copied whole,
//! shared, and copied up block by block, on several file systems, with the engine reopened and
//! files settled in between.

mod engine_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_support::{ROOT, Rig, read_all};
use vellum_format::Prefix;
use vellum_sys::Cancel;
use vellum_testkit::FsKind;
use vellum_testkit::rng::Rng;
use vellum_union::engine::{
    Durability, Engine, EngineOptions, Limit, NewNode, NodeId, SetAttr, SettleOptions, Whence,
    settle,
};
use vellum_union::{Dialect, DirLayer, Error, Layer, Records, Refusal};

const COLLAPSE: u32 = 8;
const INSERT: u32 = 32;
/// Their ranges are multiples of this.
const BLOCK: usize = 4096;
const KEEP_SIZE: u32 = 1;
const PUNCH: u32 = 2 | KEEP_SIZE;
const ZERO: u32 = 16;
const LARGEST: usize = 400_000;

/// One file as the engine should show it.
struct Model {
    name: &'static str,
    bytes: Vec<u8>,
}

/// The setup of a run.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: FsKind,
    blocks: Option<u64>,
    durability: Durability,
    /// With `User`, owners and modes are recorded too, as in a plain user's union.
    prefix: Prefix,
    limit: Limit,
    steps: usize,
}

const CASE: Case = Case {
    kind: FsKind::Ext4,
    blocks: Some(4096),
    durability: Durability::Full,
    prefix: Prefix::Trusted,
    limit: Limit {
        size_bytes: None,
        inodes: None,
    },
    steps: 3000,
};

fn options(rig: &Rig, case: Case) -> EngineOptions {
    let mut options = rig.options();
    let upper = options.upper.as_mut().unwrap();
    upper.blocks_from_bytes = case.blocks;
    upper.durability = case.durability;
    upper.prefix = case.prefix;
    upper.limit = case.limit;
    if case.prefix == Prefix::User {
        upper.records = Records::Read;
    }
    options
}

fn find(engine: &Engine, name: &str) -> NodeId {
    let entry = engine.lookup(NodeId::ROOT, OsStr::new(name)).unwrap();
    entry.expect("it is there").node
}

fn resize(engine: &Engine, node: NodeId, size: u64) {
    let change = SetAttr {
        size_bytes: Some(size),
        ..SetAttr::default()
    };
    let attr = engine.privileged().set_attr(node, &change).unwrap();
    assert_eq!(attr.size_bytes, size);
}

fn is_unsupported(error: &Error) -> bool {
    matches!(
        error,
        Error::Refused {
            refusal: Refusal::Unsupported
        }
    )
}

/// Writes a lower file: data, holes, and an unaligned end.
fn lower_bytes(rng: &mut Rng, path: &Path, size: usize) -> Vec<u8> {
    let file = fs::File::create_new(path).unwrap();
    file.set_len(size as u64).unwrap();
    let mut bytes = vec![0; size];
    for _ in 0..6 {
        let at = rng.below(size);
        let length = rng.below(60_000).min(size - at);
        bytes[at..at + length].fill(1 + rng.below(255) as u8);
        file.write_all_at(&bytes[at..at + length], at as u64)
            .unwrap();
    }
    bytes
}

struct Run<'a> {
    rng: &'a mut Rng,
    log: Vec<String>,
}

impl Run<'_> {
    fn range(&mut self, size: usize) -> (usize, usize) {
        let at = match self.rng.chance(30) {
            // Often at the border of a block, where mistakes live.
            true => (self.rng.below(LARGEST) & !4095)
                .saturating_add_signed(self.rng.below(3) as isize - 1),
            false => self.rng.below(size.max(1) + 5000),
        };
        let length = match self.rng.chance(60) {
            true => 1 + self.rng.below(5000),
            false => 1 + self.rng.below(60_000),
        };
        (at, length.min(LARGEST - at.min(LARGEST - 1)))
    }

    fn step(&mut self, engine: &Engine, files: &mut [Model]) {
        let which = self.rng.below(files.len());
        let node = find(engine, files[which].name);
        let size = files[which].bytes.len();
        let (at, length) = self.range(size);
        let op = self.rng.below(100);
        self.log.push(format!(
            "{} op {op} at {at} length {length} size {size}",
            files[which].name
        ));
        match op {
            0..35 => {
                let value = 1 + self.rng.below(255) as u8;
                let data: Vec<u8> = (0..length)
                    .map(|i| value.wrapping_add((i / 7) as u8))
                    .collect();
                let wrote = engine
                    .privileged()
                    .write(node, at as u64, &data, false)
                    .unwrap();
                assert_eq!(wrote, length);
                let bytes = &mut files[which].bytes;
                bytes.resize(bytes.len().max(at + length), 0);
                bytes[at..at + length].copy_from_slice(&data);
            }
            35..45 => {
                let size = match self.rng.chance(15) {
                    true => 0,
                    false => at,
                };
                resize(engine, node, size as u64);
                files[which].bytes.resize(size, 0);
            }
            45..60 => {
                let mode = [PUNCH, ZERO, ZERO | KEEP_SIZE, 0, KEEP_SIZE][self.rng.below(5)];
                match engine
                    .privileged()
                    .fallocate(node, mode, at as u64, length as u64)
                {
                    Err(error) if is_unsupported(&error) => {}
                    other => {
                        other.unwrap();
                        let bytes = &mut files[which].bytes;
                        if mode & KEEP_SIZE == 0 {
                            bytes.resize(bytes.len().max(at + length), 0);
                        }
                        if mode & (2 | ZERO) != 0 {
                            let end = (at + length).min(bytes.len());
                            if at < end {
                                bytes[at..end].fill(0);
                            }
                        }
                    }
                }
            }
            60..70 => {
                let source = self.rng.below(files.len());
                let from = self.rng.below(files[source].bytes.len() + 1);
                let from_node = find(engine, files[source].name);
                if source == which && from < at + length && at < from + length {
                    engine.forget(from_node, 1);
                    engine.forget(node, 1);
                    return;
                }
                let available = files[source].bytes.len() - from;
                let copied = engine
                    .privileged()
                    .copy_range(from_node, from as u64, node, at as u64, length as u64)
                    .unwrap() as usize;
                assert!(copied <= length.min(available));
                assert!(copied > 0 || available == 0, "nothing was copied");
                let data = files[source].bytes[from..from + copied].to_vec();
                let bytes = &mut files[which].bytes;
                if copied > 0 {
                    bytes.resize(bytes.len().max(at + copied), 0);
                    bytes[at..at + copied].copy_from_slice(&data);
                }
                engine.forget(from_node, 1);
            }
            70..85 => self.check_part(engine, node, &files[which], at, length),
            85..92 => check_holes(engine, node, &files[which]),
            92..96 => self.move_room(engine, node, &mut files[which]),
            _ => engine.sync(node, self.rng.chance(50)).unwrap(),
        }
        let attr = engine.attr(node).unwrap();
        assert_eq!(attr.size_bytes, files[which].bytes.len() as u64);
        // Sometimes the node stays known, sometimes it is looked up again.
        if self.rng.chance(70) {
            engine.forget(node, u64::MAX);
        }
    }

    /// Collapses or inserts blocks in the middle of a file.
    fn move_room(&mut self, engine: &Engine, node: NodeId, file: &mut Model) {
        let blocks = file.bytes.len() / BLOCK;
        if blocks < 3 {
            return;
        }
        let at = self.rng.below(blocks - 2) * BLOCK;
        let length = (1 + self.rng.below(3)) * BLOCK;
        let out = self.rng.chance(50) || file.bytes.len() + length > LARGEST;
        if out && at + length >= file.bytes.len() {
            return;
        }
        let mode = if out { COLLAPSE } else { INSERT };
        match engine
            .privileged()
            .fallocate(node, mode, at as u64, length as u64)
        {
            Err(error) if is_unsupported(&error) => {}
            other => {
                other.unwrap();
                match out {
                    true => drop(file.bytes.drain(at..at + length)),
                    false => drop(file.bytes.splice(at..at, vec![0; length])),
                }
            }
        }
    }

    fn check_part(&self, engine: &Engine, node: NodeId, file: &Model, at: usize, length: usize) {
        let mut got = vec![0xee; length];
        let count = engine.read(node, at as u64, &mut got).unwrap();
        let end = (at + length).min(file.bytes.len());
        let want = file.bytes.get(at..end).unwrap_or(&[]);
        assert_eq!(count, want.len());
        if let Some(bad) = (0..count).find(|&i| got[i] != want[i]) {
            panic!(
                "{}: byte {} is {}, should be {}",
                file.name,
                at + bad,
                got[bad],
                want[bad]
            );
        }
    }
}

/// Checks that holes contain only zeros, and that data and holes alternate up to the end.
fn check_holes(engine: &Engine, node: NodeId, file: &Model) {
    let size = file.bytes.len() as u64;
    let mut at = 0;
    while at < size {
        let data = match engine.seek(node, Whence::Data, at) {
            Ok(data) => data,
            Err(Error::Refused {
                refusal: Refusal::NoData,
            }) => size,
            Err(error) => panic!("{error:?}"),
        };
        assert!((at..=size).contains(&data));
        let hole = &file.bytes[at as usize..data as usize];
        assert!(
            hole.iter().all(|&byte| byte == 0),
            "data in a hole behind {at}"
        );
        if data == size {
            break;
        }
        let hole = engine.seek(node, Whence::Hole, data).unwrap();
        assert!((data..=size).contains(&hole), "{data} {hole} {size}");
        // ext4 itself reports a hole where it has just reported data, if that is allocated and not
        // yet written.
        at = hole.max(data + 1);
    }
    assert!(engine.seek(node, Whence::Data, size).is_err());
    assert!(engine.seek(node, Whence::Hole, size).is_err());
}

fn check_all(engine: &Engine, files: &[Model]) {
    for file in files {
        let node = find(engine, file.name);
        let mut got = vec![0; file.bytes.len() + 1];
        let count = engine.read(node, 0, &mut got).unwrap();
        assert_eq!(count, file.bytes.len(), "{}", file.name);
        got.truncate(count);
        if got != file.bytes {
            let bad = (0..count).find(|&i| got[i] != file.bytes[i]).unwrap();
            panic!(
                "{}: byte {bad} is {}, should be {}",
                file.name, got[bad], file.bytes[bad]
            );
        }
        engine.forget(node, 1);
    }
}

fn exercise(case: Case) {
    let Some(rig) = Rig::on(case.kind, 2) else {
        return;
    };
    let name = format!("data in {case:?}");
    let mut rng = Rng::for_test(&name);
    let mut files = Vec::new();
    for (layer, name, size) in [(0, "a", 300_001), (1, "b", 123_456), (1, "c", 40_960)] {
        let bytes = lower_bytes(&mut rng, &rig.lowers[layer].join(name), size);
        files.push(Model { name, bytes });
    }
    fs::write(rig.upper.join("plain"), "plain").unwrap();
    files.push(Model {
        name: "plain",
        bytes: b"plain".to_vec(),
    });
    let originals: Vec<_> = [(0, "a"), (1, "b"), (1, "c")]
        .map(|(layer, name)| fs::read(rig.lowers[layer].join(name)).unwrap())
        .into();
    let mut engine = Engine::open(options(&rig, case)).unwrap();
    let mut run = Run {
        rng: &mut rng,
        log: Vec::new(),
    };
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for step in 0..case.steps {
            run.step(&engine, &mut files);
            if step % 97 == 96 {
                check_all(&engine, &files);
            }
            if step % 241 == 240 {
                match run.rng.chance(50) || case.durability == Durability::Volatile {
                    true => engine = reopened(engine, &rig, case),
                    // As if killed: nothing is recorded as durable. (After that, a volatile upper
                    // is refused.)
                    false => {
                        drop(engine);
                        engine = Engine::open(options(&rig, case)).unwrap();
                    }
                }
                check_all(&engine, &files);
            }
            if step % 601 == 600 {
                engine.close().unwrap();
                settle_all(&rig, case.prefix, &files);
                engine = Engine::open(options(&rig, case)).unwrap();
                check_all(&engine, &files);
            }
        }
        check_all(&engine, &files);
        if case.limit.size_bytes.is_some() {
            check_counted(engine, &rig, case);
        }
    }));
    if let Err(panic) = done {
        for line in run.log.iter().rev().take(40).rev() {
            eprintln!("{line}");
        }
        std::panic::resume_unwind(panic);
    }
    for ((layer, name), original) in [(0, "a"), (1, "b"), (1, "c")].into_iter().zip(&originals) {
        let now = fs::read(rig.lowers[layer].join(name)).unwrap();
        assert!(now == *original, "a lower file was written to");
    }
}

/// Settles the upper, and checks that its files are right without a union.
fn settle_all(rig: &Rig, prefix: Prefix, files: &[Model]) {
    let layer = |path: &PathBuf| -> Arc<dyn Layer> {
        Arc::new(DirLayer::open(path, Dialect::kernel(Prefix::Trusted)).unwrap())
    };
    let options = SettleOptions {
        upper: rig.upper.clone(),
        work: rig.work.clone(),
        prefix,
        lowers: rig.lowers.iter().map(layer).collect(),
        data_lowers: Vec::new(),
    };
    let settled = settle(&options, &mut |_| {}, &Cancel::new()).unwrap();
    assert!(settled.complete);
    for file in files {
        // If it is not there, it is not copied up yet.
        if let Ok(bytes) = fs::read(rig.upper.join(file.name)) {
            assert!(bytes == file.bytes, "{} as settled", file.name);
        }
    }
}

/// Compares the figures kept up to date with a new count.
fn check_counted(engine: Engine, rig: &Rig, case: Case) {
    let kept = engine.statfs().unwrap();
    // As if killed: everything is counted.
    drop(engine);
    let engine = Engine::open(options(rig, case)).unwrap();
    let counted = engine.statfs().unwrap();
    let difference = kept.blocks_free.abs_diff(counted.blocks_free);
    assert!(
        difference * u64::from(kept.block_bytes) <= 64 << 10,
        "{kept:?} {counted:?}"
    );
    assert_eq!(kept.inodes_free, counted.inodes_free);
}

fn reopened(engine: Engine, rig: &Rig, case: Case) -> Engine {
    engine.close().unwrap();
    Engine::open(options(rig, case)).unwrap()
}

#[test]
fn files_copied_whole_hold_what_was_written() {
    exercise(Case {
        blocks: None,
        steps: 1500,
        ..CASE
    });
}

#[test]
fn files_copied_by_blocks_hold_what_was_written() {
    exercise(CASE);
}

#[test]
fn volatile_files_copied_by_blocks_hold_what_was_written() {
    exercise(Case {
        durability: Durability::Volatile,
        ..CASE
    });
}

#[test]
fn files_copied_by_blocks_on_tmpfs_hold_what_was_written() {
    exercise(Case {
        kind: FsKind::Tmpfs,
        ..CASE
    });
}

#[test]
fn files_with_marks_in_user_xattrs_hold_what_was_written() {
    exercise(Case {
        prefix: Prefix::User,
        steps: 1500,
        ..CASE
    });
}

#[test]
fn files_of_a_limited_union_hold_what_was_written() {
    for blocks in [None, Some(4096)] {
        exercise(Case {
            blocks,
            limit: Limit {
                size_bytes: Some(48 << 20),
                inodes: Some(100),
            },
            steps: 1000,
            ..CASE
        });
    }
}

#[test]
fn shared_files_hold_what_was_written() {
    for (kind, steps) in [(FsKind::Xfs, 1500), (FsKind::Btrfs, 700)] {
        exercise(Case {
            kind,
            steps,
            ..CASE
        });
    }
}

#[test]
fn ranges_are_moved_in_a_file_copied_by_blocks() {
    let Some(rig) = Rig::new(1) else { return };
    let mut bytes: Vec<u8> = (0..40 * BLOCK).map(|at| (at / BLOCK) as u8 + 1).collect();
    fs::write(rig.lowers[0].join("f"), &bytes).unwrap();
    let mut options = rig.options();
    if let Some(upper) = &mut options.upper {
        upper.blocks_from_bytes = Some(1);
    }
    let engine = Engine::open(options).unwrap();
    let node = find(&engine, "f");
    engine
        .privileged()
        .write(node, 5 * BLOCK as u64, b"new", false)
        .unwrap();
    bytes[5 * BLOCK..5 * BLOCK + 3].copy_from_slice(b"new");
    engine
        .privileged()
        .fallocate(node, COLLAPSE, BLOCK as u64, 2 * BLOCK as u64)
        .unwrap();
    bytes.drain(BLOCK..3 * BLOCK);
    engine
        .privileged()
        .fallocate(node, INSERT, 20 * BLOCK as u64, BLOCK as u64)
        .unwrap();
    bytes.splice(20 * BLOCK..20 * BLOCK, vec![0; BLOCK]);
    assert!(read_all(&engine, node).unwrap() == bytes);
    engine.privileged().write(node, 0, b"x", false).unwrap();
    bytes[0] = b'x';
    engine.close().unwrap();
    // It is plain: the kernel shows it.
    let target = rig.mount_kernel(&rig.upper, &rig.work);
    assert!(fs::read(target.join("f")).unwrap() == bytes);
    rig.scratch.unmount(&target);
}

fn create(engine: &Engine, name: &str) -> NodeId {
    let made =
        engine
            .privileged()
            .create(NodeId::ROOT, name.as_ref(), &NewNode::File, 0o600, &ROOT);
    made.unwrap().node
}

#[test]
fn files_without_a_name_count_while_they_are_in_use() {
    const MIB: usize = 1 << 20;
    let case = Case {
        blocks: None,
        limit: Limit {
            size_bytes: Some(8 * MIB as u64),
            inodes: Some(10),
        },
        ..CASE
    };
    let Some(rig) = Rig::new(1) else { return };
    let mut engine = Engine::open(options(&rig, case)).unwrap();
    let bytes = vec![1; MIB];
    for round in 0..30 {
        let made = create(&engine, "f");
        engine
            .privileged()
            .unlink(NodeId::ROOT, "f".as_ref())
            .unwrap();
        // It can still grow, within the limit, and its space is not available to others.
        let fitted = (0..20).take_while(|n| {
            let wrote = engine
                .privileged()
                .write(made, (n * MIB) as u64, &bytes, false);
            match wrote {
                Err(Error::Refused {
                    refusal: Refusal::LimitReached,
                    ..
                }) => false,
                other => other.unwrap() == MIB,
            }
        });
        assert!((6..=8).contains(&fitted.count()), "round {round}");
        if round % 10 == 9 {
            // Closing the union frees it too.
            engine = reopened(engine, &rig, case);
        } else {
            engine.forget(made, 1);
        }
        let unnamed: Vec<_> = (0..9)
            .map(|_| {
                engine
                    .privileged()
                    .tmpfile(NodeId::ROOT, 0o600, &ROOT)
                    .unwrap()
                    .node
            })
            .collect();
        for node in unnamed {
            engine.forget(node, 1);
        }
    }
    let last = create(&engine, "f");
    engine.privileged().write(last, 0, &bytes, false).unwrap();
    engine
        .privileged()
        .unlink(NodeId::ROOT, "f".as_ref())
        .unwrap();
    engine.forget(last, 1);
    let room = engine.statfs().unwrap();
    assert_eq!(room.inodes_free, 10);
    assert_eq!(room.blocks_free * u64::from(room.block_bytes), 8 << 20);
    check_counted(engine, &rig, case);
}

//! What an engine leaves, and what its successor takes over.

mod engine_support;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::ControlFlow;

use engine_support::{Rig, read_all, user};
use vellum_union::engine::{Engine, EngineOptions, Legacy, NodeId};
use vellum_union::{Error, Result};

fn options(rig: &Rig) -> EngineOptions {
    let mut options = rig.options();
    if let Some(upper) = &mut options.upper {
        upper.blocks_from_bytes = Some(64 << 10);
    }
    options
}

fn next(rig: &Rig, engine: Engine) -> Engine {
    let legacy = engine.hand_over().unwrap();
    engine.let_go().unwrap();
    Engine::inherit(options(rig), legacy).unwrap()
}

/// Returns up to `most` names from `cookie` on, and the cookie after them.
fn some(engine: &Engine, dir: NodeId, cookie: u64, most: usize) -> (Vec<OsString>, u64) {
    let (mut names, mut place) = (Vec::new(), cookie);
    let mut take = |listing: vellum_union::engine::Listing| {
        if names.len() == most {
            return ControlFlow::Break(());
        }
        place = listing.next;
        names.push(listing.name);
        ControlFlow::Continue(())
    };
    engine.list(dir, cookie, &mut take).unwrap();
    (names, place)
}

#[test]
fn a_successor_takes_over_or_says_why_not() {
    let Some(rig) = Rig::new(2) else { return };
    for name in ["f", "gone", "other"] {
        fs::write(rig.lowers[1].join(name), name).unwrap();
    }
    fs::create_dir(rig.lowers[0].join("dir")).unwrap();
    for i in 0..50 {
        fs::write(rig.lowers[0].join(format!("dir/{i}")), "").unwrap();
    }
    let big = vec![7; 300_000];
    fs::write(rig.lowers[0].join("big"), &big).unwrap();
    let mut engine = Engine::open(options(&rig)).unwrap();
    let lookup = |engine: &Engine, parent, name: &str| {
        engine.lookup(parent, OsStr::new(name)).unwrap().unwrap()
    };
    let root = NodeId::ROOT;
    let (f, gone) = (lookup(&engine, root, "f"), lookup(&engine, root, "gone"));
    let (dir, big_node) = (lookup(&engine, root, "dir"), lookup(&engine, root, "big"));
    let seven = lookup(&engine, dir.node, "7");
    // Twice: it must be forgotten twice.
    lookup(&engine, dir.node, "7");
    engine
        .privileged()
        .write(big_node.node, 100_000, b"new", false)
        .unwrap();
    for name in ["gone", "big"] {
        user(&engine).unlink(name).unwrap();
    }
    let unnamed = engine
        .privileged()
        .tmpfile(root, 0o600, &engine_support::ROOT)
        .unwrap();
    engine
        .privileged()
        .write(unnamed.node, 0, b"unnamed", false)
        .unwrap();
    let (mut seen, mut place) = some(&engine, dir.node, 0, 20);
    user(&engine).unlink("dir/30").unwrap();
    user(&engine).file("dir/later", "").unwrap();

    let left = engine.hand_over().unwrap();
    for _ in 0..2 {
        engine = next(&rig, engine);
        assert_eq!(engine.attr(f.node).unwrap().ino, f.attr.ino);
        assert_eq!(engine.attr(gone.node).unwrap().nlink, 0);
        assert_eq!(engine.attr(seven.node).unwrap().ino, seven.attr.ino);
        assert_eq!(read_all(&engine, gone.node).unwrap(), b"gone");
        assert_eq!(read_all(&engine, unnamed.node).unwrap(), b"unnamed");
        let mut want = big.clone();
        want[100_000..100_003].copy_from_slice(b"new");
        assert!(read_all(&engine, big_node.node).unwrap() == want);
        assert_eq!(lookup(&engine, dir.node, "7").node, seven.node);
        engine.forget(seven.node, 1);
        let (more, at) = some(&engine, dir.node, place, 10);
        seen.extend(more);
        place = at;
    }
    seen.extend(some(&engine, dir.node, place, usize::MAX).0);
    let all: BTreeSet<_> = seen.iter().collect();
    assert_eq!(all.len(), seen.len(), "no name came twice");
    assert!(
        (0..50)
            .filter(|&i| i != 30)
            .all(|i| seen.contains(&OsString::from(i.to_string())))
    );
    // New numbers don't collide with old ones.
    let known = [
        f.node,
        gone.node,
        dir.node,
        big_node.node,
        seven.node,
        unnamed.node,
    ];
    assert!(!known.contains(&lookup(&engine, root, "other").node));
    // Reference counts were handed over: a node is gone after as many forgets as there were
    // lookups, and not before.
    engine.forget(seven.node, 1);
    assert_eq!(engine.attr(seven.node).unwrap().ino, seven.attr.ino);
    engine.forget(seven.node, 1);
    engine.attr(seven.node).unwrap_err();
    engine
        .privileged()
        .link(unnamed.node, root, OsStr::new("named"))
        .unwrap();
    engine.close().unwrap();
    assert_eq!(fs::read(rig.upper.join("named")).unwrap(), b"unnamed");

    // A record that is damaged, old, or of other layers is refused.
    let inherit = |record: &[u8]| -> Result<Engine> {
        let files = left
            .files
            .iter()
            .map(|fd| fd.try_clone().unwrap())
            .collect();
        let record = record.to_vec();
        Engine::inherit(options(&rig), Legacy { record, files })
    };
    let mut refused = 0;
    for end in (0..left.record.len()).step_by(7) {
        let error = inherit(&left.record[..end]).unwrap_err();
        assert!(matches!(error, Error::Successor { .. }), "{end}: {error}");
    }
    for at in (0..left.record.len()).step_by(3) {
        let mut record = left.record.clone();
        record[at] ^= 0x41;
        // It must not panic. Some flipped bits only give another number.
        match inherit(&record) {
            Ok(engine) => engine.close().unwrap(),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
    fs::rename(&rig.lowers[1], rig.base.join("elsewhere")).unwrap();
    fs::create_dir(&rig.lowers[1]).unwrap();
    let error = inherit(&left.record).unwrap_err();
    assert!(error.to_string().contains("layer 2"), "{error}");
}

//! Many threads on one engine: nothing hangs, nothing is lost, no file has two nodes, and what the
//! engine shows in the end is what it and the kernel show after it is reopened.

mod engine_support;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine_support::{Rig, read_all, user};
use vellum_testkit::Rng;
use vellum_testkit::churn::{Churn, grow};
use vellum_union::engine::{NewNode, NodeId, RenameMode, SetAttr};

#[test]
fn threads_do_everything_at_once() {
    let Some(rig) = Rig::new(1) else { return };
    let mut rng = Rng::for_test("threads_do_everything_at_once");
    grow(&mut rng, &rig.lowers[0], 60);
    Churn {
        trusted_xattrs: false,
        ..Churn::ALL
    }
    .run(&mut rng, &rig.lowers[0], 60);
    let engine = rig.open();
    let names: Vec<_> = (0..12).map(|index| format!("n{index}")).collect();
    for name in &names[..6] {
        user(&engine).mkdir(name).unwrap();
    }
    let seeds: Vec<_> = (0..6).map(|_| rng.next()).collect();
    std::thread::scope(|scope| {
        for seed in seeds {
            let (engine, names) = (&engine, &names);
            scope.spawn(move || {
                let mut rng = Rng::seeded(seed);
                let who = user(engine);
                let path = |rng: &mut Rng| {
                    let mut path = PathBuf::new();
                    for _ in 0..=rng.below(3) {
                        path.push(rng.pick(names));
                    }
                    path
                };
                let lower: Vec<_> = who.names("").unwrap();
                for _ in 0..1500 {
                    let (a, b) = match rng.chance(20) {
                        true => (PathBuf::from(rng.pick(&lower)), path(&mut rng)),
                        false => (path(&mut rng), path(&mut rng)),
                    };
                    // Whether it succeeds depends on the other threads, but it must end.
                    let _ = match rng.below(12) {
                        0 => who.file(&a, "some content"),
                        1 => who.mkdir(&a),
                        2 => who.unlink(&a),
                        3 => who.rmdir(&a),
                        4 | 5 => who.rename(&a, &b),
                        6 => who.rename_as(&a, &b, RenameMode::Exchange),
                        7 => who.link(&a, &b),
                        8 => who.chmod(&a, 0o700 | rng.below(64) as u32).map(drop),
                        9 => who.names(&a).map(drop),
                        10 => who.read(&a).map(drop),
                        _ => who.make(&a, NewNode::Symlink("x".into()), 0o777).map(drop),
                    };
                }
            });
        }
    });
    assert_eq!(engine.live_nodes(), 1, "nodes are left behind");
    rig.agree(engine);
}

#[test]
fn no_update_is_lost() {
    let Some(rig) = Rig::new(1) else { return };
    let low = &rig.lowers[0];
    fs::create_dir_all(low.join("d/e")).unwrap();
    for index in 0..20 {
        fs::write(low.join(format!("d/e/f{index}")), vec![b'.'; 64 * 1024]).unwrap();
    }
    fs::hard_link(low.join("d/e/f0"), low.join("alias")).unwrap();
    let engine = rig.open();
    let next = AtomicUsize::new(0);
    let numbers = Mutex::new(HashMap::new());
    std::thread::scope(|scope| {
        for thread in 0..8_usize {
            let (engine, next, numbers) = (&engine, &next, &numbers);
            scope.spawn(move || {
                let who = user(engine);
                loop {
                    let step = next.fetch_add(1, Ordering::Relaxed);
                    if step >= 1600 {
                        return;
                    }
                    let name = match step % 21 {
                        20 => "alias".to_owned(),
                        index => format!("d/e/f{index}"),
                    };
                    let held = who.find(&name).unwrap();
                    // Every thread has its own bytes; the first one copies the file up.
                    let mark = [b'a' + thread as u8];
                    let wrote = engine.privileged().write(
                        held.node,
                        (step * 8 + thread) as u64,
                        &mark,
                        false,
                    );
                    assert_eq!(wrote.unwrap(), 1);
                    let ino = engine.attr(held.node).unwrap().ino;
                    let mut numbers = numbers.lock().unwrap();
                    assert_eq!(*numbers.entry(name).or_insert(ino), ino);
                }
            });
        }
    });
    let mut found = 0;
    for index in 0..20 {
        let content = user(&engine).read(format!("d/e/f{index}")).unwrap();
        assert_eq!(content.len(), 64 * 1024);
        found += content.iter().filter(|byte| **byte != b'.').count();
    }
    assert_eq!(found, 1600);
    rig.agree(engine);
}

/// Copying up a big file delays no other request.
#[test]
fn a_big_copy_delays_no_other_request() {
    let Some(rig) = Rig::new(1) else { return };
    let low = &rig.lowers[0];
    let big = vec![5; 24 << 20];
    fs::write(low.join("big"), &big).unwrap();
    fs::write(low.join("small"), "x").unwrap();
    let engine = rig.open();
    let done = AtomicUsize::new(0);
    let during = std::thread::scope(|scope| {
        let copy = scope.spawn(|| {
            let held = user(&engine).find("big").unwrap();
            engine
                .privileged()
                .write(held.node, 0, b"y", false)
                .unwrap();
            done.store(1, Ordering::Release);
        });
        let who = user(&engine);
        let mut during = 0;
        while done.load(Ordering::Acquire) == 0 {
            // Next to it in the same directory: lookups, creations, moves, also of directories.
            assert!(who.find("small").is_ok());
            who.mkdir("d").unwrap();
            who.rename("d", "e").unwrap();
            who.rmdir("e").unwrap();
            during += 1;
        }
        copy.join().unwrap();
        during
    });
    // The copy takes at least some ten milliseconds; the other calls take well under one.
    assert!(during > 0);
    let content = {
        let held = user(&engine).find("big").unwrap();
        read_all(&engine, held.node).unwrap()
    };
    assert!(content[1..] == big[1..] && content[0] == b'y');
    let root = SetAttr {
        mode: Some(0o711),
        ..SetAttr::default()
    };
    engine.privileged().set_attr(NodeId::ROOT, &root).unwrap();
    rig.agree(engine);
}

//! Many threads in one tree: directories move while other threads create, link, rename, remove and
//! change their content. Nothing is lost, nothing is duplicated, no thread hangs, and the kernel
//! reads the result.

mod engine_support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use engine_support::{Rig, user};
use vellum_testkit::Rng;
use vellum_union::engine::{Engine, NewNode, RenameMode, SetAttr};

const THREADS: usize = 8;
const STEPS: usize = 400;
const DIRS: [&str; 3] = ["a", "b", "c"];

fn dir(rng: &mut Rng) -> PathBuf {
    let depth = 1 + rng.below(3);
    (0..depth).map(|_| *rng.pick(&DIRS)).collect()
}

/// The work of one thread; returns the names it created that must exist at the end.
fn work(engine: &Engine, thread: usize, mut rng: Rng) -> Vec<(OsString, String)> {
    let u = user(engine);
    let mut made: Vec<(OsString, String)> = Vec::new();
    for step in 0..STEPS {
        let name = format!("{thread}-{step}");
        let (one, two) = (dir(&mut rng), dir(&mut rng));
        // Most calls fail, since everything keeps moving.
        match rng.below(12) {
            0..=3 => {
                if let Ok(held) = u.make(one.join(&name), NewNode::File, 0o644) {
                    engine
                        .privileged()
                        .write(held.node, 0, name.as_bytes(), false)
                        .unwrap();
                    made.push((name.clone().into(), name));
                }
            }
            4 => drop(u.mkdir(&one)),
            5 => drop(u.rename(&one, &two)),
            6 => drop(u.rename_as(&one, &two, RenameMode::Exchange)),
            7 => drop(u.names(&one)),
            8 => {
                // One of its own files gets another name.
                let found = made.iter().position(|(name, _)| u.exists(one.join(name)));
                if let Some(at) = found {
                    let to: OsString = format!("{name}-moved").into();
                    if u.rename(one.join(&made[at].0), two.join(&to)).is_ok() {
                        made[at].0 = to;
                    }
                }
            }
            9 => {
                // Each thread has its own lower file, and its own names of the linked one.
                let mode = Some(0o600 | rng.below(0o100) as u32);
                drop(u.set(
                    one.join(format!("lower-{thread}")),
                    SetAttr {
                        mode,
                        ..SetAttr::default()
                    },
                ));
                drop(u.set(
                    one.join(format!("link-{thread}")),
                    SetAttr {
                        mode,
                        ..SetAttr::default()
                    },
                ));
            }
            10 => {
                let at = one.join(format!("gone-{thread}"));
                drop(u.file(&at, "x"));
                drop(u.unlink(&at));
            }
            _ => drop(u.rmdir(&one)),
        }
    }
    made
}

#[test]
fn many_threads_lose_nothing() {
    let Some(rig) = Rig::new(2) else { return };
    let first = rig.scratch.file("fs/l1/a/b/linked", "linked");
    for thread in 0..THREADS {
        rig.scratch
            .file(format!("fs/l1/a/b/lower-{thread}"), "lower");
        rig.scratch
            .file(format!("fs/l0/b/c/gone-{thread}"), "lower");
        let link = rig.base.join(format!("l1/a/link-{thread}"));
        std::fs::hard_link(&first, link).unwrap();
    }
    rig.scratch.dir("fs/l1/c/a");
    let engine = rig.open();
    let seed = Rng::for_test("storm").next();
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let engine = &engine;
                let rng = Rng::seeded(seed.wrapping_add(thread as u64));
                scope.spawn(move || work(engine, thread, rng))
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(!made.is_empty());
    let tree = rig.agree(engine);
    let mut found: BTreeMap<OsString, usize> = BTreeMap::new();
    for path in tree.entries.keys() {
        if let Some(name) = path.file_name() {
            *found.entry(name.to_owned()).or_default() += 1;
        }
    }
    for (name, content) in &made {
        assert_eq!(found.get(name), Some(&1), "{name:?}");
        let path = tree
            .entries
            .keys()
            .find(|path| path.file_name() == Some(name))
            .unwrap();
        let expected = vellum_testkit::tree::hash(content.as_bytes()).unwrap();
        assert_eq!(
            tree.entries[path].content.as_ref(),
            Some(&expected),
            "{path:?}"
        );
    }
    for thread in 0..THREADS {
        let is_link = |path: &&PathBuf| path.ends_with(format!("link-{thread}"));
        let path = tree.entries.keys().find(is_link).unwrap();
        assert!(tree.entries[path].linked_with.is_some(), "{path:?}");
    }
}

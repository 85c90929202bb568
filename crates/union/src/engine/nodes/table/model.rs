//! A model check of names, counts and sweeps: their protocol under thousands of schedules.
//!
//! `counted.rs` is compiled here once more, with locks and counters that let the scheduler switch
//! threads at each use; the names are the engine's own. The layers are a value behind a separate
//! lock. It changes as the upper layer does: with the names held when a name is added or removed,
//! without them when a file is copied up. The steps of a lookup, a removal and a sweep are those of
//! `lookup.rs`, `hide.rs` and `table.rs`, in the same order, reduced to what the protocol needs.

use std::ffi::OsStr;

use super::{MANY, give_back};
use crate::engine::nodes::names::Names;

use counted::{Counted, Counts};
use sync::{Arc, AtomicU64, Mutex, Ordering, lock};

/// The locks and counters that `counted.rs` uses here.
mod sync {
    pub(in crate::engine) use shuttle::sync::atomic::{
        AtomicBool, AtomicU64, AtomicUsize, Ordering,
    };
    pub(in crate::engine) use shuttle::sync::{Mutex, MutexGuard};
    pub(in crate::engine) use std::sync::Arc;

    pub(in crate::engine) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

#[path = "counted.rs"]
#[allow(dead_code, reason = "the model needs no lists")]
#[expect(clippy::duplicate_mod, reason = "what is checked is what is used")]
mod counted;

const SCHEDULES: usize = 600;
const NAME: &str = "name";

/// A file: which one, and whether its bytes are in the upper layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct File {
    which: u64,
    up: bool,
}

#[derive(Debug)]
struct Node {
    number: u64,
    count: AtomicU64,
    /// The node's state.
    file: Mutex<File>,
}

impl Counted for Node {
    fn number(&self) -> u64 {
        self.number
    }

    fn count(&self) -> &AtomicU64 {
        &self.count
    }
}

/// A directory with one name.
struct World {
    counts: Counts<Node>,
    names: Mutex<Names<Node>>,
    layers: Mutex<Option<File>>,
    next: AtomicU64,
}

impl World {
    fn new(file: Option<File>) -> World {
        World {
            counts: Counts::new(),
            names: Mutex::default(),
            layers: Mutex::new(file),
            next: AtomicU64::new(1),
        }
    }

    fn ask(&self) -> Option<File> {
        *lock(&self.layers)
    }

    fn add(&self, names: &mut Names<Node>, file: File) -> Arc<Node> {
        let node = Arc::new(Node {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            count: AtomicU64::new(0),
            file: Mutex::new(file),
        });
        names.insert(OsStr::new(NAME), &node);
        self.counts.hold(&node);
        node
    }

    /// `Engine::find`: search, ask, conclude.
    fn look_up(&self) -> Option<Arc<Node>> {
        let name = OsStr::new(NAME);
        loop {
            let question = {
                let mut names = lock(&self.names);
                if let Some(node) = names.get(name) {
                    self.counts.hold(&node);
                    return Some(node);
                }
                if names.is_absent(name) {
                    return None;
                }
                names.begin(name)
            };
            let answer = self.ask();
            let mut names = lock(&self.names);
            let counts = names.end(question);
            if let Some(node) = names.get(name) {
                self.counts.hold(&node);
                return Some(node);
            }
            if names.is_absent(name) {
                return None;
            }
            if !counts {
                continue;
            }
            return match answer {
                Some(file) => Some(self.add(&mut names, file)),
                None => {
                    names.note_absent(name);
                    None
                }
            };
        }
    }

    /// `Action::create`.
    fn create(&self, which: u64) -> Option<Arc<Node>> {
        let name = OsStr::new(NAME);
        let mut names = lock(&self.names);
        names.overtake(name);
        if names.get(name).is_some() {
            return None;
        }
        let file = File { which, up: true };
        match &mut *lock(&self.layers) {
            Some(_) => return None,
            free => *free = Some(file),
        }
        Some(self.add(&mut names, file))
    }

    /// `Action::unlink`.
    fn unlink(&self) {
        let name = OsStr::new(NAME);
        while let Some(node) = self.look_up() {
            let removed = {
                let mut names = lock(&self.names);
                names.overtake(name);
                let same = names.get(name).is_some_and(|at| Arc::ptr_eq(&at, &node));
                if same {
                    *lock(&self.layers) = None;
                    names.remove(name);
                }
                same
            };
            self.forget(&node);
            if removed {
                return;
            }
        }
    }

    /// `Action::to_upper`: the names are not held.
    fn copy_up(&self, node: &Node) {
        let mut file = lock(&node.file);
        if file.up {
            return;
        }
        let up = File { up: true, ..*file };
        let mut layers = lock(&self.layers);
        // Its name may be gone by now.
        if layers.is_some_and(|there| there.which == up.which) {
            *layers = Some(up);
        }
        *file = up;
    }

    /// `Engine::forget`, with its sweep.
    fn forget(&self, node: &Arc<Node>) {
        self.counts.release(node, 1);
        while self.counts.has_left() {
            for node in self.counts.take_left() {
                let mut names = lock(&self.names);
                let name = OsStr::new(NAME);
                let listed = names.get(name).is_some_and(|at| Arc::ptr_eq(&at, &node));
                if listed && Counts::is_unused(&*node) {
                    names.unlist(name);
                }
            }
        }
    }

    /// Asserts that a held node shows what is in the layers, and that the name leads to it.
    fn check(&self, node: &Arc<Node>) {
        let names = lock(&self.names);
        let Some(listed) = names.get(OsStr::new(NAME)) else {
            // A held node loses its name only with the file.
            let file = *lock(&node.file);
            let there = self.ask();
            assert!(there.is_none_or(|there| there.which != file.which));
            return;
        };
        if Arc::ptr_eq(&listed, node) {
            let file = lock(&node.file);
            assert_eq!(Some(*file), self.ask(), "a node shows what is not there");
        }
        assert!(
            self.counts.get(node.number).is_some(),
            "a held node is lost"
        );
    }

    /// Asserts that nothing is left behind, and that a new lookup finds the name as it is.
    fn check_end(&self) {
        assert_eq!(self.counts.len(), 0, "nodes are left behind");
        assert!(!self.counts.has_left());
        assert!(lock(&self.names).get(OsStr::new(NAME)).is_none());
        let there = self.ask();
        let node = self.look_up();
        assert_eq!(node.as_ref().map(|node| *lock(&node.file)), there);
        if let Some(node) = node {
            self.forget(&node);
        }
        assert_eq!(self.counts.len(), 0);
    }
}

/// Tries the schedules of `threads` running concurrently.
fn try_all(file: Option<File>, threads: &'static [fn(&World)]) {
    let run = move || {
        let world = Arc::new(World::new(file));
        let threads: Vec<_> = threads
            .iter()
            .map(|act| {
                let world = Arc::clone(&world);
                shuttle::thread::spawn(move || act(&world))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        world.check_end();
    };
    shuttle::check_random(run, SCHEDULES);
    shuttle::check_pct(run, SCHEDULES, 3);
}

const LOWER: Option<File> = Some(File {
    which: 0,
    up: false,
});

fn look(world: &World) {
    if let Some(node) = world.look_up() {
        world.check(&node);
        world.forget(&node);
    }
}

fn write(world: &World) {
    if let Some(node) = world.look_up() {
        world.copy_up(&node);
        world.check(&node);
        world.forget(&node);
    }
}

fn make(world: &World) {
    if let Some(node) = world.create(7) {
        world.check(&node);
        world.forget(&node);
    }
}

fn remove(world: &World) {
    world.unlink();
}

#[test]
fn lookups_of_one_name_share_a_node() {
    try_all(
        LOWER,
        &[
            |world| {
                let (one, other) = (world.look_up().unwrap(), world.look_up().unwrap());
                assert!(Arc::ptr_eq(&one, &other), "two nodes for one file");
                world.forget(&one);
                world.check(&other);
                world.forget(&other);
            },
            look,
            look,
        ],
    );
}

#[test]
fn earlier_lookups_see_a_copy_up() {
    try_all(LOWER, &[look, write, look]);
}

#[test]
fn earlier_lookups_see_a_change_of_the_name() {
    try_all(LOWER, &[look, remove, make]);
    try_all(None, &[look, make, remove]);
}

#[test]
fn everything_at_once() {
    try_all(LOWER, &[look, write, remove, make]);
}

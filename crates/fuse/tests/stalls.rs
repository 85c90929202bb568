//! A file whose lower layer is slow delays the programs that want this file, and no others.
//!
//! The test itself serves the union, so that it can make a layer slow on demand; the programs are
//! its threads.

#[path = "../../union/tests/stalling/mod.rs"]
mod stalling;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stalling::{Question, Stall, before, soon};
use vellum_format::Prefix;
use vellum_fuse::{DataMode, MountOptions, Session};
use vellum_testkit::{Scratch, needs_root};
use vellum_union::engine::{Durability, Engine, EngineOptions, UpperOptions};
use vellum_union::{Dialect, DirLayer, Layer};

const BIG_BYTES: usize = 1 << 20;

/// A mounted union whose lower layer is slow to answer one question about `slow`.
struct Slow {
    stall: Arc<Stall>,
    session: Session,
    at: PathBuf,
    _scratch: Scratch,
}

impl Slow {
    fn new(question: Question, data: DataMode) -> Option<Slow> {
        if !needs_root("a union served by the test itself") {
            return None;
        }
        let scratch = Scratch::new();
        let low = scratch.dir("low");
        let at = scratch.dir("at");
        for dir in ["d", "e", "away/from"] {
            fs::create_dir_all(low.join(dir)).unwrap();
        }
        for file in ["d/slow", "d/quick", "e/f"] {
            fs::write(low.join(file), vec![file.as_bytes()[2]; BIG_BYTES]).unwrap();
        }
        let stall = Stall::new("slow", question);
        let layer = DirLayer::open(&low, Dialect::kernel(Prefix::Trusted)).unwrap();
        let layer: Arc<dyn Layer> = Arc::new(layer);
        let mut options = EngineOptions::new(vec![before(layer, &stall)]);
        let (upper, work) = (scratch.dir("upper"), scratch.dir("work"));
        options.upper = Some(UpperOptions {
            durability: Durability::Volatile,
            ..UpperOptions::new(upper, work, Prefix::Trusted)
        });
        let mount = MountOptions {
            data,
            io_uring: false,
            ..MountOptions::default()
        };
        let session = vellum_fuse::mount(Engine::open(options).unwrap(), &at, &mount).unwrap();
        Some(Slow {
            stall,
            session,
            at,
            _scratch: scratch,
        })
    }

    /// Opens a file and returns its first byte.
    #[track_caller]
    fn soon_read(&self, what: &str, path: &str) -> u8 {
        let path = self.at.join(path);
        soon(what, || first_byte(&path), &self.stall)
    }

    fn end(self) {
        let unmounter = self.session.unmounter();
        unmounter.unmount().unwrap();
        self.session.outlast().close().unwrap();
    }
}

fn first_byte(path: &Path) -> u8 {
    use std::io::Read;
    let mut byte = [0];
    fs::File::open(path).unwrap().read_exact(&mut byte).unwrap();
    byte[0]
}

fn modes() -> [DataMode; 2] {
    [DataMode::Coherent, DataMode::Passthrough]
}

#[test]
fn a_slow_lookup_delays_no_other_name() {
    for data in modes() {
        let Some(slow) = Slow::new(Question::Stat, data) else {
            return;
        };
        let path = slow.at.join("d/slow");
        std::thread::scope(|scope| {
            let let_go = slow.stall.arm();
            let looking = scope.spawn(|| first_byte(&path));
            slow.stall.wait();
            assert_eq!(slow.soon_read("a file beside it", "d/quick"), b'q');
            assert_eq!(slow.soon_read("a file elsewhere", "e/f"), b'f');
            let (from, to) = (slow.at.join("away/from"), slow.at.join("e/from"));
            let rename = || fs::rename(&from, &to).unwrap();
            soon("a directory that moves", rename, &slow.stall);
            assert_eq!(slow.soon_read("a file elsewhere, then", "e/f"), b'f');
            drop(let_go);
            assert_eq!(looking.join().unwrap(), b's');
        });
        slow.end();
    }
}

#[test]
fn a_slow_open_delays_no_other_file() {
    for data in modes() {
        let Some(slow) = Slow::new(Question::Open, data) else {
            return;
        };
        let path = slow.at.join("d/slow");
        std::thread::scope(|scope| {
            let let_go = slow.stall.arm();
            let opening = scope.spawn(|| first_byte(&path));
            slow.stall.wait();
            assert_eq!(slow.soon_read("an open beside it", "d/quick"), b'q');
            assert_eq!(slow.soon_read("an open elsewhere", "e/f"), b'f');
            let new = slow.at.join("e/new");
            let make = || fs::write(&new, "n").unwrap();
            soon("a new file", make, &slow.stall);
            let list = || fs::read_dir(slow.at.join("d")).unwrap().count();
            assert_eq!(soon("a listing", list, &slow.stall), 2);
            let (from, to) = (slow.at.join("away/from"), slow.at.join("e/from"));
            let rename = || fs::rename(&from, &to).unwrap();
            soon("a directory that moves", rename, &slow.stall);
            assert_eq!(slow.soon_read("an open elsewhere, then", "d/quick"), b'q');
            // A second open of the same file waits for the result of the first: the kernel accepts
            // only one backing file.
            let again = scope.spawn(|| first_byte(&path));
            drop(let_go);
            assert_eq!(opening.join().unwrap(), b's');
            assert_eq!(again.join().unwrap(), b's');
        });
        slow.end();
    }
}

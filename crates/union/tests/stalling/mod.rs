//! A layer that holds back its answer about one name until it is released.
//!
//! It wraps another layer and forwards every question. The first question of the chosen type about
//! the chosen name waits, in any directory; later ones pass. A test waits until the question has
//! arrived, does what must not wait for it, and releases the answer. Dropping the value releases it
//! too, so that a failed test ends.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vellum_sys::handle::FileHandle;
use vellum_sys::room::Room;
use vellum_sys::{Result, Stat};
use vellum_union::{BlockMaps, Dialect, Layer, LayerDir, RawEntry};

/// The time limit for something that should not wait: far more than it takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// The type of question to hold back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The attributes of the name.
    Stat,
    /// Opening it.
    Open,
    /// Listing its names.
    Names,
}

/// One answer that is held back.
#[derive(Debug)]
pub struct Stall {
    name: OsString,
    question: Question,
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    armed: bool,
    asked: bool,
    let_go: bool,
}

/// Releases the answer when dropped.
pub struct LetGo(Arc<Stall>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl Stall {
    pub fn new(name: &str, question: Question) -> Arc<Stall> {
        Arc::new(Stall {
            name: name.into(),
            question,
            seen: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Holds back the answer to the next question.
    pub fn arm(self: &Arc<Stall>) -> LetGo {
        *self.seen.lock().unwrap() = Seen {
            armed: true,
            ..Seen::default()
        };
        LetGo(Arc::clone(self))
    }

    /// Waits until the question was asked.
    #[track_caller]
    pub fn wait(&self) {
        let seen = self.seen.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(seen, SOON, |seen| !seen.asked);
        assert!(waited.unwrap().0.asked, "nobody asks for {:?}", self.name);
    }

    pub fn let_go(&self) {
        self.seen.lock().unwrap().let_go = true;
        self.changed.notify_all();
    }

    fn pass(&self, name: &OsStr, question: Question) {
        if name != self.name || question != self.question {
            return;
        }
        let mut seen = self.seen.lock().unwrap();
        if !std::mem::take(&mut seen.armed) {
            return;
        }
        seen.asked = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(seen, |seen| !seen.let_go));
    }
}

/// Does something in its own thread; panics if it is not done soon.
#[track_caller]
pub fn soon<T: Send>(what: &str, act: impl FnOnce() -> T + Send, stall: &Stall) -> T {
    std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel();
        scope.spawn(move || done.send(act()));
        match wait.recv_timeout(SOON) {
            Ok(value) => value,
            Err(_) => {
                stall.let_go();
                panic!("{what} waits for another name's answer");
            }
        }
    })
}

/// Wraps a layer with a stall.
pub fn before(layer: Arc<dyn Layer>, stall: &Arc<Stall>) -> Arc<dyn Layer> {
    Arc::new(Stalling {
        layer,
        stall: Arc::clone(stall),
    })
}

#[derive(Debug)]
struct Stalling {
    layer: Arc<dyn Layer>,
    stall: Arc<Stall>,
}

#[derive(Debug)]
struct StallingDir {
    dir: Arc<dyn LayerDir>,
    name: OsString,
    stall: Arc<Stall>,
}

impl Layer for Stalling {
    fn name(&self) -> String {
        self.layer.name()
    }

    fn dialect(&self) -> Dialect {
        self.layer.dialect()
    }

    fn root(&self) -> Arc<dyn LayerDir> {
        Arc::new(StallingDir {
            dir: self.layer.root(),
            name: OsString::new(),
            stall: Arc::clone(&self.stall),
        })
    }

    fn block_maps(&self) -> Option<Arc<BlockMaps>> {
        self.layer.block_maps()
    }
}

impl LayerDir for StallingDir {
    fn path(&self) -> PathBuf {
        self.dir.path()
    }

    fn stat(&self, name: Option<&OsStr>) -> Result<Option<Stat>> {
        // Read first: the answer does not include changes made while it is held back.
        let answer = self.dir.stat(name);
        if let Some(name) = name {
            self.stall.pass(name, Question::Stat);
        }
        answer
    }

    fn subdir(&self, name: &OsStr) -> Arc<dyn LayerDir> {
        Arc::new(StallingDir {
            dir: self.dir.subdir(name),
            name: name.to_owned(),
            stall: Arc::clone(&self.stall),
        })
    }

    fn names(&self) -> Result<Vec<RawEntry>> {
        self.stall.pass(&self.name, Question::Names);
        self.dir.names()
    }

    fn xattr_names(&self, name: Option<&OsStr>) -> Result<Vec<OsString>> {
        self.dir.xattr_names(name)
    }

    fn xattr(&self, name: Option<&OsStr>, xattr: &OsStr) -> Result<Option<Vec<u8>>> {
        self.dir.xattr(name, xattr)
    }

    fn read_link(&self, name: &OsStr) -> Result<OsString> {
        self.dir.read_link(name)
    }

    fn open_file(&self, name: &OsStr) -> Result<File> {
        self.stall.pass(name, Question::Open);
        self.dir.open_file(name)
    }

    fn open_path(&self, name: Option<&OsStr>) -> Result<OwnedFd> {
        self.dir.open_path(name)
    }

    fn handle(&self, name: Option<&OsStr>) -> Result<Option<FileHandle>> {
        self.dir.handle(name)
    }

    fn room(&self) -> Result<Room> {
        self.dir.room()
    }

    fn flags(&self) -> Result<u32> {
        self.dir.flags()
    }

    fn release(&self) {
        self.dir.release();
    }
}

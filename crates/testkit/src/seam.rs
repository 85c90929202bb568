//! Faults inside this process, at every system call that a piece of code makes: the n-th one fails,
//! or nothing more happens from there on, or the power goes.
//!
//! The code runs on a separate thread whose file system calls wait for an answer from here
//! (seccomp's user notification; see `notify`). So nothing in a product knows that it is being
//! tested, and no call listed in `call.rs` escapes, whether it comes from a library such as SQLite
//! or from the standard library. No privilege is needed, and no process for each run. Writes
//! through a mapping or by io_uring are not seen.
//!
//! Only calls on files below one directory count: a test's own output and the files in /proc are
//! let through.

mod call;
mod notify;
mod picture;

use std::collections::BTreeSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

pub use call::{Call, Does};
pub use picture::Picture;

use notify::{Answer, Listener};
use picture::Safe;

/// What happens at the n-th call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The call fails with this error number and is not made; later ones are.
    Fail(i32),
    /// From the n-th on, all calls that change or sync something fail with this error: a disk that
    /// stays full, or is broken.
    FailFrom(i32),
    /// The same, to be treated as if the process had been killed at the call's entry: its later
    /// actions leave no trace, and its result does not count.
    Stop,
}

/// Which calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Those that change or sync something.
    Changes,
    /// And those that only read.
    All,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Run<T> {
    /// The call that was hit; `None` if the code made fewer.
    pub hit: Option<Call>,
    /// The code's result, or its panic.
    pub value: thread::Result<T>,
}

impl<T> Run<T> {
    /// Returns the code's result, or resumes its panic.
    pub fn value(self) -> T {
        self.value.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// What a power cut, or a kill, at one moment would leave.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The call before which it happens; `None` is the end.
    pub before: Option<Call>,
    /// How much is lost.
    pub loses: Loses,
    /// The tree.
    pub tree: Picture,
}

/// What is lost at a [`Moment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loses {
    /// Nothing: only the process is gone.
    Nothing,
    /// Bytes of files that were not synced. Names and attributes are on disk, as ext4 and XFS
    /// guarantee.
    Bytes,
    /// Everything that was not synced, including names.
    Unsynced,
}

/// True if this kernel supports it; otherwise the test is reported as untested.
pub fn available() -> bool {
    let tried = thread::spawn(|| Listener::on_this_thread(&[libc::SYS_acct]).map(drop));
    match tried.join() {
        Ok(Ok(())) => true,
        outcome => {
            let why = format!("seccomp has no user notification here: {outcome:?}");
            crate::untested("faults at every call of a thread", why);
            false
        }
    }
}

/// Runs `work`, with `effect` at the `n`-th (from 1) of the counted calls on files below `root`.
///
/// `work` may start threads; their calls are counted too. Panics if [`available`] is false.
pub fn run<T: Send>(
    root: &Path,
    counted: Counted,
    n: u32,
    effect: Effect,
    work: impl FnOnce() -> T + Send,
) -> Run<T> {
    let mut count = 0;
    let mut hit = None;
    let decide = |call: &Call| {
        if counted == Counted::Changes && call.does == Does::Reads {
            return Answer::Make;
        }
        count += 1;
        if count == n {
            hit = Some(call.clone());
        }
        let changes = call.does != Does::Reads;
        match effect {
            Effect::Fail(error) if count == n => Answer::Fail(error),
            Effect::FailFrom(error) if count >= n && changes => Answer::Fail(error),
            Effect::Stop if count >= n && changes => Answer::Fail(libc::EIO),
            // Nothing is lost here, so nothing needs to be awaited.
            _ if call.does == Does::Syncs => Answer::Pretend,
            _ => Answer::Make,
        }
    };
    let value = held(root, counted == Counted::All, decide, work);
    Run { hit, value }
}

/// Runs `attempt` for n = 1, 2, ... until the code is no longer hit, and returns how often it was.
///
/// `attempt` sets up, calls [`run`] with its n, checks what is left, and returns the call that was
/// hit. Panics after `limit` hits: then the test does not do what it should. `VELLUM_FAULT=N`
/// starts at the N-th.
pub fn each(limit: u32, mut attempt: impl FnMut(u32) -> Option<Call>) -> u32 {
    let first =
        std::env::var("VELLUM_FAULT").map_or(1, |n| n.parse().expect("VELLUM_FAULT is a number"));
    for n in first..=limit {
        if attempt(n).is_none() {
            return n - 1;
        }
    }
    panic!("still hit after {limit} runs");
}

/// Runs `work` once, undisturbed, and returns its result and everything that a cut at any of its
/// calls would leave of the tree below `root`. Identical trees are listed once, with the first
/// moment, and at the end.
///
/// The tree's initial state counts as synced. Panics if [`available`] is false.
pub fn moments<T: Send>(root: &Path, work: impl FnOnce() -> T + Send) -> (T, Vec<Moment>) {
    let mut safe = Safe::new(root);
    let mut seen = BTreeSet::new();
    let mut moments = Vec::new();
    let mut look = |safe: &Safe, before: Option<&Call>| {
        let now = Picture::of(root);
        let trees = [
            (Loses::Bytes, safe.without_bytes(&now)),
            (Loses::Unsynced, safe.synced()),
            (Loses::Nothing, now),
        ];
        for (loses, tree) in trees {
            if seen.insert(tree.hash_value()) || before.is_none() {
                let before = before.cloned();
                moments.push(Moment {
                    before,
                    loses,
                    tree,
                });
            }
        }
    };
    let decide = |call: &Call| {
        if call.does == Does::Reads {
            return Answer::Make;
        }
        look(&safe, Some(call));
        let fd = format!("/proc/self/fd/{}", call.fd);
        match call.name {
            "syncfs" => safe.sync_all(),
            "ftruncate" => safe.resize(Path::new(&fd), call.length),
            "truncate" => safe.resize(&call.path, call.length),
            _ if call.does == Does::Syncs => safe.sync(Path::new(&fd)),
            _ => {}
        }
        match call.does {
            // Nothing is lost here, so nothing needs to be awaited.
            Does::Syncs => Answer::Pretend,
            _ => Answer::Make,
        }
    };
    let value = held(root, false, decide, work);
    look(&safe, None);
    let value = value.unwrap_or_else(|panic| resume_unwind(panic));
    (value, moments)
}

/// Runs `work` on a thread whose calls on files below `root` are handled as `decide` says. Calls of
/// several threads are decided one at a time.
fn held<T: Send>(
    root: &Path,
    reads: bool,
    mut decide: impl FnMut(&Call) -> Answer,
    work: impl FnOnce() -> T + Send,
) -> thread::Result<T> {
    let memory = File::open("/proc/self/mem").expect("this process's memory");
    let (hand_over, listener) = mpsc::channel();
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let listener = Listener::on_this_thread(&call::numbers(reads));
            let listener = listener.expect("seccomp's user notification");
            hand_over.send(listener).expect("the listener is awaited");
            let value = catch_unwind(AssertUnwindSafe(work));
            // The call itself tells the listener; there is no such file.
            let _ = std::fs::remove_file(END);
            value
        });
        if let Ok(listener) = listener.recv() {
            while let Some(waiting) = listener.next().expect("the next call") {
                let call = call::read(&memory, waiting);
                if call
                    .as_ref()
                    .is_some_and(|call| call.path == Path::new(END))
                {
                    listener.answer(waiting, Answer::Make).expect("an answer");
                    break;
                }
                let answer = match call {
                    Some(call) if call.path.starts_with(root) => decide(&call),
                    _ => Answer::Make,
                };
                listener.answer(waiting, answer).expect("an answer");
            }
            // The thread is about to end. A pool thread that it may have started lives on and must
            // not wait for ever.
            thread::spawn(move || {
                while let Ok(Some(waiting)) = listener.next() {
                    if listener.answer(waiting, Answer::Make).is_err() {
                        break;
                    }
                }
            });
        }
        worker.join().and_then(|value| value)
    })
}

/// Removing this file signals that the work has ended.
const END: &str = "/proc/vellum-test-the-work-has-ended";

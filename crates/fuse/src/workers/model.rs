//! A model check of crews and their watch: their protocol under hundreds of schedules.
//!
//! `crew.rs` is compiled here once more, with locks and counters that let the scheduler switch
//! threads at each use. Requests come from a queue that models the kernel's. Some can be answered
//! only after others, as when a program's request causes another one: they show whether a thread is
//! added whenever one is needed. If the watch misses that, nothing moves any more, and the
//! scheduler reports a deadlock.

use std::collections::VecDeque;
use std::sync::Arc;

use Request::{After, Plain};

use crew::{Crew, Watch};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread::{self, JoinHandle};

/// What `crew.rs` is built on here.
mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    pub(super) fn wait<'a, T>(wake: &Condvar, held: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        wake.wait(held).unwrap()
    }
}

#[path = "crew.rs"]
#[allow(dead_code, reason = "no thread fails to start here")]
#[expect(clippy::duplicate_mod, reason = "what is checked is what is used")]
mod crew;

const SCHEDULES: usize = 600;
/// Smaller than in the product, so that the limits are reached.
const MOST: usize = 4;
const CALM_LOOKS: u32 = 2;

/// What a request needs before it can be answered.
#[derive(Debug, Clone, Copy)]
enum Request {
    Plain,
    /// This many other answers.
    After(usize),
}

/// The kernel: a queue of requests, and those that were answered.
#[derive(Debug, Default)]
struct Kernel {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: VecDeque<Request>,
    answered: usize,
    gone: bool,
}

impl Kernel {
    fn send(&self, request: Request) {
        self.state.lock().unwrap().requests.push_back(request);
        self.changed.notify_all();
    }

    /// Waits for a request; `None` if the connection is gone.
    fn receive(&self) -> Option<Request> {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(request) = state.requests.pop_front() {
                return Some(request);
            }
            if state.gone {
                return None;
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    fn wait_for_answers(&self, count: usize) {
        let mut state = self.state.lock().unwrap();
        while state.answered < count {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn answer(&self, request: Request) {
        if let After(count) = request {
            self.wait_for_answers(count);
        }
        self.state.lock().unwrap().answered += 1;
        self.changed.notify_all();
    }

    fn go(&self) {
        self.state.lock().unwrap().gone = true;
        self.changed.notify_all();
    }
}

#[derive(Debug)]
struct Session {
    kernel: Kernel,
    crews: Vec<Crew>,
    watch: Watch,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Session {
    /// `Shared::add_one`.
    fn add_one(self: &Arc<Session>) {
        let mut threads = self.threads.lock().unwrap();
        let own = Arc::clone(self);
        self.crews[0].start();
        threads.push(thread::spawn(move || own.work()));
    }

    /// `Shared::work`.
    fn work(&self) {
        let crew = &self.crews[0];
        crew.join();
        while !self.watch.is_over() {
            let Some(request) = self.kernel.receive() else {
                break;
            };
            crew.take(&self.watch);
            self.kernel.answer(request);
            if !crew.rest(&self.watch) {
                return;
            }
        }
        self.watch.note_over();
        crew.end();
    }

    fn join_all(&self) {
        loop {
            let next = self.threads.lock().unwrap().pop();
            match next {
                Some(thread) => thread.join().unwrap(),
                None => break,
            }
        }
    }
}

/// Serves `requests` with `usual` threads; a thread of its own sends each one.
fn serve(usual: usize, requests: &'static [Request]) {
    let run = move || {
        let session = Arc::new(Session {
            kernel: Kernel::default(),
            crews: vec![Crew::new(None, usual)],
            watch: Watch::new(),
            threads: Mutex::default(),
        });
        for _ in 0..usual {
            session.add_one();
        }
        let own = Arc::clone(&session);
        let watch = thread::spawn(move || {
            let add = |_| own.add_one();
            own.watch.run(&own.crews, thread::yield_now, add);
        });
        let askers: Vec<_> = requests
            .iter()
            .map(|request| {
                let session = Arc::clone(&session);
                thread::spawn(move || session.kernel.send(*request))
            })
            .collect();
        for asker in askers {
            asker.join().unwrap();
        }
        session.kernel.wait_for_answers(requests.len());
        // `Workers::wait`: the connection is gone.
        session.kernel.go();
        session.join_all();
        session.watch.end();
        watch.join().unwrap();
        session.join_all();
        assert!(session.crews[0].is_gone(), "a thread is not counted out");
        session.crews[0].check_end();
    };
    shuttle::check_random(run, SCHEDULES);
    shuttle::check_pct(run, SCHEDULES, 3);
}

impl Crew {
    /// Asserts that no thread is counted any more.
    fn check_end(&self) {
        assert_eq!(self.counts(), [0, 0, 0], "free, all, starting");
    }
}

#[test]
fn a_thread_is_added_when_all_are_busy() {
    serve(1, &[After(1), Plain]);
    serve(1, &[After(2), After(1), Plain]);
    serve(2, &[After(2), After(2), Plain, Plain]);
}

#[test]
fn surplus_threads_leave() {
    serve(1, &[After(1), Plain, Plain, Plain]);
    serve(1, &[After(1), Plain, After(3), Plain]);
}

#[test]
fn a_crew_grows_to_its_maximum() {
    serve(2, &[After(3), After(3), After(3), Plain, Plain, Plain]);
}

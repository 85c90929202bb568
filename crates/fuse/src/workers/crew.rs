//! Crews and their watch: which threads are free, when one is added, and when one may leave.
//!
//! A crew counts its threads. A thread that takes a request is not free until it has answered. When
//! the last free thread is gone, because it took a request or because it leaves, it wakes the watch
//! ([`Watch::all_busy`]). As long as a crew has no free thread and finishes nothing between two
//! looks, the watch adds a thread, up to [`MOST`]. After [`CALM_LOOKS`] looks in a row at which
//! each crew had a free thread, the watch announces that it goes to sleep, and then looks once
//! more: a thread that became busy before the announcement did not wake it; one that becomes busy
//! later does. This relies on a single order of all these steps, so the counters are sequentially
//! consistent.
//!
//! A thread counts itself in when it is about to wait, because requests rely on it from then on.
//! Until then it counts as starting, so that the watch does not start another in its place. A
//! thread that finds more than the usual number free leaves; when several do so at once, only the
//! surplus leaves.
//!
//! It must not know what a request is. Lock: the one the watch sleeps on. This file is compiled a
//! second time for the model check (`model.rs`), with other locks and counters, which it gets from
//! `sync`.

use super::sync::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, lock, wait};
use super::{CALM_LOOKS, MOST};

/// Threads that take requests from one place.
#[derive(Debug)]
pub(super) struct Crew {
    /// The kernel's queue over io_uring; `None` for the device.
    pub queue: Option<u16>,
    /// How many threads stay.
    pub usual: usize,
    /// How many wait for a request.
    free: AtomicUsize,
    /// How many threads there are.
    all: AtomicUsize,
    /// How many more were started and have not counted themselves yet.
    starting: AtomicUsize,
    /// Replies sent.
    finished: AtomicU64,
}

impl Crew {
    pub fn new(queue: Option<u16>, usual: usize) -> Crew {
        Crew {
            queue,
            usual,
            free: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
            starting: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
        }
    }

    /// Counts a thread that is about to be started.
    pub fn start(&self) {
        self.starting.fetch_add(1, Ordering::SeqCst);
    }

    /// Undoes [`Crew::start`]: the thread could not be started.
    pub fn not_started(&self) {
        self.starting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counts in a thread that is about to wait. The thread does so itself, once requests can rely
    /// on it.
    pub fn join(&self) {
        self.all.fetch_add(1, Ordering::SeqCst);
        self.free.fetch_add(1, Ordering::SeqCst);
        self.starting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counts a request that a thread took.
    pub fn take(&self, watch: &Watch) {
        self.one_less_free(watch);
    }

    /// Counts a thread that has answered and waits again; true if it may stay. A thread that may
    /// not stay is counted out.
    #[must_use]
    pub fn rest(&self, watch: &Watch) -> bool {
        self.finished.fetch_add(1, Ordering::Relaxed);
        let free = self.free.fetch_add(1, Ordering::SeqCst);
        free < self.usual || self.queue.is_some() || !self.leave(watch)
    }

    /// Counts this thread out if it is surplus.
    fn leave(&self, watch: &Watch) -> bool {
        let left = self
            .all
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |all| {
                (all > self.usual).then(|| all - 1)
            });
        if left.is_ok() {
            // Since this thread counted itself as free, the others may each have taken a request
            // and relied on it.
            self.one_less_free(watch);
        }
        left.is_ok()
    }

    fn one_less_free(&self, watch: &Watch) {
        if self.free.fetch_sub(1, Ordering::SeqCst) == 1 {
            watch.all_busy();
        }
    }

    /// Counts out a free thread because its connection is gone.
    pub fn end(&self) {
        self.free.fetch_sub(1, Ordering::SeqCst);
        self.all.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns whether there is no thread.
    pub fn is_gone(&self) -> bool {
        self.all.load(Ordering::SeqCst) == 0
    }

    /// Returns whether the crew has its maximum number of threads.
    fn is_full(&self) -> bool {
        self.all.load(Ordering::SeqCst) + self.starting.load(Ordering::SeqCst) >= MOST
    }

    fn is_busy(&self) -> bool {
        self.free.load(Ordering::SeqCst) == 0
    }

    fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }
}

/// Wakes and ends the thread that looks after the crews.
#[derive(Debug)]
pub(super) struct Watch {
    /// It looks, or will as soon as it is awake.
    looks: AtomicBool,
    /// No more threads.
    over: AtomicBool,
    asleep: Mutex<()>,
    wake: Condvar,
}

impl Watch {
    pub fn new() -> Watch {
        Watch {
            looks: AtomicBool::new(false),
            over: AtomicBool::new(false),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Returns whether everything is over.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Notes that everything is over. The watch sees it at its next look.
    pub fn note_over(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Notes that everything is over, and wakes the watch so that it ends.
    pub fn end(&self) {
        self.note_over();
        self.wake();
    }

    /// Notes that a crew has no free thread any more.
    fn all_busy(&self) {
        if !self.looks.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        // A watch that is about to sleep has looked under this lock.
        let _held = lock(&self.asleep);
        self.wake.notify_one();
    }

    /// Looks after the crews until everything is over: sleeps while each has a free thread, else
    /// calls `pause` between two looks and `add` with the number of each crew that needs one more.
    pub fn run(&self, crews: &[Crew], pause: impl Fn(), add: impl Fn(usize)) {
        let mut before = vec![0; crews.len()];
        loop {
            {
                let mut held = lock(&self.asleep);
                while !self.looks.load(Ordering::SeqCst) && !self.is_over() {
                    held = wait(&self.wake, held);
                }
            }
            let mut calm = 0;
            while calm < CALM_LOOKS {
                if self.is_over() {
                    return;
                }
                for (crew, before) in crews.iter().zip(&mut before) {
                    *before = crew.finished();
                }
                pause();
                calm += 1;
                for (number, crew) in crews.iter().enumerate() {
                    let busy = crew.is_busy();
                    if busy {
                        calm = 0;
                    }
                    let stuck = busy && before[number] == crew.finished();
                    if stuck && !crew.is_full() && !self.is_over() {
                        add(number);
                    }
                }
            }
            self.looks.store(false, Ordering::SeqCst);
            // A thread that became busy between the last look and the line above did not wake the
            // watch.
            if crews.iter().any(Crew::is_busy) {
                self.looks.store(true, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
impl Crew {
    /// Returns how many are free, how many there are, and how many are being started.
    #[allow(dead_code, reason = "for the model check")]
    pub fn counts(&self) -> [usize; 3] {
        [&self.free, &self.all, &self.starting].map(|count| count.load(Ordering::SeqCst))
    }
}

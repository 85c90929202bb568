//! Returns memory to the system once the kernel has forgotten many files.
//!
//! Freed memory stays with the allocator, and a page is returned only when nothing on it is in use.
//! While nodes are being forgotten, the remaining ones are scattered over nearly all pages; so
//! memory must be returned once more when that is over. A separate thread waits for this: it sleeps
//! until enough was forgotten to be worthwhile, then until a pause, or until very many were
//! forgotten. No request waits for it.
//!
//! It must not know what was forgotten. Lock: its own, never held while memory is returned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vellum_sys::sync;

/// Fewer nodes than this are not worth the work: at worst each of them keeps one page, 4 MiB in
/// all.
const WORTH: u64 = 1 << 10;
/// After this many, memory is returned even if more are coming.
const MANY: u64 = 1 << 16;
/// When nothing was forgotten for this long, the burst is over.
const QUIET: Duration = Duration::from_millis(100);

/// The thread that returns memory.
#[derive(Debug)]
pub(crate) struct Tidy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Nodes forgotten since memory was last returned.
    freed: AtomicU64,
    over: Mutex<bool>,
    wake: Condvar,
}

impl Tidy {
    /// Starts the thread; `give_back` is what it calls. Errors: the thread can't be started.
    pub fn start(give_back: fn()) -> vellum_sys::Result<Tidy> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let name = "vellum-tidy";
        let thread = std::thread::Builder::new()
            .name(String::from(name))
            .spawn(move || own.work(give_back))
            .map_err(|error| vellum_sys::Error::new("start the thread", name, error))?;
        Ok(Tidy {
            shared,
            thread: Some(thread),
        })
    }

    /// Notes that `nodes` were forgotten.
    pub fn freed(&self, nodes: u64) {
        let before = self.shared.freed.fetch_add(nodes, Ordering::Relaxed);
        if before < WORTH && before + nodes >= WORTH {
            let _held = sync::lock(&self.shared.over);
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Tidy {
    fn drop(&mut self) {
        *sync::lock(&self.shared.over) = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has no result, and a panic in it was already reported.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn work(&self, give_back: fn()) {
        let mut pause = QUIET;
        let mut over = sync::lock(&self.over);
        while !*over {
            let before = self.freed.load(Ordering::Relaxed);
            if before < WORTH {
                over = sync::wait(&self.wake, over);
                continue;
            }
            over = sync::wait_timeout(&self.wake, over, pause);
            let now = self.freed.load(Ordering::Relaxed);
            if *over || now != before && now < MANY {
                continue;
            }
            drop(over);
            self.freed.fetch_sub(now, Ordering::Relaxed);
            let begun = Instant::now();
            give_back();
            // However large the heap is, most of the time must go to requests.
            pause = QUIET.max(begun.elapsed() * 4);
            over = sync::lock(&self.over);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static GIVEN: AtomicU64 = AtomicU64::new(0);

    #[test]
    fn memory_is_returned_after_a_burst_of_forgets() {
        let tidy = Tidy::start(|| {
            GIVEN.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        let wait_for = |count| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while GIVEN.load(Ordering::SeqCst) < count && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(GIVEN.load(Ordering::SeqCst), count);
        };
        tidy.freed(WORTH - 1);
        std::thread::sleep(QUIET * 3);
        wait_for(0);
        tidy.freed(1);
        wait_for(1);
        tidy.freed(WORTH);
        wait_for(2);
        drop(tidy);
    }
}

//! The threads that answer: a few as a rule, more while all of them are busy.
//!
//! A request is read, answered and forgotten by one thread. One that takes long (copying a big file up) would in time
//! hold every thread, so a watch adds one as soon as all were busy for a millisecond without finishing anything; a
//! thread that is too many leaves after the request that shows it. The watch sleeps as long as somebody is free.
//!
//! A panic while answering is an EIO to whoever asked and an error in the log, and nothing to anybody else. Invariant: every request
//! that wants a reply gets exactly one. Locks: the list of threads only; never held while a request is answered.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;

use crate::channel::{Buffer, Channel, Received, reply_buffer};
use crate::counters::Counters;
use crate::wire::{Dialect, Op, Reply, Request};

/// The most threads there are at a time.
const MOST: usize = 16;
/// How long nothing may be finished, with all busy, before there is one more.
const PATIENCE: Duration = Duration::from_millis(1);
/// After so many looks at a time when somebody was free, the watch goes to sleep.
const CALM_LOOKS: u32 = 50;

/// What answers requests. Called from several threads at once.
pub trait Serve: Send + Sync + 'static {
    /// Answers `request`: puts what it asks for into `reply`.
    ///
    /// An error is sent as it is; what was put is dropped then. Not called for what takes no reply, see [`Serve::note`].
    fn serve(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno>;

    /// Hears of something that takes no reply: FORGET and BATCH_FORGET.
    fn note(&self, request: &Request<'_>);
}

/// The threads of one session.
#[derive(Debug)]
pub struct Workers<S> {
    shared: Arc<Shared<S>>,
    watch: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared<S> {
    serve: Arc<S>,
    /// The session's first descriptor; each worker has a clone.
    session: Arc<Channel>,
    dialect: Dialect,
    counters: Arc<Counters>,
    /// How many stay.
    usual: usize,
    /// How many wait for a request.
    free: AtomicUsize,
    /// How many there are.
    all: AtomicUsize,
    /// Replies sent.
    finished: AtomicU64,
    /// The watch looks.
    watching: AtomicBool,
    /// The connection is gone: no more threads.
    over: AtomicBool,
    asleep: Mutex<()>,
    wake: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<S: Serve> Workers<S> {
    /// Starts `usual` threads. Errors: a descriptor or thread could not be had; those that were started end with the connection.
    pub fn start(
        serve: Arc<S>,
        session: Arc<Channel>,
        dialect: Dialect,
        counters: Arc<Counters>,
        usual: usize,
    ) -> vellum_sys::Result<Workers<S>> {
        let shared = Arc::new(Shared {
            serve,
            session,
            dialect,
            counters,
            usual,
            free: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            over: AtomicBool::new(false),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            threads: Mutex::new(Vec::new()),
        });
        for _ in 0..usual {
            shared.add_one()?;
        }
        let watched = Arc::clone(&shared);
        let watch = thread("vellum-watch", move || watched.watch())?;
        Ok(Workers { shared, watch })
    }

    /// Waits until the connection is gone and every thread has ended.
    pub fn wait(self) {
        let Workers { shared, watch } = self;
        shared.join_all();
        shared.over.store(true, Ordering::SeqCst);
        shared.wake_watch();
        // A worker's panics are caught where it answers; nothing else in these threads has a result.
        drop(watch.join());
        // The watch may have added one while the others left.
        shared.join_all();
    }
}

impl<S: Serve> Workers<S> {
    /// Ends every thread, each after the request it is at, and returns the session's descriptor, with whatever comes next still
    /// unread. `nudge` causes one request and returns when it was answered: it wakes a thread that waits for one.
    ///
    /// The last nudge may find nobody; it is answered by whoever serves next.
    pub fn stop(self, nudge: impl Fn() + Send + Sync + 'static) -> Arc<Channel> {
        let Workers { shared, watch } = self;
        shared.over.store(true, Ordering::SeqCst);
        shared.wake_watch();
        // A worker's panics are caught where it answers; nothing else in these threads has a result.
        drop(watch.join());
        let (nudge, nudging) = (Arc::new(nudge), Arc::new(AtomicBool::new(false)));
        while shared.all.load(Ordering::SeqCst) > 0 {
            if !nudging.swap(true, Ordering::SeqCst) {
                let (nudge, own) = (Arc::clone(&nudge), Arc::clone(&nudging));
                let started = thread("vellum-nudge", move || {
                    nudge();
                    own.store(false, Ordering::SeqCst);
                });
                if let Err(error) = started {
                    // Requests of others do as well.
                    tracing::warn!(%error, "workers end with the next requests only");
                    nudging.store(false, Ordering::SeqCst);
                }
            }
            std::thread::sleep(PATIENCE);
        }
        shared.join_all();
        Arc::clone(&shared.session)
    }
}

impl<S: Serve> Shared<S> {
    fn join_all(&self) {
        loop {
            let next = lock(&self.threads).pop();
            match next {
                // As above.
                Some(thread) => drop(thread.join()),
                None => break,
            }
        }
    }

    fn add_one(self: &Arc<Self>) -> vellum_sys::Result<()> {
        let channel = self.session.another()?;
        let shared = Arc::clone(self);
        self.all.fetch_add(1, Ordering::SeqCst);
        self.free.fetch_add(1, Ordering::SeqCst);
        let started = thread("vellum-worker", move || shared.work(&channel));
        match started {
            Ok(started) => {
                let mut threads = lock(&self.threads);
                // Handles of those who left would pile up.
                threads.retain(|thread| !thread.is_finished());
                threads.push(started);
                Ok(())
            }
            Err(error) => {
                self.all.fetch_sub(1, Ordering::SeqCst);
                self.free.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    fn work(&self, channel: &Channel) {
        if let Err(error) = vellum_sys::fuse_dev::serve_writeback() {
            tracing::debug!(%error, "a worker's memory may wait for its own writes");
        }
        let mut buffer = Buffer::new();
        let mut answer = reply_buffer();
        loop {
            let length = match channel.receive(&mut buffer) {
                Ok(Received::Request(length)) => length,
                Ok(Received::Nothing) => continue,
                Ok(Received::Gone) => break,
                Err(error) => {
                    tracing::error!(%error, "the FUSE device can't be read");
                    break;
                }
            };
            if self.free.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.all_busy();
            }
            self.answer(channel, buffer.first(length), &mut answer);
            self.finished.fetch_add(1, Ordering::Relaxed);
            if self.over.load(Ordering::Relaxed) {
                self.all.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            if self.free.fetch_add(1, Ordering::SeqCst) >= self.usual && self.leave() {
                return;
            }
        }
        self.over.store(true, Ordering::SeqCst);
        self.free.fetch_sub(1, Ordering::SeqCst);
        self.all.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counts this thread out if it is one too many.
    fn leave(&self) -> bool {
        let left = self
            .all
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |all| {
                (all > self.usual).then(|| all - 1)
            });
        if left.is_ok() {
            self.free.fetch_sub(1, Ordering::SeqCst);
        }
        left.is_ok()
    }

    fn answer(&self, channel: &Channel, bytes: &[u8], answer: &mut [u8]) {
        let mut reply = Reply::new(answer);
        let (unique, errno) = match Request::parse(bytes, self.dialect) {
            Ok(request) => {
                let header = request.header;
                self.counters.count(header.opcode);
                let caught = catch_unwind(AssertUnwindSafe(|| match request.op {
                    Op::Forget { .. } | Op::BatchForget(_) => {
                        self.serve.note(&request);
                        None
                    }
                    _ => Some(self.serve.serve(&request, &mut reply)),
                }));
                match caught {
                    Ok(Some(Ok(()))) => (header.unique, 0),
                    Ok(Some(Err(errno))) => (header.unique, errno.raw_os_error()),
                    Ok(None) => return,
                    Err(_) => {
                        let (opcode, node) = (header.opcode, header.node);
                        tracing::error!(opcode, node, "a bug: answering a request panicked");
                        if matches!(request.op, Op::Forget { .. } | Op::BatchForget(_)) {
                            return;
                        }
                        (header.unique, Errno::IO.raw_os_error())
                    }
                }
            }
            Err(error) => match Request::header(bytes) {
                Ok(header) => {
                    tracing::error!(opcode = header.opcode, %error, "a request makes no sense");
                    (header.unique, Errno::IO.raw_os_error())
                }
                Err(_) => return,
            },
        };
        if errno != 0 && errno != Errno::NOENT.raw_os_error() {
            self.counters.count_error();
        }
        if let Err(error) = channel.send(reply.finish(unique, errno)) {
            tracing::error!(%error, "a reply was refused");
            // The one who asked must not wait for ever.
            reply.clear();
            if let Err(error) = channel.send(reply.finish(unique, Errno::IO.raw_os_error())) {
                tracing::error!(%error, "an error was refused as a reply, too");
            }
        }
    }

    fn all_busy(&self) {
        if !self.watching.swap(true, Ordering::SeqCst) {
            self.wake_watch();
        }
    }

    fn wake_watch(&self) {
        let _held = lock(&self.asleep);
        self.wake.notify_one();
    }

    fn watch(self: Arc<Self>) {
        loop {
            {
                let mut held = lock(&self.asleep);
                while !self.watching.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
                    held = self.wake.wait(held).unwrap_or_else(PoisonError::into_inner);
                }
            }
            let mut calm = 0;
            while calm < CALM_LOOKS {
                if self.over.load(Ordering::SeqCst) {
                    return;
                }
                let before = self.finished.load(Ordering::Relaxed);
                std::thread::sleep(PATIENCE);
                let busy = self.free.load(Ordering::SeqCst) == 0;
                calm = if busy { 0 } else { calm + 1 };
                let over = self.over.load(Ordering::SeqCst);
                let stuck = !over && busy && before == self.finished.load(Ordering::Relaxed);
                if stuck
                    && self.all.load(Ordering::SeqCst) < MOST
                    && let Err(error) = self.add_one()
                {
                    tracing::warn!(%error, "all workers are busy and there can't be one more");
                }
            }
            self.watching.store(false, Ordering::SeqCst);
            // Whoever became busy between the last look and the line above did not wake anybody.
            if self.free.load(Ordering::SeqCst) == 0 {
                self.watching.store(true, Ordering::SeqCst);
            }
        }
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> vellum_sys::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(String::from(name))
        .spawn(run)
        .map_err(|error| vellum_sys::Error::new("start the thread", name, error))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;
    use crate::wire::Opcode;

    /// Panics when asked for a name.
    #[derive(Debug, Default)]
    struct Fragile {
        served: AtomicU32,
    }

    impl Serve for Fragile {
        fn serve(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
            self.served.fetch_add(1, Ordering::Relaxed);
            if let Op::Lookup { .. } = request.op {
                reply.u64(1);
                std::panic::panic_any("a bug");
            }
            reply.u32(7);
            Ok(())
        }

        fn note(&self, _: &Request<'_>) {
            std::panic::panic_any("a bug");
        }
    }

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8] = 9;
        bytes.extend(body);
        let length = (bytes.len() as u32).to_ne_bytes();
        bytes[..4].copy_from_slice(&length);
        bytes
    }

    #[test]
    fn a_panic_is_one_request_s_error() {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let channel = Channel::new(ours);
        let shared = Shared {
            serve: Arc::new(Fragile::default()),
            session: Arc::new(Channel::new(rustix::io::dup(&theirs).unwrap())),
            dialect: Dialect::default(),
            counters: Arc::default(),
            usual: 2,
            free: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            over: AtomicBool::new(false),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            threads: Mutex::new(Vec::new()),
        };
        let mut answer = vec![0; 4096];
        let mut ask = |bytes: &[u8]| {
            shared.answer(&channel, bytes, &mut answer);
            let mut got = [0; 64];
            match rustix::io::read(&theirs, &mut got) {
                Ok(length) => Some((length, i32::from_ne_bytes(got[4..8].try_into().unwrap()))),
                Err(_) => None,
            }
        };
        assert_eq!(
            ask(&request(Opcode::Lookup as u32, b"name\0")),
            Some((16, -5))
        );
        assert_eq!(ask(&request(Opcode::GetAttr as u32, &[])), Some((20, 0)));
        // What takes no reply gets none, whatever happens.
        assert_eq!(ask(&request(Opcode::Forget as u32, &[0; 8])), None);
        // What makes no sense is an error to who asked, if it says who that is.
        assert_eq!(
            ask(&request(Opcode::Lookup as u32, b"no end")),
            Some((16, -5))
        );
        assert_eq!(ask(&[1; 39]), None);
        assert_eq!(shared.serve.served.load(Ordering::Relaxed), 2);
        assert_eq!(shared.counters.now().errors, 2);
    }
}

//! The threads that answer requests: usually a few, more while all of them are busy.
//!
//! One thread reads a request, answers it and is done with it. Threads belong to crews. One crew
//! reads the device. Over io_uring there is another for each of the kernel's queues, on that
//! queue's processor: then a request and its reply take two context switches on one processor and
//! wake no other. One slow request (copying a big file up) would in time hold every thread of a
//! crew, so a watch (`crew.rs`) adds a thread as soon as all were busy for a millisecond without
//! finishing anything. A surplus thread of the device leaves after the request that reveals it; one
//! of a queue stays (the kernel would still give it requests). The watch sleeps as long as each
//! crew has a free thread.
//!
//! A panic while answering is an EIO to the caller, an error in the log, and has no other effect.
//! Invariant: every request that wants a reply gets exactly one. Locks: only the list of threads;
//! never held while a request is answered.

mod crew;
#[cfg(test)]
mod model;

/// What `crew.rs` is built on here.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(super) use std::sync::{Condvar, Mutex};

    pub(super) use vellum_sys::sync::{lock, wait};
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use vellum_sys::fuse_ring::{Arrived, FuseRing, Post};

use crate::channel::{Buffer, Channel, Received, reply_buffer};
use crate::counters::Counters;
use crate::negotiate::MAX_TRANSFER_BYTES;
use crate::wire::reply::HEADER_BYTES;
use crate::wire::{Dialect, Op, Reply, Request};

use crew::{Crew, Watch};
use sync::{AtomicBool, Mutex, Ordering, lock};

/// The most threads a crew may have at a time.
const MOST: usize = 16;
/// How many threads each queue normally has: one that waits for a disk must not stop the rest.
const USUAL_OF_QUEUE: usize = 2;
/// How long a thread that failed to get a ring waits before it tries again.
const BEFORE_ANOTHER_RING: Duration = Duration::from_millis(100);
/// A request that moves this much lets its thread run on any processor.
const MUCH_BYTES: usize = 64 << 10;
/// This many smaller requests in a row bring it back.
const SMALL_ONES: u32 = 8;
/// How long nothing may be finished, with all threads busy, before one is added.
const PATIENCE: Duration = Duration::from_millis(1);
/// After this many looks in a row that found a free thread, the watch goes to sleep.
const CALM_LOOKS: u32 = 50;

/// What answers requests. Called from several threads at once.
pub trait Serve: Send + Sync + 'static {
    /// Answers `request`: puts the answer into `reply`.
    ///
    /// An error is sent alone; what was put is then dropped. Not called for requests that take no
    /// reply, see [`Serve::note`].
    fn serve(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno>;

    /// Handles a request that takes no reply: FORGET or BATCH_FORGET.
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
    /// The session's first descriptor; each worker of the device has a clone.
    session: Arc<Channel>,
    dialect: Dialect,
    counters: Arc<Counters>,
    crews: Vec<Crew>,
    watch: Watch,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<S: Serve> Workers<S> {
    /// Starts `usual` threads at the device, and those of `queues` queues if requests come over
    /// io_uring (else 0).
    ///
    /// Errors: no descriptor, ring or thread was available; threads already started end with the
    /// connection.
    pub fn start(
        serve: Arc<S>,
        session: Arc<Channel>,
        dialect: Dialect,
        counters: Arc<Counters>,
        usual: usize,
        queues: u16,
    ) -> vellum_sys::Result<Workers<S>> {
        let device = Crew::new(None, usual);
        let queues = (0..queues).map(|queue| Crew::new(Some(queue), USUAL_OF_QUEUE));
        let shared = Arc::new(Shared {
            serve,
            session,
            dialect,
            counters,
            crews: std::iter::once(device).chain(queues).collect(),
            watch: Watch::new(),
            threads: Mutex::new(Vec::new()),
        });
        for (number, crew) in shared.crews.iter().enumerate() {
            for _ in 0..crew.usual {
                shared.add_one(number)?;
            }
        }
        let watched = Arc::clone(&shared);
        let watch = thread("vellum-watch", move || watched.look_after_crews())?;
        Ok(Workers { shared, watch })
    }

    /// Waits until the connection is gone and every thread has ended.
    pub fn wait(self) {
        let Workers { shared, watch } = self;
        shared.join_all();
        shared.watch.end();
        // A worker's panics are caught where it answers; these threads have no other result.
        drop(watch.join());
        // The watch may have added a thread while the others left.
        shared.join_all();
    }
}

impl<S: Serve> Workers<S> {
    /// Ends every thread after its current request, and returns the session's descriptor, with
    /// later requests still unread. `nudge` sends one request and returns when it was answered: it
    /// wakes a thread that waits for one.
    ///
    /// The last nudge may find no thread; the next server answers it. Not for sessions with queues:
    /// their threads stay.
    pub fn stop(self, nudge: impl Fn() + Send + Sync + 'static) -> Arc<Channel> {
        let Workers { shared, watch } = self;
        shared.watch.end();
        // A worker's panics are caught where it answers; these threads have no other result.
        drop(watch.join());
        let (nudge, nudging) = (Arc::new(nudge), Arc::new(AtomicBool::new(false)));
        while shared.crews.iter().any(|crew| !crew.is_gone()) {
            if !nudging.swap(true, Ordering::SeqCst) {
                let (nudge, own) = (Arc::clone(&nudge), Arc::clone(&nudging));
                let started = thread("vellum-nudge", move || {
                    nudge();
                    own.store(false, Ordering::SeqCst);
                });
                if let Err(error) = started {
                    // Other requests wake the threads just as well.
                    tracing::warn!(%error, "workers stop only after their next request");
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

    fn add_one(self: &Arc<Self>, number: usize) -> vellum_sys::Result<()> {
        // Held until the new thread is in the list. It may run at once, and then another may leave;
        // if that were the last one in the list, all would seem to have ended.
        let mut threads = lock(&self.threads);
        let shared = Arc::clone(self);
        let crew = &self.crews[number];
        let (name, work): (_, Box<dyn FnOnce() + Send>) = match crew.queue {
            None => {
                let channel = self.session.another()?;
                let work = move || shared.work(number, &channel);
                ("vellum-worker", Box::new(work))
            }
            Some(queue) => {
                let work = move || shared.work_at_ring(number, queue);
                ("vellum-ring", Box::new(work))
            }
        };
        crew.start();
        let started = thread(name, work).inspect_err(|_| crew.not_started())?;
        // Handles of threads that left would pile up.
        threads.retain(|thread| !thread.is_finished());
        threads.push(started);
        Ok(())
    }

    fn work(&self, number: usize, channel: &Channel) {
        let crew = &self.crews[number];
        prepare();
        let mut buffer = Buffer::new();
        let mut answer = reply_buffer();
        crew.join();
        // All may have been told to end before this one was counted.
        while !self.watch.is_over() {
            let length = match channel.receive(&mut buffer) {
                Ok(Received::Request(length)) => length,
                Ok(Received::Nothing) => continue,
                Ok(Received::Gone) => break,
                Err(error) => {
                    tracing::error!(%error, "can't read the FUSE device");
                    break;
                }
            };
            crew.take(&self.watch);
            self.answer_over(channel, buffer.first(length), &mut answer);
            if !crew.rest(&self.watch) {
                return;
            }
        }
        self.end(crew);
    }

    fn work_at_ring(&self, number: usize, queue: u16) {
        let crew = &self.crews[number];
        prepare();
        crew.join();
        let mut post = Post::on(queue);
        if let Err(error) = &post {
            tracing::debug!(%error, queue, "can't pin a worker to its queue's processor");
        }
        // Retries until the connection is gone, since requests of this queue go nowhere else; a
        // shortage of descriptors passes.
        while !self.watch.is_over() {
            let ring = FuseRing::new(self.session.device(), queue, MAX_TRANSFER_BYTES as usize);
            let ended = ring.and_then(|mut ring| self.serve_ring(crew, &mut ring, &mut post));
            match ended {
                Ok(()) => break,
                Err(error) => tracing::error!(%error, queue, "can't take requests over io_uring"),
            }
            std::thread::sleep(BEFORE_ANOTHER_RING);
        }
        self.end(crew);
    }

    /// Answers requests until the connection is gone.
    fn serve_ring(
        &self,
        crew: &Crew,
        ring: &mut FuseRing,
        post: &mut vellum_sys::Result<Post>,
    ) -> vellum_sys::Result<()> {
        let mut answer = reply_buffer();
        let mut small = SMALL_ONES;
        while ring.exchange()? == Arrived::Request {
            crew.take(&self.watch);
            let moved = match ring.parts() {
                (request, Some(place)) => {
                    let length = self.answer(request, place).unwrap_or(HEADER_BYTES);
                    ring.reply_in_place(length);
                    length
                }
                (request, None) => {
                    let moved = request.len();
                    let length = self.answer(request, &mut answer).unwrap_or(HEADER_BYTES);
                    ring.reply(&answer[..length]);
                    moved.max(length)
                }
            };
            // Two processors copy faster than one; small requests are quicker on the caller's
            // processor.
            small = if moved < MUCH_BYTES {
                small.saturating_add(1)
            } else {
                0
            };
            if let Ok(post) = post
                && let Err(error) = post.stay(small >= SMALL_ONES)
            {
                tracing::debug!(%error, "can't change a worker's processor");
            }
            // Threads of a queue stay.
            let _stays = crew.rest(&self.watch);
        }
        Ok(())
    }

    /// Counts a thread out because its connection is gone.
    fn end(&self, crew: &Crew) {
        self.watch.note_over();
        crew.end();
    }

    fn answer_over(&self, channel: &Channel, bytes: &[u8], answer: &mut [u8]) {
        let Some(length) = self.answer(bytes, answer) else {
            return;
        };
        if let Err(error) = channel.send(&answer[..length]) {
            tracing::error!(%error, "the kernel refused a reply");
            // The caller must not wait for ever.
            let unique = answer[8..16].try_into().map_or(0, u64::from_ne_bytes);
            let mut reply = Reply::new(answer);
            if let Err(error) = channel.send(reply.finish(unique, Errno::IO.raw_os_error())) {
                tracing::error!(%error, "the kernel refused the error reply, too");
            }
        }
    }

    /// Answers a request: puts the reply into `answer` and returns its length, or `None` if it
    /// takes no reply.
    fn answer(&self, bytes: &[u8], answer: &mut [u8]) -> Option<usize> {
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
                    Ok(None) => return None,
                    Err(_) => {
                        let (opcode, node) = (header.opcode, header.node);
                        tracing::error!(opcode, node, "a bug: answering a request panicked");
                        if matches!(request.op, Op::Forget { .. } | Op::BatchForget(_)) {
                            return None;
                        }
                        (header.unique, Errno::IO.raw_os_error())
                    }
                }
            }
            Err(error) => {
                let header = Request::header(bytes).ok()?;
                tracing::error!(opcode = header.opcode, %error, "malformed request");
                (header.unique, Errno::IO.raw_os_error())
            }
        };
        if errno != 0 && errno != Errno::NOENT.raw_os_error() {
            self.counters.count_error();
        }
        Some(reply.finish(unique, errno).len())
    }

    fn look_after_crews(self: Arc<Self>) {
        let pause = || std::thread::sleep(PATIENCE);
        let add = |number| {
            if let Err(error) = self.add_one(number) {
                tracing::warn!(%error, "all workers are busy and no more can be started");
            }
        };
        self.watch.run(&self.crews, pause, add);
    }
}

/// Marks a thread as one that the page cache may depend on, and makes it subject to quotas: it
/// writes on behalf of others.
fn prepare() {
    // First: it needs the capability that enforcing quotas drops.
    if let Err(error) = vellum_sys::fuse_dev::serve_writeback() {
        tracing::debug!(%error, "can't mark a worker as an I/O flusher");
    }
    if let Err(error) = vellum_sys::quota::hold() {
        tracing::error!(%error, "ext4 quotas don't limit this mount");
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> vellum_sys::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(String::from(name))
        .spawn(run)
        .map_err(|error| vellum_sys::Error::new("start the thread", name, error))
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
    fn a_panic_fails_only_one_request() {
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
            crews: vec![Crew::new(None, 2)],
            watch: Watch::new(),
            threads: Mutex::new(Vec::new()),
        };
        let mut answer = vec![0; 4096];
        let mut ask = |bytes: &[u8]| {
            shared.answer_over(&channel, bytes, &mut answer);
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
        // A malformed request gets an error reply, if its header can be read.
        assert_eq!(
            ask(&request(Opcode::Lookup as u32, b"no end")),
            Some((16, -5))
        );
        assert_eq!(ask(&[1; 39]), None);
        assert_eq!(shared.serve.served.load(Ordering::Relaxed), 2);
        assert_eq!(shared.counters.now().errors, 2);
    }
}

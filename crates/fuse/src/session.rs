//! From mount to unmount.
//!
//! [`mount`] opens the connection, answers INIT, starts the workers, attaches the mount and
//! returns. It sends no request to the mount: that is for other processes. The mount is removed by
//! its id, never by its path alone: what another process mounts there later is not ours. When its
//! last user is gone the kernel ends the connection, the workers leave, and the engine is closed,
//! which syncs the upper.
//!
//! It must not know what is mounted. Signals are handled only by [`Session::take_signals`]; a
//! program with its own handling calls [`Session::wait`] alone.

mod fusermount;
mod handover;
mod place;
mod signals;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_sys::fuse_ring;
use vellum_union::engine::{Engine, EngineOptions};

use crate::channel::{Buffer, Channel, Received};
use crate::counters::{Counters, Counts};
use crate::negotiate::{self, Agreed, Wishes};
use crate::ops::Ops;
use crate::options::MountOptions;
use crate::wire::{Dialect, Op, Reply, Request};
use crate::workers::Workers;
use crate::{Error, Result};
use place::Connected;
use signals::Listener;

pub use handover::Handover;
pub use place::Unmounter;
pub use signals::Caught;

/// The fewest threads, even with few processors: one that waits for a disk must not stop the rest.
const FEWEST_WORKERS: usize = 2;
/// More threads than this only get in each other's way, until they have to wait.
const MOST_USUAL_WORKERS: usize = 8;

/// With more queues than this the device is read instead: each queue takes at least two threads and
/// four descriptors, and descriptors are scarce.
const MOST_QUEUES: u16 = 16;

/// A mounted union.
#[derive(Debug)]
pub struct Session {
    ops: Arc<Ops>,
    workers: Workers<Ops>,
    counters: Arc<Counters>,
    unmounter: Unmounter,
    agreed: Agreed,
    listener: Option<Listener>,
}

/// Why a session was not handed over, and the session, if it continues.
#[derive(Debug)]
pub struct NotHandedOver {
    /// Why.
    pub error: Error,
    /// The session, unchanged. Without one the mount has no server and ends.
    pub session: Option<Session>,
}

/// Mounts `engine` on the directory `target`.
///
/// On return the mount is attached and served. After an error nothing is mounted and the engine is
/// gone.
pub fn mount(engine: Engine, target: &Path, options: &MountOptions) -> Result<Session> {
    // The path must mean the same after a change of the working directory.
    let target = target
        .canonicalize()
        .map_err(|error| vellum_sys::Error::new("find", target, error))?;
    let Connected { device, mount } = place::connect(&target, options)?;
    let channel = Arc::new(Channel::new(device));
    let queues = queues(options);
    let wishes = Wishes::of(options, engine.is_limited(), queues.is_some());
    let agreed = handshake(&channel, wishes)?;
    tracing::debug!(%agreed, "connected");
    let counters = Arc::new(Counters::default());
    let ops = Arc::new(Ops::new(engine, agreed, options, &channel, &counters)?);
    let queues = match agreed.rings {
        true => queues.unwrap_or_default(),
        false => 0,
    };
    let workers = start(&ops, channel, agreed, &counters, (options, queues))?;
    match mount.attach(&target) {
        Ok(unmounter) => Ok(Session {
            ops,
            workers,
            counters,
            unmounter,
            agreed,
            listener: None,
        }),
        Err(error) => {
            // The mount is gone, and with it the connection.
            workers.wait();
            Err(error)
        }
    }
}

fn start(
    ops: &Arc<Ops>,
    channel: Arc<Channel>,
    agreed: Agreed,
    counters: &Arc<Counters>,
    (options, queues): (&MountOptions, u16),
) -> Result<Workers<Ops>> {
    let usual = match options.workers {
        Some(wished) => wished.clamp(1, MOST_USUAL_WORKERS),
        None => std::thread::available_parallelism()
            .map_or(FEWEST_WORKERS, usize::from)
            .clamp(FEWEST_WORKERS, MOST_USUAL_WORKERS),
    };
    let (ops, counters) = (Arc::clone(ops), Arc::clone(counters));
    Ok(Workers::start(
        ops,
        channel,
        agreed.dialect,
        counters,
        usual,
        queues,
    )?)
}

/// Serves a mount that another process has served until now. `engine` contains what the union's
/// engine is built from, the same as there; `options` are those the mount was created with.
///
/// Returns when the mount answers. After an error the mount has no server and ends.
pub fn take_over(
    engine: EngineOptions,
    handover: Handover,
    options: &MountOptions,
) -> Result<Session> {
    let Handover {
        device,
        agreed,
        left,
        legacy,
    } = handover;
    let engine = Engine::inherit(engine, legacy).map_err(|source| Error::Successor { source })?;
    let channel = Arc::new(Channel::new(device));
    let counters = Arc::new(Counters::default());
    let ops = Arc::new(Ops::new(engine, agreed, options, &channel, &counters)?);
    let workers = start(&ops, channel, agreed, &counters, (options, 0))?;
    Ok(Session {
        ops,
        workers,
        counters,
        unmounter: Unmounter::of(left),
        agreed,
        listener: None,
    })
}

impl Session {
    /// Stops serving between two requests, without ending the mount: its users wait until
    /// [`take_over`] serves it.
    ///
    /// Errors: in passthrough mode, over io_uring ([`Error::Handover`]), or if the mount is not
    /// visible at its path, the session is given back and continues. Later errors end the mount.
    pub fn hand_over(self) -> std::result::Result<Handover, Box<NotHandedOver>> {
        let kept = |error, session| {
            let session = Some(session);
            Err(Box::new(NotHandedOver { error, session }))
        };
        if self.agreed.passthrough {
            // The ids of backing files belong to this process's table.
            let why = String::from("it is in passthrough mode");
            return kept(Error::Handover { why }, self);
        }
        if self.agreed.rings {
            // The kernel lets a process that serves rings go, but not the requests it has given to
            // them.
            let why = String::from("its requests come over io_uring; mount it with io_uring=off");
            return kept(Error::Handover { why }, self);
        }
        let root = match self.unmounter.root() {
            Ok(root) => root,
            Err(error) => return kept(error, self),
        };
        if let Some(listener) = self.listener {
            listener.stop();
        }
        let channel = self.workers.stop(move || {
            // All that counts is that a worker had to answer it.
            let _ = rustix::fs::fstatfs(&root);
        });
        let handed = (|| {
            let ops = Arc::try_unwrap(self.ops);
            let Ok(ops) = ops else {
                // Only workers hold other references, and they have ended.
                unreachable!("a worker outlived its end");
            };
            let engine = ops.into_engine();
            let failed = |source| Error::Successor { source };
            let legacy = engine.hand_over().map_err(failed)?;
            engine.let_go().map_err(failed)?;
            let Some(channel) = Arc::into_inner(channel) else {
                unreachable!("a worker outlived its end");
            };
            Ok(Handover {
                device: channel.into_device(),
                agreed: self.agreed,
                left: self.unmounter.leave(),
                legacy,
            })
        })();
        handed.map_err(|error| {
            Box::new(NotHandedOver {
                error,
                session: None,
            })
        })
    }

    /// Returns a handle that unmounts, usable from any thread at any time.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Returns how many requests of each type have arrived so far.
    pub fn counts(&self) -> Counts {
        self.counters.now()
    }

    /// Returns the live counts, to be read while [`Session::wait`] waits.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Returns what was negotiated with the kernel.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Returns the mount's path.
    pub fn target(&self) -> PathBuf {
        self.unmounter.target().to_owned()
    }

    /// Handles the signals that were caught, and further ones. SIGTERM, SIGINT and SIGHUP unmount;
    /// a second one aborts the connection (where fusectl is not mounted, by ending the process);
    /// SIGUSR1 prints the counts to standard error. A signal that is not caught before the mount
    /// exists may leave a dead mount.
    ///
    /// A process that does this serves only the mount: it asks the kernel to kill it last when
    /// memory runs out, since others would wait for it, and it keeps little memory that it does not
    /// need.
    pub fn take_signals(&mut self, caught: Caught) -> Result<()> {
        let listener = signals::listen(caught, self.unmounter(), self.counters())?;
        self.listener = Some(listener);
        signals::outlive_others();
        vellum_sys::memory::keep_little();
        Ok(())
    }

    /// Waits until the mount was unmounted and nothing uses it any more; then closes the engine.
    pub fn wait(self) -> Result<()> {
        self.outlast()
            .close()
            .map_err(|source| Error::Close { source })
    }

    /// Waits as [`Session::wait`] does, and leaves closing the engine to the caller.
    pub fn outlast(self) -> Engine {
        self.workers.wait();
        // Only workers hold other references, and they have ended.
        let Some(ops) = Arc::into_inner(self.ops) else {
            unreachable!("a worker outlived its end")
        };
        if let Some(listener) = self.listener {
            listener.stop();
        }
        ops.into_engine()
    }

    /// Unmounts, and waits until nothing uses the mount any more.
    pub fn unmount(self) -> Result<()> {
        self.unmounter.unmount()?;
        self.wait()
    }
}

/// Returns how many queues there would be over io_uring, or `None` if io_uring is not used.
fn queues(options: &MountOptions) -> Option<u16> {
    if !options.io_uring || !fuse_ring::is_possible() {
        return None;
    }
    // Each needs its threads, including those of processors that are absent.
    let count = fuse_ring::queue_count().ok()?;
    (count <= MOST_QUEUES).then_some(count)
}

/// Answers INIT.
fn handshake(channel: &Channel, wishes: Wishes) -> Result<Agreed> {
    let mut buffer = Buffer::new();
    let length = loop {
        match channel.receive(&mut buffer) {
            Ok(Received::Request(length)) => break length,
            Ok(Received::Nothing) => {}
            Ok(Received::Gone) => return Err(Error::Closed),
            Err(error) => {
                let device = vellum_sys::fuse_dev::DEVICE;
                return Err(vellum_sys::Error::new("read", device, error).into());
            }
        }
    };
    let bytes = buffer.first(length);
    let request =
        Request::parse(bytes, Dialect::default()).map_err(|malformed| Error::Handshake {
            source: Some(malformed),
        })?;
    let Op::Init(offer) = request.op else {
        return Err(Error::Handshake { source: None });
    };
    let agreed = negotiate::negotiate(&offer, wishes);
    let mut answer = [0; 128];
    let mut reply = Reply::new(&mut answer);
    let errno = match &agreed {
        Ok(agreed) => {
            reply.init(&agreed.reply);
            0
        }
        Err(_) => rustix::io::Errno::PROTO.raw_os_error(),
    };
    let sent = channel.send(reply.finish(request.header.unique, errno));
    match sent {
        Ok(true) => Ok(agreed?),
        Ok(false) => Err(Error::Closed),
        Err(error) => {
            Err(vellum_sys::Error::new("answer", vellum_sys::fuse_dev::DEVICE, error).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vellum_testkit::{Scratch, is_root, untested};

    use super::*;

    fn wishes() -> Wishes {
        Wishes::of(&MountOptions::default(), false, false)
    }

    #[test]
    fn a_first_message_that_is_not_init_is_refused() {
        let garbage = [[0; 8].as_slice(), &[0xff; 80]];
        for bytes in garbage {
            let (from, to) = std::io::pipe().unwrap();
            rustix::io::write(&to, bytes).unwrap();
            let error = handshake(&Channel::new(from.into()), wishes()).unwrap_err();
            assert!(matches!(error, Error::Handshake { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_mount_that_is_gone_before_its_first_message_is_an_error() {
        if !is_root() || !Path::new("/dev/fuse").exists() {
            return untested("FUSE mounts", "no root, or no /dev/fuse");
        }
        let scratch = Scratch::new();
        let options = MountOptions::default();
        let Connected { device, mount } = place::connect(&scratch.dir("merged"), &options).unwrap();
        drop(mount);
        let error = handshake(&Channel::new(device), wishes()).unwrap_err();
        assert!(matches!(error, Error::Closed), "{error:?}");
    }
}

//! The life of a server: threads, the socket, readiness, signals, and an end that waits for what is
//! under way.
//!
//! What is spoken on the socket is the front's; this module must not know it. Signals are watched
//! before anything listens: whoever can connect may also end it. SIGTERM and SIGINT end it, SIGHUP
//! is passed on. systemd, if it asked to be told, hears when the server is ready, reads its
//! settings anew, and ends. Mounts are the kernel's, or of processes of their own: they stay, and
//! the next server finds them.

use std::future::Future;
use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use vellum_sys::Cancel;

use crate::error::Error;
use crate::serve::listen::Listening;

pub mod listen;

/// Threads that pass bytes; those that work are others.
const WORKERS: usize = 2;

/// How long calls under way are waited for at the end before they are told to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long they have then.
const GRACE: Duration = Duration::from_secs(5);

/// How long nobody is let in after a connection could not be accepted.
const BREATH: Duration = Duration::from_millis(200);

/// Why there is no server, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store or the socket can't be had.
    #[error(transparent)]
    Verb(#[from] Error),
    /// The process lacks something.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What speaks on the socket failed.
    #[error("serving failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ServeError {
    /// Wraps an error of what speaks on the socket.
    pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Failed(Box::new(error))
    }

    /// Returns a function that wraps an I/O error, for `map_err`. `action` is a verb ("listen").
    pub fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// A server that has not ended: it hears signals and can be told to end.
pub struct Life {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    end: watch::Sender<bool>,
}

/// Runs a server, `work`, to its end, on threads called `name`, with up to `blocking_threads` for
/// work that blocks.
///
/// Errors: those of `work`, and where there are no threads or signals to be had.
pub fn run<W: Future<Output = Result<(), ServeError>>>(
    name: &str,
    blocking_threads: usize,
    work: impl FnOnce(Life) -> W,
) -> Result<(), ServeError> {
    let runtime: Runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(blocking_threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(ServeError::io("start threads"))?;
    let served = runtime.block_on(async { work(Life::begin()?).await });
    // What still runs was told to stop and has had its time; what it leaves is litter for gc.
    runtime.shutdown_timeout(Duration::ZERO);
    served
}

impl Life {
    fn begin() -> Result<Self, ServeError> {
        let watch = |kind| signal(kind).map_err(ServeError::io("watch for signals"));
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            hangup: watch(SignalKind::hangup())?,
            end: watch::channel(false).0,
        })
    }

    /// Returns what is done when the server is to take no further calls and to end with those it
    /// has.
    pub fn ending(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut told = self.end.subscribe();
        async move {
            // An error means that the other end is gone, and then it is time, too.
            let _ = told.wait_for(|end| *end).await;
        }
    }

    /// Tells systemd that calls are answered; `status` is for people.
    pub fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Waits until `server` ends by itself or is told to, and does `hangup` at each SIGHUP.
    /// `server` ends soon after [`Life::ending`] is done and no call is under way.
    ///
    /// Calls under way have [`PATIENCE`], are told to stop by `cancel`, and are given up after
    /// [`GRACE`]; that is no error.
    pub async fn last<E>(
        mut self,
        server: impl Future<Output = Result<(), E>> + Send + 'static,
        hangup: impl AsyncFn(),
        cancel: &Cancel,
    ) -> Result<(), ServeError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut server = tokio::spawn(server);
        loop {
            tokio::select! {
                done = &mut server => return finished(done),
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hangup.recv() => hangup().await,
            }
        }
        tracing::info!("ending: calls under way are finished; mounts stay");
        notify(&[NotifyState::Stopping]);
        // Nobody hears it if the server has just ended.
        let _ = self.end.send(true);
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut server).await {
            return finished(done);
        }
        tracing::warn!("calls are still under way and are told to stop");
        cancel.cancel();
        if let Ok(done) = tokio::time::timeout(GRACE, &mut server).await {
            return finished(done);
        }
        tracing::warn!("calls are still under way and are given up");
        server.abort();
        Ok(())
    }
}

fn finished<E>(done: Result<Result<(), E>, tokio::task::JoinError>) -> Result<(), ServeError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match done {
        Ok(served) => served.map_err(ServeError::failed),
        Err(error) => Err(ServeError::failed(error)),
    }
}

/// Returns a listener for the threads of [`run`]. `listening` must outlive it.
pub fn listener(listening: &Listening) -> Result<UnixListener, ServeError> {
    let socket = listening.listener()?;
    socket
        .set_nonblocking(true)
        .map_err(ServeError::io("listen"))?;
    UnixListener::from_std(socket).map_err(ServeError::io("listen"))
}

/// Returns the connection that was accepted. If none could be, waits a moment: mostly there are too
/// many, and the next attempt would fail at once.
pub async fn connection<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::debug!(%error, "a connection could not be accepted");
            tokio::time::sleep(BREATH).await;
            None
        }
    }
}

/// Tells systemd that `work` reads the settings anew, until it is done.
pub async fn reloading(work: impl Future<Output = ()>) {
    // In one message with the time, as it must be for units of `Type=notify-reload`.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    work.await;
    notify(&[NotifyState::Ready]);
}

/// Tells systemd, if it asked to be told.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd is not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_in_for_a_moment_after_an_accept_that_failed() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let begun = std::time::Instant::now();
        let too_many = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert_eq!(runtime.block_on(connection::<u8>(Err(too_many))), None);
        assert!(begun.elapsed() >= BREATH);
        assert_eq!(runtime.block_on(connection(Ok(1))), Some(1));
    }
}

//! The life of a server: threads, the socket, readiness, signals, and a shutdown that waits for
//! calls in progress.
//!
//! The protocol on the socket is the front's; this module must not know it. Signals are handled
//! before anything listens, so a server that accepts connections can also be stopped. SIGTERM and
//! SIGINT stop it, SIGHUP is passed on. systemd, if it asked for notifications, is told when the
//! server is ready, reloads its settings, and stops. Mounts belong to the kernel or to processes of
//! their own: they stay, and the next server finds them.

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

/// Threads for I/O; blocking work has others.
const WORKERS: usize = 2;

/// How long the shutdown waits for calls in progress before it cancels them.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long cancelled calls may take.
const GRACE: Duration = Duration::from_secs(5);

/// How long no connection is accepted after one could not be.
const BREATH: Duration = Duration::from_millis(200);

/// Why the server could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store or the socket is not available.
    #[error(transparent)]
    Verb(#[from] Error),
    /// The process lacks a resource.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The protocol's server failed.
    #[error("serving failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ServeError {
    /// Wraps an error of the protocol's server.
    pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Failed(Box::new(error))
    }

    /// Returns a function that wraps an I/O error, for `map_err`. `action` is a verb ("listen").
    pub fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// A running server: it handles signals and can be told to stop.
pub struct Life {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    end: watch::Sender<bool>,
}

/// Runs a server, `work`, to its end, on threads called `name`, with up to `blocking_threads` for
/// blocking work.
///
/// Errors: those of `work`, and if threads or signals are not available.
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
    // Whatever still runs was cancelled and has had its time; its leftovers are litter for gc.
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

    /// Returns a future that is done when the server must take no more calls and end with those it
    /// has.
    pub fn ending(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut told = self.end.subscribe();
        async move {
            // An error means that the other end is gone, which also means the end.
            let _ = told.wait_for(|end| *end).await;
        }
    }

    /// Tells systemd that the server is ready; `status` is for people.
    pub fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Waits until `server` ends by itself or is told to, and calls `hangup` at each SIGHUP.
    /// `server` ends soon after [`Life::ending`] is done and no call is in progress.
    ///
    /// Calls in progress get [`PATIENCE`], are cancelled by `cancel`, and are abandoned after
    /// [`GRACE`]; that is not an error.
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
        tracing::info!("stopping: waiting for calls in progress; mounts stay");
        notify(&[NotifyState::Stopping]);
        // There is no receiver if the server has just ended.
        let _ = self.end.send(true);
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut server).await {
            return finished(done);
        }
        tracing::warn!("cancelling calls that are still in progress");
        cancel.cancel();
        if let Ok(done) = tokio::time::timeout(GRACE, &mut server).await {
            return finished(done);
        }
        tracing::warn!("abandoning calls that are still in progress");
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

/// Returns the accepted connection. After a failure, waits a moment: usually there are too many
/// connections, and the next attempt would fail at once.
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

/// Tells systemd that `work` reloads the settings, until it is done.
pub async fn reloading(work: impl Future<Output = ()>) {
    // In one message with the time, as units of `Type=notify-reload` require.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    work.await;
    notify(&[NotifyState::Ready]);
}

/// Notifies systemd, if it asked for it.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_accept_is_followed_by_a_pause() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let begun = std::time::Instant::now();
        let too_many = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert_eq!(runtime.block_on(connection::<u8>(Err(too_many))), None);
        assert!(begun.elapsed() >= BREATH);
        assert_eq!(runtime.block_on(connection(Ok(1))), Some(1));
    }
}

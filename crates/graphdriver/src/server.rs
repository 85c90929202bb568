//! Life and death of the server: the socket, readiness, an end that waits for what is under way.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use vellum_service::graph::Graph;
use vellum_service::listen::{Listening, listen};
use vellum_service::{Cancel, Context, Error};

use crate::calls::{Shared, router};

/// How long calls under way are waited for at the end before they are told to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long they have then.
const GRACE: Duration = Duration::from_secs(5);

/// Threads that pass bytes; those that work are others.
const WORKERS: usize = 2;

/// Why the server could not begin, or ended badly.
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
}

fn io(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { action, source }
}

/// Serves Docker from the store of `ctx` on the socket at `path`, or on the one that systemd handed over, until the process is told to end.
///
/// Calls under way are waited for. Mounts stay: containers go on, and the next server finds them.
pub fn serve(ctx: Context, path: &Path) -> Result<(), ServeError> {
    let graph = Arc::new(Graph::open(ctx)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("docker")
        .enable_all()
        .build()
        .map_err(io("start threads"))?;
    let shared = Shared {
        graph,
        cancel: Cancel::new(),
    };
    let served = runtime.block_on(async {
        // Whoever can connect may also end this.
        let signals = Signals::watch()?;
        let listening = listen(path)?;
        run(shared, signals, &listening, path).await
    });
    // Whatever still runs was told to stop and has had its time; what it leaves is litter for gc.
    runtime.shutdown_timeout(Duration::ZERO);
    served
}

/// The signals that mean something here.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> Result<Self, ServeError> {
        let watch = |kind| signal(kind).map_err(io("watch for signals"));
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            // There is nothing to read anew, and no reason to end.
            hangup: watch(SignalKind::hangup())?,
        })
    }
}

async fn run(
    shared: Shared,
    mut signals: Signals,
    listening: &Listening,
    path: &Path,
) -> Result<(), ServeError> {
    let socket = listening.listener()?;
    socket.set_nonblocking(true).map_err(io("listen"))?;
    let listener = UnixListener::from_std(socket).map_err(io("listen"))?;
    let (end, ending) = tokio::sync::watch::channel(false);
    let home = shared.graph.home();
    let cancel = shared.cancel.clone();
    let mut told = ending.clone();
    let server = axum::serve(listener, router(shared)).with_graceful_shutdown(async move {
        // An error means that the other end is gone, and then it is time, too.
        let _ = told.wait_for(|end| *end).await;
    });
    let mut server = tokio::spawn(async move { server.await });
    match (&home, listening.is_inherited()) {
        (Some(home), _) => {
            tracing::info!(socket = %path.display(), home = %home.display(), "serving a daemon that is known")
        }
        (None, inherited) => {
            tracing::info!(socket = %path.display(), inherited, "serving; no daemon has come yet")
        }
    }
    notify(&[NotifyState::Ready, NotifyState::Status("serving Docker")]);
    loop {
        tokio::select! {
            done = &mut server => return finished(done),
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => tracing::info!("nothing to reload"),
        }
    }
    tracing::info!("ending; mounts stay");
    notify(&[NotifyState::Stopping]);
    // The receiver lives in the server, which has not ended.
    let _ = end.send(true);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut server).await {
        return finished(done);
    }
    tracing::warn!("calls are still under way and are told to stop");
    cancel.cancel();
    match tokio::time::timeout(GRACE, &mut server).await {
        Ok(done) => finished(done),
        Err(_) => {
            server.abort();
            Ok(())
        }
    }
}

fn finished(done: Result<io::Result<()>, tokio::task::JoinError>) -> Result<(), ServeError> {
    match done {
        Ok(served) => served.map_err(io("serve")),
        Err(error) => Err(io("serve")(io::Error::other(error))),
    }
}

/// Tells systemd, if it asked to be told.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd is not told");
    }
}

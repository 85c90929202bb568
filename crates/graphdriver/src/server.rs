//! The server: the driver on its store, HTTP on its socket. For how servers start and end see
//! [`vellum_service::serve`].

use std::future::IntoFuture;
use std::path::Path;
use std::sync::Arc;

use vellum_service::Context;
use vellum_service::docker::Graph;
use vellum_service::serve::listen::listen;
use vellum_service::serve::{self, Life, ServeError};

use crate::answers::Shared;
use crate::calls::router;

/// Threads for blocking work. Each call needs one, and many containers may start or end at the same
/// time.
const BLOCKING_THREADS: usize = 512;

/// Serves Docker from the store of `ctx` on the socket at `path`, or on the one that systemd
/// passed, until the process is told to end.
///
/// Waits for calls in progress. Mounts stay: containers keep running, and the next server finds
/// them.
pub fn serve(ctx: Context, path: &Path) -> Result<(), ServeError> {
    let cancel = ctx.cancel.clone();
    let graph = Arc::new(Graph::open(ctx)?);
    serve::run("docker", BLOCKING_THREADS, async move |life| {
        run(life, Shared { graph, cancel }, path).await
    })
}

async fn run(life: Life, shared: Shared, path: &Path) -> Result<(), ServeError> {
    let listening = listen(path)?;
    let listener = serve::listener(&listening)?;
    let cancel = shared.cancel.clone();
    match (shared.graph.home(), listening.is_inherited()) {
        (Some(home), _) => {
            tracing::info!(socket = %path.display(), home = %home.display(), "serving a known daemon")
        }
        (None, inherited) => {
            tracing::info!(socket = %path.display(), inherited, "serving; no daemon has connected yet")
        }
    }
    let server = axum::serve(listener, router(shared)).with_graceful_shutdown(life.ending());
    life.ready("serving Docker");
    // There are no settings to reload, and SIGHUP is no reason to end.
    let hangup = async || tracing::info!("nothing to reload");
    life.last(server.into_future(), hangup, &cancel).await
}

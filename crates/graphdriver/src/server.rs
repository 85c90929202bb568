//! The server: the driver on its store, HTTP on its socket. How it lives and ends is told at
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

/// Threads for blocking work: each call has one, and those of many containers that start or end at
/// once come together.
const BLOCKING_THREADS: usize = 512;

/// Serves Docker from the store of `ctx` on the socket at `path`, or on the one that systemd handed
/// over, until the process is told to end.
///
/// Calls under way are waited for. Mounts stay: containers go on, and the next server finds them.
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
            tracing::info!(socket = %path.display(), home = %home.display(), "serving a daemon that is known")
        }
        (None, inherited) => {
            tracing::info!(socket = %path.display(), inherited, "serving; no daemon has come yet")
        }
    }
    let server = axum::serve(listener, router(shared)).with_graceful_shutdown(life.ending());
    life.ready("serving Docker");
    // There is nothing to read anew, and no reason to end.
    let hangup = async || tracing::info!("nothing to reload");
    life.last(server.into_future(), hangup, &cancel).await
}

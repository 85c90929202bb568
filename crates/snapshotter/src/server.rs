//! The server: the services on its socket, and reloading of settings. For how servers start and end
//! see [`vellum_service::serve`].
//!
//! It listens on a unix socket that only root may use (a client that can connect can mount and
//! remove everything), or on one that systemd passes. It reports ready when the store is open and
//! the socket listens. SIGHUP reloads the settings; calls in progress keep those they began with.
//!
//! Verbs run on a bounded number of threads, each of which may hold a connection to the database.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use vellum_service::Context;
use vellum_service::config::{Config, ConfigError};
use vellum_service::containerd::snapshots::ClientSettings;
use vellum_service::serve::listen::listen;
use vellum_service::serve::{self, Life, ServeError};

use crate::api::services::diff::v1::diff_server::DiffServer;
use crate::api::services::snapshots::v1::snapshots_server::SnapshotsServer;
use crate::content::Containerd;
use crate::differ::Differ;
use crate::health;
use crate::metrics::Address;
use crate::metrics_listener;
use crate::shared::Shared;
use crate::snapshots::Snapshots;
use crate::status;

/// The longest message in either direction; containerd's limit.
const MESSAGE_BYTES: usize = 16 << 20;

/// Threads for blocking work. Each may hold a connection to the database and its cache.
const BLOCKING_THREADS: usize = 16;

/// What to serve, and how.
pub struct ServeOptions {
    /// Path of the socket, unless systemd passes one.
    pub socket: PathBuf,
    /// containerd's own socket, where the differ fetches layers and stores new ones.
    pub containerd: PathBuf,
    /// What containerd's configuration says about this server.
    pub client: ClientSettings,
    /// Where to serve metrics, if anywhere.
    pub metrics: Option<Address>,
    /// Resolves the settings again.
    pub reload: Reload,
}

/// Resolves the settings again.
pub type Reload = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Serves until told to end (SIGTERM, SIGINT). Opens the store, and creates it if there is none.
///
/// On error, nothing listens any more.
pub fn serve(context: Context, options: ServeOptions) -> Result<(), ServeError> {
    vellum_service::containerd::snapshots::check_root(&context)?;
    // If the store can't be opened, fail now, not at the first call.
    context.store()?;
    let shared = Arc::new(Shared::new(context, options.client));
    serve::run("containerd", BLOCKING_THREADS, async |life| {
        run(life, &shared, &options).await
    })
}

async fn run(life: Life, shared: &Arc<Shared>, options: &ServeOptions) -> Result<(), ServeError> {
    let listening = listen(&options.socket)?;
    let listener = serve::listener(&listening)?;
    let snapshots = SnapshotsServer::new(Snapshots::new(Arc::clone(shared)))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let containerd = Containerd::at(&options.containerd).map_err(ServeError::failed)?;
    let differ = Differ::new(Arc::clone(shared), containerd);
    let differ = DiffServer::new(differ)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let server = Server::builder()
        .add_service(health::serve(Arc::clone(shared)).await)
        .add_service(snapshots)
        .add_service(differ)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), life.ending());
    if let Some(address) = &options.metrics {
        metrics_listener::serve(Arc::clone(shared), address).await?;
        tracing::info!(%address, "serving metrics");
    }
    let root = shared.context().root().display().to_string();
    tracing::info!(socket = %options.socket.display(), root, "serving");
    life.ready("serving containerd");
    // Delete what an earlier server left in the trash. Errors are logged, and Cleanup tries again.
    let at_start = Arc::clone(shared);
    tokio::spawn(async move {
        let _ = at_start.clean().await;
    });
    let cancel = shared.context().cancel.clone();
    let hangup = async || serve::reloading(reload(shared, options)).await;
    life.last(server, hangup, &cancel).await
}

/// Reloads the settings. If that fails, the old ones stay in effect, and the log says why.
async fn reload(shared: &Arc<Shared>, options: &ServeOptions) {
    let renewed = match (options.reload)() {
        Ok(config) => {
            let shared = Arc::clone(shared);
            // Opening the store reads files.
            match tokio::task::spawn_blocking(move || shared.renew(config)).await {
                Ok(done) => done.map_err(|error| status::told(&error, error.hint())),
                Err(panic) => Err(panic.to_string()),
            }
        }
        Err(error) => Err(status::told(&error, error.hint())),
    };
    match renewed {
        Ok(()) => tracing::info!("settings reloaded"),
        Err(error) => tracing::error!(error, "keeping the old settings"),
    }
}

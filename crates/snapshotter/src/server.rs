//! The server: what it answers on its socket, and settings that are read anew. How it lives and ends is told at [`vellum_service::serve`].
//!
//! It listens on a unix socket that only root may use (whoever may connect can mount and remove everything), or on one that systemd hands over.
//! Ready is said when the store is open and the socket listens. SIGHUP reads the settings anew: calls under way keep those they began with.
//!
//! [`Shared`] is what all calls work on; verbs run on a bounded number of threads, each of which may hold a connection to the database.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::transport::Server;
use vellum_service::config::{Config, ConfigError};
use vellum_service::listen::listen;
use vellum_service::serve::{self, Life, ServeError};
use vellum_service::snapshots::{self as verbs, Terms};
use vellum_service::{Context, Error};
use vellum_sys::sync;

use crate::api::services::diff::v1::diff_server::DiffServer;
use crate::api::services::snapshots::v1::snapshots_server::SnapshotsServer;
use crate::content::Containerd;
use crate::differ::Differ;
use crate::health;
use crate::metrics::{self, Address, Metrics};
use crate::snapshots::{Snapshots, refused};
use crate::status;

/// The longest message either side sends, as containerd has it.
const MESSAGE_BYTES: usize = 16 << 20;

/// Threads for blocking work. Each may hold a connection to the database and its cache.
const BLOCKING_THREADS: usize = 16;

/// What is to be served, and how.
pub struct ServeOptions {
    /// Where the socket is made, unless systemd hands one over.
    pub socket: PathBuf,
    /// containerd's own socket: the differ fetches layers there, and brings new ones.
    pub containerd: PathBuf,
    /// What containerd's configuration says about this server.
    pub terms: Terms,
    /// Where numbers can be read, if anywhere.
    pub metrics: Option<Address>,
    /// Resolves the settings anew.
    pub reload: Reload,
}

/// Resolves the settings anew.
pub type Reload = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// What all calls work on.
pub struct Shared {
    context: RwLock<Arc<Context>>,
    terms: Terms,
    metrics: Metrics,
    /// One deletion of what was removed at a time: two would both count what they meet.
    cleaning: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Wraps a context whose store is open.
    pub fn new(context: Context, terms: Terms) -> Self {
        Self {
            context: RwLock::new(Arc::new(context)),
            terms,
            metrics: Metrics::default(),
            cleaning: tokio::sync::Mutex::new(()),
        }
    }

    /// Returns the context that holds now. A call keeps the one it began with.
    pub fn context(&self) -> Arc<Context> {
        let held = sync::read(&self.context);
        Arc::clone(&held)
    }

    /// Runs a verb where it may block, and turns its error into a status. `call` and `key` are for the log.
    pub async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        key: &str,
        verb: impl FnOnce(&Context, Terms) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let (context, terms) = (self.context(), self.terms);
        let begun = Instant::now();
        let done = tokio::task::spawn_blocking(move || verb(&context, terms)).await;
        let took = begun.elapsed();
        let done = match done {
            Ok(Ok(value)) => {
                tracing::debug!(call, key, took_us = took.as_micros() as u64, "done");
                Ok(value)
            }
            Ok(Err(error)) => Err(refused(call, key, &error)),
            Err(panic) => {
                tracing::error!(call, key, %panic, "a call panicked");
                Err(Status::internal(format!("{call} panicked: {panic}")))
            }
        };
        let code = done.as_ref().err().map_or(tonic::Code::Ok, Status::code);
        self.metrics.ended(call, code, took);
        done
    }

    /// As [`Shared::run`], for what is no call: nothing is counted.
    pub(crate) async fn quietly<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Context) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let context = self.context();
        match tokio::task::spawn_blocking(move || verb(&context)).await {
            Ok(done) => done.map_err(|error| status::of(&error)),
            Err(panic) => Err(Status::internal(panic.to_string())),
        }
    }

    /// Returns what is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Deletes what removed snapshots left behind.
    pub async fn clean(&self) -> Result<usize, Status> {
        let _alone = self.cleaning.lock().await;
        let swept = self
            .run("Cleanup", "", |ctx, _| verbs::cleanup(ctx))
            .await?;
        self.metrics.swept(swept);
        Ok(swept)
    }

    /// Counts what a new layer takes, in the background.
    pub fn count_later(self: &Arc<Self>, name: String) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let layer = name.clone();
            // What went wrong is in the log; whoever asks for the usage has it counted then.
            let _ = shared
                .run("count", &name, move |ctx, _| verbs::count(ctx, &layer))
                .await;
        });
    }

    /// Works with `config` from now on.
    ///
    /// Errors: `Invalid` if it names another store: that takes another server.
    fn renew(&self, config: Config) -> Result<(), Error> {
        let old = self.context();
        let fresh = Context::new(config, old.cancel.clone(), Arc::clone(&old.progress));
        if (fresh.root(), fresh.run_dir()) != (old.root(), old.run_dir()) {
            return Err(Error::Invalid {
                what: "the settings name another store or run directory".into(),
                hint: Some("start the server anew for that".into()),
            });
        }
        fresh.store()?;
        *sync::write(&self.context) = Arc::new(fresh);
        Ok(())
    }
}

/// Serves until told to end (SIGTERM, SIGINT). Opens the store, making it if there is none.
///
/// Errors: nothing listens any more.
pub fn serve(context: Context, options: ServeOptions) -> Result<(), ServeError> {
    vellum_service::snapshots::check_root(&context)?;
    // A store that can't be opened is told now, not at the first call.
    context.store()?;
    let shared = Arc::new(Shared::new(context, options.terms));
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
        metrics::serve(Arc::clone(shared), address).await?;
        tracing::info!(%address, "numbers can be read");
    }
    let root = shared.context().root().display().to_string();
    tracing::info!(socket = %options.socket.display(), root, "serving");
    life.ready("serving containerd");
    // What an earlier server left in the trash. What goes wrong is in the log, and Cleanup tries again.
    let at_start = Arc::clone(shared);
    tokio::spawn(async move {
        let _ = at_start.clean().await;
    });
    let cancel = shared.context().cancel.clone();
    let hangup = async || serve::reloading(reload(shared, options)).await;
    life.last(server, hangup, &cancel).await
}

/// Reads the settings anew. Where that fails the old ones hold, and the log says why.
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
        Ok(()) => tracing::info!("settings were read anew"),
        Err(error) => tracing::error!(error, "the old settings hold"),
    }
}

//! State shared by all calls: the current context, the metrics, and the threads where a verb may
//! block.

use std::sync::{Arc, RwLock};
use std::time::Instant;

use tonic::Status;
use vellum_service::config::Config;
use vellum_service::containerd::snapshots::{self as verbs, ClientSettings};
use vellum_service::{Context, Error};
use vellum_sys::sync;

use crate::metrics::Metrics;
use crate::status::{self, refused};

/// State shared by all calls.
pub struct Shared {
    context: RwLock<Arc<Context>>,
    client: ClientSettings,
    metrics: Metrics,
    /// Held while the trash is emptied: two at a time would count the same trees twice.
    cleaning: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Wraps a context whose store is open.
    pub fn new(context: Context, client: ClientSettings) -> Self {
        Self {
            context: RwLock::new(Arc::new(context)),
            client,
            metrics: Metrics::default(),
            cleaning: tokio::sync::Mutex::new(()),
        }
    }

    /// Returns the current context. A call keeps the one it began with.
    pub fn context(&self) -> Arc<Context> {
        let held = sync::read(&self.context);
        Arc::clone(&held)
    }

    /// Runs a verb on a blocking thread, and turns its error into a status. `call` and `key` are
    /// for the log.
    pub async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        key: &str,
        verb: impl FnOnce(&Context, ClientSettings) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let (context, client) = (self.context(), self.client);
        let begun = Instant::now();
        let done = tokio::task::spawn_blocking(move || verb(&context, client)).await;
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

    /// Like [`Shared::run`], for work that is not a call: nothing is counted or logged.
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

    /// Returns the metrics.
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

    /// Counts the space of a new layer, in the background.
    pub fn count_later(self: &Arc<Self>, name: String) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let layer = name.clone();
            // Errors are logged. The next request for the usage counts it then.
            let _ = shared
                .run("count", &name, move |ctx, _| verbs::count(ctx, &layer))
                .await;
        });
    }

    /// Uses `config` from now on.
    ///
    /// Errors: `Invalid` if it names another store, which needs a restart.
    pub(crate) fn renew(&self, config: Config) -> Result<(), Error> {
        let old = self.context();
        let fresh = Context::new(config, old.cancel.clone(), Arc::clone(&old.progress));
        if (fresh.root(), fresh.run_dir()) != (old.root(), old.run_dir()) {
            return Err(Error::Invalid {
                what: "the settings name another store or run directory".into(),
                hint: Some("restart the server to use them".into()),
            });
        }
        fresh.store()?;
        *sync::write(&self.context) = Arc::new(fresh);
        Ok(())
    }
}

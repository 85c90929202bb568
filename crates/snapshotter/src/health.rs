//! gRPC health: both services serve as long as the store can be seen.
//!
//! A store that somebody covered, or whose disk is gone, is looked for every few seconds, so that a
//! probe learns of it, and the log tells of it once, though nobody calls. It comes back by itself;
//! the server needs no restart. Calls decide for themselves, and nothing here is asked by them.

use std::sync::Arc;
use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::api::services::diff::v1::diff_server::DiffServer;
use crate::api::services::snapshots::v1::snapshots_server::SnapshotsServer;
use crate::differ::Differ;
use crate::shared::Shared;
use crate::snapshots::Snapshots;

/// How long between two looks: some ten stat(2).
const PAUSE: Duration = Duration::from_secs(2);

/// Returns the service, and looks at the store for as long as the runtime lives. `shared` has just
/// opened it.
pub async fn serve(shared: Arc<Shared>) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    tell(&reporter, true).await;
    tokio::spawn(async move {
        let mut is_there = true;
        loop {
            tokio::time::sleep(PAUSE).await;
            let found = shared.quietly(|ctx| ctx.store().map(drop)).await;
            if found.is_ok() == is_there {
                continue;
            }
            is_there = found.is_ok();
            match found {
                Ok(()) => tracing::info!("the store is back"),
                Err(status) => {
                    tracing::error!(error = status.message(), "the store is out of reach")
                }
            }
            tell(&reporter, is_there).await;
        }
    });
    service
}

async fn tell(reporter: &HealthReporter, serves: bool) {
    let status = match serves {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    // The empty name is the server as a whole.
    for name in [
        "",
        name_of::<SnapshotsServer<Snapshots>>(),
        name_of::<DiffServer<Differ>>(),
    ] {
        reporter.set_service_status(name, status).await;
    }
}

fn name_of<S: tonic::server::NamedService>() -> &'static str {
    S::NAME
}

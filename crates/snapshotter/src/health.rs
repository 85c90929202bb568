//! gRPC health: both services are SERVING while the store is accessible.
//!
//! The store may be hidden by a mount over it, or its disk may be gone. It is checked every few
//! seconds, so that probes and the log report that even without calls. When the store is accessible
//! again, so is the service, without a restart. Calls check for themselves and don't use this
//! state.

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

/// Time between two checks. A check costs some ten stat(2) calls.
const PAUSE: Duration = Duration::from_secs(2);

/// Returns the service, and checks the store for as long as the runtime lives. `shared` has just
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
                Ok(()) => tracing::info!("the store is accessible again"),
                Err(status) => {
                    tracing::error!(error = status.message(), "the store is not accessible")
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

//! `check --rebuild`: rebuilds the database from the files next to it.

use serde::Serialize;
use vellum_store::Store;

use crate::context::Context;
use crate::error::Result;
use crate::store::check::Wrong;

/// The result of a rebuild. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Snapshots.
    pub snapshots: u64,
    /// Images.
    pub images: u64,
    /// Containers.
    pub containers: u64,
    /// Volumes.
    pub volumes: u64,
    /// The old database's new path.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::json::some_path"
    )]
    pub old_database: Option<std::path::PathBuf>,
    /// What could not be restored.
    pub lost: Vec<Wrong>,
}

/// Rebuilds the database from the files next to it. The old one is kept under another name.
pub fn rebuild(ctx: &Context) -> Result<Rebuilt> {
    let (_, rebuilt) = Store::rebuild(&ctx.store_options())?;
    Ok(Rebuilt {
        snapshots: rebuilt.snapshots,
        images: rebuilt.images,
        containers: rebuilt.containers,
        volumes: rebuilt.volumes,
        old_database: rebuilt.old_database,
        lost: rebuilt.lost.into_iter().map(Wrong::from).collect(),
    })
}

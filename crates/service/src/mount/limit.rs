//! What enforces a tree's size limit: the file system, by a project quota, or Vellum's engine.

use vellum_store::SnapshotKey;
use vellum_sys::Dir;
use vellum_sys::quota::{self, ProjectQuota};

use crate::config::Engine;
use crate::context::Context;
use crate::error::Result;
use crate::mount::facts;

/// Tells whether Vellum's engine must enforce a byte limit of a tree on `parent`: the file system
/// can't, and the engine can mount the tree.
///
/// Otherwise the store enforces it, or reports what the file system lacks.
pub(crate) fn kept_by_engine(ctx: &Context, parent: &SnapshotKey) -> Result<bool> {
    let state = quota::state(Dir::open(ctx.store()?.root())?)?;
    Ok(state != ProjectQuota::Enforced && engine_shows(ctx, parent)?)
}

/// Tells whether Vellum's engine can mount a tree on `parent`.
pub(crate) fn engine_shows(ctx: &Context, parent: &SnapshotKey) -> Result<bool> {
    Ok(ctx.store()?.layer_driver(Some(parent))?.makes_overlays()
        && ctx.config.engine.value != Engine::Kernel
        && facts::facts(ctx)?.fuse)
}

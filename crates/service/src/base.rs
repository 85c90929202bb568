//! The lowest layer of a container: its image's top layer, or an empty one.

use vellum_store::{DriverKind, ImageRecord, LayerCommit, LeaseId, SnapshotKey, TreeParts};

use crate::context::Context;
use crate::error::Result;

/// The empty layer under containers that are copies of directories.
const EMPTY_BASE: &str = "vellum/empty";

/// Returns the tree of an image; for an image without layers, an empty one.
///
/// `gc` may remove the empty layer while it is mounted; what is mounted stays empty.
pub(crate) fn tree_of_image(ctx: &Context, image: &ImageRecord) -> Result<TreeParts> {
    let store = ctx.store()?;
    if let Some(top) = image.top() {
        return Ok(store.tree(top)?);
    }
    let lease = store.lease("show an image without layers")?;
    let empty = empty_base(ctx, lease.id())?;
    Ok(store.tree(&empty)?)
}

/// Returns the key of the empty layer, held by `lease`; creates it if it isn't there.
pub(crate) fn empty_base(ctx: &Context, lease: &LeaseId) -> Result<SnapshotKey> {
    let store = ctx.store()?;
    let key = SnapshotKey::from(EMPTY_BASE);
    if store.hold(lease, &vellum_store::LeaseResource::Snapshot(key.clone()))? {
        return Ok(key);
    }
    // It is only ever shown under an overlay, whatever the store's driver is.
    let staged = store.stage_layer(Some(DriverKind::default()))?;
    let commit = LayerCommit {
        lease: Some(lease.clone()),
        ..LayerCommit::new(key.clone(), None)
    };
    store.commit_layer(staged, commit)?;
    Ok(key)
}

//! What a container of an image stands on: the image's top layer, or an empty one.

use vellum_store::{DriverKind, ImageRecord, LayerCommit, LeaseId, SnapshotKey, TreeParts};

use crate::context::Context;
use crate::error::Result;

/// The empty layer that copies of directories stand on.
const EMPTY_BASE: &str = "vellum/empty";

/// Returns the tree of an image: of one without layers an empty one.
///
/// `gc` may take the empty layer while it is shown, and it stays empty.
pub(crate) fn tree_of_image(ctx: &Context, image: &ImageRecord) -> Result<TreeParts> {
    let store = ctx.store()?;
    if let Some(top) = image.top() {
        return Ok(store.tree(top)?);
    }
    let lease = store.lease("show an image without layers")?;
    let empty = empty_base(ctx, lease.id())?;
    Ok(store.tree(&empty)?)
}

/// Returns the key of the empty layer, making it if it isn't there; held by `lease`.
pub(crate) fn empty_base(ctx: &Context, lease: &LeaseId) -> Result<SnapshotKey> {
    let store = ctx.store()?;
    let key = SnapshotKey::from(EMPTY_BASE);
    if store.hold(lease, &vellum_store::LeaseResource::Snapshot(key.clone()))? {
        return Ok(key);
    }
    // Only ever shown under an overlay, whatever driver the store is for.
    let staged = store.stage_layer(Some(DriverKind::default()))?;
    let commit = LayerCommit {
        lease: Some(lease.clone()),
        ..LayerCommit::new(key.clone(), None)
    };
    store.commit_layer(staged, commit)?;
    Ok(key)
}

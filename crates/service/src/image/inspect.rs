//! `inspect` of an image: all that is known about it, as JSON.

use serde_json::{Value, json};

use super::{list, names::familiar, stored};
use crate::context::Context;
use crate::error::Result;

/// Returns all that the store knows about an image. The configuration is unchanged, including
/// fields unknown to Vellum.
pub fn inspect_image(context: &Context, image: &str) -> Result<Value> {
    let store = context.store()?;
    crate::names::with_image(context, image, |record| {
        let config = stored::config(store, record)?;
        let manifest = stored::manifest(store, record)?;
        let mut layers = Vec::with_capacity(record.layers.len());
        for layer in &record.layers {
            let info = store.stat(&layer.snapshot)?;
            let blob = layer.blob.as_ref();
            let kept = match blob {
                Some(blob) => store.blob(&blob.digest)?.is_some(),
                None => false,
            };
            layers.push(json!({
                "chain_id": layer.snapshot.to_string(),
                "diff_id": layer.diff_id.to_string(),
                "tar_bytes": info.tar_bytes,
                "size_bytes": store.usage(&layer.snapshot)?.bytes,
                "driver": info.driver.to_string(),
                "blob": blob.map(|b| json!({
                    "digest": b.digest.to_string(),
                    "media_type": b.media_type,
                    "size_bytes": b.size_bytes,
                    "kept": kept,
                })),
            }));
        }
        Ok(json!({
            "kind": "image",
            "id": record.id.to_string(),
            "names": record.tags.iter().map(|t| familiar(t)).collect::<Vec<_>>(),
            "manifest": manifest.digest.to_string(),
            "media_type": record.media_type,
            "created": config.created,
            "added": record.added.to_string(),
            "platform": config.platform().to_string(),
            "size_bytes": list::size_bytes(store, record)?,
            "layers": layers,
            "config": config.value()?,
        }))
    })
}

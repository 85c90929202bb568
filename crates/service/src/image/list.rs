//! `images`: lists the images.

use vellum_image::Reference;
use vellum_store::{ImageRecord, Store};

use super::{names::familiar, stored};
use crate::context::Context;
use crate::error::Result;
use crate::names;

/// One image in a listing.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ImageSummary {
    /// The id, `sha256:…`.
    pub id: String,
    /// Its names in their short form, sorted; may be empty.
    pub names: Vec<String>,
    /// The digest of its manifest.
    pub manifest: String,
    /// When it was built, according to its configuration (RFC 3339).
    pub created: Option<String>,
    /// When it came into the store (RFC 3339).
    pub added: String,
    /// The platform it is for.
    pub platform: String,
    /// Its layers.
    pub layers: usize,
    /// The size of its layers on disk, including those shared with other images.
    pub size_bytes: u64,
}

/// What a listing shows for an image without a name.
pub const NO_NAME: &str = "<none>";

/// Returns all images, the latest in the store first; with `filter`, those with a name that
/// contains it.
pub fn images(context: &Context, filter: Option<&str>) -> Result<Vec<ImageSummary>> {
    let store = context.store()?;
    let mut found = Vec::new();
    for record in store.images()? {
        let names: Vec<String> = record.tags.iter().map(|t| familiar(t)).collect();
        // The listing shows images without a name as `<none>`, so that can be asked for too.
        let is_wanted = |filter: &str| match names.as_slice() {
            [] => filter == NO_NAME,
            names => names.iter().any(|name| fits(filter, name)),
        };
        if !filter.is_none_or(is_wanted) {
            continue;
        }
        match summary(store, &record, names) {
            Ok(summary) => found.push(summary),
            // Removed since the list was read.
            Err(_) if names::is_image_gone(context, &record) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Tells whether a name matches the filter, with its tag or without.
fn fits(asked: &str, name: &str) -> bool {
    let without_tag = || Reference::parse(name).map(|name| name.familiar_name());
    names::fits(asked, name) || without_tag().is_ok_and(|name| names::fits(asked, &name))
}

fn summary(store: &Store, record: &ImageRecord, names: Vec<String>) -> Result<ImageSummary> {
    let config = stored::config(store, record)?;
    Ok(ImageSummary {
        id: record.id.to_string(),
        names,
        manifest: record.manifest.to_string(),
        created: config.created.clone(),
        added: record.added.to_string(),
        platform: config.platform().to_string(),
        layers: record.layers.len(),
        size_bytes: size_bytes(store, record)?,
    })
}

/// Returns the size of an image's layers on disk.
pub(super) fn size_bytes(store: &Store, record: &ImageRecord) -> Result<u64> {
    let mut sum = 0;
    for layer in &record.layers {
        sum += store.usage(&layer.snapshot)?.bytes;
    }
    Ok(sum)
}

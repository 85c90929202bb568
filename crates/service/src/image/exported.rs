//! What [`crate::image::export`] needs of images: the list of them, and their layers' tars.

use vellum_image::Reference;
use vellum_image::sink::{LayerSupply, OutImage};
use vellum_store::Store;

pub(crate) use super::key;
use super::supply::{StoreSupply, out_image};
use crate::context::Context;
use crate::error::Result;

/// Finds the images; an empty list means all that have a name. Each comes once, with its names, or
/// with those in the request.
pub(crate) fn collect(context: &Context, wanted: &[String]) -> Result<Vec<OutImage>> {
    if !wanted.is_empty() {
        return super::save::collect(context, wanted);
    }
    let store = context.store()?;
    let named = store
        .images()?
        .into_iter()
        .filter(|image| !image.tags.is_empty());
    named
        .map(|image| {
            let names = image
                .tags
                .iter()
                .filter_map(|tag| Reference::parse(tag).ok())
                .collect();
            out_image(store, &image, names)
        })
        .collect()
}

/// The layers' tars, which stay in the store as long as this value lives.
pub(crate) fn supply<'a>(
    context: &'a Context,
    store: &'a Store,
    images: &[OutImage],
) -> Result<impl LayerSupply + 'a> {
    StoreSupply::new(context, store, images)
}

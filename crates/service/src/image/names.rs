//! `tag` and `rmi`: add and remove names; an image is removed with its last one.

use vellum_image::Reference;
use vellum_store::StoreError;

use super::{chosen_name, parse_name};
use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::names::short;

/// Returns a recorded name in its short form.
pub(super) fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |r| r.familiar())
}

/// Gives an image one more name. Returns the short id of the other image that had it before, if one
/// had.
pub fn tag(context: &Context, image: &str, name: &str) -> Result<Option<String>> {
    let store = context.store()?;
    crate::names::with_image(context, image, |record| {
        let name = chosen_name(name)?;
        let before = store.tag(&name.to_string(), &record.id)?;
        Ok(before
            .filter(|id| *id != record.id)
            .map(|id| short(&id.to_string()).to_owned()))
    })
}

/// What [`rmi`] removed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// The removed names, in their short form.
    pub names: Vec<String>,
    /// The id of the image, if it was removed too.
    pub image: Option<String>,
}

/// Removes a name of an image, or an image.
///
/// Given a name, removes the name and, with its last name, the image, unless a container was
/// created from it. Given an id, removes the image if it has at most one name, or with `force`
/// whatever its names. Layers that are no longer needed go at the next `gc`; the command runs one
/// immediately.
pub fn rmi(context: &Context, image: &str, force: bool) -> Result<Removed> {
    let store = context.store()?;
    crate::names::with_image(context, image, |record| {
        let by_name = parse_name(image)
            .map(|n| n.to_string())
            .filter(|n| record.tags.contains(n));
        if let Some(name) = &by_name
            && record.tags.len() > 1
            && !force
        {
            store.untag(name)?;
            return Ok(Removed {
                names: vec![familiar(name)],
                image: None,
            });
        }
        if by_name.is_none() && record.tags.len() > 1 && !force {
            return Err(Error::InUse {
                kind: ObjectKind::Image,
                name: image.to_owned(),
                by: format!(
                    "it has the names {}",
                    record
                        .tags
                        .iter()
                        .map(|t| familiar(t))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                hint: "remove one of the names, or all of them with --force".to_owned(),
            });
        }
        match store.remove_image(&record.id) {
            Ok(_) => {}
            Err(StoreError::InUse { by, .. }) => {
                return Err(Error::InUse {
                    kind: ObjectKind::Image,
                    name: image.to_owned(),
                    by,
                    hint: "remove the containers first (`vellum rm`); --force does not remove them"
                        .to_owned(),
                });
            }
            Err(e) => return Err(e.into()),
        }
        Ok(Removed {
            names: record.tags.iter().map(|t| familiar(t)).collect(),
            image: Some(record.id.to_string()),
        })
    })
}

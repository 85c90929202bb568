//! `check`: the store's findings and, with `deep`, whether every layer still results in the tar
//! that it came from.
//!
//! The store compares records with the files next to them, and blobs with their digests. A layer's
//! tree and recipe can only be compared with the diff ID, which takes the tar: it is created again,
//! as `save` does, and thrown away. To tell which of the two is damaged, the recipe is checked by
//! itself first, since it can be restored without touching the layer.

use std::collections::HashSet;
use std::io;

use serde::Serialize;
use vellum_format::Digest;
use vellum_image::recipe;
use vellum_store::{CheckOptions, Finding, Info, SnapshotKind, Store, StoreError};
use vellum_sys::{Dir, with_causes};

use crate::context::Context;
use crate::error::{Error, Result};

/// One finding. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// A path or a record.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// Whether it was repaired.
    pub healed: bool,
}

impl From<Finding> for Wrong {
    fn from(finding: Finding) -> Self {
        Self {
            what: finding.what,
            why: finding.why,
            healed: finding.healed,
        }
    }
}

/// Compares records and trees. Empty if all is well.
pub fn check(ctx: &Context, heal: bool, deep: bool) -> Result<Vec<Wrong>> {
    let store = ctx.store()?;
    let found = store.check(CheckOptions { heal, deep })?;
    let mut wrong: Vec<Wrong> = found.into_iter().map(Wrong::from).collect();
    if deep {
        check_layers(ctx, store, &mut wrong)?;
    }
    Ok(wrong)
}

fn check_layers(ctx: &Context, store: &Store, wrong: &mut Vec<Wrong>) -> Result<()> {
    let mut layers = Vec::new();
    store.walk(&[], |info| {
        if let (SnapshotKind::Committed, Some(diff_id)) = (info.kind, info.diff_id) {
            layers.push((info, diff_id));
        }
        Ok::<_, Error>(())
    })?;
    let mut told = HashSet::new();
    for (layer, diff_id) in layers {
        ctx.go_on()?;
        let Some(found) = check_layer(ctx, store, &layer, &diff_id)? else {
            continue;
        };
        // Another command may have removed it in the meantime, and a recipe may belong to several
        // layers.
        let there = store
            .stat(&layer.key)
            .is_ok_and(|now| now.tree == layer.tree);
        if there && told.insert(found.what.clone()) {
            wrong.push(found);
        }
    }
    Ok(())
}

fn check_layer(
    ctx: &Context,
    store: &Store,
    layer: &Info,
    diff_id: &Digest,
) -> Result<Option<Wrong>> {
    let of_recipe = |why: &dyn std::fmt::Display| {
        Ok(Some(Wrong {
            what: store
                .root()
                .join("recipes")
                .join(diff_id.hex())
                .display()
                .to_string(),
            why: format!("{why}; load or pull its image again, which repairs it"),
            healed: false,
        }))
    };
    let of_layer = |why: &dyn std::fmt::Display| {
        Ok(Some(Wrong {
            what: format!("layer {}", layer.key),
            why: format!(
                "its tar can't be recreated: {why}; remove its images and load or pull them again"
            ),
            healed: false,
        }))
    };
    let mut recipe = match store.open_recipe(diff_id) {
        Ok(Some(recipe)) => recipe,
        // None: only known as a tree, or already reported.
        Ok(None) | Err(StoreError::Damaged { .. }) => return Ok(None),
        Err(e) => return of_recipe(&with_causes(&e)),
    };
    match recipe::verify(&mut recipe) {
        Ok(of) if of == *diff_id => {}
        Ok(of) => return of_recipe(&format!("it is the recipe of another layer, {of}")),
        Err(e) => return of_recipe(&with_causes(&e)),
    }
    let tree = match store.tree(&layer.key) {
        Ok(tree) => tree,
        // Reported by the store.
        Err(StoreError::Damaged { .. } | StoreError::BrokenParents { .. }) => return Ok(None),
        Err(e) => return of_layer(&with_causes(&e)),
    };
    let layers = tree.layers();
    let Some(top) = layers.first() else {
        return Ok(None);
    };
    let again = Dir::open(&top.dir).map_err(Error::from).and_then(|dir| {
        let out = &mut io::sink();
        Ok(recipe::replay(&mut recipe, &dir, out, &ctx.cancel)?)
    });
    match again {
        Ok(_) => Ok(None),
        Err(Error::Image(vellum_image::Error::Cancelled)) => Err(Error::Cancelled),
        Err(e) => of_layer(&with_causes(&e)),
    }
}

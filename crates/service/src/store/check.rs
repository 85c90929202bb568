//! `check`: the store's findings and, with `trees`, whether every layer's tree is what its tar says
//! (`check/trees.rs`).
//!
//! The store compares records with the files next to them, and with `deep` blobs with their
//! digests. A deep check includes the trees. If nothing can be written (a disk that is full or
//! turned read-only), it falls back to what needs no room: the tar of each layer is created again,
//! as `save` does, and thrown away, which proves the content alone. To tell whether tree or recipe
//! is damaged, the recipe is checked by itself first, since it can be restored without touching the
//! layer.

mod live;
mod repair;
mod trees;

pub use live::StaleMount;
pub use repair::{Outcome, RepairRequest};

use std::collections::HashSet;
use std::fs::File;
use std::io;

use serde::Serialize;
use vellum_format::Digest;
use vellum_image::recipe;
use vellum_store::{CheckOptions, Finding, Info, SnapshotKind, Store, StoreError};
use vellum_sys::{Dir, with_causes};

use crate::context::Context;
use crate::error::{Error, Result, lacks_space};

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct CheckRequest {
    /// Repair what follows from the records.
    pub heal: bool,
    /// Read every blob and recipe, and verify the trees.
    pub deep: bool,
    /// Verify the tree of every layer.
    pub trees: bool,
    /// Verify the trees of this image's layers, and check nothing else.
    pub image: Option<String>,
    /// Repair the trees.
    pub repair: Option<RepairRequest>,
}

/// The result of [`check`].
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// What is wrong: empty if all is well.
    pub wrong: Vec<Wrong>,
    /// How many layers had their trees verified, if that was asked for.
    pub verified: Option<usize>,
    /// The layers whose trees could not be verified.
    pub unverified: Vec<Unverified>,
}

/// A layer whose tree could not be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// The layer, with an image that has it.
    pub layer: String,
    /// Why.
    pub why: String,
}

/// One finding. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// A path or a record.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// Whether it was repaired.
    pub healed: bool,
    /// The same in parts, if it is about something in a layer's tree.
    #[serde(flatten)]
    pub in_tree: Option<InTree>,
    /// What a repair did about it.
    #[serde(flatten)]
    pub outcome: Option<Outcome>,
    /// If it is a mount that goes on showing what was repaired.
    #[serde(flatten)]
    pub stale: Option<StaleMount>,
}

/// What differs in a layer's tree. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InTree {
    /// The layer's name in the store: its chain ID.
    pub layer: String,
    /// The images that have the layer.
    pub images: Vec<String>,
    /// The path in the tree, beginning with a slash.
    pub path: String,
    /// What differs: `entry` (missing, or not listed), `type`, `mode`, `owner`, `group`, `size`,
    /// `content`, `target`, `device`, `time`, `hard link`, `opaque`, `xattr`, `digest`.
    pub aspect: &'static str,
    /// The name of the extended attribute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attribute: Option<String>,
    /// What the layer's tar says; `null`: nothing of the kind.
    pub expected: Option<String>,
    /// What is there; `null`: nothing of the kind.
    pub found: Option<String>,
}

impl Wrong {
    fn new(what: String, why: String) -> Self {
        Self {
            what,
            why,
            healed: false,
            in_tree: None,
            outcome: None,
            stale: None,
        }
    }
}

impl From<Finding> for Wrong {
    fn from(finding: Finding) -> Self {
        Self {
            healed: finding.healed,
            ..Self::new(finding.what, finding.why)
        }
    }
}

/// Compares records and trees.
pub fn check(ctx: &Context, request: &CheckRequest) -> Result<Checked> {
    let store = ctx.store()?;
    let mut checked = Checked::default();
    if request.image.is_none() {
        let found = store.check(CheckOptions {
            heal: request.heal,
            deep: request.deep,
        })?;
        checked.wrong.extend(found.into_iter().map(Wrong::from));
    }
    if !request.deep && !request.trees {
        return Ok(checked);
    }
    match trees::check(ctx, store, request) {
        Ok(trees) => {
            checked.wrong.extend(trees.wrong);
            for (mut wrong, from) in trees.recipes {
                // The store has reported the file in its own words.
                checked.wrong.retain(|told| told.what != wrong.what);
                wrong.healed = true;
                wrong.outcome = Some(Outcome {
                    repaired: true,
                    from: Some(from),
                    ..Outcome::default()
                });
                checked.wrong.push(wrong);
            }
            checked.verified = Some(trees.verified);
            checked.unverified = trees.unverified;
        }
        Err(error) if cannot_write(&error) && !request.trees => {
            ctx.progress.warn(&format!(
                "only the content of layers is verified, since the store can't be written: {}",
                with_causes(&error)
            ));
            check_layers(ctx, store, &mut checked.wrong)?;
        }
        // What was found so far probably says why.
        Err(error) if !checked.wrong.is_empty() && !matches!(error, Error::Cancelled) => {
            let why = format!("not verified: {}", with_causes(&error));
            checked
                .wrong
                .push(Wrong::new("the trees of layers".into(), why));
        }
        Err(error) => return Err(error),
    }
    // The store has reported some of it already.
    let mut told = HashSet::new();
    checked
        .wrong
        .retain(|wrong| told.insert((wrong.what.clone(), wrong.why.clone())));
    Ok(checked)
}

/// Whether the store can only be read.
fn cannot_write(error: &Error) -> bool {
    match error {
        Error::Store(error) => error.leaves_only_reading(),
        error => lacks_space(error),
    }
}

/// Returns a finding about a recipe.
fn of_recipe(store: &Store, diff_id: &Digest, why: &dyn std::fmt::Display) -> Wrong {
    let path = store.root().join("recipes").join(diff_id.hex());
    Wrong::new(
        path.display().to_string(),
        format!("{why}; load or pull its image again, which repairs it"),
    )
}

/// A layer's recipe.
enum RecipeState {
    /// It is that layer's, and whole.
    Sound(File),
    /// There is none.
    Missing,
    /// Why it can't be used.
    Bad(String),
}

/// Opens the recipe of a layer and reads it through.
fn sound_recipe(store: &Store, diff_id: &Digest) -> Result<RecipeState> {
    let mut file = match store.open_recipe(diff_id) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(RecipeState::Missing),
        Err(StoreError::Damaged { why, .. }) => return Ok(RecipeState::Bad(why)),
        Err(error) => return Err(error.into()),
    };
    Ok(match recipe::verify(&mut file) {
        Ok(of) if of == *diff_id => RecipeState::Sound(file),
        Ok(of) => RecipeState::Bad(format!("it is the recipe of another layer, {of}")),
        Err(error) => RecipeState::Bad(with_causes(&error)),
    })
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
    let of_recipe = |why: &dyn std::fmt::Display| Ok(Some(of_recipe(store, diff_id, why)));
    let of_layer = |why: &dyn std::fmt::Display| {
        Ok(Some(Wrong::new(
            format!("layer {}", layer.key),
            format!("its tar can't be recreated: {why}; `vellum check --repair` repairs it"),
        )))
    };
    let mut recipe = match sound_recipe(store, diff_id) {
        Ok(RecipeState::Sound(recipe)) => recipe,
        // Only known as a tree, or already reported.
        Ok(RecipeState::Missing) => return Ok(None),
        Ok(RecipeState::Bad(why)) => return of_recipe(&why),
        Err(e) => return of_recipe(&with_causes(&e)),
    };
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

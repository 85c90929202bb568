//! `gc`: removes what nothing needs.

use serde::Serialize;
use vellum_store::{Fate, Garbage, Thing};

use crate::context::Context;
use crate::error::Result;
use crate::store::df::Size;

/// One thing that a collection removed, or would remove. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// `snapshot`, `blob`, `recipe`, `lease` or `path`.
    pub kind: &'static str,
    /// Which.
    pub what: String,
    /// Why nothing needs it.
    pub why: String,
    /// Its size, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// `gone`, `would go` or `stuck`.
    pub fate: &'static str,
    /// What keeps it from going.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// Removes what nothing needs; with `dry_run` only lists it.
pub fn gc(ctx: &Context, dry_run: bool) -> Result<Vec<Collected>> {
    let garbage = ctx.store()?.gc(dry_run)?;
    Ok(garbage.into_iter().map(collected).collect())
}

/// Like [`gc`], and what a rebuild of the database found is needed only if something else needs it.
pub fn gc_rebuilt(ctx: &Context, dry_run: bool) -> Result<Vec<Collected>> {
    let garbage = ctx.store()?.gc_rebuilt(dry_run)?;
    Ok(garbage.into_iter().map(collected).collect())
}

fn collected(garbage: Garbage) -> Collected {
    let (kind, what) = match garbage.thing {
        Thing::Snapshot(key) => ("snapshot", key.to_string()),
        Thing::Blob(digest) => ("blob", digest.to_string()),
        Thing::Recipe(digest) => ("recipe", digest.to_string()),
        Thing::Lease(purpose) => ("lease", purpose),
        Thing::Path(path) => ("path", path.display().to_string()),
    };
    let (fate, cause) = match garbage.fate {
        Fate::Gone => ("gone", None),
        Fate::Would => ("would go", None),
        Fate::Stuck(cause) => ("stuck", Some(cause)),
    };
    Collected {
        kind,
        what,
        why: garbage.why,
        size: garbage.usage.map(Size::from),
        fate,
        cause,
    }
}

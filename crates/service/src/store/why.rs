//! `why`: what keeps a path, a tree or a layer.

use std::path::Path;

use serde::Serialize;
use vellum_store::Reason;

use crate::context::Context;
use crate::error::Result;
use crate::names::short;

/// What a path in the store is, and what keeps it. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// What it is.
    pub what: String,
    /// What keeps it, one line each; empty: the next gc takes it.
    pub kept_by: Vec<String>,
}

/// Tells what keeps a path, a tree or a layer.
pub fn why(ctx: &Context, path: &Path) -> Result<Explained> {
    let why = ctx.store()?.why(path)?;
    Ok(Explained {
        what: why.what,
        kept_by: why.reasons.iter().map(reason).collect(),
    })
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Container { name, id } => format!("container {name} ({})", short(id)),
        Reason::Image { id, tags } if tags.is_empty() => {
            format!("image {}", short(&id.to_string()))
        }
        Reason::Image { id, tags } => {
            format!("image {} ({})", tags.join(", "), short(&id.to_string()))
        }
        Reason::Lease { id, purpose } => {
            format!("a running command: {purpose} (lease {})", short(id))
        }
        Reason::Kept(key) => format!("snapshot {key}, which stays until it is removed explicitly"),
        Reason::Volume(name) => format!("volume {name}"),
        Reason::Store => "the store itself".to_owned(),
        Reason::Stranger => "another program: Vellum leaves it alone".to_owned(),
    }
}

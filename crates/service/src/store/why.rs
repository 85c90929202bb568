//! `why`: what keeps a path, a tree or a layer.

use std::path::Path;

use serde::Serialize;
use vellum_store::{Reason, StoreError, Subject};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::names::{self, short};

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
    let why = match ctx.store()?.why(path) {
        Err(
            missing @ StoreError::NotFound {
                subject: Subject::Path,
                ..
            },
        ) => return Err(named(ctx, path).unwrap_or(missing.into())),
        why => why?,
    };
    Ok(Explained {
        what: why.what,
        kept_by: why.reasons.iter().map(reason).collect(),
    })
}

/// Returns the error for a path that is the name of an image or container instead, if it is.
fn named(ctx: &Context, path: &Path) -> Option<Error> {
    let name = path.to_str()?;
    let kind = match names::container(ctx, name) {
        Ok(_) => "a container",
        Err(_) => names::image(ctx, name).map(|_| "an image").ok()?,
    };
    Some(Error::Invalid {
        what: format!("`{name}` names {kind}, not a path in the store"),
        hint: Some(format!("`vellum inspect {name}` shows its directories")),
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

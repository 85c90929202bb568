//! `diff`: lists what a container changed, at a cost that grows with its changes.
//!
//! For stacked trees, only the container's own layer is read. A tree that is a full copy (driver
//! `native`) must be compared with the tree it was copied from.

use std::path::PathBuf;

use serde::Serialize;
use vellum_store::{ContainerRecord, Shape, TreeParts};
use vellum_sys::Process;
use vellum_union::{Changes, Form};

use crate::context::Context;
use crate::error::Result;
use crate::{container_record, names, stack};

/// One change, as printed. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// `A`, `C` or `D`.
    pub kind: char,
    /// The path, with a leading slash.
    #[serde(serialize_with = "crate::json::path")]
    pub path: PathBuf,
}

/// Calls `line` for every change of the container, sorted by path, until the end or an error.
pub fn diff(ctx: &Context, name: &str, mut line: impl FnMut(Line) -> Result<()>) -> Result<()> {
    names::with_container(ctx, name, |record| {
        for change in changes(ctx, record, Form::Listing)? {
            ctx.go_on()?;
            let change = change?;
            if change.path.as_os_str().is_empty() {
                continue;
            }
            line(Line {
                kind: change.kind.letter(),
                path: PathBuf::from("/").join(change.path),
            })?;
        }
        // A listing of a tree that was being removed may be incomplete.
        names::still_there(ctx, record, name)
    })
}

/// Returns the changes of a container relative to the layer below it.
pub fn changes(ctx: &Context, record: &ContainerRecord, form: Form) -> Result<Changes> {
    of_parts(ctx.process, &container_record::parts(ctx, record)?, form)
}

/// Returns the changes of a tree relative to the layer below it.
pub(crate) fn of_parts(process: Process, parts: &TreeParts, form: Form) -> Result<Changes> {
    Ok(match &parts.shape {
        Shape::Plain {
            root,
            base: Some(base),
            ..
        } => vellum_union::compare(&stack::plain(process, base)?, &stack::plain(process, root)?)?,
        Shape::Plain {
            root, base: None, ..
        } => vellum_union::changes(&stack::plain(process, root)?, form)?,
        Shape::Overlay(_) => vellum_union::changes(&stack::of_tree(process, parts)?, form)?,
    })
}

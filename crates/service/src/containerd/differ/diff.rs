//! The layer that leads from one tree to another.
//!
//! If the right tree is the left one plus one layer (the usual request), only that layer is read:
//! the cost grows with the changes. Otherwise both trees are compared in full. Either way they are
//! read as directories, by their writers' rules, and may be in use at the same time. The layer has
//! the container's ids, whatever maps them.

use std::io::{self, Write};

use vellum_format::Digest;
use vellum_format::ids::inside_of;
use vellum_image::{Compression, compression::Encoder, hash::HashWrite};
use vellum_sys::{Cancel, Timespec};
use vellum_union::{Changes, Form};

use super::tree::{self, Readable};
use crate::containerd::snapshots::MountEntry;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::layer_tar::NodeWriter;

/// Two trees.
#[derive(Clone, Debug)]
pub struct DiffRequest {
    /// The older one; without mounts, the empty tree.
    pub left: Vec<MountEntry>,
    /// The newer one.
    pub right: Vec<MountEntry>,
    /// How the layer is compressed.
    pub compression: Compression,
    /// Times after this one are written as this one.
    pub newest: Option<Timespec>,
}

/// A written layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Digest of the written blob.
    pub blob_digest: Digest,
    /// Its size.
    pub blob_bytes: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Its size.
    pub tar_bytes: u64,
}

/// Writes to `out` the layer that turns `left` into `right`.
///
/// Errors: `Unsupported` for mounts that are not just directories.
pub fn diff(
    ctx: &Context,
    request: &DiffRequest,
    out: impl Write,
    cancel: &Cancel,
) -> Result<Written> {
    let left = tree::readable(ctx, &tree::shown(&request.left)?)?;
    let right = tree::readable(ctx, &tree::shown(&request.right)?)?;
    let blob = HashWrite::new(out);
    let encoder = Encoder::new(request.compression, blob).map_err(writing)?;
    let mut writer = NodeWriter::new(HashWrite::new(encoder));
    if let Some(newest) = request.newest {
        writer = writer.not_after(newest);
    }
    if let Some(ids) = right.ids.clone() {
        // An id outside the mapping is the host's, and stays so.
        writer = writer.owned_by(move |uid, gid| {
            (
                inside_of(&ids.uids, uid).unwrap_or(uid),
                inside_of(&ids.gids, gid).unwrap_or(gid),
            )
        });
    }
    if let Some(changes) = changes(&left, &right)? {
        for change in changes {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            writer.change(&change?)?;
        }
    }
    let tar = writer.finish()?;
    let tar_bytes = tar.bytes();
    let (encoder, diff_id) = tar.finish();
    let mut blob = encoder.finish().map_err(writing)?;
    blob.flush().map_err(writing)?;
    let blob_bytes = blob.bytes();
    let (_, blob_digest) = blob.finish();
    Ok(Written {
        blob_digest,
        blob_bytes,
        diff_id,
        tar_bytes,
    })
}

/// `None`: both consist of the same directories.
fn changes(left: &Readable, right: &Readable) -> Result<Option<Changes>> {
    if left.dirs == right.dirs {
        return Ok(None);
    }
    Ok(match (&left.stack, &right.stack) {
        (_, Some(new)) if !right.whole && right.dirs[1..] == left.dirs[..] => {
            Some(vellum_union::changes(new, Form::Layer)?)
        }
        (None, Some(new)) => Some(vellum_union::changes(new, Form::Layer)?),
        _ if left.ids.is_some() || right.ids.is_some() => {
            return Err(tree::unsupported("unrelated trees with mapped ids".into()));
        }
        (Some(old), Some(new)) => Some(vellum_union::compare(old, new)?),
        (Some(_), None) => {
            return Err(tree::unsupported("the absence of a tree".into()));
        }
        (None, None) => None,
    })
}

fn writing(error: io::Error) -> Error {
    Error::Image(vellum_image::Error::Write(error))
}

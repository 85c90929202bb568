//! Unpacks one layer into the tree that mounts describe: inflated, hashed and written at once,
//! never through a mount.
//!
//! An overlay's upper gets the layer as marks, as [`crate::image`] would write it: directories that
//! the layer does not list look as below, and whiteouts stay only where they hide something. In a
//! whole tree (a bind mount) deletions delete files; only the first layer of a chain, and trees of
//! drivers that copy, are mounted that way.
//!
//! Nothing is synced unless asked: the commit of the snapshot makes it durable.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::{Digest, Mark, Opaque};
use vellum_image::apply::apply as unpack;
use vellum_image::{ApplyTarget, LayerStream, Limits, TargetMarks};
use vellum_store::{LayerMarks, Shape};
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Cancel, Dir, Process, Timespec, publish, rooted};
use vellum_union::{Dialect, DirLayer, Layer};

use super::tree::{self, Ours, Shown};
use crate::containerd::snapshots::MountEntry;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::left_out;
use crate::layer::on_parents::{implied, settle_on};
use crate::stack;

/// A layer to unpack.
#[derive(Clone, Debug)]
pub struct ApplyRequest {
    /// How the tree is mounted; it may not be mounted yet.
    pub mounts: Vec<MountEntry>,
    /// The blob's expected digest.
    pub digest: Digest,
    /// Its size, if known.
    pub size_bytes: Option<u64>,
    /// Wait until everything is on disk.
    pub sync: bool,
}

/// The unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Its size.
    pub tar_bytes: u64,
}

/// Unpacks `blob`, whatever its compression, into the tree.
///
/// After an error the tree holds part of the layer and can only be removed. Errors: `Unsupported`
/// for mounts that are not just directories, [`vellum_image::Error::DigestMismatch`] and the like
/// for a blob that is not the expected one.
pub fn apply(
    ctx: &Context,
    request: &ApplyRequest,
    blob: Box<dyn Read + Send>,
    cancel: &Cancel,
) -> Result<Done> {
    let place = place(ctx, &tree::shown(&request.mounts)?)?;
    let limits = Limits::default();
    let stream = LayerStream::open(blob, &limits, cancel)?;
    let target = ApplyTarget {
        root: Dir::open(&place.dir)?,
        marks: place.marks,
        privilege: stack::privilege(ctx.process),
        donor: None,
    };
    let applied = unpack(stream, &target, None, &limits, cancel)?;
    let facts = &applied.blob;
    if facts.blob_digest != request.digest
        || request
            .size_bytes
            .is_some_and(|size| size != facts.blob_bytes)
    {
        return Err(Error::Invalid {
            what: format!(
                "the blob is {} ({} bytes) instead of {}{}",
                facts.blob_digest,
                facts.blob_bytes,
                request.digest,
                request
                    .size_bytes
                    .map_or_else(String::new, |size| format!(" ({size} bytes)")),
            ),
            hint: Some(
                "the content store holds a damaged blob: remove the image and pull it again".into(),
            ),
        });
    }
    if let Some(remark) = left_out("the layer", &applied) {
        tracing::warn!(digest = %request.digest, "{remark}");
    }
    match &place.below {
        Below::These(below) => {
            settle_on(ctx.process, &target.root, &applied, below)?;
        }
        Below::ToldLater => {
            mark_made_up(&target.root, implied(&applied))?;
            if applied.root_opaque {
                let mark = ctx.process.prefix().xattr(Mark::Opaque);
                let value = Opaque::Opaque.encode();
                xattr::set_fd(&target.root, mark, value, SetMode::Any)?;
            }
        }
        Below::Shown => {}
    }
    if request.sync {
        publish::sync_fs(&target.root)?;
    }
    Ok(Done {
        diff_id: facts.diff_id,
        tar_bytes: facts.tar_bytes,
    })
}

/// Gives directories that the layer does not list the current time: the commit, which knows the
/// parent, recognizes them by it.
fn mark_made_up<'a>(root: &Dir, paths: impl Iterator<Item = &'a Path>) -> Result<()> {
    for path in paths {
        let dir = match path.as_os_str().is_empty() {
            true => root.dup()?,
            false => root.open_dir(path)?,
        };
        rooted::set_times_fd(&dir, None, Some(Timespec::now()))?;
    }
    Ok(())
}

/// Where a layer is unpacked.
struct Destination {
    dir: PathBuf,
    marks: TargetMarks,
    below: Below,
}

/// What the layer will be on.
enum Below {
    /// These layers, top first.
    These(Vec<Arc<dyn Layer>>),
    /// Known only at the commit.
    ToldLater,
    /// Already in the same tree.
    Shown,
}

fn place(ctx: &Context, shown: &Shown) -> Result<Destination> {
    let (dir, lowers, prefix) = match shown {
        Shown::Layers {
            upper: Some(upper),
            lowers,
            prefix,
            ids: None,
        } => (upper, Some(lowers), *prefix),
        Shown::Directory {
            dir,
            read_only: false,
        } => (dir, None, ctx.process.prefix()),
        Shown::Layers { ids: Some(_), .. } => {
            return Err(tree::unsupported("an overlay with mapped ids".into()));
        }
        Shown::Engine { .. } => {
            return Err(tree::unsupported("a mount by Vellum's own engine".into()));
        }
        Shown::Empty | Shown::Layers { upper: None, .. } | Shown::Directory { .. } => {
            return Err(Error::Invalid {
                what: "a layer can't be unpacked into a tree that is mounted read-only".into(),
                hint: None,
            });
        }
    };
    match tree::ours(ctx, dir)? {
        Some(ours) => {
            let place = in_store(ctx.process, &ours, dir, lowers.is_some())?;
            crate::containerd::snapshots::unpacks_itself(&ours.key);
            Ok(place)
        }
        None => Ok(match lowers {
            Some(lowers) => Destination {
                dir: dir.clone(),
                marks: TargetMarks::Overlay(prefix),
                below: Below::These(open(
                    lowers.iter().map(PathBuf::as_path),
                    Dialect::archive(prefix),
                )?),
            },
            None => Destination {
                dir: dir.clone(),
                marks: TargetMarks::Whole(prefix),
                below: Below::Shown,
            },
        }),
    }
}

/// `stacked`: the tree is mounted as an overlay.
fn in_store(process: Process, ours: &Ours, dir: &Path, stacked: bool) -> Result<Destination> {
    tree::writable(ours)?;
    let prefix = process.prefix();
    let own = match &ours.parts.shape {
        Shape::Overlay(overlay) => overlay.upper.as_ref().map(|upper| upper.dir.as_path()),
        Shape::Plain { root, .. } => Some(root.as_path()),
    };
    let own = own.map(|own| std::fs::canonicalize(own).map_err(Error::io("find", own)));
    if own.transpose()?.as_deref() != Some(dir) {
        return Err(tree::unsupported(format!(
            "{}, which is only a part of snapshot {}",
            dir.display(),
            ours.key
        )));
    }
    let overlay = TargetMarks::Overlay(prefix);
    let (marks, below) = match (&ours.parts.shape, ours.parts.driver.marks()) {
        (Shape::Overlay(parts), _) => {
            let dialect = stack::archive_dialect(process);
            let lowers = parts.lowers.iter().map(|layer| layer.dir.as_path());
            (overlay, Below::These(open(lowers, dialect)?))
        }
        // Mounted as an overlay on nothing, so that whiteouts are kept for a parent that is only
        // known at the commit.
        (Shape::Plain { .. }, LayerMarks::Overlay) if stacked => (overlay, Below::ToldLater),
        // The first layer of a chain: its deletions hide nothing.
        (Shape::Plain { .. }, LayerMarks::Overlay) => (overlay, Below::These(Vec::new())),
        (Shape::Plain { .. }, LayerMarks::Whole) => (TargetMarks::Whole(prefix), Below::Shown),
        (Shape::Plain { .. }, LayerMarks::Plain) => (TargetMarks::Plain, Below::Shown),
    };
    Ok(Destination {
        dir: dir.to_path_buf(),
        marks,
        below,
    })
}

fn open<'a>(dirs: impl Iterator<Item = &'a Path>, dialect: Dialect) -> Result<Vec<Arc<dyn Layer>>> {
    dirs.map(|dir| -> Result<Arc<dyn Layer>> { Ok(Arc::new(DirLayer::open(dir, dialect)?)) })
        .collect()
}

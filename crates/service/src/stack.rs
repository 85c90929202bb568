//! Opens layers as a union, with the dialect in which this process reads and writes marks.

use std::path::Path;
use std::sync::Arc;

use vellum_image::Privilege;
use vellum_store::{LayerDir, Shape, TreeParts};
use vellum_sys::{Dir, Process};
use vellum_union::{BlockMaps, Dialect, DirLayer, Layer, Stack};

use crate::error::Result;

/// Returns the union of a tree's layers, top first.
///
/// The upper and layers that an engine wrote may have redirects and metacopies; in layers from an
/// archive they are an error.
pub fn of_tree(process: Process, parts: &TreeParts) -> Result<Stack> {
    let has_upper = matches!(&parts.shape, Shape::Overlay(overlay) if overlay.upper.is_some());
    let layers = parts
        .layers()
        .iter()
        .enumerate()
        .map(|(at, layer)| {
            let top = has_upper && at == 0;
            let work = match &parts.shape {
                Shape::Overlay(overlay) if top => overlay.work.as_deref(),
                _ => None,
            };
            open(process, layer, top, work)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Stack::new(layers)?)
}

/// Returns one directory as a union of its own: a full tree without our marks.
pub fn plain(process: Process, dir: &Path) -> Result<Stack> {
    Ok(Stack::new(vec![layer(
        dir,
        in_privilege(process, Dialect::plain()),
        None,
    )?])?)
}

/// Returns an open directory as a union of its own: a tree without marks. `path` is for messages.
pub fn of_dir(process: Process, dir: Dir, path: &Path) -> Result<Stack> {
    let dialect = in_privilege(process, Dialect::plain());
    let layer = DirLayer::new(dir, path.display().to_string(), dialect);
    Ok(Stack::new(vec![Arc::new(layer)])?)
}

/// Gives the new upper's root the owner, mode and xattrs of the root below: the kernel shows the
/// upper's.
///
/// Every layer has a root directory, so the next one decides; for a copy of a directory, `from`
/// does instead. Done at `create`, and again before the first mount: after a crash in between the
/// root must not keep its default attributes.
pub(crate) fn adopt_root(process: Process, parts: &TreeParts, from: Option<&Path>) -> Result<()> {
    let Shape::Overlay(overlay) = &parts.shape else {
        return Ok(());
    };
    let Some(upper) = &overlay.upper else {
        return Ok(());
    };
    let Some(next) = overlay.lowers.first() else {
        return Ok(());
    };
    let mut next = next.clone();
    if let Some(from) = from {
        next.dir = from.to_path_buf();
    }
    let root = of_layer(process, &next)?.root()?;
    // As stored, not as shown: what is only recorded below is recorded here too.
    let (stat, xattrs) = root.stored()?;
    Ok(vellum_sys::dress(Dir::open(&upper.dir)?, &stat, xattrs)?)
}

/// Returns one layer as a union of its own.
pub fn of_layer(process: Process, layer: &LayerDir) -> Result<Stack> {
    Ok(Stack::new(vec![lower(process, layer)?])?)
}

/// Opens a lower layer of a tree.
pub(crate) fn lower(process: Process, layer: &LayerDir) -> Result<Arc<dyn Layer>> {
    open(process, layer, false, None)
}

/// `work` tells which parts of the layer's files are elsewhere, if it is an upper that our engine
/// wrote to.
fn open(
    process: Process,
    layer: &LayerDir,
    engine: bool,
    work: Option<&Path>,
) -> Result<Arc<dyn Layer>> {
    let dialect = dialect(process, engine || layer.features.is_some());
    let maps = work.filter(|work| work.exists()).map(BlockMaps::open);
    self::layer(&layer.dir, dialect, maps.transpose()?.flatten())
}

/// Opens a directory as a layer, as a mount would see it: without the mounts somewhere inside.
fn layer(path: &Path, dialect: Dialect, maps: Option<BlockMaps>) -> Result<Arc<dyn Layer>> {
    let layer = DirLayer::new(alone(path)?, path.display().to_string(), dialect);
    Ok(Arc::new(layer.with_block_maps(maps.map(Arc::new))))
}

/// Opens a directory without the mounts somewhere inside.
pub(crate) fn alone(path: &Path) -> Result<Dir> {
    let dir = Dir::open(path)?;
    match vellum_sys::mount::without_submounts(&dir) {
        Ok(alone) => Ok(alone),
        // A process that may not mount has no mounts of ours inside either.
        Err(e) if e.is_denied() || e.is_unsupported() => Ok(dir),
        Err(e) => Err(e.into()),
    }
}

fn dialect(process: Process, engine: bool) -> Dialect {
    let prefix = process.prefix();
    let dialect = if engine {
        Dialect::kernel(prefix)
    } else {
        Dialect::archive(prefix)
    };
    in_privilege(process, dialect)
}

/// What a plain user can't create is recorded there.
fn in_privilege(process: Process, dialect: Dialect) -> Dialect {
    match process.in_first_namespace {
        true => dialect,
        false => dialect.with_records(),
    }
}

/// Returns the dialect of layers from archives.
pub(crate) fn archive_dialect(process: Process) -> Dialect {
    dialect(process, false)
}

/// Returns what happens to devices, owners and xattrs that this process can't create.
pub(crate) fn privilege(process: Process) -> Privilege {
    match process.in_first_namespace {
        true => Privilege::Full,
        false => Privilege::Recorded,
    }
}

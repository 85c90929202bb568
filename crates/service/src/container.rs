//! What the verbs on containers share: a container's own settings, its tree's parts, and the union of its layers.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vellum_image::Privilege;
use vellum_store::{ContainerRecord, Labels, LayerDir, Shape, TreeParts};
use vellum_sys::{Dir, Process, rooted};
use vellum_union::engine::Limit;
use vellum_union::{BlockMaps, Dialect, DirLayer, Layer, Stack};

pub use vellum_overlay::values::BytesPath;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::home;

/// What is kept with a container besides the store's own record; JSON in the record's `config`.
///
/// On disk: fields are only added, and absent ones have their default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// The directory whose copy the container is, where it was made with `--from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<BytesPath>,
    /// Labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The most bytes its own layer may take, where Vellum's engine keeps that and no quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The most inodes its own layer may take, which Vellum's engine keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
}

impl Settings {
    /// What Vellum's engine is to keep.
    pub fn limit(&self) -> Limit {
        Limit {
            size_bytes: self.size_bytes,
            inodes: self.inodes,
        }
    }

    /// Reads what is kept with `record`.
    pub fn of(record: &ContainerRecord) -> Result<Self> {
        if record.config.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(&record.config).map_err(|e| Error::Damaged {
            what: format!("the settings of container {}", record.name),
            why: e.to_string(),
        })
    }

    /// Returns the JSON to be kept.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Damaged {
            what: "a container's settings".into(),
            why: e.to_string(),
        })
    }
}

/// Returns the parts of a container's tree; for a copy of a directory, that directory is its only lower layer.
pub fn parts(ctx: &Context, record: &ContainerRecord) -> Result<TreeParts> {
    let store = ctx.store()?;
    let info = store.stat(&record.snapshot)?;
    let driver = store.driver_home(info.driver);
    home::uncovered(&driver, &driver.join(info.tree.as_str()))?;
    let mut parts = store.tree(&record.snapshot)?;
    let Some(BytesPath(from)) = Settings::of(record)?.from else {
        return Ok(parts);
    };
    match &mut parts.shape {
        Shape::Overlay(overlay) => {
            if let [base] = &mut overlay.lowers[..] {
                *base = LayerDir {
                    dir: from,
                    link: None,
                    diff_id: None,
                    features: None,
                    ..base.clone()
                };
                return Ok(parts);
            }
        }
        Shape::Plain { .. } => {}
    }
    Err(Error::Damaged {
        what: format!("the tree of container {}", record.name),
        why: "a copy of a directory stands on one empty layer, and this doesn't".into(),
    })
}

/// Returns the union of a tree's layers, top first.
///
/// The upper and layers that an engine made may hold redirects and metacopies; in what came out of an archive they are an error.
pub fn stack(process: Process, parts: &TreeParts) -> Result<Stack> {
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

/// Returns one directory as a union of its own: a full tree without marks of ours.
pub fn plain_stack(process: Process, dir: &Path) -> Result<Stack> {
    Ok(Stack::new(vec![layer(
        dir,
        in_privilege(process, Dialect::plain()),
        None,
    )?])?)
}

/// Returns an open directory as a union of its own: a tree without marks. `path` is for messages.
pub fn dir_stack(process: Process, dir: Dir, path: &Path) -> Result<Stack> {
    let dialect = in_privilege(process, Dialect::plain());
    let layer = DirLayer::new(dir, path.display().to_string(), dialect);
    Ok(Stack::new(vec![Arc::new(layer)])?)
}

/// Gives the new upper's root the owner, mode and xattrs that the root below has: the kernel shows the upper's.
///
/// Every layer has a root directory, so the next one decides; `from` stands in its place where a directory is copied. Done at `create`,
/// and again before the first mount: a crash in between must not leave a root that looks like nobody's.
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
    let root = layer_stack(process, &next)?.root()?;
    // As stored, not as shown: what is only recorded below is recorded here too.
    let (stat, xattrs) = root.stored()?;
    Ok(rooted::dress(Dir::open(&upper.dir)?, &stat, xattrs)?)
}

/// Returns one layer as a union of its own.
pub fn layer_stack(process: Process, layer: &LayerDir) -> Result<Stack> {
    Ok(Stack::new(vec![lower(process, layer)?])?)
}

/// Opens a lower layer of a tree.
pub(crate) fn lower(process: Process, layer: &LayerDir) -> Result<Arc<dyn Layer>> {
    open(process, layer, false, None)
}

/// `work` knows which parts of the layer's files are elsewhere, where it is an upper that our engine wrote to.
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

/// Opens a directory as a layer, the way a mount would see it: what is mounted somewhere inside is no part of it.
fn layer(path: &Path, dialect: Dialect, maps: Option<BlockMaps>) -> Result<Arc<dyn Layer>> {
    let dir = Dir::open(path)?;
    let dir = match vellum_sys::mount::without_submounts(&dir) {
        Ok(alone) => alone,
        // Who may not mount is not asked to: then there is nothing of ours mounted inside either.
        Err(e) if e.is_denied() || e.is_unsupported() => dir,
        Err(e) => return Err(e.into()),
    };
    let layer = DirLayer::new(dir, path.display().to_string(), dialect);
    Ok(Arc::new(layer.with_block_maps(maps.map(Arc::new))))
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

/// What a plain user may not make stands there as a record.
fn in_privilege(process: Process, dialect: Dialect) -> Dialect {
    match process.in_first_namespace {
        true => dialect,
        false => dialect.with_records(),
    }
}

/// Returns how layers are read that came out of archives.
pub(crate) fn archive_dialect(process: Process) -> Dialect {
    dialect(process, false)
}

/// Returns what becomes of devices, owners and attributes that this process may not make.
pub(crate) fn privilege(process: Process) -> Privilege {
    match process.in_first_namespace {
        true => Privilege::Full,
        false => Privilege::Recorded,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn settings_survive_the_round_trip_with_any_path() {
        for bytes in [&b"/plain"[..], b"/odd\xff"] {
            let settings = Settings {
                size_bytes: Some(5),
                inodes: None,
                from: Some(BytesPath(OsString::from_vec(bytes.to_vec()).into())),
                labels: Labels::from([("a".to_owned(), "b".to_owned())]),
            };
            let again: Settings = serde_json::from_str(&settings.to_json().unwrap()).unwrap();
            assert_eq!(again, settings);
        }
        assert_eq!(
            serde_json::from_str::<Settings>("{}").unwrap(),
            Settings::default()
        );
    }
}

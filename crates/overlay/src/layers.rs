//! Turns the directories of a mount into layers with dialects, and into the options of an engine.
//!
//! It decides which marks are followed in which lower layer. A tree that was unpacked from an
//! archive holds whatever the archive's author wrote. So by default redirects and metacopies are
//! followed only in layers that Vellum's engine wrote, as the record in the work directory next to
//! the layer says, outside the tree. The upper was always written by an engine.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::OVERRIDE_STAT_NAMES;
use vellum_format::Prefix;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::rooted::Dir;
use vellum_sys::{mount, mountinfo, xattr};
use vellum_union::engine::{Durability, EngineOptions, UpperOptions};
use vellum_union::{BlockMaps, Dialect, DirLayer, Layer, LayerTrust, Records, Stack, WhNames};

use crate::dialect::prefix;
use crate::error::{Error, Result};
use crate::options::{MountOptions, Redirects, Trust, WhFiles};
use crate::record::{LayerRecord, NewRecord, RecordsBeside, believed};
use crate::{dialect, owners};

/// Returns the options of an upper's last mount, as far as they tell its marks and its lower
/// layers.
///
/// `None` if the work directory does not know this upper.
pub fn last_mounted(upper: &Path, work: &Path) -> Result<Option<MountOptions>> {
    let record = LayerRecord::of(&open_dir(upper)?, &open_dir(work)?)?;
    Ok(record.map(|record| record.last_mounted(upper, work)))
}

/// What a record of Vellum's engine says about the marks of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedMarks {
    /// Their namespace.
    pub prefix: Prefix,
    /// The record is in the work directory that the caller named, or it belongs to root or to the
    /// caller.
    pub believed: bool,
}

/// Looks up the marks of several layers; a directory that many of them are in is read once.
#[derive(Debug, Default)]
pub struct MarkRecords(RecordsBeside);

impl MarkRecords {
    /// Returns what the record in `work`, the layer's work directory, says, or else one next to the
    /// layer. `None` if no record knows the layer.
    pub fn find(&mut self, layer: &Path, work: Option<&Path>) -> Result<Option<RecordedMarks>> {
        let own = match work {
            Some(work) => LayerRecord::of(&open_dir(layer)?, &open_dir(work)?)?,
            None => None,
        };
        let found = match own {
            Some(record) => Some((record.userxattr(), true)),
            None => (self.0.find_of_any_owner(layer))
                .map(|record| (record.userxattr, believed(record.owner))),
        };
        Ok(found.map(|(userxattr, believed)| RecordedMarks {
            prefix: match userxattr {
                true => Prefix::User,
                false => Prefix::Trusted,
            },
            believed,
        }))
    }
}

/// Open layers, top first.
pub type Layers = Vec<Arc<dyn Layer>>;

/// Opens the lower layers as `options` say, then the data-only ones.
pub fn lowers(options: &MountOptions) -> Result<(Layers, Layers)> {
    open_lowers(options, &mut RecordsBeside::default(), &mut Vec::new())
}

fn open_lowers(
    options: &MountOptions,
    beside: &mut RecordsBeside,
    warnings: &mut Vec<String>,
) -> Result<(Layers, Layers)> {
    let prefix = prefix(options)?;
    // Files of data-only layers are reached by metacopies only.
    let trust = match options.trust {
        Trust::ByRecord if !options.data_lowers.is_empty() => Trust::Engine,
        asked => asked,
    };
    let mut open = |path: &PathBuf, named: bool| -> Result<Arc<dyn Layer>> {
        let dir = layer_dir(path)?;
        let record = beside.find(path);
        if let Some(record) = &record
            && record.has_maps
        {
            warnings.push(format!(
                "the lower layer {} has partly copied files, which can't be read: `vellum settle {0} {}` completes them",
                path.display(),
                record.work.display()
            ));
        }
        let trust = match (trust, &record) {
            _ if named => LayerTrust::Engine,
            (Trust::Engine, _) | (Trust::ByRecord, Some(_)) => LayerTrust::Engine,
            (Trust::Archive, _) | (Trust::ByRecord, None) => LayerTrust::Archive,
        };
        let wh_names = match (options.wh_files, &record) {
            (WhFiles::Plain, _) => WhNames::Plain,
            (WhFiles::Auto, Some(record)) if !record.wh_whiteouts => WhNames::Plain,
            (WhFiles::Auto | WhFiles::Whiteouts, _) => WhNames::Whiteouts,
        };
        let dialect = Dialect {
            prefix: Some(prefix),
            wh_names,
            records: records(options, &dir)?,
            trust,
        };
        Ok(Arc::new(DirLayer::new(
            dir,
            path.display().to_string(),
            dialect,
        )))
    };
    let ordinary = options.lowers.iter().enumerate();
    let ordinary = ordinary.map(|(at, path)| open(path, options.trusted.contains(&at)));
    let ordinary = ordinary.collect::<Result<_>>()?;
    let data = options.data_lowers.iter().map(|path| open(path, false));
    let data = data.collect::<Result<_>>()?;
    Ok((ordinary, data))
}

/// Replaces lower layers that are shown by an id-mapped mount with the directories behind that
/// mount, if this mount maps owners itself.
///
/// Podman 4 does both at once, and owners that are mapped twice belong to no user. A layer that
/// can't be reached any other way stays as it is.
pub fn beneath_id_maps(options: &mut MountOptions) -> Result<()> {
    if options.ids.are_plain() {
        return Ok(());
    }
    let table = mountinfo::read()?;
    let all = options.lowers.iter_mut().chain(&mut options.data_lowers);
    for path in all {
        if let Some(plain) = beneath_id_map(path, &table) {
            tracing::debug!(layer = %path.display(), taken = %plain.display(), "id-mapped");
            *path = plain;
        }
    }
    Ok(())
}

/// Returns the path of the same directory without the mapping.
fn beneath_id_map(path: &Path, table: &mountinfo::Table) -> Option<PathBuf> {
    let real = std::fs::canonicalize(path).ok()?;
    let mount = *table.chain(&real).last()?;
    if !mount.is_id_mapped() {
        return None;
    }
    let inner = mount.root.join(real.strip_prefix(&mount.mount_point).ok()?);
    let identity = |path: &Path| {
        let stat = Dir::open(path).ok()?.stat_self().ok()?;
        Some((stat.dev, stat.ino))
    };
    let wanted = identity(&real)?;
    let others = table.mounts().iter().filter(|other| other.dev == mount.dev);
    let mut plain = others
        .filter(|other| !other.is_id_mapped())
        .filter_map(|other| {
            let found = other
                .mount_point
                .join(inner.strip_prefix(&other.root).ok()?);
            let shows = table
                .chain(&found)
                .last()
                .is_some_and(|top| top.id == other.id);
            (shows && identity(&found)? == wanted).then_some(found)
        });
    plain.next()
}

pub(crate) fn open_dir(path: &Path) -> Result<Dir> {
    Dir::open(path).map_err(|error| match error.is_not_found() {
        true => Error::Invalid {
            what: format!("there is no layer {}", path.display()),
            hint: Some("check the path; in -o, a colon is written `\\:` and a comma `\\,`".into()),
        },
        false => error.into(),
    })
}

/// Opens a layer to be read as its own file system has it, as the kernel's overlay sees its layers:
/// without the mounts in it (above all the union itself) and without updating access times. A
/// process without the privilege for such a view gets the directory as it is.
pub(crate) fn layer_dir(path: &Path) -> Result<Dir> {
    let dir = open_dir(path)?;
    match mount::without_submounts(&dir) {
        Ok(view) => Ok(view),
        Err(error) => {
            tracing::debug!(layer = %path.display(), %error, "the layer is read with the mounts in it");
            Ok(dir.open_dir_quietly(".")?)
        }
    }
}

/// Refuses a lower layer that contains the mount point, if the layer can't be read without the
/// mounts in it: reading it would wait for the union itself.
pub fn apart_from(target: &Path, options: &MountOptions) -> Result<()> {
    let real = std::fs::canonicalize(target).map_err(Error::io("find", target))?;
    for lower in options.lowers.iter().chain(&options.data_lowers) {
        let Ok(place) = std::fs::canonicalize(lower) else {
            // Opening it will report the error.
            continue;
        };
        if real.starts_with(&place) && mount::without_submounts(&open_dir(lower)?).is_err() {
            return Err(Error::Unsupported {
                what: format!(
                    "the mount point {} lies in the lower layer {}",
                    target.display(),
                    lower.display()
                ),
                hint: "mount somewhere else: only a process that may mount can use a layer that contains its own mount point".into(),
            });
        }
    }
    Ok(())
}

/// Records are read if the caller asks for it, or if the layer's own root has one.
pub(crate) fn records(options: &MountOptions, root: &Dir) -> Result<Records> {
    if options.records {
        return Ok(Records::Read);
    }
    for name in OVERRIDE_STAT_NAMES {
        match xattr::get_fd(root, OsStr::new(name)) {
            Ok(Some(_)) => return Ok(Records::Read),
            Ok(None) => {}
            Err(error) if error.is_unsupported() || error.is_denied() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Records::None)
}

/// Returns the union of the lower layers and the upper, if there is one, for reading without a
/// mount.
pub fn stack(options: &MountOptions) -> Result<Stack> {
    let (mut layers, data) = lowers(options)?;
    if let Some(upper) = &options.upper {
        layers.insert(0, upper_to_read(options, upper)?);
    }
    Ok(Stack::with_data_layers(layers, data)?)
}

/// Returns the upper as a layer that is only read.
fn upper_to_read(options: &MountOptions, upper: &Path) -> Result<Arc<dyn Layer>> {
    let dir = open_dir(upper)?;
    let dialect = Dialect {
        prefix: Some(prefix(options)?),
        wh_names: dialect::of_upper(options, &dir)?.wh_names(),
        records: records(options, &dir)?,
        trust: LayerTrust::Engine,
    };
    let maps = match &options.work {
        Some(work) => BlockMaps::open(work)?,
        None => None,
    };
    let layer = DirLayer::new(dir, upper.display().to_string(), dialect);
    Ok(Arc::new(layer.with_block_maps(maps.map(Arc::new))))
}

/// What an engine is opened with, and the warnings for its user.
#[derive(Debug)]
pub struct Opened {
    /// For the engine.
    pub engine: EngineOptions,
    /// Written once the engine holds the upper: until then another may.
    pub record: Option<NewRecord>,
    /// What will differ from the usual, one line each.
    pub warnings: Vec<String>,
    /// Held as long as the mount lives: a process that wants to change a lower layer finds it
    /// locked.
    pub locks: Vec<Lock>,
}

/// Takes a shared lock on each lower layer. Where that fails (a process has it as its upper, or the
/// file system has no locks) the mount continues, as the kernel's would.
fn hold(options: &MountOptions) -> Vec<Lock> {
    let all = options.lowers.iter().chain(&options.data_lowers);
    all.filter_map(|path| {
        let held = Dir::open(path).and_then(|dir| Lock::try_now(dir, Sharing::Shared));
        match held {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => {
                tracing::warn!(layer = %path.display(), "another process is writing to this lower layer");
                None
            }
            Err(error) => {
                tracing::debug!(layer = %path.display(), %error, "not locked");
                None
            }
        }
    })
    .collect()
}

/// Opens the layers of a mount and decides how each one is read. Writes nothing.
pub fn open(options: &MountOptions) -> Result<Opened> {
    let mut warnings = Vec::new();
    let mut beside = RecordsBeside::default();
    let (mut lowers, data_lowers) = open_lowers(options, &mut beside, &mut warnings)?;
    let (upper, record) = match (&options.upper, &options.work) {
        (Some(upper), Some(work)) if !options.flags.read_only => {
            let (upper, record) = upper_options(options, upper, work, &mut warnings)?;
            (Some(upper), record)
        }
        (Some(upper), _) => {
            // A read-only mount with an upper shows the upper and does not change it.
            lowers.insert(0, upper_to_read(options, upper)?);
            (None, None)
        }
        (None, _) => (None, None),
    };
    Ok(Opened {
        engine: EngineOptions {
            lowers,
            data_lowers,
            upper,
            ids: options.ids.clone(),
            reader_ids: owners::for_reader(options, &mut beside),
            static_nlink: options.static_nlink,
            ino_32_bits: options.ino_32_bits,
            no_xattrs: options.no_xattrs,
        },
        record,
        warnings,
        locks: hold(options),
    })
}

fn upper_options(
    options: &MountOptions,
    upper: &Path,
    work: &Path,
    warnings: &mut Vec<String>,
) -> Result<(UpperOptions, Option<NewRecord>)> {
    let prefix = prefix(options)?;
    let dir = open_dir(upper)?;
    let work_dir = open_dir(work)?;
    let chosen = dialect::for_changes(options, &dir, &work_dir)?;
    warnings.extend(chosen.told(upper));
    let wh_names = chosen.wh_names();
    let record = NewRecord::of(options, &dir, work_dir, prefix, wh_names)?;
    let upper = UpperOptions {
        upper: upper.to_owned(),
        work: work.to_owned(),
        prefix,
        records: records(options, &dir)?,
        wh_names,
        durability: match (options.is_volatile, options.sync_copies) {
            (true, _) => Durability::Volatile,
            (false, true) => Durability::Full,
            (false, false) => Durability::Ordered,
        },
        redirect_dir: options.redirects == Redirects::On,
        metacopy: options.metacopy,
        index: options.index,
        blocks_from_bytes: options.blocks_from_bytes,
        limit: options.limit,
    };
    Ok((upper, record))
}

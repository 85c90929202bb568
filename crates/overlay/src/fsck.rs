//! `vellum check --layers`: an overlay's directories, checked without a mount.
//!
//! [`vellum_union::fsck`] looks at marks; here the directories are opened as a mount would open
//! them. An overlay that is mounted is refused first (`in_use`): its marks change under the check,
//! and kernel and engine keep some of them in memory. Then come the dialect, the places of the
//! directories (`places`), and whose work directory it is.
//!
//! One namespace of marks holds for the whole overlay, as in a mount: the caller's choice, else
//! that of the work directory's record, else the one in which the upper has marks. Whether `.wh.`
//! names are marks is decided for each layer, as for an upper.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use vellum_format::Prefix;
use vellum_sys::rooted::Dir;
use vellum_sys::{Cancel, Process, own_files};
use vellum_union::fsck::{Finding, Overlay, Place, Severity};
use vellum_union::{BlockMaps, Dialect, DirLayer, Layer, LayerTrust, WhNames};

use crate::daemon;
use crate::dialect::{self, Chosen, Sign};
use crate::error::{Error, Result};
use crate::layers::{layer_dir, records};
use crate::options::{Manners, MountOptions, layer_list};
use crate::record::{LayerRecord, RecordsBeside};

mod in_use;
mod places;

/// The directories to check.
#[derive(Debug, Clone)]
pub struct Directories {
    /// Lower layers, top first; at least one.
    pub lowers: Vec<PathBuf>,
    /// Data-only layers below them. Their files are not checked, since no mark counts in them.
    pub data_lowers: Vec<PathBuf>,
    /// The upper.
    pub upper: Option<PathBuf>,
    /// Its work directory.
    pub work: Option<PathBuf>,
    /// Marks are read in `user.overlay.*`, whatever the directories say.
    pub user_xattr: bool,
}

impl Directories {
    /// Reads the lower layers as the option `lowerdir` is written. Errors if a name is empty.
    pub fn parse(lowers: &OsStr) -> Result<Directories> {
        let (lowers, data_lowers) = layer_list(lowers)?;
        Ok(Directories {
            lowers,
            data_lowers,
            upper: None,
            work: None,
            user_xattr: false,
        })
    }

    /// Returns the directories that show names, top first.
    fn layers(&self) -> impl Iterator<Item = &PathBuf> {
        self.upper.iter().chain(&self.lowers)
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.layers().chain(&self.data_lowers).chain(&self.work)
    }
}

/// A finding for people and programs. The JSON field names are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// The whole path.
    #[serde(serialize_with = "path_as_text")]
    pub what: PathBuf,
    /// What is wrong with it, with the aspect.
    pub why: String,
    /// `error` or `remark`.
    pub severity: &'static str,
    /// The directory it is in: a layer, or the work directory.
    #[serde(serialize_with = "path_as_text")]
    pub layer: PathBuf,
    /// `upper`, `lower` or `work`.
    pub role: &'static str,
    /// The path in that directory, beginning with a slash.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// What it is about; see [`Finding::aspect`].
    pub aspect: &'static str,
    /// What there should be; `null`: that can't be said.
    pub expected: Option<String>,
    /// What is there.
    pub found: Option<String>,
}

fn path_as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl Wrong {
    fn of(finding: Finding, directories: &Directories) -> Wrong {
        let (layer, role) = match finding.place {
            Place::Work => (directories.work.as_ref(), "work"),
            Place::Layer(0) if directories.upper.is_some() => (directories.upper.as_ref(), "upper"),
            Place::Layer(number) => (directories.layers().nth(number), "lower"),
        };
        let layer = layer.cloned().unwrap_or_default();
        Wrong {
            what: match finding.path.as_os_str().is_empty() {
                true => layer.clone(),
                false => layer.join(&finding.path),
            },
            why: format!("{}: {}", finding.aspect, finding.why),
            severity: match finding.severity {
                Severity::Error => "error",
                Severity::Remark => "remark",
            },
            layer,
            role,
            path: Path::new("/").join(&finding.path),
            aspect: finding.aspect,
            expected: finding.expected,
            found: finding.found,
        }
    }

    /// Returns it as one line of text: control characters in names are escaped.
    pub fn line(&self) -> String {
        let text = format!("{}: {}: {}", self.severity, self.what.display(), self.why);
        let mut line = String::with_capacity(text.len());
        for c in text.chars() {
            match c.is_control() {
                true => line.extend(c.escape_default()),
                false => line.push(c),
            }
        }
        line
    }
}

/// How many findings there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Something is wrong.
    pub errors: u64,
    /// Something is unusual.
    pub remarks: u64,
    /// The receiver or the user ended it early.
    pub is_cut: bool,
}

/// Checks an overlay that is not mounted. Nothing is changed, but the directories are locked as a
/// mount's lower layers are, so that Vellum's engine takes none of them as its upper meanwhile.
///
/// `report` gets each finding as it is made, and ends the check with `Break`. Errors: a directory
/// does not exist, can't be read, or is in use by a mount.
pub fn check(
    directories: &Directories,
    cancel: &Cancel,
    report: &mut dyn FnMut(Wrong) -> ControlFlow<()>,
) -> Result<Checked> {
    // The kernel leaves a plain user's work directory without permissions.
    own_files::enable(daemon::assistant);
    let _locks = in_use::refuse(directories)?;
    let mut checked = Checked::default();
    let mut report = |finding: Finding| {
        match finding.severity {
            Severity::Error => checked.errors += 1,
            Severity::Remark => checked.remarks += 1,
        }
        let next = report(Wrong::of(finding, directories));
        checked.is_cut |= next.is_break();
        next
    };
    for finding in places::check(directories)? {
        if report(finding).is_break() {
            return Ok(checked);
        }
    }
    let overlay = open(directories)?;
    let first = [unseen(directories)?, other_upper(directories, &overlay)?];
    for finding in first.into_iter().flatten() {
        if report(finding).is_break() {
            return Ok(checked);
        }
    }
    vellum_union::fsck::check(&overlay, cancel, &mut report)?;
    if let Err(error) = in_use::refuse(directories) {
        let why = format!("it was mounted during the check, so nothing of it is reliable: {error}");
        let _ = report(Finding::error(Place::Layer(0), Path::new(""), "mount", why));
    }
    checked.is_cut |= cancel.is_cancelled();
    Ok(checked)
}

/// Opens the layers, each with its dialect.
fn open(directories: &Directories) -> Result<Overlay> {
    let prefix = prefix(directories)?;
    let options = MountOptions {
        upper: directories.upper.clone(),
        work: directories.work.clone(),
        user_xattr: Some(prefix == Prefix::User),
        ..MountOptions::new(Manners::Own)
    };
    let mut beside = RecordsBeside::default();
    let mut layers: Vec<Arc<dyn Layer>> = Vec::new();
    if let Some(upper) = &directories.upper {
        let dir = layer_dir(upper)?;
        // A directory that can't be read is a finding, and no reason to stop.
        let wh_names = dialect::of_upper(&options, &dir).map_or(WhNames::Plain, Chosen::wh_names);
        let maps = match &directories.work {
            Some(work) => BlockMaps::open(work)?,
            None => None,
        };
        let dialect = as_written(&options, &dir, prefix, wh_names)?;
        let layer = DirLayer::new(dir, upper.display().to_string(), dialect);
        layers.push(Arc::new(layer.with_block_maps(maps.map(Arc::new))));
    }
    for lower in &directories.lowers {
        let dir = layer_dir(lower)?;
        let by_name = match beside.find_of_any_owner(lower) {
            Some(record) => record.wh_whiteouts,
            None => dialect::sign_of(&dir, None).is_ok_and(|sign| sign == Sign::Names),
        };
        let wh_names = match by_name {
            true => WhNames::Whiteouts,
            false => WhNames::Plain,
        };
        let dialect = as_written(&options, &dir, prefix, wh_names)?;
        layers.push(Arc::new(DirLayer::new(
            dir,
            lower.display().to_string(),
            dialect,
        )));
    }
    let data = directories.data_lowers.iter().map(|path| {
        let dir = layer_dir(path)?;
        let dialect = as_written(&options, &dir, prefix, WhNames::Plain)?;
        let layer = DirLayer::new(dir, path.display().to_string(), dialect);
        Ok(Arc::new(layer) as Arc<dyn Layer>)
    });
    Ok(Overlay {
        data_layers: data.collect::<Result<_>>()?,
        layers,
        has_upper: directories.upper.is_some(),
        work: directories.work.as_deref().map(Dir::open).transpose()?,
        prefix,
    })
}

fn as_written(
    options: &MountOptions,
    dir: &Dir,
    prefix: Prefix,
    wh_names: WhNames,
) -> Result<Dialect> {
    Ok(Dialect {
        prefix: Some(prefix),
        wh_names,
        records: records(options, dir)?,
        // To find out where a mark leads, it must be followed.
        trust: LayerTrust::Engine,
    })
}

/// Returns the namespace of the overlay's marks.
fn prefix(directories: &Directories) -> Result<Prefix> {
    let process = Process::read();
    if directories.user_xattr {
        return Ok(Prefix::User);
    }
    let Some(upper) = &directories.upper else {
        return Ok(process.prefix());
    };
    let dir = layer_dir(upper)?;
    let work = directories.work.as_deref().map(Dir::open).transpose()?;
    let record = match &work {
        Some(work) => LayerRecord::of(&dir, work)?,
        None => None,
    };
    match record {
        Some(record) if record.userxattr() => Ok(Prefix::User),
        Some(_) if !process.is_root() => Err(Error::Unsupported {
            what: format!(
                "the upper {} has marks in trusted.overlay.*, which only root can read",
                upper.display()
            ),
            hint: "run the command as root outside a user namespace".into(),
        }),
        Some(_) => Ok(Prefix::Trusted),
        None if !process.is_root() => Ok(Prefix::User),
        None => Ok(dialect::prefix_of(&dir, work.as_ref())?.unwrap_or(Prefix::Trusted)),
    }
}

/// Returns a remark if the overlay may have marks that this process can't see.
fn unseen(directories: &Directories) -> Result<Option<Finding>> {
    let process = Process::read();
    if process.is_root() || directories.user_xattr {
        return Ok(None);
    }
    for (number, path) in directories.layers().enumerate() {
        if layer_dir(path)?.stat_self()?.uid != process.uid {
            let why = "another user's layer: marks in trusted.overlay.*, if it has any, are seen by root only";
            let place = Place::Layer(number);
            return Ok(Some(Finding::remark(place, Path::new(""), "dialect", why)));
        }
    }
    Ok(None)
}

/// Returns a finding if the work directory was last used with another upper.
fn other_upper(directories: &Directories, overlay: &Overlay) -> Result<Option<Finding>> {
    let (Some(upper), Some(work)) = (&directories.upper, &overlay.work) else {
        return Ok(None);
    };
    let Some(recorded) = LayerRecord::upper_in(work) else {
        return Ok(None);
    };
    let own = Dir::open(upper)?.stat_self()?.ino;
    if own == recorded {
        return Ok(None);
    }
    let path = Path::new(vellum_format::workdir::OWN).join(vellum_format::workdir::OWN_LAYER);
    let has = |name: &str| {
        let dir = work.open_dir(name).and_then(|dir| dir.entries());
        dir.is_ok_and(|mut entries| entries.next().is_some())
    };
    let depends = has(vellum_format::workdir::INDEX) || has(vellum_format::workdir::BLOCK_MAPS);
    let why = "the work directory was used with another upper, or this one was copied";
    let finding = match depends {
        true => Finding::error(Place::Work, &path, "work", why),
        false => Finding::remark(Place::Work, &path, "work", why),
    };
    let inode = |ino: u64| format!("inode {ino}");
    Ok(Some(finding.differing(inode(recorded), inode(own))))
}

/// The error of a directory that is in use.
fn in_use(path: &Path, by: &str) -> Error {
    Error::Unsupported {
        what: format!("{} is mounted: {by}", path.display()),
        hint:
            "unmount it first: while it is mounted its marks change, and some exist only in memory"
                .into(),
    }
}

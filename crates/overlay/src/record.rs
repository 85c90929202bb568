//! What a work directory says about its upper: that Vellum's engine wrote it, how, and on which
//! layers it was last mounted.
//!
//! The record is outside the tree, so nothing that was unpacked into the tree can reach it. Its
//! owner decides whether it is [`believed`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vellum_format::{IdRun, Prefix, workdir};
use vellum_sys::rooted::Dir;
use vellum_sys::{FileKind, publish};
use vellum_union::WhNames;
use vellum_union::engine::IdRules;

use crate::error::{Error, Result};
use crate::options::{Manners, MountOptions};
use crate::values::BytesPath;

const RECORD_VERSION: u32 = 1;

/// More than thousands of layers need.
const RECORD_MAX_BYTES: u64 = 16 << 20;

/// How many names next to a layer are looked at: the uppers and work directories of two thousand
/// layers.
const NEIGHBOURS_MAX: usize = 4096;

/// The file [`workdir::OWN_LAYER`]. JSON; fields are only added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// The version of this record.
    version: u32,
    /// The inode number of the upper directory it describes.
    upper_ino: u64,
    /// When that directory was created, in seconds and nanoseconds, if its file system knows.
    #[serde(default)]
    upper_born: Option<(i64, u32)>,
    /// Whether names in it that begin with `.wh.` may be marks.
    #[serde(default)]
    wh_whiteouts: bool,
    /// Whether its marks are `user.overlay.*`.
    #[serde(default)]
    userxattr: bool,
    /// The lower layers of its last mount, top first.
    #[serde(default)]
    lowers: Vec<BytesPath>,
    /// The same for data-only layers.
    #[serde(default)]
    data_lowers: Vec<BytesPath>,
    /// The mapping of the last mount that had one: it tells what the ids on disk mean.
    #[serde(default)]
    ids: Option<Recorded>,
}

impl LayerRecord {
    /// Returns what the work directory `work` says about `upper`, if it knows it.
    pub(super) fn of(upper: &Dir, work: &Dir) -> Result<Option<LayerRecord>> {
        let ino = upper.stat_self()?.ino;
        let read = read(work).map(|(record, _)| record);
        Ok(read.filter(|record| record.upper_ino == ino))
    }

    /// Returns the inode number of the upper that the work directory `work` has a record of.
    pub(super) fn upper_in(work: &Dir) -> Option<u64> {
        read(work).map(|(record, _)| record.upper_ino)
    }

    /// Whether its marks are `user.overlay.*`.
    pub(super) fn userxattr(&self) -> bool {
        self.userxattr
    }

    /// Whether names that begin with `.wh.` may be marks.
    pub(super) fn wh_whiteouts(&self) -> bool {
        self.wh_whiteouts
    }

    /// Returns the options of the last mount of `upper`, as far as the record tells its marks and
    /// its lower layers.
    pub(super) fn last_mounted(self, upper: &Path, work: &Path) -> MountOptions {
        let paths = |all: Vec<BytesPath>| all.into_iter().map(|path| path.0).collect();
        MountOptions {
            lowers: paths(self.lowers),
            data_lowers: paths(self.data_lowers),
            upper: Some(upper.to_owned()),
            work: Some(work.to_owned()),
            user_xattr: Some(self.userxattr),
            ..MountOptions::new(Manners::Own)
        }
    }
}

/// A mapping: the first id on disk, the first shown, how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recorded {
    uids: Vec<(u32, u32, u32)>,
    gids: Vec<(u32, u32, u32)>,
}

impl Recorded {
    pub(super) fn of(ids: &IdRules) -> Recorded {
        let runs = |runs: &[IdRun]| {
            let three = |run: &IdRun| (run.outside, run.inside, run.count);
            runs.iter().map(three).collect()
        };
        Recorded {
            uids: runs(&ids.uids),
            gids: runs(&ids.gids),
        }
    }
}

/// A [`LayerRecord`] that has not been written yet.
#[derive(Debug)]
pub struct NewRecord {
    work: Dir,
    record: LayerRecord,
}

impl NewRecord {
    /// Returns the record of a mount with `options`, unless the work directory has it already.
    pub(super) fn of(
        options: &MountOptions,
        upper: &Dir,
        work: Dir,
        prefix: Prefix,
        wh_names: WhNames,
    ) -> Result<Option<NewRecord>> {
        let earlier = LayerRecord::of(upper, &work)?;
        let ids = match options.ids.uids.is_empty() && options.ids.gids.is_empty() {
            false => Some(Recorded::of(&options.ids)),
            // Mounted without a mapping: that doesn't change what is on disk.
            true => earlier.as_ref().and_then(|earlier| earlier.ids.clone()),
        };
        let record = LayerRecord {
            version: RECORD_VERSION,
            upper_ino: upper.stat_self()?.ino,
            upper_born: born(upper),
            wh_whiteouts: wh_names == WhNames::Whiteouts,
            userxattr: prefix == Prefix::User,
            lowers: options.lowers.iter().cloned().map(BytesPath).collect(),
            data_lowers: options.data_lowers.iter().cloned().map(BytesPath).collect(),
            ids,
        };
        let is_new = earlier.as_ref() != Some(&record);
        Ok(is_new.then_some(NewRecord { work, record }))
    }

    /// Writes the record into the work directory.
    pub fn write(&self) -> Result<()> {
        let path = || self.work.path().unwrap_or_default().join(workdir::OWN);
        let text =
            serde_json::to_vec(&self.record).map_err(|e| Error::io("write", path())(e.into()))?;
        let own = self.work.create_dir_all(workdir::OWN, 0o700)?;
        publish::write_file_atomic(&own, OsStr::new(workdir::OWN_LAYER), &text, 0o600)?;
        Ok(())
    }
}

/// What a record next to a layer says about it.
#[derive(Clone, Debug)]
pub(super) struct BesideRecord {
    /// The record's owner.
    pub(super) owner: u32,
    ino: u64,
    born: Option<(i64, u32)>,
    /// Whether names that begin with `.wh.` may be marks.
    pub(super) wh_whiteouts: bool,
    /// Whether its marks are `user.overlay.*`.
    pub(super) userxattr: bool,
    /// The mapping of the last mount that had one.
    pub(super) ids: Option<Recorded>,
    /// The work directory with the record.
    pub(super) work: PathBuf,
    /// Whether the layer has partly copied files.
    pub(super) has_maps: bool,
}

/// The records of a mount's lower layers. Hundreds of layers may be in one directory, so its names
/// are read once.
#[derive(Debug, Default)]
pub(super) struct RecordsBeside(BTreeMap<PathBuf, Vec<BesideRecord>>);

impl RecordsBeside {
    /// Returns the record of a lower layer, if a work directory next to it has one that is
    /// [`believed`]: either the one called `work`, as in container stores, or any other that knows
    /// when the layer's directory was created. A neighbour may be an unpacked archive, whose author
    /// can guess an inode number but not that time.
    pub(super) fn find(&mut self, layer: &Path) -> Option<BesideRecord> {
        let found = self.find_of_any_owner(layer)?;
        if !believed(found.owner) {
            let work = found.work.display();
            tracing::debug!(%work, "record of a layer ignored: owned by another user");
            return None;
        }
        Some(found)
    }

    /// The same, also if the record is not believed.
    pub(super) fn find_of_any_owner(&mut self, layer: &Path) -> Option<BesideRecord> {
        let real = std::fs::canonicalize(layer).ok()?;
        let parent = real.parent()?;
        let root = Dir::open(&real).ok()?;
        let ino = root.stat_self().ok()?.ino;
        let beside = Dir::open(parent).ok()?;
        let usual = found(&beside, OsStr::new("work"));
        usual.filter(|found| found.ino == ino).or_else(|| {
            let born = born(&root)?;
            let all = self
                .0
                .entry(parent.to_owned())
                .or_insert_with(|| neighbours(&beside));
            let mut own = all.iter().filter(|found| found.ino == ino);
            own.find(|found| found.born == Some(born)).cloned()
        })
    }
}

/// Returns the records of all directories in `dir`. Those that can't be read are skipped.
fn neighbours(dir: &Dir) -> Vec<BesideRecord> {
    let Ok(entries) = dir.entries() else {
        return Vec::new();
    };
    let entries = entries.take(NEIGHBOURS_MAX);
    let dirs = entries.filter_map(|entry| entry.ok().filter(|e| e.kind == FileKind::Dir));
    dirs.filter_map(|entry| found(dir, &entry.name)).collect()
}

/// Returns the record in the directory `name`, if it is a work directory.
fn found(beside: &Dir, name: &OsStr) -> Option<BesideRecord> {
    let work = beside.open_dir_unmounted(name).ok()?;
    let (record, owner) = read(&work)?;
    let path = work.path()?;
    Some(BesideRecord {
        owner,
        ino: record.upper_ino,
        born: record.upper_born,
        wh_whiteouts: record.wh_whiteouts,
        userxattr: record.userxattr,
        ids: record.ids,
        has_maps: has_maps(&work),
        work: path,
    })
}

/// Tells whether a record owned by `owner` counts: root's, and the mounting user's.
pub(super) fn believed(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

/// Tells whether the upper of a work directory has partly copied files.
fn has_maps(work: &Dir) -> bool {
    let maps = work
        .open_dir(workdir::BLOCK_MAPS)
        .and_then(|maps| maps.entries());
    maps.is_ok_and(|mut maps| maps.next().is_some())
}

fn born(dir: &Dir) -> Option<(i64, u32)> {
    let born = vellum_sys::stat::born(dir).ok()??;
    Some((born.sec, born.nsec))
}

/// The record in a work directory, and its owner.
fn read(work: &Dir) -> Option<(LayerRecord, u32)> {
    let mut text = Vec::new();
    let own = work.open_dir(workdir::OWN).ok()?;
    let file = own.open_file(workdir::OWN_LAYER).ok()?;
    let owner = file.metadata().ok()?.uid();
    file.take(RECORD_MAX_BYTES).read_to_end(&mut text).ok()?;
    let record: LayerRecord = serde_json::from_slice(&text).ok()?;
    (record.version == RECORD_VERSION).then_some((record, owner))
}

#[cfg(test)]
mod tests {
    use vellum_testkit::Scratch;

    use super::*;

    #[test]
    fn each_of_hundreds_of_layers_in_one_directory_is_known() {
        let scratch = Scratch::new();
        if born(&Dir::open(scratch.path()).unwrap()).is_none() {
            return vellum_testkit::untested(
                "records by birth",
                "this file system has no birth times",
            );
        }
        // So many that others come before each in the directory, whatever the order.
        let layers: Vec<_> = (0..400)
            .map(|n| scratch.dir(format!("upper-{n}")))
            .collect();
        for (n, layer) in layers.iter().enumerate() {
            let work = Dir::open(&scratch.dir(format!("its-work-{n}"))).unwrap();
            let options = MountOptions::new(Manners::Own);
            let (prefix, wh_names) = (Prefix::User, WhNames::Plain);
            let upper = Dir::open(layer).unwrap();
            let record = NewRecord::of(&options, &upper, work, prefix, wh_names).unwrap();
            record.expect("a new upper").write().unwrap();
        }
        let mut beside = RecordsBeside::default();
        for (n, layer) in layers.iter().enumerate() {
            let found = beside.find(layer).expect("a layer's record");
            assert_eq!(found.work, scratch.join(format!("its-work-{n}")));
        }
        assert!(beside.find(&scratch.dir("unpacked")).is_none());
    }
}

//! Checks that the store's directory is the one that was here before, and that nothing is mounted
//! over it.
//!
//! A mount over the data root (or over a directory in it) makes a full store look empty. A program
//! that then creates a new one there separates running containers from their records. So every
//! command that opens the store first compares what it finds with what the last command noted in
//! the run directory: device and inode of the root and of the directories in it, and the mount
//! through which they were reached. If they differ, the mount table tells what is mounted over
//! them, and the command fails with the order in which to unmount it. Nothing is touched; after the
//! unmount the next command finds the old directories again and continues.
//!
//! The note lives until the next boot, like the mounts it describes. Without a note, container
//! mounts that are in the table but can't be reached tell the same. [`judge`] is pure; it must not
//! know the store's records.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vellum_sys::mountinfo::{self, Mount, Table};
use vellum_sys::plain::{self, Links};
use vellum_sys::{Dir, publish};

use crate::cover::Cover;
use crate::error::{Error, Result};

/// The version of the note. An unknown one counts as no note at all.
const VERSION: u32 = 1;

/// Far more than a note about some ten directories needs.
const NOTE_MAX_BYTES: u64 = 1 << 20;

/// The note, as a file in the run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    version: u32,
    /// The boot it was written in.
    boot: String,
    /// The store's own id.
    store: String,
    /// The root first, then the directories in it that existed.
    places: Vec<NotedDir>,
}

/// One directory, and how it was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NotedDir {
    #[serde(with = "path_text")]
    path: PathBuf,
    dev: u64,
    ino: u64,
    mount: u64,
    /// Device of the mount; differs from `dev` on btrfs.
    mount_dev: (u32, u32),
    #[serde(with = "path_text")]
    mount_point: PathBuf,
    fs_type: String,
    source: String,
}

/// The result of the comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing prevents the command from continuing.
    GoOn,
    /// `path` is covered by these mounts, topmost first.
    Covered { path: PathBuf, covers: Vec<Cover> },
    /// The file system that held the store is not mounted any more.
    Unmounted { path: PathBuf, was: Cover },
}

/// Where a store's directories were when it was opened, for a process that keeps it open.
#[derive(Debug)]
pub(crate) struct Seen(Vec<(PathBuf, (u64, u64))>);

impl Seen {
    /// Notes the store at `root`, which has no symbolic link in it.
    pub(crate) fn now(root: &Path) -> Self {
        let seen = |path: PathBuf| identity(&path).map(|id| (path, id));
        Self(present(root).into_iter().filter_map(seen).collect())
    }

    /// Checks again. Fails like [`verify`], and with [`Error::Replaced`] if another root is there
    /// that would be accepted.
    pub(crate) fn again(&self, run_dir: &Path) -> Result<()> {
        let is_there = |(path, id): &(PathBuf, (u64, u64))| identity(path) == Some(*id);
        if self.0.iter().all(is_there) {
            return Ok(());
        }
        let Some(root) = self.0.first() else {
            return Ok(());
        };
        verify(&root.0, run_dir)?;
        // A directory in the store that was replaced is used as it is, by commands too.
        match is_there(root) {
            true => Ok(()),
            false => Err(Error::Replaced {
                path: root.0.clone(),
            }),
        }
    }
}

/// Fails with [`Error::Covered`] or [`Error::Unmounted`] if the store at `root` is not the one
/// noted in `run_dir`.
///
/// Call it before the store is opened; it only reads. `root` has no symbolic links, as [`resolved`]
/// returns it.
pub fn verify(root: &Path, run_dir: &Path) -> Result<()> {
    let file = note_file(root, run_dir);
    let note = read_note(&file).filter(|note| note.boot == boot_id());
    // Usually everything is where it was, and the mount table need not be read.
    if let Some(note) = &note
        && note
            .places
            .iter()
            .all(|place| identity(&place.path) == Some((place.dev, place.ino)))
    {
        return Ok(());
    }
    let table = mountinfo::read()?;
    let has_store = root.join("vellum.db").exists();
    match judge(root, note.as_ref(), &table, has_store, &identity) {
        Verdict::GoOn => Ok(()),
        Verdict::Covered { path, covers } => Err(Error::Covered {
            path,
            covers,
            note: Some(file),
        }),
        Verdict::Unmounted { path, was } => Err(Error::Unmounted {
            path,
            was: Box::new(was),
            note: file,
        }),
    }
}

/// Notes where the store at `root` (without symbolic links) is, which has just been opened; does
/// nothing if the note is current.
///
/// Creates the run directory if it is missing. Not durable, on purpose: it must not outlive the
/// mounts.
pub fn note(root: &Path, run_dir: &Path, store: &str) -> Result<()> {
    let file = note_file(root, run_dir);
    let old = read_note(&file);
    let boot = boot_id();
    if let Some(old) = &old
        && (old.boot.as_str(), old.store.as_str()) == (boot.as_str(), store)
        && present(root)
            == old
                .places
                .iter()
                .map(|place| place.path.clone())
                .collect::<Vec<_>>()
        && old
            .places
            .iter()
            .all(|place| identity(&place.path) == Some((place.dev, place.ino)))
    {
        return Ok(());
    }
    let table = mountinfo::read()?;
    let mut places = Vec::new();
    for path in present(root) {
        let stat = Dir::open(&path)?.stat_self()?;
        let mount = table.by_id(stat.mnt_id);
        places.push(NotedDir {
            dev: stat.dev,
            ino: stat.ino,
            mount: stat.mnt_id,
            mount_dev: mount.map_or((0, 0), |m| m.dev),
            mount_point: mount.map_or_else(PathBuf::new, |m| m.mount_point.clone()),
            fs_type: mount.map_or_else(String::new, |m| m.fs_type.to_string_lossy().into_owned()),
            source: mount.map_or_else(String::new, |m| m.source.to_string_lossy().into_owned()),
            path,
        });
    }
    let note = Note {
        version: VERSION,
        boot,
        store: store.to_string(),
        places,
    };
    let text = serde_json::to_vec_pretty(&note).map_err(|e| Error::io("write", &file)(e.into()))?;
    let dir = make_run_dir(run_dir)?;
    let name = file.file_name().unwrap_or(OsStr::new("store.json"));
    publish::write_file_atomic(&dir, name, &text, 0o600)?;
    Ok(())
}

/// Opens the run directory; creates it (0700) if needed.
pub(crate) fn make_run_dir(run_dir: &Path) -> Result<Dir> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(run_dir)
        .map_err(Error::io("make", run_dir))?;
    Ok(Dir::open(run_dir)?)
}

/// Decides by the note and the current mounts. `now` returns device and inode of a path, if it
/// exists.
fn judge(
    root: &Path,
    note: Option<&Note>,
    table: &Table,
    has_store: bool,
    now: &dyn Fn(&Path) -> Option<(u64, u64)>,
) -> Verdict {
    let hidden = hidden_mounts(root, table);
    let covered = |path: &Path, covers: Vec<&Mount>| Verdict::Covered {
        path: path.to_path_buf(),
        covers: covers.into_iter().map(Cover::of).collect(),
    };
    for place in note.into_iter().flat_map(|note| &note.places) {
        if now(&place.path) == Some((place.dev, place.ino)) {
            continue;
        }
        let covers = covers_of(place, table);
        let is_root = place.path == root;
        if !covers.is_empty() {
            // A store that was mounted here on purpose is used, unless containers of the old one
            // are still mounted beneath it.
            if is_root && has_store && hidden.is_empty() {
                return Verdict::GoOn;
            }
            return covered(&place.path, covers);
        }
        let still_mounted = table.mounts().iter().any(|m| m.dev == place.mount_dev);
        if is_root && !has_store && !still_mounted {
            let was = Cover {
                mount_point: place.mount_point.clone(),
                fs_type: place.fs_type.clone(),
                source: place.source.clone(),
            };
            return Verdict::Unmounted {
                path: place.path.clone(),
                was,
            };
        }
        if is_root {
            // The directory was replaced by hand; its current content counts.
            return Verdict::GoOn;
        }
    }
    if note.is_none()
        && !has_store
        && let Some(mount) = hidden.first()
    {
        let covers = table.covering(root, mount.parent);
        if !covers.is_empty() {
            return covered(root, covers);
        }
    }
    Verdict::GoOn
}

/// Returns the mounts beneath `root` that can't be reached by their own mount points.
fn hidden_mounts<'a>(root: &Path, table: &'a Table) -> Vec<&'a Mount> {
    table
        .beneath(root)
        .into_iter()
        .filter(|mount| {
            !table
                .chain(&mount.mount_point)
                .iter()
                .any(|m| m.id == mount.id)
        })
        .collect()
}

/// Fails with [`Error::Covered`] if something is mounted over `tree`, a directory in the driver's
/// directory `home`.
///
/// Call it before the store reads the tree: the store would repair what looks damaged.
pub(crate) fn uncovered(home: &Path, tree: &Path) -> Result<()> {
    // A missing tree is the store's to report.
    let (Ok(above), Ok(here)) = (Dir::open(home), Dir::open(tree)) else {
        return Ok(());
    };
    if above.stat_self()?.mnt_id == here.stat_self()?.mnt_id {
        return Ok(());
    }
    let table = mountinfo::read()?;
    let covers = table
        .chain(home)
        .last()
        .map(|base| table.covering(tree, base.id))
        .unwrap_or_default();
    if covers.is_empty() {
        return Ok(());
    }
    let covers = covers.into_iter().map(Cover::of).collect();
    Err(Error::Covered {
        path: tree.to_path_buf(),
        covers,
        note: None,
    })
}

/// Returns the mounts over a noted directory, topmost first.
fn covers_of<'a>(place: &NotedDir, table: &'a Table) -> Vec<&'a Mount> {
    // Mount numbers are reused, and differ between namespaces: the device must match, too.
    if table
        .by_id(place.mount)
        .is_some_and(|m| m.dev == place.mount_dev)
    {
        return table.covering(&place.path, place.mount);
    }
    let mut chain = table.chain(&place.path);
    chain.reverse();
    match chain.iter().position(|m| m.dev == place.mount_dev) {
        Some(depth) => chain[..depth].to_vec(),
        None => Vec::new(),
    }
}

fn present(root: &Path) -> Vec<PathBuf> {
    let parts = vellum_store::directories()
        .into_iter()
        .map(|part| root.join(part))
        .filter(|path| identity(path).is_some());
    std::iter::once(root.to_path_buf()).chain(parts).collect()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Resolves symbolic links in `root`, as far as it exists: the mount table has none.
pub(crate) fn resolved(root: &Path) -> PathBuf {
    for ancestor in root.ancestors() {
        if let Ok(real) = std::fs::canonicalize(ancestor) {
            let rest = root.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            };
        }
    }
    root.to_path_buf()
}

/// Returns the file of a root's note, named after the root; a clash of the short hash only costs a
/// rewrite, since the path is in the note.
fn note_file(root: &Path, run_dir: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    run_dir.join(format!("store-{:016x}.json", hasher.finish()))
}

fn read_note(file: &Path) -> Option<Note> {
    let note = plain::read(file, NOTE_MAX_BYTES, Links::InParents).ok()?;
    let note: Note = serde_json::from_slice(&note).ok()?;
    (note.version == VERSION).then_some(note)
}

/// Returns the id of this boot, from the kernel.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_string()
}

/// Paths as text if they are UTF-8, else as `hex:` and digits.
mod path_text {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) if !text.starts_with("hex:") => serializer.serialize_str(text),
            _ => serializer
                .serialize_str(&format!("hex:{}", hex::encode(path.as_os_str().as_bytes()))),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix("hex:") {
            None => Ok(text.into()),
            Some(digits) => {
                let bytes = hex::decode(digits).map_err(serde::de::Error::custom)?;
                Ok(OsString::from_vec(bytes).into())
            }
        }
    }
}

#[cfg(test)]
mod tests;

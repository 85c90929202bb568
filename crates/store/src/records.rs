//! Record files: what the database says about one tree, image or container, next to the trees in
//! `records/`.
//!
//! With them a lost database can be restored completely ([`crate::record`] has those of trees,
//! [`crate::sidecar`] those of images and containers). This module writes and reads them. A file is
//! replaced by a rename, and its bytes are on their way to the disk before it has the name: after a
//! power loss there is the old file or the new one, never an empty one. The names are durable after
//! [`sync`], once for all that a command has written.
//!
//! Each file carries a [`Stamp`], which says when it was written; see `generation.rs`. Programs
//! without stamps ignore it, so going back to one of them stays possible: its own rebuild reads
//! these files.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vellum_sys::with_causes;
use vellum_sys::{
    plain::{self, Links},
    publish::{data_order, order_data},
};

use crate::{
    driver::TreeId,
    error::{IoContext, Result, StoreError},
    layout::{self, Layout, sync_dir},
    located::{Located, Shelf},
    stamp::Stamp,
    tx::Staged,
};

/// The format of every record file. An older program refuses a newer one; fields that it can ignore
/// don't raise the number.
pub(crate) const VERSION: u32 = 1;

/// A record as it is in its file.
#[derive(Serialize, Deserialize)]
struct Stamped<T> {
    #[serde(flatten)]
    record: T,
    /// Absent in files of programs without generations.
    #[serde(flatten)]
    stamp: Option<Stamp>,
}

/// Returns the paths of all record files, sorted.
pub(crate) fn files(layout: &Layout) -> Result<Vec<PathBuf>> {
    let is_record =
        |located: &Located| matches!(located, Located::Record(_) | Located::Sidecar(_, Some(_)));
    let held = layout.holds(Shelf::Records)?.into_iter();
    Ok(held
        .filter(|(_, located)| is_record(located))
        .map(|(path, _)| path)
        .collect())
}

/// Writes the record file of something that has none yet, and orders its bytes before its name;
/// [`sync`] makes it durable, or a sync of the open file, which is returned.
pub(crate) fn create<T: Serialize>(path: &Path, record: &T, stamp: &Stamp) -> Result<fs::File> {
    let bytes = to_bytes(record, stamp)?;
    let mut file = plain::create(path, 0o600, Links::Nowhere).map_err(layout::damaged)?;
    file.write_all(&bytes).on("write", path)?;
    Ok(file)
}

/// Replaces a record file, or creates it: after a crash there is the old one or the new one.
/// Durable after [`sync`].
///
/// The new file is locked before it has the name, and until the returned value is dropped.
pub(crate) fn replace<T: Serialize>(
    layout: &Layout,
    path: &Path,
    record: &T,
    stamp: &Stamp,
) -> Result<fs::File> {
    let bytes = to_bytes(record, stamp)?;
    // Staged under a lock like everything else: a sweep by another process must not remove it.
    let (mut staged, mut file) = Staged::file(layout, &format!("record-{}", TreeId::random()))?;
    file.write_all(&bytes).on("write", staged.path())?;
    order_data(&file, data_order(&file)?)?;
    staged.publish_shared(path)?;
    Ok(file)
}

/// Makes the names of all record files durable, and the files that [`replace`] wrote.
pub(crate) fn sync(layout: &Layout) -> Result<()> {
    sync_dir(&layout.records())
}

/// Removes a record file; a missing one is not an error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    plain::unlink(path).map(drop).map_err(layout::damaged)
}

/// Reads a record file and its stamp; `None` if there is none. Errors: `Damaged`.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<(T, Option<Stamp>)>> {
    let Some(bytes) = layout::read_small(path)? else {
        return Ok(None);
    };
    let damaged = |why: String| StoreError::Damaged {
        what: path.display().to_string(),
        why,
    };
    let version: Version = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if version.version > VERSION {
        return Err(damaged(format!(
            "written by a newer vellum (format {}, this one knows {VERSION})",
            version.version
        )));
    }
    let found: Stamped<T> = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    Ok(Some((found.record, found.stamp)))
}

/// Says how a record file differs from the record it should hold, if it does.
pub(crate) fn differs<T: DeserializeOwned + PartialEq>(path: &Path, expect: &T) -> Option<String> {
    match read::<T>(path) {
        Ok(Some((found, _))) if found == *expect => None,
        Ok(Some(_)) => Some("differs from the database".to_owned()),
        Ok(None) => Some("missing".to_owned()),
        Err(e) => Some(with_causes(&e)),
    }
}

/// Rewrites a record file unchanged but for its stamp. One that can't be read stays, for `check` to
/// report.
pub(crate) fn restamp(layout: &Layout, path: &Path, stamp: &Stamp) -> Result<()> {
    type Fields = serde_json::Map<String, serde_json::Value>;
    match read::<Fields>(path) {
        Ok(Some((mut fields, _))) => {
            fields.remove("store");
            fields.remove("generation");
            replace(layout, path, &fields, stamp).map(drop)
        }
        Ok(None) | Err(StoreError::Damaged { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Reads a record file's stamp; `None` if it has none, or doesn't exist. Errors: `Damaged`.
pub(crate) fn read_stamp(path: &Path) -> Result<Option<Stamp>> {
    #[derive(Deserialize)]
    struct Nothing {}
    Ok(read::<Nothing>(path)?.and_then(|(Nothing {}, stamp)| stamp))
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn to_bytes<T: Serialize>(record: &T, stamp: &Stamp) -> Result<Vec<u8>> {
    let stamped = Stamped {
        record,
        stamp: Some(stamp.clone()),
    };
    serde_json::to_vec_pretty(&stamped).map_err(|e| StoreError::Invalid(format!("a record: {e}")))
}

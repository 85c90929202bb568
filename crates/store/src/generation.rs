//! The store's generation, and how a database that has gone back in time is recognised.
//!
//! Each transaction that changes something raises the *generation*, a number in the database. Two
//! things outside the database follow it. Every record file carries the store's id and the
//! generation it was written for: that of the last transaction, or the next one, since the record
//! of a new tree is written before its row. And the *mark*, the name of an empty file in
//! `generation/`, says how far the store was when it was last changed: it is renamed after each
//! commit.
//!
//! Neither can be ahead of the database, except a record file by one step: the database is synced
//! when the mark moves. So a mark ahead of the database, a record file more than one step ahead, or
//! either with another store's id, proves that the database was restored, replaced or damaged
//! since. What is missing from it may still exist, and may be the only copy: so everything but
//! reading is refused, and `check --rebuild` is the way back.
//!
//! The mark costs one rename and no sync. After a power loss it may be behind, and then the record
//! files, which are synced, still give the same proof to the collector and to `check`. Without a
//! mark (a copy that left it out) the record files are read.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use rusqlite::Transaction;

use crate::{
    error::{DbContext, IoContext, Result, StoreError},
    layout::{self, Layout},
    records, rows,
    stamp::{Stamp, contradiction},
};
use vellum_sys::plain::{self, Links};
use vellum_sys::sync;

/// The row of the table `store` that holds the generation: 16 hexadecimal digits, `-`, and 16
/// random ones.
///
/// The random half says which transaction raised the number. The length never changes, so raising
/// it needs no space.
const ROW: &str = "generation";

/// The row that holds the store's id.
const ID: &str = "uuid";

/// A transaction's own value of the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raised {
    pub generation: u64,
    text: String,
}

/// Raises the generation inside a transaction that has changed something.
pub(crate) fn raise(tx: &Transaction<'_>) -> Result<Raised> {
    let generation = current(tx)? + 1;
    let text = format!("{generation:016x}-{:016x}", rand::random::<u64>());
    write(tx, &text)?;
    Ok(Raised { generation, text })
}

/// Returns whether this is the last transaction that counts.
pub(crate) fn is_last(tx: &Transaction<'_>, raised: &Raised) -> Result<bool> {
    Ok(text(tx)?.as_deref() == Some(raised.text.as_str()))
}

/// Sets the id and generation of a database that is being created.
pub(crate) fn begin(tx: &Transaction<'_>, at: &Stamp) -> Result<()> {
    rows::facts::set(tx, ID, &at.store).db("create")?;
    set(tx, at.generation)
}

/// Sets the generation of a database that is being migrated.
pub(crate) fn set(tx: &Transaction<'_>, generation: u64) -> Result<()> {
    write(tx, &format!("{generation:016x}-{:016x}", 0))
}

fn write(tx: &Transaction<'_>, text: &str) -> Result<()> {
    rows::facts::set(tx, ROW, text).db("raise the generation")
}

fn text(tx: &Transaction<'_>) -> Result<Option<String>> {
    rows::facts::get(tx, ROW).db("read the generation")
}

fn current(tx: &Transaction<'_>) -> Result<u64> {
    let text = text(tx)?.unwrap_or_default();
    let number = text.split('-').next().unwrap_or_default();
    u64::from_str_radix(number, 16).map_err(|e| StoreError::Damaged {
        what: "the database, the store's generation".into(),
        why: format!("{text:?}: {e}"),
    })
}

/// Returns the database's position.
pub(crate) fn stamp(tx: &Transaction<'_>) -> Result<Stamp> {
    Ok(Stamp {
        store: store_id(tx)?,
        generation: current(tx)?,
    })
}

/// Returns the store's id.
pub(crate) fn store_id(tx: &Transaction<'_>) -> Result<String> {
    rows::facts::get(tx, ID)
        .and_then(|id| id.ok_or(rusqlite::Error::QueryReturnedNoRows))
        .db("read the store's id")
}

/// The mark: how far the store was when a process last changed it.
#[derive(Debug)]
pub(crate) struct Mark {
    dir: PathBuf,
    /// The name it last had.
    seen: Mutex<Option<Stamp>>,
}

impl Mark {
    pub fn new(layout: &Layout) -> Self {
        Self {
            dir: layout.generation(),
            seen: Mutex::default(),
        }
    }

    /// No mark, and none is created: for a database that is not in place yet.
    pub fn none() -> Self {
        Self {
            dir: PathBuf::new(),
            seen: Mutex::default(),
        }
    }

    /// Returns what the mark says; `None` without one. Of several (two processes created one at
    /// once) the furthest counts.
    pub fn read(&self) -> Result<Option<Stamp>> {
        let found = furthest(&layout::entries(&self.dir)?);
        *sync::lock(&self.seen) = found.clone();
        Ok(found)
    }

    /// Moves the mark forward to `to`. If that fails the mark stays behind, which proves less but
    /// nothing wrong.
    pub fn advance(&self, to: &Stamp) {
        if let Err(error) = self.try_advance(to) {
            tracing::debug!(
                error = vellum_sys::with_causes(&error),
                "cannot advance the generation's mark"
            );
        }
    }

    fn try_advance(&self, to: &Stamp) -> Result<()> {
        if self.dir.as_os_str().is_empty() {
            return Ok(());
        }
        let mut seen = sync::lock(&self.seen);
        // Another process may have moved it since: then it is looked for once more.
        for _ in 0..8 {
            match &*seen {
                Some(at) if at.store == to.store && at.generation >= to.generation => return Ok(()),
                Some(at) => {
                    let (from, target) = (self.path(at), self.path(to));
                    match std::fs::rename(&from, &target) {
                        Ok(()) => {
                            *seen = Some(to.clone());
                            return Ok(());
                        }
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(e).on("rename", from),
                    }
                }
                None => {
                    self.make(to)?;
                }
            }
            *seen = furthest(&layout::entries(&self.dir)?);
        }
        Ok(())
    }

    /// Sets the mark to `to`, whatever it said before: for a database that was rebuilt or migrated.
    ///
    /// An existing mark is renamed, which needs neither space nor an inode.
    pub fn reset(&self, to: &Stamp) -> Result<()> {
        let path = self.path(to);
        let mut is_set = false;
        for other in layout::entries(&self.dir)? {
            if parse(&other).is_none() {
                continue;
            }
            match is_set {
                false => std::fs::rename(&other, &path).on("rename", &other)?,
                true if other != path => std::fs::remove_file(&other).on("remove", &other)?,
                true => {}
            }
            is_set = true;
        }
        if !is_set {
            self.make(to)?;
        }
        *sync::lock(&self.seen) = Some(to.clone());
        Ok(())
    }

    fn make(&self, stamp: &Stamp) -> Result<PathBuf> {
        layout::make_dir(&self.dir, 0o700)?;
        let path = self.path(stamp);
        plain::open_or_create(&path, 0o600, Links::Nowhere).map_err(layout::damaged)?;
        Ok(path)
    }

    fn path(&self, stamp: &Stamp) -> PathBuf {
        self.dir.join(stamp.to_string())
    }
}

fn furthest(paths: &[PathBuf]) -> Option<Stamp> {
    paths
        .iter()
        .filter_map(|path| parse(path))
        .max_by_key(|stamp| stamp.generation)
}

fn parse(path: &Path) -> Option<Stamp> {
    let (store, number) = path.file_name().and_then(OsStr::to_str)?.split_once('-')?;
    let is_id = store.len() == 32 && store.bytes().all(|b| b.is_ascii_hexdigit());
    (is_id && number.len() == 16).then_some(())?;
    Some(Stamp {
        store: store.to_owned(),
        generation: u64::from_str_radix(number, 16).ok()?,
    })
}

/// Looks for proof against the database at `now`: the mark, or the record files if there is no
/// mark.
///
/// `mark` is what [`Mark::read`] returned *before* `now` was read from the database, so that what
/// others commit in between is not a contradiction.
pub(crate) fn witness_against(
    layout: &Layout,
    mark: Option<&Stamp>,
    now: &Stamp,
) -> Result<Option<String>> {
    match mark {
        Some(mark) => Ok(contradiction(now, mark, 0).map(|why| {
            let path = layout.generation().join(mark.to_string());
            format!("{}: {why}", path.display())
        })),
        None => {
            for path in records::files(layout)? {
                // A file that can't be read proves nothing; `check` reports it.
                if let Ok(Some(stamp)) = records::read_stamp(&path)
                    && let Some(why) = contradiction(now, &stamp, 1)
                {
                    return Ok(Some(format!("{}: {why}", path.display())));
                }
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(store: &str, generation: u64) -> Stamp {
        Stamp {
            store: store.repeat(32),
            generation,
        }
    }

    #[test]
    fn the_mark_never_moves_back() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        let (one, two) = (Mark::new(&layout), Mark::new(&layout));
        assert_eq!(one.read().unwrap(), None);
        one.advance(&at("a", 3));
        assert_eq!(two.read().unwrap(), Some(at("a", 3)));
        two.advance(&at("a", 9));
        one.advance(&at("a", 5));
        assert_eq!(one.read().unwrap(), Some(at("a", 9)));
        one.advance(&at("a", 10));
        two.advance(&at("a", 11));
        assert_eq!(two.read().unwrap(), Some(at("a", 11)));
        assert_eq!(layout::entries(&layout.generation()).unwrap().len(), 1);
        two.reset(&at("b", 1)).unwrap();
        assert_eq!(one.read().unwrap(), Some(at("b", 1)));
    }
}

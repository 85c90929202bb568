//! Table `records_due`: names of record files that may be older than their rows, with the
//! generation for which they are due.

use rusqlite::{Transaction, params};

use super::list;
use crate::error::{DbContext, Result};

/// Puts a name on the list, or raises its generation.
pub(crate) fn note(tx: &Transaction<'_>, name: &str, generation: u64) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO records_due (name, generation) VALUES (?1, ?2) \
         ON CONFLICT (name) DO UPDATE SET generation = ?2",
    )
    .db("note a record file")?
    .execute(params![name, generation as i64])
    .map(drop)
    .db("note a record file")
}

/// Returns the list, sorted by name.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<(String, u64)>> {
    list(
        tx,
        "list record files",
        "SELECT name, generation FROM records_due ORDER BY name",
        [],
        |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)),
    )
}

/// Takes a name off the list, unless it became due again since `generation`.
pub(crate) fn forget(tx: &Transaction<'_>, name: &str, generation: u64) -> Result<()> {
    tx.prepare_cached("DELETE FROM records_due WHERE name = ?1 AND generation <= ?2")
        .db("forget a record file")?
        .execute(params![name, generation as i64])
        .map(drop)
        .db("forget a record file")
}

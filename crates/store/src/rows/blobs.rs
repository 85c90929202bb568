//! Table `blobs`: what is under `content/`.

use rusqlite::{Transaction, params};
use vellum_format::Digest;

use super::{exists, list, now_ns, parse, total};
use crate::{
    error::{DbContext, Result},
    snapshot::Usage,
};

/// Returns whether there is a record of a blob.
pub(crate) fn has(tx: &Transaction<'_>, digest: &Digest) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?1)";
    exists(tx, sql, &digest.to_string())
}

/// Returns a blob's length.
pub(crate) fn size(tx: &Transaction<'_>, digest: &Digest) -> Result<Option<u64>> {
    let sizes = list(
        tx,
        "look up a blob",
        "SELECT size FROM blobs WHERE digest = ?1",
        [digest.to_string()],
        |row| Ok(row.get::<_, i64>(0)? as u64),
    )?;
    Ok(sizes.first().copied())
}

/// Returns all blobs with their lengths, sorted by digest.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<(Digest, u64)>> {
    let sql = "SELECT digest, size FROM blobs ORDER BY digest";
    let found: Vec<(String, i64)> = list(tx, "list blobs", sql, [], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    let read = |(digest, size): (String, i64)| Ok((parse(&digest)?, size as u64));
    found.into_iter().map(read).collect()
}

/// Returns what all blobs take.
pub(crate) fn usage(tx: &Transaction<'_>) -> Result<Usage> {
    total(tx, "SELECT coalesce(sum(size), 0), count(*) FROM blobs")
}

/// Records a blob, unless it is recorded already.
pub(crate) fn insert(tx: &Transaction<'_>, digest: &Digest, size_bytes: u64) -> Result<()> {
    tx.execute(
        "INSERT OR IGNORE INTO blobs (digest, size, created_ns) VALUES (?1, ?2, ?3)",
        params![digest.to_string(), size_bytes as i64, now_ns()],
    )
    .map(drop)
    .db("record a blob")
}

/// Removes the record of a blob.
pub(crate) fn remove(tx: &Transaction<'_>, digest: &Digest) -> Result<()> {
    tx.execute("DELETE FROM blobs WHERE digest = ?1", [digest.to_string()])
        .map(drop)
        .db("forget a blob")
}

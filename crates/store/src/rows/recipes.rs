//! Table `recipes`: what is under `recipes/`, by the diff id of the layer.

use rusqlite::{Transaction, params};
use vellum_format::Digest;

use super::{exists, list, now_ns, parse, total};
use crate::{
    error::{DbContext, Result},
    snapshot::Usage,
};

/// A recorded recipe.
pub(crate) struct RecipeRow {
    pub diff_id: Digest,
    pub size_bytes: u64,
    /// Digest of its file; absent where an older program or a rebuild recorded it.
    pub digest: Option<Digest>,
}

/// Returns whether there is a record of a recipe.
pub(crate) fn has(tx: &Transaction<'_>, diff_id: &Digest) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM recipes WHERE diff_id = ?1)";
    exists(tx, sql, &diff_id.to_string())
}

/// Returns all recipes, sorted by diff id.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<RecipeRow>> {
    let sql = "SELECT diff_id, size, digest FROM recipes ORDER BY diff_id";
    type Raw = (String, i64, Option<String>);
    let found: Vec<Raw> = list(tx, "list recipes", sql, [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    let read = |(diff_id, size, digest): Raw| {
        Ok(RecipeRow {
            diff_id: parse(&diff_id)?,
            size_bytes: size as u64,
            digest: digest.as_deref().map(parse).transpose()?,
        })
    };
    found.into_iter().map(read).collect()
}

/// Returns what all recipes take.
pub(crate) fn usage(tx: &Transaction<'_>) -> Result<Usage> {
    total(tx, "SELECT coalesce(sum(size), 0), count(*) FROM recipes")
}

/// Records a recipe, replacing any there is.
pub(crate) fn put(
    tx: &Transaction<'_>,
    diff_id: &Digest,
    size_bytes: u64,
    digest: &Digest,
) -> Result<()> {
    tx.execute(
        "INSERT OR REPLACE INTO recipes (diff_id, size, created_ns, digest) VALUES (?1, ?2, ?3, ?4)",
        params![
            diff_id.to_string(),
            size_bytes as i64,
            now_ns(),
            digest.to_string()
        ],
    )
    .map(drop)
    .db("record a recipe")
}

/// Records a recipe whose digest is unknown, unless it is recorded already. Works on any schema.
pub(crate) fn put_back(tx: &Transaction<'_>, diff_id: &Digest, size_bytes: u64) -> Result<()> {
    tx.execute(
        "INSERT OR IGNORE INTO recipes (diff_id, size, created_ns) VALUES (?1, ?2, ?3)",
        params![diff_id.to_string(), size_bytes as i64, now_ns()],
    )
    .map(drop)
    .db("rebuild")
}

/// Removes the record of a recipe.
pub(crate) fn remove(tx: &Transaction<'_>, diff_id: &Digest) -> Result<()> {
    tx.execute(
        "DELETE FROM recipes WHERE diff_id = ?1",
        [diff_id.to_string()],
    )
    .map(drop)
    .db("forget a recipe")
}

/// Removes the record of a recipe if no snapshot has its diff id any more and no lease holds it.
/// Returns whether there was one.
pub(crate) fn release(tx: &Transaction<'_>, diff_id: &Digest) -> Result<bool> {
    let gone = tx
        .execute(
            "DELETE FROM recipes WHERE diff_id = ?1 \
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE diff_id = ?1) \
             AND NOT EXISTS (SELECT 1 FROM lease_digests WHERE digest = ?1)",
            [diff_id.to_string()],
        )
        .db("forget a recipe")?;
    Ok(gone > 0)
}

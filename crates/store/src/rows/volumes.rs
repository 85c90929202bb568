//! Table `volumes`.

use rusqlite::{Transaction, params};

use super::{exists, list, now_ns, to_json};
use crate::{
    error::{DbContext, Result, StoreError},
    snapshot::Labels,
};

/// A recorded volume.
pub(crate) struct VolumeRow {
    pub name: String,
    pub created_ns: i64,
    pub labels: Labels,
}

/// Returns whether there is a record of a volume.
pub(crate) fn has(tx: &Transaction<'_>, name: &str) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM volumes WHERE name = ?1)";
    exists(tx, sql, name)
}

/// Finds a volume by name.
pub(crate) fn find(tx: &Transaction<'_>, name: &str) -> Result<Option<VolumeRow>> {
    Ok(read(tx, Some(name))?.pop())
}

/// Returns all volumes, sorted by name.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<VolumeRow>> {
    read(tx, None)
}

fn read(tx: &Transaction<'_>, name: Option<&str>) -> Result<Vec<VolumeRow>> {
    let sql = "SELECT name, created_ns, labels FROM volumes \
               WHERE ?1 IS NULL OR name = ?1 ORDER BY name";
    type Raw = (String, i64, String);
    let found: Vec<Raw> = list(tx, "look up volumes", sql, [name], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    let read = |(name, created_ns, labels): Raw| {
        let labels = serde_json::from_str(&labels).map_err(|e| StoreError::Damaged {
            what: format!("the labels of volume {name}"),
            why: e.to_string(),
        })?;
        Ok(VolumeRow {
            name,
            created_ns,
            labels,
        })
    };
    found.into_iter().map(read).collect()
}

/// Records a volume. Errors: `Database` if it is recorded already.
pub(crate) fn insert(tx: &Transaction<'_>, name: &str, labels: &Labels) -> Result<()> {
    tx.execute(
        "INSERT INTO volumes (name, created_ns, labels) VALUES (?1, ?2, ?3)",
        params![name, now_ns(), to_json(labels)?],
    )
    .map(drop)
    .db("record a volume")
}

/// Removes the record of a volume.
pub(crate) fn remove(tx: &Transaction<'_>, name: &str) -> Result<()> {
    tx.execute("DELETE FROM volumes WHERE name = ?1", [name])
        .map(drop)
        .db("remove a volume")
}

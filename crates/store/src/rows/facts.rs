//! Table `store`: facts about the store itself, by name.

use rusqlite::{Connection, OptionalExtension, Transaction};

/// Returns a fact.
pub(crate) fn get(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<String>> {
    tx.prepare_cached("SELECT value FROM store WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// Sets a fact, or replaces it. A value of the same length needs no space.
pub(crate) fn set(connection: &Connection, name: &str, value: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO store (name, value) VALUES (?1, ?2)")?
        .execute([name, value])
        .map(drop)
}

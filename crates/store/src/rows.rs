//! Rows of the database as values and back: all SQL but the schema's own is here, one file a table.
//!
//! A function here does one thing to one table and knows what its columns hold. Its callers know
//! which of them belong together in a transaction, and what is allowed. What holds what, across all
//! tables, is in `alive`. A test checks that there is no statement elsewhere.

pub(crate) mod alive;
pub(crate) mod blobs;
pub(crate) mod containers;
pub(crate) mod due;
pub(crate) mod facts;
pub(crate) mod images;
pub(crate) mod leases;
pub(crate) mod recipes;
pub(crate) mod snapshots;
pub(crate) mod volumes;

use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::{Params, Row, Transaction};

use crate::{
    error::{DbContext, Result, StoreError},
    located::{Located, SidecarKind},
    snapshot::Usage,
};

fn damaged(what: &str) -> impl Fn(&dyn std::fmt::Display) -> StoreError + '_ {
    move |why| StoreError::Damaged {
        what: format!("the database, column {what}"),
        why: why.to_string(),
    }
}

/// Parses a text column into a validated type.
pub(crate) fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T> {
    text.parse().map_err(|e| damaged("digest")(&e))
}

fn json<T: serde::de::DeserializeOwned>(column: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| damaged(column)(&e))
}

/// Writes a value as the JSON that a column holds.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| StoreError::Invalid(e.to_string()))
}

/// Returns the current time in nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    // 2262 is the end of this column; a later clock is clamped to it.
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Returns a column's time.
pub(crate) fn time(ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Returns the rows of a statement.
fn list<T>(
    tx: &Transaction<'_>,
    op: &'static str,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = tx.prepare_cached(sql).db(op)?;
    let rows = statement.query_map(params, read).db(op)?;
    rows.map(|row| row.db(op)).collect()
}

/// Returns the answer of a `SELECT EXISTS` statement.
fn exists(tx: &Transaction<'_>, sql: &str, name: &str) -> Result<bool> {
    tx.prepare_cached(sql)
        .db("look up")?
        .query_row([name], |row| row.get(0))
        .db("look up")
}

/// Returns the sum and the count that a statement returns.
fn total(tx: &Transaction<'_>, sql: &str) -> Result<Usage> {
    tx.query_row(sql, [], |row| {
        Ok(Usage {
            bytes: row.get::<_, i64>(0)? as u64,
            inodes: row.get::<_, i64>(1)? as u64,
        })
    })
    .db("count")
}

/// Returns whether the database has a record of it. Things that are never recorded have none.
pub(crate) fn is_recorded(tx: &Transaction<'_>, located: &Located) -> Result<bool> {
    match located {
        Located::Tree(_, tree) | Located::Record(tree) => snapshots::has_tree(tx, tree),
        Located::Link(_, link) => Ok(snapshots::tree_of_link(tx, link)?.is_some()),
        Located::Sidecar(SidecarKind::Image, Some(id)) => images::has(tx, id),
        Located::Sidecar(SidecarKind::Container, Some(of_id)) => {
            Ok(containers::by_digest(tx, of_id)?.is_some())
        }
        Located::Blob(digest) => blobs::has(tx, digest),
        Located::Recipe(Some(diff_id)) => recipes::has(tx, diff_id),
        Located::Volume(name) => volumes::has(tx, name),
        Located::Sidecar(_, None) | Located::Recipe(None) => Ok(false),
        Located::Staged
        | Located::Trashed
        | Located::Shelf(_)
        | Located::Content
        | Located::Own
        | Located::Reserve
        | Located::OldDatabase
        | Located::LostFound
        | Located::Stranger => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    fn sources(dir: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, all),
                false => all.push(path),
            }
        }
    }

    /// SQL elsewhere would mean that two places know a column.
    #[test]
    fn there_is_no_sql_outside_rows_and_schema() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut all = Vec::new();
        sources(&src, &mut all);
        assert!(all.len() > 40, "{}", all.len());
        let word = regex::Regex::new(r"\b(SELECT|INSERT|UPDATE|DELETE)\b").unwrap();
        for path in all {
            let within = path.strip_prefix(&src).unwrap();
            let is_home = ["rows", "schema", "rows.rs", "schema.rs"]
                .iter()
                .any(|home| within.starts_with(home));
            let text = fs::read_to_string(&path).unwrap();
            for (at, line) in text.lines().enumerate().filter(|_| !is_home) {
                let code = !line.trim_start().starts_with("//");
                assert!(
                    !(code && word.is_match(line)),
                    "{}:{}: {line}",
                    within.display(),
                    at + 1
                );
            }
        }
    }
}

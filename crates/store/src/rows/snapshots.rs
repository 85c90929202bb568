//! Table `snapshots`.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use vellum_format::Digest;

use super::{damaged, exists, json, list, parse, time, to_json};
use crate::{
    driver::{DriverKind, LinkId, TreeId, TreeRef},
    error::{DbContext, Result, StoreError, Subject},
    parents::{MOST, Parents},
    record::{Identity, TreeRecord},
    snapshot::{Info, Keep, SnapshotKey, SnapshotKind, Usage},
};

/// One row of `snapshots`, with its parent's key and tree.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotRow {
    pub id: i64,
    pub parent: Option<(i64, SnapshotKey)>,
    pub record: TreeRecord,
}

const COLUMNS: &str = "s.id, s.key, s.kind, s.parent, s.keep, s.driver, s.tree, s.link, s.labels, s.created_ns, \
     s.updated_ns, s.usage_bytes, s.usage_inodes, s.diff_id, s.tar_bytes, s.features, s.size_limit, p.key, p.tree";
const FROM: &str = "FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent";

fn snapshot(row: &Row<'_>) -> rusqlite::Result<Result<SnapshotRow>> {
    let id: i64 = row.get(0)?;
    let key: Vec<u8> = row.get(1)?;
    let kind: i64 = row.get(2)?;
    let parent: Option<i64> = row.get(3)?;
    let keep: i64 = row.get(4)?;
    let driver: String = row.get(5)?;
    let tree: String = row.get(6)?;
    let link: Option<String> = row.get(7)?;
    let labels: String = row.get(8)?;
    let created_ns: i64 = row.get(9)?;
    let updated_ns: i64 = row.get(10)?;
    let usage: (Option<i64>, Option<i64>) = (row.get(11)?, row.get(12)?);
    let diff_id: Option<String> = row.get(13)?;
    let tar_bytes: Option<i64> = row.get(14)?;
    let features: Option<String> = row.get(15)?;
    let size_limit: Option<i64> = row.get(16)?;
    let parent_key: Option<Vec<u8>> = row.get(17)?;
    let parent_tree: Option<String> = row.get(18)?;
    Ok((|| {
        let mut record = TreeRecord::new(Identity {
            tree: TreeId::try_from(tree).map_err(|e| damaged("tree")(&e))?,
            driver: driver.parse().map_err(|e| damaged("driver")(&e))?,
            kind: SnapshotKind::from_disk(kind)?,
            key: SnapshotKey::new(key),
            parent: parent_tree.map(TreeId::try_from).transpose()?,
            link: link
                .map(LinkId::try_from)
                .transpose()
                .map_err(|e| damaged("link")(&e))?,
            created_ns,
        });
        record.keep = Keep::from_disk(keep);
        record.labels = json("labels", &labels)?;
        record.updated_ns = updated_ns;
        record.usage = match usage {
            (Some(bytes), Some(inodes)) => Some(Usage {
                bytes: bytes as u64,
                inodes: inodes as u64,
            }),
            _ => None,
        };
        record.diff_id = diff_id.as_deref().map(parse).transpose()?;
        record.tar_bytes = tar_bytes.map(|n| n as u64);
        record.features = features
            .as_deref()
            .map(|text| json("features", text))
            .transpose()?;
        record.size_limit_bytes = size_limit.map(|n| n as u64);
        Ok(SnapshotRow {
            id,
            parent: parent.zip(parent_key.map(SnapshotKey::new)),
            record,
        })
    })())
}

impl SnapshotRow {
    pub fn info(self) -> Info {
        let TreeRecord {
            tree,
            driver,
            kind,
            key,
            keep,
            labels,
            created_ns,
            updated_ns,
            usage,
            diff_id,
            tar_bytes,
            features,
            size_limit_bytes,
            ..
        } = self.record;
        Info {
            key,
            kind,
            parent: self.parent.map(|(_, key)| key),
            labels,
            created: time(created_ns),
            updated: time(updated_ns),
            keep,
            driver,
            tree,
            diff_id,
            tar_bytes,
            usage,
            features,
            size_limit_bytes,
        }
    }

    pub fn tree_ref(&self) -> TreeRef {
        TreeRef {
            id: self.record.tree.clone(),
            kind: self.record.kind,
            link: self.record.link.clone(),
            diff_id: self.record.diff_id,
            features: self.record.features,
        }
    }

    pub fn driver(&self) -> DriverKind {
        self.record.driver
    }
}

/// Finds a snapshot by key.
pub(crate) fn find(tx: &Transaction<'_>, key: &SnapshotKey) -> Result<Option<SnapshotRow>> {
    tx.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.key = ?1"))
        .db("look up a snapshot")?
        .query_row([key.as_bytes()], snapshot)
        .optional()
        .db("look up a snapshot")?
        .transpose()
}

/// Finds a snapshot by key, or fails with `NotFound`.
pub(crate) fn get(tx: &Transaction<'_>, key: &SnapshotKey) -> Result<SnapshotRow> {
    find(tx, key)?.ok_or_else(|| StoreError::not_found(Subject::Snapshot, key))
}

/// Finds a snapshot by row number.
pub(crate) fn by_id(tx: &Transaction<'_>, id: i64) -> Result<SnapshotRow> {
    tx.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.id = ?1"))
        .db("look up a snapshot")?
        .query_row([id], snapshot)
        .db("look up a snapshot")?
}

/// Finds a snapshot by row number, if it still exists.
pub(crate) fn find_id(tx: &Transaction<'_>, id: i64) -> Result<Option<SnapshotRow>> {
    tx.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.id = ?1"))
        .db("look up a snapshot")?
        .query_row([id], snapshot)
        .optional()
        .db("look up a snapshot")?
        .transpose()
}

/// Finds the snapshot that a tree belongs to.
pub(crate) fn by_tree(tx: &Transaction<'_>, tree: &TreeId) -> Result<Option<SnapshotRow>> {
    tx.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.tree = ?1"))
        .db("look up a tree")?
        .query_row([tree.as_str()], snapshot)
        .optional()
        .db("look up a tree")?
        .transpose()
}

/// Returns whether a snapshot has this tree.
pub(crate) fn has_tree(tx: &Transaction<'_>, tree: &TreeId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE tree = ?1)";
    exists(tx, sql, tree.as_str())
}

/// Finds the tree that a short name points to.
pub(crate) fn tree_of_link(tx: &Transaction<'_>, link: &LinkId) -> Result<Option<TreeId>> {
    let tree: Option<String> = tx
        .prepare_cached("SELECT tree FROM snapshots WHERE link = ?1")
        .db("look up a link")?
        .query_row([link.as_str()], |row| row.get(0))
        .optional()
        .db("look up a link")?;
    tree.map(TreeId::try_from).transpose()
}

/// Returns up to `limit` snapshots with keys above `after`, in key order.
pub(crate) fn page(
    tx: &Transaction<'_>,
    after: Option<&SnapshotKey>,
    limit: i64,
) -> Result<Vec<SnapshotRow>> {
    let sql =
        format!("SELECT {COLUMNS} {FROM} WHERE ?1 IS NULL OR s.key > ?1 ORDER BY s.key LIMIT ?2");
    let params = params![after.map(SnapshotKey::as_bytes), limit];
    let rows = list(tx, "list snapshots", &sql, params, snapshot)?;
    rows.into_iter().collect()
}

/// Counts the snapshots of one kind whose key begins with `prefix`, and what they take where that
/// is recorded.
pub(crate) fn total(
    tx: &Transaction<'_>,
    kind: SnapshotKind,
    prefix: &[u8],
) -> Result<(u64, Usage)> {
    tx.prepare_cached(
        "SELECT count(*), total(usage_bytes), total(usage_inodes) FROM snapshots \
         WHERE kind = ?1 AND substr(key, 1, length(?2)) = ?2",
    )
    .db("count snapshots")?
    .query_row(params![kind as i64, prefix], |row| {
        let usage = Usage {
            bytes: row.get::<_, f64>(1)? as u64,
            inodes: row.get::<_, f64>(2)? as u64,
        };
        Ok((row.get::<_, i64>(0)? as u64, usage))
    })
    .db("count snapshots")
}

/// Returns the layers whose parent is row `parent` (without a parent if `None`) and whose labels
/// contain `text` anywhere.
pub(crate) fn layers_with_text(
    tx: &Transaction<'_>,
    parent: Option<i64>,
    text: &str,
) -> Result<Vec<SnapshotRow>> {
    let sql = format!(
        "SELECT {COLUMNS} {FROM} WHERE s.parent IS ?1 AND s.kind = 3 AND instr(s.labels, ?2) > 0"
    );
    let rows = list(
        tx,
        "look for a layer",
        &sql,
        params![parent, text],
        snapshot,
    )?;
    rows.into_iter().collect()
}

/// Returns the ancestors of row `id`, nearest first: the one place that follows parents.
///
/// Errors: `BrokenParents` if they form a cycle, end at a missing snapshot, or are more than
/// [`MOST`].
pub(crate) fn ancestors(tx: &Transaction<'_>, id: i64) -> Result<Vec<TreeRef>> {
    let mut statement = tx
        .prepare_cached(
            "WITH RECURSIVE up (id, depth) AS ( \
                 SELECT parent, 1 FROM snapshots WHERE id = ?1 \
                 UNION ALL \
                 SELECT s.parent, depth + 1 FROM up JOIN snapshots s ON s.id = up.id WHERE depth <= ?2) \
             SELECT s.tree, s.kind, s.link, s.diff_id, s.features, up.id FROM up LEFT JOIN snapshots s ON s.id = up.id \
             WHERE up.id IS NOT NULL ORDER BY depth",
        )
        .db("follow parents")?;
    let rows = statement
        .query_map([id, MOST as i64], |row| {
            Ok((
                row.get::<_, Option<String>>(0)?,
                row.get::<_, Option<i64>>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, Option<String>>(3)?,
                row.get::<_, Option<String>>(4)?,
                row.get::<_, i64>(5)?,
            ))
        })
        .db("follow parents")?;
    let mut seen = HashSet::from([id]);
    rows.map(|row| {
        let (tree, kind, link, diff_id, features, at) = row.db("follow parents")?;
        let (true, Some(tree), Some(kind)) = (seen.insert(at), tree, kind) else {
            return Err(parents(tx)?.fault_of(id));
        };
        if seen.len() > MOST + 1 {
            return Err(parents(tx)?.fault_of(id));
        }
        Ok(TreeRef {
            id: TreeId::try_from(tree)?,
            kind: SnapshotKind::from_disk(kind)?,
            link: link.map(LinkId::try_from).transpose()?,
            diff_id: diff_id.as_deref().map(parse).transpose()?,
            features: features
                .as_deref()
                .map(|text| json("features", text))
                .transpose()?,
        })
    })
    .collect()
}

/// Counts the children of row `id` and names one.
pub(crate) fn children(tx: &Transaction<'_>, id: i64) -> Result<(u64, Option<SnapshotKey>)> {
    let (count, key): (i64, Option<Vec<u8>>) = tx
        .prepare_cached("SELECT count(*), min(key) FROM snapshots WHERE parent = ?1")
        .db("look for children")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .db("look for children")?;
    Ok((count as u64, key.map(SnapshotKey::new)))
}

/// Inserts a snapshot and returns its row number.
pub(crate) fn insert(
    tx: &Transaction<'_>,
    record: &TreeRecord,
    parent: Option<i64>,
) -> Result<i64> {
    tx.prepare_cached(
        "INSERT INTO snapshots (key, kind, parent, keep, driver, tree, link, labels, created_ns, updated_ns, \
         usage_bytes, usage_inodes, diff_id, tar_bytes, features, size_limit) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )
    .db("record a snapshot")?
    .execute(params![
        record.key.as_bytes(),
        record.kind as i64,
        parent,
        record.keep as i64,
        record.driver.as_str(),
        record.tree.as_str(),
        record.link.as_ref().map(LinkId::as_str),
        to_json(&record.labels)?,
        record.created_ns,
        record.updated_ns,
        record.usage.map(|usage| usage.bytes as i64),
        record.usage.map(|usage| usage.inodes as i64),
        record.diff_id.as_ref().map(Digest::to_string),
        record.tar_bytes.map(|n| n as i64),
        record.features.as_ref().map(to_json).transpose()?,
        record.size_limit_bytes.map(|n| n as i64),
    ])
    .db("record a snapshot")?;
    Ok(tx.last_insert_rowid())
}

/// Rewrites row `id` from `record`: everything that can change after creation.
pub(crate) fn update(
    tx: &Transaction<'_>,
    id: i64,
    record: &TreeRecord,
    parent: Option<i64>,
) -> Result<()> {
    tx.prepare_cached(
        "UPDATE snapshots SET key = ?2, kind = ?3, parent = ?4, keep = ?5, labels = ?6, created_ns = ?7, \
         updated_ns = ?8, usage_bytes = ?9, usage_inodes = ?10, diff_id = ?11, tar_bytes = ?12, features = ?13, \
         size_limit = ?14 WHERE id = ?1",
    )
    .db("update a snapshot")?
    .execute(params![
        id,
        record.key.as_bytes(),
        record.kind as i64,
        parent,
        record.keep as i64,
        to_json(&record.labels)?,
        record.created_ns,
        record.updated_ns,
        record.usage.map(|usage| usage.bytes as i64),
        record.usage.map(|usage| usage.inodes as i64),
        record.diff_id.as_ref().map(Digest::to_string),
        record.tar_bytes.map(|n| n as i64),
        record.features.as_ref().map(to_json).transpose()?,
        record.size_limit_bytes.map(|n| n as i64),
    ])
    .db("update a snapshot")?;
    Ok(())
}

/// Removes the record of a snapshot.
pub(crate) fn remove(tx: &Transaction<'_>, id: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM snapshots WHERE id = ?1")
        .db("remove")?
        .execute([id])
        .map(drop)
        .db("remove a snapshot")
}

/// Removes the records of snapshots in one statement, so that parents and children may come in any
/// order.
pub(crate) fn remove_all(tx: &Transaction<'_>, ids: &[i64]) -> Result<()> {
    tx.execute(
        "DELETE FROM snapshots WHERE id IN (SELECT value FROM json_each(?1))",
        [to_json(&ids)?],
    )
    .map(drop)
    .db("collect")
}

/// Returns the trees of all snapshots.
pub(crate) fn trees(tx: &Transaction<'_>) -> Result<Vec<TreeId>> {
    let sql = "SELECT tree FROM snapshots";
    let trees: Vec<String> = list(tx, "list trees", sql, [], |row| row.get(0))?;
    trees.into_iter().map(TreeId::try_from).collect()
}

/// Returns the parents of all snapshots, surveyed.
pub(crate) fn parents(tx: &Transaction<'_>) -> Result<Parents> {
    let sql = "SELECT id, parent, key FROM snapshots";
    let rows = list(tx, "read the parents", sql, [], |row| {
        let key: Vec<u8> = row.get(2)?;
        Ok((row.get(0)?, row.get(1)?, SnapshotKey::new(key)))
    })?;
    Ok(Parents::new(rows))
}

/// Returns the keys of the snapshots with a diff id, sorted.
pub(crate) fn with_diff_id(tx: &Transaction<'_>, diff_id: &Digest) -> Result<Vec<SnapshotKey>> {
    let sql = "SELECT key FROM snapshots WHERE diff_id = ?1 ORDER BY key";
    list(tx, "look up", sql, [diff_id.to_string()], |row| {
        row.get::<_, Vec<u8>>(0).map(SnapshotKey::new)
    })
}

/// Counts the snapshots of each driver that has any, sorted by the driver's name.
pub(crate) fn by_driver(tx: &Transaction<'_>) -> Result<Vec<(DriverKind, u64)>> {
    let sql = "SELECT driver, count(*) FROM snapshots GROUP BY driver ORDER BY driver";
    let found: Vec<(String, i64)> = list(tx, "count snapshots", sql, [], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    let read = |(driver, count): (String, i64)| Ok((driver.parse()?, count as u64));
    found.into_iter().map(read).collect()
}

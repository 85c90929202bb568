//! What is alive: what holds which snapshot, blob and recipe.
//!
//! One query says it ([`HOLDERS`]), and everything asks that: the collector removes what has no
//! holder, `why` names the holders, `df` counts what has none. A snapshot is held by the holders of
//! itself and of all its descendants; a recipe by the holders of any snapshot of its diff id, and
//! of the digest itself.
//!
//! The database can't say which leases still hold something, since many live as long as their
//! process: [`Alive::now`] looks once, and its answers are as of that moment.

use rusqlite::{Params, Row, Transaction, params};
use vellum_format::Digest;

use super::{leases, parse};
use crate::{
    error::{DbContext, Result},
    snapshot::SnapshotKey,
};

/// What holds what, as of one moment.
pub(crate) struct Alive {
    /// Leases whose process is gone or that have expired, with their purpose.
    pub over: Vec<(String, String)>,
    /// Their ids as JSON, for the statements.
    over_json: String,
}

/// Something that can be held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Holdable<'a> {
    /// A snapshot, by row number.
    Snapshot(i64),
    Blob(&'a Digest),
    /// A recipe, by diff id.
    Recipe(&'a Digest),
}

/// What holds something. Sorted by type, then containers by name and all others by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Container {
        id: String,
        name: String,
    },
    Image(Digest),
    Lease {
        id: String,
        purpose: String,
    },
    /// A snapshot that only an explicit removal ends.
    Kept(SnapshotKey),
}

/// `holds` has a row for each holder of a snapshot, `holds_digest` for each holder of a blob or
/// recipe; `live` are the snapshots that have a holder, directly or through their descendants.
/// `?1`: the leases that have ended.
const HOLDERS: &str = "WITH RECURSIVE \
     alive (id, purpose) AS ( \
         SELECT id, purpose FROM leases WHERE id NOT IN (SELECT value FROM json_each(?1))), \
     holds (kind, id, name, snapshot) AS ( \
         SELECT 1, id, name, snapshot FROM containers \
         UNION ALL SELECT 2, image, NULL, snapshot FROM image_layers \
         UNION ALL SELECT 3, id, purpose, snapshot FROM lease_snapshots JOIN alive ON id = lease \
         UNION ALL SELECT 4, key, NULL, id FROM snapshots WHERE keep = 1), \
     holds_digest (kind, id, name, digest) AS ( \
         SELECT 2, id, NULL, id FROM images \
         UNION ALL SELECT 2, id, NULL, manifest FROM images \
         UNION ALL SELECT 2, image, NULL, blob FROM image_layers WHERE blob IS NOT NULL \
         UNION ALL SELECT 3, id, purpose, digest FROM lease_digests JOIN alive ON id = lease), \
     live (id) AS ( \
         SELECT snapshot FROM holds \
         UNION SELECT s.parent FROM live JOIN snapshots s ON s.id = live.id \
             WHERE s.parent IS NOT NULL)";

/// The order of [`Holder`]s.
const ORDER: &str = "ORDER BY kind, CASE kind WHEN 1 THEN name ELSE id END";

impl Alive {
    /// Finds the leases that have ended.
    pub fn now(tx: &Transaction<'_>) -> Result<Self> {
        let over = leases::over(tx)?;
        let ids: Vec<&str> = over.iter().map(|(id, _)| id.as_str()).collect();
        Ok(Self {
            over_json: super::to_json(&ids)?,
            over,
        })
    }

    /// Looks at these leases, too, as if they had ended: ids and purposes.
    pub fn end(&mut self, leases: &[(String, String)]) -> Result<()> {
        self.over.extend_from_slice(leases);
        let ids: Vec<&str> = self.over.iter().map(|(id, _)| id.as_str()).collect();
        self.over_json = super::to_json(&ids)?;
        Ok(())
    }

    /// Returns the row numbers of all snapshots that nothing holds, newest first.
    pub fn unheld_snapshots(&self, tx: &Transaction<'_>) -> Result<Vec<i64>> {
        let rest = "SELECT id FROM snapshots WHERE id NOT IN live ORDER BY id DESC";
        self.list(tx, rest, params![self.over_json], |row| row.get(0))
    }

    /// Returns the keys of all snapshots that something holds.
    pub fn held_keys(&self, tx: &Transaction<'_>) -> Result<Vec<SnapshotKey>> {
        let rest = "SELECT key FROM snapshots WHERE id IN live";
        self.list(tx, rest, params![self.over_json], |row| {
            row.get::<_, Vec<u8>>(0).map(SnapshotKey::new)
        })
    }

    /// Returns the blobs that nothing holds, with their lengths.
    pub fn unheld_blobs(&self, tx: &Transaction<'_>) -> Result<Vec<(Digest, u64)>> {
        self.digests(
            tx,
            "SELECT digest, size FROM blobs WHERE digest NOT IN (SELECT digest FROM holds_digest)",
        )
    }

    /// Returns the recipes that nothing holds, by diff id, with their lengths.
    pub fn unheld_recipes(&self, tx: &Transaction<'_>) -> Result<Vec<(Digest, u64)>> {
        self.digests(
            tx,
            "SELECT diff_id, size FROM recipes WHERE diff_id NOT IN ( \
             SELECT digest FROM holds_digest \
             UNION SELECT diff_id FROM snapshots WHERE id IN live AND diff_id IS NOT NULL)",
        )
    }

    /// Returns everything that holds a thing; if nothing does, the next gc removes it.
    pub fn holders(&self, tx: &Transaction<'_>, thing: Holdable<'_>) -> Result<Vec<Holder>> {
        const ABOVE: &str = "UNION SELECT s.id FROM above JOIN snapshots s ON s.parent = above.id)";
        const HOLD_ABOVE: &str = "SELECT kind, id, name FROM holds WHERE snapshot IN above";
        const HOLD_DIGEST: &str = "SELECT kind, id, name FROM holds_digest WHERE digest = ?2";
        let over = &self.over_json;
        // The descendants of a thing, which hold it, start with its own snapshots.
        let found = match thing {
            Holdable::Snapshot(id) => self.list(
                tx,
                &format!(
                    ", above (id) AS (SELECT ?2 {ABOVE} \
                     SELECT DISTINCT * FROM ({HOLD_ABOVE}) {ORDER}"
                ),
                params![over, id],
                holder,
            )?,
            Holdable::Blob(digest) => self.list(
                tx,
                &format!("SELECT DISTINCT * FROM ({HOLD_DIGEST}) {ORDER}"),
                params![over, digest.to_string()],
                holder,
            )?,
            Holdable::Recipe(diff_id) => self.list(
                tx,
                &format!(
                    ", above (id) AS (SELECT id FROM snapshots WHERE diff_id = ?2 {ABOVE} \
                     SELECT * FROM ({HOLD_ABOVE} UNION {HOLD_DIGEST}) {ORDER}"
                ),
                params![over, diff_id.to_string()],
                holder,
            )?,
        };
        found.into_iter().collect()
    }

    fn digests(&self, tx: &Transaction<'_>, rest: &str) -> Result<Vec<(Digest, u64)>> {
        let found = self.list(tx, rest, params![self.over_json], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        let read = |(digest, size): (String, i64)| Ok((parse(&digest)?, size as u64));
        found.into_iter().map(read).collect()
    }

    fn list<T>(
        &self,
        tx: &Transaction<'_>,
        rest: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        const OP: &str = "look up what is held";
        let mut statement = tx.prepare_cached(&format!("{HOLDERS} {rest}")).db(OP)?;
        let rows = statement.query_map(params, read).db(OP)?;
        rows.map(|row| row.db(OP)).collect()
    }
}

fn holder(row: &Row<'_>) -> rusqlite::Result<Result<Holder>> {
    Ok(Ok(match row.get(0)? {
        1 => Holder::Container {
            id: row.get(1)?,
            name: row.get(2)?,
        },
        2 => {
            let id: String = row.get(1)?;
            return Ok(parse(&id).map(Holder::Image));
        }
        3 => Holder::Lease {
            id: row.get(1)?,
            purpose: row.get(2)?,
        },
        _ => Holder::Kept(SnapshotKey::new(row.get::<_, Vec<u8>>(1)?)),
    }))
}

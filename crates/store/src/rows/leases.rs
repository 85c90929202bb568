//! Tables `leases`, `lease_snapshots` and `lease_digests`.

use rusqlite::{Transaction, params};
use vellum_format::Digest;

use super::{exists, list, now_ns};
use crate::{
    error::{DbContext, Result},
    process::Process,
};

/// A recorded lease.
pub(crate) struct LeaseRow {
    pub id: String,
    pub purpose: String,
    pub expires_ns: Option<i64>,
    pub process: Option<Process>,
}

/// Returns all leases, sorted by id.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<LeaseRow>> {
    let sql = "SELECT id, purpose, expires_ns, pid, pid_start, boot_id FROM leases ORDER BY id";
    list(tx, "list leases", sql, [], |row| {
        let (pid, start, boot): (Option<i64>, Option<i64>, Option<String>) =
            (row.get(3)?, row.get(4)?, row.get(5)?);
        Ok(LeaseRow {
            id: row.get(0)?,
            purpose: row.get(1)?,
            expires_ns: row.get(2)?,
            process: match (pid, start, boot) {
                (Some(pid), Some(start), Some(boot)) => Some(Process { pid, start, boot }),
                _ => None,
            },
        })
    })
}

/// Returns the leases whose process is gone or that have expired: id and purpose.
pub(crate) fn over(tx: &Transaction<'_>) -> Result<Vec<(String, String)>> {
    let now = now_ns();
    let lives = |lease: &LeaseRow| match (lease.expires_ns, &lease.process) {
        (Some(expires), _) => now < expires,
        (None, Some(process)) => process.lives(),
        (None, None) => false,
    };
    let all = all(tx)?.into_iter();
    Ok(all
        .filter(|lease| !lives(lease))
        .map(|lease| (lease.id, lease.purpose))
        .collect())
}

/// Returns whether there is such a lease.
pub(crate) fn has(tx: &Transaction<'_>, id: &str) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM leases WHERE id = ?1)";
    exists(tx, sql, id)
}

/// Records a lease.
pub(crate) fn insert(tx: &Transaction<'_>, lease: &LeaseRow) -> Result<()> {
    let process = lease.process.as_ref();
    tx.execute(
        "INSERT INTO leases (id, purpose, created_ns, expires_ns, pid, pid_start, boot_id) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            lease.id,
            lease.purpose,
            now_ns(),
            lease.expires_ns,
            process.map(|process| process.pid),
            process.map(|process| process.start),
            process.map(|process| &process.boot),
        ],
    )
    .map(drop)
    .db("begin a lease")
}

/// Removes a lease and all that it holds, if it exists.
pub(crate) fn remove(tx: &Transaction<'_>, id: &str) -> Result<()> {
    tx.execute("DELETE FROM leases WHERE id = ?1", [id])
        .map(drop)
        .db("end a lease")
}

/// Makes a lease hold a snapshot, by row number.
pub(crate) fn hold_snapshot(tx: &Transaction<'_>, id: &str, snapshot: i64) -> Result<()> {
    tx.execute(
        "INSERT OR IGNORE INTO lease_snapshots (lease, snapshot) VALUES (?1, ?2)",
        params![id, snapshot],
    )
    .map(drop)
    .db("hold a snapshot")
}

/// Makes a lease hold a blob or recipe, which need not exist.
pub(crate) fn hold_digest(tx: &Transaction<'_>, id: &str, digest: &Digest) -> Result<()> {
    tx.execute(
        "INSERT OR IGNORE INTO lease_digests (lease, digest) VALUES (?1, ?2)",
        params![id, digest.to_string()],
    )
    .map(drop)
    .db("hold a digest")
}

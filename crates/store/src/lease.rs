//! Leases: what keeps things from gc while a process is still putting them together.
//!
//! A lease lives as long as its process (identified by pid, start time and boot, so that a reused
//! pid keeps nothing), or until a time. It holds snapshots with all their ancestors, blobs and
//! recipes.

use std::fmt;

use rusqlite::Transaction;
use vellum_format::Digest;
use vellum_sys::random;

use crate::{
    error::{Result, StoreError, Subject},
    process::Process,
    rows::{self, leases::LeaseRow},
    snapshot::SnapshotKey,
    store::Store,
};

/// The name of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub(crate) String);

impl LeaseId {
    /// Names a lease created elsewhere.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Returns a name that no lease has.
    pub fn unused() -> Self {
        Self(random::hex(24))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long a lease lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// As long as this process.
    Process,
    /// Until this moment.
    Until(jiff::Timestamp),
    /// Until it is ended by name.
    Forever,
}

/// What a lease can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseResource {
    /// A snapshot and all its ancestors.
    Snapshot(SnapshotKey),
    /// A blob.
    Blob(Digest),
    /// The recipe of a layer.
    Recipe(Digest),
}

/// A lease of this process, ended when dropped.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    id: LeaseId,
}

impl Lease {
    /// Returns its name, for [`crate::PrepareOptions::lease`] and the like.
    pub fn id(&self) -> &LeaseId {
        &self.id
    }

    /// Holds `held` from now on, and returns whether it exists: if so, it will not be removed.
    /// Durable on return.
    pub fn hold(&self, held: &LeaseResource) -> Result<bool> {
        self.store.hold(&self.id, held)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If the database can't be written now, the lease ends with the process.
        if let Err(error) = self.store.end_lease(&self.id) {
            tracing::debug!(%error, lease = %self.id, "lease left to end with the process");
        }
    }
}

impl Store {
    /// Begins a lease that lives as long as this process and the returned value. `purpose` is shown
    /// to people.
    pub fn lease(&self, purpose: &str) -> Result<Lease> {
        let id = self.begin_lease(purpose, Life::Process)?;
        Ok(Lease {
            store: self.clone(),
            id,
        })
    }

    /// Begins a lease with any lifetime. Durable on return.
    pub fn begin_lease(&self, purpose: &str, life: Life) -> Result<LeaseId> {
        let id = LeaseId::unused();
        self.begin_lease_as(&id, purpose, life)?;
        Ok(id)
    }

    /// Like [`Store::begin_lease`], under a name that the caller has noted before, so that a crash
    /// in between leaves no unknown lease.
    pub fn begin_lease_as(&self, id: &LeaseId, purpose: &str, life: Life) -> Result<()> {
        let (expires, process) = match life {
            Life::Process => (None, Some(Process::this()?)),
            Life::Until(when) => (
                Some(i64::try_from(when.as_nanosecond()).unwrap_or(i64::MAX)),
                None,
            ),
            Life::Forever => (Some(i64::MAX), None),
        };
        self.write(|tx| insert(tx, id, purpose, expires, process.as_ref()))
    }

    /// Ends a lease; a missing one is not an error. Durable on return.
    pub fn end_lease(&self, id: &LeaseId) -> Result<()> {
        self.write(|tx| end(tx, id))
    }

    /// Holds `held` under `lease`, and returns whether it exists. Errors: `NotFound` (lease).
    pub fn hold(&self, lease: &LeaseId, held: &LeaseResource) -> Result<bool> {
        self.write(|tx| {
            exists(tx, lease)?;
            match held {
                LeaseResource::Snapshot(key) => match rows::snapshots::find(tx, key)? {
                    None => Ok(false),
                    Some(row) => hold_snapshot(tx, lease, row.id).map(|()| true),
                },
                // What is missing is held all the same: it may be about to arrive.
                LeaseResource::Blob(digest) => {
                    hold_digest(tx, lease, digest)?;
                    rows::blobs::has(tx, digest)
                }
                LeaseResource::Recipe(diff_id) => {
                    hold_digest(tx, lease, diff_id)?;
                    rows::recipes::has(tx, diff_id)
                }
            }
        })
    }
}

/// Records a lease that ends at a time, or with a process.
pub(crate) fn insert(
    tx: &Transaction<'_>,
    id: &LeaseId,
    purpose: &str,
    expires_ns: Option<i64>,
    process: Option<&Process>,
) -> Result<()> {
    let lease = LeaseRow {
        id: id.0.clone(),
        purpose: purpose.to_owned(),
        expires_ns,
        process: process.cloned(),
    };
    rows::leases::insert(tx, &lease)
}

fn exists(tx: &Transaction<'_>, lease: &LeaseId) -> Result<()> {
    match rows::leases::has(tx, &lease.0)? {
        true => Ok(()),
        false => Err(StoreError::not_found(Subject::Lease, lease)),
    }
}

pub(crate) fn end(tx: &Transaction<'_>, id: &LeaseId) -> Result<()> {
    rows::leases::remove(tx, &id.0)
}

pub(crate) fn hold_snapshot(tx: &Transaction<'_>, lease: &LeaseId, id: i64) -> Result<()> {
    exists(tx, lease)?;
    rows::leases::hold_snapshot(tx, &lease.0, id)
}

/// Holds a blob or recipe, which need not exist.
pub(crate) fn hold_digest(tx: &Transaction<'_>, lease: &LeaseId, digest: &Digest) -> Result<()> {
    exists(tx, lease)?;
    rows::leases::hold_digest(tx, &lease.0, digest)
}

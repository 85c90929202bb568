//! What can go wrong in the store, in the store's own terms.
//!
//! One enum for the whole crate. Front ends translate it exhaustively in one place of theirs;
//! [`StoreError::class`] gives them the coarse class, so that a new variant gets a sensible
//! default. Each text says what was asked and what prevented it; it never repeats its source, which
//! `std::error::Error::source` gives.

use std::{fmt, io, path::PathBuf};

use vellum_format::Digest;

use crate::{snapshot::SnapshotKey, snapshot::SnapshotKind};

/// The result of nearly every function here.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What type of record an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A snapshot: a layer, a container's writable tree or a view.
    Snapshot,
    /// An image record.
    Image,
    /// A name of an image.
    Tag,
    /// A container record.
    Container,
    /// A named volume.
    Volume,
    /// A lease.
    Lease,
    /// A blob under `content/`.
    Blob,
    /// A recipe under `recipes/`.
    Recipe,
    /// A path in the store.
    Path,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "snapshot",
            Self::Image => "image",
            Self::Tag => "tag",
            Self::Container => "container",
            Self::Volume => "volume",
            Self::Lease => "lease",
            Self::Blob => "blob",
            Self::Recipe => "recipe",
            Self::Path => "path",
        })
    }
}

/// The coarse class of an error: what a status or exit code is chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// It doesn't exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// It exists, but not in the state that the call needs.
    FailedPrecondition,
    /// The request itself makes no sense.
    InvalidArgument,
    /// This machine or file system can't do it.
    Unsupported,
    /// Another process is using it; trying again may help.
    Busy,
    /// The disk, the inodes or the quota are used up.
    NoSpace,
    /// What is on disk contradicts the record.
    Damaged,
    /// Anything else, from the operating system or the database.
    Internal,
}

/// Every way a call into the store fails.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No record of that name.
    #[error("{subject} {name} does not exist")]
    NotFound {
        /// What was looked for.
        subject: Subject,
        /// Its name, made printable.
        name: String,
    },
    /// The name is taken.
    #[error("{subject} {name} already exists")]
    AlreadyExists {
        /// What it is.
        subject: Subject,
        /// Its name, made printable.
        name: String,
    },
    /// The parent given for a new snapshot is not a committed layer.
    #[error("parent {parent} is {kind}, and only a committed snapshot can be a parent")]
    ParentNotCommitted {
        /// The parent asked for.
        parent: SnapshotKey,
        /// What it is.
        kind: SnapshotKind,
        /// True if the call was a commit: containerd answers the two cases differently.
        committing: bool,
    },
    /// Only an active snapshot can be committed.
    #[error("snapshot {key} is {kind}, not active")]
    NotActive {
        /// The snapshot.
        key: SnapshotKey,
        /// What it is.
        kind: SnapshotKind,
    },
    /// A committed snapshot is a layer: it is mounted through a view, not by itself.
    #[error("snapshot {key} is committed and has no mounts of its own")]
    Committed {
        /// The snapshot.
        key: SnapshotKey,
    },
    /// The snapshot can't be removed while it has children.
    #[error("cannot remove snapshot {key}: it is the parent of {child} (children: {children})")]
    HasChildren {
        /// The snapshot.
        key: SnapshotKey,
        /// How many children it has.
        children: u64,
        /// One of them.
        child: SnapshotKey,
    },
    /// The commit named another parent than the one the snapshot was prepared on.
    #[error("the parent of snapshot {key} is {has}, not {asked}")]
    ParentMismatch {
        /// The snapshot.
        key: SnapshotKey,
        /// Its parent.
        has: SnapshotKey,
        /// What the caller said.
        asked: SnapshotKey,
    },
    /// A record is still referred to.
    #[error("{subject} {name} is in use by {by}")]
    InUse {
        /// What should have been removed.
        subject: Subject,
        /// Its name.
        name: String,
        /// What uses it.
        by: String,
    },
    /// A request that makes no sense; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// A filter that can't be parsed.
    #[error("filter {filter:?}: {why}")]
    BadFilter {
        /// The whole filter.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// The bytes written are not those announced.
    #[error("{what}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was being written.
        what: String,
        /// What the caller expected.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// The store was written by a newer Vellum.
    #[error(
        "the store {path} has schema {found}, made by a newer vellum; this one knows up to {known}. \
         Use the newer vellum, or another store"
    )]
    NewerStore {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest this program knows.
        known: i64,
    },
    /// A file of that name exists, but it isn't a store's.
    #[error("{path} is not a vellum store: {why}")]
    NotAStore {
        /// The file or directory.
        path: PathBuf,
        /// How that was detected.
        why: String,
    },
    /// There is no driver of that name.
    #[error("unknown storage driver {name:?}; known drivers: {known}")]
    UnknownDriver {
        /// The name.
        name: String,
        /// The names of all drivers.
        known: String,
    },
    /// The file system or the driver can't do it.
    #[error("{what}: {why}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// Why not, and what to do.
        why: String,
    },
    /// Another process held a lock on the database or on record files for longer than a call waits.
    #[error("the store {path} stayed locked by another process for {waited_ms} ms")]
    Busy {
        /// What is locked: the database, a record file or the directory that holds them.
        path: PathBuf,
        /// How long the call waited, in milliseconds.
        waited_ms: u64,
    },
    /// What is on disk contradicts the record.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// The thing.
        what: String,
        /// What is wrong, and the way back.
        why: String,
    },
    /// The parents of a snapshot can't be determined: the database is damaged.
    #[error("the parents of snapshot {key} can't be determined: {why}")]
    BrokenParents {
        /// The snapshot.
        key: SnapshotKey,
        /// A cycle, with its members; a missing snapshot; or too many parents.
        why: String,
    },
    /// Something else is in the place of one of the store's own directories: what is deleted or
    /// created there would not be the store's.
    #[error("{path} is not the store's own directory: {why}", path = path.display())]
    Diverted {
        /// The directory.
        path: PathBuf,
        /// What is there.
        why: String,
    },
    /// The store has been used, and its database is gone or empty.
    #[error("{path} is {state}, but {evidence}", path = path.display())]
    NoDatabase {
        /// Where it was, or is.
        path: PathBuf,
        /// What happened to it: missing or empty.
        state: &'static str,
        /// What shows that the store was used.
        evidence: &'static str,
    },
    /// The database is older than what is next to it, or is another store's: nothing may be
    /// changed.
    #[error("{path} has gone back in time, so nothing in the store is changed: {why}", path = path.display())]
    RolledBack {
        /// The database.
        path: PathBuf,
        /// What proves it.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot {op} {path}", path = path.display())]
    Io {
        /// What was attempted: a verb.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A system call on a tree failed; the text names it and the path.
    #[error(transparent)]
    Sys(#[from] vellum_sys::Error),
    /// The last write of a transaction failed, and whether the transaction counts is not known yet.
    ///
    /// Nothing was undone: the next successful command on the store settles it, and gc removes what
    /// is left over.
    #[error(
        "database: the disk failed while a change was committed; the next command finds out whether it counts"
    )]
    Uncertain {
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The database refused.
    #[error("database: cannot {op}")]
    Database {
        /// What was attempted.
        op: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

impl StoreError {
    /// Returns the coarse class, from which front ends choose their codes.
    pub fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
            Self::AlreadyExists { .. } => Class::AlreadyExists,
            Self::ParentNotCommitted {
                committing: false, ..
            }
            | Self::ParentMismatch { .. }
            | Self::Invalid(_)
            | Self::BadFilter { .. }
            | Self::UnknownDriver { .. } => Class::InvalidArgument,
            Self::ParentNotCommitted {
                committing: true, ..
            }
            | Self::NotActive { .. }
            | Self::Committed { .. }
            | Self::HasChildren { .. }
            | Self::InUse { .. } => Class::FailedPrecondition,
            Self::NewerStore { .. } | Self::NotAStore { .. } | Self::Unsupported { .. } => {
                Class::Unsupported
            }
            Self::Busy { .. } => Class::Busy,
            Self::Damaged { .. }
            | Self::BrokenParents { .. }
            | Self::Diverted { .. }
            | Self::DigestMismatch { .. }
            | Self::NoDatabase { .. }
            | Self::RolledBack { .. } => Class::Damaged,
            Self::Io { source, .. } => class_of(source),
            Self::Sys(error) => class_of(&error.source),
            Self::Database { source, .. } | Self::Uncertain { source } => {
                match source.sqlite_error_code() {
                    Some(rusqlite::ErrorCode::DiskFull) => Class::NoSpace,
                    Some(
                        rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked,
                    ) => Class::Busy,
                    Some(
                        rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase,
                    ) => Class::Damaged,
                    _ => Class::Internal,
                }
            }
        }
    }

    /// True if the database itself can't be read, whatever the state of the trees.
    pub fn lost_its_database(&self) -> bool {
        match self {
            Self::NoDatabase { .. } | Self::RolledBack { .. } | Self::BrokenParents { .. } => true,
            Self::Database { .. } => self.class() == Class::Damaged,
            _ => false,
        }
    }

    /// True if the file system is mounted read-only, or became read-only after an error.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::ReadOnlyFilesystem,
            Self::Sys(error) => error.source.kind() == io::ErrorKind::ReadOnlyFilesystem,
            Self::Database { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::ReadOnly)
            }
            _ => false,
        }
    }

    /// True if the store can be read but not changed: its file system is read-only or full, or its
    /// database has gone back in time.
    pub fn leaves_only_reading(&self) -> bool {
        self.is_read_only()
            || self.class() == Class::NoSpace
            || matches!(self, Self::RolledBack { .. })
    }

    pub(crate) fn not_found(subject: Subject, name: impl fmt::Display) -> Self {
        Self::NotFound {
            subject,
            name: name.to_string(),
        }
    }

    pub(crate) fn exists(subject: Subject, name: impl fmt::Display) -> Self {
        Self::AlreadyExists {
            subject,
            name: name.to_string(),
        }
    }
}

fn class_of(source: &io::Error) -> Class {
    match source
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Class::NoSpace,
        Some(rustix::io::Errno::BUSY) => Class::Busy,
        _ => Class::Internal,
    }
}

/// Attaches a verb and a path to a system error.
pub(crate) trait IoContext<T> {
    fn on(self, op: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn on(self, op: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|e| StoreError::Io {
            op,
            path: path.into(),
            source: e.into(),
        })
    }
}

/// Attaches a verb to a database error.
pub(crate) trait DbContext<T> {
    fn db(self, op: &'static str) -> Result<T>;
}

impl<T> DbContext<T> for rusqlite::Result<T> {
    fn db(self, op: &'static str) -> Result<T> {
        self.map_err(|source| StoreError::Database { op, source })
    }
}

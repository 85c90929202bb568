//! What keeps the database working on a full disk.
//!
//! The journal is grown to hold every page of the database before a transaction needs it, so one
//! that only removes rows overwrites blocks that are there. Where overwriting copies (btrfs),
//! database and journal are marked no-copy-on-write. `store.rs` frees space when there is none,
//! from the reserve.

use std::{
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use vellum_sys::probe;

use super::Database;
use crate::{
    error::{DbContext, IoContext, Result, StoreError},
    layout,
};

/// The minimum size of the journal. Enough for any removal from a small store.
const JOURNAL_BYTES: u64 = 1 << 20;

impl Database {
    /// Says what the obstacle was if SQLite only knows that it could not write: a quota (EDQUOT) is
    /// an I/O error to it.
    pub(super) fn without_room(&self, error: StoreError) -> StoreError {
        let StoreError::Database {
            source: rusqlite::Error::SqliteFailure(code, _),
            ..
        } = &error
        else {
            return error;
        };
        if code.code != rusqlite::ErrorCode::SystemIoFailure {
            return error;
        }
        let dir = self.path.parent().unwrap_or(&self.path);
        match try_room(dir) {
            Err(source) if lacks_room(&source) => StoreError::Io {
                op: "write to",
                path: self.path.clone(),
                source,
            },
            // There is space, or this error says no more than SQLite's.
            _ => error,
        }
    }

    /// Grows the journal to hold every page of the database, so that no later removal needs space
    /// for it.
    ///
    /// Without space the journal stays as it is. The next command tries again, and a removal that
    /// lacks space spends the reserve.
    pub(super) fn grow_journal(&self, connection: &Connection) {
        let grown = (|| -> Result<()> {
            let journal = journal_of(&self.path);
            let database = fs::metadata(&self.path).on("stat", &self.path)?.len();
            let has = fs::symlink_metadata(&journal).map_or(0, |facts| facts.len());
            // A record of the journal is a page and eight bytes.
            let needs = (database + database / 256)
                .next_power_of_two()
                .max(JOURNAL_BYTES);
            if has >= needs {
                return Ok(());
            }
            // With this lock no other process writes to the journal, and what follows its records
            // is never read.
            let tx = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
                .db("lock the database")?;
            if has == 0 && !layout::exists(&journal)? {
                // Another program has written, and it deletes its journals.
                create_without_copies(&journal)?;
            }
            append_zeros(&journal, needs)?;
            tx.finish().db("unlock the database")
        })();
        if let Err(error) = grown {
            tracing::debug!(
                error = vellum_sys::with_causes(&error),
                "cannot grow the database's journal in advance"
            );
        }
    }
}

/// Returns whether overwriting allocates new blocks, so that a full disk has no space for it.
pub(super) fn copies_on_write(path: &Path) -> Result<bool> {
    Ok(probe::fs_name_of(path)? == "btrfs")
}

/// Writes a block to an unnamed file. Errors: what the file system says.
fn try_room(dir: &Path) -> std::io::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(dir)?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()
}

fn lacks_room(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Returns where SQLite keeps the journal of the database at `path`.
pub(crate) fn journal_of(path: &Path) -> PathBuf {
    suffixed(path, "-journal")
}

/// Returns the path of one of the files that accompany a database.
pub(crate) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut companion = path.as_os_str().to_owned();
    companion.push(suffix);
    companion.into()
}

/// Creates an empty file, 0600, that is overwritten in place even on a copy-on-write file system.
pub(crate) fn create_without_copies(path: &Path) -> Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .on("create", path)?;
    write_without_copies(&file);
    Ok(())
}

/// Marks an empty file to be overwritten in place even on a copy-on-write file system. Other file
/// systems have no such flag.
pub(crate) fn write_without_copies(file: &fs::File) {
    if let Ok(flags) = vellum_sys::flags::get(file)
        && let Err(error) = vellum_sys::flags::set(file, flags | vellum_sys::flags::NO_COPY)
    {
        tracing::debug!(%error, "this file system has no such flag");
    }
}

/// Appends zeros to a file until it has `length_bytes`, and syncs it: its blocks are then
/// allocated, not only promised.
fn append_zeros(path: &Path, length_bytes: u64) -> Result<()> {
    static CHUNK: [u8; 1 << 16] = [0; 1 << 16];
    let file = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .on("open", path)?;
    let begin = file.metadata().on("stat", path)?.len();
    let grow = || -> std::io::Result<()> {
        let mut at = begin;
        while at < length_bytes {
            let n = (length_bytes - at).min(CHUNK.len() as u64);
            file.write_all_at(&CHUNK[..n as usize], at)?;
            at += n;
        }
        file.sync_all()
    };
    let grown = grow();
    if grown.is_err()
        && let Err(error) = file.set_len(begin)
    {
        // It should have been given back: on a full disk every block may be the one that something
        // else needs.
        tracing::debug!(%error, "the journal keeps the blocks it got");
    }
    grown.on("grow", path)
}

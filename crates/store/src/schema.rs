//! The database: how it is opened, what is in it, how it grows.
//!
//! SQLite in WAL mode with `synchronous=FULL`: a committed transaction survives power loss, readers never wait for the
//! writer. The file carries an `application_id` (so that nobody takes another program's database for a store) and a
//! `user_version`, the schema: older ones are migrated step by step inside one transaction, newer ones are refused by
//! name. Every writer begins IMMEDIATE, because a transaction that reads first and then wants to write can't wait its turn.
//! Nothing but SQLite ever opens `vellum.db`: closing any other descriptor on it would drop SQLite's locks. On a network
//! file system, where WAL's shared memory can't work, the rollback journal is used.

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, config::DbConfig};
use vellum_sys::probe;

use crate::{
    error::{DbContext, IoContext, Result, StoreError},
    layout::Layout,
    turn,
};

/// Bytes 68..72 of the database: "VLM1". Changing it makes every existing store a stranger.
pub(crate) const APPLICATION_ID: i64 = 0x564c_4d31;

/// What each version added. A step, once released, is never edited: stores out there have run it.
const MIGRATIONS: &[&str] = &[include_str!("schema/1.sql"), include_str!("schema/2.sql")];

/// The schema that this program writes.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Pages in the WAL before it is folded back: small, since every process that opens the store reads it once.
const CHECKPOINT_PAGES: i64 = 256;

/// The store's connections: one per caller at a time, kept for the next.
pub(crate) struct Database {
    path: std::path::PathBuf,
    busy_timeout_ms: u64,
    rollback_journal: bool,
    idle: Mutex<Vec<Connection>>,
    /// Writers of this process queue here instead of polling SQLite's lock.
    writer: Mutex<()>,
}

pub(crate) fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a list of connections or nothing at all behind: both are whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many times longer than for a transaction one waits for another process that makes or migrates the database.
const OTHERS_MIGRATE: u32 = 10;

impl Database {
    /// How long a call waits for other processes.
    pub fn patience(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.busy_timeout_ms)
    }

    /// Opens the database of `layout`, making or migrating it if need be.
    ///
    /// Errors: `NotAStore`, `NewerStore`, `Busy`, `NotFound` as an `Io` if `create` is false and there is none.
    pub fn open(layout: &Layout, create: bool, busy_timeout_ms: u64) -> Result<Self> {
        let path = layout.database();
        let database = Self {
            rollback_journal: is_network(layout.root()),
            path,
            busy_timeout_ms,
            idle: Mutex::default(),
            writer: Mutex::default(),
        };
        if !database.path.exists() && !create {
            return Err(std::io::Error::from(std::io::ErrorKind::NotFound))
                .on("open the store", layout.root());
        }
        if database.path.exists() {
            let connection = database.connect()?;
            if database.version(&connection)? == VERSION {
                database.give_back(connection);
                return Ok(database);
            }
        }
        // Making or migrating: one process at a time, on the root directory's own lock.
        let root = fs::File::open(layout.root()).on("open", layout.root())?;
        let again = root.try_clone().on("open", layout.root())?;
        let _only_one = turn::wait(again, layout.root(), database.patience() * OTHERS_MIGRATE)?;
        if !database.path.exists() {
            layout.create()?;
            let mut options = fs::OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
            // Closed at once, before SQLite has any lock on it.
            drop(options.open(&database.path).on("create", &database.path)?);
            root.sync_all().on("sync", layout.root())?;
        }
        let mut connection = database.connect()?;
        database.migrate(&mut connection)?;
        database.give_back(connection);
        Ok(database)
    }

    fn connect(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&self.path, flags).map_err(|e| self.explain(e))?;
        connection
            .busy_timeout(std::time::Duration::from_millis(self.busy_timeout_ms))
            .map_err(|e| self.explain(e))?;
        connection.set_prepared_statement_cache_capacity(64);
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(|e| self.explain(e))?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(|e| self.explain(e))?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(|e| self.explain(e))?;
        connection
            .pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
            .map_err(|e| self.explain(e))?;
        Ok(connection)
    }

    fn version(&self, connection: &Connection) -> Result<i64> {
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let application = pragma("application_id").map_err(|e| self.explain(e))?;
        let version = pragma("user_version").map_err(|e| self.explain(e))?;
        if version == 0 && application == 0 {
            return Ok(0);
        }
        if application != APPLICATION_ID {
            return Err(StoreError::NotAStore {
                path: self.path.clone(),
                why: format!("the database's application id is {application:#x}"),
            });
        }
        if version > VERSION {
            return Err(StoreError::NewerStore {
                path: self.path.clone(),
                found: version,
                known: VERSION,
            });
        }
        Ok(version)
    }

    fn explain(&self, source: rusqlite::Error) -> StoreError {
        match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => StoreError::NotAStore {
                path: self.path.clone(),
                why: "the file is no SQLite database".into(),
            },
            Some(rusqlite::ErrorCode::DatabaseBusy) => StoreError::Busy {
                path: self.path.clone(),
                waited_ms: self.busy_timeout_ms,
            },
            _ => StoreError::Database { op: "read", source },
        }
    }

    fn migrate(&self, connection: &mut Connection) -> Result<()> {
        let journal = if self.rollback_journal {
            "DELETE"
        } else {
            "WAL"
        };
        let version = self.version(connection)?;
        connection
            .pragma_update(None, "journal_mode", journal)
            .map_err(|e| self.explain(e))?;
        if version == VERSION {
            return Ok(());
        }
        let tx = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| self.explain(e))?;
        for (step, sql) in MIGRATIONS.iter().enumerate().skip(version as usize) {
            tx.execute_batch(sql).db("migrate")?;
            tx.pragma_update(None, "user_version", step as i64 + 1)
                .db("migrate")?;
        }
        if version == 0 {
            tx.pragma_update(None, "application_id", APPLICATION_ID)
                .db("create")?;
            tx.execute(
                "INSERT INTO store (name, value) VALUES ('uuid', ?1)",
                [hex::encode(rand::random::<[u8; 16]>())],
            )
            .db("create")?;
        }
        tx.commit().db("migrate")?;
        tracing::info!(from = version, to = VERSION, "store schema");
        Ok(())
    }

    fn take(&self) -> Result<Connection> {
        let idle = unpoisoned(&self.idle).pop();
        match idle {
            Some(connection) => Ok(connection),
            None => self.connect(),
        }
    }

    fn give_back(&self, connection: Connection) {
        unpoisoned(&self.idle).push(connection);
    }

    /// Runs `read` inside one read transaction: it sees one state of the store, and blocks nobody.
    pub fn read<T>(&self, read: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.take()?;
        let result = (|| {
            let tx = connection.transaction().map_err(|e| self.explain(e))?;
            let value = read(&tx)?;
            tx.finish().db("read")?;
            Ok(value)
        })();
        self.give_back(connection);
        result
    }

    /// Runs `write` inside one write transaction and commits it: durable on return. An error undoes everything.
    ///
    /// Except `Uncertain`: then the commit failed half-way, and so did the attempt to settle it. A transaction whose last
    /// sync failed may still lie whole in the log, and would count if the log were read anew; only a later transaction
    /// overwrites it. So after a failed commit another one is written at once, and what can't be settled is said to be so,
    /// for the caller must not take away a tree whose record may yet turn up.
    pub fn write<T>(&self, write: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.take()?;
        let queue = unpoisoned(&self.writer);
        let result = self.write_on(&mut connection, write);
        drop(queue);
        self.give_back(connection);
        result
    }

    fn write_on<T>(
        &self,
        connection: &mut Connection,
        write: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let tx = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| self.explain(e))?;
        let value = write(&tx)?;
        let Err(source) = tx.commit() else {
            return Ok(value);
        };
        // A write that found no room never got to the frame that would make the transaction count.
        let full = source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        if !full && settle(connection).is_err() {
            return Err(StoreError::Uncertain { source });
        }
        Err(match self.explain(source) {
            StoreError::Database { source, .. } => StoreError::Database {
                op: "commit",
                source,
            },
            other => other,
        })
    }
}

/// Writes a transaction of no meaning over whatever a failed one left in the log.
fn settle(connection: &mut Connection) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    write_mark(&tx)?;
    tx.commit()
}

/// Makes sure that a transaction writes something.
pub(crate) fn write_mark(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT OR REPLACE INTO store (name, value) VALUES ('settled', ?1)",
        [crate::rows::now_ns().to_string()],
    )
    .map(drop)
}

/// True on file systems where several machines may open the same file: no shared memory, locks of doubtful worth.
fn is_network(path: &Path) -> bool {
    probe::fs_name_of(path).is_ok_and(|name| probe::is_network(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, DriverKind, SnapshotKey, Store, StoreOptions};

    fn options(root: &Path) -> StoreOptions {
        StoreOptions::new(root)
    }

    fn raw(root: &Path) -> Connection {
        Connection::open(root.join("vellum.db")).unwrap()
    }

    #[test]
    fn an_older_store_is_migrated_with_everything_in_it() {
        let tmp = tempfile::tempdir().unwrap();
        {
            // As the first version left it: schema 1 with a layer and a writable snapshot on it.
            let db = raw(tmp.path());
            db.execute_batch(include_str!("schema/1.sql")).unwrap();
            db.execute_batch(&format!(
                "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1; \
                 INSERT INTO store VALUES ('uuid', 'abc'); \
                 INSERT INTO snapshots (id, key, kind, keep, driver, tree, link, labels, created_ns, updated_ns, \
                     usage_bytes, usage_inodes) \
                 VALUES (1, x'6c', 3, 0, 'native', '{t1}', NULL, '{{}}', 5, 5, 10, 2); \
                 INSERT INTO snapshots (id, key, kind, parent, keep, driver, tree, link, labels, created_ns, updated_ns) \
                 VALUES (2, x'61', 2, 1, 0, 'native', '{t2}', NULL, '{{\"k\":\"v\"}}', 6, 7);",
                t1 = "1".repeat(64),
                t2 = "2".repeat(64),
            ))
            .unwrap();
        }
        let store = Store::open(&options(tmp.path())).unwrap();
        let info = store.stat(&SnapshotKey::from("a")).unwrap();
        assert_eq!(info.parent, Some(SnapshotKey::from("l")));
        assert_eq!(info.labels["k"], "v");
        assert_eq!(info.driver, DriverKind::Native);
        assert_eq!(store.uuid().unwrap(), "abc");
        let version: i64 = raw(tmp.path())
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(version, VERSION);
    }

    #[test]
    fn nobody_waits_for_ever_for_another_process_that_makes_the_store() {
        let tmp = tempfile::tempdir().unwrap();
        let maker = fs::File::open(tmp.path()).unwrap();
        maker.lock().unwrap();
        let impatient = StoreOptions {
            busy_timeout_ms: 10,
            ..options(tmp.path())
        };
        let refused = Store::open(&impatient).unwrap_err();
        assert_eq!(refused.class(), Class::Busy, "{refused}");
        maker.unlock().unwrap();
        Store::open(&impatient).unwrap();
    }

    #[test]
    fn a_newer_store_is_refused_by_name_and_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        drop(Store::open(&options(tmp.path())).unwrap());
        raw(tmp.path())
            .pragma_update(None, "user_version", VERSION + 7)
            .unwrap();
        let refused = Store::open(&options(tmp.path())).unwrap_err();
        assert_eq!(refused.class(), Class::Unsupported);
        assert!(
            refused
                .to_string()
                .contains(&format!("schema {}", VERSION + 7)),
            "{refused}"
        );
        let version: i64 = raw(tmp.path())
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(version, VERSION + 7);
    }

    #[test]
    fn strangers_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        raw(tmp.path())
            .execute_batch(
                "CREATE TABLE t (x); PRAGMA application_id = 77; PRAGMA user_version = 1",
            )
            .unwrap();
        let refused = Store::open(&options(tmp.path())).unwrap_err();
        assert!(matches!(refused, StoreError::NotAStore { .. }), "{refused}");
        fs::write(
            tmp.path().join("vellum.db"),
            "this is no database, but long enough to be taken for one",
        )
        .unwrap();
        let refused = Store::open(&options(tmp.path())).unwrap_err();
        assert!(matches!(refused, StoreError::NotAStore { .. }), "{refused}");
    }

    #[test]
    fn a_store_that_is_not_there_is_made_only_if_asked() {
        let tmp = tempfile::tempdir().unwrap();
        let refused = Store::open(&StoreOptions {
            create: false,
            ..options(&tmp.path().join("s"))
        })
        .unwrap_err();
        assert!(matches!(refused, StoreError::Io { .. }), "{refused}");
        assert!(!tmp.path().join("s").exists());
        Store::open(&options(&tmp.path().join("s"))).unwrap();
    }

    #[test]
    fn the_database_is_durable_and_in_wal_mode() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        let database = Database::open(&layout, true, 1000).unwrap();
        let (journal, synchronous): (String, i64) = database
            .read(|tx| {
                Ok((
                    tx.pragma_query_value(None, "journal_mode", |row| row.get(0))
                        .unwrap(),
                    tx.pragma_query_value(None, "synchronous", |row| row.get(0))
                        .unwrap(),
                ))
            })
            .unwrap();
        assert_eq!((journal.as_str(), synchronous), ("wal", 2));
    }

    #[test]
    fn a_lock_held_too_long_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreOptions {
            busy_timeout_ms: 50,
            ..options(tmp.path())
        })
        .unwrap();
        let mut other = raw(tmp.path());
        let held = other
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .unwrap();
        let refused = store
            .prepare(&SnapshotKey::from("k"), &crate::PrepareOptions::default())
            .unwrap_err();
        assert_eq!(refused.class(), Class::Busy);
        assert!(
            store.stat(&SnapshotKey::from("k")).is_err(),
            "readers do not wait"
        );
        drop(held);
        store
            .prepare(&SnapshotKey::from("k"), &crate::PrepareOptions::default())
            .unwrap();
    }
}

//! The database: its connections, its transactions, and what keeps it working on a full disk.
//!
//! SQLite with a rollback journal and `synchronous=FULL`: a committed transaction survives power
//! loss. There is no shared memory, because a full disk turns its use into SIGBUS. The journal is
//! never deleted (PERSIST) and is grown in advance to hold every page of the database, so a
//! transaction that only removes rows needs no space at all: it overwrites blocks that are there.
//! On a copy-on-write file system (btrfs) both files are marked no-copy-on-write. Temporary tables
//! are in memory.
//!
//! Readers and one writer run side by side until the writer commits; then each waits for the
//! others, for as long as a commit takes. So no transaction stays open during anything slow, and
//! none begins inside another. Every writer begins with IMMEDIATE, because a transaction that reads
//! first and writes later can't wait its turn.
//!
//! Nothing but SQLite ever opens `vellum.db`: closing any other descriptor on it would drop
//! SQLite's locks.

mod room;

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tempfile::TempDir;
use vellum_sys::sync;

use room::{copies_on_write, create_without_copies, journal_of};
pub(crate) use room::{suffixed, write_without_copies};

use crate::{
    driver::{DriverKind, TreeId},
    error::{DbContext, IoContext, Result, StoreError},
    following::Settled,
    generation::{self, Mark},
    layout::{self, Layout},
    located::{Located, Shelf},
    record_lock, records, rows,
    schema::{self, VERSION},
    stamp::Stamp,
    tx::Staged,
};

/// How many times longer than for a transaction a call waits for another process that creates or
/// migrates the database.
const OTHERS_MIGRATE: u32 = 10;

/// The first statements on every connection.
///
/// A transaction's changes stay in memory until its commit (`cache_spill`), so that readers wait
/// for the commit alone.
const SETTINGS: &str = "PRAGMA journal_mode=PERSIST; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; \
     PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY; PRAGMA cache_spill=OFF;";

/// The store's connections: one per caller at a time, kept for the next.
pub(crate) struct Database {
    path: PathBuf,
    busy_timeout_ms: u64,
    idle: Mutex<Vec<Connection>>,
    /// Writers of this process queue here instead of polling SQLite's lock.
    writer: Mutex<()>,
    mark: Mark,
    /// The store's id.
    id: OnceLock<String>,
    /// The latest generation that this process has seen committed.
    seen: AtomicU64,
    /// Why nothing may be changed, if the database has gone back in time.
    rolled_back: OnceLock<String>,
    /// Where the database is read from, if it can't be read in place: a copy, in which an
    /// interrupted transaction is rolled back.
    copy: Option<TempDir>,
    /// Record files that can leave the list of files to be written.
    pub settled: Settled,
}

impl Database {
    /// How long a call waits for other processes.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.busy_timeout_ms)
    }

    fn at(path: &Path, mark: Mark, busy_timeout_ms: u64) -> Self {
        Self {
            path: path.to_owned(),
            busy_timeout_ms,
            idle: Mutex::default(),
            writer: Mutex::default(),
            mark,
            id: OnceLock::new(),
            seen: AtomicU64::new(0),
            rolled_back: OnceLock::new(),
            copy: None,
            settled: Settled::default(),
        }
    }

    /// Opens the database of `layout`, creating or migrating it if necessary.
    ///
    /// One that has gone back in time opens too and can be read; see [`Database::rolled_back`].
    /// Errors: `NoDatabase` if it is missing or empty and the store has been used; `NotAStore`,
    /// `NewerStore`, `Busy`; `NotFound` as an `Io` if `create` is false and there is none.
    pub fn open(layout: &Layout, create: bool, busy_timeout_ms: u64) -> Result<Self> {
        let mut database = Self::at(&layout.database(), Mark::new(layout), busy_timeout_ms);
        // Read before the database, so that what others commit in between is not a contradiction.
        let mut mark = database.mark.read()?;
        let is_made = database.is_made()?;
        if !is_made {
            database.refuse_if_used(layout, mark.as_ref())?;
            if !create {
                return Err(std::io::Error::from(std::io::ErrorKind::NotFound))
                    .on("open the store", layout.root());
            }
        }
        let opens = match is_made {
            true => match database.opens_as_it_is() {
                Err(error) if needs_recovery(&error) => {
                    database.copy_to_read()?;
                    database.opens_as_it_is()?
                }
                other => other?,
            },
            false => false,
        };
        if !opens {
            database.make_or_migrate(layout)?;
            // A migration has set it again: an older program may have given the store another id
            // since.
            mark = database.mark.read()?;
        }
        let now = database.read(generation::stamp)?;
        if let Some(why) = generation::witness_against(layout, mark.as_ref(), &now)? {
            let _ = database.rolled_back.set(why); // no other thread has the value yet
        } else if mark.is_none() {
            database.mark.advance(&now);
        }
        database.seen.store(now.generation, Ordering::Relaxed);
        let _ = database.id.set(now.store); // as above
        Ok(database)
    }

    /// Creates a database in the empty file `path`, continuing from `at`. It is for this process
    /// alone, and the caller syncs it.
    ///
    /// Its journal is in memory, since the database is worthless until it is complete. So it takes
    /// one inode.
    pub fn make(path: &Path, at: Stamp, busy_timeout_ms: u64) -> Result<Self> {
        let database = Self::at(path, Mark::none(), busy_timeout_ms);
        let (mut connection, _) = database.connect_alone()?;
        connection
            .execute_batch("PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF")
            .map_err(|e| database.explain(e))?;
        schema::create(&mut connection, &at)?;
        database.give_back(connection);
        database.seen.store(at.generation, Ordering::Relaxed);
        let _ = database.id.set(at.store); // no other thread has the value yet
        Ok(database)
    }

    /// Refuses to create a database in a store that has been used. Errors: `NoDatabase`.
    fn refuse_if_used(&self, layout: &Layout, mark: Option<&Stamp>) -> Result<()> {
        let has_trees = || -> Result<bool> {
            for driver in DriverKind::ALL {
                let held = layout.holds(Shelf::Trees(driver))?;
                if held
                    .iter()
                    .any(|(_, located)| matches!(located, Located::Tree(..)))
                {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let evidence = if !records::files(layout)?.is_empty() || has_trees()? {
            "there are trees"
        } else if mark.is_some_and(|mark| mark.generation > Stamp::of_new_store().generation) {
            "the store has been used"
        } else {
            return Ok(());
        };
        Err(StoreError::NoDatabase {
            path: self.path.clone(),
            state: match layout::exists(&self.path)? {
                true => "empty",
                false => "missing",
            },
            evidence,
        })
    }

    /// Returns whether there is a database of any schema. An empty file doesn't count: SQLite
    /// creates one before it fills it.
    fn is_made(&self) -> Result<bool> {
        match fs::symlink_metadata(&self.path) {
            Ok(facts) if !facts.is_file() => Err(StoreError::NotAStore {
                path: self.path.clone(),
                why: "it is not a regular file".into(),
            }),
            Ok(facts) => Ok(facts.len() > 0),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e).on("stat", &self.path),
        }
    }

    /// Copies the database of a read-only disk to where an interrupted transaction can be rolled
    /// back, and reads there.
    ///
    /// Nothing can change the original, so opening it here takes no lock from anything.
    fn copy_to_read(&mut self) -> Result<()> {
        let places = [
            PathBuf::from("/run"),
            PathBuf::from("/dev/shm"),
            std::env::temp_dir(),
        ];
        let made = places.iter().find_map(|place| {
            tempfile::Builder::new()
                .prefix("vellum-")
                .tempdir_in(place)
                .ok()
        });
        let Some(dir) = made else {
            return Err(std::io::Error::from(std::io::ErrorKind::ReadOnlyFilesystem)).on(
                "copy, to roll back an interrupted transaction in it,",
                &self.path,
            );
        };
        let copy = dir.path().join("vellum.db");
        fs::copy(&self.path, &copy).on("copy", &self.path)?;
        let journal = journal_of(&self.path);
        fs::copy(&journal, journal_of(&copy)).on("copy", journal)?;
        Connection::open(&copy)
            .and_then(|connection| schema::tables(&connection))
            .db("roll back an interrupted transaction")?;
        self.path = copy;
        self.copy = Some(dir);
        Ok(())
    }

    /// Opens an existing database; false if its schema is older. The connection is kept for the
    /// first caller.
    fn opens_as_it_is(&self) -> Result<bool> {
        let (connection, version) = self.connect_alone()?;
        if version != VERSION {
            return Ok(false);
        }
        connection
            .pragma_update(None, "locking_mode", "NORMAL")
            .map_err(|e| self.explain(e))?;
        self.grow_journal(&connection);
        self.give_back(connection);
        Ok(true)
    }

    /// Creates or migrates the database, one process at a time, under the root directory's own
    /// lock.
    fn make_or_migrate(&self, layout: &Layout) -> Result<()> {
        let root = fs::File::open(layout.root()).on("open", layout.root())?;
        let again = root.try_clone().on("open", layout.root())?;
        let _only_one = record_lock::wait(again, layout.root(), self.patience() * OTHERS_MIGRATE)?;
        layout.create()?;
        if !layout::exists(&self.path)? {
            create_without_copies(&self.path)?;
        }
        let journal = journal_of(&self.path);
        if !layout::exists(&journal)? {
            create_without_copies(&journal)?;
        }
        root.sync_all().on("sync", layout.root())?;
        let (mut connection, version) = self.connect_alone()?;
        if version == 0 {
            // Not only where the file was empty: an older store's database may hold nothing once
            // its log is lost.
            self.refuse_if_used(layout, self.mark.read()?.as_ref())?;
            schema::create(&mut connection, &Stamp::of_new_store())?;
        } else if version < VERSION {
            if copies_on_write(layout.root())? {
                self.rewrite_in_place(connection, layout)?;
                (connection, _) = self.connect_alone()?;
            }
            // An older program's shared memory. Nothing has it mapped, or this lock could not be
            // held.
            records::remove(&suffixed(&self.path, "-shm"))?;
            schema::migrate(&mut connection, layout, &self.path, &self.mark)?;
        }
        connection
            .pragma_update(None, "locking_mode", "NORMAL")
            .map_err(|e| self.explain(e))?;
        self.grow_journal(&connection);
        self.give_back(connection);
        Ok(())
    }

    /// Copies an older store's database from a copy-on-write file to one that is not. No other
    /// process has it open.
    fn rewrite_in_place(&self, connection: Connection, layout: &Layout) -> Result<()> {
        let staged = Staged::dir(layout, TreeId::random().as_str())?;
        let path = staged.path().join("vellum.db");
        create_without_copies(&path)?;
        // By the directory's descriptor: the statement takes text, and the path may not be UTF-8.
        let dir = layout::dir(staged.path())?;
        let target = format!("/proc/self/fd/{}/vellum.db", dir.as_fd().as_raw_fd());
        connection
            .execute("VACUUM INTO ?1", [target])
            .db("copy the database")?;
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .on("sync", &path)?;
        fs::rename(&path, &self.path).on("publish", &self.path)?;
        // SQLite has created the journal too by now. It belongs to the database that was replaced.
        drop(connection);
        let journal = journal_of(&self.path);
        records::remove(&journal)?;
        create_without_copies(&journal)?;
        layout::sync_dir(layout.root())
    }

    /// Connects with a lock that the first transaction takes and that is kept until locking is
    /// `NORMAL` again, and returns the schema's version. Locked like this, an older store's
    /// database needs no shared memory for its log.
    fn connect_alone(&self) -> Result<(Connection, i64)> {
        let connection = self.open_file()?;
        connection
            .pragma_update(None, "locking_mode", "EXCLUSIVE")
            .map_err(|e| self.explain(e))?;
        // Refused before anything is changed: a newer program may keep its database in another way.
        let version = self.version(&connection)?;
        self.set_up(&connection)?;
        Ok((connection, version))
    }

    fn connect(&self) -> Result<Connection> {
        let connection = self.open_file()?;
        self.set_up(&connection)?;
        Ok(connection)
    }

    fn open_file(&self) -> Result<Connection> {
        let access = match self.copy {
            Some(_) => OpenFlags::SQLITE_OPEN_READ_ONLY,
            None => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&self.path, flags).map_err(|e| self.explain(e))?;
        connection
            .busy_timeout(self.patience())
            .map_err(|e| self.explain(e))?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    }

    fn set_up(&self, connection: &Connection) -> Result<()> {
        connection
            .execute_batch(SETTINGS)
            .map_err(|e| self.explain(e))
    }

    fn version(&self, connection: &Connection) -> Result<i64> {
        schema::version(connection, &self.path, |e| self.explain(e))
    }

    /// Explains SQLite's first error on a database.
    fn explain(&self, source: rusqlite::Error) -> StoreError {
        match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => StoreError::NotAStore {
                path: self.path.clone(),
                why: "the file is not an SQLite database".into(),
            },
            Some(rusqlite::ErrorCode::DatabaseBusy) => StoreError::Busy {
                path: self.path.clone(),
                waited_ms: self.busy_timeout_ms,
            },
            _ => StoreError::Database { op: "read", source },
        }
    }

    fn take(&self) -> Result<Connection> {
        let idle = sync::lock(&self.idle).pop();
        match idle {
            Some(connection) => Ok(connection),
            None => self.connect(),
        }
    }

    fn give_back(&self, connection: Connection) {
        sync::lock(&self.idle).push(connection);
    }

    /// Returns the store's id and the latest generation that this process knows to be committed.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            store: self.id.get().cloned().unwrap_or_default(),
            generation: self.seen.load(Ordering::Relaxed),
        }
    }

    /// Says why nothing may be changed, if the database has gone back in time.
    pub fn rolled_back(&self) -> Option<&str> {
        self.rolled_back.get().map(String::as_str)
    }

    /// Refuses if the database has gone back in time: what is missing from it may still exist, and
    /// may be the only copy. Errors: `RolledBack`.
    pub fn refuse_if_rolled_back(&self) -> Result<()> {
        match self.rolled_back() {
            Some(why) => Err(StoreError::RolledBack {
                path: self.path.clone(),
                why: why.to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Notes that the database has gone back in time, and returns the error that says so.
    pub fn has_rolled_back(&self, why: String) -> StoreError {
        let why = self.rolled_back.get_or_init(|| why).clone();
        StoreError::RolledBack {
            path: self.path.clone(),
            why,
        }
    }

    /// Runs `read` in one read transaction: it sees one state of the store. A writer can't commit
    /// until it ends.
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

    /// Runs `write` in one write transaction and commits it: durable on return. An error undoes
    /// everything.
    ///
    /// The exception is `Uncertain`: the commit failed half-way, and so did finding out whether it
    /// counts. The caller must not delete a tree whose record may still turn up. Errors:
    /// `RolledBack`, `Busy`, `Database`.
    pub fn write<T>(&self, write: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.refuse_if_rolled_back()?;
        let mut connection = self.take()?;
        let queue = sync::lock(&self.writer);
        let result = self.write_on(&mut connection, write);
        drop(queue);
        self.give_back(connection);
        result.map_err(|error| self.without_room(error))
    }

    fn write_on<T>(
        &self,
        connection: &mut Connection,
        write: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let tx = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| self.explain(e))?;
        let before = tx.total_changes();
        let value = write(&tx)?;
        if tx.total_changes() == before {
            tx.commit().db("end a transaction without changes")?;
            return Ok(value);
        }
        self.settled.forget(&tx)?;
        let raised = generation::raise(&tx)?;
        let seen = self.seen.load(Ordering::Relaxed);
        if raised.generation <= seen {
            return Err(self.has_rolled_back(format!(
                "this process saw generation {seen}, and the database is at {}",
                raised.generation - 1
            )));
        }
        if let Err(source) = tx.commit() {
            // A write that found no space didn't get as far as making the transaction count.
            let full = source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
            match !full
                && counts(connection, &raised).map_err(|source| StoreError::Uncertain { source })?
            {
                true => {}
                false => {
                    return Err(match self.explain(source) {
                        StoreError::Database { source, .. } => StoreError::Database {
                            op: "commit",
                            source,
                        },
                        other => other,
                    });
                }
            }
        }
        self.seen.fetch_max(raised.generation, Ordering::Relaxed);
        self.mark.advance(&Stamp {
            store: self.stamp().store,
            generation: raised.generation,
        });
        Ok(value)
    }
}

/// Returns whether a database can't be read before an interrupted transaction is rolled back, and
/// can't be written to.
fn needs_recovery(error: &StoreError) -> bool {
    let StoreError::Database { source, .. } = error else {
        return false;
    };
    matches!(source, rusqlite::Error::SqliteFailure(code, _)
        if code.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
}

/// Returns whether the transaction whose commit failed counts all the same, after SQLite has
/// settled it.
///
/// Opening another transaction rolls back what a failed one left. A meaningless change is
/// committed, so that the answer is on disk before it is given.
fn counts(connection: &mut Connection, raised: &generation::Raised) -> rusqlite::Result<bool> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let is_last = match generation::is_last(&tx, raised) {
        Ok(is_last) => is_last,
        Err(StoreError::Database { source, .. }) => return Err(source),
        // The row is malformed: no transaction of ours wrote it.
        Err(_) => false,
    };
    rows::facts::set(&tx, "settled", &rows::now_ns().to_string())?;
    tx.commit()?;
    Ok(is_last)
}

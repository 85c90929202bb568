//! What is in the database, and how it changes: schema and migrations.
//!
//! The file carries an `application_id` (so that another program's database is not mistaken for a
//! store) and a `user_version`, the schema's version. Older schemas are migrated step by step
//! inside one transaction, newer ones are refused by name. `database.rs` opens and uses the
//! database.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::{
    error::{DbContext, IoContext, Result, StoreError},
    generation::{self, Mark},
    layout::Layout,
    rebuild,
    stamp::Stamp,
};

/// Bytes 68..72 of the database: "VLM1". Changing it makes every existing store unrecognisable.
pub(crate) const APPLICATION_ID: i64 = 0x564c_4d31;

/// What each version added. A released step is never edited: existing stores have run it.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
];

/// The schema that this program writes.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Returns the schema's version of an open database; 0 for an empty one. Errors: `NotAStore`,
/// `NewerStore`.
pub(crate) fn version(
    connection: &Connection,
    path: &Path,
    explain: impl Fn(rusqlite::Error) -> StoreError,
) -> Result<i64> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = pragma("application_id").map_err(&explain)?;
    let version = pragma("user_version").map_err(&explain)?;
    let stranger = |why: String| StoreError::NotAStore {
        path: path.to_owned(),
        why,
    };
    if version == 0 && application == 0 {
        return match tables(connection).map_err(&explain)? {
            0 => Ok(0),
            _ => Err(stranger("its tables are another program's".into())),
        };
    }
    if application != APPLICATION_ID {
        return Err(stranger(format!(
            "the database's application id is {application:#x}"
        )));
    }
    if version > VERSION {
        return Err(StoreError::NewerStore {
            path: path.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    Ok(version)
}

/// Counts the tables of a database. SQLite first rolls back what a crash interrupted.
pub(crate) fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Fills an empty database, in one transaction.
pub(crate) fn create(connection: &mut Connection, at: &Stamp) -> Result<()> {
    let tx = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .db("create")?;
    run_steps(&tx, 0)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)
        .db("create")?;
    generation::begin(&tx, at)?;
    tx.commit().db("create")
}

/// Migrates the database of an older store, in one transaction; no other process has it open.
///
/// Before that, every record file is written from its row and stamped, so that a kill in the middle
/// leaves an older store that is migrated once more. Trees that have a record and no row are
/// restored and held, like after a rebuild: nothing shows whether a crash left them or the older
/// database lost their rows. Errors: `RolledBack` if a newer program has used the store since, and
/// this database knows nothing of it.
pub(crate) fn migrate(
    connection: &mut Connection,
    layout: &Layout,
    path: &Path,
    mark: &Mark,
) -> Result<()> {
    let (from, at) = {
        let tx = connection.transaction().db("migrate")?;
        let from = tx
            .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
            .db("migrate")?;
        let at = Stamp {
            store: generation::store_id(&tx)?,
            generation: 1,
        };
        if let Some(why) = rebuild::unknown_to(&tx, layout)? {
            return Err(StoreError::RolledBack {
                path: path.to_owned(),
                why,
            });
        }
        rebuild::write_all_records(&tx, layout, &at)?;
        (from, at)
    };
    mark.reset(&Stamp {
        generation: 0,
        ..at.clone()
    })?;
    let root = std::fs::File::open(layout.root()).on("open", layout.root())?;
    vellum_sys::publish::sync_fs(&root)?;
    let found = rebuild::Recoverable::without_rows(connection, layout)?;
    let tx = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .db("migrate")?;
    run_steps(&tx, from as usize)?;
    generation::set(&tx, at.generation)?;
    let mut rebuilt = rebuild::Rebuilt::default();
    found.put_back(&tx, layout, &mut rebuilt)?;
    tx.commit().db("migrate")?;
    tracing::info!(from, to = VERSION, "store schema");
    if rebuilt.snapshots > 0 {
        tracing::warn!(
            trees = rebuilt.snapshots,
            "restored trees without a row; `vellum gc --rebuilt` removes what nothing needs"
        );
    }
    Ok(())
}

fn run_steps(tx: &Transaction<'_>, done: usize) -> Result<()> {
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        tx.execute_batch(sql).db("migrate")?;
        tx.pragma_update(None, "user_version", step as i64 + 1)
            .db("migrate")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Class, DriverKind, SnapshotKey, Store, StoreOptions, database::Database};

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
            // Like the first version left it: schema 1 with a layer and a writable snapshot on it.
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
    fn waiting_for_another_process_that_creates_the_store_ends() {
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
    fn foreign_databases_are_refused() {
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
            "this is not a database, but long enough to look like one",
        )
        .unwrap();
        let refused = Store::open(&options(tmp.path())).unwrap_err();
        assert!(matches!(refused, StoreError::NotAStore { .. }), "{refused}");
    }

    #[test]
    fn a_missing_store_is_created_only_on_request() {
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
    fn the_database_is_durable_and_keeps_its_journal() {
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
        assert_eq!((journal.as_str(), synchronous), ("persist", 2));
        let journal = fs::metadata(tmp.path().join("vellum.db-journal")).unwrap();
        assert!(journal.len() >= 1 << 20, "{}", journal.len());
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

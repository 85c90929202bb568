//! Collecting what nobody needs. Why something is needed says `why.rs`.
//!
//! Reachability starts from containers, images, live leases and snapshots kept until removed; a snapshot keeps all it
//! stands on. One transaction decides and deletes the records; files go afterwards, so a crash leaves litter for the next
//! run. What lies on disk without a record is litter too, unless its maker lives (see `tx.rs`).

use std::{
    collections::HashSet,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rusqlite::{Transaction, params};
use vellum_format::Digest;

use crate::{
    containers,
    driver::{DriverKind, LinkId, TreeId},
    error::{DbContext, Result, StoreError},
    following, generation, images,
    layout::{self, Layout},
    lease::Process,
    parents::Parents,
    rebuild::rebuilt_leases,
    records,
    rows::{self, now_ns, parse},
    snapshot::{SnapshotKey, Usage},
    snapshots::Sweep,
    store::Store,
    turn::Turn,
    tx::{self, Fate, Litter},
};

/// What a collection took away, or would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// What it is.
    pub thing: Thing,
    /// Why nobody needs it.
    pub why: String,
    /// What it took, where known without looking at every file.
    pub usage: Option<Usage>,
    /// What became of it.
    pub fate: Fate,
}

/// One thing that can be collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A snapshot, record and tree.
    Snapshot(SnapshotKey),
    /// A blob.
    Blob(Digest),
    /// A recipe, by diff id.
    Recipe(Digest),
    /// A lease whose process is gone or whose time is over; its purpose.
    Lease(String),
    /// Something on disk without a record.
    Path(PathBuf),
}

/// Rows of all snapshots that something needs.
const LIVE: &str = "WITH RECURSIVE live (id) AS ( \
         SELECT snapshot FROM containers \
         UNION SELECT snapshot FROM image_layers \
         UNION SELECT snapshot FROM lease_snapshots \
             WHERE lease NOT IN (SELECT id FROM temp.dead_leases) \
         UNION SELECT id FROM snapshots WHERE keep = 1 \
         UNION SELECT s.parent FROM live JOIN snapshots s ON s.id = live.id WHERE s.parent IS NOT NULL)";

const LIVE_DIGESTS: &str = "SELECT id FROM images UNION SELECT manifest FROM images \
     UNION SELECT blob FROM image_layers WHERE blob IS NOT NULL \
     UNION SELECT digest FROM lease_digests WHERE lease NOT IN (SELECT id FROM temp.dead_leases)";

struct Doomed {
    leases: Vec<(String, String)>,
    snapshots: Vec<rows::SnapshotRow>,
    blobs: Vec<(Digest, u64)>,
    recipes: Vec<(Digest, u64)>,
}

impl Store {
    /// Removes everything that nobody needs, and all litter. With `dry_run` only tells what it would remove.
    ///
    /// Safe beside running commands of any number of processes. Errors: `Io`, `Database`; what could not be removed for a
    /// reason of its own is reported as stuck, not as an error.
    pub fn gc(&self, dry_run: bool) -> Result<Vec<Garbage>> {
        if let Some(why) = self.look_for_rollback()? {
            return Err(self.inner.database.has_rolled_back(why));
        }
        self.read(Parents::all_sound)?;
        // A database that contradicts itself may have lost what says that something is needed.
        if let Some(wrong) = self.check_database()?.into_iter().next() {
            return Err(StoreError::Damaged {
                what: wrong.what,
                why: wrong.why,
            });
        }
        let doomed = if dry_run {
            self.read(find_doomed)?
        } else {
            self.write_freeing(|tx| {
                let doomed = find_doomed(tx)?;
                bury(tx, &doomed)?;
                Ok(doomed)
            })?
        };
        let mut garbage = Vec::new();
        for (_, purpose) in &doomed.leases {
            garbage.push(Garbage {
                thing: Thing::Lease(purpose.clone()),
                why: "its process is gone or its time is over".into(),
                usage: None,
                fate: if dry_run { Fate::Would } else { Fate::Gone },
            });
        }
        let fates = match dry_run {
            true => vec![Fate::Would; doomed.snapshots.len()],
            false => self.discard_trees(&doomed.snapshots),
        };
        for (row, fate) in doomed.snapshots.into_iter().zip(fates) {
            garbage.push(Garbage {
                thing: Thing::Snapshot(row.record.key.clone()),
                why: format!("{}; no image, container or lease needs it", row.record.kind),
                usage: row.record.usage,
                fate,
            });
        }
        let files = |list: Vec<(Digest, u64)>, blob: bool| {
            list.into_iter()
                .map(|(digest, bytes)| {
                    let path = if blob {
                        self.layout().blob(&digest)
                    } else {
                        self.layout().recipe(&digest)
                    };
                    let fate = match dry_run {
                        true => Fate::Would,
                        false => Fate::of(
                            self.discard_named(&path, |tx| {
                                Ok(if blob {
                                    has_blob(tx, &digest)?
                                } else {
                                    has_recipe(tx, &digest.hex())?
                                })
                            })
                            .map(|gone| gone.unwrap_or(true)),
                        ),
                    };
                    let usage = Some(Usage { bytes, inodes: 1 });
                    match blob {
                        true => Garbage {
                            thing: Thing::Blob(digest),
                            why: "no image or lease needs it".into(),
                            usage,
                            fate,
                        },
                        false => Garbage {
                            thing: Thing::Recipe(digest),
                            why: "no layer has this diff id".into(),
                            usage,
                            fate,
                        },
                    }
                })
                .collect::<Vec<_>>()
        };
        garbage.extend(files(doomed.blobs, true));
        garbage.extend(files(doomed.recipes, false));
        garbage.extend(self.collect_litter(dry_run)?);
        if !dry_run {
            self.fill_reserve();
        }
        Ok(garbage)
    }

    /// Looks for record files without a row that prove that the database has gone back in time. Returns the proof.
    ///
    /// The mark was looked at when the store was opened; this is for what it can't tell after a power loss.
    pub(crate) fn look_for_rollback(&self) -> Result<Option<String>> {
        if let Some(why) = self.inner.database.rolled_back() {
            return Ok(Some(why.to_owned()));
        }
        let files = records::files(self.layout())?;
        let known = self.read(following::all_names)?;
        for path in files {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| known.contains(name)) {
                continue;
            }
            // One that can't be read proves nothing.
            let Ok(Some(stamp)) = records::read_stamp(&path) else {
                continue;
            };
            let now = self.read(generation::stamp)?;
            if let Some(why) = generation::contradiction(&now, &stamp, 1) {
                return Ok(Some(format!("{}: {why}", path.display())));
            }
        }
        Ok(None)
    }

    /// Discards the trees of removed records, several at once: the time goes into the kernel's unlinking, one directory at
    /// a time. Returns their fates in the same order.
    fn discard_trees(&self, rows: &[rows::SnapshotRow]) -> Vec<Fate> {
        let workers = thread::available_parallelism().map_or(1, |n| n.get().min(4));
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(row) = rows.get(at) else { return done };
                let fate = self.discard_tree(&row.record, Sweep::Now).map(|()| true);
                done.push((at, Fate::of(fate)));
            }
        };
        let mut fates = thread::scope(|scope| {
            let others: Vec<_> = (1..workers.min(rows.len()))
                .map(|_| scope.spawn(work))
                .collect();
            let mut done = work();
            for other in others {
                done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            done
        });
        fates.sort_unstable_by_key(|(at, _)| *at);
        fates.into_iter().map(|(_, fate)| fate).collect()
    }

    /// Deletes what earlier removals left in the trash, and what dead processes left staged. Cheap if there is nothing.
    pub fn sweep(&self) -> Result<Vec<Garbage>> {
        self.inner.database.refuse_if_rolled_back()?;
        Ok(tx::sweep(self.layout(), false)?
            .into_iter()
            .map(Garbage::from)
            .collect())
    }

    /// Removes a file or directory whose name may come again, unless its maker lives or a record of it has appeared:
    /// then `None`. Else true if it is gone, false if part of it is mounted over.
    pub(crate) fn discard_named(
        &self,
        path: &Path,
        recorded: impl FnOnce(&Transaction<'_>) -> Result<bool>,
    ) -> Result<Option<bool>> {
        let Some(_lock) = tx::try_own(path)? else {
            return Ok(None);
        };
        let trashed = self.write(|tx| {
            if recorded(tx)? {
                Ok(None)
            } else {
                tx::to_trash(self.layout(), path)
            }
        })?;
        match trashed {
            None => Ok(None),
            Some(trashed) => tx::remove_trashed(self.layout(), &trashed).map(Some),
        }
    }

    fn collect_litter(&self, dry_run: bool) -> Result<Vec<Garbage>> {
        let layout = self.layout();
        if !self.read(rebuilt_leases)?.is_empty() {
            // What a rebuild could not put back is kept until an operator has looked.
            let swept = tx::sweep(layout, dry_run)?;
            return Ok(swept.into_iter().map(Garbage::from).collect());
        }
        let mut found: Vec<Litter> = Vec::new();
        for kind in DriverKind::ALL {
            let home = layout.driver(kind);
            let trees = tx::entries(&home)?;
            let known = self.known_trees()?;
            for path in trees {
                let Some(tree) = tree_of(&path) else { continue };
                if known.contains(&tree) {
                    continue;
                }
                const WHY: &str = "a tree without a record";
                match tx::try_own(&path) {
                    Ok(None) => {}
                    // Its maker may have recorded it and let go between the list and the lock.
                    Ok(Some(_)) if self.known_tree(&tree)? => {}
                    Ok(Some(_lock)) => found.push(tx::take_away(layout, path, WHY, dry_run)),
                    Err(error) => found.push(Litter::stuck(path, WHY, error)),
                }
            }
        }
        let known = self.known_trees()?;
        for path in tx::entries(&layout.driver(DriverKind::Overlay2).join("l"))? {
            if leads_nowhere(layout, &path) && !self.known_link(&path)? {
                found.push(tx::take_away(
                    layout,
                    path,
                    "a short name that leads nowhere",
                    dry_run,
                ));
            }
        }
        let files = tx::entries(&layout.records())?;
        let names = self.read(following::all_names)?;
        for path in files {
            if let Some(name) = path.file_name().and_then(|name| name.to_str())
                && (name.starts_with("image-") || name.starts_with("container-"))
            {
                if names.contains(name) {
                    continue;
                }
                // Another process may just be writing it, before its row or after.
                let _turn = Turn::at_sidecars(self)?;
                let Some(_lock) = tx::try_own(&path)? else {
                    continue;
                };
                if !self.read(|tx| has_sidecar(tx, name))? {
                    found.push(tx::take_away(
                        layout,
                        path,
                        "the record file of something that is gone",
                        dry_run,
                    ));
                }
                continue;
            }
            let Some(tree) = path.file_stem().and_then(|stem| tree_of(Path::new(stem))) else {
                continue;
            };
            let there = DriverKind::ALL
                .iter()
                .any(|kind| layout::exists(&layout.tree(*kind, &tree)).unwrap_or(true));
            if !there && !known.contains(&tree) && !self.known_tree(&tree)? {
                found.push(tx::take_away(
                    layout,
                    path,
                    "the record file of a tree that is gone",
                    dry_run,
                ));
            }
        }
        for path in tx::entries(&layout.blobs())? {
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(Ok(digest)) = name.map(Digest::from_hex) {
                self.litter_file(&mut found, path, "a blob without a record", dry_run, |tx| {
                    has_blob(tx, &digest)
                })?;
            }
        }
        type Has = fn(&Transaction<'_>, &str) -> Result<bool>;
        let named: [(PathBuf, &str, Has); 2] = [
            (layout.recipes(), "a recipe without a record", has_recipe),
            (layout.volumes(), "a volume without a record", has_volume),
        ];
        for (dir, why, has) in named {
            for path in tx::entries(&dir)? {
                let name = path.file_name().and_then(|name| name.to_str());
                let Some(name) = name.map(str::to_owned) else {
                    continue;
                };
                self.litter_file(&mut found, path, why, dry_run, |tx| has(tx, &name))?;
            }
        }
        found.extend(tx::sweep(layout, dry_run)?);
        Ok(found.into_iter().map(Garbage::from).collect())
    }

    fn litter_file(
        &self,
        found: &mut Vec<Litter>,
        path: PathBuf,
        why: &'static str,
        dry_run: bool,
        recorded: impl Fn(&Transaction<'_>) -> Result<bool>,
    ) -> Result<()> {
        if self.read(&recorded)? {
            return Ok(());
        }
        let fate = if dry_run {
            match tx::try_own(&path) {
                Ok(None) => return Ok(()),
                Ok(Some(_)) if self.read(&recorded)? => return Ok(()),
                Ok(Some(_lock)) => Fate::Would,
                Err(e) => Fate::of(Err(e)),
            }
        } else {
            match self.discard_named(&path, recorded) {
                Ok(None) => return Ok(()),
                Ok(Some(gone)) => Fate::of(Ok(gone)),
                Err(e) => Fate::of(Err(e)),
            }
        };
        found.push(Litter { path, why, fate });
        Ok(())
    }

    fn known_trees(&self) -> Result<HashSet<TreeId>> {
        self.read(|tx| {
            let mut statement = tx
                .prepare_cached("SELECT tree FROM snapshots")
                .db("list trees")?;
            let rows = statement
                .query_map([], |row| row.get::<_, String>(0))
                .db("list trees")?;
            rows.map(|row| TreeId::try_from(row.db("list trees")?))
                .collect()
        })
    }

    fn known_tree(&self, tree: &TreeId) -> Result<bool> {
        self.read(|tx| {
            tx.query_row(
                "SELECT EXISTS (SELECT 1 FROM snapshots WHERE tree = ?1)",
                [tree.as_str()],
                |row| row.get(0),
            )
            .db("look a tree up")
        })
    }

    fn known_link(&self, path: &Path) -> Result<bool> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        self.read(|tx| {
            tx.query_row(
                "SELECT EXISTS (SELECT 1 FROM snapshots WHERE link = ?1)",
                [name],
                |row| row.get(0),
            )
            .db("look a link up")
        })
    }
}

/// True for a short name of `overlay2` whose tree is not there, and for what has such a name and is no link to a tree.
fn leads_nowhere(layout: &Layout, path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    if name.is_none_or(|name| LinkId::try_from(name.to_owned()).is_err()) {
        return false;
    }
    // The text is read and nothing followed: it may say anything.
    let target = std::fs::read_link(path).unwrap_or_default();
    let mut parts = target.iter();
    match (
        parts.next(),
        parts.next().map(Path::new),
        parts.next(),
        parts.next(),
    ) {
        (Some(up), Some(tree), Some(diff), None) if up == ".." && diff == "diff" => tree_of(tree)
            .is_none_or(|tree| {
                layout::exists(&layout.tree(DriverKind::Overlay2, &tree)).is_ok_and(|there| !there)
            }),
        _ => true,
    }
}

impl From<Litter> for Garbage {
    fn from(litter: Litter) -> Self {
        Self {
            thing: Thing::Path(litter.path),
            why: litter.why.into(),
            usage: None,
            fate: litter.fate,
        }
    }
}

pub(crate) fn tree_of(path: &Path) -> Option<TreeId> {
    TreeId::try_from(path.file_name()?.to_str()?.to_owned()).ok()
}

fn has(tx: &Transaction<'_>, sql: &str, name: &str) -> Result<bool> {
    tx.prepare_cached(sql)
        .db("look up")?
        .query_row([name], |row| row.get(0))
        .db("look up")
}

pub(crate) fn has_blob(tx: &Transaction<'_>, digest: &Digest) -> Result<bool> {
    has(
        tx,
        "SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?1)",
        &digest.to_string(),
    )
}

pub(crate) fn has_recipe(tx: &Transaction<'_>, hex: &str) -> Result<bool> {
    has(
        tx,
        "SELECT EXISTS (SELECT 1 FROM recipes WHERE substr(diff_id, instr(diff_id, ':') + 1) = ?1)",
        hex,
    )
}

pub(crate) fn has_volume(tx: &Transaction<'_>, name: &str) -> Result<bool> {
    has(
        tx,
        "SELECT EXISTS (SELECT 1 FROM volumes WHERE name = ?1)",
        name,
    )
}

/// Tells whether the image or container of this record file is there.
pub(crate) fn has_sidecar(tx: &Transaction<'_>, name: &str) -> Result<bool> {
    Ok(images::by_record_name(tx, name)?.is_some()
        || containers::by_record_name(tx, name)?.is_some())
}

/// Returns the leases whose process is gone or whose time is over: id and purpose.
fn dead_leases(tx: &Transaction<'_>) -> Result<Vec<(String, String)>> {
    let now = now_ns();
    let mut statement = tx
        .prepare_cached("SELECT id, purpose, expires_ns, pid, pid_start, boot_id FROM leases")
        .db("list leases")?;
    type Row = (
        String,
        String,
        Option<i64>,
        Option<i64>,
        Option<i64>,
        Option<String>,
    );
    let rows = statement
        .query_map([], |row| -> rusqlite::Result<Row> {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
            ))
        })
        .db("list leases")?;
    let mut dead = Vec::new();
    for row in rows {
        let (id, purpose, expires, pid, start, boot) = row.db("list leases")?;
        let lives = match (expires, pid, start, boot) {
            (Some(expires), ..) => now < expires,
            (None, Some(pid), Some(start), Some(boot)) => Process { pid, start, boot }.lives(),
            _ => false,
        };
        if !lives {
            dead.push((id, purpose));
        }
    }
    Ok(dead)
}

fn find_doomed(tx: &Transaction<'_>) -> Result<Doomed> {
    Parents::all_sound(tx)?;
    let leases = dead_leases(tx)?;
    tx.execute_batch("CREATE TEMP TABLE IF NOT EXISTS dead_leases (id TEXT PRIMARY KEY); DELETE FROM temp.dead_leases")
        .db("collect")?;
    for (id, _) in &leases {
        tx.execute("INSERT INTO temp.dead_leases (id) VALUES (?1)", [id])
            .db("collect")?;
    }
    let ids: Vec<i64> = {
        let mut statement = tx
            .prepare(&format!(
                "{LIVE} SELECT id FROM snapshots WHERE id NOT IN live ORDER BY id DESC"
            ))
            .db("collect")?;
        let rows = statement.query_map([], |row| row.get(0)).db("collect")?;
        rows.collect::<rusqlite::Result<_>>().db("collect")?
    };
    let snapshots = ids
        .iter()
        .map(|id| rows::by_id(tx, *id))
        .collect::<Result<_>>()?;
    let digests = |sql: String| -> Result<Vec<(Digest, u64)>> {
        let mut statement = tx.prepare(&sql).db("collect")?;
        let rows = statement
            .query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
            })
            .db("collect")?;
        rows.map(|row| {
            let (digest, size) = row.db("collect")?;
            Ok((parse(&digest)?, size as u64))
        })
        .collect()
    };
    Ok(Doomed {
        leases,
        snapshots,
        blobs: digests(format!(
            "SELECT digest, size FROM blobs WHERE digest NOT IN ({LIVE_DIGESTS})"
        ))?,
        recipes: digests(format!(
            "{LIVE} SELECT diff_id, size FROM recipes WHERE diff_id NOT IN \
             (SELECT diff_id FROM snapshots WHERE id IN live AND diff_id IS NOT NULL UNION {LIVE_DIGESTS})"
        ))?,
    })
}

fn bury(tx: &Transaction<'_>, doomed: &Doomed) -> Result<()> {
    for (id, _) in &doomed.leases {
        tx.execute("DELETE FROM leases WHERE id = ?1", [id])
            .db("collect")?;
    }
    // One statement, so that parents and children may go in any order.
    tx.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS doomed (id INTEGER PRIMARY KEY); DELETE FROM temp.doomed",
    )
    .db("collect")?;
    for row in &doomed.snapshots {
        tx.execute("INSERT INTO temp.doomed (id) VALUES (?1)", [row.id])
            .db("collect")?;
    }
    tx.execute("DELETE FROM snapshots WHERE id IN temp.doomed", [])
        .db("collect")?;
    for (digest, _) in &doomed.blobs {
        tx.execute(
            "DELETE FROM blobs WHERE digest = ?1",
            params![digest.to_string()],
        )
        .db("collect")?;
    }
    for (diff_id, _) in &doomed.recipes {
        tx.execute(
            "DELETE FROM recipes WHERE diff_id = ?1",
            params![diff_id.to_string()],
        )
        .db("collect")?;
    }
    Ok(())
}

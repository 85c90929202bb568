//! Garbage collection.
//!
//! Containers, images, live leases and snapshots kept until removed hold things, and a snapshot
//! holds all its ancestors: `rows/alive.rs` says what holds what, and `why.rs` puts it into words.
//! One transaction decides and deletes the records; files are deleted afterwards, so a crash leaves
//! litter for the next run. What is on disk without a record is litter too (`gc/litter.rs`), unless
//! the process that created it is alive (see `tx.rs`).

mod litter;

use std::{
    panic::resume_unwind,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rusqlite::Transaction;
use vellum_format::Digest;

use crate::{
    error::{Result, StoreError},
    located::Located,
    rebuild::rebuilt_leases,
    rows::{self, alive::Alive},
    snapshot::{SnapshotKey, Usage},
    snapshots::Sweep,
    store::Store,
    tx::Fate,
};

/// What a collection removed, or would remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// What it is.
    pub thing: Thing,
    /// Why it is not needed.
    pub why: String,
    /// What it took, where known without looking at every file.
    pub usage: Option<Usage>,
    /// What happened to it.
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
    /// A lease whose process is gone or that has expired; its purpose.
    Lease(String),
    /// Something on disk without a record.
    Path(PathBuf),
}

/// Whether the leases that a rebuild left hold what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rebuilt {
    Held,
    LetGo,
}

struct Unneeded {
    /// Leases that are over, with their purpose.
    leases: Vec<(String, String)>,
    /// The leases of rebuilds, with their purpose, if they are let go.
    rebuilt: Vec<(String, String)>,
    snapshots: Vec<rows::snapshots::SnapshotRow>,
    blobs: Vec<(Digest, u64)>,
    recipes: Vec<(Digest, u64)>,
}

impl Store {
    /// Removes everything that is not needed, and all litter. With `dry_run` it only returns what
    /// it would remove.
    ///
    /// Safe alongside running commands of any number of processes. Errors: `Io`, `Database`. A
    /// single thing that can't be removed is reported as stuck, not as an error.
    pub fn gc(&self, dry_run: bool) -> Result<Vec<Garbage>> {
        self.collect(dry_run, Rebuilt::Held)
    }

    /// Like [`Store::gc`], and what [`Store::rebuild`] found is not held any more.
    pub fn gc_rebuilt(&self, dry_run: bool) -> Result<Vec<Garbage>> {
        self.collect(dry_run, Rebuilt::LetGo)
    }

    fn collect(&self, dry_run: bool, rebuilt: Rebuilt) -> Result<Vec<Garbage>> {
        if let Some(why) = self.look_for_rollback()? {
            return Err(self.inner.database.has_rolled_back(why));
        }
        self.read(|tx| rows::snapshots::parents(tx)?.all_sound())?;
        // A database that contradicts itself may have lost the reason that something is needed.
        if let Some(wrong) = self.check_database()?.into_iter().next() {
            return Err(StoreError::Damaged {
                what: wrong.what,
                why: wrong.why,
            });
        }
        let unneeded = if dry_run {
            self.read(|tx| find_unneeded(tx, rebuilt))?
        } else {
            self.write_freeing(|tx| {
                let unneeded = find_unneeded(tx, rebuilt)?;
                delete_records(tx, &unneeded)?;
                Ok(unneeded)
            })?
        };
        let mut garbage = Vec::new();
        let over = unneeded.leases.iter();
        let over = over.map(|(_, purpose)| (purpose, "its process is gone or it has expired"));
        let held = unneeded.rebuilt.iter();
        let held = held.map(|(_, purpose)| (purpose, "it held what a rebuild found"));
        for (purpose, why) in over.chain(held) {
            garbage.push(Garbage {
                thing: Thing::Lease(purpose.clone()),
                why: why.into(),
                usage: None,
                fate: if dry_run { Fate::Would } else { Fate::Gone },
            });
        }
        let fates = match dry_run {
            true => vec![Fate::Would; unneeded.snapshots.len()],
            false => self.discard_trees(&unneeded.snapshots),
        };
        for (row, fate) in unneeded.snapshots.into_iter().zip(fates) {
            garbage.push(Garbage {
                thing: Thing::Snapshot(row.record.key.clone()),
                why: format!("{}; no image, container or lease needs it", row.record.kind),
                usage: row.record.usage,
                fate,
            });
        }
        let layout = self.layout();
        let blobs = unneeded.blobs.into_iter().map(|(digest, bytes)| {
            let (thing, why) = (Thing::Blob(digest), "no image or lease needs it");
            (
                thing,
                why,
                bytes,
                layout.blob(&digest),
                Located::Blob(digest),
            )
        });
        let recipes = unneeded.recipes.into_iter().map(|(diff_id, bytes)| {
            let (thing, why) = (Thing::Recipe(diff_id), "no layer has this diff id");
            let located = Located::Recipe(Some(diff_id));
            (thing, why, bytes, layout.recipe(&diff_id), located)
        });
        for (thing, why, bytes, path, located) in blobs.chain(recipes) {
            let gone = || Ok(self.discard_named(&path, &located)?.unwrap_or(true));
            garbage.push(Garbage {
                thing,
                why: why.into(),
                usage: Some(Usage { bytes, inodes: 1 }),
                fate: match dry_run {
                    true => Fate::Would,
                    false => Fate::of(gone()),
                },
            });
        }
        garbage.extend(self.collect_litter(dry_run, rebuilt)?);
        if !dry_run {
            self.fill_reserve();
        }
        Ok(garbage)
    }

    /// Discards the trees of removed records, several at once: the time goes into the kernel's
    /// unlinking, one directory at a time. Returns their fates in the same order.
    fn discard_trees(&self, rows: &[rows::snapshots::SnapshotRow]) -> Vec<Fate> {
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
}

fn find_unneeded(tx: &Transaction<'_>, rebuilt: Rebuilt) -> Result<Unneeded> {
    rows::snapshots::parents(tx)?.all_sound()?;
    let rebuilt = match rebuilt {
        Rebuilt::Held => Vec::new(),
        Rebuilt::LetGo => rebuilt_leases(tx)?,
    };
    let mut alive = Alive::now(tx)?;
    let leases = alive.over.clone();
    alive.end(&rebuilt)?;
    let snapshots = alive.unheld_snapshots(tx)?.into_iter();
    Ok(Unneeded {
        snapshots: snapshots
            .map(|id| rows::snapshots::by_id(tx, id))
            .collect::<Result<_>>()?,
        blobs: alive.unheld_blobs(tx)?,
        recipes: alive.unheld_recipes(tx)?,
        leases,
        rebuilt,
    })
}

fn delete_records(tx: &Transaction<'_>, unneeded: &Unneeded) -> Result<()> {
    for (id, _) in unneeded.leases.iter().chain(&unneeded.rebuilt) {
        rows::leases::remove(tx, id)?;
    }
    let ids: Vec<i64> = unneeded.snapshots.iter().map(|row| row.id).collect();
    rows::snapshots::remove_all(tx, &ids)?;
    for (digest, _) in &unneeded.blobs {
        rows::blobs::remove(tx, digest)?;
    }
    for (diff_id, _) in &unneeded.recipes {
        rows::recipes::remove(tx, diff_id)?;
    }
    Ok(())
}

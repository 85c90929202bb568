//! Rebuilds a lost database from the record files next to the trees.
//!
//! It first looks at what is on disk, then writes it into the new database in one transaction. The
//! database is filled under `staging/` and replaces the old one as a whole, so a kill leaves the
//! store without a database, or with the old one, never with half of one. The same code restores
//! trees that an older database doesn't know during a migration. A lease called `rebuilt` holds
//! whatever is restored. As long as it exists, gc removes nothing that has no row: what could not
//! be restored is not deleted before an operator has looked.

mod recoverable;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

pub(crate) use recoverable::Recoverable;
use rusqlite::Transaction;
use vellum_sys::with_causes;

use crate::{
    check::finding,
    containers,
    database::{self, Database, suffixed},
    driver::{Finding, TreeId},
    error::{Class, DbContext, IoContext, Result},
    generation::Mark,
    hands,
    image::NewImage,
    images,
    layout::{self, Layout},
    lease::{self, LeaseId, hold_snapshot},
    located::{Located, Shelf},
    parents,
    record::TreeRecord,
    records,
    rows::{self, now_ns},
    sidecar::{ContainerFile, ImageFile, LayerFile},
    stamp::Stamp,
    store::{Reserve, Store, StoreOptions},
    tx::Staged,
};

/// The purpose of the lease that holds what a rebuild restored.
pub(crate) const PURPOSE: &str = "rebuilt";

/// What a rebuild restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Snapshots.
    pub snapshots: u64,
    /// Images, with their names.
    pub images: u64,
    /// Containers.
    pub containers: u64,
    /// Blobs.
    pub blobs: u64,
    /// Volumes.
    pub volumes: u64,
    /// Where the old database was moved, if there was one.
    pub old_database: Option<PathBuf>,
    /// What could not be restored, and why.
    pub lost: Vec<Finding>,
}

impl Store {
    /// Rebuilds the database from the trees' own records, after moving what is left of the old one
    /// aside.
    ///
    /// For a database that is lost, broken or older than its trees. Nothing else may use the store
    /// at the same time. Snapshots, images, names, containers, blobs, recipes and volumes are
    /// restored; leases are not. Trees and blobs that turn out to be damaged are left in place and
    /// reported. The store keeps its id. On a full disk the space comes from the reserve. Errors:
    /// `Busy`, `Io`, `Database`; the old database is then where it was.
    pub fn rebuild(options: &StoreOptions) -> Result<(Self, Rebuilt)> {
        let layout = Layout::find(&options.root)?;
        hands::own(&layout)?;
        let rebuilt = match rebuild(&layout, options) {
            Err(error)
                if error.class() == Class::NoSpace && Reserve::new(layout.reserve()).spend() =>
            {
                rebuild(&layout, options)?
            }
            other => other?,
        };
        let store = Self::open(options)?;
        store.fill_reserve();
        Ok((store, rebuilt))
    }
}

/// Returns the leases of rebuilds that an operator hasn't let go yet: ids and purposes.
pub(crate) fn rebuilt_leases(tx: &Transaction<'_>) -> Result<Vec<(String, String)>> {
    let all = rows::leases::all(tx)?.into_iter();
    Ok(all
        .filter(|lease| lease.purpose == PURPOSE)
        .map(|lease| (lease.id, lease.purpose))
        .collect())
}

fn rebuild(layout: &Layout, options: &StoreOptions) -> Result<Rebuilt> {
    layout.create()?;
    let root = fs::File::open(layout.root()).on("open", layout.root())?;
    let again = root.try_clone().on("open", layout.root())?;
    let patience = std::time::Duration::from_millis(options.busy_timeout_ms);
    let _only_one = crate::record_lock::wait(again, layout.root(), patience)?;

    let mark = Mark::new(layout);
    let at = where_to_go_on(layout, &mark)?;
    let found = Recoverable::all(layout)?;
    let (mut staged, file) = Staged::file(layout, TreeId::random().as_str())?;
    database::write_without_copies(&file);
    let mut rebuilt = Rebuilt::default();
    {
        let database = Database::make(staged.path(), at.clone(), options.busy_timeout_ms)?;
        database.write(|tx| found.put_back(tx, layout, &mut rebuilt))?;
    }
    file.sync_all().on("sync", staged.path())?;
    // No file may be left that proves the new database wrong: none of another store, none of a
    // later generation.
    for path in records::files(layout)? {
        let stamp = records::read_stamp(&path).ok().flatten();
        if stamp.is_none_or(|stamp| stamp.store != at.store) {
            records::restamp(layout, &path, &at)?;
        }
    }
    mark.reset(&at)?;
    records::sync(layout)?;
    layout::sync_dir(&layout.generation())?;
    rebuilt.old_database = swap_in(layout, &mut staged)?;
    Ok(rebuilt)
}

/// Returns the store's id and a generation that nothing on disk is ahead of.
fn where_to_go_on(layout: &Layout, mark: &Mark) -> Result<Stamp> {
    let mut stamps: Vec<Stamp> = mark.read()?.into_iter().collect();
    for path in records::files(layout)? {
        // A file that can't be read is reported with its object.
        stamps.extend(records::read_stamp(&path).ok().flatten());
    }
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for stamp in &stamps {
        *votes.entry(&stamp.store).or_default() += 1;
    }
    let Some(store) = votes
        .iter()
        .max_by_key(|(_, votes)| **votes)
        .map(|(store, _)| store.to_string())
    else {
        return Ok(Stamp::of_new_store());
    };
    let furthest = stamps
        .iter()
        .filter(|stamp| stamp.store == store)
        .map(|stamp| stamp.generation)
        .max()
        .unwrap_or_default();
    Ok(Stamp {
        store,
        generation: furthest.saturating_add(1),
    })
}

/// Puts the new database in place of the old one. Returns the old one's new name, if there was one.
fn swap_in(layout: &Layout, new: &mut Staged) -> Result<Option<PathBuf>> {
    let database = layout.database();
    let companion = |suffix: &str| suffixed(&database, suffix);
    let now = now_ns();
    let mut old = None;
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let from = companion(suffix);
        if suffix == "-journal" && !is_hot(&from) {
            // Nothing in it belongs to the old database, and its space serves the new one.
            continue;
        }
        let to = companion(&format!(".{now}{suffix}"));
        match fs::rename(&from, &to) {
            Ok(()) if suffix.is_empty() => old = Some(to),
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).on("set aside", from),
        }
    }
    layout::sync_dir(layout.root())?;
    new.publish_shared(&database)?;
    layout::sync_dir(layout.root())?;
    Ok(old)
}

/// Returns whether a journal may hold what an interrupted transaction must roll back.
fn is_hot(journal: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let mut first = [0];
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(journal)
        .and_then(|mut file| file.read_exact(&mut first))
        .is_ok_and(|()| first != [0])
}

impl Recoverable {
    /// Writes all of it into the database, held by a lease. What fails is added to `lost`.
    pub fn put_back(
        mut self,
        tx: &Transaction<'_>,
        layout: &Layout,
        rebuilt: &mut Rebuilt,
    ) -> Result<()> {
        rebuilt.lost.append(&mut self.lost);
        let is_empty = self.trees.is_empty() && self.images.is_empty() && rebuilt.lost.is_empty();
        if !is_empty || !self.blobs.is_empty() {
            let lease = LeaseId::unused();
            lease::insert(tx, &lease, PURPOSE, Some(i64::MAX), None)?;
            self.put_back_trees(tx, &lease, rebuilt)?;
        }
        for (digest, bytes) in &self.blobs {
            rows::blobs::insert(tx, digest, *bytes)?;
        }
        for (diff_id, bytes) in &self.recipes {
            rows::recipes::put_back(tx, diff_id, *bytes)?;
        }
        for name in &self.volumes {
            if !rows::volumes::has(tx, name)? {
                rows::volumes::insert(tx, name, &crate::Labels::new())?;
            }
        }
        rebuilt.blobs = self.blobs.len() as u64;
        rebuilt.volumes = self.volumes.len() as u64;
        for file in self.images {
            let id = file.id;
            match each_by_itself(tx, |tx| put_back_image(tx, file))? {
                Ok(()) => rebuilt.images += 1,
                Err(why) => rebuilt
                    .lost
                    .push(finding(format!("image {id}"), why, false)),
            }
        }
        for file in &self.containers {
            match each_by_itself(tx, |tx| containers::put_back(layout, tx, file))? {
                Ok(()) => rebuilt.containers += 1,
                Err(why) => {
                    let what = format!("container {}", file.name);
                    rebuilt.lost.push(finding(what, why, false));
                }
            }
        }
        Ok(())
    }

    /// Parents before their children. A snapshot is lost if it is its own ancestor, or an ancestor
    /// is missing.
    fn put_back_trees(
        &mut self,
        tx: &Transaction<'_>,
        lease: &LeaseId,
        rebuilt: &mut Rebuilt,
    ) -> Result<()> {
        let trees: Vec<TreeRecord> = std::mem::take(&mut self.trees).into_values().collect();
        let numbers: HashMap<&TreeId, usize> = trees
            .iter()
            .enumerate()
            .map(|(at, record)| (&record.tree, at))
            .collect();
        let mut ids: HashMap<&TreeId, i64> = HashMap::new();
        let mut stands_on = HashMap::new();
        for (at, record) in trees.iter().enumerate() {
            let below = match &record.parent {
                None => None,
                Some(parent) => {
                    match (numbers.get(parent), rows::snapshots::by_tree(tx, parent)?) {
                        (Some(below), _) => Some(*below),
                        // Known already, in a migration.
                        (None, Some(row)) => {
                            ids.insert(parent, row.id);
                            None
                        }
                        (None, None) => Some(usize::MAX),
                    }
                }
            };
            stands_on.insert(at, below);
        }
        let survey = parents::survey(&stands_on);
        let name = |at: &usize| match trees.get(*at) {
            Some(record) => record.key.to_string(),
            None => "a tree".to_owned(),
        };
        for fault in &survey.faults {
            let what = fault.subject().map_or_else(String::new, name);
            rebuilt.lost.push(finding(what, fault.words(name), false));
        }
        let mut order: Vec<(Option<usize>, usize)> = (0..trees.len())
            .map(|at| (survey.depths.get(&at).copied(), at))
            .collect();
        order.sort_unstable();
        for (depth, at) in order {
            let record = &trees[at];
            let parent = match &record.parent {
                _ if depth.is_none() => Err(()),
                None => Ok(None),
                Some(parent) => ids.get(parent).copied().map(Some).ok_or(()),
            };
            let Ok(parent) = parent else {
                let why = "an ancestor is missing, or its ancestors can't be determined";
                rebuilt.lost.push(finding(&record.key, why, false));
                continue;
            };
            if rows::snapshots::find(tx, &record.key)?.is_some() {
                rebuilt.lost.push(finding(
                    &record.key,
                    format!("a second tree, {}, has this key", record.tree),
                    false,
                ));
                continue;
            }
            let id = rows::snapshots::insert(tx, record, parent)?;
            hold_snapshot(tx, lease, id)?;
            ids.insert(&record.tree, id);
            rebuilt.snapshots += 1;
        }
        Ok(())
    }
}

/// Runs `step` so that its failure undoes it alone. The outer error is the database's.
fn each_by_itself(
    tx: &Transaction<'_>,
    step: impl FnOnce(&Transaction<'_>) -> Result<()>,
) -> Result<std::result::Result<(), String>> {
    tx.execute_batch("SAVEPOINT step").db("rebuild")?;
    let done = step(tx);
    let end = match &done {
        Ok(()) => "RELEASE step",
        Err(_) => "ROLLBACK TO step; RELEASE step",
    };
    tx.execute_batch(end).db("rebuild")?;
    match done {
        Ok(()) => Ok(Ok(())),
        // A lack of space says nothing about the step.
        Err(error) if error.class() == Class::NoSpace => Err(error),
        Err(error) => Ok(Err(with_causes(&error))),
    }
}

fn put_back_image(tx: &Transaction<'_>, file: ImageFile) -> Result<()> {
    let added = i64::try_from(file.added.as_nanosecond()).unwrap_or(i64::MAX);
    let image = NewImage {
        id: file.id,
        manifest: file.manifest,
        media_type: file.media_type,
        layers: file.layers.into_iter().map(LayerFile::layer).collect(),
        tags: file.tags,
    };
    images::put(tx, &image)?;
    rows::images::set_added(tx, &image.id, added)
}

/// Says what a newer program has recorded that this older database doesn't know, if anything: then
/// the database was restored from a copy.
///
/// A program without generations writes records without a stamp, and leaves others' stamps as they
/// are.
pub(crate) fn unknown_to(tx: &Transaction<'_>, layout: &Layout) -> Result<Option<String>> {
    for (path, located) in layout.holds(Shelf::Records)? {
        let Located::Record(_) = located else {
            continue;
        };
        // A file that can't be read proves nothing.
        let Ok(Some((record, Some(stamp)))) = TreeRecord::read(&path) else {
            continue;
        };
        if !layout::is_dir(&layout.tree(record.driver, &record.tree)).unwrap_or(false) {
            continue;
        }
        let is_known = rows::snapshots::by_tree(tx, &record.tree)?
            .is_some_and(|row| row.record.key == record.key && row.record.kind == record.kind);
        if !is_known {
            return Ok(Some(format!(
                "{}: a newer vellum wrote it at generation {}, and the database has no row for it",
                path.display(),
                stamp.generation
            )));
        }
    }
    Ok(None)
}

/// Writes every record file from its row. Not synced.
pub(crate) fn write_all_records(tx: &Transaction<'_>, layout: &Layout, at: &Stamp) -> Result<()> {
    let mut after = None;
    loop {
        let page = rows::snapshots::page(tx, after.as_ref(), 256)?;
        let Some(last) = page.last() else { break };
        after = Some(last.record.key.clone());
        for row in &page {
            row.record.replace(layout, at)?;
        }
    }
    for image in rows::images::all(tx)? {
        let file = ImageFile::from(&image);
        records::replace(layout, &crate::sidecar::path(layout, &file), &file, at)?;
    }
    for container in rows::containers::all(tx)? {
        let file = ContainerFile::from(&container);
        records::replace(layout, &crate::sidecar::path(layout, &file), &file, at)?;
    }
    Ok(())
}

//! Comparing records with what is on disk, and putting right what is only derived.
//!
//! `check` reads every record and looks for its tree, its record file, its blobs. What can be computed from the database
//! (short names, lists of lowers, record files) is healed on request; what holds data is only reported. `rebuild` goes the
//! other way, for a database that is lost: it reads the record files.
//!
//! Others may be at work meanwhile, and what they are in the middle of differs for a moment. So whatever looks wrong is looked at again, in the
//! turn of whoever might be changing it (`turn.rs`) and against the database as it is by then, before it is reported or healed.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rusqlite::{Transaction, params};

use crate::{
    containers::find_container,
    digest::{Algorithm, Digest, Hasher},
    driver::{self, Finding, TreeId, TreeRef},
    error::{DbContext, IoContext, Result, StoreError, chain},
    gc::{has_recipe, has_volume},
    images::{self, NewImage},
    layout::{self, Layout},
    lease::{LeaseId, Life, hold_snapshot},
    record::TreeRecord,
    rows::{self, SnapshotRow, now_ns, to_json},
    sidecar::{self, ContainerFile, ImageFile, Sidecar},
    snapshot::SnapshotKey,
    snapshots::Sweep,
    store::{Store, StoreOptions},
    turn::Turn,
    tx,
};

/// How thoroughly to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Put right what is derived from the database.
    pub heal: bool,
    /// Read every blob and compare its digest.
    pub deep: bool,
}

/// What a rebuild brought back.
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
    /// Where the old database was put, if there was one.
    pub old_database: Option<PathBuf>,
    /// What could not be brought back, and why.
    pub lost: Vec<Finding>,
}

fn finding(what: impl std::fmt::Display, why: impl Into<String>, healed: bool) -> Finding {
    Finding {
        what: what.to_string(),
        why: why.into(),
        healed,
    }
}

impl Store {
    /// Compares every record with what is on disk. Returns what is wrong; empty: all is well.
    ///
    /// Runs beside other commands; what they change or remove meanwhile is not reported, and not undone. Errors: `Database`, `Io`.
    pub fn check(&self, options: CheckOptions) -> Result<Vec<Finding>> {
        let mut found = self.check_database()?;
        let mut after: Option<SnapshotKey> = None;
        loop {
            let page = self.read(|tx| {
                rows::page(tx, after.as_ref(), 64)?
                    .into_iter()
                    .map(|row| {
                        let parents = rows::ancestors(tx, row.id)?;
                        Ok((row, parents))
                    })
                    .collect::<Result<Vec<_>>>()
            })?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.record.key.clone());
            for (row, parents) in page {
                if !self.check_tree(&row, &parents, false)?.is_empty() {
                    found.extend(self.check_tree_again(&row, options.heal)?);
                }
            }
        }
        self.check_sidecars(options.heal, &mut found)?;
        self.check_files(options.deep, &mut found)?;
        Ok(found)
    }

    fn check_database(&self) -> Result<Vec<Finding>> {
        self.read(|tx| {
            let mut found = Vec::new();
            for (pragma, good) in [("quick_check", Some("ok")), ("foreign_key_check", None)] {
                let mut statement = tx.prepare(&format!("PRAGMA {pragma}")).db("check")?;
                let rows = statement
                    .query_map([], |row| row.get::<_, String>(0))
                    .db("check")?;
                for row in rows {
                    let text = row.db("check")?;
                    if Some(text.as_str()) != good {
                        found.push(finding("the database", format!("{pragma}: {text}"), false));
                    }
                }
            }
            Ok(found)
        })
    }

    fn check_tree(
        &self,
        row: &SnapshotRow,
        parents: &[TreeRef],
        heal: bool,
    ) -> Result<Vec<Finding>> {
        let driver = driver::driver(row.driver());
        let mut found = driver.check(self.layout(), &row.tree_ref(), parents, heal)?;
        found.extend(self.check_record(row, heal)?);
        Ok(found)
    }

    /// The same while nobody changes the tree's record, and by what the database says then. A tree that is removed is none of ours.
    fn check_tree_again(&self, seen: &SnapshotRow, heal: bool) -> Result<Vec<Finding>> {
        let _turn = Turn::at_tree(self, &seen.record.tree)?;
        let same = |tx: &Transaction<'_>| {
            let row = rows::find_id(tx, seen.id)?;
            Ok(row.filter(|row| row.record.tree == seen.record.tree))
        };
        let now = self.read(|tx| match same(tx)? {
            Some(row) => {
                let parents = rows::ancestors(tx, row.id)?;
                Ok(Some((row, parents)))
            }
            None => Ok(None),
        })?;
        let Some((row, parents)) = now else {
            return Ok(Vec::new());
        };
        let found = self.check_tree(&row, &parents, heal)?;
        if self.read(same)?.is_some() {
            return Ok(found);
        }
        if heal {
            // What was put back of it after it went.
            self.discard_or_leave(&row.record, Sweep::Later);
        }
        Ok(Vec::new())
    }

    fn check_record(&self, row: &SnapshotRow, heal: bool) -> Result<Vec<Finding>> {
        let path = self.layout().record(&row.record.tree);
        let why = match TreeRecord::read(&path) {
            Ok(record) if record == row.record => return Ok(Vec::new()),
            Ok(_) => "not what the database says".to_owned(),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                "missing".to_owned()
            }
            Err(e) => chain(&e),
        };
        if heal {
            row.record.replace(self.layout(), true)?;
        }
        Ok(vec![finding(path.display(), why, heal)])
    }

    fn check_sidecars(&self, heal: bool, found: &mut Vec<Finding>) -> Result<()> {
        for image in self.images()? {
            let now = || {
                Ok(self
                    .read(|tx| images::load(tx, &image.id))?
                    .as_ref()
                    .map(ImageFile::from))
            };
            self.check_sidecar(&ImageFile::from(&image), now, heal, found)?;
        }
        for container in self.containers()? {
            let now = || {
                let container = self.read(|tx| find_container(tx, &container.id))?;
                Ok(container.as_ref().map(ContainerFile::from))
            };
            self.check_sidecar(&ContainerFile::from(&container), now, heal, found)?;
        }
        Ok(())
    }

    /// Compares a record file with what the database said, and before anything is done about it with what it says `now`.
    fn check_sidecar<T: Sidecar>(
        &self,
        seen: &T,
        now: impl Fn() -> Result<Option<T>>,
        heal: bool,
        found: &mut Vec<Finding>,
    ) -> Result<()> {
        let path = self.layout().records().join(seen.name());
        if wrong_sidecar(&path, seen).is_none() {
            return Ok(());
        }
        let _turn = Turn::at_sidecars(self)?;
        let Some(expect) = now()? else {
            return Ok(());
        };
        let Some(why) = wrong_sidecar(&path, &expect) else {
            return Ok(());
        };
        if heal {
            sidecar::write(self.layout(), &expect)?;
        }
        found.push(finding(path.display(), why, heal));
        Ok(())
    }

    fn check_files(&self, deep: bool, found: &mut Vec<Finding>) -> Result<()> {
        let blobs: Vec<(String, i64)> =
            self.pairs("SELECT digest, size FROM blobs ORDER BY digest")?;
        for (digest, size) in blobs {
            let digest: Digest = rows::parse(&digest)?;
            let path = self.layout().blob(&digest);
            let look = || wrong_blob(&path, &digest, size as u64, deep);
            if let Some(why) = lasting(look, || Ok(self.blob(&digest)?.is_some()))? {
                found.push(finding(path.display(), why, false));
            }
        }
        let recipes: Vec<(String, i64)> =
            self.pairs("SELECT diff_id, size FROM recipes ORDER BY diff_id")?;
        for (diff_id, _) in recipes {
            let diff_id: Digest = rows::parse(&diff_id)?;
            let path = self.layout().recipe(&diff_id);
            let look = || Ok((!layout::exists(&path)?).then_some(()));
            let known = || self.read(|tx| has_recipe(tx, diff_id.hex()));
            if lasting(look, known)?.is_some() {
                found.push(finding(
                    path.display(),
                    "missing; the layer is written anew when saved, with another digest",
                    false,
                ));
            }
        }
        for volume in self.volumes()? {
            let look = || Ok((!volume.path.is_dir()).then_some(()));
            let known = || self.read(|tx| has_volume(tx, &volume.name));
            if lasting(look, known)?.is_some() {
                found.push(finding(
                    volume.path.display(),
                    "the volume's data is missing",
                    false,
                ));
            }
        }
        Ok(())
    }

    fn pairs(&self, sql: &str) -> Result<Vec<(String, i64)>> {
        self.read(|tx| {
            let mut statement = tx.prepare(sql).db("check")?;
            let rows = statement
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
                .db("check")?;
            rows.map(|row| row.db("check")).collect()
        })
    }

    /// Makes the database anew from the trees' own records, after moving what is left of the old one aside.
    ///
    /// For a database that is lost or broken; nobody else may use the store meanwhile. Snapshots, images, names,
    /// containers, blobs, recipes and volumes come back; leases do not. Trees and blobs that turn out damaged are left
    /// where they are and reported. Everything that came back without an image or container is held by a lease called
    /// `rebuilt`, so that a gc does not take it before somebody has looked.
    pub fn rebuild(options: &StoreOptions) -> Result<(Self, Rebuilt)> {
        let root = std::path::absolute(&options.root).on("find", &options.root)?;
        let layout = Layout::new(root);
        let mut rebuilt = Rebuilt {
            old_database: set_aside(&layout)?,
            ..Rebuilt::default()
        };
        let store = Self::open_new(options)?;
        store.rebuild_snapshots(&mut rebuilt)?;
        store.rebuild_content(&mut rebuilt)?;
        store.rebuild_images(&mut rebuilt)?;
        store.rebuild_containers(&mut rebuilt)?;
        Ok((store, rebuilt))
    }

    fn rebuild_snapshots(&self, rebuilt: &mut Rebuilt) -> Result<()> {
        let mut todo: BTreeMap<TreeId, TreeRecord> = BTreeMap::new();
        for path in tx::entries(&self.layout().records())? {
            let is_tree = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .is_some_and(|stem| stem.len() == 64);
            if !is_tree {
                continue;
            }
            match TreeRecord::read(&path) {
                Ok(record) if self.layout().tree(record.driver, &record.tree).is_dir() => {
                    todo.insert(record.tree.clone(), record);
                }
                Ok(record) => rebuilt
                    .lost
                    .push(finding(&record.key, "its tree is missing", false)),
                Err(e) => rebuilt.lost.push(finding(path.display(), chain(&e), false)),
            }
        }
        let lease = self.begin_lease("rebuilt", Life::Forever)?;
        let mut ids: HashMap<TreeId, i64> = HashMap::new();
        self.write(|tx| {
            while !todo.is_empty() {
                let ready: Vec<TreeId> = todo
                    .values()
                    .filter(|record| {
                        record
                            .parent
                            .as_ref()
                            .is_none_or(|parent| ids.contains_key(parent))
                    })
                    .map(|record| record.tree.clone())
                    .collect();
                if ready.is_empty() {
                    break;
                }
                for tree in ready {
                    let Some(record) = todo.remove(&tree) else {
                        continue;
                    };
                    if rows::find(tx, &record.key)?.is_some() {
                        rebuilt.lost.push(finding(
                            &record.key,
                            format!("a second tree, {tree}, has this key"),
                            false,
                        ));
                        continue;
                    }
                    let parent = record
                        .parent
                        .as_ref()
                        .and_then(|parent| ids.get(parent))
                        .copied();
                    let id = rows::insert(tx, &record, parent)?;
                    hold_snapshot(tx, &lease, id)?;
                    ids.insert(tree, id);
                    rebuilt.snapshots += 1;
                }
            }
            Ok(())
        })?;
        for record in todo.values() {
            rebuilt
                .lost
                .push(finding(&record.key, "what it stands on is missing", false));
        }
        Ok(())
    }

    fn rebuild_content(&self, rebuilt: &mut Rebuilt) -> Result<()> {
        let mut blobs = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for path in tx::entries(&self.root().join("content").join(algorithm.as_str()))? {
                let name = path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                let Ok(digest) = format!("{}:{name}", algorithm.as_str()).parse::<Digest>() else {
                    continue;
                };
                let actual = hash_file(&path, algorithm)?;
                if actual == digest {
                    blobs.push((digest, fs::metadata(&path).on("look at", &path)?.len()));
                } else {
                    rebuilt
                        .lost
                        .push(finding(path.display(), format!("holds {actual}"), false));
                }
            }
        }
        let mut recipes = Vec::new();
        for path in tx::entries(&self.layout().recipes())? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if let Ok(digest) = format!("sha256:{name}").parse::<Digest>() {
                recipes.push((digest, fs::metadata(&path).on("look at", &path)?.len()));
            }
        }
        let mut volumes = Vec::new();
        for path in tx::entries(&self.layout().volumes())? {
            if let Some(name) = path.file_name().and_then(|name| name.to_str())
                && path.join("_data").is_dir()
            {
                volumes.push(name.to_owned());
            }
        }
        self.write(|tx| {
            for (digest, size) in &blobs {
                tx.execute(
                    "INSERT INTO blobs (digest, size, created_ns) VALUES (?1, ?2, ?3)",
                    params![digest.to_string(), *size as i64, now_ns()],
                )
                .db("rebuild")?;
            }
            for (digest, size) in &recipes {
                tx.execute(
                    "INSERT INTO recipes (diff_id, size, created_ns) VALUES (?1, ?2, ?3)",
                    params![digest.to_string(), *size as i64, now_ns()],
                )
                .db("rebuild")?;
            }
            for name in &volumes {
                tx.execute(
                    "INSERT INTO volumes (name, created_ns, labels) VALUES (?1, ?2, ?3)",
                    params![name, now_ns(), to_json(&crate::Labels::new())?],
                )
                .db("rebuild")?;
            }
            Ok(())
        })?;
        rebuilt.blobs = blobs.len() as u64;
        rebuilt.volumes = volumes.len() as u64;
        Ok(())
    }

    fn rebuild_images(&self, rebuilt: &mut Rebuilt) -> Result<()> {
        for file in self.sidecars::<ImageFile>(rebuilt)? {
            let image = NewImage {
                id: file.id.clone(),
                manifest: file.manifest,
                media_type: file.media_type,
                layers: file
                    .layers
                    .into_iter()
                    .map(sidecar::LayerFile::layer)
                    .collect(),
                tags: file.tags,
            };
            match self.put_image(&image) {
                Ok(_) => {
                    self.write(|tx| {
                        let added = i64::try_from(file.added.as_nanosecond()).unwrap_or(i64::MAX);
                        tx.execute(
                            "UPDATE images SET created_ns = ?2 WHERE id = ?1",
                            params![file.id.to_string(), added],
                        )
                        .db("rebuild")?;
                        Ok(())
                    })?;
                    self.image_changed(&file.id)?;
                    rebuilt.images += 1;
                }
                Err(e) => {
                    rebuilt
                        .lost
                        .push(finding(format!("image {}", file.id), chain(&e), false))
                }
            }
        }
        Ok(())
    }

    fn rebuild_containers(&self, rebuilt: &mut Rebuilt) -> Result<()> {
        for file in self.sidecars::<ContainerFile>(rebuilt)? {
            match self.put_container(&file) {
                Ok(()) => rebuilt.containers += 1,
                Err(e) => rebuilt.lost.push(finding(
                    format!("container {}", file.name),
                    chain(&e),
                    false,
                )),
            }
        }
        Ok(())
    }

    fn sidecars<T: Sidecar>(&self, rebuilt: &mut Rebuilt) -> Result<Vec<T>> {
        let mut files = Vec::new();
        for path in tx::entries(&self.layout().records())? {
            if !path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(T::PREFIX))
            {
                continue;
            }
            match sidecar::read::<T>(&path) {
                Ok(file) => files.extend(file),
                Err(e) => rebuilt.lost.push(finding(path.display(), chain(&e), false)),
            }
        }
        Ok(files)
    }

    /// Ends the lease that [`Store::rebuild`] left, so that gc may take what nothing else needs. False: there is none.
    pub fn end_rebuilt_lease(&self) -> Result<bool> {
        let ids: Vec<String> = self.read(|tx| {
            let mut statement = tx
                .prepare("SELECT id FROM leases WHERE purpose = 'rebuilt'")
                .db("list leases")?;
            let rows = statement
                .query_map([], |row| row.get(0))
                .db("list leases")?;
            rows.collect::<rusqlite::Result<_>>().db("list leases")
        })?;
        for id in &ids {
            self.end_lease(&LeaseId::new(id.clone()))?;
        }
        Ok(!ids.is_empty())
    }
}

/// Says what is wrong with a record file, if anything is.
fn wrong_sidecar<T: Sidecar>(path: &PathBuf, expect: &T) -> Option<String> {
    match sidecar::read::<T>(path) {
        Ok(Some(got)) if got == *expect => None,
        Ok(Some(_)) => Some("not what the database says".to_owned()),
        Ok(None) => Some("missing".to_owned()),
        Err(e) => Some(chain(&e)),
    }
}

/// Says what is wrong with a blob, if anything is.
fn wrong_blob(path: &Path, digest: &Digest, size_bytes: u64, deep: bool) -> Result<Option<String>> {
    const MISSING: &str = "missing; load or pull its image again";
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Some(MISSING.to_owned())),
        Err(e) => Ok(Some(e.to_string())),
        Ok(facts) if facts.len() != size_bytes => Ok(Some(format!(
            "has {} bytes, should have {size_bytes}",
            facts.len()
        ))),
        Ok(_) if deep => match hash_file(path, digest.algorithm()) {
            Ok(actual) => Ok((actual != *digest).then(|| format!("holds {actual}"))),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Some(MISSING.to_owned()))
            }
            Err(e) => Err(e),
        },
        Ok(_) => Ok(None),
    }
}

/// Returns what is wrong with a file of the store that never changes, unless its record went meanwhile, or went and came back.
fn lasting<T>(
    look: impl Fn() -> Result<Option<T>>,
    known: impl Fn() -> Result<bool>,
) -> Result<Option<T>> {
    if look()?.is_none() || !known()? {
        return Ok(None);
    }
    match look()? {
        Some(wrong) if known()? => Ok(Some(wrong)),
        _ => Ok(None),
    }
}

fn hash_file(path: &Path, algorithm: Algorithm) -> Result<Digest> {
    let mut file = fs::File::open(path).on("open", path)?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).on("read", path)?;
        if n == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..n]);
    }
}

/// Renames the database and its companions; returns the new name of the database, if there was one.
fn set_aside(layout: &Layout) -> Result<Option<PathBuf>> {
    let mut old = None;
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut from = layout.database().into_os_string();
        from.push(suffix);
        let mut to = layout.database().into_os_string();
        to.push(format!(".{}{suffix}", now_ns()));
        match fs::rename(&from, &to) {
            Ok(()) if suffix.is_empty() => old = Some(PathBuf::from(to)),
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).on("set aside", PathBuf::from(from)),
        }
    }
    if old.is_some() {
        layout::sync_dir(layout.root())?;
    }
    Ok(old)
}

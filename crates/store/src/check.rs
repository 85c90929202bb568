//! Comparing records with what is on disk, and putting right what is only derived.
//!
//! `check` reads every record and looks for its tree, its record file, its blobs. What can be computed from the database
//! (short names, lists of lowers, record files) is healed on request; what holds data is only reported. `rebuild.rs` goes the
//! other way, for a database that is lost: it reads the record files.
//!
//! Others may be at work meanwhile, and what they are in the middle of differs for a moment. So whatever looks wrong is looked at again, in the
//! turn of whoever might be changing it (`turn.rs`) and against the database as it is by then, before it is reported or healed.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use rusqlite::Transaction;

use crate::{
    containers::find_container,
    digest::{Algorithm, Digest, Hasher},
    driver::{self, Finding, TreeRef},
    error::{DbContext, IoContext, Result, StoreError},
    following,
    gc::{has_recipe, has_volume},
    generation, images, layout, records,
    rows::{self, SnapshotRow},
    sidecar::{ContainerFile, ImageFile, Sidecar},
    snapshot::SnapshotKey,
    snapshots::Sweep,
    store::Store,
    turn::Turn,
};

/// How thoroughly to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Put right what is derived from the database.
    pub heal: bool,
    /// Read every blob and compare its digest.
    pub deep: bool,
}

pub(crate) fn finding(
    what: impl std::fmt::Display,
    why: impl Into<String>,
    healed: bool,
) -> Finding {
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
        if options.heal {
            self.inner.database.refuse_if_rolled_back()?;
        }
        let mut found = self.check_database()?;
        if let Some(why) = self.look_for_rollback()? {
            // What else differs, differs for that.
            found.push(finding(
                self.layout().database().display(),
                format!("has gone back in time: {why}"),
                false,
            ));
            return Ok(found);
        }
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

    /// Has SQLite look whether the database contradicts itself.
    pub(crate) fn check_database(&self) -> Result<Vec<Finding>> {
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
        let Some(why) = records::differs(&path, &row.record) else {
            return Ok(Vec::new());
        };
        if !heal && self.is_due(&path)? {
            return Ok(Vec::new());
        }
        if heal {
            row.record
                .replace(self.layout(), &self.read(generation::stamp)?)?;
            records::sync(self.layout())?;
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
        if records::differs(&path, seen).is_none() {
            return Ok(());
        }
        let _turn = Turn::at_sidecars(self)?;
        let Some(expect) = now()? else {
            return Ok(());
        };
        let Some(why) = records::differs(&path, &expect) else {
            return Ok(());
        };
        if !heal && self.is_due(&path)? {
            return Ok(());
        }
        if heal {
            let stamp = self.read(generation::stamp)?;
            records::replace(self.layout(), &path, &expect, &stamp)?;
            records::sync(self.layout())?;
        }
        found.push(finding(path.display(), why, heal));
        Ok(())
    }

    /// Tells whether a record file is known to be behind, for want of room, say: the next command that can puts it right.
    fn is_due(&self, path: &Path) -> Result<bool> {
        let due = self.read(following::all_due)?;
        Ok(due
            .iter()
            .any(|(name, _)| path.file_name().is_some_and(|file| file == name.as_str())))
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

pub(crate) fn hash_file(path: &Path, algorithm: Algorithm) -> Result<Digest> {
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

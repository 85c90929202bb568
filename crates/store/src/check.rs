//! Compares the records with what is on disk, and repairs what can be derived from them.
//!
//! `check` reads every record and looks for its tree, its record file and its blobs. What can be
//! computed from the database (short names, lists of lowers, record files) is repaired on request;
//! what holds data is only reported. `rebuild.rs` goes the other way, for a lost database: it reads
//! the record files.
//!
//! Other commands may run at the same time, and what they are changing differs for a moment. So
//! whatever looks wrong is looked at again before it is reported or repaired: with its record file
//! locked (`record_lock.rs`), and against the database as it is by then.

use std::{collections::HashSet, path::Path};

use rusqlite::Transaction;
use vellum_format::Digest;
use vellum_sys::{FileKind, plain, with_causes};

use crate::{
    content,
    driver::{self, Finding, TreeRef},
    error::{DbContext, IoContext, Result, StoreError},
    generation, hands, layout,
    record_lock::RecordLock,
    records,
    rows::{self, snapshots::SnapshotRow},
    sidecar::{ContainerFile, ImageFile, Sidecar},
    snapshot::SnapshotKey,
    snapshots::Sweep,
    store::Store,
};

/// How thoroughly to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Repair what is derived from the database.
    pub heal: bool,
    /// Read every blob and recipe, and compare their digests.
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
    /// Compares every record with what is on disk. Returns what is wrong: nothing if all is well.
    ///
    /// Runs alongside other commands. What they change or remove during the check is neither
    /// reported nor undone. Errors: `Database`, `Io`.
    pub fn check(&self, options: CheckOptions) -> Result<Vec<Finding>> {
        if options.heal {
            self.inner.database.refuse_if_rolled_back()?;
        }
        let mut found = hands::check(self.layout(), options.heal)?;
        found.extend(self.check_database()?);
        if hands::own(self.layout()).is_err() {
            // Other differences follow from this one, and some things could not be looked at.
            return Ok(found);
        }
        if let Some(why) = self.look_for_rollback()? {
            // Other differences follow from this one.
            found.push(finding(
                self.layout().database().display(),
                format!("has gone back in time: {why}"),
                false,
            ));
            return Ok(found);
        }
        let parents = self.read(rows::snapshots::parents)?;
        found.extend(parents.errors().map(|error| {
            let why = format!(
                "{error}; `vellum check --rebuild` makes a new database from the record files"
            );
            finding("the database", why, false)
        }));
        let mut after: Option<SnapshotKey> = None;
        loop {
            let page = self.read(|tx| {
                rows::snapshots::page(tx, after.as_ref(), 64)?
                    .into_iter()
                    .map(|row| {
                        // A snapshot whose parents can't be determined was reported above.
                        let below = match parents.is_broken(row.id) {
                            true => None,
                            false => rows::snapshots::ancestors(tx, row.id).map(Some)?,
                        };
                        Ok((row, below))
                    })
                    .collect::<Result<Vec<_>>>()
            })?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.record.key.clone());
            for (row, below) in page {
                let Some(below) = below else { continue };
                if !self.check_tree(&row, &below, false)?.is_empty() {
                    let tree = self.layout().tree(row.driver(), &row.record.tree);
                    found.extend(or_finding(
                        &tree,
                        self.check_tree_again(&row, options.heal),
                    )?);
                }
            }
        }
        self.check_sidecars(options.heal, &mut found)?;
        self.check_files(options, &mut found)?;
        // One cause that affects many things is reported once.
        let mut told = HashSet::new();
        found.retain(|finding| told.insert((finding.what.clone(), finding.why.clone())));
        Ok(found)
    }

    /// Has SQLite check the database for contradictions.
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
        let tree = self.layout().tree(row.driver(), &row.record.tree);
        let looked = driver.check(self.layout(), &row.tree_ref(), parents, heal);
        let mut found = or_finding(&tree, looked)?;
        found.extend(or_finding(
            &tree,
            hands::check_inner(self.layout(), &tree, heal),
        )?);
        found.extend(or_finding(&tree, self.check_record(row, heal))?);
        Ok(found)
    }

    /// The same with the tree's record locked, against what the database says then. A tree that was
    /// removed is not reported.
    fn check_tree_again(&self, seen: &SnapshotRow, heal: bool) -> Result<Vec<Finding>> {
        let _lock = RecordLock::of_tree(self, &seen.record.tree)?;
        let same = |tx: &Transaction<'_>| {
            let row = rows::snapshots::find_id(tx, seen.id)?;
            Ok(row.filter(|row| row.record.tree == seen.record.tree))
        };
        let now = self.read(|tx| match same(tx)? {
            Some(row) => {
                let parents = rows::snapshots::ancestors(tx, row.id)?;
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
            // Removes what the repair put back after the tree was removed.
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
        let records = self.layout().records();
        for image in self.images()? {
            let now = || {
                Ok(self
                    .read(|tx| rows::images::find(tx, &image.id))?
                    .as_ref()
                    .map(ImageFile::from))
            };
            let file = ImageFile::from(&image);
            found.extend(or_finding(&records, self.check_sidecar(&file, now, heal))?);
        }
        for container in self.containers()? {
            let now = || {
                let container = self.read(|tx| rows::containers::find(tx, &container.id))?;
                Ok(container.as_ref().map(ContainerFile::from))
            };
            let file = ContainerFile::from(&container);
            found.extend(or_finding(&records, self.check_sidecar(&file, now, heal))?);
        }
        Ok(())
    }

    /// Compares a record file with what the database said, and before anything is done about it
    /// with what the database says `now`.
    fn check_sidecar<T: Sidecar>(
        &self,
        seen: &T,
        now: impl Fn() -> Result<Option<T>>,
        heal: bool,
    ) -> Result<Option<Finding>> {
        let path = self.layout().records().join(seen.name());
        if records::differs(&path, seen).is_none() {
            return Ok(None);
        }
        let _lock = RecordLock::of_sidecars(self)?;
        let Some(expect) = now()? else {
            return Ok(None);
        };
        let Some(why) = records::differs(&path, &expect) else {
            return Ok(None);
        };
        if !heal && self.is_due(&path)? {
            return Ok(None);
        }
        if heal {
            let stamp = self.read(generation::stamp)?;
            records::replace(self.layout(), &path, &expect, &stamp)?;
            records::sync(self.layout())?;
        }
        Ok(Some(finding(path.display(), why, heal)))
    }

    /// Returns whether a record file is known to be out of date, for lack of space for example: the
    /// next command that can will rewrite it.
    fn is_due(&self, path: &Path) -> Result<bool> {
        let due = self.read(rows::due::all)?;
        Ok(due
            .iter()
            .any(|(name, _)| path.file_name().is_some_and(|file| file == name.as_str())))
    }

    fn check_files(&self, options: CheckOptions, found: &mut Vec<Finding>) -> Result<()> {
        let reserve = self.layout().reserve();
        if let Some(there) = plain::stat(&reserve)?
            && !there.is_file()
        {
            let error = plain::wrong_kind("open", &reserve, there.kind, FileKind::File);
            let why = format!("{}; remove it", error.source);
            found.push(finding(reserve.display(), why, false));
        }
        for (digest, size) in self.read(rows::blobs::all)? {
            let path = self.layout().blob(&digest);
            let expect = options.deep.then_some(&digest);
            let look = || wrong_file(&path, expect, size, BLOB_REMEDY);
            if let Some(why) = lasting(look, || Ok(self.blob(&digest)?.is_some()))? {
                found.push(finding(path.display(), why, false));
            }
        }
        for recipe in self.read(rows::recipes::all)? {
            let path = self.layout().recipe(&recipe.diff_id);
            let digest = recipe.digest.filter(|_| options.deep);
            let look = || wrong_file(&path, digest.as_ref(), recipe.size_bytes, RECIPE_REMEDY);
            let known = || self.read(|tx| rows::recipes::has(tx, &recipe.diff_id));
            if let Some(why) = lasting(look, known)? {
                found.push(finding(path.display(), why, false));
            }
        }
        for volume in self.volumes()? {
            let look = || {
                let mut wrong = or_finding(&volume.path, Finding::unless_there(&volume.path))?;
                if let Some(own) = volume.path.parent() {
                    let exposed = hands::check_inner(self.layout(), own, options.heal);
                    wrong.extend(or_finding(own, exposed)?);
                }
                Ok((!wrong.is_empty()).then_some(wrong))
            };
            let known = || self.read(|tx| rows::volumes::has(tx, &volume.name));
            found.extend(lasting(look, known)?.unwrap_or_default());
        }
        Ok(())
    }
}

/// How to repair a recipe.
const RECIPE_REMEDY: &str =
    "load or pull its image again to repair it; until then the layer can't be saved";

/// Says what is wrong with a file's length, if anything is.
fn wrong_size(path: &Path, size_bytes: u64, remedy: &str) -> Option<String> {
    match plain::stat(path) {
        Err(e) => Some(with_causes(&layout::damaged(e))),
        Ok(None) => Some(format!("missing; {remedy}")),
        Ok(Some(found)) if !found.is_file() => {
            let error = plain::wrong_kind("open", path, found.kind, FileKind::File);
            Some(format!("{}; {remedy}", error.source))
        }
        Ok(Some(found)) if found.size_bytes != size_bytes => Some(format!(
            "has {} bytes, should have {size_bytes}; {remedy}",
            found.size_bytes
        )),
        Ok(Some(_)) => None,
    }
}

/// How to repair a blob.
const BLOB_REMEDY: &str = "load or pull its image again";

/// Says what is wrong with a file's length and, if a digest is given, its digest.
fn wrong_file(
    path: &Path,
    digest: Option<&Digest>,
    size_bytes: u64,
    remedy: &str,
) -> Result<Option<String>> {
    if let Some(why) = wrong_size(path, size_bytes, remedy) {
        return Ok(Some(why));
    }
    let Some(digest) = digest else {
        return Ok(None);
    };
    Ok(match hash_file(path) {
        Ok(Some((actual, _))) if actual == *digest => None,
        Ok(Some((actual, _))) => Some(format!("holds {actual}; {remedy}")),
        Ok(None) => Some(format!("missing; {remedy}")),
        Err(e) => Some(with_causes(&e)),
    })
}

/// Turns an error about one thing into a finding, so that the rest is still looked at.
fn or_finding(
    path: &Path,
    looked: Result<impl IntoIterator<Item = Finding>>,
) -> Result<Vec<Finding>> {
    match looked {
        Ok(found) => Ok(found.into_iter().collect()),
        Err(StoreError::Damaged { what, why }) => Ok(vec![finding(what, why, false)]),
        Err(error @ (StoreError::Io { .. } | StoreError::Sys(_))) => {
            Ok(vec![finding(path.display(), with_causes(&error), false)])
        }
        Err(other) => Err(other),
    }
}

/// Returns what is wrong with a file of the store that never changes, unless its record was removed
/// during the check, or removed and added again.
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

/// Returns the digest and length of a file; `None` if there is none.
pub(crate) fn hash_file(path: &Path) -> Result<Option<(Digest, u64)>> {
    match layout::open(path)? {
        Some(mut file) => content::hash(&mut file).map(Some).on("read", path),
        None => Ok(None),
    }
}

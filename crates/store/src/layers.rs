//! Layers that come from outside: staged, filled by the caller, committed under their chain's name.
//!
//! Where the driver stacks (`overlay2`), a layer is filled without knowing its parent, so that all
//! layers of an image unpack at once; the parent is given at the commit. The other drivers need the
//! parent's tree first. Several layers are committed with one sync and one transaction. A layer
//! that another process has committed by then is returned, not stored twice.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use vellum_format::Digest;
use vellum_sys::publish::{data_order, order_data};

use crate::{
    content::{self, RecipeFacts},
    driver::{self, DriverKind, LayerMarks, NewTree, TreeId, TreeRef},
    error::{Result, StoreError, Subject},
    following::{self, Follower},
    layout,
    lease::{self, LeaseId},
    record::TreeRecord,
    record_lock::RecordLock,
    rows,
    snapshot::{Info, Keep, Labels, MountFeatures, SnapshotKey, SnapshotKind},
    snapshots::{Placed, Undo, chain, check_create, own, parent_row},
    store::Store,
    tx::Staged,
};

/// A layer being filled. Dropping it uncommitted removes it.
#[derive(Debug)]
pub struct StagedLayer {
    staged: Staged,
    record: TreeRecord,
    parents: Vec<TreeRef>,
    root: PathBuf,
}

impl StagedLayer {
    /// Returns the directory to unpack into: it exists, with mode 0755; the path is absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns how the tar's marks must be written there.
    pub fn marks(&self) -> LayerMarks {
        self.record.driver.marks()
    }
}

/// A file being written under `staging/`. Dropping it unpublished removes it.
#[derive(Debug)]
pub struct StagedFile {
    pub(crate) staged: Staged,
    file: File,
}

impl StagedFile {
    /// Returns the open file, for reading and writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// How a filled layer is recorded.
#[derive(Debug)]
pub struct LayerCommit {
    /// Its name: the chain id's text.
    pub name: SnapshotKey,
    /// The layer below.
    pub parent: Option<SnapshotKey>,
    /// Its labels.
    pub labels: Labels,
    /// What ends its life.
    pub keep: Keep,
    /// Digest of its uncompressed tar.
    pub diff_id: Option<Digest>,
    /// Length of that tar.
    pub tar_bytes: Option<u64>,
    /// What the tree can't say about the tar; needs `diff_id`.
    pub recipe: Option<StagedFile>,
    /// The lease to hold it.
    pub lease: Option<LeaseId>,
    /// Marks it carries besides whiteouts and opaque directories; `None` for what came out of a
    /// tar.
    pub features: Option<MountFeatures>,
}

impl LayerCommit {
    /// A layer `name` on `parent`, with nothing else known.
    pub fn new(name: SnapshotKey, parent: Option<SnapshotKey>) -> Self {
        Self {
            name,
            parent,
            labels: Labels::new(),
            keep: Keep::default(),
            diff_id: None,
            tar_bytes: None,
            recipe: None,
            lease: None,
            features: None,
        }
    }
}

/// The result of committing a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is recorded.
    New(Info),
    /// A layer of that name existed already (and is now held by the lease, if one was given); the
    /// staged one is gone.
    Existing(Info),
}

impl Registered {
    /// Returns what is recorded in either case.
    pub fn info(&self) -> &Info {
        match self {
            Self::New(info) | Self::Existing(info) => info,
        }
    }
}

/// A batch member between publishing and recording.
struct Ready {
    commit: LayerCommit,
    placed: Placed,
    recipe_facts: Option<RecipeFacts>,
}

impl Store {
    /// Returns the driver for a layer on `parent`: the parent's, or the store's default.
    pub fn layer_driver(&self, parent: Option<&SnapshotKey>) -> Result<DriverKind> {
        match parent {
            None => Ok(self.inner.driver),
            Some(key) => Ok(self.stat(key)?.driver),
        }
    }

    /// Creates an empty staged file, for a recipe.
    pub fn stage_file(&self) -> Result<StagedFile> {
        self.inner.database.refuse_if_rolled_back()?;
        let (staged, file) = Staged::file(self.layout(), TreeId::random().as_str())?;
        Ok(StagedFile { staged, file })
    }

    /// Stages an empty layer whose parent is given at the commit. `driver`: `None` for the store's
    /// default.
    ///
    /// Errors: `Unsupported` for drivers that don't stack: use [`Store::stage_layer_on`] there,
    /// parents first.
    pub fn stage_layer(&self, driver: Option<DriverKind>) -> Result<StagedLayer> {
        let kind = driver.unwrap_or(self.inner.driver);
        if !kind.stacks() {
            return Err(StoreError::Unsupported {
                what: "staging a layer before its parent".into(),
                why: format!("{kind} keeps whole trees; commit the parent first and stage on it"),
            });
        }
        self.stage_on(kind, Vec::new())
    }

    /// Stages a layer on `parent`, which must be committed, in the parent's driver (the store's
    /// default without a parent).
    ///
    /// With a driver that doesn't stack, it holds the parent's full tree when this returns.
    pub fn stage_layer_on(&self, parent: Option<&SnapshotKey>) -> Result<StagedLayer> {
        let (kind, parents) = self.read(|tx| {
            let row = parent_row(tx, parent)?;
            crate::snapshot::policy_create(
                &SnapshotKey::from("?"),
                false,
                parent.map(|parent| (parent, row.as_ref().map(|row| row.record.kind))),
            )?;
            match &row {
                None => Ok((self.inner.driver, Vec::new())),
                Some(row) => Ok((row.driver(), chain(tx, row)?)),
            }
        })?;
        self.stage_on(kind, parents)
    }

    /// Stages an empty layer without a parent, in any driver, whatever the store's default is.
    pub fn stage_base(&self, driver: DriverKind) -> Result<StagedLayer> {
        self.stage_on(driver, Vec::new())
    }

    fn stage_on(&self, kind: DriverKind, parents: Vec<TreeRef>) -> Result<StagedLayer> {
        let driver = driver::driver(kind);
        self.ensure_home(kind)?;
        // The name comes at the commit; until then the record is not written anywhere.
        let (staged, record) = self.stage(
            driver,
            kind,
            &SnapshotKey::from("(staged)"),
            SnapshotKind::Committed,
            &parents,
        )?;
        let new = NewTree {
            id: &record.tree,
            kind: SnapshotKind::Committed,
            link: record.link.as_ref(),
            parents: &parents,
        };
        driver.stage(self.layout(), staged.path(), &new)?;
        let root = driver.fill(staged.path());
        Ok(StagedLayer {
            staged,
            record,
            parents,
            root,
        })
    }

    /// Commits one staged layer, like [`Store::commit_layers`].
    pub fn commit_layer(&self, layer: StagedLayer, commit: LayerCommit) -> Result<Registered> {
        let mut done = self.commit_layers(vec![(layer, commit)])?;
        done.pop()
            .ok_or_else(|| StoreError::Invalid("no layer to commit".into()))
    }

    /// Commits staged layers, parents before their children, with one sync and one transaction.
    ///
    /// Records all or none, durable on return, data first. A layer whose name exists already is
    /// dropped and reported as existing. Errors: `NotFound` or `ParentNotCommitted` (parent),
    /// `Unsupported` if a parent uses another driver, `Io`; the staged layers are then gone.
    pub fn commit_layers(
        &self,
        layers: Vec<(StagedLayer, LayerCommit)>,
    ) -> Result<Vec<Registered>> {
        let mut batch: HashMap<SnapshotKey, (DriverKind, Vec<TreeRef>)> = HashMap::new();
        let mut ready = Vec::with_capacity(layers.len());
        // If an existing layer replaces a parent from the batch, the files learn that later. No
        // other process knows these trees yet, so nobody waits.
        let mut locks = Vec::with_capacity(layers.len());
        for (layer, commit) in layers {
            let (driver_kind, parents) = match &commit.parent {
                None => (layer.record.driver, Vec::new()),
                Some(parent) => match batch.get(parent) {
                    Some(known) => known.clone(),
                    None => self.read(|tx| {
                        let row = parent_row(tx, Some(parent))?;
                        let kind = row.as_ref().map(|row| row.record.kind);
                        crate::snapshot::policy_create(&commit.name, false, Some((parent, kind)))?;
                        match &row {
                            Some(row) => Ok((row.driver(), chain(tx, row)?)),
                            None => Err(StoreError::not_found(Subject::Snapshot, parent)),
                        }
                    })?,
                },
            };
            let (one, lock) = self.make_ready(layer, commit, driver_kind, parents.clone())?;
            locks.push(lock);
            let mut chain = vec![own(&one.placed.record)];
            chain.extend(parents);
            batch.insert(one.commit.name.clone(), (driver_kind, chain));
            ready.push(one);
        }
        let Some(first) = ready.first() else {
            return Ok(Vec::new());
        };
        vellum_sys::publish::sync_fs(layout::dir(first.placed.staged.path())?)?;
        let done = self.write(|tx| {
            ready
                .iter()
                .map(|one| self.record_layer(tx, one))
                .collect::<Result<Vec<_>>>()
        });
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                if matches!(error, StoreError::Uncertain { .. }) {
                    ready.into_iter().for_each(|one| one.placed.keep());
                }
                return Err(error);
            }
        };
        // All that is recorded stays, before anything else can fail.
        let mut recorded = Vec::with_capacity(ready.len());
        for (one, registered) in ready.into_iter().zip(&done) {
            let Registered::New(_) = registered else {
                continue;
            };
            recorded.push(one.placed.record.clone());
            one.placed.keep();
            if let Some(recipe) = one.commit.recipe {
                recipe.staged.keep();
            }
        }
        for mut record in recorded {
            // An existing layer may have replaced a parent from the batch: then what is derived
            // from the parent is repaired.
            let (row, parents) = self.read(|tx| {
                let row = rows::snapshots::get(tx, &record.key)?;
                let parents = rows::snapshots::ancestors(tx, row.id)?;
                Ok((row, parents))
            })?;
            if row.record.parent != record.parent {
                record.parent = row.record.parent.clone();
                self.follow(&[Follower::Tree(record.tree.clone())]);
                driver::driver(record.driver).check(
                    self.layout(),
                    &row.tree_ref(),
                    &parents,
                    true,
                )?;
            }
        }
        drop(locks);
        Ok(done)
    }

    fn make_ready(
        &self,
        layer: StagedLayer,
        mut commit: LayerCommit,
        driver_kind: DriverKind,
        parents: Vec<TreeRef>,
    ) -> Result<(Ready, RecordLock<'static>)> {
        let StagedLayer {
            mut staged,
            mut record,
            parents: staged_on,
            ..
        } = layer;
        if driver_kind != record.driver {
            return Err(StoreError::Unsupported {
                what: format!("layer {} staged for {}", commit.name, record.driver),
                why: format!("its parent uses {driver_kind}; stage it for that driver"),
            });
        }
        let driver = driver::driver(driver_kind);
        let same = staged_on.first().map(|tree| &tree.id) == parents.first().map(|tree| &tree.id);
        if !same {
            if !staged_on.is_empty() {
                return Err(StoreError::Invalid(format!(
                    "layer {} was staged on another parent than it is committed on",
                    commit.name
                )));
            }
            driver.rebase(staged.path(), &parents)?;
        }
        record.key = commit.name.clone();
        record.labels = commit.labels.clone();
        record.keep = commit.keep;
        record.parent = parents.first().map(|tree| tree.id.clone());
        record.created_ns = rows::now_ns();
        record.updated_ns = record.created_ns;
        record.diff_id = commit.diff_id;
        record.tar_bytes = commit.tar_bytes;
        record.features = commit.features;
        driver.seal(self.layout(), staged.path(), &own(&record), &parents)?;
        record.usage = Some(driver.usage(self.layout(), staged.path(), &own(&record), &parents)?);
        let undo = Undo::new(self, &record);
        let new = NewTree {
            id: &record.tree,
            kind: SnapshotKind::Committed,
            link: record.link.as_ref(),
            parents: &parents,
        };
        staged.publish(&self.layout().tree(record.driver, &record.tree))?;
        driver.link(self.layout(), &new)?;
        let lock = RecordLock::of_new(record.create(self.layout(), &self.next_stamp()?)?)?;
        let recipe_facts = match (&mut commit.recipe, &commit.diff_id) {
            (None, _) => None,
            (Some(_), None) => {
                return Err(StoreError::Invalid(
                    "a recipe needs the layer's diff id".into(),
                ));
            }
            (Some(recipe), Some(diff_id)) => {
                let facts = RecipeFacts::of(recipe)?;
                // It may replace one that is in use, which a power loss must not leave empty.
                order_data(&recipe.file, data_order(&recipe.file)?)?;
                recipe
                    .staged
                    .publish_shared(&self.layout().recipe(diff_id))?;
                Some(facts)
            }
        };
        let ready = Ready {
            placed: Placed::new(staged, record, undo),
            commit,
            recipe_facts,
        };
        Ok((ready, lock))
    }

    fn record_layer(&self, tx: &rusqlite::Transaction<'_>, one: &Ready) -> Result<Registered> {
        let record = &one.placed.record;
        if let Some(row) = rows::snapshots::find(tx, &record.key)?
            && row.record.kind == SnapshotKind::Committed
        {
            if let Some(lease) = &one.commit.lease {
                lease::hold_snapshot(tx, lease, row.id)?;
            }
            return Ok(Registered::Existing(row.info()));
        }
        let parent = parent_row(tx, one.commit.parent.as_ref())?;
        check_create(tx, &record.key, one.commit.parent.as_ref(), parent.as_ref())?;
        let other_parent = parent.as_ref().map(|row| &row.record.tree) != record.parent.as_ref();
        let id = rows::snapshots::insert(tx, record, parent.map(|row| row.id))?;
        if other_parent {
            following::due(tx, &Follower::Tree(record.tree.clone()))?;
        }
        if let Some(lease) = &one.commit.lease {
            lease::hold_snapshot(tx, lease, id)?;
        }
        if let (Some(facts), Some(diff_id)) = (&one.recipe_facts, &record.diff_id) {
            content::record_recipe(self, tx, diff_id, facts)?;
        }
        Ok(Registered::New(rows::snapshots::by_id(tx, id)?.info()))
    }
}

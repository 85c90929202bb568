//! Unpacks layers from a source into the store.
//!
//! Layers that the store has are neither read nor stored again. The others are read, inflated,
//! hashed and applied in one pass each, several at once if the driver stacks directories; if it
//! keeps whole trees (`overlay`, `native`), one after the other, each on its parent. Digests are
//! compared with the image's before anything is committed, and all layers are committed with one
//! sync. If anything fails, or the user stops it, every staged layer is dropped: the store is as
//! before.
//!
//! A layer may contain a file below a directory that it does not list itself. Such an implied
//! directory gets the attributes of the directory below, which is known only when all layers are
//! unpacked: [`settle_on`] does that, through the union.

use std::io::{self, BufWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vellum_format::Digest;
use vellum_image::apply::apply;
use vellum_image::config::{ChainId, chain_ids};
use vellum_image::recipe;
use vellum_image::source::{ImageSource, SourceLayer};
use vellum_image::tar::Ending;
use vellum_image::{Applied, ApplyTarget, LayerStream, Limits, Progress as StreamProgress};
use vellum_store::{
    BlobWriter, DriverKind, LayerCommit, Lease, LeaseResource, StagedFile, StagedLayer, Store,
    StoreError,
};
use vellum_sys::{Cancel, Dir, sync};
use vellum_union::{DirLayer, Layer};

use super::fill::{apply_to, target};
use super::key;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::on_parents::{implied, settle_on};
use crate::progress::{Meter, Unit};
use crate::stack;

/// How often progress is reported and a request to stop is passed on.
const TICK: Duration = Duration::from_millis(50);

/// The result for one layer.
#[derive(Clone, Debug)]
pub(super) struct Unpacked {
    pub(super) chain_id: ChainId,
    pub(super) diff_id: Digest,
    pub(super) tar_bytes: u64,
    /// Whether the store already had it.
    pub(super) present: bool,
}

/// What all steps of one import share.
pub(super) struct Unpacking<'a> {
    pub(super) context: &'a Context,
    pub(super) store: &'a Store,
    pub(super) lease: &'a Lease,
    pub(super) source: &'a dyn ImageSource,
    pub(super) image: usize,
    /// Set when one layer fails, so that the others stop too.
    stop: Cancel,
}

/// A layer that has been applied but not committed.
struct Filled {
    staged: StagedLayer,
    recipe: StagedFile,
    applied: Applied,
    blob: Option<BlobWriter>,
}

/// Brings every layer of the image into the store, held by `lease`. Returns them bottom first.
pub(super) fn unpack(
    context: &Context,
    store: &Store,
    lease: &Lease,
    source: &dyn ImageSource,
    image: usize,
) -> Result<Vec<Unpacked>> {
    let unpacking = Unpacking {
        context,
        store,
        lease,
        source,
        image,
        stop: Cancel::new(),
    };
    unpacking.run()
}

impl Unpacking<'_> {
    fn run(&self) -> Result<Vec<Unpacked>> {
        let layers = &self.source.images()[self.image].layers;
        let diff_ids: Vec<Digest> = layers.iter().map(|l| l.diff_id).collect();
        let chain = chain_ids(&diff_ids);
        let present = self.hold_present(&chain)?;
        let mut done = Vec::with_capacity(layers.len());
        for at in 0..present {
            done.push(Unpacked {
                chain_id: chain[at],
                diff_id: diff_ids[at],
                tar_bytes: self.known_tar_bytes(at, &chain[at])?,
                present: true,
            });
            self.mend_recipe_of_present(at, &chain)?;
            self.keep_blob_of_present(at)?;
            let meter = self.meter(at, &layers[at]);
            meter.finish("already there");
        }
        if present == layers.len() {
            return Ok(done);
        }
        let parent = present.checked_sub(1).map(|at| key(&chain[at]));
        let driver = self.store.layer_driver(parent.as_ref())?;
        let new = if driver.stacks() {
            self.side_by_side(present, driver, &chain)?
        } else {
            self.one_by_one(present, &chain)?
        };
        done.extend(new);
        Ok(done)
    }

    /// Returns how many layers, from the bottom, the store has; they are held from now on.
    fn hold_present(&self, chain: &[ChainId]) -> Result<usize> {
        // A layer implies all layers below it, so the topmost one found decides.
        for at in (0..chain.len()).rev() {
            if self.lease.hold(&LeaseResource::Snapshot(key(&chain[at])))? {
                return Ok(at + 1);
            }
        }
        Ok(0)
    }

    fn layer(&self, at: usize) -> &SourceLayer {
        &self.source.images()[self.image].layers[at]
    }

    fn open(&self, at: usize) -> Result<Box<dyn Read + Send>> {
        Ok(self.source.open_layer(self.image, at)?)
    }

    fn keep_blobs(&self) -> bool {
        self.context.config.keep_blobs.value
    }

    /// Returns the length of a present layer's tar; recorded in the store unless another program
    /// created the layer.
    fn known_tar_bytes(&self, at: usize, chain_id: &ChainId) -> Result<u64> {
        if let Some(bytes) = self.store.stat(&key(chain_id))?.tar_bytes {
            return Ok(bytes);
        }
        let mut stream =
            LayerStream::open(self.open(at)?, &Limits::default(), &self.context.cancel)?;
        io::copy(&mut stream, &mut io::sink())
            .map_err(|e| Error::Image(vellum_image::Error::Read(e)))?;
        let facts = stream.finish()?;
        self.layer(at).check(&facts)?;
        Ok(facts.tar_bytes)
    }

    /// Recreates the recipe of a present layer if it is missing or damaged: the layer is unpacked
    /// once more and thrown away.
    ///
    /// A layer that was not created from this very tar never had a recipe.
    fn mend_recipe_of_present(&self, at: usize, chain: &[ChainId]) -> Result<()> {
        let info = self.store.stat(&key(&chain[at]))?;
        let diff_id = self.layer(at).diff_id;
        if info.diff_id.as_ref() != Some(&diff_id) || info.tar_bytes.is_none() {
            return Ok(());
        }
        self.lease.hold(&LeaseResource::Recipe(diff_id))?;
        let sound = match self.store.open_recipe(&diff_id) {
            Ok(Some(mut file)) => {
                recipe::verify(&mut file).is_ok_and(|of| of == self.layer(at).diff_id)
            }
            Ok(None) | Err(StoreError::Damaged { .. }) => false,
            Err(e) => return Err(e.into()),
        };
        if sound {
            return Ok(());
        }
        self.context.progress.say(&format!(
            "the recipe of layer {} is missing or damaged: recreating it",
            crate::names::short(&diff_id.to_string())
        ));
        let staged = match info.driver.stacks() {
            true => self.store.stage_layer(Some(info.driver))?,
            false => {
                let parent = at.checked_sub(1).map(|below| key(&chain[below]));
                self.store.stage_layer_on(parent.as_ref())?
            }
        };
        let filled = self.fill(at, staged)?;
        Ok(self.store.put_recipe(&diff_id, filled.recipe)?)
    }

    /// Stores the blob of a layer that needs no unpacking, if blobs are kept and it is missing.
    fn keep_blob_of_present(&self, at: usize) -> Result<()> {
        let Some(blob) = self.layer(at).blob.as_ref().filter(|_| self.keep_blobs()) else {
            return Ok(());
        };
        let digest = blob.blob.digest;
        if self.lease.hold(&LeaseResource::Blob(digest))? {
            return Ok(());
        }
        let mut writer = self.store.blob_writer(Some(&digest))?;
        let mut reader = self.open(at)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            self.context.go_on()?;
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => writer
                    .write_all(&buffer[..got])
                    .map_err(Error::io("write a blob below", self.store.root()))?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Image(vellum_image::Error::Read(e))),
            }
        }
        writer.commit(Some(self.lease.id()))?;
        Ok(())
    }

    fn meter(&self, at: usize, layer: &SourceLayer) -> Box<dyn Meter> {
        let total = self.source.images()[self.image].layers.len();
        let what = format!(
            "layer {}/{total} {}",
            at + 1,
            crate::names::short(&layer.diff_id.to_string())
        );
        let size = layer.blob.as_ref().map(|b| b.blob.size_bytes);
        self.context.progress.meter(&what, Unit::Bytes, size)
    }

    /// Unpacks all layers from `first` on at once, then commits them together.
    fn side_by_side(
        &self,
        first: usize,
        driver: DriverKind,
        chain: &[ChainId],
    ) -> Result<Vec<Unpacked>> {
        let count = chain.len() - first;
        let next = AtomicUsize::new(0);
        let slots: Vec<Mutex<Option<Result<Filled>>>> =
            (0..count).map(|_| Mutex::new(None)).collect();
        let workers = self.context.config.jobs.value.clamp(1, count);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= count || self.stop.is_cancelled() {
                            return;
                        }
                        let filled = self
                            .store
                            .stage_layer(Some(driver))
                            .map_err(Error::from)
                            .and_then(|staged| self.fill(first + at, staged));
                        if filled.is_err() {
                            self.stop.cancel();
                        }
                        *sync::lock(&slots[at]) = Some(filled);
                    }
                });
            }
        });
        self.context.go_on()?;
        let mut filled = Vec::with_capacity(count);
        let mut stopped = false;
        for slot in slots {
            match sync::into_inner(slot) {
                Some(Ok(one)) => filled.push(one),
                // Layers that stopped because another one failed are not the cause.
                Some(Err(Error::Image(vellum_image::Error::Cancelled))) | None => stopped = true,
                Some(Err(e)) => return Err(e),
            }
        }
        if stopped {
            return Err(Error::Cancelled);
        }
        self.lend_all(first, &filled, chain)?;
        self.commit(first, filled, chain)
    }

    /// Unpacks and commits one layer after the other, for drivers that keep whole trees.
    fn one_by_one(&self, first: usize, chain: &[ChainId]) -> Result<Vec<Unpacked>> {
        let mut done = Vec::new();
        for at in first..chain.len() {
            self.context.go_on()?;
            let parent = at.checked_sub(1).map(|below| key(&chain[below]));
            let staged = self.store.stage_layer_on(parent.as_ref())?;
            let filled = self.fill(at, staged).map_err(|e| match e {
                Error::Image(vellum_image::Error::Cancelled) => Error::Cancelled,
                other => other,
            })?;
            done.extend(self.commit(at, vec![filled], &chain[..=at])?);
        }
        Ok(done)
    }

    /// Reads the layer number `at` into `staged` and checks it. The staged layer is dropped on
    /// failure.
    fn fill(&self, at: usize, staged: StagedLayer) -> Result<Filled> {
        let layer = self.layer(at);
        let mut recipe = self.store.stage_file()?;
        let progress = StreamProgress::default();
        let meter = self.meter(at, layer);
        let finished = AtomicBool::new(false);
        let kept = self.blob_to_keep(layer)?;
        let applied = thread::scope(|scope| {
            let watcher = scope.spawn(|| self.watch(&progress, meter.as_ref(), &finished));
            let applied = self.read_into(at, &staged, &mut recipe, &progress, kept.clone());
            finished.store(true, Ordering::Release);
            watcher.thread().unpark();
            applied
        })?;
        layer.check(&applied.blob)?;
        meter.finish("unpacked");
        let name = crate::names::short(&layer.diff_id.to_string()).to_owned();
        if let Some(remark) = left_out(&format!("layer {name}"), &applied) {
            self.context.progress.warn(&remark);
        }
        let blob = kept.and_then(|shared| shared.take());
        Ok(Filled {
            staged,
            recipe,
            applied,
            blob,
        })
    }

    /// Reports progress and passes on the user's request to stop, until the layer is done.
    fn watch(&self, progress: &StreamProgress, meter: &dyn Meter, finished: &AtomicBool) {
        let mut shown = 0;
        while !finished.load(Ordering::Acquire) {
            thread::park_timeout(TICK);
            if self.context.cancel.is_cancelled() {
                self.stop.cancel();
            }
            let now = progress.blob_bytes();
            meter.advance(now - shown);
            shown = now;
        }
    }

    fn read_into(
        &self,
        at: usize,
        staged: &StagedLayer,
        recipe: &mut StagedFile,
        progress: &StreamProgress,
        kept: Option<SharedBlob>,
    ) -> Result<Applied> {
        let mut blob = self.open(at)?;
        if let Some(kept) = kept {
            blob = Box::new(Tee {
                inner: blob,
                copy: kept,
            });
        }
        let target = ApplyTarget {
            donor: self.source.layer_tree(self.image, at),
            ..target(self.context.process, staged)?
        };
        let limits = Limits::default();
        let stream = LayerStream::open_with_progress(blob, &limits, &self.stop, progress.clone())?;
        let mut recipe = BufWriter::new(recipe);
        let applied = apply(stream, &target, Some(&mut recipe), &limits, &self.stop)?;
        recipe
            .flush()
            .map_err(Error::io("write a recipe below", self.store.root()))?;
        Ok(applied)
    }

    fn blob_to_keep(&self, layer: &SourceLayer) -> Result<Option<SharedBlob>> {
        let Some(blob) = layer.blob.as_ref().filter(|_| self.keep_blobs()) else {
            return Ok(None);
        };
        let digest = blob.blob.digest;
        if self.lease.hold(&LeaseResource::Blob(digest))? {
            return Ok(None);
        }
        Ok(Some(SharedBlob::new(
            self.store.blob_writer(Some(&digest))?,
        )))
    }

    /// Gives implied directories the attributes of the directories below them, lower layers first.
    fn lend_all(&self, first: usize, filled: &[Filled], chain: &[ChainId]) -> Result<()> {
        let nothing_to_do = |one: &Filled| {
            let applied = &one.applied;
            implied(applied).next().is_none()
                && applied.whiteout_dirs.is_empty()
                && !applied.root_opaque
        };
        if filled.iter().all(nothing_to_do) {
            return Ok(());
        }
        let dialect = stack::archive_dialect(self.context.process);
        let mut below: Vec<Arc<dyn Layer>> = Vec::new();
        if let Some(at) = first.checked_sub(1) {
            for layer in self.store.tree(&key(&chain[at]))?.layers() {
                below.push(Arc::new(DirLayer::open(&layer.dir, dialect)?));
            }
        }
        for one in filled {
            settle_on(
                self.context.process,
                &Dir::open(one.staged.root())?,
                &one.applied,
                &below,
            )?;
            below.insert(0, Arc::new(DirLayer::open(one.staged.root(), dialect)?));
        }
        Ok(())
    }

    /// Commits filled layers, beginning with number `first`, with one sync.
    fn commit(
        &self,
        first: usize,
        filled: Vec<Filled>,
        chain: &[ChainId],
    ) -> Result<Vec<Unpacked>> {
        self.context.go_on()?;
        let mut batch = Vec::with_capacity(filled.len());
        let mut done = Vec::with_capacity(filled.len());
        for (at, one) in (first..).zip(filled) {
            if let Some(blob) = one.blob {
                blob.commit(Some(self.lease.id()))?;
            }
            let parent = at.checked_sub(1).map(|below| key(&chain[below]));
            let facts = &one.applied.blob;
            let mut commit = LayerCommit::new(key(&chain[at]), parent);
            commit.diff_id = Some(facts.diff_id);
            commit.tar_bytes = Some(facts.tar_bytes);
            commit.recipe = Some(one.recipe);
            commit.lease = Some(self.lease.id().clone());
            done.push(Unpacked {
                chain_id: chain[at],
                diff_id: facts.diff_id,
                tar_bytes: facts.tar_bytes,
                present: false,
            });
            batch.push((one.staged, commit));
        }
        self.store.commit_layers(batch)?;
        Ok(done)
    }
}

/// Unpacks a tar that belongs to no image yet on `parent`, or as a base layer, and commits it under
/// its chain ID.
pub(super) fn unpack_single(
    context: &Context,
    store: &Store,
    lease: &Lease,
    parent: Option<&ChainId>,
    tar: Box<dyn Read + Send>,
) -> Result<Unpacked> {
    let below = parent.map(key);
    let staged = store.stage_layer_on(below.as_ref())?;
    let (recipe, applied) = apply_to(context.process, store, &staged, tar, &context.cancel)?;
    context.go_on()?;
    let remarks = [unmarked("the tar", &applied), left_out("the tar", &applied)];
    for remark in remarks.iter().flatten() {
        context.progress.warn(remark);
    }
    if parent.is_none() {
        settle_on(context.process, &Dir::open(staged.root())?, &applied, &[])?;
    }
    let diff_id = applied.blob.diff_id;
    let chain_id = ChainId::extend(parent, &diff_id);
    let mut commit = LayerCommit::new(key(&chain_id), below);
    commit.diff_id = Some(diff_id);
    commit.tar_bytes = Some(applied.blob.tar_bytes);
    commit.recipe = Some(recipe);
    commit.lease = Some(lease.id().clone());
    let registered = store.commit_layer(staged, commit)?;
    let present = matches!(registered, vellum_store::Registered::Existing(_));
    Ok(Unpacked {
        chain_id,
        diff_id,
        tar_bytes: applied.blob.tar_bytes,
        present,
    })
}

/// Returns a remark on a layer whose tree lacks some of its entries.
pub(crate) fn left_out(what: &str, applied: &Applied) -> Option<String> {
    (applied.left_out.count > 0).then(|| {
        format!(
            "{what} has entries that can't be created here; the layer keeps them, but the tree lacks them: {}",
            applied.left_out
        )
    })
}

/// Returns a remark on a tar without end marker whose digest is not known beforehand.
pub(crate) fn unmarked(what: &str, applied: &Applied) -> Option<String> {
    (applied.ending == Ending::Unmarked)
        .then(|| format!("{what} has no end marker: it may have been cut short"))
}

/// A blob that is kept while its layer is unpacked, shared between the reading and the committing
/// thread.
#[derive(Clone)]
struct SharedBlob(Arc<Mutex<Option<BlobWriter>>>);

impl SharedBlob {
    fn new(writer: BlobWriter) -> Self {
        Self(Arc::new(Mutex::new(Some(writer))))
    }

    fn take(&self) -> Option<BlobWriter> {
        sync::lock(&self.0).take()
    }
}

/// A reader that writes what it reads to a copy.
struct Tee {
    inner: Box<dyn Read + Send>,
    copy: SharedBlob,
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        if let Some(copy) = sync::lock(&self.copy.0).as_mut() {
            copy.write_all(&buf[..got])?;
        }
        Ok(got)
    }
}

//! `check --repair`: makes damaged trees what their tars say.
//!
//! For one layer: what differs is known, and its outline is there. The contents that are missing
//! are looked for (the layer's recipe, the blob it came as, files of other layers, what the user
//! offers) and put into the outline, where each is proven by the layer's diff ID before anything in
//! the tree is changed. Then the tree is changed (`vellum_image::verify`), the file system synced,
//! and the layer compared once more, whole, with its digest: what is reported as repaired was seen
//! to be right afterwards. Damage to one layer, or a source that is damaged, never stops work on
//! others.
//!
//! A dry run does all of this up to the change, so it has really read the sources it names.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use vellum_format::Digest;
use vellum_image::recipe;
use vellum_image::verify::{
    self, Aspect, Contents, Damaged, Difference, Displace, Mended, Outlined, Repair,
};
use vellum_store::{Attic, DriverKind, Info, SnapshotKey, SnapshotKind, Store};
use vellum_sys::mountinfo;
use vellum_sys::publish::sync_fs;
use vellum_sys::{Cancel, Dir, FileKind, with_causes};

use super::live::{self, Stale};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::apply_to;
use crate::image::offered::{Offered, pass_tar};
use crate::names;

/// How trees are repaired.
#[derive(Clone, Debug, Default)]
pub struct RepairRequest {
    /// Say what would be done, and change nothing.
    pub dry_run: bool,
    /// Where to look for content that the store lacks: paths of archives, layouts and Docker data
    /// roots, or images in registries.
    pub from: Vec<String>,
}

/// What was done about one difference. The JSON field names are stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Whether it is right now.
    pub repaired: bool,
    /// Whether it would be right; only in a dry run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub would_repair: bool,
    /// Where the content came from, if it came from elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Where what was there is now, relative to the store's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<String>,
    /// Why it is not right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
}

/// A layer that is compared with its outline.
pub(super) struct Job<'j> {
    pub info: &'j Info,
    /// The tree, which can only be read here.
    pub tree: &'j Dir,
    pub place: &'j Path,
    pub recipe: &'j mut File,
    pub outline: &'j Dir,
    pub outlined: &'j mut Outlined,
    /// Contents of the layers below and their names, if the tree holds them too.
    pub below: Option<(&'j Contents, &'j [SnapshotKey])>,
    pub right: &'j mut HashMap<(u64, u64), u64>,
    pub unsaid: &'j HashSet<PathBuf>,
    pub root_time: bool,
}

impl Job<'_> {
    pub fn compare(&mut self, cancel: &Cancel) -> Result<Vec<Difference>> {
        let found = verify::Found {
            tree: self.tree,
            inherited: self.below.map(|(contents, _)| contents),
            right: self.right,
            unsaid: self.unsaid,
            root_time: self.root_time,
        };
        Ok(verify::compare(self.outline, self.outlined, found, cancel)?)
    }

    /// Returns the name of the layer that a content is from.
    fn origin(&self, layer: Option<usize>) -> Option<&SnapshotKey> {
        match (layer, self.below) {
            (None, _) => Some(&self.info.key),
            (Some(at), Some((_, keys))) => keys.get(at),
            (Some(_), None) => None,
        }
    }
}

/// What repairs of several layers share.
pub(super) struct Repairs<'a> {
    ctx: &'a Context,
    store: &'a Store,
    /// Where things are moved, held from before the first look: another repair's outlines share
    /// inodes with the trees. `None` in a dry run.
    attic: Option<Attic>,
    offered: Vec<Offered>,
    /// The blobs that layers came as.
    blobs: HashMap<SnapshotKey, Vec<Digest>>,
    /// Layers that were right, or are now.
    right: HashSet<SnapshotKey>,
    stale: Stale,
    /// Set if an outline could not be restored after content was written to it.
    outline_is_bad: Cell<bool>,
}

impl<'a> Repairs<'a> {
    /// Opens the sources. Errors: one can't be used.
    pub fn open(ctx: &'a Context, store: &'a Store, request: &RepairRequest) -> Result<Self> {
        let attic = match request.dry_run {
            true => None,
            false => {
                let attic = wait_for_attic(ctx, store)?;
                // So do those that a killed repair left.
                store.sweep()?;
                Some(attic)
            }
        };
        let offered = request.from.iter().map(|text| Offered::open(ctx, text));
        let offered = offered.collect::<Result<Vec<_>>>()?;
        let mut blobs: HashMap<SnapshotKey, Vec<Digest>> = HashMap::new();
        for image in store.images()? {
            for layer in image.layers {
                if let Some(blob) = layer.blob {
                    blobs.entry(layer.snapshot).or_default().push(blob.digest);
                }
            }
        }
        Ok(Self {
            ctx,
            store,
            attic,
            offered,
            blobs,
            right: HashSet::new(),
            stale: Stale::read(ctx)?,
            outline_is_bad: Cell::new(false),
        })
    }

    /// Returns whether the outline can't be used any more, once.
    pub fn takes_outline(&self) -> bool {
        self.outline_is_bad.take()
    }

    /// Returns the mounts that must be made anew.
    pub fn into_stale(self) -> Stale {
        self.stale
    }

    /// Writes the recipe of a layer again by unpacking the layer once more. Returns the source;
    /// `None` if none has the layer, or nothing is to be changed.
    pub fn recipe(&self, info: &Info, diff_id: &Digest) -> Result<Option<String>> {
        if self.attic.is_none() {
            return Ok(None);
        }
        for digest in self.blobs.get(&info.key).into_iter().flatten() {
            if self.store.blob(digest)?.is_some()
                && let Ok(blob) = self.store.open_blob(digest)
                && self.recipe_from(info, diff_id, KEPT_BLOB, Box::new(blob))?
            {
                return Ok(Some(KEPT_BLOB.to_owned()));
            }
        }
        for offered in &self.offered {
            match offered.layer(diff_id) {
                Ok(Some(blob)) => {
                    if self.recipe_from(info, diff_id, offered.name(), blob)? {
                        return Ok(Some(offered.name().to_owned()));
                    }
                }
                Ok(None) => {}
                Err(error) => self.warn(offered.name(), &error),
            }
        }
        Ok(None)
    }

    fn recipe_from(
        &self,
        info: &Info,
        diff_id: &Digest,
        from: &str,
        blob: Box<dyn Read + Send>,
    ) -> Result<bool> {
        let staged = match info.driver.stacks() {
            true => self.store.stage_layer(Some(info.driver))?,
            false => self.store.stage_layer_on(info.parent.as_ref())?,
        };
        let (process, cancel) = (self.ctx.process, &self.ctx.cancel);
        match apply_to(process, self.store, &staged, blob, cancel) {
            Ok((recipe, applied)) if applied.blob.diff_id == *diff_id => {
                self.store.put_recipe(diff_id, recipe)?;
                Ok(true)
            }
            Ok(_) => {
                let what = format!("{from} can't be used for a repair: it is not layer {diff_id}");
                self.ctx.progress.warn(&what);
                Ok(false)
            }
            Err(Error::Image(vellum_image::Error::Cancelled)) => Err(Error::Cancelled),
            Err(error) => {
                self.warn(from, &error);
                Ok(false)
            }
        }
    }

    /// Repairs a layer, or says what would be done. Returns what differed and, if it was changed,
    /// what differs now.
    pub fn layer(
        &mut self,
        job: &mut Job<'_>,
        before: Vec<Difference>,
    ) -> Result<Vec<(Difference, Option<Outcome>)>> {
        if before.is_empty() {
            self.right.insert(job.info.key.clone());
            return Ok(Vec::new());
        }
        let outcomes = match self.try_layer(job, &before) {
            Err(Error::Cancelled | Error::Image(vellum_image::Error::Cancelled)) => {
                return Err(Error::Cancelled);
            }
            Err(error) => {
                let left = Outcome {
                    left: Some(with_causes(&error)),
                    ..Outcome::default()
                };
                return Ok(before
                    .into_iter()
                    .map(|d| (d, Some(left.clone())))
                    .collect());
            }
            Ok(outcomes) => outcomes,
        };
        if outcomes.iter().all(|(_, outcome)| outcome.repaired) {
            self.right.insert(job.info.key.clone());
        }
        let some = |(difference, outcome)| (difference, Some(outcome));
        Ok(outcomes.into_iter().map(some).collect())
    }

    fn try_layer(
        &mut self,
        job: &mut Job<'_>,
        before: &[Difference],
    ) -> Result<Vec<(Difference, Outcome)>> {
        let ctx = self.ctx;
        if self.attic.is_none() {
            return self.foresee(job, before);
        }
        let showing = live::showing(ctx, self.store, job.info)?;
        let name = names::short_key(&job.info.key.to_string());
        let noticed = self.stale.note(ctx, &showing, &name, before)?;
        let mut known = before.to_vec();
        let mut now = known.clone();
        let mut done = BTreeMap::new();
        for _ in 0..ROUNDS {
            merge(&mut done, self.round(job, &now)?);
            now = job.compare(&ctx.cancel)?;
            // A name that is there again may show what else is wrong with its file.
            let fresh = now
                .iter()
                .filter(|one| !known.iter().any(|had| same(had, one)));
            let fresh: Vec<Difference> = fresh.cloned().collect();
            if fresh.is_empty() {
                break;
            }
            known.extend(fresh);
            self.stale.note(ctx, &showing, &name, &known)?;
        }
        let outcomes = outcomes(&known, &now, &done);
        let replaced = done.iter().filter(|(_, mended)| mended.replaced);
        let replaced = replaced.map(|(path, _)| path.clone()).collect();
        let stale = &mut self.stale;
        stale.correct(ctx, &showing, &name, &outcomes, &replaced, noticed)?;
        Ok(outcomes)
    }

    /// Says what would be done.
    fn foresee(
        &self,
        job: &Job<'_>,
        differences: &[Difference],
    ) -> Result<Vec<(Difference, Outcome)>> {
        self.prepared(job, differences, |repair, _| {
            Ok(foresee(&repair, differences))
        })
    }

    /// Changes the tree once, syncs it and reads it again.
    fn round(
        &self,
        job: &mut Job<'_>,
        differences: &[Difference],
    ) -> Result<BTreeMap<PathBuf, Mended>> {
        let done = self.prepared(job, differences, |repair, tree| {
            let Some(attic) = &self.attic else {
                return Ok(BTreeMap::new());
            };
            let layer = &names::short_key(&job.info.key.to_string());
            let done = repair.carry_out(&mut ToAttic { attic, layer })?;
            attic.sync()?;
            sync_fs(tree)?;
            Ok(done)
        })?;
        let cancel = &self.ctx.cancel;
        job.outlined.look_again(job.recipe, job.tree, cancel)?;
        Ok(done)
    }

    /// Plans a repair, looks for what it needs, and passes it to `then` with the tree to change.
    fn prepared<T>(
        &self,
        job: &Job<'_>,
        differences: &[Difference],
        then: impl FnOnce(Repair<'_>, &Dir) -> Result<T>,
    ) -> Result<T> {
        let tree = writable(job.place)?;
        let census = OnceCell::new();
        let elsewhere = |identity: (u64, u64)| {
            let all = census.get_or_init(|| shared_names(self.store, job.info));
            all.get(&identity).copied().unwrap_or(0)
        };
        let mut repair = Repair::plan(Damaged {
            outline: job.outline,
            outlined: job.outlined,
            inherited: job.below.map(|(contents, _)| contents),
            tree: &tree,
            differences,
            unsaid: job.unsaid,
            root_time: job.root_time,
            elsewhere: &elsewhere,
            cancel: &self.ctx.cancel,
        })?;
        let mut layers: Vec<Option<usize>> = repair.needs().iter().map(|n| n.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let fill = || -> Result<()> {
            for layer in layers {
                if let Some(origin) = job.origin(layer) {
                    self.fill(&mut repair, layer, origin, job)?;
                }
            }
            Ok(())
        };
        let filled = fill();
        // Whole trees above this one are compared with the same outline.
        if let Err(error) = repair.seal() {
            self.outline_is_bad.set(true);
            return Err(error.into());
        }
        filled?;
        then(repair, &tree)
    }

    /// Looks for the contents of one layer that are needed.
    fn fill(
        &self,
        repair: &mut Repair<'_>,
        layer: Option<usize>,
        origin: &SnapshotKey,
        job: &Job<'_>,
    ) -> Result<()> {
        let Some(diff_id) = self.store.stat(origin)?.diff_id else {
            return Ok(());
        };
        let Some(mut recipe) = self.store.open_recipe(&diff_id)? else {
            return Ok(());
        };
        let tree = match layer {
            None => job.tree.dup()?,
            Some(_) => match self.tree_of(origin)? {
                Some(tree) => tree,
                None => return Ok(()),
            },
        };
        repair.fill_from_recipe(layer, &mut recipe, &tree)?;
        if layer.is_some() && self.right.contains(origin) {
            self.fill_from_below(repair, layer, origin, &tree)?;
        }
        for digest in self.blobs.get(origin).into_iter().flatten() {
            if !repair.unfilled(layer).is_empty()
                && self.store.blob(digest)?.is_some()
                && let Ok(blob) = self.store.open_blob(digest)
            {
                self.pass(repair, layer, &diff_id, KEPT_BLOB, Box::new(blob))?;
            }
        }
        self.fill_from_layers(repair, layer, &mut recipe, &tree)?;
        for offered in &self.offered {
            if repair.unfilled(layer).is_empty() {
                break;
            }
            match offered.layer(&diff_id) {
                Ok(Some(blob)) => self.pass(repair, layer, &diff_id, offered.name(), blob)?,
                Ok(None) => {}
                Err(error) => self.warn(offered.name(), &error),
            }
        }
        Ok(())
    }

    /// Takes contents out of a layer's blob. One that can't be used is reported, and the repair
    /// goes on.
    fn pass(
        &self,
        repair: &mut Repair<'_>,
        layer: Option<usize>,
        diff_id: &Digest,
        from: &str,
        blob: Box<dyn Read + Send>,
    ) -> Result<()> {
        let cancel = &self.ctx.cancel;
        let mut refused = None;
        repair.fill_from_tar(layer, from, |out| {
            match pass_tar(blob, diff_id, out, cancel) {
                Ok(true) => Ok(true),
                Ok(false) => {
                    refused = Some(format!("it is not layer {diff_id}"));
                    Ok(false)
                }
                Err(vellum_image::Error::Cancelled) => Err(vellum_image::Error::Cancelled),
                Err(error @ vellum_image::Error::Write(_)) => Err(error),
                Err(error) => {
                    refused = Some(with_causes(&error));
                    Ok(false)
                }
            }
        })?;
        if let Some(why) = refused {
            let what = format!("{from} can't be used for a repair: {why}");
            self.ctx.progress.warn(&what);
        }
        Ok(())
    }

    fn warn(&self, from: &str, error: &Error) {
        let why = with_causes(error);
        let what = format!("{from} can't be used for a repair: {why}");
        self.ctx.progress.warn(&what);
    }

    /// Takes what a tree inherited from the tree it inherited it from, which is right as a whole.
    fn fill_from_below(
        &self,
        repair: &mut Repair<'_>,
        layer: Option<usize>,
        origin: &SnapshotKey,
        tree: &Dir,
    ) -> Result<()> {
        for at in repair.unfilled(layer) {
            let Ok(file) = tree.open_file(&repair.needs()[at].path) else {
                continue;
            };
            if repair.try_file(at, &file)? {
                repair.accept(at, called(origin));
            }
        }
        Ok(())
    }

    /// Looks for files with the same length and checksum in other layers. They count if the layer's
    /// digest proves them all.
    fn fill_from_layers(
        &self,
        repair: &mut Repair<'_>,
        layer: Option<usize>,
        recipe: &mut File,
        tree: &Dir,
    ) -> Result<()> {
        let open = repair.unfilled(layer);
        if open.is_empty() {
            return Ok(());
        }
        let likeness = |at: &usize| repair.needs()[*at].content.likeness();
        let wanted: HashSet<(u64, u32)> = open.iter().map(likeness).collect();
        let mut candidates: BTreeMap<usize, String> = BTreeMap::new();
        for info in self.layers()? {
            self.ctx.go_on()?;
            if candidates.len() == open.len() {
                break;
            }
            let Some(diff_id) = info.diff_id else {
                continue;
            };
            // What is wrong with another layer is not this one's matter.
            let Ok(Some(mut other)) = self.store.open_recipe(&diff_id) else {
                continue;
            };
            let Ok(alike) = recipe::likenesses(&mut other, &wanted) else {
                continue;
            };
            if alike.is_empty() {
                continue;
            }
            let Ok(Some(from)) = self.tree_of(&info.key) else {
                continue;
            };
            for alike in alike {
                let Ok(file) = from.open_file(&alike.path) else {
                    continue;
                };
                for &at in &open {
                    if !candidates.contains_key(&at)
                        && repair.needs()[at].content.likeness() == alike.likeness
                        && repair.try_file(at, &file)?
                    {
                        candidates.insert(at, called(&info.key));
                    }
                }
            }
        }
        let with: Vec<usize> = candidates.keys().copied().collect();
        if !with.is_empty() && repair.prove(recipe, tree, &with)? {
            for (at, from) in candidates {
                repair.accept(at, from);
            }
        }
        Ok(())
    }

    fn layers(&self) -> Result<Vec<Info>> {
        let mut layers = Vec::new();
        self.store.walk(&[], |info| {
            if info.kind == SnapshotKind::Committed {
                layers.push(info);
            }
            Ok::<_, Error>(())
        })?;
        Ok(layers)
    }

    fn tree_of(&self, key: &SnapshotKey) -> Result<Option<Dir>> {
        let parts = self.store.tree(key)?;
        let layers = parts.layers();
        let Some(top) = layers.first() else {
            return Ok(None);
        };
        Ok(Some(Dir::open(&top.dir)?))
    }
}

/// Opens `lost+found`. Another repair is waited for, which the user is told and can stop.
fn wait_for_attic(ctx: &Context, store: &Store) -> Result<Attic> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        if let Some(attic) = store.attic()? {
            return Ok(attic);
        }
        ctx.go_on()?;
        if !told && begun.elapsed() > TELL_AFTER {
            ctx.progress.say("waiting for another repair");
            told = true;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Opens a layer's tree to be changed: on the store's own mount, since nothing can be linked or
/// moved between two. Errors: something is mounted in it, which would be changed instead.
fn writable(place: &Path) -> Result<Dir> {
    let table = mountinfo::read()?;
    let inside = |mount: &&mountinfo::Mount| mount.mount_point.starts_with(place);
    if let Some(mount) = table.mounts().iter().find(inside) {
        let what = format!(
            "something is mounted in the layer's tree, at {}",
            mount.mount_point.display()
        );
        return Err(Error::Unsupported {
            what,
            hint: "unmount it, then repeat the repair".to_owned(),
        });
    }
    Ok(Dir::open(place)?)
}

fn called(layer: &SnapshotKey) -> String {
    format!("layer {}", names::short_key(&layer.to_string()))
}

struct ToAttic<'a> {
    attic: &'a Attic,
    layer: &'a str,
}

impl Displace for ToAttic<'_> {
    fn displace(&mut self, dir: &Dir, name: &OsStr, path: &Path) -> vellum_sys::Result<String> {
        let place = self.attic.take(self.layer, dir, name, path)?;
        Ok(place.to_string_lossy().into_owned())
    }
}

/// Says what a repair would do.
fn foresee(repair: &Repair<'_>, before: &[Difference]) -> Vec<(Difference, Outcome)> {
    let one = |difference: &Difference| {
        let lacks = repair.lacks(&difference.path);
        let of_content = !matches!(
            difference.aspect,
            Aspect::Mode | Aspect::Owner | Aspect::Group | Aspect::Time | Aspect::Opaque
        );
        let outcome = match lacks {
            _ if difference.aspect == Aspect::Digest => Outcome::default(),
            0 => Outcome {
                would_repair: true,
                from: repair.source_of(&difference.path).filter(|_| of_content),
                ..Outcome::default()
            },
            _ => Outcome {
                left: Some("no source has its content".to_owned()),
                ..Outcome::default()
            },
        };
        (difference.clone(), outcome)
    };
    before.iter().map(one).collect()
}

/// How long another repair is waited for before the user is told.
const TELL_AFTER: Duration = Duration::from_millis(500);

const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// What a blob in the store is called as a source.
const KEPT_BLOB: &str = "the kept blob";

/// How often a layer is looked at again for what the first repair has uncovered.
const ROUNDS: usize = 3;

fn same(a: &Difference, b: &Difference) -> bool {
    a.path == b.path && a.aspect == b.aspect
}

/// Adds what another round has done.
fn merge(all: &mut BTreeMap<PathBuf, Mended>, more: BTreeMap<PathBuf, Mended>) {
    for (path, more) in more {
        let one = all.entry(path).or_default();
        one.from = more.from.or(one.from.take());
        one.moved_to = more.moved_to.or(one.moved_to.take());
        one.replaced |= more.replaced;
        one.left = more.left;
    }
}

/// Says what became of each difference that was ever seen: those that are gone are repaired, and
/// those that are there now are left.
fn outcomes(
    before: &[Difference],
    after: &[Difference],
    done: &BTreeMap<PathBuf, Mended>,
) -> Vec<(Difference, Outcome)> {
    let mut all = Vec::new();
    for difference in before {
        let mended = done.get(&difference.path).cloned().unwrap_or_default();
        let left = after.iter().any(|now| same(now, difference));
        let why = mended.left.clone();
        let outcome = Outcome {
            repaired: !left,
            from: mended.from.filter(|_| !left),
            moved_to: mended.moved_to,
            left: left.then(|| why.unwrap_or_else(|| still(difference, done))),
            ..Outcome::default()
        };
        all.push((difference.clone(), outcome));
    }
    all.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    all
}

/// Says why something still differs that has no reason of its own: perhaps what is above it does.
fn still(difference: &Difference, done: &BTreeMap<PathBuf, Mended>) -> String {
    let mut above = difference.path.ancestors();
    let why = above.find_map(|path| done.get(path)?.left.clone());
    why.unwrap_or_else(|| "it still differs".to_owned())
}

/// Counts the names of inodes in the other trees of a driver whose trees share files, and in what
/// is being staged for it. Empty for other drivers.
fn shared_names(store: &Store, layer: &Info) -> HashMap<(u64, u64), u64> {
    let mut counted = HashMap::new();
    if layer.driver != DriverKind::Overlay {
        return counted;
    }
    let own = Path::new(layer.tree.as_str());
    for root in [
        store.driver_home(layer.driver),
        store.root().join("staging"),
    ] {
        // What can't be read is not counted: then an inode is not written to.
        let Ok(root) = Dir::open(&root) else { continue };
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let Ok(dir) = root.open_dir(&path) else {
                continue;
            };
            let Ok(entries) = dir.entries() else { continue };
            for entry in entries.flatten() {
                let inner = path.join(&entry.name);
                if entry.kind == FileKind::Dir {
                    if inner != own {
                        waiting.push(inner);
                    }
                } else if let Ok(stat) = dir.stat(&entry.name)
                    && stat.nlink > 1
                {
                    *counted.entry(stat.identity()).or_insert(0) += 1;
                }
            }
        }
    }
    counted
}

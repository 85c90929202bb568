//! `check --trees`: everything in the tree of every layer, against what the layer's recipe and
//! digest say.
//!
//! For each layer an outline is unpacked beside the store's trees, from the layer's own recipe and
//! content, as `load` would; then both are compared (`vellum_image::verify`). An outline is settled
//! on the outlines below it, not on the trees: damage in a lower layer is then not found a second
//! time in those above. So the outlines of one chain of layers exist at once, in `staging/`, where
//! a dead check's are litter. Drivers that keep whole trees get one outline per chain, to which one
//! layer after the other is applied.
//!
//! A layer without a recipe (another program unpacked it, or a container's tree became the layer)
//! can't be verified, and the result says so. In whole trees that includes all layers above it.
//!
//! Other commands may run at the same time: a lease holds what is being verified, and what another
//! program removes nevertheless is not reported.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::Digest;
use vellum_image::verify::{self, Aspect, Contents, Difference, Outlined};
use vellum_image::{Applied, Limits};
use vellum_store::{
    DriverKind, Info, LayerDir, Lease, LeaseResource, SnapshotKey, SnapshotKind, StagedLayer,
    Store, StoreError,
};
use vellum_sys::{Dir, Process, with_causes};
use vellum_union::{DirLayer, Layer};

use super::live;
use super::repair::{Job, Outcome, Repairs};
use super::{CheckRequest, InTree, RecipeState, Unverified, Wrong, of_recipe, sound_recipe};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::target;
use crate::layer::on_parents::{implied, settle_on};
use crate::names;
use crate::progress::Unit;
use crate::stack;

/// The result of [`check`].
#[derive(Default)]
pub(super) struct Trees {
    /// What differs.
    pub wrong: Vec<Wrong>,
    /// How many layers were verified.
    pub verified: usize,
    /// The layers that were not.
    pub unverified: Vec<Unverified>,
    /// The recipes that were written again, each with its source.
    pub recipes: Vec<(Wrong, String)>,
}

/// Verifies the layers of one image, or all layers of the store.
pub(super) fn check(ctx: &Context, store: &Store, request: &CheckRequest) -> Result<Trees> {
    let image = request.image.as_deref();
    let repairs = match &request.repair {
        Some(request) => Some(Repairs::open(ctx, store, request)?),
        None => None,
    };
    let chosen = match image {
        Some(text) => {
            let record = names::image(ctx, text)?;
            Some(
                record
                    .layers
                    .into_iter()
                    .map(|layer| layer.snapshot)
                    .collect(),
            )
        }
        None => None,
    };
    let layers = Layers::collect(store, chosen.as_ref())?;
    let mut verifier = Verifier {
        ctx,
        store,
        lease: store.lease("verifying layers")?,
        images: images(store)?,
        total: layers.0.len(),
        levels: Vec::new(),
        whole: None,
        done: HashSet::new(),
        repairs,
        result: Trees::default(),
    };
    for chain in layers.chains() {
        verifier.chain(&layers, &chain)?;
    }
    if let Some(text) = image {
        // Nothing is wrong with an image that was removed meanwhile, but it wasn't verified either.
        names::image(ctx, text)?;
    }
    let Verifier {
        levels,
        whole,
        repairs,
        mut result,
        ..
    } = verifier;
    // Another repair begins when the outlines are gone.
    drop((levels, whole));
    let stale = match repairs {
        Some(repairs) => repairs.into_stale(),
        None => live::Stale::read(ctx)?,
    };
    for (what, why, mount) in stale.findings() {
        let stale = Some(mount);
        let wrong = Wrong::new(what, why);
        result.wrong.push(Wrong { stale, ..wrong });
    }
    Ok(result)
}

/// Returns for each layer the images that have it, as people call them.
fn images(store: &Store) -> Result<HashMap<SnapshotKey, Vec<String>>> {
    let mut images: HashMap<SnapshotKey, Vec<String>> = HashMap::new();
    for image in store.images()? {
        let called = match image.tags.first() {
            Some(tag) => names::familiar(tag),
            None => names::short(&image.id.to_string()).to_owned(),
        };
        for layer in image.layers {
            images
                .entry(layer.snapshot)
                .or_default()
                .push(called.clone());
        }
    }
    Ok(images)
}

/// The layers to be verified.
struct Layers(BTreeMap<SnapshotKey, Info>);

impl Layers {
    fn collect(store: &Store, chosen: Option<&HashSet<SnapshotKey>>) -> Result<Self> {
        let mut layers = BTreeMap::new();
        store.walk(&[], |info| {
            let wanted = chosen.is_none_or(|chosen| chosen.contains(&info.key));
            if wanted && info.kind == SnapshotKind::Committed {
                layers.insert(info.key.clone(), info);
            }
            Ok::<_, Error>(())
        })?;
        // A layer that came during the walk may have been seen without those below it.
        let mut waiting: Vec<SnapshotKey> = layers
            .values()
            .filter_map(|info| info.parent.clone())
            .collect();
        while let Some(key) = waiting.pop() {
            if layers.contains_key(&key) {
                continue;
            }
            match store.stat(&key) {
                Ok(info) => {
                    waiting.extend(info.parent.clone());
                    layers.insert(key, info);
                }
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self(layers))
    }

    /// Returns every way from a base layer to one that no other is on, bottom first. Chains that
    /// begin with the same layers follow one another.
    fn chains(&self) -> Vec<Vec<SnapshotKey>> {
        let parents: HashSet<&SnapshotKey> = self
            .0
            .values()
            .filter_map(|info| info.parent.as_ref())
            .collect();
        let mut chains = Vec::new();
        for top in self.0.keys().filter(|key| !parents.contains(key)) {
            let mut chain = vec![top.clone()];
            let mut at = self.0.get(top);
            // A chain that leads back to itself was reported by the store, and has no top.
            while let Some(parent) = at.and_then(|info| info.parent.as_ref())
                && chain.len() <= self.0.len()
            {
                chain.push(parent.clone());
                at = self.0.get(parent);
            }
            chain.reverse();
            chains.push(chain);
        }
        chains.sort();
        chains
    }
}

struct Verifier<'a> {
    ctx: &'a Context,
    store: &'a Store,
    lease: Lease,
    images: HashMap<SnapshotKey, Vec<String>>,
    total: usize,
    /// The layers of the current chain, bottom first, where trees are stacked.
    levels: Vec<Level>,
    /// The current chain, where trees are whole.
    whole: Option<Whole>,
    done: HashSet<SnapshotKey>,
    repairs: Option<Repairs<'a>>,
    result: Trees,
}

/// A layer below those that are verified next.
struct Level {
    key: SnapshotKey,
    below: Below,
    /// Whether its tar, or one below, says when the root was changed.
    root_time: bool,
}

/// What a level looks like to the layers above it.
enum Below {
    Outline(Box<StagedLayer>),
    /// There is no outline, so its tree must do.
    Tree(LayerDir),
}

impl Below {
    fn is_tree(&self) -> bool {
        matches!(self, Below::Tree(_))
    }

    fn open(&self, process: Process) -> Result<Arc<dyn Layer>> {
        match self {
            Below::Outline(staged) => {
                let dialect = stack::archive_dialect(process);
                Ok(Arc::new(DirLayer::open(staged.root(), dialect)?))
            }
            Below::Tree(layer) => stack::lower(process, layer),
        }
    }
}

/// The outline of whole trees.
struct Whole {
    staged: StagedLayer,
    /// The layers that were applied to it, bottom first.
    keys: Vec<SnapshotKey>,
    contents: Contents,
    /// Whether one of their tars says when the root was changed.
    root_time: bool,
    /// Files that have the right content; see `vellum_image::verify::Found`.
    right: HashMap<(u64, u64), u64>,
}

/// A layer that can be verified.
struct Subject {
    info: Info,
    tree: Dir,
    /// Where the tree is.
    place: PathBuf,
    recipe: File,
    diff_id: Digest,
}

/// Whether a layer can be verified.
enum Looked {
    Yes(Box<Subject>),
    /// No, and that is in the result already.
    No,
    /// It was removed, or it has no tree.
    Gone,
}

impl Verifier<'_> {
    fn chain(&mut self, layers: &Layers, chain: &[SnapshotKey]) -> Result<()> {
        let Some(chain) = self.hold(chain)? else {
            return Ok(());
        };
        let driver = match chain.first().and_then(|base| layers.0.get(base)) {
            Some(base) => base.driver,
            None => return Ok(()),
        };
        match driver.stacks() {
            true => self.stacked(chain),
            false => {
                self.levels.clear();
                self.whole(chain, driver)
            }
        }
    }

    /// Holds a chain, or the part of it that is still there. A snapshot holds those below it and
    /// the recipes of them all.
    fn hold<'c>(&self, chain: &'c [SnapshotKey]) -> Result<Option<&'c [SnapshotKey]>> {
        for length in (1..=chain.len()).rev() {
            let top = LeaseResource::Snapshot(chain[length - 1].clone());
            if self.lease.hold(&top)? {
                return Ok(Some(&chain[..length]));
            }
        }
        Ok(None)
    }

    fn stacked(&mut self, chain: &[SnapshotKey]) -> Result<()> {
        self.whole = None;
        let common = self
            .levels
            .iter()
            .zip(chain)
            .take_while(|(level, key)| level.key == **key)
            .count();
        self.levels.truncate(common);
        for (at, key) in chain.iter().enumerate().skip(common) {
            self.ctx.go_on()?;
            let level = match self.look(key)? {
                Looked::Yes(subject) => self.stacked_layer(key, *subject)?,
                Looked::No => self.real_level(key)?,
                Looked::Gone => None,
            };
            match level {
                Some(level) => self.levels.push(level),
                None => return self.unreadable(&chain[at..]),
            }
        }
        Ok(())
    }

    /// Verifies one layer of a stack. Returns what is below the next one; `None` if the layer is
    /// gone.
    fn stacked_layer(&mut self, key: &SnapshotKey, mut subject: Subject) -> Result<Option<Level>> {
        let staged = self.store.stage_layer(Some(subject.info.driver))?;
        let target = target(self.ctx.process, &staged)?;
        let Some(mut outlined) = self.outline(&mut subject, &target)? else {
            return self.real_level(key);
        };
        self.settle(&target.root, &outlined.applied)?;
        let root_time =
            outlined.applied.root_listed || self.levels.last().is_some_and(|level| level.root_time);
        // Such directories look as they do below, where a layer without a recipe says nothing.
        let unsaid = match self.levels.iter().any(|level| level.below.is_tree()) {
            true => implied(&outlined.applied).map(Path::to_owned).collect(),
            false => HashSet::new(),
        };
        let compared = self.compare(Job {
            info: &subject.info,
            tree: &subject.tree,
            place: &subject.place,
            recipe: &mut subject.recipe,
            outline: &target.root,
            outlined: &mut outlined,
            below: None,
            right: &mut HashMap::new(),
            unsaid: &unsaid,
            root_time,
        });
        self.report(&subject.info, compared)?;
        Ok(Some(Level {
            key: key.clone(),
            below: Below::Outline(Box::new(staged)),
            root_time,
        }))
    }

    /// Settles an outline on the levels below it.
    fn settle(&self, outline: &Dir, applied: &Applied) -> Result<()> {
        // Each open level is a descriptor, and a root without an entry needs the nearest one only.
        let all = !applied.implied_dirs.is_empty()
            || !applied.whiteout_dirs.is_empty()
            || applied.root_opaque;
        let process = self.ctx.process;
        let below = self
            .levels
            .iter()
            .rev()
            .take(if all { usize::MAX } else { 1 })
            .map(|level| level.below.open(process))
            .collect::<Result<Vec<_>>>()?;
        settle_on(process, outline, applied, &below)
    }

    /// Returns a layer that has no outline, as what is below the next one.
    fn real_level(&self, key: &SnapshotKey) -> Result<Option<Level>> {
        let tree = match self.store.tree(key) {
            Ok(tree) => tree,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(top) = tree.layers().into_iter().next() else {
            return Ok(None);
        };
        Ok(Some(Level {
            key: key.clone(),
            below: Below::Tree(top),
            root_time: false,
        }))
    }

    fn whole(&mut self, chain: &[SnapshotKey], driver: DriverKind) -> Result<()> {
        let mut whole = match self.whole.take() {
            Some(whole) if chain.starts_with(&whole.keys) => whole,
            _ => Whole {
                staged: self.store.stage_base(driver)?,
                keys: Vec::new(),
                contents: Contents::default(),
                root_time: false,
                right: HashMap::new(),
            },
        };
        for (at, key) in chain.iter().enumerate().skip(whole.keys.len()) {
            self.ctx.go_on()?;
            let subject = match self.look(key)? {
                Looked::Yes(subject) => *subject,
                Looked::Gone => return self.unreadable(&chain[at..]),
                Looked::No => {
                    self.above_is_unverified(&chain[at + 1..]);
                    return Ok(());
                }
            };
            if !self.whole_layer(&mut whole, subject)? {
                self.above_is_unverified(&chain[at + 1..]);
                return Ok(());
            }
            whole.keys.push(key.clone());
        }
        self.whole = Some(whole);
        Ok(())
    }

    /// Applies one layer to the outline of a whole tree, and verifies it. Returns false if its
    /// recipe can't be used.
    fn whole_layer(&mut self, whole: &mut Whole, mut subject: Subject) -> Result<bool> {
        let target = target(self.ctx.process, &whole.staged)?;
        let Some(mut outlined) = self.outline(&mut subject, &target)? else {
            return Ok(false);
        };
        whole.root_time |= outlined.applied.root_listed;
        // Another chain may have come this way before.
        if !self.done.contains(&subject.info.key) {
            let compared = self.compare(Job {
                info: &subject.info,
                tree: &subject.tree,
                place: &subject.place,
                recipe: &mut subject.recipe,
                outline: &target.root,
                outlined: &mut outlined,
                below: Some((&whole.contents, &whole.keys)),
                right: &mut whole.right,
                unsaid: &HashSet::new(),
                root_time: whole.root_time,
            });
            self.report(&subject.info, compared)?;
            if self.repairs.as_ref().is_some_and(Repairs::takes_outline) {
                return Ok(false);
            }
        }
        whole.contents.extend(outlined);
        Ok(true)
    }

    fn above_is_unverified(&mut self, above: &[SnapshotKey]) {
        for key in above {
            self.unverified(key, "a layer below it was not, and its tree holds both");
        }
    }

    /// Notes layers that are still recorded, though the first one's tree can't be read.
    fn unreadable(&mut self, layers: &[SnapshotKey]) -> Result<()> {
        for key in layers {
            match self.store.stat(key) {
                Ok(_) => self.unverified(key, "its tree, or one below it, can't be read"),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Opens what is needed to verify a layer.
    fn look(&mut self, key: &SnapshotKey) -> Result<Looked> {
        let info = match self.store.stat(key) {
            Ok(info) => info,
            Err(StoreError::NotFound { .. }) => return Ok(Looked::Gone),
            Err(error) => return Err(error.into()),
        };
        let tree = match self.store.tree(key) {
            Ok(tree) => tree,
            Err(StoreError::NotFound { .. }) => return Ok(Looked::Gone),
            Err(error @ (StoreError::Damaged { .. } | StoreError::BrokenParents { .. })) => {
                self.say(&info, with_causes(&error));
                return Ok(Looked::Gone);
            }
            Err(error) => return Err(error.into()),
        };
        let layers = tree.layers();
        let Some(top) = layers.first() else {
            return Ok(Looked::Gone);
        };
        let tree = match stack::alone(&top.dir) {
            Ok(tree) => tree,
            Err(error) => {
                self.say(&info, with_causes(&error));
                return Ok(Looked::Gone);
            }
        };
        let (Some(diff_id), Some(_)) = (info.diff_id, info.tar_bytes) else {
            self.unverified(key, "no recipe");
            return Ok(Looked::No);
        };
        let recipe = match sound_recipe(self.store, &diff_id)? {
            RecipeState::Sound(recipe) => recipe,
            RecipeState::Missing => match self.mended_recipe(&info, &diff_id, "missing")? {
                Some(recipe) => recipe,
                None => {
                    self.unverified(key, "no recipe");
                    return Ok(Looked::No);
                }
            },
            RecipeState::Bad(why) => match self.mended_recipe(&info, &diff_id, &why)? {
                Some(recipe) => recipe,
                None => {
                    self.bad_recipe(&info, &diff_id, &why);
                    return Ok(Looked::No);
                }
            },
        };
        Ok(Looked::Yes(Box::new(Subject {
            info,
            tree,
            place: top.dir.clone(),
            recipe,
            diff_id,
        })))
    }

    /// Writes a layer's recipe again, if repairs were asked for and a source has the layer.
    fn mended_recipe(&mut self, info: &Info, diff_id: &Digest, why: &str) -> Result<Option<File>> {
        let Some(repairs) = &self.repairs else {
            return Ok(None);
        };
        let Some(from) = repairs.recipe(info, diff_id)? else {
            return Ok(None);
        };
        let wrong = of_recipe(self.store, diff_id, &why);
        self.result.recipes.push((wrong, from));
        match sound_recipe(self.store, diff_id)? {
            RecipeState::Sound(recipe) => Ok(Some(recipe)),
            RecipeState::Missing | RecipeState::Bad(_) => Ok(None),
        }
    }

    /// Applies a layer to the outline. `None` if its recipe can't be used, which is then reported.
    fn outline(
        &mut self,
        subject: &mut Subject,
        target: &vellum_image::ApplyTarget,
    ) -> Result<Option<Outlined>> {
        let at = self.done.len() + 1;
        let name = names::short_key(&subject.info.key.to_text());
        let what = format!("layer {at}/{} {name}", self.total);
        let progress = &self.ctx.progress;
        let meter = progress.meter(&what, Unit::Bytes, subject.info.tar_bytes);
        let outlined = verify::outline(
            &mut subject.recipe,
            &subject.tree,
            target,
            &|bytes| meter.advance(bytes),
            &Limits::default(),
            &self.ctx.cancel,
        );
        meter.finish("read");
        match outlined {
            Ok(outlined) => Ok(Some(outlined)),
            Err(vellum_image::Error::Cancelled) => Err(Error::Cancelled),
            Err(error @ vellum_image::Error::BadRecipe { .. }) => {
                self.bad_recipe(&subject.info, &subject.diff_id, &with_causes(&error));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Compares a layer with its outline, and repairs it if that was asked for.
    fn compare(&mut self, mut job: Job<'_>) -> Result<Vec<(Difference, Option<Outcome>)>> {
        let differences = job.compare(&self.ctx.cancel)?;
        let there = self.is_there(job.info);
        match &mut self.repairs {
            Some(repairs) if there => repairs.layer(&mut job, differences),
            _ => Ok(differences.into_iter().map(|one| (one, None)).collect()),
        }
    }

    /// Adds what was found in a layer, unless it was removed during the comparison.
    fn report(
        &mut self,
        layer: &Info,
        compared: Result<Vec<(Difference, Option<Outcome>)>>,
    ) -> Result<()> {
        let fresh = self.done.insert(layer.key.clone());
        match compared {
            Err(Error::Cancelled | Error::Image(vellum_image::Error::Cancelled)) => {
                return Err(Error::Cancelled);
            }
            _ if !fresh || !self.is_there(layer) => return Ok(()),
            Err(error) => {
                self.say(layer, with_causes(&error));
                return Ok(());
            }
            Ok(differences) => {
                for (difference, outcome) in differences {
                    let wrong = self.in_tree(layer, &difference, outcome);
                    self.result.wrong.push(wrong);
                }
            }
        }
        self.result.verified += 1;
        Ok(())
    }

    fn is_there(&self, layer: &Info) -> bool {
        self.store
            .stat(&layer.key)
            .is_ok_and(|now| now.tree == layer.tree)
    }

    fn in_tree(&self, layer: &Info, difference: &Difference, outcome: Option<Outcome>) -> Wrong {
        let path = path_text(&difference.path);
        Wrong {
            what: format!("{} {path}", self.called(&layer.key)),
            why: one_line(&difference.to_string()),
            healed: outcome.as_ref().is_some_and(|outcome| outcome.repaired),
            outcome,
            stale: None,
            in_tree: Some(InTree {
                layer: layer.key.to_string(),
                images: self.images.get(&layer.key).cloned().unwrap_or_default(),
                path,
                aspect: difference.aspect.name(),
                attribute: match &difference.aspect {
                    Aspect::Xattr(name) => Some(name.to_string_lossy().into_owned()),
                    _ => None,
                },
                expected: difference.expected.clone(),
                found: difference.found.clone(),
            }),
        }
    }

    /// Returns how a layer is named in messages, with an image that has it.
    fn called(&self, key: &SnapshotKey) -> String {
        let short = names::short_key(&key.to_string());
        match self.images.get(key).map(Vec::as_slice) {
            None | Some([]) => format!("layer {short}"),
            Some([only]) => format!("layer {short} ({only})"),
            Some([first, others @ ..]) => {
                format!("layer {short} ({first} and {} more)", others.len())
            }
        }
    }

    /// Adds what is wrong with a layer as a whole.
    fn say(&mut self, layer: &Info, why: String) {
        if self.is_there(layer) {
            let what = self.called(&layer.key);
            self.result.wrong.push(Wrong::new(what, why));
        }
    }

    fn bad_recipe(&mut self, layer: &Info, diff_id: &Digest, why: &str) {
        if self.is_there(layer) {
            let wrong = of_recipe(self.store, diff_id, &why);
            // A recipe may belong to several layers.
            if !self.result.wrong.contains(&wrong) {
                self.result.wrong.push(wrong);
            }
        }
        self.unverified(&layer.key, "its recipe is damaged");
    }

    fn unverified(&mut self, key: &SnapshotKey, why: &str) {
        if self.done.insert(key.clone()) {
            self.result.unverified.push(Unverified {
                layer: self.called(key),
                why: why.to_owned(),
            });
        }
    }
}

/// Returns a path in a tree as findings name it.
pub(super) fn path_text(path: &Path) -> String {
    one_line(&Path::new("/").join(path).to_string_lossy())
}

/// Returns a text on one line, whatever names and values it contains.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

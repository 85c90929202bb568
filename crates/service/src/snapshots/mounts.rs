//! How a snapshot is to be mounted, as text for whoever mounts it.
//!
//! Who that is differs (containerd's unpacker, a container's shim, a kubelet's plugin) and so does its mount namespace: every path is absolute.
//! The mounter's own differ may read the upper directory without knowing redirects, metacopies or an index, so those are off by name, whatever the
//! kernel's module would choose; redirects alone can be asked for (`mount.redirect-dir = on`), by who lets Vellum make his diffs.
//!
//! A single bind or overlay is what clients know how to take shortcuts with: one overlay with an upper is unpacked straight into the upper. The
//! parent's short names (`l/XXXX`) keep the options of deep chains within the page that mount(2) takes.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vellum_store::{DriverKind, Labels, Overlay, Shape, SnapshotKey, TreeParts};
use vellum_sys::Dir;
use vellum_sys::mount::{OverlayMount, OverlayOptions, RedirectDir};
use vellum_sys::quota::ProjectQuota;

use crate::config::{Engine, MountMethod, Toggle};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::facts;
use crate::plan::{self, EngineMount, Facts, OPTION_PAGE_BYTES, Plan, Refusal, Wishes};

use super::ids::{self, Mapper, Mapping};
use super::{MAX_SIZE, NewSnapshot, PARENT_CHAIN, SNAPSHOT_REF};

/// The type of mounts by Vellum's own engine: containerd has `mount.fuse3` call `vellum overlay` for it.
pub const ENGINE_TYPE: &str = "fuse3.vellum";

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountEntry {
    /// File system type: `bind`, `overlay` or [`ENGINE_TYPE`].
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where beneath the root; empty: there.
    pub target: String,
    /// Options, one each.
    pub options: Vec<String>,
}

/// Returns the limit that the file system is to keep, if one is asked for and it keeps any. Else the engine keeps it, where there is one.
///
/// Errors: `Invalid` if the label is no number.
pub(super) fn quota_bytes(ctx: &Context, new: &NewSnapshot) -> Result<Option<u64>> {
    let Some(bytes) = limit(&new.labels)? else {
        return Ok(None);
    };
    let state = vellum_sys::quota::state(Dir::open(ctx.root())?)?;
    Ok((state == ProjectQuota::Enforced).then_some(bytes))
}

/// Returns the size limit that the labels ask for. What is unpacked has none.
fn limit(labels: &Labels) -> Result<Option<u64>> {
    match labels.get(MAX_SIZE) {
        None => Ok(None),
        Some(_) if labels.contains_key(SNAPSHOT_REF) => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(0) => Ok(None),
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Err(Error::Invalid {
                what: format!("the label {MAX_SIZE} is {text:?}, which is no number of bytes"),
                hint: None,
            }),
        },
    }
}

/// Lays out what a new tree needs to be mounted, beyond what the store has laid out.
pub(super) fn prepare(parts: &TreeParts, labels: &Labels) -> Result<()> {
    match rebased(parts, labels)? {
        Some(rebased) => rebased.make(),
        None => Ok(()),
    }
}

/// Whether the tree's size limit is the engine's to keep.
///
/// Errors: `Invalid` if the label is no number.
pub(super) fn engine_keeps_limit(parts: &TreeParts, labels: &Labels) -> Result<bool> {
    let writable = matches!(&parts.shape, Shape::Overlay(overlay) if overlay.upper.is_some());
    Ok(writable && parts.size_limit_bytes.is_none() && limit(labels)?.is_some())
}

/// A tree without a parent yet, that is shown as an overlay on nothing: an unpacker then writes marks for what the layer hides, which a plain
/// directory would make it forget.
struct Rebased {
    upper: PathBuf,
    work: PathBuf,
    empty: PathBuf,
}

impl Rebased {
    fn make(&self) -> Result<()> {
        for (dir, mode) in [(&self.work, 0o700), (&self.empty, 0o755)] {
            match std::fs::DirBuilder::new().mode(mode).create(dir) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", dir)(e)),
            }
        }
        Ok(())
    }
}

/// Returns the parts of a tree that gets its parent at its commit; `None` for all others.
///
/// Errors: `Unsupported` if its driver keeps whole trees, which can't be put on a parent afterwards.
fn rebased(parts: &TreeParts, labels: &Labels) -> Result<Option<Rebased>> {
    let Shape::Plain {
        root,
        read_only: false,
        base: None,
    } = &parts.shape
    else {
        return Ok(None);
    };
    if !labels.contains_key(SNAPSHOT_REF) || labels.get(PARENT_CHAIN).is_none_or(String::is_empty) {
        return Ok(None);
    }
    let dir = root
        .parent()
        .filter(|_| parts.driver == DriverKind::Overlay2);
    let Some(dir) = dir else {
        return Err(Error::Unsupported {
            what: format!("layers of the driver {} can't be unpacked before their parent", parts.driver),
            hint: "take `rebase` out of the capabilities in containerd's configuration, or use --storage-driver overlay2".into(),
        });
    };
    Ok(Some(Rebased {
        upper: root.clone(),
        work: dir.join("work"),
        empty: dir.join("empty"),
    }))
}

/// Returns the directory that a snapshot's own files are in.
pub(super) fn upper_dir(ctx: &Context, key: &SnapshotKey) -> Option<String> {
    // Asked for a label only: what can't be told is left out.
    let parts = ctx.store().ok()?.tree(key).ok()?;
    let top = parts.layers().into_iter().next()?;
    text(&top.dir).ok()
}

/// Returns the mounts of a tree whose labels tell who maps its ids, if anybody does, and records what its upper is mounted with if that may leave marks.
pub(super) fn entries(
    ctx: &Context,
    key: &SnapshotKey,
    parts: &TreeParts,
    labels: &Labels,
) -> Result<Vec<MountEntry>> {
    let facts = facts::facts(ctx)?;
    if let Some(rebased) = rebased(parts, labels)? {
        rebased.make()?;
        return Ok(vec![on_nothing(&rebased, &facts)?]);
    }
    let mapper = Mapper::recorded(labels).unwrap_or(Mapper::Nobody);
    let mapping = Mapping::of(labels)?.filter(|_| mapper != Mapper::Nobody);
    let size = match parts.size_limit_bytes {
        None => limit(labels)?,
        Some(_) => None,
    };
    let who = match mapper {
        // What the upper holds is right under one of them only, whatever the settings are by now.
        Mapper::Kernel => Some(Engine::Kernel),
        Mapper::Engine => Some(Engine::Vellum),
        Mapper::Nobody => engine_keeps_limit(parts, labels)?.then_some(Engine::Vellum),
    };
    let planned = planned(ctx, &facts, parts, labels, who)?;
    if let Plan::Overlay {
        features: Some(features),
        ..
    }
    | Plan::Engine {
        features: Some(features),
        ..
    } = &planned
        && (features.redirect_dir || features.engine)
    {
        ctx.store()?.record_features(key, *features)?;
    }
    let mut entry = match &planned {
        Plan::Bind { source, read_only } => {
            if size.is_some() && !read_only {
                tracing::warn!(%key, "a tree without a parent gets no size limit: the file system keeps no project quotas");
            }
            MountEntry {
                kind: "bind".into(),
                source: text(source)?,
                options: vec![if *read_only { "ro" } else { "rw" }.into(), "rbind".into()],
                ..MountEntry::default()
            }
        }
        Plan::Overlay { mount, .. } => overlay(mount, &facts)?,
        Plan::Engine { mount, .. } => engine(mount)?,
    };
    let texts = mapping.iter().flat_map(Mapping::texts);
    match &planned {
        Plan::Engine { mount, .. } => {
            for (id, runs) in texts {
                entry
                    .options
                    .push(format!("{id}mapping={}", runs.replace(',', ":")));
            }
            if let (Some(bytes), true) = (size, mount.upper.is_some()) {
                entry.options.push(format!("size={bytes}"));
            }
        }
        Plan::Overlay { .. } | Plan::Bind { .. } => {
            entry
                .options
                .extend(texts.map(|(id, runs)| format!("{id}map={runs}")));
        }
    }
    if mapper == Mapper::Kernel
        && let Shape::Overlay(overlay) = &parts.shape
    {
        with_real_paths(&mut entry, overlay)?;
    }
    Ok(vec![entry])
}

/// Names layers by their directories.
fn with_real_paths(entry: &mut MountEntry, overlay: &Overlay) -> Result<()> {
    let lowers: Vec<_> = ids::real_layers(overlay)
        .iter()
        .map(|dir| text(dir))
        .collect::<Result<_>>()?;
    for option in &mut entry.options {
        if option.starts_with("lowerdir=") {
            *option = format!("lowerdir={}", lowers.join(":"));
        }
    }
    Ok(())
}

fn on_nothing(tree: &Rebased, facts: &Facts) -> Result<MountEntry> {
    let mount = OverlayMount {
        lowers: vec![tree.empty.clone()],
        data_lowers: Vec::new(),
        upper: Some(tree.upper.clone()),
        work: Some(tree.work.clone()),
        options: OverlayOptions {
            index: Some(false),
            metacopy: Some(false),
            redirect_dir: Some(RedirectDir::NoFollow),
            userxattr: !facts.trusted,
            ..OverlayOptions::default()
        },
        read_only: false,
    };
    overlay(&mount, facts)
}

/// Decides how a tree is mounted; `engine` is who must do it, if it is not for the settings to say.
///
/// Errors: [`Error::Plan`] if that can't be.
pub(super) fn planned(
    ctx: &Context,
    facts: &Facts,
    parts: &TreeParts,
    labels: &Labels,
    engine: Option<Engine>,
) -> Result<Plan> {
    let redirects = ctx.config.redirect_dir.value == Toggle::On;
    let mut wishes = Wishes {
        method: MountMethod::OptionPage,
        metacopy: Toggle::Off,
        redirect_dir: match redirects {
            true => Toggle::On,
            false => Toggle::Off,
        },
        docker_compatible: !redirects,
        ..Wishes::of(&ctx.config)
    };
    if let Some(engine) = engine {
        wishes.engine = engine;
    } else if labels.contains_key(SNAPSHOT_REF) && facts.trusted && parts.features.is_none() {
        // Unpackers fill the upper of an overlay without mounting it: nobody gains by another engine's mount.
        wishes.engine = Engine::Auto;
        wishes.redirect_dir = Toggle::Off;
        wishes.docker_compatible = true;
    }
    let refusal = match plan::plan(parts, facts, &wishes) {
        Ok(Plan::Overlay { mount, .. }) if page_bytes(&mount) > OPTION_PAGE_BYTES => {
            Refusal::PageFull {
                layers: mount.lowers.len(),
                bytes: page_bytes(&mount),
            }
        }
        Ok(planned) => return Ok(planned),
        Err(refusal) => refusal,
    };
    // The plan itself gives way to the other engine only where no way of mounting was named.
    if wishes.engine == Engine::Auto && refusal.is_the_kernels() && facts.fuse {
        wishes.engine = Engine::Vellum;
        return Ok(plan::plan(parts, facts, &wishes)?);
    }
    Err(refusal.into())
}

/// How long the options get when the client shortens them as it does: layers relative to the directory they have in common.
fn page_bytes(mount: &OverlayMount) -> usize {
    // Names and values of the features that are switched off.
    const FEATURES: usize = 64;
    let name = |dir: &Path| dir.file_name().map_or(0, |name| name.len());
    let lowers: usize = mount.lowers.iter().map(|dir| name(dir) + 1).sum();
    let whole = [&mount.upper, &mount.work];
    let whole: usize = whole
        .iter()
        .filter_map(|dir| dir.as_ref())
        .map(|dir| dir.as_os_str().len() + 10)
        .sum();
    lowers + whole + FEATURES
}

fn overlay(mount: &OverlayMount, facts: &Facts) -> Result<MountEntry> {
    let mut options = Vec::new();
    if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
        options.push(format!("workdir={}", text(work)?));
        options.push(format!("upperdir={}", text(upper)?));
    }
    let lowers: Vec<_> = mount
        .lowers
        .iter()
        .map(|dir| text(dir))
        .collect::<Result<_>>()?;
    options.push(format!("lowerdir={}", lowers.join(":")));
    let wanted = &mount.options;
    // A kernel without a feature may not know its name either.
    if facts.index && wanted.index == Some(false) {
        options.push("index=off".into());
    }
    if facts.metacopy && wanted.metacopy == Some(false) {
        options.push("metacopy=off".into());
    }
    if facts.redirect_dir
        && let Some(redirects) = wanted.redirect_dir
    {
        options.push(format!("redirect_dir={}", redirects.as_str()));
    }
    if wanted.userxattr {
        options.push("userxattr".into());
    }
    if wanted.is_volatile {
        options.push("volatile".into());
    }
    Ok(MountEntry {
        kind: "overlay".into(),
        source: "overlay".into(),
        options,
        ..MountEntry::default()
    })
}

fn engine(mount: &EngineMount) -> Result<MountEntry> {
    let mut options = Vec::new();
    for lower in &mount.lowers {
        options.push(format!("lowerdir+={}", text(lower)?));
    }
    if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
        options.push(format!("upperdir={}", text(upper)?));
        options.push(format!("workdir={}", text(work)?));
        // A layer must be whole when it is committed, which may be at any time.
        options.push("blocks=off".into());
    }
    options.extend(mount.options());
    Ok(MountEntry {
        kind: ENGINE_TYPE.into(),
        // mount.fuse3 makes it `vellum overlay TARGET -o ...`.
        source: "overlay".into(),
        options,
        ..MountEntry::default()
    })
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Invalid {
            what: format!("{} is not UTF-8", path.display()),
            hint: None,
        })
}

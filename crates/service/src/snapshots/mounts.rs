//! How a snapshot is to be mounted, as text for whoever mounts it.
//!
//! Who that is differs (containerd's unpacker, a container's shim, a kubelet's plugin) and so does its mount namespace: every path is absolute.
//! The mounter's own differ may read the upper directory without knowing redirects, metacopies or an index, so those are off by name, whatever the
//! kernel's module would choose; redirects alone can be asked for (`mount.redirect-dir = on`), by who lets Vellum make his diffs.
//!
//! A single bind or overlay is what clients know how to take shortcuts with: one overlay with an upper is unpacked straight into the upper. The
//! parent's short names (`l/XXXX`) keep the options of deep chains within the page that mount(2) takes.

use std::path::Path;

use vellum_store::{Labels, SnapshotKey, TreeParts};
use vellum_sys::mount::OverlayMount;

use crate::config::{Engine, MountMethod, Toggle};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::facts;
use crate::plan::{self, EngineMount, Facts, Plan, Wishes};

use super::SNAPSHOT_REF;

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

/// Returns the mounts of a tree, and records what its upper is mounted with if that may leave marks.
pub(super) fn entries(
    ctx: &Context,
    key: &SnapshotKey,
    parts: &TreeParts,
    labels: &Labels,
) -> Result<Vec<MountEntry>> {
    let facts = facts::facts(ctx)?;
    let planned = planned(ctx, &facts, parts, labels)?;
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
    Ok(vec![match &planned {
        Plan::Bind { source, read_only } => MountEntry {
            kind: "bind".into(),
            source: text(source)?,
            options: vec![if *read_only { "ro" } else { "rw" }.into(), "rbind".into()],
            ..MountEntry::default()
        },
        Plan::Overlay { mount, .. } => overlay(mount, &facts)?,
        Plan::Engine { mount, .. } => engine(mount)?,
    }])
}

fn planned(ctx: &Context, facts: &Facts, parts: &TreeParts, labels: &Labels) -> Result<Plan> {
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
    // Unpackers fill the upper of an overlay without mounting it: nobody gains by another engine's mount.
    if labels.contains_key(SNAPSHOT_REF) && facts.trusted && parts.features.is_none() {
        wishes.engine = Engine::Auto;
        wishes.redirect_dir = Toggle::Off;
        wishes.docker_compatible = true;
    }
    match plan::plan(parts, facts, &wishes) {
        // The plan itself gives way to the other engine only where no way of mounting was named.
        Err(refusal) if wishes.engine == Engine::Auto && refusal.is_the_kernels() && facts.fuse => {
            wishes.engine = Engine::Vellum;
            Ok(plan::plan(parts, facts, &wishes)?)
        }
        planned => Ok(planned?),
    }
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

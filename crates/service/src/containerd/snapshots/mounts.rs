//! A decision about a snapshot carried out: laid out, recorded, and printed as text for whoever
//! mounts it.
//!
//! Who that is differs (containerd's unpacker, a container's shim, a kubelet's plugin) and so does
//! its mount namespace: every path is absolute.
//!
//! A single bind or overlay is what clients know how to take shortcuts with: one overlay with an
//! upper is unpacked straight into the upper. The parent's short names (`l/XXXX`) keep the options
//! of deep chains within the page that mount(2) takes.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use vellum_store::{LabelChange, SnapshotKey, TreeParts};
use vellum_sys::mount::OverlayMount;
use vellum_sys::{Dir, rooted};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::mount::facts;
use crate::plan::{EngineMount, Facts, Plan, Wishes};

use super::ClientSettings;
use super::asked::Asked;
use super::decide::{self, Owner, Shown};

/// The type of mounts by Vellum's own engine: containerd has `mount.fuse3` call `vellum overlay`
/// for it.
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

/// Returns the mounts of a tree, after all that they need was laid out and recorded. Nothing is
/// done twice: a server that was killed may have left it half done.
pub(super) fn show(
    ctx: &Context,
    client: ClientSettings,
    key: &SnapshotKey,
    parts: &TreeParts,
    asked: &Asked,
) -> Result<Vec<MountEntry>> {
    let facts = facts::facts(ctx)?;
    let owner = match asked.is_mapper_open() {
        true => Some(owner_of(decide::below(parts))?),
        false => None,
    };
    let wishes = Wishes::of(&ctx.config);
    let shown = decide::decide(asked, parts, owner, &facts, &wishes, client.remap_ids)?;
    lay_out(&shown)?;
    record(ctx, key, &shown)?;
    if shown.limit_bytes.is_some()
        && matches!(
            shown.plan,
            Plan::Bind {
                read_only: false,
                ..
            }
        )
    {
        tracing::warn!(%key, "a tree without a parent gets no size limit: the file system keeps no project quotas");
    }
    Ok(vec![printed(&shown, &facts)?])
}

fn owner_of(dir: &Path) -> Result<Owner> {
    let stat = Dir::open(dir)?.stat_self()?;
    Ok(Owner {
        uid: stat.uid,
        gid: stat.gid,
    })
}

/// Makes, durably, what the mount needs beyond what the store has laid out.
fn lay_out(shown: &Shown) -> Result<()> {
    for (dir, mode) in &shown.dirs {
        match std::fs::DirBuilder::new().mode(*mode).create(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create", dir)(e)),
        }
    }
    if let (Some(owner), Some(upper)) = (shown.upper_owner, shown.plan.upper()) {
        let dir = Dir::open(upper)?;
        let now = dir.stat_self()?;
        rooted::set_owner_fd(&dir, owner.uid, owner.gid)?;
        // Which a change of owner may take bits from.
        rooted::set_mode_fd(&dir, now.mode)?;
        dir.sync()?;
    }
    Ok(())
}

/// Records who maps ids, and what the upper is mounted with if that may leave marks.
fn record(ctx: &Context, key: &SnapshotKey, shown: &Shown) -> Result<()> {
    if let Some(mapper) = shown.new_mapper {
        let (label, name) = mapper.label();
        ctx.store()?.update(key, &[LabelChange::Set(label, name)])?;
    }
    if let Some(features) = shown.marking_features() {
        ctx.store()?.record_features(key, features)?;
    }
    Ok(())
}

/// Returns the directory that a snapshot's own files are in.
pub(super) fn upper_dir(ctx: &Context, key: &SnapshotKey) -> Option<String> {
    // Asked for a label only: what can't be told is left out.
    let parts = ctx.store().ok()?.tree(key).ok()?;
    let top = parts.layers().into_iter().next()?;
    text(&top.dir).ok()
}

fn printed(shown: &Shown, facts: &Facts) -> Result<MountEntry> {
    let mut entry = match &shown.plan {
        Plan::Bind { source, read_only } => MountEntry {
            kind: "bind".into(),
            source: text(source)?,
            options: vec![if *read_only { "ro" } else { "rw" }.into(), "rbind".into()],
            ..MountEntry::default()
        },
        Plan::Overlay { mount, .. } => overlay(mount, facts)?,
        Plan::Engine { mount, .. } => engine(mount)?,
    };
    let texts = shown.mapping.iter().flat_map(|mapping| mapping.texts());
    match &shown.plan {
        Plan::Engine { mount, .. } => {
            let option = |(id, runs): (_, &str)| format!("{id}mapping={}", runs.replace(',', ":"));
            entry.options.extend(texts.map(option));
            if let (Some(bytes), Some(_)) = (shown.limit_bytes, &mount.upper) {
                entry.options.push(format!("size={bytes}"));
            }
        }
        Plan::Overlay { .. } | Plan::Bind { .. } => {
            let option = |(id, runs)| format!("{id}map={runs}");
            entry.options.extend(texts.map(option));
        }
    }
    Ok(entry)
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

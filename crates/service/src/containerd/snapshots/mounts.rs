//! Carries out a decision about a snapshot: lays it out, records it, and prints it as text for the
//! mounting program.
//!
//! The mounting program varies (containerd's unpacker, a container's shim, a kubelet's plugin), and
//! so does its mount namespace: every path is absolute.
//!
//! Clients have shortcuts for a single bind or overlay: they unpack straight into the upper of an
//! overlay. The parent's short names (`l/XXXX`) keep the options of deep chains within the single
//! page that mount(2) takes.

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

/// The type of mounts by Vellum's own engine: for it, containerd's `mount.fuse3` calls `vellum
/// overlay`.
pub const ENGINE_TYPE: &str = "fuse3.vellum";

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountEntry {
    /// File system type: `bind`, `overlay` or [`ENGINE_TYPE`].
    pub kind: String,
    /// The source of the mount.
    pub source: String,
    /// The path below the root; empty: the root itself.
    pub target: String,
    /// The options, one by one.
    pub options: Vec<String>,
}

/// Returns the mounts of a tree, after laying out and recording all that they need. Can be
/// repeated: a server that was killed may have left it half done.
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
        tracing::warn!(%key, "no size limit for a tree without a parent: the file system has no project quotas");
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

/// Creates, durably, what the mount needs in addition to the store's layout.
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
        // A change of owner may have cleared bits of it.
        rooted::set_mode_fd(&dir, now.mode)?;
        dir.sync()?;
    }
    Ok(())
}

/// Records what maps ids, and the upper's features if they may leave marks.
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
    // Only needed for a label: if it can't be determined, it is left out.
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
        // A layer must be complete when it is committed, which may be at any time.
        options.push("blocks=off".into());
    }
    options.extend(mount.options());
    Ok(MountEntry {
        kind: ENGINE_TYPE.into(),
        // mount.fuse3 calls `vellum overlay TARGET -o ...` for it.
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

//! Carries out a plan: a bind mount, the kernel's overlay, or a process of Vellum's engine.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use vellum_overlay::daemon;
use vellum_store::{Shape, SnapshotKey, TreeParts};
use vellum_sys::mount::{self, BindOptions, MountError};
use vellum_sys::mountinfo;

use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::plan::{EngineMount, Plan, method_name};
use crate::stack;

use super::MountRequest;

/// Mounts a snapshot's tree at the directory `target`. The name is for messages.
///
/// The caller holds the lock of the snapshot's owner, and has checked that it is not mounted there.
pub(super) fn tree(
    ctx: &Context,
    (snapshot, name): (&SnapshotKey, &str),
    parts: &TreeParts,
    target: &Path,
    request: MountRequest,
) -> Result<&'static str> {
    let planned = super::plan_parts(ctx, parts, request)?;
    if let Plan::Overlay {
        features: Some(features),
        ..
    }
    | Plan::Engine {
        features: Some(features),
        ..
    } = &planned
    {
        if parts.features.is_none() {
            stack::adopt_root(ctx.process, parts, None)?;
        }
        // Before the mount: from then on the upper may have such marks.
        ctx.store()?.record_features(snapshot, *features)?;
    }
    match plan(ctx, &planned, target) {
        Err(Error::Mount(error)) => Err(explain(error, parts, name)),
        done => done,
    }
}

/// Carries out the plan, and returns the method's name.
pub(super) fn plan(ctx: &Context, planned: &Plan, target: &Path) -> Result<&'static str> {
    match planned {
        Plan::Bind { source, read_only } => {
            let options = BindOptions {
                read_only: *read_only,
                ..BindOptions::default()
            };
            mount::bind(source, target, options)?;
            Ok("bind")
        }
        Plan::Overlay {
            method,
            mount: overlay,
            ..
        } => {
            let facts = mount::overlay(overlay, target, method)?;
            for line in facts.log {
                tracing::debug!(kernel = line, "mounted");
            }
            Ok(method_name(method))
        }
        Plan::Engine { mount, .. } => {
            // The source distinguishes this store's mounts from others in the mount table.
            let arguments = engine_arguments(mount, ctx.store()?.root(), target);
            daemon::start_overlay(&arguments, target)?;
            Ok("engine")
        }
    }
}

/// Returns the arguments of `vellum overlay` for a mount. Each layer is an argument of its own,
/// because the length of one is limited.
fn engine_arguments(mount: &EngineMount, source: &Path, target: &Path) -> Vec<OsString> {
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: &OsStr| {
        let mut text = name.as_bytes().to_vec();
        for &byte in value.as_bytes() {
            if matches!(byte, b'\\' | b',' | b':' | b'"') {
                text.push(b'\\');
            }
            text.push(byte);
        }
        arguments.push(OsString::from("-o"));
        arguments.push(OsString::from_vec(text));
    };
    for lower in &mount.lowers {
        add("lowerdir+=", lower.as_os_str());
    }
    for (name, dir) in [("upperdir=", &mount.upper), ("workdir=", &mount.work)] {
        if let Some(dir) = dir {
            add(name, dir.as_os_str());
        }
    }
    arguments.push("-o".into());
    arguments.push(mount.options().join(",").into());
    arguments.push(source.into());
    arguments.push(target.into());
    arguments
}

/// Adds what is in the way to the error.
fn explain(error: MountError, parts: &TreeParts, name: &str) -> Error {
    if error.is_busy()
        && let Shape::Overlay(overlay) = &parts.shape
        && let Some(upper) = &overlay.upper
    {
        let holders = mountinfo::find_overlay_holders(&upper.dir, overlay.work.as_deref())
            .unwrap_or_default();
        if !holders.is_empty() {
            return Error::InUse {
                kind: ObjectKind::Container,
                name: name.to_owned(),
                by: holders.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
                hint: "its tree is mounted in another mount namespace: stop the process there, or unmount it there".into(),
            };
        }
    }
    Error::Mount(error)
}

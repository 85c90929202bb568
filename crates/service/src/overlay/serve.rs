//! From what is asked for to a mount that answers, and on to its end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vellum_sys::Cancel;
use vellum_union::engine::Engine;

use crate::error::{Error, Result};
use crate::overlay::options::{Access, DataMode, Manners, MountOptions, OpenMode, Settle};
use crate::overlay::{layers, settle};

/// One mount.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What is mounted, and how. Paths are absolute.
    pub options: MountOptions,
    /// Where; a directory.
    pub target: PathBuf,
    /// On whose terms: the name in the mount table follows.
    pub manners: Manners,
}

/// Mounts, and serves until somebody unmounts it or this process is told to end (SIGTERM, SIGINT).
///
/// `warn` hears what will not be as usual, `ready` is called once, when the mount answers; if that fails, the mount is taken away again.
/// On return the upper is synced, unless it is volatile. Errors: nothing is mounted any more.
pub fn serve(
    request: &Request,
    mut warn: impl FnMut(&str),
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let opened = layers::open(&request.options)?;
    let fuse = fuse_options(request, &mut warn);
    for warning in &opened.warnings {
        warn(warning);
    }
    let _held = opened.locks;
    let engine = Engine::open(opened.engine)?;
    let mut session = vellum_fuse::mount(engine, &request.target, &fuse)?;
    // Before anybody is told: a signal that came earlier would leave a dead mount.
    session.take_signals()?;
    if let Err(error) = ready() {
        // Nobody was told of it; whoever found it all the same keeps it until he lets go.
        if let Err(error) = session.unmounter().unmount() {
            tracing::warn!(%error, "the mount stays until it is unmounted");
        }
        session.wait()?;
        return Err(error);
    }
    tracing::info!(target = %request.target.display(), "mounted");
    session.run()?;
    if request.options.settle == Settle::Unmount {
        settle_after(&request.options)?;
    }
    Ok(())
}

/// Makes every file of the upper whole, unless somebody has it again, or it is gone.
fn settle_after(options: &MountOptions) -> Result<()> {
    let (Some(upper), Some(work)) = (&options.upper, &options.work) else {
        return Ok(());
    };
    if options.flags.read_only || !(upper.exists() && work.exists()) {
        return Ok(());
    }
    match settle::settle(upper, work, Some(options), &mut |_| {}, &Cancel::new()) {
        Err(Error::Union(vellum_union::Error::BadUpper { .. })) => Ok(()),
        Err(_) if !upper.exists() => Ok(()),
        other => other.map(drop),
    }
}

/// Translates what concerns the mount and not the layers.
fn fuse_options(request: &Request, warn: &mut impl FnMut(&str)) -> vellum_fuse::MountOptions {
    let options = &request.options;
    let name = match request.manners {
        Manners::Own => "vellum",
        Manners::FuseOverlayfs => "fuse-overlayfs",
    };
    let is_root = rustix::process::geteuid().is_root();
    let allow_other = match options.access {
        None => is_root,
        Some(Access::All) => true,
        Some(Access::Owner) => false,
        Some(Access::Root) => {
            if !is_root {
                warn(
                    "allow_root is left out: who mounts without being root may let everybody in (allow_other) or nobody else",
                );
            }
            false
        }
    };
    let flags = options.flags;
    let mut extra = Vec::new();
    // Without SELinux the kernel refuses to hear of labels.
    if let Some(label) = &options.context
        && Path::new("/sys/fs/selinux/enforce").exists()
    {
        let mut text = OsString::from("context=");
        text.push(label);
        extra.push(text);
    }
    vellum_fuse::MountOptions {
        source: options.source.clone().unwrap_or_else(|| name.into()),
        subtype: Some(name.to_owned()),
        allow_other,
        default_permissions: true,
        acl: !options.no_acl && !options.no_xattrs,
        timeout: options.cache_for,
        data: match options.data {
            DataMode::Coherent => vellum_fuse::DataMode::Coherent,
            DataMode::Passthrough => vellum_fuse::DataMode::Passthrough,
        },
        open: match options.open {
            OpenMode::Deferred => vellum_fuse::OpenMode::Free,
            OpenMode::Checked => vellum_fuse::OpenMode::Checked,
        },
        writeback: options.writeback,
        no_fsync: options.is_volatile,
        flags: vellum_fuse::MountFlags {
            read_only: flags.read_only,
            nosuid: flags.no_suid,
            nodev: flags.no_dev,
            noexec: flags.no_exec,
            noatime: flags.no_atime,
            nodiratime: flags.no_dir_atime,
            sync: flags.synchronous,
            dirsync: false,
        },
        extra,
        mounter: vellum_fuse::Mounter::Any,
    }
}

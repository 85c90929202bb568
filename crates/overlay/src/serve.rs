//! Serves one mount: from the request until it is unmounted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vellum_format::workdir;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::plain::{self, Links};
use vellum_sys::{Cancel, Dir, Process, mountinfo, own_files};
use vellum_union::engine::{Engine, EngineOptions};

use crate::error::Result;
use crate::options::{Access, DataMode, Manners, MountOptions, Settle};
use crate::{daemon, layers};

/// One mount.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The layers and options. Paths are absolute.
    pub options: MountOptions,
    /// The mount point, a directory.
    pub target: PathBuf,
    /// How strictly options are read; it also decides the name in the mount table.
    pub manners: Manners,
}

/// Mounts, and serves until the mount is unmounted or this process gets SIGTERM or SIGINT.
///
/// `warn` gets what will differ from the usual. `ready` is called once, when the mount is served;
/// if it fails, the mount is removed again. On return the upper is synced, unless it is volatile.
/// After an error nothing is mounted.
pub fn serve(
    request: &Request,
    mut warn: impl FnMut(&str),
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    own_files::enable(daemon::assistant);
    let mut request = request.clone();
    layers::beneath_id_maps(&mut request.options)?;
    let request = &request;
    let opened = layers::open(&request.options)?;
    let fuse = fuse_options(request, &mut warn);
    for warning in &opened.warnings {
        warn(warning);
    }
    let _held = opened.locks;
    let engine = open_engine(opened.engine, &request.options)?;
    if let Some(record) = opened.record {
        record.write()?;
    }
    // Before the mount is visible: a signal would leave a dead mount.
    let caught = vellum_fuse::Caught::new()?;
    let mut session = vellum_fuse::mount(engine, &request.target, &fuse)?;
    session.take_signals(caught)?;
    note_mount(request, session.unmounter().connection());
    if let Err(error) = ready() {
        // The caller was not told of the mount. A process that found it anyway keeps it until it
        // lets go.
        if let Err(error) = session.unmounter().unmount() {
            tracing::warn!(%error, "the mount stays until it is unmounted");
        }
        session.wait()?;
        return Err(error);
    }
    tracing::info!(target = %request.target.display(), "mounted");
    close(session.outlast(), &request.options)
}

/// How long an unmounted union may take to write its data.
const CLOSING: Duration = Duration::from_secs(20);

/// Opens the engine. umount(8) returns before the old mount's server has synced and released the
/// upper, and the next mount may come at once, so this waits for the old server. An upper that is
/// still mounted is refused immediately.
fn open_engine(engine: EngineOptions, options: &MountOptions) -> Result<Engine> {
    let until = Instant::now() + CLOSING;
    loop {
        match Engine::open(engine.clone()) {
            Err(vellum_union::Error::BadUpper { .. })
                if is_taken(options) && !is_shown(options) && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return Ok(done?),
        }
    }
}

/// Tells whether a process holds the upper or the work directory.
fn is_taken(options: &MountOptions) -> bool {
    let both = [&options.upper, &options.work];
    both.into_iter().flatten().any(|path| {
        let free = Dir::open(path).and_then(|dir| Lock::try_now(dir, Sharing::Shared));
        matches!(free, Ok(None))
    })
}

/// Tells whether the mount that holds the upper is in the mount table. If that is unknown, it
/// counts as mounted.
fn is_shown(options: &MountOptions) -> bool {
    let noted = options.work.as_ref().and_then(|work| {
        let text = plain::read(&mounted(work), 64, Links::InParents).ok()?;
        let text = String::from_utf8(text).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    match (noted, mountinfo::read()) {
        (Some(dev), Ok(table)) => table
            .mounts()
            .iter()
            .any(|m| m.dev == dev && m.fs_type.as_bytes().starts_with(b"fuse")),
        _ => true,
    }
}

/// The file in a work directory that says which mount shows its upper.
fn mounted(work: &Path) -> PathBuf {
    work.join(workdir::OWN).join(workdir::OWN_MOUNTED)
}

/// Notes the mount in the work directory. Without the note, the next mount does not wait for this
/// one.
fn note_mount(request: &Request, connection: u64) {
    let (Some(work), false) = (&request.options.work, request.options.flags.read_only) else {
        return;
    };
    let text = format!("0:{connection}\n");
    let noted = plain::overwrite(&mounted(work), text.as_bytes(), 0o644, Links::InParents);
    if let Err(error) = noted {
        tracing::debug!(%error, "the mount is not noted");
    }
}

/// Closes the engine; first completes every partly copied file of the upper, if that is asked for.
/// No process can take the upper in between.
fn close(engine: Engine, options: &MountOptions) -> Result<()> {
    if options.settle != Settle::Unmount || options.flags.read_only {
        return Ok(engine.close()?);
    }
    match engine.close_settled(&mut |_| {}, &Cancel::new()) {
        // The caller has deleted the upper since the unmount, as `podman rm` does.
        Err(_) if options.upper.as_ref().is_some_and(|upper| !upper.exists()) => Ok(()),
        settled => Ok(settled.map(drop)?),
    }
}

/// Translates the options of the mount, as opposed to those of the layers.
fn fuse_options(request: &Request, warn: &mut impl FnMut(&str)) -> vellum_fuse::MountOptions {
    let options = &request.options;
    let name = match request.manners {
        Manners::Own => "vellum",
        Manners::FuseOverlayfs => "fuse-overlayfs",
    };
    let process = Process::read();
    let is_root = process.uid == 0;
    let mut only = None;
    let allow_other = match options.access {
        None => is_root,
        Some(Access::All) => true,
        Some(Access::Owner) => false,
        // No user but the owner, which is root.
        Some(Access::Root) if is_root => false,
        // The kernel admits either every user or the owner only, so the server checks.
        Some(Access::Root) => {
            warn("allow_root makes everything slower: the kernel can't cache names or attributes");
            only = Some(process.uid);
            true
        }
    };
    let mut extra = Vec::new();
    // Without SELinux the kernel refuses labels.
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
        only,
        default_permissions: true,
        acl: !options.no_acl && !options.no_xattrs,
        timeout: options.cache_for,
        data: match options.data {
            DataMode::Passthrough if !process.is_root() => {
                warn("passthrough is ignored: it needs root outside a user namespace");
                DataMode::Coherent
            }
            wanted => wanted,
        },
        open: options.open,
        writeback: options.writeback,
        max_write_bytes: options.max_write_bytes,
        no_fsync: options.is_volatile,
        workers: options.threads,
        io_uring: options.io_uring,
        flags: options.flags,
        extra,
        mounter: vellum_fuse::Mounter::Any,
    }
}

//! From what is asked for to a mount that answers, and on to its end.

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
    /// What is mounted, and how. Paths are absolute.
    pub options: MountOptions,
    /// Where; a directory.
    pub target: PathBuf,
    /// On whose terms: the name in the mount table follows.
    pub manners: Manners,
}

/// Mounts, and serves until somebody unmounts it or this process is told to end (SIGTERM, SIGINT).
///
/// `warn` hears what will not be as usual, `ready` is called once, when the mount is served; if
/// that fails, the mount is taken away again. On return the upper is synced, unless it is volatile.
/// Errors: nothing is mounted any more.
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
    // Before it can be seen: a signal would leave a dead mount.
    let caught = vellum_fuse::Caught::new()?;
    let mut session = vellum_fuse::mount(engine, &request.target, &fuse)?;
    session.take_signals(caught)?;
    note_mount(request, session.unmounter().connection());
    if let Err(error) = ready() {
        // Nobody was told of it; whoever found it all the same keeps it until he lets go.
        if let Err(error) = session.unmounter().unmount() {
            tracing::warn!(%error, "the mount stays until it is unmounted");
        }
        session.wait()?;
        return Err(error);
    }
    tracing::info!(target = %request.target.display(), "mounted");
    close(session.outlast(), &request.options)
}

/// How long an unmounted union may take to write what it has.
const CLOSING: Duration = Duration::from_secs(20);

/// Opens the engine. Who unmounts gets his prompt back before the old mount's server has synced and
/// let go of the upper, and may mount again at once: that is waited for. An upper that is still
/// shown is refused at once.
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

/// Tells whether somebody has the upper or the work directory.
fn is_taken(options: &MountOptions) -> bool {
    let both = [&options.upper, &options.work];
    both.into_iter().flatten().any(|path| {
        let free = Dir::open(path).and_then(|dir| Lock::try_now(dir, Sharing::Shared));
        matches!(free, Ok(None))
    })
}

/// Tells whether the mount that has the upper is in the mount table. What can't be told counts as
/// shown.
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

/// Where a work directory says which mount its upper is shown by.
fn mounted(work: &Path) -> PathBuf {
    work.join(workdir::OWN).join(workdir::OWN_MOUNTED)
}

/// Notes the mount in the work directory. Without the note the next mount only waits for nothing.
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

/// Closes the engine, and makes every file of the upper whole first if that is asked for. Nobody
/// can have the upper between the two.
fn close(engine: Engine, options: &MountOptions) -> Result<()> {
    if options.settle != Settle::Unmount || options.flags.read_only {
        return Ok(engine.close()?);
    }
    match engine.close_settled(&mut |_| {}, &Cancel::new()) {
        // Whoever unmounted has thrown it away meanwhile, as `podman rm` does.
        Err(_) if options.upper.as_ref().is_some_and(|upper| !upper.exists()) => Ok(()),
        settled => Ok(settled.map(drop)?),
    }
}

/// Translates what concerns the mount and not the layers.
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
        // Nobody else than the owner, who it is.
        Some(Access::Root) if is_root => false,
        // The kernel lets in all or nobody, so the server has to tell them apart.
        Some(Access::Root) => {
            warn(
                "allow_root makes everything slower: every name and attribute is asked for each time",
            );
            only = Some(process.uid);
            true
        }
    };
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
        only,
        default_permissions: true,
        acl: !options.no_acl && !options.no_xattrs,
        timeout: options.cache_for,
        data: match options.data {
            DataMode::Passthrough if !process.is_root() => {
                warn("passthrough is left out: only root outside user namespaces may have it");
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

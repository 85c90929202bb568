//! Overlay mounts, made by exactly one of three methods and read back afterwards.
//!
//! Paths of layers are any bytes. As descriptors they need no escaping. Nor do they as `lowerdir+`
//! strings, but the kernel cuts fsconfig strings at 256 bytes, so a longer path is passed as
//! `/proc/self/fd/N`; in `upperdir` and `workdir` strings the kernel removes backslashes. The third
//! method is mount(2)'s option page (`page`).
//!
//! A mount never lacks a requested feature: the kernel drops some with only a line in its log
//! (index on a file system without handles, two layers with one uuid), so the options are read
//! back.

mod options;
mod page;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{BindOptions, Detach, MountError};
use crate::Error;
use crate::mountinfo;

use page::{escape, mount_by_page};

pub use options::{EffectiveOptions, OverlayOptions, RedirectDir, Xino};
pub use page::option_page_bytes;

/// The most lower layers the kernel accepts (`OVL_MAX_STACK`).
pub const KERNEL_LAYER_LIMIT: usize = 500;

/// How layers are passed to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// `fsconfig(FSCONFIG_SET_FD)` for every layer: Linux 6.13.
    LayerFds,
    /// `fsconfig` strings, one `lowerdir+` for every layer: Linux 6.8.
    LowerdirPaths,
    /// One page of options through mount(2), any kernel.
    OptionPage {
        /// The directory that layers' paths are relative to if they lie beneath it.
        home: PathBuf,
    },
}

impl Method {
    /// Returns the name for settings and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Method::LayerFds => "layer-fds",
            Method::LowerdirPaths => "lowerdir-paths",
            Method::OptionPage { .. } => "option-page",
        }
    }
}

/// An overlay to mount. Paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayMount {
    /// Lower layers, top first; at least one.
    pub lowers: Vec<PathBuf>,
    /// Data-only layers beneath them, reached only by redirects of metacopies.
    pub data_lowers: Vec<PathBuf>,
    /// The writable layer; without it the mount is read-only.
    pub upper: Option<PathBuf>,
    /// The work directory: an empty directory on the upper's file system.
    pub work: Option<PathBuf>,
    /// Options.
    pub options: OverlayOptions,
    /// Make it read-only, even with an upper.
    pub read_only: bool,
}

/// The resulting mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedFacts {
    /// The mount's id in mountinfo.
    pub mnt_id: u64,
    /// The overlay's own device number, as in `st_dev` of its directories.
    pub dev: (u32, u32),
    /// True if it is just a read-only bind mount, because there was one lower layer and no upper.
    pub is_bind: bool,
    /// The options in effect.
    pub effective: EffectiveOptions,
    /// What the kernel logged about it; usually empty.
    pub log: Vec<String>,
}

/// Mounts an overlay at `target` (an existing directory) by `method` only.
///
/// One lower layer without an upper becomes a read-only bind mount, since the kernel refuses an
/// overlay of one. After an error nothing is mounted.
pub fn overlay(
    mount: &OverlayMount,
    target: &Path,
    method: &Method,
) -> Result<MountedFacts, MountError> {
    check(mount)?;
    if mount.upper.is_none() && mount.lowers.len() == 1 && mount.data_lowers.is_empty() {
        return bind_single(mount, target);
    }
    let log = match method {
        Method::OptionPage { home } => {
            mount_by_page(mount, target, home)?;
            Vec::new()
        }
        Method::LayerFds | Method::LowerdirPaths => {
            let (fd, log) = overlay_detached(mount, target, method)?;
            super::attach(&fd, target)?;
            log
        }
    };
    let facts = facts(target, log);
    let lacking = match &facts {
        Ok(facts) => facts.effective.missing(&mount.options),
        Err(_) => None,
    };
    match (facts, lacking) {
        (Ok(facts), None) => Ok(facts),
        (Ok(_), Some((feature, effective))) => {
            super::unmount(target, Detach::Yes)?;
            Err(MountError::FeatureMissing {
                feature,
                effective,
                target: target.to_path_buf(),
            })
        }
        (Err(e), _) => {
            super::unmount(target, Detach::Yes)?;
            Err(e)
        }
    }
}

fn check(mount: &OverlayMount) -> Result<(), MountError> {
    let layers = mount.lowers.len() + mount.data_lowers.len();
    if layers > KERNEL_LAYER_LIMIT {
        return Err(MountError::TooManyLayers {
            layers,
            limit: KERNEL_LAYER_LIMIT,
        });
    }
    let why = if mount.lowers.is_empty() {
        "there is no lower layer"
    } else if mount.upper.is_some() != mount.work.is_some() {
        "an upper needs a work directory, and the other way round"
    } else {
        return Ok(());
    };
    Err(MountError::Unsupported {
        method: "overlayfs",
        why,
    })
}

fn bind_single(mount: &OverlayMount, target: &Path) -> Result<MountedFacts, MountError> {
    let options = BindOptions {
        read_only: true,
        recursive: false,
        nosuid: mount.options.nosuid,
        nodev: mount.options.nodev,
    };
    super::bind(&mount.lowers[0], target, options)?;
    let stat = crate::stat::stat_fd(open_target(target)?)?;
    Ok(MountedFacts {
        mnt_id: stat.mnt_id,
        dev: (rustix::fs::major(stat.dev), rustix::fs::minor(stat.dev)),
        is_bind: true,
        effective: EffectiveOptions::default(),
        log: Vec::new(),
    })
}

fn open_target(target: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::empty()).map_err(|e| Error::new("open", target, e))
}

fn facts(target: &Path, log: Vec<String>) -> Result<MountedFacts, MountError> {
    let mount = mountinfo::of(open_target(target)?)?.filter(|m| m.fs_type == "overlay");
    let Some(mount) = mount else {
        let gone = io::Error::new(
            io::ErrorKind::NotFound,
            "the new mount is not in the mount table",
        );
        return Err(Error::new("read back the mount at", target, gone).into());
    };
    Ok(MountedFacts {
        mnt_id: mount.id,
        dev: mount.dev,
        is_bind: false,
        effective: EffectiveOptions::of(&mount.fs_options()?),
        log,
    })
}

/// Builds a detached overlay; it ends when the descriptor is closed.
///
/// The descriptor can be walked like a directory opened with `O_PATH`. `target` is for messages.
/// Options are not read back. Also returns what the kernel logged. Errors as [`overlay`];
/// `OptionPage` can't do this.
pub fn overlay_detached(
    mount: &OverlayMount,
    target: &Path,
    method: &Method,
) -> Result<(OwnedFd, Vec<String>), MountError> {
    check(mount)?;
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| Error::new("open a file system context (fsopen) for", target, e))?;
    let builder = Builder { context, target };
    for (name, value) in mount.options.pairs() {
        match value {
            Some(value) => builder.string(&name, value.as_bytes())?,
            None => builder.flag(&name)?,
        }
    }
    match method {
        Method::LayerFds => builder.layers_as_fds(mount)?,
        Method::LowerdirPaths => builder.layers_as_paths(mount)?,
        Method::OptionPage { .. } => {
            let why = "mount(2) makes no detached mounts";
            return Err(MountError::Unsupported {
                method: method.name(),
                why,
            });
        }
    }
    // Only the name shown in tables and messages.
    builder.string("source", b"overlay")?;
    if mount.read_only || mount.upper.is_none() {
        builder.flag("ro")?;
    }
    rustix::mount::fsconfig_create(&builder.context)
        .map_err(|e| builder.refused("the mount", e))?;
    let mut attributes = MountAttrFlags::empty();
    for (wanted, attribute) in [
        (
            mount.read_only || mount.upper.is_none(),
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        ),
        (mount.options.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (mount.options.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (mount.options.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ] {
        if wanted {
            attributes |= attribute;
        }
    }
    let fd = rustix::mount::fsmount(&builder.context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| builder.refused("fsmount", e))?;
    let log = builder.log();
    Ok((fd, log))
}

struct Builder<'a> {
    context: OwnedFd,
    target: &'a Path,
}

impl Builder<'_> {
    fn flag(&self, name: &str) -> Result<(), MountError> {
        rustix::mount::fsconfig_set_flag(&self.context, name)
            .map_err(|e| self.refused(&format!("option {name}"), e))
    }

    fn string(&self, name: &str, value: &[u8]) -> Result<(), MountError> {
        rustix::mount::fsconfig_set_string(&self.context, name, OsStr::from_bytes(value)).map_err(
            |e| {
                self.refused(
                    &format!("option {name}={}", String::from_utf8_lossy(value)),
                    e,
                )
            },
        )
    }

    fn layers_as_fds(&self, mount: &OverlayMount) -> Result<(), MountError> {
        let set = |name: &str, path: &Path| {
            let fd = open_layer(path)?;
            rustix::mount::fsconfig_set_fd(&self.context, name, &fd)
                .map_err(|e| self.refused(&format!("{name}={} as a descriptor", path.display()), e))
        };
        for lower in &mount.lowers {
            set("lowerdir+", lower)?;
        }
        for lower in &mount.data_lowers {
            set("datadir+", lower)?;
        }
        if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
            set("upperdir", upper)?;
            set("workdir", work)?;
        }
        Ok(())
    }

    fn layers_as_paths(&self, mount: &OverlayMount) -> Result<(), MountError> {
        let set = |name: &str, path: &Path| {
            let escaped = match name {
                // The kernel removes backslashes in these two, but not in the `+` options.
                "upperdir" | "workdir" => escape(path.as_os_str(), b"\\"),
                _ => path.as_os_str().as_bytes().to_vec(),
            };
            if super::fits_fsconfig(Path::new(OsStr::from_bytes(&escaped))) {
                return self.string(name, &escaped);
            }
            // The kernel resolves the path during the call, so the descriptor may be closed
            // afterwards.
            let fd = open_layer(path)?;
            self.string(name, format!("/proc/self/fd/{}", fd.as_raw_fd()).as_bytes())
        };
        for lower in &mount.lowers {
            set("lowerdir+", lower)?;
        }
        for lower in &mount.data_lowers {
            set("datadir+", lower)?;
        }
        if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
            set("upperdir", upper)?;
            set("workdir", work)?;
        }
        Ok(())
    }

    fn refused(&self, step: &str, e: Errno) -> MountError {
        MountError::Refused {
            step: step.to_string(),
            target: self.target.to_path_buf(),
            log: self.log(),
            source: e.into(),
        }
    }

    /// Takes the messages the kernel left in the context, without their severity letter.
    fn log(&self) -> Vec<String> {
        let mut messages = Vec::new();
        let mut buf = [0; 1024];
        while let Ok(len) = rustix::io::read(&self.context, &mut buf) {
            if len == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&buf[..len]);
            let text = text.trim_end();
            messages.push(
                ["e ", "w ", "i "]
                    .iter()
                    .find_map(|p| text.strip_prefix(p))
                    .unwrap_or(text)
                    .to_string(),
            );
        }
        messages
    }
}

fn open_layer(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::new("open the layer", path, e))
}

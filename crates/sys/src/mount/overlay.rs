//! Overlay mounts, built by one of three forced ways and read back afterwards.
//!
//! Paths of layers are any bytes. As descriptors they need no escaping at all. As `lowerdir+` strings neither, but the
//! kernel cuts fsconfig strings at 256 bytes, so a longer path goes in as `/proc/self/fd/N`; `upperdir` and `workdir`
//! strings have backslashes undone by the kernel. On mount(2)'s option page `:`, `,` and `\` are escaped, and paths
//! beneath the home directory are given relative to it, from a thread whose working directory is the home.
//!
//! A mount is never left without a feature that was asked for: some are dropped by the kernel with a line in its log
//! only (index on a file system without handles, two layers with one uuid), so the options are read back.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};

use super::{BindOptions, Detach, MountError};
use crate::Error;
use crate::mountinfo::{self, FsOptions};

/// Lower layers the kernel takes at most (`OVL_MAX_STACK`).
pub const KERNEL_LAYER_LIMIT: usize = 500;

/// Bytes of options mount(2) passes: a page without the closing NUL.
const OPTION_PAGE: usize = 4095;

/// How layers are handed to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// `fsconfig(FSCONFIG_SET_FD)` for every layer: Linux 6.13.
    LayerFds,
    /// `fsconfig` strings, one `lowerdir+` for every layer: Linux 6.8.
    LowerdirPaths,
    /// One page of options through mount(2), any kernel.
    OptionPage {
        /// The directory layers' paths are given relative to where they lie beneath it.
        home: PathBuf,
    },
}

impl Method {
    /// Returns the name used in settings and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Method::LayerFds => "layer-fds",
            Method::LowerdirPaths => "lowerdir-paths",
            Method::OptionPage { .. } => "option-page",
        }
    }
}

/// What to do with directories that are renamed or were (`redirect_dir`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectDir {
    /// Rename lower directories, leaving a redirect; follow redirects.
    On,
    /// Make none; whether they are followed is the module's `redirect_always_follow`.
    Off,
    /// Follow redirects, make none.
    Follow,
    /// Neither: a redirect in a layer is an error.
    NoFollow,
}

impl RedirectDir {
    /// Returns the option's value as the kernel spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            RedirectDir::On => "on",
            RedirectDir::Off => "off",
            RedirectDir::Follow => "follow",
            RedirectDir::NoFollow => "nofollow",
        }
    }
}

/// Whether inode numbers carry the layer in their high bits (`xino`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xino {
    /// They do.
    On,
    /// They don't.
    Off,
    /// They do if the layers' file systems leave room for certain.
    Auto,
}

impl Xino {
    /// Returns the option's value as the kernel spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Xino::On => "on",
            Xino::Off => "off",
            Xino::Auto => "auto",
        }
    }
}

/// Overlay options; `None` leaves one to the module's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// `index`: keep hard links together.
    pub index: Option<bool>,
    /// `redirect_dir`.
    pub redirect_dir: Option<RedirectDir>,
    /// `metacopy`: copy up attributes without data.
    pub metacopy: Option<bool>,
    /// `xino`.
    pub xino: Option<Xino>,
    /// `nfs_export`.
    pub nfs_export: Option<bool>,
    /// `userxattr`: marks in `user.overlay.*`. What a mount in a user namespace needs.
    pub userxattr: bool,
    /// `volatile`: never sync the upper.
    pub is_volatile: bool,
    /// Further options such as `context`, as given; `None` as value is a flag.
    pub extra: Vec<(String, Option<String>)>,
    /// Ignore set-user-id bits and capabilities (a property of the mount, not of the layers).
    pub nosuid: bool,
    /// Refuse device nodes.
    pub nodev: bool,
    /// Refuse execution.
    pub noexec: bool,
}

impl OverlayOptions {
    /// Returns the options as name and value, in a fixed order.
    pub fn pairs(&self) -> Vec<(String, Option<String>)> {
        let on_off = |b: bool| Some(if b { "on" } else { "off" }.to_string());
        let mut pairs = Vec::new();
        if let Some(index) = self.index {
            pairs.push(("index".to_string(), on_off(index)));
        }
        if let Some(redirect) = self.redirect_dir {
            pairs.push((
                "redirect_dir".to_string(),
                Some(redirect.as_str().to_string()),
            ));
        }
        if let Some(metacopy) = self.metacopy {
            pairs.push(("metacopy".to_string(), on_off(metacopy)));
        }
        if let Some(xino) = self.xino {
            pairs.push(("xino".to_string(), Some(xino.as_str().to_string())));
        }
        if let Some(nfs_export) = self.nfs_export {
            pairs.push(("nfs_export".to_string(), on_off(nfs_export)));
        }
        if self.userxattr {
            pairs.push(("userxattr".to_string(), None));
        }
        if self.is_volatile {
            pairs.push(("volatile".to_string(), None));
        }
        pairs.extend(self.extra.iter().cloned());
        pairs
    }
}

/// An overlay to be mounted. Paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayMount {
    /// Lower layers, top first; at least one.
    pub lowers: Vec<PathBuf>,
    /// Data-only layers beneath them, which only redirects of metacopies reach.
    pub data_lowers: Vec<PathBuf>,
    /// The writable layer; without it the mount is read-only.
    pub upper: Option<PathBuf>,
    /// The work directory: an empty directory on the upper's file system.
    pub work: Option<PathBuf>,
    /// Options.
    pub options: OverlayOptions,
    /// Refuse writing, even if there is an upper.
    pub read_only: bool,
}

/// What a mount turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedFacts {
    /// The mount's number in mountinfo.
    pub mnt_id: u64,
    /// The overlay's own device number, as in `st_dev` of its directories.
    pub dev: (u32, u32),
    /// True if it became a plain read-only bind mount, since there was one lower layer and no upper.
    pub is_bind: bool,
    /// The options in effect.
    pub effective: EffectiveOptions,
    /// What the kernel had to say about it; usually empty.
    pub log: Vec<String>,
}

/// The options in effect on a mounted overlay. The kernel prints only what differs from the module's defaults, which
/// are filled in here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EffectiveOptions {
    /// `index`.
    pub index: bool,
    /// `redirect_dir` as the kernel spells it.
    pub redirect_dir: String,
    /// `metacopy`.
    pub metacopy: bool,
    /// `xino` if printed. It is not where all layers are on one file system, since there is nothing to do then.
    pub xino: Option<String>,
    /// `nfs_export`.
    pub nfs_export: bool,
    /// `userxattr`.
    pub userxattr: bool,
    /// `volatile`.
    pub is_volatile: bool,
}

impl EffectiveOptions {
    /// Reads the options of a mounted overlay.
    pub fn of(options: &FsOptions) -> Self {
        let is_on = |name: &str| match options.get(name) {
            Some(value) => value == "on",
            None => module_default(name),
        };
        EffectiveOptions {
            index: is_on("index"),
            redirect_dir: match options.get("redirect_dir") {
                Some(value) => value.to_string_lossy().into_owned(),
                None if module_default("redirect_dir") => "on".into(),
                None => "off".into(),
            },
            metacopy: is_on("metacopy"),
            xino: options
                .get("xino")
                .map(|v| v.to_string_lossy().into_owned()),
            nfs_export: is_on("nfs_export"),
            userxattr: options.get("userxattr").is_some(),
            is_volatile: options.get("volatile").is_some()
                || options.get("fsync").is_some_and(|v| v == "volatile"),
        }
    }

    /// Returns the first option asked for that is not in effect, as asked and as it is.
    pub fn missing(&self, asked: &OverlayOptions) -> Option<(String, String)> {
        let on_off = |b: bool| if b { "on" } else { "off" };
        let flag = |name: &str, asked: Option<bool>, is: bool| match asked {
            Some(want) if want != is => Some((
                format!("{name}={}", on_off(want)),
                format!("{name}={}", on_off(is)),
            )),
            _ => None,
        };
        flag("index", asked.index, self.index)
            .or_else(|| flag("metacopy", asked.metacopy, self.metacopy))
            .or_else(|| flag("nfs_export", asked.nfs_export, self.nfs_export))
            .or_else(|| {
                let want = asked.redirect_dir?.as_str();
                // "off" becomes "follow" or "nofollow" by the module's redirect_always_follow.
                let is = self.redirect_dir.as_str();
                let same = want == is || want == "off" && is != "on" || is == "off" && want != "on";
                (!same).then(|| (format!("redirect_dir={want}"), format!("redirect_dir={is}")))
            })
            .or_else(|| {
                (asked.userxattr && !self.userxattr)
                    .then(|| ("userxattr".into(), "no userxattr".into()))
            })
            .or_else(|| {
                (asked.is_volatile && !self.is_volatile)
                    .then(|| ("volatile".into(), "no volatile".into()))
            })
            .or_else(|| match (asked.xino, self.xino.as_deref()) {
                (Some(Xino::On), Some(is)) if is != "on" => {
                    Some(("xino=on".into(), format!("xino={is}")))
                }
                _ => None,
            })
    }
}

fn module_default(name: &str) -> bool {
    std::fs::read(format!("/sys/module/overlay/parameters/{name}"))
        .is_ok_and(|v| v.trim_ascii() == b"Y")
}

/// Mounts an overlay at `target` (an existing directory) by `method`, and no other.
///
/// One lower layer without an upper becomes a read-only bind mount, since the kernel refuses an overlay of one. After an
/// error nothing is mounted.
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
        "an upper and a work directory come together"
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

/// Builds an overlay that is not attached anywhere yet; it ends when the descriptor is closed.
///
/// The descriptor can be walked like a directory opened with `O_PATH`. `target` is for messages. Options are not read
/// back. Returns what the kernel logged with it. Errors as [`overlay`]; `OptionPage` can't do this.
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
    // Only names the mount in tables and messages.
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
                // The kernel undoes backslashes in these two, not in the `+` options.
                "upperdir" | "workdir" => escape(path.as_os_str(), b"\\"),
                _ => path.as_os_str().as_bytes().to_vec(),
            };
            if super::fits_fsconfig(Path::new(OsStr::from_bytes(&escaped))) {
                return self.string(name, &escaped);
            }
            // The kernel resolves the path during the call, so the descriptor may go afterwards.
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

    /// Takes the messages the kernel left in the context, without their level letter.
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

/// Puts a backslash before every byte of `special`.
fn escape(text: &OsStr, special: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

/// Returns how many bytes of mount(2)'s option page this overlay would take with paths relative to `home`; the page holds
/// 4095.
pub fn option_page_bytes(mount: &OverlayMount, home: &Path) -> usize {
    page(mount, home).len()
}

fn page(mount: &OverlayMount, home: &Path) -> Vec<u8> {
    let mut page = Vec::new();
    let mut option = |text: Vec<u8>| {
        if !page.is_empty() {
            page.push(b',');
        }
        page.extend(text);
    };
    for (name, value) in mount.options.pairs() {
        let text = match value {
            Some(value) => [name.as_bytes(), b"=", &escape(OsStr::new(&value), b",\\")].concat(),
            None => name.into_bytes(),
        };
        option(text);
    }
    let relative = |path: &Path| -> OsString {
        match path.strip_prefix(home) {
            Ok(rest) if rest.as_os_str().is_empty() => ".".into(),
            Ok(rest) => rest.into(),
            Err(_) => path.into(),
        }
    };
    let mut lowerdir = b"lowerdir=".to_vec();
    for (i, lower) in mount.lowers.iter().enumerate() {
        if i > 0 {
            lowerdir.push(b':');
        }
        lowerdir.extend(escape(&relative(lower), b":,\\"));
    }
    for lower in &mount.data_lowers {
        lowerdir.extend(b"::");
        lowerdir.extend(escape(&relative(lower), b":,\\"));
    }
    option(lowerdir);
    if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
        option([b"upperdir=", &escape(&relative(upper), b",\\:")[..]].concat());
        option([b"workdir=", &escape(&relative(work), b",\\:")[..]].concat());
    }
    page
}

fn mount_by_page(mount: &OverlayMount, target: &Path, home: &Path) -> Result<(), MountError> {
    let page = page(mount, home);
    if page.len() > OPTION_PAGE {
        let layers = mount.lowers.len() + mount.data_lowers.len();
        return Err(MountError::OptionsTooLong {
            layers,
            bytes: page.len(),
            limit: OPTION_PAGE,
        });
    }
    let invalid = || Error::new("mount on", target, Errno::INVAL);
    let data = CString::new(page).map_err(|_| invalid())?;
    let mut flags = MountFlags::empty();
    for (wanted, flag) in [
        (mount.read_only || mount.upper.is_none(), MountFlags::RDONLY),
        (mount.options.nosuid, MountFlags::NOSUID),
        (mount.options.nodev, MountFlags::NODEV),
        (mount.options.noexec, MountFlags::NOEXEC),
    ] {
        if wanted {
            flags |= flag;
        }
    }
    let target_bytes = OsString::from_vec(target.as_os_str().as_bytes().to_vec());
    let in_home = || -> Result<(), (&'static str, Errno)> {
        // SAFETY: CLONE_FS unshares the working directory, root and umask of this thread alone, which is ours and ends right
        // after; no descriptor table is unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
            .map_err(|e| ("unshare", e))?;
        rustix::process::chdir(home).map_err(|e| ("chdir to the home", e))?;
        rustix::mount::mount("overlay", &target_bytes, "overlay", flags, data.as_c_str())
            .map_err(|e| ("mount(2)", e))
    };
    let done = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("mount-from-home".into())
            .spawn_scoped(scope, in_home)
            .map(|t| t.join())
    });
    let refused = |step: &str, source: io::Error| MountError::Refused {
        step: step.to_string(),
        target: target.to_path_buf(),
        log: Vec::new(),
        source,
    };
    match done {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err((step, e)))) => Err(refused(step, e.into())),
        Ok(Err(_)) => Err(refused(
            "mount(2)",
            io::Error::other("the mounting thread panicked"),
        )),
        Err(e) => Err(refused("starting a thread", e)),
    }
}

//! What this kernel and a directory can do, found out by trying.
//!
//! Version numbers lie (features are backported, switched off, forbidden by a sandbox), so
//! everything that can be tried is tried: overlays are built but never attached, files are created
//! in a temporary directory that is removed again. Nothing stays behind, and the result is plain
//! values; the caller decides what they mean.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::quota::ProjectQuota;
use crate::rooted::{Dir, RenameFlags};
use crate::stat::FileKind;
use crate::xattr::SetMode;
use crate::{Error, Result};

/// What the running kernel can do, for this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelFacts {
    /// As `uname -r` prints it, for messages only.
    pub release: String,
    /// True if the overlay file system is available and supports the new mount API.
    pub has_overlay: bool,
    /// Layers one by one as paths (`lowerdir+`).
    pub has_lowerdir_plus: bool,
    /// Layers one by one as descriptors.
    pub has_layer_fds: bool,
    /// Default of `index` in the overlay module.
    pub default_index: bool,
    /// Default of `redirect_dir` in the overlay module.
    pub default_redirect_dir: bool,
    /// Default of `metacopy` in the overlay module.
    pub default_metacopy: bool,
    /// Whether redirects are followed even if `redirect_dir` is off.
    pub redirect_always_follow: bool,
    /// True if this process is in a user namespace other than the first one.
    pub in_user_namespace: bool,
    /// True if this process has CAP_SYS_ADMIN in its user namespace.
    pub may_mount: bool,
}

/// What can be done in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirFacts {
    /// The file system's common name, by its magic number: `extfs`, `xfs`, `btrfs`, `overlayfs`,
    /// ...
    pub fs_name: String,
    /// The file system's magic number.
    pub fs_magic: u64,
    /// Listings include each entry's type.
    pub d_type: bool,
    /// `user.*` attributes can be set.
    pub user_xattrs: bool,
    /// `trusted.*` attributes can be set by this process.
    pub trusted_xattrs: bool,
    /// The character device 0:0, overlayfs's whiteout, can be created by this process.
    pub whiteouts: bool,
    /// Files can share blocks (`FICLONE`).
    pub reflink: bool,
    /// Files without a name can be created (`O_TMPFILE`).
    pub unnamed_files: bool,
    /// Whether project quotas are enabled.
    pub project_quota: ProjectQuota,
    /// What the kernel's overlayfs can do with layers here.
    pub overlay: OverlayFacts,
}

/// What the kernel's overlayfs can do with layers in a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayFacts {
    /// An overlay with upper and work directory here can be mounted with `trusted.overlay.*` marks.
    pub trusted: bool,
    /// The same with `user.overlay.*` marks.
    pub userxattr: bool,
    /// The kernel's error if neither works; empty otherwise.
    pub refusal: String,
    /// Renaming a lower directory left a redirect.
    pub redirect_dir: bool,
    /// Changing a mode left a metacopy.
    pub metacopy: bool,
    /// `index=on` took effect.
    pub index: bool,
    /// `xino=on` is accepted.
    pub xino: bool,
    /// This directory is itself on an overlay; most kernels accept that only as a lower layer.
    pub is_nested: bool,
}

impl OverlayFacts {
    /// True if the kernel mounts an overlay here with either kind of marks.
    pub fn works(&self) -> bool {
        self.trusted || self.userxattr
    }
}

/// Returns whether this process has CAP_SYS_ADMIN in its user namespace.
pub fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::SYS_ADMIN)
    })
}

/// Returns whether the FUSE device can be opened.
pub fn has_fuse() -> bool {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok()
}

/// Finds out what the kernel can do. Takes well under a millisecond; can't fail: what is
/// unavailable is false.
pub fn kernel() -> KernelFacts {
    let parameter = |name: &str| {
        std::fs::read(format!("/sys/module/overlay/parameters/{name}"))
            .is_ok_and(|v| v.starts_with(b"Y"))
    };
    let mut facts = KernelFacts {
        release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        in_user_namespace: !crate::userns::is_initial(),
        may_mount: may_mount(),
        ..KernelFacts::default()
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(context) = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        && let Ok(root) = rustix::fs::open("/", flags, Mode::empty())
    {
        facts.has_overlay = true;
        // Before Linux 6.5 overlayfs does not parse options here: anything is accepted, and refused
        // only at the mount. Since then a layer without a path is refused at once, and the reason
        // goes only to the caller, not to the kernel's log.
        facts.has_lowerdir_plus = rustix::mount::fsconfig_set_string(&context, "lowerdir+", "/")
            .is_ok()
            && rustix::mount::fsconfig_set_flag(&context, "lowerdir+").is_err();
        facts.has_layer_fds = rustix::mount::fsconfig_set_fd(&context, "lowerdir+", &root).is_ok();
    }
    // The line above may have loaded the module.
    facts.default_index = parameter("index");
    facts.default_redirect_dir = parameter("redirect_dir");
    facts.default_metacopy = parameter("metacopy");
    facts.redirect_always_follow = parameter("redirect_always_follow");
    facts
}

/// Finds out what can be done in the directory `path`, in a temporary directory created in it.
///
/// Takes some milliseconds. Errors: `path` can't be opened, or nothing can be created in it.
pub fn directory(path: &Path) -> Result<DirFacts> {
    let dir = Dir::open(path)?;
    let name = format!(".probe-{}", crate::random::hex(16));
    dir.mkdir(&name, 0o700)?;
    let facts = dir.open_dir(&name).and_then(|probe| try_out(&probe));
    let removed = dir.remove_tree(&name);
    let facts = facts?;
    removed?;
    Ok(facts)
}

/// Returns whether overlayfs's whiteout, the character device 0:0, can be created in `dir`, by
/// creating and removing one.
///
/// Takes two calls, where [`directory`] tries everything.
pub fn takes_whiteouts(dir: &Dir) -> Result<bool> {
    const NAME: &str = "vellum-probe";
    match dir.mknod(NAME, FileKind::Char, 0o600, (0, 0)) {
        Ok(()) => {}
        // Another process is trying, or was killed in between.
        Err(error) if error.is_exists() => {}
        Err(error) if error.is_denied() || error.is_unsupported() => return Ok(false),
        Err(error) => return Err(error),
    }
    match dir.unlink(NAME) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(true),
    }
}

/// Reports what can be seen of the directory `path` without creating anything in it: for a disk
/// that is full or read-only.
///
/// Anything that needs a trial counts as unavailable, and the overlay's refusal contains `why`.
pub fn directory_untried(path: &Path, why: &Error) -> Result<DirFacts> {
    let dir = Dir::open(path)?;
    let statfs =
        rustix::fs::fstatfs(&dir).map_err(|e| dir.fail("get the file system of", "", e))?;
    let fs_magic = statfs.f_type as u64 & 0xffff_ffff;
    Ok(DirFacts {
        fs_name: fs_name(fs_magic),
        fs_magic,
        d_type: first_kind(&dir)? != FileType::Unknown,
        user_xattrs: false,
        trusted_xattrs: false,
        whiteouts: false,
        reflink: false,
        unnamed_files: false,
        project_quota: crate::quota::state(&dir).unwrap_or(ProjectQuota::Off),
        overlay: OverlayFacts {
            refusal: format!("overlays can't be tried here: {}", why.source),
            is_nested: fs_magic == OVERLAYFS_MAGIC,
            ..OverlayFacts::default()
        },
    })
}

/// Returns the listing's type for the first entry that is not the directory itself or its parent.
fn first_kind(dir: &Dir) -> Result<FileType> {
    let entries = rustix::fs::Dir::read_from(dir).map_err(|e| dir.fail("list", "", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| dir.fail("list", "", e))?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            return Ok(entry.file_type());
        }
    }
    Ok(FileType::Unknown)
}

fn try_out(probe: &Dir) -> Result<DirFacts> {
    let statfs =
        rustix::fs::fstatfs(probe).map_err(|e| probe.fail("get the file system of", "", e))?;
    // The field's sign and width differ between architectures; the number is 32 bits.
    let fs_magic = statfs.f_type as u64 & 0xffff_ffff;
    let attr =
        |name: &str| crate::xattr::set_fd(probe, OsStr::new(name), b"1", SetMode::Any).is_ok();
    let user_xattrs = attr("user.vellum.probe");
    let trusted_xattrs = attr("trusted.vellum.probe");
    Ok(DirFacts {
        fs_name: fs_name(fs_magic),
        fs_magic,
        user_xattrs,
        trusted_xattrs,
        d_type: lists_kinds(probe)?,
        whiteouts: probe.mknod("null", FileKind::Char, 0, (0, 0)).is_ok(),
        reflink: can_clone(probe)?,
        unnamed_files: probe.create_unnamed(0o600).is_ok(),
        project_quota: crate::quota::state(probe)?,
        overlay: try_overlays(probe, trusted_xattrs, user_xattrs, fs_magic)?,
    })
}

fn lists_kinds(probe: &Dir) -> Result<bool> {
    probe.create_file("kind", 0o600)?;
    let entries = rustix::fs::Dir::read_from(probe).map_err(|e| probe.fail("list", "", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| probe.fail("list", "", e))?;
        if entry.file_name().to_bytes() == b"kind" {
            return Ok(entry.file_type() == FileType::RegularFile);
        }
    }
    Ok(false)
}

fn can_clone(probe: &Dir) -> Result<bool> {
    let mut from = probe.create_file("from", 0o600)?;
    let to = probe.create_file("to", 0o600)?;
    from.write_all(&[1; 4096])
        .map_err(|e| Error::at("write", probe.as_fd(), "from", e))?;
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

fn try_overlays(
    probe: &Dir,
    trusted_xattrs: bool,
    user_xattrs: bool,
    fs_magic: u64,
) -> Result<OverlayFacts> {
    let mut facts = OverlayFacts {
        is_nested: fs_magic == OVERLAYFS_MAGIC,
        ..OverlayFacts::default()
    };
    if !trusted_xattrs && !user_xattrs {
        facts.refusal = "extended attributes can't be set here".into();
    }
    // Without the attributes the kernel still mounts, and then has nowhere to put its marks.
    if trusted_xattrs {
        // All at once first: unmounting an overlay costs milliseconds, and most file systems can do
        // everything.
        let all = Trial::new(probe, "all")?;
        match all.mount(&["redirect_dir=on", "metacopy=on", "xino=on", "index=on"]) {
            Ok(merged) => {
                (facts.trusted, facts.xino) = (true, true);
                facts.index = all.keeps_index();
                all.change(merged, &mut facts)?;
            }
            Err(_) => try_one_by_one(probe, &mut facts)?,
        }
    }
    if user_xattrs {
        match Trial::new(probe, "user")?.mount(&["userxattr"]) {
            Ok(_) => facts.userxattr = true,
            Err(said) if facts.refusal.is_empty() => facts.refusal = said,
            Err(_) => {}
        }
    }
    if facts.works() {
        facts.refusal.clear();
    }
    Ok(facts)
}

fn try_one_by_one(probe: &Dir, facts: &mut OverlayFacts) -> Result<()> {
    match Trial::new(probe, "plain")?.mount(&[]) {
        Ok(_) => facts.trusted = true,
        Err(said) => {
            facts.refusal = said;
            return Ok(());
        }
    }
    let trial = Trial::new(probe, "marks")?;
    if let Ok(merged) = trial.mount(&["redirect_dir=on", "metacopy=on"]) {
        trial.change(merged, facts)?;
    }
    facts.xino = Trial::new(probe, "xino")?.mount(&["xino=on"]).is_ok();
    let trial = Trial::new(probe, "index")?;
    facts.index = trial.mount(&["index=on"]).is_ok() && trial.keeps_index();
    Ok(())
}

/// The directories of an overlay that is never attached.
struct Trial {
    top: Dir,
}

impl Trial {
    fn new(probe: &Dir, name: &str) -> Result<Trial> {
        let top = probe.create_dir_all(name, 0o700)?;
        top.create_dir_all("lower/dir", 0o755)?;
        top.open_dir("lower")?
            .create_file("file", 0o600)?
            .write_all(b"x")
            .map_err(|e| Error::at("write", top.as_fd(), "lower/file", e))?;
        for dir in ["base", "upper", "work"] {
            top.mkdir(dir, 0o700)?;
        }
        Ok(Trial { top })
    }

    /// Builds the overlay with options (`name=value` or a flag); returns the kernel's message if it
    /// refuses.
    fn mount(&self, options: &[&str]) -> std::result::Result<OwnedFd, String> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|e| e.to_string())?;
        let build = || -> rustix::io::Result<OwnedFd> {
            // Unmounting an overlay syncs the whole file system below, unless it is volatile.
            for option in ["volatile"].iter().chain(options) {
                match option.split_once('=') {
                    Some((name, value)) => {
                        rustix::mount::fsconfig_set_string(&context, name, value)?
                    }
                    None => rustix::mount::fsconfig_set_flag(&context, *option)?,
                }
            }
            // Two lowers in one old-style option and the shortest possible paths: every kernel
            // accepts that.
            let at = |name: &str| format!("/proc/self/fd/{}/{name}", self.top.as_fd().as_raw_fd());
            let lowers = format!("{}:{}", at("lower"), at("base"));
            rustix::mount::fsconfig_set_string(&context, "lowerdir", lowers)?;
            rustix::mount::fsconfig_set_string(&context, "upperdir", at("upper"))?;
            rustix::mount::fsconfig_set_string(&context, "workdir", at("work"))?;
            rustix::mount::fsconfig_create(&context)?;
            rustix::mount::fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )
        };
        build().map_err(|e| {
            let mut buf = [0; 1024];
            let said = rustix::io::read(&context, &mut buf)
                .map(|len| String::from_utf8_lossy(&buf[..len]).into_owned());
            match said {
                Ok(said) => format!("{e}: {}", said.trim_end().trim_start_matches("e ")),
                Err(_) => e.to_string(),
            }
        })
    }

    /// Where an index is impossible the mount succeeds without it; its directory shows whether it
    /// exists.
    fn keeps_index(&self) -> bool {
        self.top.open_dir("work/index").is_ok()
    }

    /// Renames a lower directory and changes a lower file's mode through the overlay, and checks
    /// the marks left.
    fn change(&self, merged: OwnedFd, facts: &mut OverlayFacts) -> Result<()> {
        let root = rustix::fs::openat(
            &merged,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| self.top.fail("open the trial overlay in", "", e))?;
        let root = Dir::from_fd(root)?;
        let upper = self.top.open_dir("upper")?;
        let marked = |name: &str, mark: &str| {
            crate::xattr::get(&upper, OsStr::new(name), OsStr::new(mark))
                .is_ok_and(|value| value.is_some())
        };
        if root
            .rename("dir", &root, "moved", RenameFlags::empty())
            .is_ok()
        {
            facts.redirect_dir = marked("moved", "trusted.overlay.redirect");
        }
        if root.set_mode("file", 0o640).is_ok() {
            facts.metacopy = marked("file", "trusted.overlay.metacopy");
        }
        Ok(())
    }
}

/// Returns the common name of the file system that holds `path`, by its magic number.
pub fn fs_name_of(path: &Path) -> Result<String> {
    let statfs =
        rustix::fs::statfs(path).map_err(|e| Error::new("get the file system of", path, e))?;
    Ok(fs_name(statfs.f_type as u64 & 0xffff_ffff))
}

/// True if several machines may have a file system of that type, named as by [`fs_name_of`],
/// mounted at once.
///
/// On those, locks hold among the processes of one machine at best, memory is not shared, and the
/// kernel's overlay accepts no upper directory, because nothing can be renamed and leave a whiteout
/// (RENAME_WHITEOUT) in one step.
pub fn is_network(fs_name: &str) -> bool {
    ["nfs", "smb", "cifs", "smb2", "ceph", "v9fs", "afs"].contains(&fs_name)
}

fn fs_name(magic: u64) -> String {
    const NAMES: [(u64, &str); 30] = [
        (0xef53, "extfs"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0xca45_1a4e, "bcachefs"),
        (0xf2f5_2010, "f2fs"),
        (0x2fc1_2fc1, "zfs"),
        (0x0102_1994, "tmpfs"),
        (0x8584_58f6, "ramfs"),
        (OVERLAYFS_MAGIC, "overlayfs"),
        (0x6175_6673, "aufs"),
        (0x6573_5546, "fuse"),
        (0x6969, "nfs"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb2"),
        (0x517b, "smb"),
        (0x00c3_6400, "ceph"),
        (0x0102_1997, "v9fs"),
        (0x6b41_4653, "afs"),
        (0x0116_1970, "gfs2"),
        (0x7461_636f, "ocfs2"),
        (0x4750_4653, "gpfs"),
        (0x0bd0_0bd0, "lustre"),
        (0xf15f, "ecryptfs"),
        (0x7371_7368, "squashfs"),
        (0xe0f5_e1e2, "erofs"),
        (0x3153_464a, "jfs"),
        (0x3434, "nilfs"),
        (0x4d44, "vfat"),
        (0x2011_bab0, "exfat"),
        (0x9660, "iso9660"),
    ];
    match NAMES.iter().find(|(known, _)| *known == magic) {
        Some((_, name)) => (*name).to_string(),
        None => format!("unknown ({magic:#x})"),
    }
}

#[cfg(test)]
mod tests;

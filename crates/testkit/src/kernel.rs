//! Overlay mounts by the kernel itself, to compare ours with, and which kernel version has what.
//!
//! They use the mount API directly instead of Vellum's mount code, so that a mistake there can't
//! hide one elsewhere.

use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::Scratch;

/// The parts of an overlay mount.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    /// Read-only layers, the top one first.
    pub lowers: Vec<PathBuf>,
    /// Data-only layers, below all others.
    pub data_lowers: Vec<PathBuf>,
    /// The upper and the work directory.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Other options; an empty value means a flag (`userxattr`).
    pub options: Vec<(String, String)>,
}

impl Overlay {
    /// Adds an option.
    pub fn option(mut self, key: &str, value: &str) -> Overlay {
        self.options.push((key.into(), value.into()));
        self
    }

    /// Mounts on the existing directory `target`, which `scratch` unmounts at the end.
    ///
    /// The kernel cuts layer paths at 256 bytes. Errors name the step and include the kernel's
    /// message.
    pub fn mount(&self, scratch: &Scratch, target: &Path) -> Result<(), String> {
        if !Since::LayersOneByOne.is_here() {
            return self.mount_at_once(scratch, target);
        }
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| format!("fsopen: {errno}"))?;
        let set = |key: &str, value: &Path| {
            fsconfig_set_string(&fs, key, value)
                .map_err(|errno| format!("{key}={}: {errno}", value.display()))
        };
        for (key, value) in &self.options {
            match value.as_str() {
                "" => fsconfig_set_flag(&fs, key.as_str())
                    .map_err(|errno| format!("{key}: {errno}"))?,
                value => set(key, Path::new(value))?,
            }
        }
        for lower in &self.lowers {
            set("lowerdir+", lower)?;
        }
        for lower in &self.data_lowers {
            set("datadir+", lower)?;
        }
        if let Some((upper, work)) = &self.upper {
            set("upperdir", upper)?;
            set("workdir", work)?;
        }
        fsconfig_create(&fs)
            .map_err(|errno| format!("creating the overlay: {errno}{}", said(&fs)))?;
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .map_err(|errno| format!("fsmount: {errno}"))?;
        move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|errno| format!("move_mount: {errno}"))?;
        scratch.adopt_mount(target);
        Ok(())
    }
}

impl Overlay {
    /// As before Linux 6.8: one string with all options, at most a page.
    fn mount_at_once(&self, scratch: &Scratch, target: &Path) -> Result<(), String> {
        let join = |layers: &[PathBuf]| {
            let paths: Vec<_> = layers.iter().map(|path| escaped(path)).collect();
            paths.join(":")
        };
        let data = self
            .data_lowers
            .iter()
            .map(|path| format!("::{}", escaped(path)));
        let mut options = format!(
            "lowerdir={}{}",
            join(&self.lowers),
            data.collect::<String>()
        );
        if let Some((upper, work)) = &self.upper {
            options += &format!(",upperdir={},workdir={}", escaped(upper), escaped(work));
        }
        for (key, value) in &self.options {
            options += &match value.as_str() {
                "" => format!(",{key}"),
                value => format!(",{key}={value}"),
            };
        }
        let options = std::ffi::CString::new(options).map_err(|e| e.to_string())?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", target, "overlay", flags, Some(&*options))
            .map_err(|errno| format!("creating the overlay: {errno}"))?;
        scratch.adopt_mount(target);
        Ok(())
    }
}

fn escaped(path: &Path) -> String {
    let text = path.display().to_string();
    text.replace('\\', "\\\\")
        .replace(':', "\\:")
        .replace(',', "\\,")
}

/// Features that came with a kernel version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Data-only layers, `lowerdir=a::b`.
    DataOnlyLayers,
    /// A metacopy has a version and a length; any other content is EIO. Before, any content is a
    /// metacopy.
    CheckedMetacopies,
    /// Whiteouts that are files with an attribute.
    WhiteoutsInXattrs,
    /// `overlay.*` attributes set through a mount are kept under other names.
    EscapedMarks,
    /// `lowerdir+`.
    LayersOneByOne,
    /// The UUID of any file system; before, ext4, XFS and btrfs report theirs, and tmpfs does not.
    EveryUuid,
    /// FUSE files that the kernel reads and writes by itself.
    FusePassthrough,
    /// `O_TMPFILE` on an overlay.
    TmpfilesOnOverlays,
}

impl Since {
    /// Whether the running kernel has it.
    pub fn is_here(self) -> bool {
        let since = match self {
            Since::DataOnlyLayers => (6, 5),
            Since::CheckedMetacopies => (6, 6),
            Since::WhiteoutsInXattrs | Since::EscapedMarks => (6, 7),
            Since::LayersOneByOne => (6, 8),
            Since::EveryUuid | Since::FusePassthrough => (6, 9),
            Since::TmpfilesOnOverlays => (6, 10),
        };
        release() >= since
    }

    /// The same; a claim that can't be tried without it is recorded as untested.
    pub fn is_here_for(self, claim: &str) -> bool {
        let here = self.is_here();
        if !here {
            let (major, minor) = release();
            crate::untested(claim, format!("Linux {major}.{minor} has no {self:?}"));
        }
        here
    }
}

fn release() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next())
}

/// The messages the kernel keeps for a file system context that failed.
fn said(fs: &impl std::os::fd::AsFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = rustix::io::read(fs, &mut buffer) {
        text.push_str("; ");
        text.push_str(String::from_utf8_lossy(&buffer[..count]).trim());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_merges() {
        if !crate::needs_root("kernel overlay") {
            return;
        }
        let scratch = Scratch::new();
        let lower = scratch.file("lower/f", "x").parent().unwrap().to_owned();
        let overlay = Overlay {
            lowers: vec![lower],
            upper: Some((scratch.dir("upper"), scratch.dir("work"))),
            ..Overlay::default()
        };
        let merged = scratch.dir("merged");
        overlay
            .option("redirect_dir", "on")
            .mount(&scratch, &merged)
            .unwrap();
        assert_eq!(std::fs::read(merged.join("f")).unwrap(), b"x");
        std::fs::remove_file(merged.join("f")).unwrap();
        assert!(
            scratch.join("upper/f").symlink_metadata().is_ok(),
            "a whiteout"
        );
    }
}

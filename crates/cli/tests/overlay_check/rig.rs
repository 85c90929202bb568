//! The directories of one overlay, the programs that mount it, and the check.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::XattrFlags;
use vellum_overlay::Error;
use vellum_overlay::fsck::{Directories, Wrong, check};
use vellum_sys::Cancel;
use vellum_testkit::kernel::Overlay;
use vellum_testkit::{FsKind, Scratch, needs_root, untested};

pub struct Rig {
    pub scratch: Scratch,
    /// Where the directories are.
    pub base: PathBuf,
    pub lowers: Vec<PathBuf>,
    pub user_xattr: bool,
}

impl Rig {
    /// Empty directories on a file system of their own: `top` and `base`, `upper`, `work`.
    pub fn new() -> Option<Rig> {
        Rig::on(FsKind::Ext4)
    }

    pub fn on(kind: FsKind) -> Option<Rig> {
        if !needs_root("mounting overlays") {
            return None;
        }
        let scratch = Scratch::new();
        match scratch.file_system("fs", kind, 64) {
            Ok(base) => Some(Rig::below(scratch, base)),
            Err(why) => {
                untested("checks of overlays", why);
                None
            }
        }
    }

    pub fn below(scratch: Scratch, base: PathBuf) -> Rig {
        let rig = Rig {
            lowers: ["top", "base"].map(|name| base.join(name)).into(),
            scratch,
            base,
            user_xattr: false,
        };
        for name in ["top", "base", "upper", "work", "merged"] {
            fs::create_dir_all(rig.at(name)).unwrap();
        }
        rig
    }

    /// Returns the options that mount the overlay with two lower layers.
    pub fn options(&self) -> String {
        let at = |name: &str| self.at(name).display().to_string();
        format!(
            "lowerdir={}:{},upperdir={},workdir={}",
            at("top"),
            at("base"),
            at("upper"),
            at("work")
        )
    }

    /// Returns a path below the directory of all directories; `staging` is the directory `work` in
    /// the work directory.
    pub fn at(&self, below: impl AsRef<Path>) -> PathBuf {
        match below.as_ref().strip_prefix("staging") {
            Ok(rest) if rest.as_os_str().is_empty() => self.base.join("work").join("work"),
            Ok(rest) => self.base.join("work").join("work").join(rest),
            Err(_) => self.base.join(below),
        }
    }

    /// Mounts by the kernel at `merged`; waits while another namespace keeps the upper busy.
    pub fn mount(&self, options: &[(&str, &str)]) -> Result<PathBuf, String> {
        let target = self.at("merged");
        let overlay = Overlay {
            lowers: self.lowers.clone(),
            upper: Some((self.at("upper"), self.at("work"))),
            ..Overlay::default()
        };
        let overlay = options
            .iter()
            .fold(overlay, |all, (key, value)| all.option(key, value));
        for _ in 0..600 {
            match overlay.mount(&self.scratch, &target) {
                Err(error) if error.contains("os error 16") => {}
                mounted => return mounted.map(|()| target),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the upper stays busy");
    }

    pub fn unmount(&self) {
        self.scratch.unmount(&self.at("merged"));
    }

    pub fn directories(&self) -> Directories {
        Directories {
            lowers: self.lowers.clone(),
            data_lowers: Vec::new(),
            upper: Some(self.at("upper")),
            work: Some(self.at("work")),
            user_xattr: self.user_xattr,
        }
    }

    /// Checks an overlay that was just unmounted.
    pub fn check(&self) -> Vec<Wrong> {
        checked(&self.directories())
    }

    #[track_caller]
    pub fn assert_clean(&self, context: &str) {
        let errors = errors(self.check());
        assert!(errors.is_empty(), "{context}: {errors:#?}");
    }
}

/// A mount namespace that another process has just created may hold a copy of a mount for a while.
#[track_caller]
pub fn checked(directories: &Directories) -> Vec<Wrong> {
    for _ in 0..1200 {
        let mut found = Vec::new();
        let done = check(directories, &Cancel::new(), &mut |wrong| {
            found.push(wrong);
            ControlFlow::Continue(())
        });
        match done {
            Err(Error::Unsupported { what, .. }) if what.contains("is mounted: ") => {}
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
            Ok(_) => return found,
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the directories stay in use");
}

pub fn errors(found: Vec<Wrong>) -> Vec<Wrong> {
    let is_error = |wrong: &Wrong| wrong.severity == "error";
    found.into_iter().filter(is_error).collect()
}

pub fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{name} of {}: {error}", path.display()));
}

pub fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

pub fn unset(path: &Path, name: &str) {
    rustix::fs::lremovexattr(path, name)
        .unwrap_or_else(|error| panic!("{name} of {}: {error}", path.display()));
}

pub fn whiteout(path: &Path, mode: u32) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let mode = Mode::from_raw_mode(mode);
    mknodat(CWD, path, FileType::CharacterDevice, mode, 0).unwrap();
    fs::set_permissions(
        path,
        std::os::unix::fs::PermissionsExt::from_mode(mode.bits()),
    )
    .unwrap();
}

/// The entries of the index, sorted.
pub fn index(rig: &Rig) -> Vec<OsString> {
    let entries = fs::read_dir(rig.at("work/index")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.filter(|name| !is_temporary(name)).collect();
    names.sort();
    names
}

fn is_temporary(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with('#')
}

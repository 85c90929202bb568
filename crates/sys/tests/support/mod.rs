//! A test program that becomes a plain user.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user that has no entry anywhere.
const NOBODY_IN_PARTICULAR: u32 = 65_432;

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// This very program, for a user with a home: run as root, as another user; run as a plain user, as
/// the caller.
pub struct AsUser {
    /// Exists as long as the user does.
    _scratch: tempfile::TempDir,
    program: PathBuf,
    home: PathBuf,
}

impl AsUser {
    /// `furnish` creates the home's initial content before the user starts.
    pub fn new(furnish: impl FnOnce(&Path)) -> AsUser {
        let scratch = tempfile::tempdir_in("/tmp").unwrap();
        // The user may not have access to the build directory.
        let program = scratch.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let home = scratch.path().join("home");
        std::fs::create_dir(&home).unwrap();
        furnish(&home);
        if is_root() {
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(scratch.path(), open).unwrap();
            let id = Some(NOBODY_IN_PARTICULAR);
            chown(&home, id, id).unwrap();
        }
        AsUser {
            _scratch: scratch,
            program,
            home,
        }
    }

    /// Plays `part` in the user's home, and fails if that fails; on a machine that lacks something,
    /// as recognised by `lacks` from the text on standard error, the test counts as untested.
    pub fn play(&self, part: &str, lacks: &str) {
        let mut command = Command::new(&self.program);
        if is_root() {
            command.uid(NOBODY_IN_PARTICULAR).gid(NOBODY_IN_PARTICULAR);
        }
        command.arg(part).arg(&self.home).current_dir(&self.home);
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        if said.contains(lacks) {
            return vellum_testkit::untested("user namespaces for plain users", said.trim());
        }
        assert!(out.status.success(), "{said}");
    }
}

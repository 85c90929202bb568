//! A scratch directory for tests that mount: whatever happens, nothing stays mounted or on disk.

use std::path::{Path, PathBuf};

/// A temporary directory; dropping it unmounts everything beneath and removes it.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        let base = std::env::temp_dir().canonicalize().unwrap();
        let path = base.join(format!("vellum-sys-{}", crate::random::hex(12)));
        std::fs::create_dir(&path).unwrap();
        Scratch { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = crate::mount::unmount_all(&self.path) {
            eprintln!("left mounts beneath {}: {e}", self.path.display());
        }
        if let Err(e) = std::fs::remove_dir_all(&self.path) {
            eprintln!("left {}: {e}", self.path.display());
        }
    }
}

/// Returns a scratch directory if this process may mount; else reports that the test did not run.
pub(crate) fn can_mount() -> Option<Scratch> {
    let scratch = Scratch::new();
    let place = scratch.path().join("probe");
    std::fs::create_dir(&place).unwrap();
    match crate::mount::bind(&place, &place, crate::mount::BindOptions::default()) {
        Ok(()) => {
            crate::mount::unmount_all(&place).unwrap();
            std::fs::remove_dir(&place).unwrap();
            Some(scratch)
        }
        Err(e) => {
            vellum_testkit::untested("mounting", format!("{e}: {}", e.source));
            None
        }
    }
}

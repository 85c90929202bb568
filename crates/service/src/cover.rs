//! A mount over a part of the store, as errors name it.

use std::path::PathBuf;

use vellum_sys::mountinfo::Mount;

/// One mount over the store, or over a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// File system type.
    pub fs_type: String,
    /// What was mounted: a device, a share, a word.
    pub source: String,
}

impl Cover {
    pub(crate) fn of(mount: &Mount) -> Cover {
        Cover {
            mount_point: mount.mount_point.clone(),
            fs_type: mount.fs_type.to_string_lossy().into_owned(),
            source: mount.source.to_string_lossy().into_owned(),
        }
    }
}

impl std::fmt::Display for Cover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({}) on {}",
            self.fs_type,
            self.source,
            self.mount_point.display()
        )
    }
}

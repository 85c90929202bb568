//! The size limit of a writable tree: project quota, where the file system has it.

use std::path::Path;

use crate::error::{Result, StoreError};

/// Limits `tree` to `bytes`.
pub(crate) fn limit(home: &Path, tree: &Path, bytes: u64) -> Result<()> {
    let _ = tree;
    Err(StoreError::Unsupported {
        what: format!("size limit of {bytes} bytes"),
        why: format!(
            "the file system of {} has no project quota; it takes XFS mounted with pquota, or ext4 with the project \
             feature and prjquota",
            home.display()
        ),
    })
}

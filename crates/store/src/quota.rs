//! The size limit of a writable tree: a project quota, where the file system keeps them.
//!
//! A tree with a limit gets a project number of its own, which everything created in it inherits.
//! Numbers are chosen at random from a high range, and used only if the file system counts nothing
//! under them, since other programs (Docker, administrators) number projects from below.

use std::path::Path;

use vellum_sys::{
    Dir,
    quota::{self, ProjectQuota},
};

use crate::{
    error::{Result, StoreError},
    layout,
};

/// Project numbers start here.
const FIRST: u32 = 1 << 24;

/// Limits the size of `tree`, which is still empty, to `bytes`.
///
/// Errors: `Unsupported`, with what the file system of `home` lacks.
pub(crate) fn limit(home: &Path, tree: &Path, bytes: u64) -> Result<()> {
    let dir = layout::dir(tree)?;
    let lacking = match quota::state(&dir)? {
        ProjectQuota::Enforced => {
            let project = free_project(&dir)?;
            quota::set_project(&dir, project)?;
            return Ok(quota::set_limit(&dir, project, bytes, 0)?);
        }
        ProjectQuota::Counted => {
            "counts project quotas, but does not enforce them; mount it with `prjquota`"
        }
        ProjectQuota::Off => {
            "keeps no project quotas; use XFS or ext4 (`mkfs -O quota,project`) mounted with `prjquota`"
        }
        ProjectQuota::Denied => "does not let this user set project quotas",
    };
    Err(StoreError::Unsupported {
        what: format!("a size limit of {bytes} bytes"),
        why: format!("the file system of {} {lacking}", home.display()),
    })
}

/// Lifts the limit of a tree that is about to be removed, so that its number is free again.
pub(crate) fn lift(tree: &Path) {
    let lifted = layout::dir(tree).and_then(|dir| match quota::project(&dir)? {
        0 => Ok(()),
        project => Ok(quota::set_limit(&dir, project, 0, 0)?),
    });
    if let Err(error) = lifted {
        tracing::debug!(%error, "cannot lift the limit of an unused project number");
    }
}

fn free_project(dir: &Dir) -> Result<u32> {
    loop {
        let number = FIRST | (rand::random::<u32>() >> 1);
        let usage = quota::usage(dir, number)?;
        if usage.used_inodes == 0 && usage.limit_bytes == 0 && usage.limit_inodes == 0 {
            return Ok(number);
        }
    }
}

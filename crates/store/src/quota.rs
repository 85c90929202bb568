//! The size limit of a writable tree: project quota, where the file system keeps it.
//!
//! Every limited tree gets a project number of its own, drawn from its random name; what is made in it inherits the
//! number, and the file system itself refuses more than the limit. A number that somebody uses already is passed over.

use std::path::Path;

use vellum_sys::quota::{self, ProjectQuota};
use vellum_sys::{Dir, FileKind};

use crate::error::{Result, StoreError};

/// Numbers from here on are ours to draw from; administrators number their own projects from 1.
const FIRST: u32 = 0x4000_0000;

/// Draws until one is free; with 2^30 numbers the second draw is already rare.
const DRAWS: usize = 16;

/// Limits `tree`, a staged tree of fresh directories, to `bytes`. `home` is named in the error.
///
/// Errors: `Unsupported` if the file system doesn't enforce project quotas, with what it would take.
pub(crate) fn limit(home: &Path, tree: &Path, bytes: u64) -> Result<()> {
    let dir = Dir::open(tree)?;
    let missing = match quota::state(&dir)? {
        ProjectQuota::Enforced => None,
        ProjectQuota::Counted => Some("counts project quotas but does not enforce them"),
        ProjectQuota::Off => Some("has no project quota"),
        ProjectQuota::Denied => Some("lets only root set quotas"),
    };
    if let Some(missing) = missing {
        return Err(StoreError::Unsupported {
            what: format!("size limit of {bytes} bytes"),
            why: format!(
                "the file system of {} {missing}; it takes XFS mounted with pquota, or ext4 with the project \
                 feature and prjquota, and a kernel with quota support",
                home.display()
            ),
        });
    }
    let project = free_project(&dir)?;
    // Before the number is given out, so that nothing is ever written without the limit.
    quota::set_limit(&dir, project, bytes, 0)?;
    for entry in dir.entries()? {
        let entry = entry?;
        if entry.kind == FileKind::Dir {
            quota::set_project(dir.open_dir(&entry.name)?, project)?;
        }
    }
    quota::set_project(&dir, project)?;
    Ok(())
}

fn free_project(dir: &Dir) -> Result<u32> {
    for _ in 0..DRAWS {
        let project = FIRST | (rand::random::<u32>() >> 2);
        let usage = quota::usage(dir, project)?;
        if usage.used_bytes == 0 && usage.used_inodes == 0 {
            return Ok(project);
        }
    }
    Err(StoreError::Unsupported {
        what: "a further size limit".into(),
        why: format!("{DRAWS} project numbers in a row were in use"),
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use vellum_sys::mount::{Detach, unmount};
    use vellum_testkit::Scratch;

    use super::*;

    struct Unmount<'a>(&'a Path);

    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            unmount(self.0, Detach::Yes).unwrap();
        }
    }

    #[test]
    fn a_file_system_without_project_quota_says_what_it_takes() {
        let scratch = Scratch::new();
        let tree = scratch.dir("tree");
        let e = limit(scratch.path(), &tree, 1 << 20).unwrap_err();
        assert!(matches!(e, StoreError::Unsupported { .. }), "{e}");
        assert!(e.to_string().contains("pquota"), "{e}");
    }

    #[test]
    fn a_limited_tree_takes_no_more_than_its_limit() {
        let scratch = Scratch::new();
        if !vellum_testkit::needs_root("project quota") {
            return;
        }
        let (image, place) = (scratch.file("xfs.img", ""), scratch.dir("xfs"));
        std::fs::File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .set_len(300 << 20)
            .unwrap();
        for command in [&["mkfs.xfs", "-q"][..], &["mount", "-o", "loop,prjquota"]] {
            let mut made = Command::new(command[0]);
            made.args(&command[1..]).arg(&image);
            if command[0] == "mount" {
                made.arg(&place);
            }
            match made.output() {
                Ok(out) if out.status.success() => {}
                other => {
                    return vellum_testkit::untested(
                        "project quota",
                        format!("{made:?}: {other:?}"),
                    );
                }
            }
        }
        let _unmount = Unmount(&place);
        let tree = place.join("tree");
        std::fs::create_dir_all(tree.join("diff")).unwrap();
        limit(&place, &tree, 4 << 20).unwrap();
        std::fs::write(tree.join("diff/fits"), vec![1; 1 << 20]).unwrap();
        assert!(std::fs::write(tree.join("diff/large"), vec![1; 8 << 20]).is_err());
        std::fs::write(place.join("free"), vec![1; 8 << 20]).unwrap();
    }
}

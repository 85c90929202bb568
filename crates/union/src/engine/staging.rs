//! The staging directory, `work/work`: where inodes are prepared before they get their name, and
//! where they go before they are deleted.
//!
//! Names in it are random, so no other program can prepare them, and the next opening sweeps what a
//! crash leaves. Inodes here are not visible in the union and may be incomplete.
//!
//! Whiteouts are hard links of one device 0:0 kept here, as the kernel does it: millions of them
//! cost one inode.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use vellum_format::WHITEOUT_RDEV;
use vellum_sys::{Dir, FileKind, RenameFlags, Result, sync};

/// The staging directory of one upper.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: Arc<Dir>,
    /// The name here of the whiteout that is linked, once there is one.
    whiteout: Mutex<Option<OsString>>,
}

impl Staging {
    /// Uses a directory that is empty or that the caller will sweep.
    pub fn new(dir: Arc<Dir>) -> Staging {
        Staging {
            dir,
            whiteout: Mutex::new(None),
        }
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// Returns an unused name that can't be guessed. It begins with `#`, like the kernel's.
    pub fn name(&self) -> OsString {
        OsString::from(format!("#{}", vellum_sys::random::hex(24)))
    }

    /// Creates a whiteout `name` in `dir`, which may be the staging directory. Errors: EEXIST.
    pub fn make_whiteout(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        for _ in 0..2 {
            let shared = self.shared()?;
            match dir.link(&self.dir, &shared, name) {
                // Out of links, or removed by another program: start another one.
                Err(error) if error.is(Errno::MLINK) || error.is_not_found() => {
                    self.forget(&shared);
                }
                Err(error) if error.is(Errno::PERM) || error.is_unsupported() => break,
                other => return other,
            }
        }
        // A file system without hard links.
        whiteout_device(dir, name)
    }

    fn shared(&self) -> Result<OsString> {
        let mut slot = self.slot();
        if let Some(name) = &*slot {
            return Ok(name.clone());
        }
        let name = self.name();
        whiteout_device(&self.dir, &name)?;
        Ok(slot.insert(name).clone())
    }

    fn forget(&self, name: &OsStr) {
        let mut slot = self.slot();
        if slot.as_deref() == Some(name) {
            *slot = None;
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<OsString>> {
        // The value is replaced as a whole, so it is consistent even if another thread panicked.
        sync::lock(&self.whiteout)
    }

    /// Replaces `name` in `dir` with a whiteout, in one step. A replaced directory is in the
    /// staging directory afterwards, under the name returned; anything else is gone.
    pub fn whiteout_over(&self, dir: &Dir, name: &OsStr, is_dir: bool) -> Result<Option<OsString>> {
        let temp = self.name();
        self.make_whiteout(&self.dir, &temp)?;
        let flags = match is_dir {
            true => RenameFlags::EXCHANGE,
            false => RenameFlags::empty(),
        };
        if let Err(error) = self.dir.rename(&temp, dir, name, flags) {
            self.discard(&temp);
            return Err(error);
        }
        Ok(is_dir.then_some(temp))
    }

    /// Removes `name` here, which is not a directory; a failure leaves litter for the next sweep.
    pub fn discard(&self, name: &OsStr) {
        // Litter in the staging directory is not visible, and the next opening sweeps it.
        let _ = self.dir.unlink(name);
    }

    /// Removes the directory `name` here with its content; a failure leaves litter for the next
    /// sweep.
    pub fn discard_dir(&self, name: &OsStr) {
        if self.dir.rmdir(name).is_err() {
            // As above.
            let _ = self.dir.remove_tree(name);
        }
    }
}

fn whiteout_device(dir: &Dir, name: &OsStr) -> Result<()> {
    dir.mknod(name, FileKind::Char, 0, WHITEOUT_RDEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_share_an_inode_and_replace_in_one_step() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("work")).unwrap();
        std::fs::create_dir_all(tmp.path().join("upper/d")).unwrap();
        std::fs::write(tmp.path().join("upper/f"), "x").unwrap();
        let staging = Staging::new(Arc::new(Dir::open(&tmp.path().join("work")).unwrap()));
        let upper = Dir::open(&tmp.path().join("upper")).unwrap();
        if staging.make_whiteout(&upper, OsStr::new("w")).is_err() {
            vellum_testkit::untested("whiteout devices", "mknod 0:0 is refused here");
            return;
        }
        assert_eq!(
            staging
                .whiteout_over(&upper, OsStr::new("f"), false)
                .unwrap(),
            None
        );
        let old = staging
            .whiteout_over(&upper, OsStr::new("d"), true)
            .unwrap()
            .unwrap();
        let stats: Vec<_> = ["w", "f", "d"].map(|name| upper.stat(name).unwrap()).into();
        assert!(
            stats
                .iter()
                .all(|stat| stat.is_null_device() && stat.nlink == 4)
        );
        assert!(stats.iter().all(|stat| stat.ino == stats[0].ino));
        assert!(staging.dir().stat(&old).unwrap().is_dir());
        staging.discard_dir(&old);
        assert_eq!(staging.dir().entries().unwrap().count(), 1);
        // Removed behind our back: another one is created.
        let name = staging.shared().unwrap();
        staging.discard(&name);
        staging.make_whiteout(&upper, OsStr::new("w2")).unwrap();
    }
}

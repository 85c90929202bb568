//! Counted mounts: the first `get` mounts, the last `put` unmounts.
//!
//! Whether a layer is mounted is read from the kernel's mount table, never remembered. The count is
//! in the run directory, written before the caller gets its answer, so that a restarted server
//! continues to count. A count without a mount is void; a mount without a count was gotten once.
//! Mounts don't belong to a process: they stay when the server ends, and so do the containers in
//! them.

use std::fs;
use std::path::PathBuf;

use vellum_store::Info;
use vellum_sys::mountinfo;
use vellum_sys::plain::{self, Links};

use super::{Graph, check_id, check_label, id_of, kept_by_engine, lock_name};
use crate::error::{Error, ObjectKind, Result};
use crate::mount::MountRequest;
use crate::mount::shown::{Seen, State, Users, users};
use crate::run_dir;

/// The directory of the counts in the run directory.
const COUNTS: &str = "docker-counts";

impl Graph {
    /// Mounts the tree of `id`, or counts one more use, and returns its path.
    ///
    /// A tree that is a single directory is returned as it is, uncounted. Errors: `NotFound`, and
    /// any failure of mounting.
    pub fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
        check_id(id)?;
        check_label(id, mount_label)?;
        let _lock = self.lock(id)?;
        let found = self.get_info(id)?;
        let parts = self.parts(&found)?;
        let mut shown = match Seen::look(&parts)? {
            Seen::Directory(root) => return Ok(root.to_path_buf()),
            Seen::AtPlace(shown) => shown,
        };
        let count = match shown.state() {
            // Callers with a mount that has died in the meantime still put it back.
            State::Live | State::Dead => self.count(id).unwrap_or(1),
            State::Nothing => 0,
        };
        // Before the mount: without a mount it is void.
        self.set_count(id, count + 1)?;
        if shown.state() == State::Dead {
            shown.bury(&self.ctx, id)?;
        }
        if shown.state() == State::Nothing {
            // The process that served the last mount.
            shown.wait_for_engine();
            let request = MountRequest {
                read_only: false,
                limit: kept_by_engine(&found),
            };
            shown.show(&self.ctx, &found.key, id, request)?;
        }
        Ok(shown.place().to_path_buf())
    }

    /// Takes back one `get`. The last one hides the mount; processes that are still in it may stay.
    ///
    /// A mount of Vellum's engine that a process still uses stays where it is, with a count of
    /// zero: the engine keeps the upper until the last process leaves, and the next `get` could not
    /// have it. The next last `put` tries again, as do all calls that need it gone.
    pub fn put(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let _lock = self.lock(id)?;
        let Some(found) = self.find(id)? else {
            return Ok(());
        };
        match self.count(id).unwrap_or(1) {
            0 | 1 if self.is_needed(&found)? => self.set_count(id, 0),
            0 | 1 => self.detach(id, &found),
            more => self.set_count(id, more - 1),
        }
    }

    /// Tells whether the engine's mount of a layer can't be removed because a process uses it. If
    /// it can, it is removed.
    fn is_needed(&self, found: &Info) -> Result<bool> {
        let parts = self.parts(found)?;
        Ok(match Seen::look(&parts)?.at_place() {
            Some(mut shown) if shown.state() == State::Live && shown.is_by_engine() => {
                !shown.hide(Users::Respected)?
            }
            _ => false,
        })
    }

    /// Removes all mounts of all layers: the daemon ends.
    pub fn cleanup(&self) -> Result<()> {
        let table = mountinfo::read()?;
        let store = self.store()?;
        let mut failed = None;
        store.walk(&[], |info| {
            let merged = store
                .driver_home(info.driver)
                .join(info.tree.as_str())
                .join("merged");
            let mounted = table.mounts().iter().any(|m| m.mount_point == merged);
            if let (true, Some(id)) = (mounted, id_of(&info.key)) {
                let _lock = self.lock(&id)?;
                if let Err(error) = self.detach(&id, &info) {
                    failed.get_or_insert(error);
                }
            }
            Ok::<_, Error>(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Removes the mount of a layer even if it is used. The caller holds the lock.
    pub(super) fn detach(&self, id: &str, found: &Info) -> Result<()> {
        let parts = self.parts(found)?;
        let Some(mut shown) = Seen::look(&parts)?.at_place() else {
            return Ok(());
        };
        let unused = shown.hide(Users::Ignored)?;
        self.forget_count(id);
        if unused {
            shown.wait_for_engine();
        }
        Ok(())
    }

    /// Removes the mount of a layer unless a process uses it. The caller holds the lock.
    ///
    /// Errors: `InUse`.
    pub(super) fn release(&self, id: &str, found: &Info) -> Result<()> {
        let parts = self.parts(found)?;
        let Some(mut shown) = Seen::look(&parts)?.at_place() else {
            return Ok(());
        };
        if shown.state() == State::Dead {
            shown.bury(&self.ctx, id)?;
        }
        if !shown.hide(Users::Respected)? {
            return Err(Error::InUse {
                kind: ObjectKind::Layer,
                name: id.to_owned(),
                by: users(shown.place())
                    .unwrap_or_else(|| "a process that can't be identified".to_owned()),
                hint: "a parent layer must not change any more: stop these processes first".into(),
            });
        }
        self.forget_count(id);
        shown.wait_for_engine();
        Ok(())
    }

    /// Returns how often a layer was gotten; `None` if that is unknown.
    fn count(&self, id: &str) -> Option<u64> {
        let text = plain::read(&self.count_file(id), 64, Links::InParents).ok()?;
        std::str::from_utf8(&text).ok()?.trim().parse().ok()
    }

    fn set_count(&self, id: &str, count: u64) -> Result<()> {
        run_dir::make(&self.ctx, COUNTS)?;
        let path = self.count_file(id);
        Ok(plain::overwrite(
            &path,
            count.to_string().as_bytes(),
            0o600,
            Links::InParents,
        )?)
    }

    fn forget_count(&self, id: &str) {
        // Already void, since nothing is mounted.
        let _ = fs::remove_file(self.count_file(id));
    }

    /// Removes every count: mounted layers count as gotten once.
    pub(super) fn forget_counts(&self) {
        let dir = self.ctx.run_dir().join(COUNTS);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, dir = %dir.display(), "old counts stay; some layers may stay mounted until they are removed");
        }
    }

    fn count_file(&self, id: &str) -> PathBuf {
        self.ctx.run_dir().join(COUNTS).join(lock_name(id))
    }
}

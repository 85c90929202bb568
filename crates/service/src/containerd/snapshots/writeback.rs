//! Writes a layer's files to disk while it is being unpacked into a snapshot.
//!
//! The client commits a layer inside a transaction of its own, after writing its files without a
//! sync: the commit's sync would wait for all of them while everything else waits for the client.
//! So from Prepare on, writeback starts for new files as they appear. This promises nothing, and no
//! call waits for it; durability comes from the commit's own sync.
//!
//! There is one thread per extraction, at most [`THREADS`]. It scans the directories repeatedly,
//! each time after a pause in proportion to the cost of the scan, and ends when the snapshot is no
//! longer writable or nothing new appears.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vellum_store::{SnapshotKey, SnapshotKind, Store, TreeParts};
use vellum_sys::{Dir, FileKind, publish, sync};

/// Extractions that are followed at once; others are left to the sync.
const THREADS: usize = 8;

/// The shortest pause between two scans.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// Time without new files after which none are expected.
const QUIET: Duration = Duration::from_secs(120);

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// The snapshots that are followed.
static FOLLOWED: Mutex<BTreeSet<SnapshotKey>> = Mutex::new(BTreeSet::new());

fn followed() -> MutexGuard<'static, BTreeSet<SnapshotKey>> {
    sync::lock(&FOLLOWED)
}

/// Removes itself from the set when the thread ends, in whatever way.
struct Running(SnapshotKey);

impl Drop for Running {
    fn drop(&mut self) {
        leave(&self.0);
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Stops following a snapshot whose unpacker writes files to disk itself.
pub(super) fn leave(key: &SnapshotKey) {
    followed().remove(key);
}

/// Follows the unpacking of a layer until it is committed or removed. Returns at once.
pub(super) fn follow(store: &Store, key: &SnapshotKey, parts: &TreeParts) {
    // A whole copy of the parent is on disk already, and scanning it costs more than it saves.
    let is_copy = !parts.driver.makes_overlays();
    let Some(top) = parts.layers().into_iter().next().filter(|_| !is_copy) else {
        return;
    };
    if RUNNING.fetch_add(1, Ordering::Relaxed) >= THREADS {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    followed().insert(key.clone());
    let running = Running(key.clone());
    let (store, key) = (store.clone(), key.clone());
    let started = std::thread::Builder::new()
        .name("writeback".into())
        .spawn(move || {
            let _running = running;
            run(&store, &key, &top.dir);
        });
    if let Err(error) = started {
        tracing::debug!(%error, "left to the commit's sync");
    }
}

fn run(store: &Store, key: &SnapshotKey, root: &Path) {
    // Files changed since then are new. One second earlier, because the kernel's clock for files is
    // coarse.
    let mut since = now() - 1;
    let mut last_new = Instant::now();
    loop {
        if !followed().contains(key) {
            return;
        }
        let begun = Instant::now();
        let next = now() - 1;
        match look(root, since) {
            Ok(0) => {}
            Ok(_) => last_new = begun,
            // Removed or committed in the meantime, or out of descriptors: left to the sync.
            Err(error) => {
                tracing::debug!(%error, "no longer followed");
                return;
            }
        }
        since = next;
        let pause = (begun.elapsed() * 8).clamp(PAUSE, LONG_PAUSE);
        std::thread::sleep(pause);
        let is_open = store
            .stat(key)
            .is_ok_and(|info| info.kind == SnapshotKind::Active);
        if !is_open || last_new.elapsed() > QUIET {
            return;
        }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Starts writeback for every file beneath `root` that changed since then; returns how many.
fn look(root: &Path, since: i64) -> Result<usize, vellum_sys::Error> {
    let mut found = 0;
    let root = Dir::open(root)?;
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let dir = match path.as_os_str().is_empty() {
            true => root.dup()?,
            false => match root.open_dir(&path) {
                Ok(dir) => dir,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            },
        };
        for entry in dir.entries()? {
            let name = entry?.name;
            let Some(stat) = dir.stat_opt(&name)? else {
                continue;
            };
            match stat.kind {
                FileKind::Dir => todo.push(path.join(&name)),
                FileKind::File if stat.ctime.sec >= since && stat.size_bytes > 0 => {
                    // Replaced in the meantime: left to the next scan.
                    if let Ok(file) = dir.open_file(&name)
                        && file.metadata().is_ok_and(|found| found.ino() == stat.ino)
                    {
                        publish::start_writeback(&file, 0, 0);
                        found += 1;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

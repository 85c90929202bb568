//! Sends small files to disk while the rest of the layer is still being read, so that committing
//! the layer waits for little more than the last of them.
//!
//! A file costs a system call and, on most file systems, the choice of its blocks. A separate
//! thread does that, and when it can't keep up, files are left to the commit's sync. Nothing here
//! promises anything; only that sync does.

use std::fs::File;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};

use vellum_sys::publish;

/// Files that may wait, each with its descriptor: few, since several layers are unpacked at once.
const WAITING_MAX: usize = 48;

/// How much content is written before a thread is started: a small layer is not worth one.
const THREAD_FROM_BYTES: u64 = 1 << 20;

/// The small files of one layer on their way to disk.
#[derive(Default)]
pub(super) struct Writeback {
    bytes: u64,
    worker: Option<(SyncSender<File>, JoinHandle<()>)>,
}

impl Writeback {
    /// Takes a file of `bytes` bytes that is complete.
    pub fn take(&mut self, file: File, bytes: u64) {
        self.bytes += bytes;
        if bytes == 0 || self.bytes < THREAD_FROM_BYTES {
            return;
        }
        if self.worker.is_none() {
            self.worker = start();
        }
        if let Some((files, _)) = &self.worker {
            match files.try_send(file) {
                // Full: the commit's sync takes it. Gone: nothing can be done here.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

fn start() -> Option<(SyncSender<File>, JoinHandle<()>)> {
    let (sender, files) = sync_channel::<File>(WAITING_MAX);
    let worker = Builder::new().name("writeback".into()).spawn(move || {
        for file in files {
            publish::start_writeback(&file, 0, 0);
        }
    });
    // Without a thread the layer is unpacked all the same.
    worker.ok().map(|worker| (sender, worker))
}

/// Waits for the few files left: a descriptor that outlives the unpacking would keep its file
/// system busy.
impl Drop for Writeback {
    fn drop(&mut self) {
        if let Some((files, worker)) = self.worker.take() {
            drop(files);
            // It has no result, and a panic in it has been reported already.
            let _ = worker.join();
        }
    }
}

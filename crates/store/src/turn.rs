//! Turns at the record files: whoever changes the database and a record file has one, so that nobody else meets the one without the other.
//!
//! A record file is written right before its row is changed or right after; between the two they differ, and a check that came then would
//! report what is only under way, or heal it away. There is a turn for each tree's record and one for those of all images and containers.
//! Changes of one record also come to the file in the order in which they came to the database.
//!
//! A turn is an flock and ends with its value, or its process. Order: a turn before the database's write transaction, and never two turns at
//! once, except of trees that nobody else has heard of yet.

use std::{fs::File, io};

use vellum_sys::lock::{Lock, Sharing};

use crate::{
    driver::TreeId,
    error::{IoContext, Result},
    layout::{self, Layout},
    tx,
};

/// A turn; it ends when dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn {
    lock: Lock,
}

impl Turn {
    /// Waits for the turn at one tree's record file.
    ///
    /// The file itself is locked; one that replaces it is locked before it has the name, and for as long as its writer keeps it open. Without
    /// a file, it is the turn at all of them.
    pub fn at_tree(layout: &Layout, tree: &TreeId) -> Result<Self> {
        let path = layout.record(tree);
        loop {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let all = Self::at_sidecars(layout)?;
                    if layout::exists(&path)? {
                        continue;
                    }
                    return Ok(all);
                }
                Err(e) => return Err(e).on("open", path),
            };
            let again = file.try_clone().on("open", &path)?;
            let lock = Lock::wait(file, Sharing::Exclusive)?;
            // It may have been replaced meanwhile.
            if tx::same_file(&again, &path)? {
                return Ok(Self { lock });
            }
        }
    }

    /// Waits for the turn at the record files of images and containers.
    pub fn at_sidecars(layout: &Layout) -> Result<Self> {
        let path = layout.records();
        let dir = File::open(&path).on("open", &path)?;
        let lock = Lock::wait(dir, Sharing::Exclusive)?;
        Ok(Self { lock })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Not only closed: a process that another thread is just starting has a copy until it runs its own program. It can't fail on an open file.
        let _ = self.lock.release();
    }
}

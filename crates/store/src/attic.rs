//! `lost+found`: where a repair puts what doesn't belong in a layer's tree.
//!
//! Nothing in it has a record, and nothing of the store removes or follows it: an operator looks at
//! it and deletes it. A name there says everything (layer, when, number, path), so that one rename
//! moves a thing and a crash leaves no half of it. Older programs don't know the directory and
//! leave it alone too. If the store's root is the root of an ext4 file system, the directory is the
//! one that fsck uses; their names differ.

use std::{
    ffi::{OsStr, OsString},
    os::fd::OwnedFd,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use jiff::Timestamp;
use rustix::io::Errno;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::{Dir, rooted::RenameFlags};

use crate::{
    error::Result,
    hands,
    layout::{self, make_dir},
    located::LOST_FOUND,
    store::Store,
};

/// The place, held for one repair.
#[derive(Debug)]
pub struct Attic {
    dir: Dir,
    /// One repair at a time: two would move the same things.
    _lock: Lock,
}

impl Store {
    /// Opens `lost+found`, creating it if necessary; `None` if another repair holds it.
    ///
    /// Errors: `Diverted` if something else has its name or is mounted on it, and then nothing was
    /// changed; `RolledBack`.
    pub fn attic(&self) -> Result<Option<Attic>> {
        self.inner.database.refuse_if_rolled_back()?;
        hands::own(self.layout())?;
        let path = self.layout().root().join(LOST_FOUND);
        make_dir(&path, 0o700)?;
        let dir = layout::dir(&path)?;
        let root = layout::dir(self.layout().root())?;
        // What is moved here must not be lost with the directory.
        root.sync()?;
        hands::on_the_store(&path, &root.stat_self()?, &dir.stat_self()?)?;
        let lock = Lock::try_now(OwnedFd::from(dir.dup()?), Sharing::Exclusive)?;
        Ok(lock.map(|lock| Attic { dir, _lock: lock }))
    }
}

impl Attic {
    /// Moves `name` in `dir`, which is `path` in the tree of `layer`, here. Returns its new place,
    /// relative to the store's root. Not synced.
    ///
    /// A symbolic link itself is moved, and nothing here is replaced.
    pub fn take(
        &self,
        layer: &str,
        dir: &Dir,
        name: &OsStr,
        path: &Path,
    ) -> vellum_sys::Result<OsString> {
        let when = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut number = 0u32;
        loop {
            let to = spelled(layer, &when, number, path);
            let mut moved = dir.rename(name, &self.dir, &to, RenameFlags::NOREPLACE);
            // A file system without that flag: nothing else makes names here.
            if moved.as_ref().is_err_and(|error| error.is(Errno::INVAL))
                && self.dir.stat_opt(&to)?.is_none()
            {
                moved = dir.rename(name, &self.dir, &to, RenameFlags::empty());
            }
            match moved {
                Ok(()) => {
                    let mut place = OsString::from(format!("{LOST_FOUND}/"));
                    place.push(to);
                    return Ok(place);
                }
                Err(error) if error.is_exists() => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes what was moved here durable.
    pub fn sync(&self) -> Result<()> {
        Ok(self.dir.sync()?)
    }
}

/// Returns the name for something from `path`: slashes and percent signs in the path are written as
/// in a URL, and of a long one only the end is there.
fn spelled(layer: &str, when: &str, number: u32, path: &Path) -> OsString {
    const LONGEST: usize = 255;
    let mut name = format!("{layer}.{when}.{number}.").into_bytes();
    let mut spelled = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'%' | 0..=0x1f | 0x7f => spelled.extend(format!("%{byte:02X}").into_bytes()),
            byte => spelled.push(byte),
        }
    }
    let room = LONGEST.saturating_sub(name.len());
    name.extend_from_slice(&spelled[spelled.len().saturating_sub(room)..]);
    OsString::from_vec(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_something_was_and_is_never_a_path() {
        let check = |path: &str, expect: &str| {
            let name = spelled("4e1c", "20261201T000000Z", 3, Path::new(path));
            assert_eq!(name, OsStr::new(expect));
        };
        check("etc/extra", "4e1c.20261201T000000Z.3.etc%2Fextra");
        check("a%b\nc", "4e1c.20261201T000000Z.3.a%25b%0Ac");
        let long = spelled("4e1c", "20261201T000000Z", 0, Path::new(&"x/".repeat(400)));
        assert_eq!(long.len(), 255);
    }
}

//! The target of an export: staged next to it, published by one exchange, and removed again.
//!
//! One process at a time exports from a store. At every moment the target is either old or new, and
//! a note in the target or next to it names every lease.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;
use serde::{Deserialize, Serialize};
use vellum_store::{LeaseId, Life, Store};
use vellum_sys::lock::Lock;
use vellum_sys::rooted::Dir;
use vellum_sys::{FileKind, publish};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::run_dir;

/// The note in an exported directory that names its store. JSON; fields are only added.
const NOTE: &str = "vellum.json";
const NOTE_VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    version: u32,
    /// The exported store.
    store: String,
    /// The lease that keeps its layers.
    lease: String,
}

/// The directory to write, locked against other exports of the store.
pub(super) struct Target {
    dir: PathBuf,
    above: Dir,
    name: OsString,
    staged: OsString,
    _lock: Lock,
}

/// The export being written, with its lease.
pub(super) struct Staged {
    pub root: Dir,
    pub lease: LeaseId,
}

impl Target {
    /// Waits for other exports. Errors: `Invalid` if `dir` has no name, `Io`.
    pub fn open(context: &Context, dir: &Path) -> Result<Target> {
        let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else {
            return Err(Error::Invalid {
                what: format!("nothing can be exported to {}", dir.display()),
                hint: None,
            });
        };
        let above = match above.as_os_str().is_empty() {
            true => Path::new("."),
            false => above,
        };
        let mut staged = OsString::from(".vellum-staged.");
        staged.push(name);
        Ok(Target {
            dir: dir.into(),
            above: Dir::open(above)?,
            name: name.into(),
            staged,
            _lock: run_dir::lock_exports(context)?,
        })
    }

    /// Fails with `Invalid` if something else is there, or another store's export. Returns the note
    /// of the export to be replaced.
    pub fn check(&self, store: &Store) -> Result<()> {
        self.to_replace(store).map(drop)
    }

    fn to_replace(&self, store: &Store) -> Result<Option<Note>> {
        match self.read_note(&self.name)? {
            Some(note) => self.ours(note, store).map(Some),
            None if self.is_used()? => Err(Error::Invalid {
                what: format!(
                    "{} exists, but is not an export of Vellum",
                    self.dir.display()
                ),
                hint: Some("name a directory that does not exist yet".into()),
            }),
            None => Ok(None),
        }
    }

    /// Creates the staged directory, notes its lease, and begins the lease.
    pub fn stage(&self, store: &Store) -> Result<Staged> {
        self.check(store)?;
        self.clear(store)?;
        let lease = LeaseId::unused();
        self.above.mkdir(&self.staged, 0o700)?;
        let root = self.above.open_dir(&self.staged)?;
        let note = Note {
            version: NOTE_VERSION,
            store: store.uuid()?,
            lease: lease.as_str().to_owned(),
        };
        let content = serde_json::to_vec(&note).map_err(|e| Error::io("write", NOTE)(e.into()))?;
        let mut file = root.create_file(NOTE, 0o600)?;
        file.write_all(&content)
            .and_then(|()| file.sync_all())
            .map_err(Error::io("write", NOTE))?;
        root.sync()?;
        publish::sync_dir(&self.above)?;
        let purpose = format!("exported to {}", self.dir.display());
        store.begin_lease_as(&lease, &purpose, Life::Forever)?;
        Ok(Staged { root, lease })
    }

    /// Puts the staged export in its place. Durable on return. The previous export is removed, with
    /// its lease.
    pub fn publish(&self, store: &Store, staged: Staged) -> Result<()> {
        publish::sync_fs(&staged.root)?;
        let flags = match self.above.stat_opt(&self.name)? {
            Some(_) => RenameFlags::EXCHANGE,
            None => RenameFlags::NOREPLACE,
        };
        self.above
            .rename(&self.staged, &self.above, &self.name, flags)?;
        publish::sync_dir(&self.above)?;
        self.clear(store)
    }

    /// Removes the export, and any staged one.
    pub fn remove(&self, store: &Store) -> Result<()> {
        let found = self.read_note(&self.name)?;
        let staged = self.above.stat_opt(&self.staged)?.is_some();
        self.clear(store)?;
        match found {
            Some(note) => {
                self.ours(note, store)?;
                // Hidden at once; then the layers may go.
                self.above.rename(
                    &self.name,
                    &self.above,
                    &self.staged,
                    RenameFlags::NOREPLACE,
                )?;
                publish::sync_dir(&self.above)?;
                self.clear(store)
            }
            None if staged => Ok(()),
            None => Err(Error::Invalid {
                what: format!("{} is not an export of Vellum", self.dir.display()),
                hint: Some("if it is a store of Podman's, `podman system reset` removes it".into()),
            }),
        }
    }

    /// Ends the lease of a staged export and removes it, if there is one.
    pub fn clear(&self, store: &Store) -> Result<()> {
        if self.above.stat_opt(&self.staged)?.is_none() {
            return Ok(());
        }
        // A note is complete before its lease begins: one that can't be read has no lease.
        if let Ok(Some(note)) = self.read_note(&self.staged) {
            let note = self.ours(note, store)?;
            store.end_lease(&LeaseId::new(note.lease))?;
        }
        self.above.remove_tree(&self.staged)?;
        Ok(())
    }

    /// Tells whether something that is not ours is there.
    fn is_used(&self) -> Result<bool> {
        match self.above.stat_opt(&self.name)? {
            None => Ok(false),
            Some(found) if found.kind != FileKind::Dir => Ok(true),
            Some(_) => Ok(self.above.open_dir(&self.name)?.entries()?.next().is_some()),
        }
    }

    fn read_note(&self, name: &OsString) -> Result<Option<Note>> {
        if self
            .above
            .stat_opt(name)?
            .is_none_or(|found| found.kind != FileKind::Dir)
        {
            return Ok(None);
        }
        let dir = self.above.open_dir(name)?;
        if dir.stat_opt(NOTE)?.is_none() {
            return Ok(None);
        }
        let mut content = Vec::new();
        dir.open_file(NOTE)?
            .take(1 << 16)
            .read_to_end(&mut content)
            .map_err(Error::io("read", NOTE))?;
        match serde_json::from_slice::<Note>(&content) {
            Ok(note) if note.version == NOTE_VERSION => Ok(Some(note)),
            _ => Err(Error::Damaged {
                what: format!("the note {NOTE} in it"),
                why: "it is not a note, or has a newer version".into(),
            }),
        }
    }

    fn ours(&self, note: Note, store: &Store) -> Result<Note> {
        if note.store == store.uuid()? {
            return Ok(note);
        }
        Err(Error::Invalid {
            what: format!("{} is an export of another store", self.dir.display()),
            hint: Some("name another directory, or the other store with --root".into()),
        })
    }
}

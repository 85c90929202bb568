//! Where a layer is applied, by which rules, and with what result.

use std::fmt;
use std::path::PathBuf;

use vellum_format::Prefix;
use vellum_sys::{Dir, Timespec};

use crate::stream::BlobFacts;
use crate::tar::Ending;

/// The tree a layer is applied to, and the rules.
#[derive(Debug)]
pub struct ApplyTarget {
    /// The tree's root directory, open for reading. Nothing else may change the tree meanwhile.
    pub root: Dir,
    /// What a deletion becomes.
    pub marks: TargetMarks,
    /// What to do if the process may not create what the archive says.
    pub privilege: Privilege,
    /// A tree that may hold the same files under the same names: if the file system can, new files
    /// share its blocks. It is not trusted: every byte is compared with the archive's, which is
    /// what the file has in the end.
    pub donor: Option<Dir>,
}

/// What a deletion in a layer becomes in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetMarks {
    /// The tree starts empty and holds this layer alone: deletions become whiteouts (character
    /// device 0:0) and opaque directories carry the mark of this prefix.
    Overlay(Prefix),
    /// The tree starts as the parent's full tree: deletions delete. Files are replaced, never
    /// written into, so a hard link that another layer shares keeps its content. The tree is used
    /// as it is, so no attribute name has a special meaning in it.
    Plain,
    /// Like [`TargetMarks::Plain`], but overlays whose marks have this prefix will be mounted on
    /// the tree: attribute names that would be marks are escaped.
    Whole(Prefix),
}

impl TargetMarks {
    /// Returns whether the tree is complete in itself: deletions delete.
    pub fn is_whole(self) -> bool {
        match self {
            TargetMarks::Overlay(_) => false,
            TargetMarks::Plain | TargetMarks::Whole(_) => true,
        }
    }
}

/// What happens to devices, owners and attributes that the process may not create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Everything is really created. A refusal is an error, or the thing is left out if it belongs
    /// to another system.
    Full,
    /// What is refused is kept as a record on a stand-in: a device node as an empty regular file,
    /// an unmapped owner, a refused attribute, in the formats of `vellum_format`
    /// (`user.containers.override_stat`, `user.vellum.xattr.<name>`).
    Recorded,
}

/// An applied layer. None of it is synced yet.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Digests and sizes of the blob and the tar. The caller compares `blob.diff_id` with the
    /// image's configuration.
    pub blob: BlobFacts,
    /// Entries of the tar.
    pub entries: u64,
    /// Directories that hold entries but that the layer itself doesn't list, shallowest first,
    /// relative to the root.
    ///
    /// They were created as 0755 root:root with the time of the entry that needed them. With
    /// [`TargetMarks::Overlay`] they get the attributes of the parent's directory of that name once
    /// the parent is known. In a whole tree this has only directories that the parent did not have.
    pub implied_dirs: Vec<PathBuf>,
    /// Whether the tar has an entry for the root directory itself. If not, the root of a
    /// [`TargetMarks::Overlay`] tree is an implied directory too, though it isn't in
    /// `implied_dirs`.
    pub root_listed: bool,
    /// Directories in which whiteouts were created, relative to the root (the empty path), parents
    /// first. Always empty with [`TargetMarks::Plain`].
    ///
    /// The kernel hides whiteouts only where it merges: in a directory that the layers below don't
    /// have, `readdir` shows names that can't be looked up. Once the parent is known,
    /// [`drop_whiteouts`](super::drop_whiteouts) removes them from such a directory.
    pub whiteout_dirs: Vec<PathBuf>,
    /// How many entries were left out on purpose: sockets, and AUFS's own bookkeeping
    /// (`.wh..wh.aufs`, `.wh..wh.plnk`, ...).
    pub skipped: u64,
    /// How many devices, owners and attributes were kept as records ([`Privilege::Recorded`]).
    pub recorded: u64,
    /// What the tree lacks because this system can't hold it. The recipe has it.
    pub left_out: LeftOut,
    /// How the archive ended. If no digest was promised, only this shows that something may be
    /// missing.
    pub ending: Ending,
    /// Whether the layer hides everything below it. A [`TargetMarks::Overlay`] tree can't express
    /// that, since an overlay shows the roots of all its layers: once the parent is known,
    /// [`hide_all`](super::hide_all) does it.
    pub root_opaque: bool,
    /// The newest modification time among the entries, if there is any.
    pub newest: Option<Timespec>,
}

/// What a tree lacks of its archive: attributes, devices and entry types that this system, or this
/// place, doesn't have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many there are.
    pub count: u64,
    /// The first one, with its path and the reason.
    pub first: Option<String>,
}

impl LeftOut {
    /// Adds one.
    pub(super) fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(what);
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.first.as_deref().unwrap_or("nothing"))?;
        match self.count {
            0 | 1 => Ok(()),
            count => write!(f, ", and {} more", count - 1),
        }
    }
}

//! Where a layer goes, by which rules, and what is known afterwards.

use std::fmt;
use std::path::PathBuf;

use vellum_format::Prefix;
use vellum_sys::{Dir, Timespec};

use crate::stream::BlobFacts;
use crate::tar::Ending;

/// The tree a layer is applied to, and the rules.
#[derive(Debug)]
pub struct ApplyTarget {
    /// The tree's root directory, open for reading. Nobody else may change the tree meanwhile.
    pub root: Dir,
    /// What a deletion leaves behind.
    pub marks: TargetMarks,
    /// What to do where the process may not make what the archive says.
    pub privilege: Privilege,
    /// A tree that may hold the same files under the same names: where the file system can, new
    /// files share its blocks. It is trusted with nothing: every byte is compared with the
    /// archive's, which is what the file has in the end.
    pub donor: Option<Dir>,
}

/// What a deletion in a layer becomes in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetMarks {
    /// The tree starts empty and holds this layer alone: deletions become whiteouts (character
    /// device 0:0) and opaque directories carry the mark of this prefix.
    Overlay(Prefix),
    /// The tree starts as the parent's full tree: deletions delete. Files are replaced, never
    /// written into, so a hard link that another layer shares keeps its content. It is used as it
    /// is, so no name of an attribute means anything in it.
    Plain,
    /// As [`TargetMarks::Plain`], but overlays whose marks have this prefix will be mounted on the
    /// tree: names of attributes that would be marks are escaped.
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

/// What happens to devices, owners and attributes that the process may not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Everything is made for real. A refusal is an error, or the thing is left out, if it is one
    /// of those that other systems have.
    Full,
    /// What is refused is kept as a record on a stand-in: a device node as an empty regular file,
    /// an unmapped owner, a refused attribute, in the spellings of `vellum_format`
    /// (`user.containers.override_stat`, `user.vellum.xattr.<name>`).
    Recorded,
}

/// A layer that was applied. Nothing of it is synced yet.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Digests and sizes of the blob and the tar. `blob.diff_id` is to be compared with the image's
    /// configuration.
    pub blob: BlobFacts,
    /// Entries of the tar.
    pub entries: u64,
    /// Directories that entries lie in but that the layer itself does not list, shallowest first,
    /// relative to the root.
    ///
    /// They were made as 0755 root:root with the time of the entry that needed them. With
    /// [`TargetMarks::Overlay`] the parent's directory of that name lends them its attributes once
    /// the parent is known. In a whole tree only directories that the parent did not have are
    /// named.
    pub implied_dirs: Vec<PathBuf>,
    /// Whether the tar has an entry for the root directory itself. If not, the root of a
    /// [`TargetMarks::Overlay`] tree is an implied directory too, though it isn't named in
    /// `implied_dirs`.
    pub root_listed: bool,
    /// Directories in which whiteouts were made, relative to the root (the empty path), parents
    /// first. Always empty with [`TargetMarks::Plain`].
    ///
    /// The kernel hides whiteouts only where it merges: in a directory that the layers below do not
    /// have, `readdir` shows names that can't be looked up. Once the parent is known,
    /// [`drop_whiteouts`](super::drop_whiteouts) takes them out of such a directory.
    pub whiteout_dirs: Vec<PathBuf>,
    /// How many entries were left out on purpose: sockets, and AUFS' own book-keeping
    /// (`.wh..wh.aufs`, `.wh..wh.plnk`, ...).
    pub skipped: u64,
    /// How many devices, owners and attributes were kept as records ([`Privilege::Recorded`]).
    pub recorded: u64,
    /// What the tree lacks because this system can't hold it. The recipe has it.
    pub left_out: LeftOut,
    /// How the archive ended. If no digest was promised, only this tells that something may be
    /// missing.
    pub ending: Ending,
    /// Whether the layer hides everything below it. In a [`TargetMarks::Overlay`] tree nothing says
    /// so, since an overlay shows the roots of all its layers: once the parent is known,
    /// [`hide_all`](super::hide_all) does.
    pub root_opaque: bool,
    /// The newest modification time among the entries, if there is any.
    pub newest: Option<Timespec>,
}

/// What a tree lacks of its archive: attributes, devices and kinds of entries that this system does
/// not have, or not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many there are.
    pub count: u64,
    /// The first one, with its place and the reason.
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

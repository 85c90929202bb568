//! Where a layer goes, by which rules, and what is known afterwards.

use std::path::PathBuf;

use vellum_format::Prefix;
use vellum_sys::{Dir, Timespec};

use crate::stream::BlobFacts;

/// The tree a layer is applied to, and the rules.
#[derive(Debug)]
pub struct ApplyTarget {
    /// The tree's root directory, open for reading. Nobody else may change the tree meanwhile.
    pub root: Dir,
    /// What a deletion leaves behind.
    pub marks: TargetMarks,
    /// What to do where the process may not make what the archive says.
    pub privilege: Privilege,
    /// A tree that may hold the same files under the same names: where the file system can, new files share its blocks. It is trusted
    /// with nothing: every byte is compared with the archive's, which is what the file has in the end.
    pub donor: Option<Dir>,
}

/// What a deletion in a layer becomes in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetMarks {
    /// The tree starts empty and holds this layer alone: deletions become whiteouts (character device 0:0) and opaque directories
    /// carry the mark of this prefix.
    Overlay(Prefix),
    /// The tree starts as the parent's full tree: deletions delete. Files are replaced, never written into, so a hard link that
    /// another layer shares keeps its content. It is used as it is, so no name of an attribute means anything in it.
    Plain,
    /// As [`TargetMarks::Plain`], but overlays whose marks have this prefix will be mounted on the tree: names of attributes that
    /// would be marks are escaped.
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
    /// Everything is made for real; a refusal is an error.
    Full,
    /// What is refused is kept as a record on a stand-in: a device node as an empty regular file, an unmapped owner, a refused
    /// attribute, in the spellings of `vellum_format` (`user.containers.override_stat`, `user.vellum.xattr.<name>`).
    Recorded,
}

/// A layer that was applied. Nothing of it is synced yet.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Digests and sizes of the blob and the tar. `blob.diff_id` is to be compared with the image's configuration.
    pub blob: BlobFacts,
    /// Entries of the tar.
    pub entries: u64,
    /// Directories that entries lie in but that the layer itself does not list, shallowest first, relative to the root.
    ///
    /// They were made as 0755 root:root with the time of the entry that needed them. With [`TargetMarks::Overlay`] the parent's directory
    /// of that name lends them its attributes once the parent is known. In a whole tree only directories that the parent
    /// did not have are named.
    pub implied_dirs: Vec<PathBuf>,
    /// Whether the tar has an entry for the root directory itself. If not, the root of a [`TargetMarks::Overlay`] tree is an implied
    /// directory too, though it isn't named in `implied_dirs`.
    pub root_listed: bool,
    /// Directories in which whiteouts were made, relative to the root (the empty path), parents first. Always empty with
    /// [`TargetMarks::Plain`].
    ///
    /// The kernel hides whiteouts only where it merges: in a directory that the layers below do not have, `readdir` shows names that
    /// can't be looked up. Once the parent is known, [`drop_whiteouts`](super::drop_whiteouts) takes them out of such a directory.
    pub whiteout_dirs: Vec<PathBuf>,
    /// How many entries were left out on purpose: sockets, and AUFS' own book-keeping (`.wh..wh.aufs`, `.wh..wh.plnk`, ...).
    pub skipped: u64,
    /// How many devices, owners and attributes were kept as records ([`Privilege::Recorded`]).
    pub recorded: u64,
    /// The newest modification time among the entries, if there is any.
    pub newest: Option<Timespec>,
}

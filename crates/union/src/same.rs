//! Whether two nodes are the same to a user: the rule by which a diff leaves out a node.

use vellum_sys::FileKind;

use crate::{Node, Result};

/// When the contents of two regular files with different inodes count as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Never: a process may have changed the copy and set the time back.
    ByIdentity,
    /// If size and modification time agree to the nanosecond: the best answer without reading both.
    ByTime,
}

/// Returns whether `a` and `b` look the same to a user: type, mode, owner, device, target, size,
/// modification time to the nanosecond, xattrs, content.
///
/// Docker's rule ignores nanoseconds, xattrs (except capabilities), and the times of directories.
pub(crate) fn same(a: &Node, b: &Node, content: Content) -> Result<bool> {
    let (one, other) = (a.stat(), b.stat());
    // One inode, read through layers that show it the same way. Access times and mounts may
    // differ.
    let shown = |node: &Node| {
        let stat = node.stat();
        let inode = (node.identity(), node.data_identity());
        (inode, stat.kind, stat.mode, stat.uid, stat.gid, stat.ctime)
    };
    if shown(a) == shown(b) {
        return Ok(true);
    }
    if (one.mtime, one.size_bytes) != (other.mtime, other.size_bytes) && one.kind != FileKind::Dir {
        return Ok(false);
    }
    if one.kind == FileKind::File
        && a.data_identity() != b.data_identity()
        && content == Content::ByIdentity
    {
        return Ok(false);
    }
    Ok(one.mtime == other.mtime && same_but_times(a, b)?)
}

/// Returns whether type, mode, owner, device, target and xattrs agree.
pub(crate) fn same_but_times(a: &Node, b: &Node) -> Result<bool> {
    let (one, other) = (a.stat(), b.stat());
    if (one.kind, one.mode, one.uid, one.gid, one.rdev)
        != (other.kind, other.mode, other.uid, other.gid, other.rdev)
    {
        return Ok(false);
    }
    if one.kind == FileKind::Symlink && a.read_link()? != b.read_link()? {
        return Ok(false);
    }
    Ok(a.xattrs()? == b.xattrs()?)
}

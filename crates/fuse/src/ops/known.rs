//! Requests that change something: on whose behalf, and which changes must be reported to the
//! kernel.
//!
//! The engine says which attributes of which nodes a call changed ([`Action::touched`]). [`known`]
//! says which of them the kernel learns anyway, from the reply or because it expects them. The rest
//! is notified before the reply. Every request reaches an [`Action`] through here, so a new
//! operation either has a line in the table, or everything it changes is notified.

use std::cell::OnceCell;
use std::ffi::OsStr;

use vellum_sys::credentials::Credentials;
use vellum_union::engine::{Action, Asker, Attrs, NodeId};

use super::{Answer, Ops};
use crate::negotiate::Agreed;
use crate::passthrough::node_of;
use crate::wire::{Header, Op, Request};

/// Attributes of nodes.
pub(super) type Known = [(NodeId, Attrs); 2];

const NOTHING: (NodeId, Attrs) = (NodeId(0), Attrs::NONE);
/// The xattrs that the kernel sets as ACLs, if ACL support was negotiated.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Returns what the kernel learns without a notification when a request succeeds, besides
/// [`Attrs::NAME`] of every node whose name changed.
///
/// This follows Linux 6.18 (`fs/fuse/dir.c`, `file.c`, `acl.c`); docs/overlay.md has the same
/// table.
pub(super) fn known(request: &Request<'_>, agreed: &Agreed) -> Known {
    let node = node_of(request.header.node);
    let acl = |name: &OsStr| agreed.acl && ACLS.iter().any(|acl| name == *acl);
    match request.op {
        // The reply has them all.
        Op::SetAttr(_) => [(node, Attrs::ALL), NOTHING],
        // The kernel drops what it cached of the directories; the reply describes the created or
        // linked node.
        Op::Symlink { .. }
        | Op::MkNod { .. }
        | Op::MkDir { .. }
        | Op::Create { .. }
        | Op::TmpFile { .. }
        | Op::Unlink { .. }
        | Op::RmDir { .. } => [(node, Attrs::ALL), NOTHING],
        Op::Rename { new_parent, .. } => [(node, Attrs::ALL), (node_of(new_parent), Attrs::ALL)],
        Op::Link { node: old, .. } => [(node, Attrs::ALL), (node_of(old), Attrs::ALL)],
        // Bytes in the write-back cache have times and a size of their own.
        Op::Write { .. } if agreed.writeback => {
            let own = Attrs::CONTENT.without(Attrs::BLOCKS);
            [(node, own), NOTHING]
        }
        // The kernel drops exactly the attributes that changing bytes affects.
        Op::Write { .. } | Op::FAllocate { .. } => [(node, Attrs::CONTENT), NOTHING],
        Op::CopyRange(copy) => [(node_of(copy.to), Attrs::CONTENT), NOTHING],
        // An ACL also changes the mode.
        Op::SetXattr { name, .. } | Op::RemoveXattr { name } => match acl(name) {
            true => [(node, Attrs::ALL), NOTHING],
            false => [(node, Attrs::CTIME), NOTHING],
        },
        // The kernel does not interpret these.
        Op::Ioctl(_) => [NOTHING; 2],
        // These change only access times, which the kernel drops whenever it asks for bytes, names
        // or a link's target.
        Op::Lookup { .. }
        | Op::Forget { .. }
        | Op::BatchForget(_)
        | Op::GetAttr
        | Op::ReadLink
        | Op::Open { .. }
        | Op::OpenDir { .. }
        | Op::Read(_)
        | Op::ReadDir(_)
        | Op::ReadDirPlus(_)
        | Op::StatFs
        | Op::Release { .. }
        | Op::ReleaseDir { .. }
        | Op::Flush
        | Op::FSync { .. }
        | Op::FSyncDir { .. }
        | Op::SyncFs
        | Op::GetXattr { .. }
        | Op::ListXattr { .. }
        | Op::Access
        | Op::LSeek { .. }
        | Op::Statx { .. }
        | Op::Init(_)
        | Op::Interrupt { .. }
        | Op::Destroy
        | Op::Other => [NOTHING; 2],
    }
}

/// A request that may change something.
pub(super) struct Call<'a> {
    ops: &'a Ops,
    pub(super) header: &'a Header,
    known: Known,
    credentials: OnceCell<Option<Credentials>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(ops: &'a Ops, request: &'a Request<'_>) -> Call<'a> {
        Call {
            ops,
            header: &request.header,
            known: known(request, &ops.agreed),
            credentials: OnceCell::new(),
        }
    }

    /// Changes something, and notifies the kernel of what it does not know.
    pub(super) fn act<T>(
        &self,
        act: impl FnOnce(&Action<'_>) -> vellum_union::Result<T>,
    ) -> Answer<T> {
        let action = self.ops.engine.action(self);
        let done = act(&action);
        for (node, attrs) in action.touched() {
            let unknown = match done {
                Ok(_) => attrs.without(self.knows(node)),
                // After a failure the kernel expects no changes, but a copy-up made for the request
                // stays.
                Err(_) => attrs,
            };
            if !unknown.is_empty() {
                self.ops.tell(node);
            }
        }
        Ok(done?)
    }

    fn knows(&self, node: NodeId) -> Attrs {
        let known = self.known.iter().filter(|(of, _)| *of == node);
        known.fold(Attrs::NAME, |all, (_, attrs)| all | *attrs)
    }

    /// The thread waits for its answer, so its thread id is still its own.
    fn credentials(&self) -> Option<&Credentials> {
        let read = || Credentials::of_thread(self.header.pid);
        self.credentials.get_or_init(read).as_ref()
    }
}

impl Asker for Call<'_> {
    fn keeps_privileges(&self) -> bool {
        self.credentials()
            .is_some_and(Credentials::keeps_privileges)
    }

    fn is_in_group(&self, gid: u32) -> bool {
        let more = || self.credentials().is_some_and(|who| who.is_in_group(gid));
        self.header.gid == gid || more()
    }
}

impl Ops {
    /// Notifies the kernel that attributes of a node changed, unless it caches none.
    pub(super) fn tell(&self, node: NodeId) {
        if self.timeout.is_zero() {
            return;
        }
        match &self.passthrough {
            Some(passthrough) => {
                for wire in passthrough.wires(node) {
                    self.notifier.attributes(wire);
                }
            }
            None => self.notifier.attributes(node.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::negotiate::{Wishes, negotiate};
    use crate::options::MountOptions;
    use crate::wire::request::{CopyRange, Init, Ioctl, SetAttr};

    const DOCUMENT: &str = include_str!("../../../../docs/overlay.md");
    const NODE: u64 = 7;
    const OTHER: u64 = 8;

    fn agreed(options: &MountOptions) -> Agreed {
        let offer = Init {
            major: 7,
            minor: 45,
            max_readahead_bytes: 0,
            flags: u64::MAX,
        };
        negotiate(&offer, Wishes::of(options, false, false)).unwrap()
    }

    fn said(op: Op<'_>, options: &MountOptions) -> String {
        let header = Header {
            length_bytes: 0,
            opcode: 0,
            unique: 1,
            node: NODE,
            uid: 0,
            gid: 0,
            pid: 0,
            extensions_8: 0,
        };
        let request = Request { header, op };
        let known = known(&request, &agreed(options));
        let of = |node: u64| {
            let known = known.iter().filter(|(of, _)| of.0 == node);
            known.fold(Attrs::NONE, |all, (_, attrs)| all | *attrs)
        };
        let name = |attrs: Attrs| match attrs {
            Attrs::ALL => "all",
            Attrs::CONTENT => "size, blocks, mtime, ctime",
            Attrs::CTIME => "ctime",
            Attrs::NONE => "nothing",
            attrs if attrs == Attrs::CONTENT.without(Attrs::BLOCKS) => "size, mtime, ctime",
            other => panic!("{other:?}"),
        };
        match (of(NODE), of(OTHER)) {
            (node, Attrs::NONE) => name(node).to_owned(),
            (Attrs::NONE, other) => format!("of the target: {}", name(other)),
            (node, other) => format!("{}, of both", [name(node), name(other)][0]),
        }
    }

    #[test]
    fn the_document_says_what_the_kernel_knows() {
        let usual = MountOptions::default();
        let noacl = MountOptions {
            acl: false,
            ..MountOptions::default()
        };
        let writeback = MountOptions {
            writeback: true,
            ..MountOptions::default()
        };
        let name = OsStr::new("x");
        let set = SetAttr {
            valid: 0,
            size_bytes: 0,
            atime: (0, 0),
            mtime: (0, 0),
            mode: 0,
            uid: 0,
            gid: 0,
        };
        let copy = CopyRange {
            from_offset: 0,
            to: OTHER,
            to_offset: 0,
            length_bytes: 0,
            flags: 0,
        };
        let write = Op::Write {
            handle: 0,
            offset: 0,
            data: &[],
            flags: 0,
            append: false,
        };
        let xattr = |name| Op::SetXattr {
            name: OsStr::new(name),
            value: &[],
            flags: 0,
            acl_kills_setgid: false,
        };
        let rows = [
            ("SETATTR", Op::SetAttr(set), &usual),
            ("WRITE", write, &usual),
            ("WRITE, `writeback`", write, &writeback),
            (
                "FALLOCATE",
                Op::FAllocate {
                    offset: 0,
                    length: 1,
                    mode: 0,
                },
                &usual,
            ),
            ("COPY_FILE_RANGE", Op::CopyRange(copy), &usual),
            ("SETXATTR, REMOVEXATTR", xattr("user.x"), &usual),
            ("the same of an ACL", xattr(ACLS[0]), &usual),
            ("the same of an ACL, `noacl`", xattr(ACLS[0]), &noacl),
            (
                "IOCTL",
                Op::Ioctl(Ioctl {
                    flags: 0,
                    command: 0,
                    out_size_bytes: 0,
                    data: &[],
                }),
                &usual,
            ),
            (
                "MKNOD, MKDIR, SYMLINK, CREATE, TMPFILE, UNLINK, RMDIR",
                Op::Unlink { name },
                &usual,
            ),
            (
                "RENAME",
                Op::Rename {
                    name,
                    new_parent: OTHER,
                    new_name: name,
                    flags: 0,
                },
                &usual,
            ),
            ("LINK", Op::Link { node: OTHER, name }, &usual),
            ("READ, READDIR, READLINK", Op::ReadLink, &usual),
        ];
        for (request, op, options) in rows {
            let row = format!("| {request} | {} |", said(op, options));
            assert!(DOCUMENT.contains(&row), "docs/overlay.md lacks {row}");
        }
    }
}

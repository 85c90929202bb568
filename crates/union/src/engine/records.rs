//! Records: xattrs for what can't be set on an upper's inodes directly: owners, modes, types, and
//! xattrs that need a privilege.
//!
//! In a union with records ([`crate::Records::Read`]) the record counts: the inode behind it
//! belongs to the daemon and has just the permissions the daemon needs. Records are on regular
//! files and directories, since nothing else takes `user.*` xattrs: a device, or a symbolic link of
//! another owner, is a regular file; the link's target is its content.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use vellum_format::{
    OVERRIDE_STAT, OVERRIDE_STAT_NAMES, OverrideKind, OverrideStat, Prefix, record,
};
use vellum_sys::{FileKind, Stat};

use crate::engine::request::NewNode;
use crate::layer::{Dialect, Records, WhNames};
use crate::{Refusal, Result};

/// Permission bits of the inode behind a record, for the daemon's own use.
pub(crate) const BACKING_FILE_MODE: u32 = 0o600;
/// The same, for a directory.
pub(crate) const BACKING_DIR_MODE: u32 = 0o700;

/// The xattr that holds the record of attributes.
pub(crate) fn stat_name() -> &'static OsStr {
    OsStr::new(OVERRIDE_STAT)
}

/// Returns the record for a new inode.
pub(crate) fn of_new(what: &NewNode, mode: u32, uid: u32, gid: u32) -> OverrideStat {
    let kind = match *what {
        NewNode::File => OverrideKind::File,
        NewNode::Dir => OverrideKind::Directory,
        NewNode::Symlink(_) => OverrideKind::Symlink,
        NewNode::Fifo => OverrideKind::Fifo,
        NewNode::Socket => OverrideKind::Socket,
        NewNode::Char(major, minor) => OverrideKind::Character { major, minor },
        NewNode::Block(major, minor) => OverrideKind::Block { major, minor },
    };
    OverrideStat {
        uid,
        gid,
        mode,
        kind: Some(kind),
    }
}

/// Returns the record of an inode's present attributes.
pub(crate) fn of_stat(stat: &Stat) -> OverrideStat {
    let (major, minor) = stat.rdev;
    let kind = match stat.kind {
        FileKind::File => OverrideKind::File,
        FileKind::Dir => OverrideKind::Directory,
        FileKind::Symlink => OverrideKind::Symlink,
        FileKind::Fifo => OverrideKind::Fifo,
        FileKind::Socket => OverrideKind::Socket,
        FileKind::Char => OverrideKind::Character { major, minor },
        FileKind::Block => OverrideKind::Block { major, minor },
    };
    OverrideStat {
        uid: stat.uid,
        gid: stat.gid,
        mode: stat.mode,
        kind: Some(kind),
    }
}

/// How an xattr that a user of the union sets is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The name to store it under.
    pub name: OsString,
    /// The name of the record to write if the file system refuses that; `None` without records.
    pub record: Option<OsString>,
    /// Write the record at once, without trying the file system.
    pub record_only: bool,
}

/// Returns how the xattr `name` is stored in an upper of this dialect.
///
/// Overlay marks of the upper's own namespace are stored escaped; others have no meaning in it.
/// Errors: [`Refusal::NotPermitted`] for names that would be read as a record, or as
/// fuse-overlayfs's own.
pub(crate) fn kept(dialect: &Dialect, name: &OsStr) -> Result<Kept> {
    let bytes = name.as_bytes();
    let records = dialect.records == Records::Read;
    let is_record = OVERRIDE_STAT_NAMES.iter().any(|record| name == *record)
        || bytes.starts_with(record::XATTR_PREFIX.as_bytes());
    let is_foreign =
        dialect.wh_names == WhNames::Whiteouts && bytes.starts_with(b"user.fuseoverlayfs.");
    if records && is_record || is_foreign {
        return Err(Refusal::NotPermitted.into());
    }
    let stored = dialect
        .prefix
        .map_or_else(|| name.to_owned(), |prefix: Prefix| prefix.escape(name));
    Ok(Kept {
        record: records.then(|| record::recorded(&stored)).flatten(),
        // An ACL grants access, which the record holds: the inode behind it stays as it is.
        record_only: records && bytes.starts_with(b"system.posix_acl_"),
        name: stored,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn name(dialect: &Dialect, shown: &str) -> Option<String> {
        match kept(dialect, OsStr::new(shown)) {
            Ok(kept) => kept.name.into_string().ok(),
            Err(Error::Refused { refusal }) => {
                assert_eq!(refusal, Refusal::NotPermitted);
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn marks_are_kept_escaped_and_records_are_refused_where_they_count() {
        let kernel = Dialect::kernel(Prefix::Trusted);
        let check = |shown, stored: Option<&str>| {
            assert_eq!(name(&kernel, shown).as_deref(), stored);
        };
        check(
            "trusted.overlay.opaque",
            Some("trusted.overlay.overlay.opaque"),
        );
        check(
            "trusted.overlay.overlay.x",
            Some("trusted.overlay.overlay.overlay.x"),
        );
        check("user.overlay.opaque", Some("user.overlay.opaque"));
        check(
            "user.containers.override_stat",
            Some("user.containers.override_stat"),
        );
        check("user.x", Some("user.x"));
        let rootless = Dialect::kernel(Prefix::User).with_records();
        let check = |shown, stored: Option<&str>| {
            assert_eq!(name(&rootless, shown).as_deref(), stored);
        };
        check(
            "user.overlay.redirect",
            Some("user.overlay.overlay.redirect"),
        );
        check("user.containers.override_stat", None);
        check("user.vellum.xattr.security.capability", None);
        let kept = kept(&rootless, OsStr::new("security.capability")).unwrap();
        assert_eq!(
            kept.record.unwrap(),
            "user.vellum.xattr.security.capability"
        );
        assert_eq!(
            name(&kernel.with_wh_names(), "user.fuseoverlayfs.opaque"),
            None
        );
    }
}

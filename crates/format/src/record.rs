//! What an unprivileged store writes in place of what the file system refused, so that no part of
//! an image is lost.
//!
//! A device node, and any object whose owner can't be set, is a regular file (or directory) with an
//! [`OverrideStat`](crate::OverrideStat) mark. An xattr that was refused (`security.capability`
//! outside the right user namespace, `trusted.*`) is kept with its value under [`XATTR_PREFIX`] and
//! its full name. Readers of such a tree show what is recorded and hide the records.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The prefix of a recorded xattr's name. Changing it makes the records of existing stores
/// invisible.
pub const XATTR_PREFIX: &str = "user.vellum.xattr.";

/// The longest xattr name Linux takes, in bytes.
pub const XATTR_NAME_MAX_BYTES: usize = 255;

/// Returns the name under which the refused xattr `name` is recorded; `None` if that would be over
/// 255 bytes.
pub fn recorded(name: &OsStr) -> Option<OsString> {
    let mut stored = XATTR_PREFIX.as_bytes().to_vec();
    stored.extend_from_slice(name.as_bytes());
    (stored.len() <= XATTR_NAME_MAX_BYTES).then(|| OsString::from_vec(stored))
}

/// Returns the xattr name that `stored` records, or `None` if it is not a record.
pub fn original(stored: &OsStr) -> Option<&OsStr> {
    match stored.as_bytes().strip_prefix(XATTR_PREFIX.as_bytes()) {
        None | Some(b"") => None,
        Some(name) => Some(OsStr::from_bytes(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_its_xattr() {
        let stored = recorded(OsStr::new("security.capability")).unwrap();
        assert_eq!(stored, "user.vellum.xattr.security.capability");
        assert_eq!(original(&stored), Some(OsStr::new("security.capability")));
        assert_eq!(original(OsStr::new("user.vellum.xattr.")), None);
        assert_eq!(original(OsStr::new("user.x")), None);
        assert_eq!(recorded(OsStr::new(&"n".repeat(238))), None);
    }
}

//! Whiteouts by name: `.wh.NAME` and `.wh..wh..opq`, as archives (OCI layers) and AUFS write them,
//! and fuse-overlayfs if it may not create devices.
//!
//! This dialect takes names away from users: a real file can't be called `.wh.x`. In kernel trees
//! such names are ordinary files, so these functions are used only for archives and for trees
//! recorded as being in this dialect.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The prefix of a whiteout's name.
pub const PREFIX: &str = ".wh.";

/// The name of the file that marks its directory opaque.
pub const OPAQUE: &str = ".wh..wh..opq";

/// The prefix of AUFS's own bookkeeping files (`.wh..wh.aufs`, `.wh..wh.plnk`, `.wh..wh.orph`).
pub const RESERVED_PREFIX: &str = ".wh..wh.";

/// The meaning of a file name in this dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// An ordinary name.
    Plain,
    /// Hides this name in the layers below. Never empty, `.` or `..`, and holds no slash.
    Whiteout(&'a OsStr),
    /// Makes the directory that contains it opaque.
    Opaque,
    /// AUFS's bookkeeping: neither content nor a mark to act on.
    Reserved,
    /// A whiteout of nothing: `.wh.`, `.wh..` (of `.`), `.wh...` (of `..`). Always an error; a
    /// program that takes such a name literally deletes the directory it is in, or its parent.
    Malformed,
}

/// Returns what `name`, a single path component, means.
pub fn parse(name: &OsStr) -> Name<'_> {
    let bytes = name.as_bytes();
    if bytes == OPAQUE.as_bytes() {
        return Name::Opaque;
    }
    if bytes.starts_with(RESERVED_PREFIX.as_bytes()) {
        return Name::Reserved;
    }
    match bytes.strip_prefix(PREFIX.as_bytes()) {
        None => Name::Plain,
        Some(b"" | b"." | b"..") => Name::Malformed,
        Some(hidden) if hidden.contains(&b'/') => Name::Malformed,
        Some(hidden) => Name::Whiteout(OsStr::from_bytes(hidden)),
    }
}

/// Returns the whiteout that hides `name`.
///
/// `None` if there is no such whiteout: with four more bytes the name would be over the limit of
/// 255, or it would be read as something else (`.wh.x` itself can't be hidden in this dialect,
/// since the result begins with `.wh..wh.`).
pub fn whiteout(name: &OsStr) -> Option<OsString> {
    let mut hiding = PREFIX.as_bytes().to_vec();
    hiding.extend_from_slice(name.as_bytes());
    let hiding = OsString::from_vec(hiding);
    let fits = hiding.len() <= crate::NAME_MAX_BYTES;
    (fits && parse(&hiding) == Name::Whiteout(name)).then_some(hiding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expect: Name<'_>) {
        assert_eq!(parse(OsStr::new(name)), expect, "{name}");
    }

    #[test]
    fn names_are_told_apart() {
        check("file", Name::Plain);
        check(".wh", Name::Plain);
        check("a.wh.b", Name::Plain);
        check(".wh.file", Name::Whiteout(OsStr::new("file")));
        check(".wh..hidden", Name::Whiteout(OsStr::new(".hidden")));
        check(".wh..wh", Name::Whiteout(OsStr::new(".wh")));
        check(".wh..wh..opq", Name::Opaque);
        check(".wh..wh.plnk", Name::Reserved);
        check(".wh..wh.", Name::Reserved);
        check(".wh..wh..opqx", Name::Reserved);
        check(".wh.", Name::Malformed);
        check(".wh..", Name::Malformed);
        check(".wh...", Name::Malformed);
        check(".wh....", Name::Whiteout(OsStr::new("...")));
    }

    #[test]
    fn names_that_no_whiteout_can_hide_are_refused() {
        assert_eq!(
            whiteout(OsStr::new("f")).as_deref(),
            Some(OsStr::new(".wh.f"))
        );
        assert_eq!(
            whiteout(OsStr::new(&"x".repeat(251))).map(|n| n.len()),
            Some(255)
        );
        assert_eq!(whiteout(OsStr::new(&"x".repeat(252))), None);
        assert_eq!(whiteout(OsStr::new(".wh.f")), None);
        assert_eq!(whiteout(OsStr::new("..")), None);
        assert_eq!(whiteout(OsStr::new("")), None);
    }
}

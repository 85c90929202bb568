//! Names of the overlay xattrs in both dialects, and the escaping that lets one union store
//! another's marks.
//!
//! Invariant: `unescape(escape(name)) == name` for every name, and nothing that `escape` returns is
//! ever read as a mark by the same dialect. The rule is the kernel's (since 6.7): an xattr under
//! the dialect's own prefix is a mark, unless another `overlay.` follows the prefix; such a name
//! belongs to an inner union, which sees it with one `overlay.` removed. Names under the *other*
//! dialect's prefix are ordinary.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Which xattr namespace a tree's marks live in.
///
/// `trusted.*` needs CAP_SYS_ADMIN in the initial user namespace; `user.*` is what a mount with
/// `userxattr` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    /// `trusted.overlay.`
    Trusted,
    /// `user.overlay.`
    User,
}

/// The marks that are kept in xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(
    missing_docs,
    reason = "each is explained in the table of marks at the crate's root"
)]
pub enum Mark {
    Opaque,
    Whiteout,
    Redirect,
    Metacopy,
    Origin,
    Impure,
    Nlink,
    Upper,
    Protattr,
    Uuid,
    Number,
    Blocks,
    Probe,
}

impl Mark {
    /// Every mark.
    pub const ALL: [Mark; 13] = [
        Mark::Opaque,
        Mark::Whiteout,
        Mark::Redirect,
        Mark::Metacopy,
        Mark::Origin,
        Mark::Impure,
        Mark::Nlink,
        Mark::Upper,
        Mark::Protattr,
        Mark::Uuid,
        Mark::Number,
        Mark::Blocks,
        Mark::Probe,
    ];

    /// Returns the mark's name without a prefix, e.g. `opaque`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mark::Opaque => "opaque",
            Mark::Whiteout => "whiteout",
            Mark::Redirect => "redirect",
            Mark::Metacopy => "metacopy",
            Mark::Origin => "origin",
            Mark::Impure => "impure",
            Mark::Nlink => "nlink",
            Mark::Upper => "upper",
            Mark::Protattr => "protattr",
            Mark::Uuid => "uuid",
            Mark::Number => "vellum.ino",
            Mark::Blocks => "vellum.blocks",
            Mark::Probe => "vellum.probe",
        }
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the name of an xattr means in a dialect; see [`Prefix::classify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XattrName {
    /// A mark this library knows.
    Control(Mark),
    /// Under the dialect's prefix, but not a mark this library knows: hidden from users like the
    /// others.
    UnknownControl,
    /// A name stored for an inner union; this is the name to show.
    Escaped(OsString),
    /// Not part of the dialect: shown as it is.
    Plain,
}

const INNER: &[u8] = b"overlay.";

impl Prefix {
    /// Both dialects.
    pub const ALL: [Prefix; 2] = [Prefix::Trusted, Prefix::User];

    /// Returns the prefix with its final dot.
    pub const fn as_str(self) -> &'static str {
        match self {
            Prefix::Trusted => "trusted.overlay.",
            Prefix::User => "user.overlay.",
        }
    }

    /// Returns the full xattr name of a mark, e.g. `trusted.overlay.opaque`.
    pub fn xattr(self, mark: Mark) -> &'static OsStr {
        OsStr::new(match (self, mark) {
            (Prefix::Trusted, Mark::Opaque) => "trusted.overlay.opaque",
            (Prefix::Trusted, Mark::Whiteout) => "trusted.overlay.whiteout",
            (Prefix::Trusted, Mark::Redirect) => "trusted.overlay.redirect",
            (Prefix::Trusted, Mark::Metacopy) => "trusted.overlay.metacopy",
            (Prefix::Trusted, Mark::Origin) => "trusted.overlay.origin",
            (Prefix::Trusted, Mark::Impure) => "trusted.overlay.impure",
            (Prefix::Trusted, Mark::Nlink) => "trusted.overlay.nlink",
            (Prefix::Trusted, Mark::Upper) => "trusted.overlay.upper",
            (Prefix::Trusted, Mark::Protattr) => "trusted.overlay.protattr",
            (Prefix::Trusted, Mark::Uuid) => "trusted.overlay.uuid",
            (Prefix::Trusted, Mark::Number) => "trusted.overlay.vellum.ino",
            (Prefix::Trusted, Mark::Blocks) => "trusted.overlay.vellum.blocks",
            (Prefix::Trusted, Mark::Probe) => "trusted.overlay.vellum.probe",
            (Prefix::User, Mark::Opaque) => "user.overlay.opaque",
            (Prefix::User, Mark::Whiteout) => "user.overlay.whiteout",
            (Prefix::User, Mark::Redirect) => "user.overlay.redirect",
            (Prefix::User, Mark::Metacopy) => "user.overlay.metacopy",
            (Prefix::User, Mark::Origin) => "user.overlay.origin",
            (Prefix::User, Mark::Impure) => "user.overlay.impure",
            (Prefix::User, Mark::Nlink) => "user.overlay.nlink",
            (Prefix::User, Mark::Upper) => "user.overlay.upper",
            (Prefix::User, Mark::Protattr) => "user.overlay.protattr",
            (Prefix::User, Mark::Uuid) => "user.overlay.uuid",
            (Prefix::User, Mark::Number) => "user.overlay.vellum.ino",
            (Prefix::User, Mark::Blocks) => "user.overlay.vellum.blocks",
            (Prefix::User, Mark::Probe) => "user.overlay.vellum.probe",
        })
    }

    /// Returns what `name` means in this dialect.
    pub fn classify(self, name: &OsStr) -> XattrName {
        let Some(rest) = name.as_bytes().strip_prefix(self.as_str().as_bytes()) else {
            return XattrName::Plain;
        };
        if rest.starts_with(INNER) {
            let mut shown = self.as_str().as_bytes().to_vec();
            shown.extend_from_slice(&rest[INNER.len()..]);
            return XattrName::Escaped(OsString::from_vec(shown));
        }
        match Mark::ALL
            .into_iter()
            .find(|mark| mark.as_str().as_bytes() == rest)
        {
            Some(mark) => XattrName::Control(mark),
            None => XattrName::UnknownControl,
        }
    }

    /// Returns whether `name` is a mark of this dialect, to be hidden from users of the union.
    ///
    /// Escaped names are not: they are shown, by their inner name.
    pub fn is_control(self, name: &OsStr) -> bool {
        matches!(
            self.classify(name),
            XattrName::Control(_) | XattrName::UnknownControl
        )
    }

    /// Returns the name under which an xattr that a user (or an archive) calls `name` is stored.
    ///
    /// Names under this dialect's prefix get one more `overlay.`; all others stay as they are.
    pub fn escape(self, name: &OsStr) -> OsString {
        match name.as_bytes().strip_prefix(self.as_str().as_bytes()) {
            None => name.to_owned(),
            Some(rest) => {
                let mut stored = self.as_str().as_bytes().to_vec();
                stored.extend_from_slice(INNER);
                stored.extend_from_slice(rest);
                OsString::from_vec(stored)
            }
        }
    }

    /// Returns the name to show for a stored xattr, or `None` if it is a mark and must be hidden.
    pub fn unescape(self, stored: &OsStr) -> Option<OsString> {
        match self.classify(stored) {
            XattrName::Control(_) | XattrName::UnknownControl => None,
            XattrName::Escaped(shown) => Some(shown),
            XattrName::Plain => Some(stored.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prefix_and_mark() {
        for prefix in Prefix::ALL {
            for mark in Mark::ALL {
                let name = prefix.xattr(mark);
                assert_eq!(name, OsStr::new(&format!("{}{mark}", prefix.as_str())));
                assert_eq!(prefix.classify(name), XattrName::Control(mark));
                assert!(prefix.is_control(name));
            }
        }
    }

    #[track_caller]
    fn check(prefix: Prefix, shown: &str, stored: &str) {
        assert_eq!(prefix.escape(OsStr::new(shown)), OsStr::new(stored));
        assert_eq!(
            prefix.unescape(OsStr::new(stored)).as_deref(),
            Some(OsStr::new(shown))
        );
    }

    #[test]
    fn marks_of_an_inner_union_are_escaped() {
        check(
            Prefix::Trusted,
            "trusted.overlay.opaque",
            "trusted.overlay.overlay.opaque",
        );
        check(
            Prefix::Trusted,
            "trusted.overlay.overlay.opaque",
            "trusted.overlay.overlay.overlay.opaque",
        );
        check(
            Prefix::Trusted,
            "user.overlay.opaque",
            "user.overlay.opaque",
        );
        check(
            Prefix::User,
            "user.overlay.opaque",
            "user.overlay.overlay.opaque",
        );
        check(Prefix::User, "user.overlay.", "user.overlay.overlay.");
        check(Prefix::User, "user.overlayfs", "user.overlayfs");
        check(Prefix::User, "security.capability", "security.capability");
    }

    #[test]
    fn unknown_marks_are_hidden_too() {
        assert_eq!(
            Prefix::User.unescape(OsStr::new("user.overlay.novelty")),
            None
        );
        assert!(Prefix::User.is_control(OsStr::new("user.overlay.novelty")));
        assert!(!Prefix::User.is_control(OsStr::new("trusted.overlay.opaque")));
    }
}

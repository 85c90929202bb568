//! The redirect: where to look in the layers below for a renamed directory or the data of a
//! metadata-only file.
//!
//! A value is parsed once into a type that can't leave the union's root: components are never
//! empty, `.` or `..`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::{MarkError, NAME_MAX_BYTES};

/// The longest redirect that is read, in bytes: one page, like the longest path the kernel takes.
///
/// The kernel writes at most 256 bytes unless its `redirect_max` parameter is raised (to this at
/// most).
pub const REDIRECT_MAX_BYTES: usize = 4096;

/// Where to find the content in the layers below.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Redirect {
    /// Another name in the same directory.
    Sibling(OsString),
    /// A path from the root of the union. Kept without the leading slash; at least one component.
    FromRoot(PathBuf),
}

impl Redirect {
    /// Recognises the value of a redirect xattr.
    ///
    /// Errors if it is empty, longer than [`REDIRECT_MAX_BYTES`], holds a NUL, an empty, `.` or
    /// `..` component or one over 255 bytes, or is relative and holds a slash.
    pub fn parse(value: &[u8]) -> Result<Redirect, MarkError> {
        if value.len() > REDIRECT_MAX_BYTES {
            return Err(malformed(format!(
                "{} bytes long, the limit is {REDIRECT_MAX_BYTES}",
                value.len()
            )));
        }
        match value.strip_prefix(b"/") {
            Some(path) => {
                for component in path.split(|&byte| byte == b'/') {
                    check_component(component)?;
                }
                Ok(Redirect::FromRoot(PathBuf::from(OsString::from_vec(
                    path.to_vec(),
                ))))
            }
            None if value.contains(&b'/') => Err(malformed("relative, but holds a slash")),
            None => {
                check_component(value)?;
                Ok(Redirect::Sibling(OsString::from_vec(value.to_vec())))
            }
        }
    }

    /// Returns the redirect to `path` from the union's root, with or without a leading slash.
    ///
    /// Errors as [`Redirect::parse`] does.
    pub fn from_root(path: &Path) -> Result<Redirect, MarkError> {
        let mut value = Vec::new();
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    value.push(b'/');
                    value.extend_from_slice(name.as_bytes());
                }
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(malformed("holds a `..` component"));
                }
            }
        }
        Redirect::parse(&value)
    }

    /// Returns the redirect to `name` in the same directory. Errors as [`Redirect::parse`] does.
    pub fn sibling(name: &OsStr) -> Result<Redirect, MarkError> {
        match name.as_bytes().first() {
            Some(b'/') => Err(malformed("relative, but holds a slash")),
            _ => Redirect::parse(name.as_bytes()),
        }
    }

    /// Returns the xattr's value.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Redirect::Sibling(name) => name.as_bytes().to_vec(),
            Redirect::FromRoot(path) => [b"/", path.as_os_str().as_bytes()].concat(),
        }
    }
}

fn check_component(component: &[u8]) -> Result<(), MarkError> {
    match component {
        b"" => Err(malformed("holds an empty component")),
        b"." | b".." => Err(malformed("holds a `.` or `..` component")),
        _ if component.contains(&0) => Err(malformed("holds a NUL byte")),
        _ if component.len() > NAME_MAX_BYTES => Err(malformed(format!(
            "holds a name of {} bytes, the limit is {NAME_MAX_BYTES}",
            component.len()
        ))),
        _ => Ok(()),
    }
}

fn malformed(reason: impl Into<String>) -> MarkError {
    MarkError::new("redirect", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(value: &[u8], reason: &str) {
        let error = Redirect::parse(value).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn both_forms_are_read() {
        assert_eq!(Redirect::parse(b"old"), Ok(Redirect::Sibling("old".into())));
        assert_eq!(
            Redirect::parse(b"/a/old"),
            Ok(Redirect::FromRoot("a/old".into()))
        );
        assert_eq!(
            Redirect::from_root(Path::new("a/old")),
            Redirect::parse(b"/a/old")
        );
        assert_eq!(
            Redirect::from_root(Path::new("/a/old")),
            Redirect::parse(b"/a/old")
        );
        assert_eq!(
            Redirect::sibling(OsStr::new("\u{e9}")).unwrap().encode(),
            "\u{e9}".as_bytes()
        );
    }

    #[test]
    fn nothing_leaves_the_root() {
        refuses(b"", "empty component");
        refuses(b"/", "empty component");
        refuses(b"/a//b", "empty component");
        refuses(b"/a/", "empty component");
        refuses(b"..", "`..`");
        refuses(b"/../etc", "`..`");
        refuses(b"/a/./b", "`.`");
        refuses(b"a/b", "slash");
        refuses(b"a\0b", "NUL");
        refuses(&[b'x'; 256], "256 bytes");
        refuses(
            &[b"/".as_slice(), &[b'x'; 4096]].concat(),
            "the limit is 4096",
        );
        assert!(Redirect::from_root(Path::new("/a/../b")).is_err());
        assert!(Redirect::from_root(Path::new("/")).is_err());
        assert!(Redirect::sibling(OsStr::new("/a")).is_err());
    }
}

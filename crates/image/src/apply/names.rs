//! Parses names in an archive, once.
//!
//! Pure. A name becomes its components, cleaned as Docker cleans it in a chroot: a leading slash,
//! empty components and `.` vanish, `..` removes the component before it, and above the root is the
//! root. The result is never joined into a path that the kernel would walk: each component goes to
//! a directory descriptor on its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vellum_format::wh;

use crate::error::{Error, Result};
use crate::limits::{Limits, check};

/// AUFS keeps the files that hard links refer to in this directory at the root; old images have it.
pub(super) const PLNK: &str = ".wh..wh.plnk";

/// Returns the components of an entry's name or of a hard link's target; none for the root itself.
pub(super) fn components<'a>(name: &'a OsStr, limits: &Limits) -> Result<Vec<&'a OsStr>> {
    let path = Path::new(name);
    let mut found: Vec<&OsStr> = Vec::new();
    for part in name.as_bytes().split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            // Above the root is the root.
            b".." => drop(found.pop()),
            part if part.contains(&0) => {
                return Err(Error::BadName {
                    path: path.to_owned(),
                    why: "it contains a NUL",
                });
            }
            part => {
                check(
                    "the length of a name",
                    part.len() as u64,
                    limits.max_name_bytes,
                    Some(path),
                )?;
                found.push(OsStr::from_bytes(part));
            }
        }
    }
    check(
        "the depth of a name",
        found.len() as u64,
        limits.max_depth,
        Some(path),
    )?;
    Ok(found)
}

/// What an entry's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// The root directory itself.
    Root,
    /// An object of this name.
    Object(&'a OsStr),
    /// The layers below don't show this name.
    Whiteout(&'a OsStr),
    /// The layers below show nothing in the directory.
    Opaque,
    /// Nothing: AUFS' own files.
    Reserved,
}

/// Returns the components of the directory an entry is in, and what the entry means there.
pub(super) fn meaning<'n, 'c>(
    name: &Path,
    components: &'c [&'n OsStr],
) -> Result<(&'c [&'n OsStr], Meaning<'n>)> {
    let Some((&last, parents)) = components.split_last() else {
        return Ok((&[], Meaning::Root));
    };
    let bad = |why| Error::BadName {
        path: name.to_owned(),
        why,
    };
    // AUFS's hard links refer to the files in there, so they are created, and removed at the end.
    if components[0] == PLNK {
        return Ok((parents, Meaning::Object(last)));
    }
    // A directory on the path is never a whiteout: only the last component can be one.
    if parents
        .iter()
        .any(|name| wh::parse(name) == wh::Name::Reserved)
    {
        return Ok((parents, Meaning::Reserved));
    }
    let meaning = match wh::parse(last) {
        wh::Name::Plain => Meaning::Object(last),
        wh::Name::Whiteout(hidden) => Meaning::Whiteout(hidden),
        wh::Name::Opaque => Meaning::Opaque,
        wh::Name::Reserved => Meaning::Reserved,
        wh::Name::Malformed => return Err(bad("it is a whiteout of nothing")),
    };
    Ok((parents, meaning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_components(name: &str, expect: Option<&str>) {
        let found = components(OsStr::new(name), &Limits::default())
            .ok()
            .map(|parts| {
                parts
                    .iter()
                    .map(|part| part.to_str().unwrap())
                    .collect::<Vec<_>>()
                    .join("/")
            });
        assert_eq!(found.as_deref(), expect, "{name}");
    }

    #[test]
    fn names_are_cleaned_and_end_at_the_root() {
        check_components("a/b", Some("a/b"));
        check_components("./a//b/.", Some("a/b"));
        check_components("/etc/passwd", Some("etc/passwd"));
        check_components("a/../b", Some("b"));
        check_components("a/b/../../c", Some("c"));
        check_components("./", Some(""));
        check_components("/", Some(""));
        check_components("...", Some("..."));
        check_components("", Some(""));
        check_components("/../a", Some("a"));
        check_components("/a/../../b", Some("b"));
        check_components("..", Some(""));
        check_components("../a", Some("a"));
        check_components("a/../../b", Some("b"));
        check_components("a\0b", None);
    }

    #[test]
    fn whiteouts_by_name() {
        let check = |name: &str, expect: Option<Meaning<'_>>| {
            let parts = components(OsStr::new(name), &Limits::default()).unwrap();
            let found = meaning(Path::new(name), &parts)
                .ok()
                .map(|(_, meaning)| meaning);
            assert_eq!(found, expect, "{name}");
        };
        check(".", Some(Meaning::Root));
        check("a/b", Some(Meaning::Object(OsStr::new("b"))));
        check("a/.wh.b", Some(Meaning::Whiteout(OsStr::new("b"))));
        check("a/.wh..wh..opq", Some(Meaning::Opaque));
        check(".wh..wh.aufs", Some(Meaning::Reserved));
        check(".wh..wh.orph/x", Some(Meaning::Reserved));
        check(
            ".wh..wh.plnk/12.3",
            Some(Meaning::Object(OsStr::new("12.3"))),
        );
        check("a/.wh..", None);
        check("a/.wh.", None);
        check(".wh.a/b", Some(Meaning::Object(OsStr::new("b"))));
        check(".wh../b", Some(Meaning::Object(OsStr::new("b"))));
        check("a/.wh..wh..opq/b", Some(Meaning::Object(OsStr::new("b"))));
        check(".wh.a/.wh.b", Some(Meaning::Whiteout(OsStr::new("b"))));
    }
}

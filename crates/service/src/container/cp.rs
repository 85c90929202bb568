//! `cp`: copies files between a container and the host, between two containers, or from and to a
//! tar. The rules are those of `docker cp`.
//!
//! | question | file |
//! |---|---|
//! | where is a path, and what is there | `side.rs` |
//! | what may replace what; owner, mode, attributes and times | `place.rs` |
//! | files and directories, copied directly | `tree.rs` |
//! | a tar into a directory | `unpack.rs` |
//! | a tar of a directory | `pack.rs` |
//!
//! Nothing is lost that the user did not ask to replace: a file replaces a file, a directory is
//! merged into, and neither replaces the other. A container's paths are resolved inside its tree
//! only: a symbolic link or `..` in it ends at its root, never on the host. From then on, what was
//! found is accessed by descriptors and single names, so swapping a directory for a link at the
//! same time achieves nothing. A container that isn't mounted is mounted for the copy.

mod pack;
mod place;
mod side;
mod tree;
mod unpack;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use vellum_sys::Process;

use crate::context::Context;
use crate::error::{Error, Result};
use place::{Owners, Placing};
use side::with;

pub(crate) use tree::whole_tree;

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// A path in a container.
    Container {
        /// The container.
        name: String,
        /// The path, from the container's root.
        path: PathBuf,
    },
    /// A path on the host.
    Host(PathBuf),
    /// A tar on standard input or output.
    Pipe,
}

impl CopyEnd {
    /// Parses `-`, `CONTAINER:PATH` or a path; a path with a colon in it is written with a leading
    /// `./` or `/`.
    pub fn parse(text: &OsStr) -> Self {
        if text == "-" {
            return Self::Pipe;
        }
        let bytes = text.as_bytes();
        if let Some(colon) = bytes.iter().position(|b| *b == b':')
            && !bytes.starts_with(b"/")
            && !bytes.starts_with(b".")
            && !bytes[..colon].contains(&b'/')
            && let Ok(name) = std::str::from_utf8(&bytes[..colon])
            && !name.is_empty()
        {
            let path = OsString::from_vec(bytes[colon + 1..].to_vec()).into();
            return Self::Container {
                name: name.to_owned(),
                path,
            };
        }
        Self::Host(text.into())
    }
}

/// How to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Keep owners and all attributes, or fail.
    pub archive: bool,
    /// Follow the source if it is a symbolic link.
    pub follow: bool,
}

/// Copies. `input` and `output` are the other ends of the tars.
///
/// Nothing is durable on return. After an error, what was copied before stays.
pub fn copy(
    ctx: &Context,
    from: &CopyEnd,
    to: &CopyEnd,
    options: Options,
    input: impl Read + Send + 'static,
    output: impl Write,
) -> Result<()> {
    match (from, to) {
        (CopyEnd::Pipe, CopyEnd::Pipe) => Err(invalid("one of the two must be a path")),
        (CopyEnd::Host(_), CopyEnd::Host(_) | CopyEnd::Pipe)
        | (CopyEnd::Pipe, CopyEnd::Host(_)) => Err(invalid(
            "one of the two must be in a container: CONTAINER:PATH",
        )),
        (from, CopyEnd::Pipe) => with(ctx, from, |from| {
            pack::pack(ctx, from, options.follow, output)
        }),
        (CopyEnd::Pipe, to) => with(ctx, to, |to| unpack::unpack(ctx, to, input)),
        (from, to) => {
            let owners = owners(ctx.process, from, to, options);
            with(ctx, from, |from| {
                with(ctx, to, |to| {
                    let placing = Placing::new(ctx, &to.top, owners, options.archive);
                    tree::copy(placing, from, to, options.follow)
                })
            })
        }
    }
}

/// Decides who owns the copies. Docker keeps the ids on the way into a container, and on the way
/// out gives the files to the user that asked.
fn owners(process: Process, from: &CopyEnd, to: &CopyEnd, options: Options) -> Owners {
    match (from, to) {
        _ if options.archive => Owners::Kept,
        (_, CopyEnd::Host(_)) => Owners::Callers,
        (CopyEnd::Host(_), _) if !process.in_first_namespace => Owners::Known,
        _ => Owners::Kept,
    }
}

fn invalid(what: &str) -> Error {
    Error::Invalid {
        what: what.to_owned(),
        hint: Some("`vellum cp --help` has examples".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_ends_are_parsed() {
        let inside = |name: &str, path: &str| CopyEnd::Container {
            name: name.into(),
            path: path.into(),
        };
        for (text, expect) in [
            ("-", CopyEnd::Pipe),
            ("box:/etc", inside("box", "/etc")),
            ("box:etc/x:y", inside("box", "etc/x:y")),
            ("box:", inside("box", "")),
            ("./a:b", CopyEnd::Host("./a:b".into())),
            ("/a:b", CopyEnd::Host("/a:b".into())),
            ("a/b:c", CopyEnd::Host("a/b:c".into())),
            (":x", CopyEnd::Host(":x".into())),
            ("plain", CopyEnd::Host("plain".into())),
        ] {
            assert_eq!(CopyEnd::parse(OsStr::new(text)), expect, "{text}");
        }
    }
}

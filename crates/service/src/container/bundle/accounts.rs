//! `/etc/passwd` and `/etc/group` of a tree, which came with an image: read completely, up to a
//! limit, or refused by name.
//!
//! They are looked up inside the tree only. Anything but a regular file is refused, not treated as
//! missing: runc before 1.3 opens both itself, in the container, and waits forever for a FIFO's
//! other end. The same holds for links to files that only the running container has.

use std::path::Path;

use vellum_sys::in_root::{self, Last};
use vellum_sys::stat::stat_fd;
use vellum_sys::{Dir, FileKind};

use super::workdir::MOUNTED;
use crate::error::{Error, Result};

/// No honest image has a longer file; Docker has the same limit.
const LIMIT_BYTES: u64 = 10 << 20;

/// Returns the content of `path`; empty, if there is no such file.
///
/// Errors: `Invalid` if it is something else; `Sys` if the file is too long, or its links form a
/// loop.
pub(super) fn read(tree: &Dir, path: &str) -> Result<Vec<u8>> {
    let wrong = |what: String| Error::Invalid {
        what,
        hint: Some(format!(
            "bind a file over it: --volume FILE:/{path}, or remove it from the image"
        )),
    };
    let place = in_root::resolve(tree, Path::new(path))?;
    if place == Path::new("dev/null") {
        return Ok(Vec::new());
    }
    if MOUNTED.iter().any(|mounted| place.starts_with(mounted)) {
        return Err(wrong(format!(
            "the container's /{path} leads to /{}, which is not part of the container",
            place.display()
        )));
    }
    let Some(found) = in_root::find(tree, &place, Last::Keep)? else {
        return Ok(Vec::new());
    };
    if stat_fd(&found)?.kind != FileKind::File {
        return Err(wrong(format!(
            "the container's /{path} is not a regular file"
        )));
    }
    Ok(in_root::read_file(tree, &place, LIMIT_BYTES)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn account_files_are_read_inside_the_tree_or_refused() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("outside"), "outside").unwrap();
        type Make = fn(&Path);
        #[track_caller]
        fn check(name: &str, expect: Option<&str>, make: Make) {
            let tree = tempfile::tempdir().unwrap();
            std::fs::create_dir(tree.path().join("etc")).unwrap();
            std::fs::write(tree.path().join("other"), "other").unwrap();
            make(&tree.path().join("etc/passwd"));
            let read = read(&Dir::open(tree.path()).unwrap(), "etc/passwd");
            let text = read
                .as_ref()
                .ok()
                .map(|bytes| String::from_utf8_lossy(bytes));
            assert_eq!(text.as_deref(), expect, "{name}: {read:?}");
        }
        fn node(path: &Path, kind: FileKind, device: (u32, u32)) {
            let dir = Dir::open(path.parent().unwrap()).unwrap();
            // Devices need root; without root there is none, and the row below says so.
            let _ = dir.mknod(path.file_name().unwrap(), kind, 0o666, device);
        }
        fn link(path: &Path, target: &str) {
            symlink(target, path).unwrap();
        }
        check("nothing", Some(""), |_| {});
        check("a file", Some("x"), |path| {
            std::fs::write(path, "x").unwrap()
        });
        check("a link", Some("other"), |path| link(path, "/other"));
        check("a link up", Some("other"), |path| {
            link(path, "../../../../other")
        });
        check("a link out", Some(""), |path| link(path, "../../outside"));
        check("a dangling link", Some(""), |path| link(path, "/nowhere"));
        check("below a file", Some(""), |path| link(path, "/other/below"));
        check("nothing to read", Some(""), |path| link(path, "/dev/null"));
        check("a loop", None, |path| link(path, "passwd"));
        check("a FIFO", None, |path| node(path, FileKind::Fifo, (0, 0)));
        check("a directory", None, |path| {
            std::fs::create_dir(path).unwrap()
        });
        check("standard input", None, |path| link(path, "/proc/self/fd/0"));
        check("a device by link", None, |path| link(path, "/dev/zero"));
        check("the kernel's log", None, |path| link(path, "../proc/kmsg"));
        check("too long", None, |path| {
            std::fs::File::create(path)
                .unwrap()
                .set_len(LIMIT_BYTES + 1)
                .unwrap()
        });
        check(
            "as long as can be",
            Some(&"\0".repeat(LIMIT_BYTES as usize)),
            |path| {
                std::fs::File::create(path)
                    .unwrap()
                    .set_len(LIMIT_BYTES)
                    .unwrap()
            },
        );
        if vellum_testkit::is_root() {
            check("a device", None, |path| node(path, FileKind::Char, (1, 5)));
        } else {
            vellum_testkit::untested("a device in the place of passwd", "making one needs root");
        }
    }
}

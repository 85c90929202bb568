//! Every kind of damage is found, by its path; and whatever the kernel refuses is called an error.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use vellum_format::{Handle, workdir};
use vellum_overlay::fsck::{Directories, Wrong};
use vellum_testkit::FsKind;

use crate::rig::{Rig, checked, get, index, set, unset, whiteout};
use crate::support::layered::{VELLUM, command, wait_free};
use crate::support::said;

const ALL: &[(&str, &str)] = &[
    ("redirect_dir", "on"),
    ("index", "on"),
    ("metacopy", "on"),
    ("xino", "on"),
];

/// An overlay with a mark of each type, written by the kernel.
fn made() -> Option<Rig> {
    let rig = Rig::new()?;
    for dir in [
        "base/dir/inner",
        "base/deep/er",
        "base/old",
        "base/left",
        "top/only",
    ] {
        fs::create_dir_all(rig.at(dir)).unwrap();
    }
    for file in [
        "dir/inner/file",
        "deep/er/file",
        "old/x",
        "meta",
        "gone",
        "keep",
        "left/x",
    ] {
        fs::write(rig.at("base").join(file), format!("{file}\n")).unwrap();
    }
    fs::write(rig.at("base/linked"), "linked\n").unwrap();
    fs::hard_link(rig.at("base/linked"), rig.at("base/twin")).unwrap();
    symlink("keep", rig.at("base/link")).unwrap();
    let merged = rig.mount(ALL).unwrap();
    fs::rename(merged.join("dir"), merged.join("moved")).unwrap();
    fs::rename(merged.join("deep/er"), merged.join("er")).unwrap();
    fs::set_permissions(merged.join("meta"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(merged.join("gone")).unwrap();
    fs::remove_dir_all(merged.join("old")).unwrap();
    fs::create_dir(merged.join("old")).unwrap();
    fs::write(merged.join("old/new"), "new\n").unwrap();
    fs::write(merged.join("linked"), "more\n").unwrap();
    fs::write(merged.join("keep"), "changed\n").unwrap();
    fs::write(merged.join("new"), "new\n").unwrap();
    fs::write(merged.join("only/new"), "new\n").unwrap();
    symlink("new", merged.join("newlink")).unwrap();
    std::os::unix::fs::lchown(merged.join("link"), Some(1), Some(1)).unwrap();
    rig.unmount();
    rig.assert_clean("before any damage");
    Some(rig)
}

/// One kind of damage.
struct Damage {
    name: &'static str,
    /// What is done.
    hurt: fn(&Rig),
    /// Where it is found, from the directory of the overlay's directories.
    path: &'static str,
    aspect: &'static str,
    severity: &'static str,
}

const fn error(
    name: &'static str,
    path: &'static str,
    aspect: &'static str,
    hurt: fn(&Rig),
) -> Damage {
    Damage {
        name,
        hurt,
        path,
        aspect,
        severity: "error",
    }
}

const fn remark(
    name: &'static str,
    path: &'static str,
    aspect: &'static str,
    hurt: fn(&Rig),
) -> Damage {
    Damage {
        severity: "remark",
        ..error(name, path, aspect, hurt)
    }
}

fn mark(rig: &Rig, path: &str, mark: &str, value: impl AsRef<[u8]>) {
    set(
        &rig.at(path),
        &format!("trusted.overlay.{mark}"),
        value.as_ref(),
    );
}

fn entry(rig: &Rig) -> PathBuf {
    rig.at("work/index").join(&index(rig)[0])
}

/// The stored handle of something below `base`.
fn handle(rig: &Rig, path: &str) -> Vec<u8> {
    let file = fs::File::open(rig.at(path)).unwrap();
    let found = vellum_sys::handle::of(&file).unwrap().unwrap();
    let stored = get(&rig.at("upper/keep"), "trusted.overlay.origin").unwrap();
    let stored = Handle::parse(&stored).unwrap().unwrap();
    let handle = Handle {
        kind: found.kind as u8,
        bytes: found.bytes,
        ..stored
    };
    handle.encode().unwrap()
}

const DAMAGES: &[Damage] = &[
    // Redirects.
    error("an empty redirect", "upper/moved", "redirect", |rig| {
        mark(rig, "upper/moved", "redirect", "");
    }),
    error(
        "a redirect to the parent",
        "upper/moved",
        "redirect",
        |rig| {
            mark(rig, "upper/moved", "redirect", "..");
        },
    ),
    error(
        "a redirect out of the union",
        "upper/moved",
        "redirect",
        |rig| {
            mark(rig, "upper/moved", "redirect", "/../etc");
        },
    ),
    error(
        "a relative redirect with a slash",
        "upper/moved",
        "redirect",
        |rig| {
            mark(rig, "upper/moved", "redirect", "deep/er");
        },
    ),
    error(
        "a redirect with a component too long",
        "upper/moved",
        "redirect",
        |rig| {
            mark(
                rig,
                "upper/moved",
                "redirect",
                format!("/{}", "x".repeat(256)),
            );
        },
    ),
    error("a redirect with a NUL", "upper/moved", "redirect", |rig| {
        mark(rig, "upper/moved", "redirect", "di\0r");
    }),
    error(
        "a redirect to no sibling",
        "upper/moved",
        "redirect",
        |rig| {
            mark(rig, "upper/moved", "redirect", "nowhere");
        },
    ),
    error("a redirect to no path", "upper/moved", "redirect", |rig| {
        mark(rig, "upper/moved", "redirect", "/no/where");
    }),
    error(
        "a directory's redirect to a file",
        "upper/moved",
        "redirect",
        |rig| {
            mark(rig, "upper/moved", "redirect", "/meta");
        },
    ),
    error(
        "a redirect through a whiteout",
        "upper/moved",
        "redirect",
        |rig| {
            whiteout(&rig.at("top/dir"), 0);
        },
    ),
    error(
        "a redirect through an opaque directory",
        "upper/er",
        "redirect",
        |rig| {
            fs::create_dir(rig.at("top/deep")).unwrap();
            mark(rig, "top/deep", "opaque", "y");
        },
    ),
    error("a redirect through a file", "upper/er", "redirect", |rig| {
        fs::write(rig.at("top/deep"), "").unwrap();
    }),
    error(
        "a redirect's target was removed",
        "upper/moved",
        "redirect",
        |rig| {
            fs::remove_dir_all(rig.at("base/dir")).unwrap();
        },
    ),
    error(
        "a redirect in the lowest layer",
        "base/left",
        "redirect",
        |rig| {
            mark(rig, "base/left", "redirect", "/dir");
        },
    ),
    error(
        "a redirect on a symbolic link",
        "upper/newlink",
        "redirect",
        |rig| {
            mark(rig, "upper/newlink", "redirect", "keep");
        },
    ),
    error("a redirect on the root", "upper", "redirect", |rig| {
        mark(rig, "upper", "redirect", "/dir");
    }),
    remark(
        "a redirect on a file with its data",
        "upper/keep",
        "redirect",
        |rig| {
            mark(rig, "upper/keep", "redirect", "/meta");
        },
    ),
    error(
        "two redirects to one directory",
        "upper/second",
        "redirect",
        |rig| {
            fs::create_dir(rig.at("upper/second")).unwrap();
            mark(rig, "upper/second", "redirect", "/dir");
        },
    ),
    error(
        "the old place of a directory is not hidden",
        "upper/moved",
        "redirect",
        |rig| {
            fs::remove_file(rig.at("upper/dir")).unwrap();
        },
    ),
    error(
        "a directory shown within itself",
        "upper/left/again",
        "redirect",
        |rig| {
            fs::create_dir_all(rig.at("upper/left/again")).unwrap();
            mark(rig, "upper/left/again", "redirect", "/left");
        },
    ),
    remark(
        "a redirect on an opaque directory",
        "upper/old",
        "redirect",
        |rig| {
            mark(rig, "upper/old", "redirect", "/left");
        },
    ),
    // Metacopies.
    error(
        "a metacopy's data was removed",
        "upper/meta",
        "metacopy",
        |rig| {
            fs::remove_file(rig.at("base/meta")).unwrap();
        },
    ),
    error(
        "a metacopy's data is a directory",
        "upper/meta",
        "metacopy",
        |rig| {
            mark(rig, "upper/meta", "redirect", "/left");
        },
    ),
    error(
        "a metacopy of another size",
        "upper/meta",
        "metacopy",
        |rig| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(rig.at("upper/meta"));
            file.unwrap().set_len(100).unwrap();
        },
    ),
    error(
        "a metacopy's data has another size",
        "upper/meta",
        "metacopy",
        |rig| {
            fs::write(rig.at("base/meta"), "something else\n").unwrap();
        },
    ),
    error(
        "a metacopy with half a digest",
        "upper/meta",
        "metacopy",
        |rig| {
            mark(
                rig,
                "upper/meta",
                "metacopy",
                [&[0, 14, 0, 1][..], &[7; 10]].concat(),
            );
        },
    ),
    error(
        "a metacopy of another version",
        "upper/meta",
        "metacopy",
        |rig| {
            mark(rig, "upper/meta", "metacopy", [9, 4, 0, 0]);
        },
    ),
    error(
        "a metacopy of three bytes",
        "upper/meta",
        "metacopy",
        |rig| {
            mark(rig, "upper/meta", "metacopy", [0, 3, 0]);
        },
    ),
    error(
        "a metacopy with a wrong length",
        "upper/meta",
        "metacopy",
        |rig| {
            mark(rig, "upper/meta", "metacopy", [0, 5, 0, 0]);
        },
    ),
    error(
        "a metacopy mark on a directory",
        "upper/moved",
        "metacopy",
        |rig| {
            mark(rig, "upper/moved", "metacopy", "");
        },
    ),
    error(
        "a metacopy in the lowest layer",
        "base/keep",
        "metacopy",
        |rig| {
            mark(rig, "base/keep", "metacopy", "");
        },
    ),
    // Files copied up block by block.
    error(
        "an unsettled file without a map",
        "upper/meta",
        "map",
        |rig| {
            mark(rig, "upper/meta", "metacopy", [0]);
        },
    ),
    error(
        "an unsettled file in a lower layer",
        "base/keep",
        "metacopy",
        |rig| {
            mark(rig, "base/keep", "metacopy", [0]);
        },
    ),
    error("the name of a map is damaged", "upper/new", "map", |rig| {
        mark(rig, "upper/new", "vellum.blocks", "ABC");
    }),
    remark("a settled file names a map", "upper/new", "map", |rig| {
        mark(
            rig,
            "upper/new",
            "vellum.blocks",
            "0123456789abcdef0123456789abcdef",
        );
    }),
    error("a map is not there", "upper/meta", "map", |rig| {
        mark(rig, "upper/meta", "metacopy", [0]);
        mark(
            rig,
            "upper/meta",
            "vellum.blocks",
            "0123456789abcdef0123456789abcdef",
        );
    }),
    // Origins.
    error("a short origin", "upper/keep", "origin", |rig| {
        mark(rig, "upper/keep", "origin", [0, 0xfb, 3]);
    }),
    error(
        "an origin with another magic",
        "upper/keep",
        "origin",
        |rig| {
            let mut value = get(&rig.at("upper/keep"), "trusted.overlay.origin").unwrap();
            value[1] = 0xfa;
            mark(rig, "upper/keep", "origin", value);
        },
    ),
    remark(
        "an origin that no longer exists",
        "upper/keep",
        "origin",
        |rig| {
            fs::remove_file(rig.at("base/keep")).unwrap();
        },
    ),
    error("an origin of another type", "upper/keep", "origin", |rig| {
        let value = handle(rig, "base/left");
        mark(rig, "upper/keep", "origin", value);
    }),
    // Impure directories.
    remark(
        "a directory is no longer impure",
        "upper",
        "impure",
        |rig| {
            unset(&rig.at("upper"), "trusted.overlay.impure");
        },
    ),
    error(
        "an impure mark of another value",
        "upper",
        "impure",
        |rig| {
            mark(rig, "upper", "impure", "n");
        },
    ),
    error("an impure mark on a file", "upper/new", "impure", |rig| {
        mark(rig, "upper/new", "impure", "y");
    }),
    // Opaque directories.
    error(
        "an opaque mark of another value",
        "upper/old",
        "opaque",
        |rig| {
            mark(rig, "upper/old", "opaque", "n");
        },
    ),
    error(
        "an opaque mark of another value in a lower layer",
        "top/only",
        "opaque",
        |rig| {
            mark(rig, "top/only", "opaque", "yes");
        },
    ),
    error(
        "an opaque mark of another value on a root",
        "top",
        "opaque",
        |rig| {
            mark(rig, "top", "opaque", "?");
        },
    ),
    error("an opaque mark on a file", "upper/new", "opaque", |rig| {
        mark(rig, "upper/new", "opaque", "y");
    }),
    remark("an opaque root", "top", "opaque", |rig| {
        mark(rig, "top", "opaque", "y")
    }),
    error("opaque marks that disagree", "upper/old", "opaque", |rig| {
        set(&rig.at("upper/old"), "user.overlay.opaque", b"x");
    }),
    error(
        "an opaque mark for fuse-overlayfs only",
        "upper/only",
        "opaque",
        |rig| {
            set(&rig.at("upper/only"), "user.fuseoverlayfs.opaque", b"y");
        },
    ),
    error(
        "fuse-overlayfs's mark with another value",
        "upper/old",
        "opaque",
        |rig| {
            set(&rig.at("upper/old"), "user.fuseoverlayfs.opaque", b"1");
        },
    ),
    // Whiteouts.
    remark(
        "a whiteout that hides nothing",
        "upper/nothing",
        "whiteout",
        |rig| {
            whiteout(&rig.at("upper/nothing"), 0);
        },
    ),
    remark(
        "a whiteout that hides nothing in a lower layer",
        "base/nothing",
        "whiteout",
        |rig| {
            whiteout(&rig.at("base/nothing"), 0);
        },
    ),
    remark(
        "a whiteout with permissions",
        "upper/left",
        "whiteout",
        |rig| {
            whiteout(&rig.at("upper/left"), 0o4777);
        },
    ),
    error(
        "a whiteout with an opaque mark",
        "upper/gone",
        "opaque",
        |rig| {
            fs::remove_file(rig.at("upper/gone")).unwrap();
            whiteout(&rig.at("upper/gone"), 0);
            mark(rig, "upper/gone", "opaque", "y");
        },
    ),
    remark("a block device 0:0", "upper/block", "whiteout", |rig| {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let path = rig.at("upper/block");
        mknodat(CWD, &path, FileType::BlockDevice, Mode::empty(), 0).unwrap();
    }),
    error(
        "a whiteout in an attribute, in the upper",
        "upper/left",
        "whiteout",
        |rig| {
            fs::write(rig.at("upper/left"), "").unwrap();
            mark(rig, "upper/left", "whiteout", "");
        },
    ),
    error(
        "one in a directory that doesn't say so",
        "top/only/keep",
        "whiteout",
        |rig| {
            fs::create_dir(rig.at("base/only")).unwrap();
            fs::write(rig.at("base/only/keep"), "").unwrap();
            fs::write(rig.at("top/only/keep"), "").unwrap();
            mark(rig, "top/only/keep", "whiteout", "");
        },
    ),
    error("one with content", "top/only/x", "whiteout", |rig| {
        fs::write(rig.at("top/only/x"), "content").unwrap();
        mark(rig, "top/only/x", "whiteout", "");
        mark(rig, "top/only", "opaque", "x");
    }),
    error("one on a directory", "top/only", "whiteout", |rig| {
        mark(rig, "top/only", "whiteout", "");
    }),
    remark(
        "a .wh. name among the kernel's marks",
        "upper/.wh.left",
        "name",
        |rig| {
            fs::write(rig.at("upper/.wh.left"), "").unwrap();
        },
    ),
    error(
        "a .wh. name that hides nothing",
        "base/.wh.",
        "whiteout",
        |rig| {
            fs::write(rig.at("base/.wh."), "").unwrap();
        },
    ),
    error("a .wh. directory", "base/.wh.x", "whiteout", |rig| {
        fs::create_dir(rig.at("base/.wh.x")).unwrap();
    }),
    remark(
        "a .wh. file with content",
        "base/.wh.x",
        "whiteout",
        |rig| {
            fs::write(rig.at("base/.wh.x"), "content").unwrap();
        },
    ),
    // Other marks.
    error(
        "a link count that is not a number",
        "upper/linked",
        "nlink",
        |rig| {
            mark(rig, "upper/linked", "nlink", "X+1");
        },
    ),
    error(
        "a link count on a directory",
        "upper/moved",
        "nlink",
        |rig| {
            mark(rig, "upper/moved", "nlink", "U+1");
        },
    ),
    error(
        "an index's mark outside of it",
        "upper/moved",
        "upper",
        |rig| {
            let value = handle(rig, "base/left");
            mark(rig, "upper/moved", "upper", value);
        },
    ),
    error(
        "an unknown flag in protattr",
        "upper/keep",
        "protattr",
        |rig| {
            mark(rig, "upper/keep", "protattr", "z");
        },
    ),
    error(
        "protattr on a symbolic link",
        "upper/newlink",
        "protattr",
        |rig| {
            mark(rig, "upper/newlink", "protattr", "i");
        },
    ),
    error("a short uuid", "upper", "uuid", |rig| {
        mark(rig, "upper", "uuid", "short")
    }),
    remark("a uuid on a file", "upper/new", "uuid", |rig| {
        mark(rig, "upper/new", "uuid", [7; 16])
    }),
    error("a short number", "upper/keep", "vellum.ino", |rig| {
        mark(rig, "upper/keep", "vellum.ino", [7; 8]);
    }),
    remark("a trial that was not removed", "upper", "probe", |rig| {
        mark(rig, "upper", "vellum.probe", "");
    }),
    remark("an unknown mark", "upper/new", "unknown", |rig| {
        mark(rig, "upper/new", "unheard-of", "x");
    }),
    remark(
        "the mark of an inner overlay",
        "upper/old",
        "escaped",
        |rig| {
            mark(rig, "upper/old", "overlay.opaque", "y");
        },
    ),
    remark(
        "a mark that another mount would read",
        "upper/old",
        "dialect",
        |rig| {
            set(&rig.at("upper/old"), "user.overlay.redirect", b"/left");
        },
    ),
    error(
        "a record of an owner that is none",
        "base/keep",
        "override_stat",
        |rig| {
            set(
                &rig.at("base"),
                "user.containers.override_stat",
                b"0:0:0755",
            );
            set(
                &rig.at("base/keep"),
                "user.containers.override_stat",
                b"root:root:0644",
            );
        },
    ),
    remark("a hard link out of the layer", "upper/new", "link", |rig| {
        fs::hard_link(rig.at("upper/new"), rig.at("elsewhere")).unwrap();
    }),
    // The index.
    error(
        "an entry that is not a handle",
        "work/index/zz",
        "index",
        |rig| {
            fs::write(rig.at("work/index/zz"), "").unwrap();
        },
    ),
    error(
        "an entry with half a digit",
        "work/index/00f",
        "index",
        |rig| {
            fs::write(rig.at("work/index/00f"), "").unwrap();
        },
    ),
    error(
        "an entry under another name",
        "work/index",
        "index",
        |rig| {
            let name = hex(&handle(rig, "base/left/x"));
            fs::rename(entry(rig), rig.at("work/index").join(name)).unwrap();
        },
    ),
    error(
        "a file whose entry is gone",
        "upper/linked",
        "index",
        |rig| {
            fs::remove_file(entry(rig)).unwrap();
        },
    ),
    error("an entry without an origin", "work/index", "index", |rig| {
        unset(&entry(rig), "trusted.overlay.origin");
    }),
    error(
        "an entry whose lower file is gone",
        "work/index",
        "index",
        |rig| {
            fs::remove_file(rig.at("base/linked")).unwrap();
            fs::remove_file(rig.at("base/twin")).unwrap();
        },
    ),
    error(
        "an entry that counts too many names",
        "work/index",
        "nlink",
        |rig| {
            set(&entry(rig), "trusted.overlay.nlink", b"U+7");
        },
    ),
    error(
        "an entry that counts too few names",
        "work/index",
        "nlink",
        |rig| {
            set(&entry(rig), "trusted.overlay.nlink", b"U-2");
        },
    ),
    remark("an entry without a count", "work/index", "nlink", |rig| {
        unset(&entry(rig), "trusted.overlay.nlink");
    }),
    error(
        "a whiteout in the index of a file that shows",
        "work/index",
        "index",
        |rig| {
            let name = hex(&handle(rig, "base/left/x"));
            whiteout(&rig.at("work/index").join(name), 0);
        },
    ),
    error(
        "a directory's entry that names no directory",
        "work/index",
        "index",
        |rig| {
            let name = hex(&handle(rig, "base/left"));
            fs::create_dir(rig.at("work/index").join(name)).unwrap();
        },
    ),
    error(
        "a second copy of one file",
        "upper/linked",
        "index",
        |rig| {
            fs::copy(rig.at("upper/linked"), rig.at("upper/copy")).unwrap();
            let origin = get(&rig.at("upper/linked"), "trusted.overlay.origin").unwrap();
            let nlink = get(&rig.at("upper/linked"), "trusted.overlay.nlink").unwrap();
            mark(rig, "upper/copy", "origin", origin);
            mark(rig, "upper/copy", "nlink", nlink);
            fs::rename(rig.at("upper/copy"), rig.at("upper/linked")).unwrap();
        },
    ),
    error("another upper's index", "work/index", "upper", |rig| {
        let mut value = get(&rig.at("work/index"), "trusted.overlay.upper").unwrap();
        let last = value.len() - 1;
        value[last] ^= 1;
        set(&rig.at("work/index"), "trusted.overlay.upper", &value);
    }),
    error(
        "an index for another lower layer",
        "upper",
        "origin",
        |rig| {
            let value = handle(rig, "base");
            mark(rig, "upper", "origin", value);
        },
    ),
    remark(
        "an index that says not whose it is",
        "work/index",
        "upper",
        |rig| {
            unset(&rig.at("work/index"), "trusted.overlay.upper");
        },
    ),
    remark(
        "a temporary file in the index",
        "work/index/#1f",
        "index",
        |rig| {
            fs::write(rig.at("work/index/#1f"), "").unwrap();
        },
    ),
    remark(
        "a whiteout in the index for a removed file",
        "work/index",
        "index",
        |rig| {
            let name = hex(&handle(rig, "base/gone"));
            whiteout(&rig.at("work/index").join(name), 0);
        },
    ),
    // The work directory.
    remark(
        "something foreign in the work directory",
        "work/mine",
        "work",
        |rig| {
            fs::create_dir(rig.at("work/mine")).unwrap();
        },
    ),
    error(
        "a file in the place of work/work",
        "staging",
        "work",
        |rig| {
            fs::remove_dir_all(rig.at("staging")).unwrap();
            fs::write(rig.at("staging"), "").unwrap();
        },
    ),
    remark("an unfinished copy", "staging/#2f", "work", |rig| {
        fs::write(rig.at("staging/#2f"), "half").unwrap();
    }),
    error(
        "an unknown feature",
        "staging/incompat/magic",
        "incompat",
        |rig| {
            fs::create_dir_all(rig.at("staging/incompat/magic")).unwrap();
        },
    ),
    error(
        "a volatile mount",
        "staging/incompat/volatile",
        "volatile",
        |rig| {
            fs::create_dir_all(rig.at("staging/incompat/volatile/dirty")).unwrap();
        },
    ),
    remark(
        "an engine that was killed",
        "staging/incompat/vellum-open",
        "incompat",
        |rig| {
            fs::create_dir_all(rig.at("staging/incompat/vellum-open")).unwrap();
        },
    ),
    error(
        "half a conversion",
        "staging/incompat/layer-convert",
        "incompat",
        |rig| {
            fs::create_dir_all(rig.at("staging/incompat/layer-convert")).unwrap();
        },
    ),
    remark(
        "a refusal without a reason",
        "staging/incompat/vellum-blocks",
        "incompat",
        |rig| {
            fs::create_dir_all(rig.at("staging/incompat/vellum-blocks")).unwrap();
        },
    ),
    remark(
        "a map of no file",
        "work/vellum/blocks/0123456789abcdef0123456789abcdef",
        "map",
        |rig| {
            fs::create_dir_all(rig.at("work/vellum/blocks")).unwrap();
            let name = "0123456789abcdef0123456789abcdef";
            fs::write(rig.at("work/vellum/blocks").join(name), "").unwrap();
        },
    ),
    remark(
        "an unfinished map",
        "work/vellum/blocks/.tmp-1",
        "map",
        |rig| {
            fs::create_dir_all(rig.at("work/vellum/blocks")).unwrap();
            fs::write(rig.at("work/vellum/blocks/.tmp-1"), "").unwrap();
        },
    ),
    error(
        "a record of another upper",
        "work/vellum/layer",
        "work",
        |rig| {
            fs::create_dir_all(rig.at("work").join(workdir::OWN)).unwrap();
            let record = r#"{"version":1,"upper_ino":1}"#;
            fs::write(rig.at("work/vellum/layer"), record).unwrap();
        },
    ),
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the kernel says about the overlay: its mount, everything it lists, and names that it may
/// have left out of a listing.
fn by_kernel(rig: &Rig) -> Result<(), String> {
    let merged = rig.mount(ALL)?;
    let mut said = Ok(());
    let mut left = vec![merged.clone()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    said = Err(format!("{}: {error}", dir.display()));
                    break;
                }
            };
            match look(&path) {
                Ok(true) => left.push(path),
                Ok(false) => {}
                Err(error) => said = Err(format!("{}: {error}", path.display())),
            }
        }
    }
    for name in [
        "meta", "keep", "linked", "twin", "moved", "er", "old", "link", "left/x",
    ] {
        let path = merged.join(name);
        match look(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                said = Err(format!("{}: {error}", path.display()));
            }
            _ => {}
        }
    }
    rig.unmount();
    said
}

/// Looks a name up, and reads a file. Returns whether it is a directory.
fn look(path: &Path) -> std::io::Result<bool> {
    let found = path.symlink_metadata()?;
    if found.is_file() {
        fs::File::open(path)?.read_to_end(&mut Vec::new())?;
    }
    Ok(found.is_dir())
}

fn is_about(wrong: &Wrong, rig: &Rig, damage: &Damage) -> bool {
    let place = rig.at(damage.path);
    // Names of index entries are not known beforehand.
    let here =
        wrong.what == place || damage.path == "work/index" && wrong.what.parent() == Some(&place);
    here && wrong.aspect == damage.aspect && wrong.severity == damage.severity
}

#[test]
fn every_damage_is_found_by_its_path_and_what_the_kernel_refuses_is_an_error() {
    let mut missed = Vec::new();
    let mut refused = 0;
    for damage in DAMAGES {
        let Some(rig) = made() else { return };
        (damage.hurt)(&rig);
        let found = rig.check();
        if !found.iter().any(|wrong| is_about(wrong, &rig, damage)) {
            missed.push(format!("{}: {found:#?}", damage.name));
        }
        let errors = found.iter().any(|wrong| wrong.severity == "error");
        if let Err(said) = by_kernel(&rig) {
            refused += 1;
            println!("{}: the kernel: {said}", damage.name);
            // Vellum's own entries are there to keep kernels out; nothing is wrong with them.
            if !errors && damage.aspect != "incompat" {
                missed.push(format!("{}: the kernel says {said}", damage.name));
            }
        }
    }
    println!(
        "{} kinds, {refused} of them refused by the kernel",
        DAMAGES.len()
    );
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// An upper with a file that the engine has copied up in part.
fn unsettled() -> Option<Rig> {
    let rig = Rig::new()?;
    fs::write(rig.at("base/big"), vec![b'x'; 100_000]).unwrap();
    let at = |name: &str| rig.at(name).display().to_string();
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={},blocks=4k",
        at("top"),
        at("base"),
        at("upper"),
        at("work")
    );
    let mut mount = command(VELLUM, &["overlay", "-o", &options]);
    let done = said(mount.arg(rig.at("merged")).output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
    rig.scratch.adopt_mount(&rig.at("merged"));
    let file = fs::OpenOptions::new()
        .write(true)
        .open(rig.at("merged/big"));
    std::os::unix::fs::FileExt::write_all_at(&file.unwrap(), b"changed", 50_000).unwrap();
    rig.unmount();
    wait_free(&rig.at("upper"));
    rig.assert_clean("an unsettled upper");
    Some(rig)
}

fn map(rig: &Rig) -> PathBuf {
    let mut maps = fs::read_dir(rig.at("work/vellum/blocks")).unwrap();
    maps.next().expect("a map").unwrap().path()
}

#[test]
fn damaged_block_maps_are_found() {
    type Kind = (&'static str, &'static str, &'static str, fn(&Rig));
    let damages: &[Kind] = &[
        ("the map is gone", "upper/big", "map", |rig| {
            fs::remove_file(map(rig)).unwrap()
        }),
        ("the map is damaged", "upper/big", "map", |rig| {
            let mut bytes = fs::read(map(rig)).unwrap();
            bytes[20] ^= 1;
            fs::write(map(rig), bytes).unwrap();
        }),
        ("the lower file has changed", "upper/big", "map", |rig| {
            fs::write(rig.at("base/big"), vec![b'y'; 100_000]).unwrap();
        }),
        ("the lower file is gone", "upper/big", "map", |rig| {
            fs::remove_file(rig.at("base/big")).unwrap();
        }),
        ("the upper file is a copy", "upper/big", "map", |rig| {
            let copied = command("cp", &["-a", "--", "big", "copy"])
                .current_dir(rig.at("upper"))
                .status();
            assert!(copied.unwrap().success());
            fs::rename(rig.at("upper/copy"), rig.at("upper/big")).unwrap();
        }),
        (
            "kernels are not kept out",
            "staging/incompat/vellum-blocks",
            "incompat",
            |rig| {
                fs::remove_dir(rig.at("staging/incompat/vellum-blocks")).unwrap();
            },
        ),
    ];
    for (name, path, aspect, hurt) in damages {
        let Some(rig) = unsettled() else { return };
        hurt(&rig);
        let found = rig.check();
        let wanted = |wrong: &Wrong| {
            (wrong.what.as_path(), wrong.aspect, wrong.severity)
                == (rig.at(path).as_path(), *aspect, "error")
        };
        assert!(found.iter().any(wanted), "{name}: {found:#?}");
    }
}

#[test]
fn marks_that_kernels_ignore_need_a_refusal() {
    let Some(mut rig) = Rig::new() else { return };
    rig.user_xattr = true;
    fs::create_dir(rig.at("base/dir")).unwrap();
    let at = |name: &str| rig.at(name).display().to_string();
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={},userxattr",
        at("top"),
        at("base"),
        at("upper"),
        at("work")
    );
    let mut mount = command(VELLUM, &["overlay", "-o", &options]);
    let done = said(mount.arg(rig.at("merged")).output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
    rig.scratch.adopt_mount(&rig.at("merged"));
    fs::rename(rig.at("merged/dir"), rig.at("merged/moved")).unwrap();
    rig.unmount();
    wait_free(&rig.at("upper"));
    rig.assert_clean("a plain user's upper with a redirect");
    let refusal = rig.at("staging/incompat/vellum-marks");
    fs::remove_dir(&refusal).unwrap();
    let found = rig.check();
    let is_it = |wrong: &Wrong| wrong.what == refusal && wrong.severity == "error";
    assert!(found.iter().any(is_it), "{found:#?}");
}

#[test]
fn directories_that_no_overlay_can_have_are_found() {
    let Some(rig) = Rig::new() else { return };
    let given = rig.directories();
    let expect = |directories: &Directories, place: &Path, why: &str, severity: &str| {
        let found = checked(directories);
        let is_it = |wrong: &Wrong| {
            wrong.what == place && wrong.why.contains(why) && wrong.severity == severity
        };
        assert!(found.iter().any(is_it), "{why}: {found:#?}");
    };
    let other = rig.scratch.file_system("other", FsKind::Tmpfs, 4).unwrap();
    let work = Directories {
        work: Some(other.clone()),
        ..given.clone()
    };
    expect(&work, &other, "on the upper's file system", "error");
    fs::create_dir_all(rig.at("upper/inner")).unwrap();
    let inner = Directories {
        work: Some(rig.at("upper/inner")),
        ..given.clone()
    };
    expect(
        &inner,
        &rig.at("upper/inner"),
        "must not contain each other",
        "error",
    );
    let twice = Directories {
        lowers: vec![rig.at("top"), rig.at("base"), rig.at("top")],
        ..given.clone()
    };
    expect(&twice, &rig.at("top"), "the same directory", "error");
    let in_upper = Directories {
        lowers: vec![rig.at("upper/inner"), rig.at("base")],
        ..given.clone()
    };
    expect(
        &in_upper,
        &rig.at("upper/inner"),
        "lies in another layer",
        "error",
    );
    fs::create_dir(rig.at("base/inner")).unwrap();
    let in_lower = Directories {
        lowers: vec![rig.at("base/inner"), rig.at("base")],
        ..given.clone()
    };
    expect(
        &in_lower,
        &rig.at("base/inner"),
        "lies in another layer",
        "error",
    );
    let upper_below = Directories {
        lowers: vec![rig.base.clone()],
        ..given.clone()
    };
    let severity = match kernel_takes(&rig, &[&rig.base]) {
        true => "remark",
        false => "error",
    };
    expect(
        &upper_below,
        &rig.at("upper"),
        "lies in another layer",
        severity,
    );
    for lowers in [&twice.lowers, &in_upper.lowers, &in_lower.lowers] {
        let lowers: Vec<_> = lowers.iter().map(PathBuf::as_path).collect();
        assert!(!kernel_takes(&rig, &lowers), "{lowers:?}");
    }
    let many = Directories {
        lowers: (0..501)
            .map(|number| {
                let path = rig.at(format!("many/{number}"));
                fs::create_dir_all(&path).unwrap();
                path
            })
            .collect(),
        ..given
    };
    expect(&many, &rig.at("upper"), "501 lower layers", "error");
}

fn kernel_takes(rig: &Rig, lowers: &[&Path]) -> bool {
    let at = rig.scratch.dir("kernels");
    let overlay = vellum_testkit::kernel::Overlay {
        lowers: lowers.iter().map(|path| path.to_path_buf()).collect(),
        upper: Some((rig.at("upper"), rig.at("work"))),
        ..Default::default()
    };
    let took = overlay.mount(&rig.scratch, &at).is_ok();
    if took {
        rig.scratch.unmount(&at);
    }
    took
}

#[test]
fn one_line_names_each_finding_whatever_the_name() {
    let Some(rig) = made() else { return };
    let odd = "two\nlines\u{1b}[31m";
    fs::create_dir(rig.at("upper").join(odd)).unwrap();
    mark(&rig, &format!("upper/{odd}"), "opaque", "maybe\n");
    let at = |name: &str| rig.at(name).display().to_string();
    let lowers = format!("{}:{}", at("top"), at("base"));
    let (upper, work) = (at("upper"), at("work"));
    let mut args = vec![
        "check", "--layers", &lowers, "--upper", &upper, "--work", &work,
    ];
    let text = said(command(VELLUM, &args).output().unwrap());
    assert_eq!(text.code, 1, "{}", text.err);
    let lines: Vec<_> = text
        .out
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(lines.len(), 1, "{}", text.out);
    assert!(
        lines[0].contains(r"two\nlines\u{1b}[31m: opaque: "),
        "{}",
        lines[0]
    );
    args.push("--json");
    let json = said(command(VELLUM, &args).output().unwrap());
    let found: Vec<serde_json::Value> = serde_json::from_str(&json.out).unwrap();
    let wrong = found
        .iter()
        .find(|wrong| wrong["severity"] == "error")
        .unwrap();
    let path = format!("/{odd}");
    assert_eq!(
        (wrong["role"].as_str(), wrong["path"].as_str()),
        (Some("upper"), Some(&*path))
    );
    let mut names: Vec<_> = wrong
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    let fields = [
        "aspect", "expected", "found", "layer", "path", "role", "severity", "what", "why",
    ];
    assert_eq!(names, fields);
}

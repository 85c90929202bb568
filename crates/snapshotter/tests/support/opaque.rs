//! Layers as lists of entries: written as tars, or put into an overlay's upper as containerd's own
//! differ does.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use vellum_testkit::clients::run;

/// One entry of a layer. Files and directories belong to 7:8 and are old.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Put {
    /// A directory with its mode, and `user.kept` = its path if the mode is an odd number.
    Dir(&'static str, u32),
    /// A file that holds its own path.
    File(&'static str),
    /// A whiteout.
    Gone(&'static str),
    /// An opaque mark, and no entry for the directory.
    Opaque(&'static str),
}

use Put::{Dir, File, Gone, Opaque};

/// Returns the layer as a tar, made of files below `scratch`.
pub fn tar(layer: &[Put], scratch: &Path) -> Vec<u8> {
    let mut command = Command::new("tar");
    let xattrs = ["--xattrs", "--xattrs-include=user.*"];
    command
        .args(["--format=pax", "--no-recursion", "-c"])
        .args(xattrs);
    command.arg("-C").arg(scratch);
    for put in layer {
        let (path, empty) = match *put {
            Dir(path, _) | File(path) => (path.to_owned(), false),
            Gone(path) => match path.rsplit_once('/') {
                Some((dir, name)) => (format!("{dir}/.wh.{name}"), true),
                None => (format!(".wh.{path}"), true),
            },
            Opaque(path) => (format!("{path}/.wh..wh..opq"), true),
        };
        if empty {
            fs::create_dir_all(scratch.join(&path).parent().unwrap()).unwrap();
            fs::write(scratch.join(&path), "").unwrap();
        }
        command.arg(path);
    }
    let plain = |put: &&Put| matches!(put, Dir(..) | File(_));
    let plain: Vec<Put> = layer.iter().filter(plain).copied().collect();
    unpack_as_containerd(&plain, scratch, &[]);
    let out = command.output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    fs::remove_dir_all(scratch).unwrap();
    out.stdout
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path) {
    run(Command::new("touch").args(["-d", "2001-02-03"]).arg(path)).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &str) {
    run(Command::new("setfattr")
        .args(["-n", name, "-v", value])
        .arg(path))
    .unwrap();
}

/// Puts the layer into `upper` as containerd's `archive.Apply` does for an overlay on `lowers`,
/// topmost first: missing directories are created like those in the first of `lowers` that has
/// them, else owned by root with mode 0755.
pub fn unpack_as_containerd(layer: &[Put], upper: &Path, lowers: &[std::path::PathBuf]) {
    for put in layer {
        let (Dir(path, _) | File(path) | Gone(path)) = *put else {
            let Opaque(path) = *put else { continue };
            make_parents(Path::new(path), upper, lowers);
            set_xattr(&upper.join(path), "trusted.overlay.opaque", "y");
            continue;
        };
        let at = upper.join(path);
        make_parents(Path::new(path).parent().unwrap(), upper, lowers);
        match *put {
            Dir(_, mode) => {
                fs::create_dir_all(&at).unwrap();
                chown(&at, Some(7), Some(8)).unwrap();
                set_mode(&at, mode);
                if mode != 0o755 {
                    set_xattr(&at, "user.kept", path);
                }
            }
            File(_) => {
                let _ = fs::remove_file(&at);
                fs::write(&at, path).unwrap();
                chown(&at, Some(7), Some(8)).unwrap();
                set_mode(&at, 0o640);
                set_time(&at);
            }
            _ => drop(run(Command::new("mknod").arg(&at).args(["c", "0", "0"])).unwrap()),
        }
    }
    for put in layer {
        if let Dir(path, _) = put {
            set_time(&upper.join(path));
        }
    }
}

fn make_parents(path: &Path, upper: &Path, lowers: &[std::path::PathBuf]) {
    let mut below: Vec<_> = path.ancestors().filter(|at| *at != Path::new("")).collect();
    below.reverse();
    for part in below {
        let at = upper.join(part);
        if at.is_dir() {
            continue;
        }
        fs::create_dir(&at).unwrap();
        set_mode(&at, 0o755);
        let model = lowers
            .iter()
            .map(|lower| lower.join(part))
            .find(|model| model.is_dir());
        let Some(model) = model else { continue };
        let meta = fs::metadata(&model).unwrap();
        let mut value = [0; 64];
        if let Ok(length) = rustix::fs::lgetxattr(&model, "user.kept", &mut value[..]) {
            set_xattr(
                &at,
                "user.kept",
                std::str::from_utf8(&value[..length]).unwrap(),
            );
        }
        chown(&at, Some(meta.uid()), Some(meta.gid())).unwrap();
        set_mode(&at, meta.mode() & 0o7777);
    }
}

/// Stacks of layers, the lowest first, each with a description.
pub const STACKS: &[(&str, &[&[Put]])] = &[
    ("opaque, and nothing else", &[BASE, &[Opaque("private")]]),
    (
        "opaque with an entry",
        &[BASE, &[Opaque("private"), File("private/new")]],
    ),
    (
        "an entry, then opaque",
        &[BASE, &[File("private/new"), Opaque("private")]],
    ),
    (
        "nested in one that is passed through",
        &[BASE, &[Opaque("private/deep")]],
    ),
    (
        "nested in an opaque one",
        &[
            BASE,
            &[
                Opaque("private"),
                Opaque("private/deep"),
                File("private/deep/new"),
            ],
        ],
    ),
    (
        "next to a whiteout",
        &[BASE, &[Opaque("private/deep"), Gone("private/old")]],
    ),
    (
        "listed after its mark",
        &[BASE, &[Opaque("private"), Dir("private", 0o711)]],
    ),
    (
        "listed before its mark",
        &[
            BASE,
            &[
                Dir("private", 0o711),
                Opaque("private"),
                File("private/new"),
            ],
        ],
    ),
    (
        "listed, as plain as can be",
        &[BASE, &[Dir("private", 0o755), Opaque("private")]],
    ),
    ("of nothing", &[BASE, &[Opaque("fresh"), File("fresh/new")]]),
    (
        "of the same directory, twice",
        &[
            BASE,
            &[Opaque("private"), File("private/one")],
            &[Opaque("private"), File("private/two")],
        ],
    ),
    (
        "through a layer that is silent",
        &[BASE, &[File("etc/other")], &[Opaque("private")]],
    ),
    (
        "through a layer that passes through",
        &[
            BASE,
            &[File("private/deep/other")],
            &[Opaque("private/deep")],
        ],
    ),
    (
        "over one that is listed again",
        &[
            BASE,
            &[Dir("private", 0o1777)],
            &[Opaque("private"), File("private/new")],
        ],
    ),
    (
        "several in one layer",
        &[BASE, &[Opaque("private"), Opaque("shared"), Opaque("etc")]],
    ),
    (
        "in the lowest layer",
        &[
            &[Opaque("private"), File("private/new")],
            &[Opaque("private")],
        ],
    ),
];

/// The base of most stacks.
pub const BASE: &[Put] = &[
    Dir("etc", 0o755),
    File("etc/conf"),
    Dir("private", 0o700),
    File("private/old"),
    Dir("private/deep", 0o2750),
    File("private/deep/old"),
    Dir("shared", 0o1777),
    File("shared/old"),
];

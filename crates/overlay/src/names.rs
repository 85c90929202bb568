//! The other names of `vellum overlay`, and the command lines of their callers. Pure.
//!
//! * `fuse-overlayfs [-f] [-d] [-o OPTIONS] [SOURCE] TARGET`: the form of containers/storage and
//!   Buildah, and of containerd through mount.fuse3, which adds a source. Unknown arguments are
//!   ignored with a message.
//! * `mount.fuse.vellum SOURCE TARGET [-sfnvrw] [-o OPTIONS] [-t TYPE] [-N NAMESPACE]`: the form of
//!   mount(8) for the type `fuse.vellum`. There `-f` means: do nothing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::options::listed;
use crate::parse::split;

/// A name the program may be called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `fuse-overlayfs`
    FuseOverlayfs,
    /// `mount.fuse.vellum`
    MountHelper,
}

impl Name {
    /// Returns the name that `called_as` (the first argument) stands for; `None` for all others,
    /// which mean the vellum command.
    pub fn of(called_as: &OsStr) -> Option<Name> {
        match Path::new(called_as).file_name()?.as_bytes() {
            b"fuse-overlayfs" => Some(Name::FuseOverlayfs),
            b"mount.fuse.vellum" | b"mount.fuse3.vellum" => Some(Name::MountHelper),
            _ => None,
        }
    }

    /// Returns the name itself.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::FuseOverlayfs => "fuse-overlayfs",
            Name::MountHelper => "mount.fuse.vellum",
        }
    }
}

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Help on usage.
    Help,
    /// The version.
    Version,
    /// Nothing: mount(8) does a dry run.
    Nothing,
    /// A mount.
    Mount(Call),
    /// Other flags for an existing mount, by mount(8)'s names.
    Remount {
        /// The mount point.
        target: PathBuf,
        /// All options; those that aren't flags stay as they are.
        options: Vec<String>,
    },
}

/// A mount as requested; its options are not parsed yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Call {
    /// The mount point.
    pub target: PathBuf,
    /// The values of all `-o`, in order.
    pub options: Vec<OsString>,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Arguments that mean nothing here and are left out.
    pub ignored: Vec<OsString>,
}

/// Parses the arguments after the name. Fails with one line if they name no mount.
pub fn read(name: Name, arguments: &[OsString]) -> Result<Asked, String> {
    let mut call = Call::default();
    let mut places = Vec::new();
    let mut nothing = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let bytes = argument.as_bytes();
        let mut value_of = |what: &str| {
            rest.next()
                .cloned()
                .ok_or_else(|| format!("{what} needs a value"))
        };
        match (name, bytes) {
            (_, b"-h" | b"--help") => return Ok(Asked::Help),
            (_, b"-V" | b"--version") => return Ok(Asked::Version),
            (_, b"-o") => call.options.push(value_of("-o")?),
            (_, [b'-', b'o', text @ ..]) => call.options.push(OsStr::from_bytes(text).to_owned()),
            (Name::FuseOverlayfs, b"-f") => call.foreground = true,
            (_, b"-d" | b"--debug") => call.options.push("debug".into()),
            (Name::MountHelper, b"-t" | b"-N") => drop(value_of("-t")?),
            (Name::MountHelper, [b'-', letters @ ..]) if !letters.is_empty() => {
                for letter in letters {
                    match letter {
                        b'f' => nothing = true,
                        b's' => call.options.insert(0, "sloppy".into()),
                        b'r' => call.options.push("ro".into()),
                        b'w' => call.options.push("rw".into()),
                        b'n' | b'v' => {}
                        _ => return Err(format!("unknown argument {}", argument.display())),
                    }
                }
            }
            (Name::FuseOverlayfs, [b'-', _, ..]) => call.ignored.push(argument.clone()),
            _ => places.push(PathBuf::from(argument)),
        }
    }
    match (places.len(), name) {
        (0, _) => return Err("no mount point is given".into()),
        (1, Name::MountHelper) => {
            return Err("a source and a mount point are needed".into());
        }
        (1 | 2, _) => {}
        (_, _) => return Err("too many arguments: expected a source and a mount point".into()),
    }
    call.target = places.pop().unwrap_or_default();
    // A string that can't be split has no such word; the mount reports its error.
    let words = call
        .options
        .iter()
        .filter_map(|text| split(text.as_bytes()).ok());
    let words: Vec<Vec<u8>> = words.flatten().collect();
    if name == Name::MountHelper && !nothing && words.iter().any(|word| word == b"remount") {
        let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
        return Ok(Asked::Remount {
            target: call.target,
            options: words.iter().map(text).collect(),
        });
    }
    if let (Some(source), Name::MountHelper) = (places.pop(), name) {
        // First, so that an option of that name wins.
        let mut text = OsString::from("fsname=");
        text.push(source);
        call.options.insert(0, text);
    }
    Ok(match nothing {
        true => Asked::Nothing,
        false => Asked::Mount(call),
    })
}

/// Returns the help of `name`: its usage and all options.
pub fn help(name: Name) -> String {
    format!(
        "{}\n\nOptions, separated by commas:\n{}",
        usage(name),
        listed()
    )
}

/// Returns the usage of `name`.
pub fn usage(name: Name) -> String {
    let line = match name {
        Name::FuseOverlayfs => {
            "fuse-overlayfs [-f] [-d] -o lowerdir=TOP:NEXT:...[,upperdir=DIR,workdir=DIR][,OPTION...] TARGET"
        }
        Name::MountHelper => {
            "mount -t fuse.vellum SOURCE TARGET -o lowerdir=TOP:NEXT:...[,upperdir=DIR,workdir=DIR][,OPTION...]"
        }
    };
    format!(
        "usage: {line}\n\nThis is Vellum {}, under the name {}. `vellum overlay --help` has examples and all options; docs/overlay.md explains them.",
        env!("CARGO_PKG_VERSION"),
        name.as_str()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: Name, words: &[&str]) -> Result<Asked, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        read(name, &words)
    }

    #[test]
    fn names_are_recognised_in_any_directory() {
        for (called_as, name) in [
            ("/usr/bin/fuse-overlayfs", Some(Name::FuseOverlayfs)),
            ("fuse-overlayfs", Some(Name::FuseOverlayfs)),
            ("/sbin/mount.fuse.vellum", Some(Name::MountHelper)),
            ("vellum", None),
            ("/opt/vellum-0.1", None),
            ("", None),
        ] {
            assert_eq!(Name::of(OsStr::new(called_as)), name, "{called_as}");
        }
    }

    #[test]
    fn callers_are_understood() {
        let mount = |target: &str, options: &[&str]| Call {
            target: target.into(),
            options: options.iter().map(OsString::from).collect(),
            ..Call::default()
        };
        for (name, words, expect) in [
            // containers/storage
            (
                Name::FuseOverlayfs,
                &["-o", "lowerdir=l/A,,volatile", "/m"][..],
                mount("/m", &["lowerdir=l/A,,volatile"]),
            ),
            // containerd, through mount.fuse3
            (
                Name::FuseOverlayfs,
                &["overlay", "/m", "-o", "lowerdir=/a,rw,dev,suid"],
                mount("/m", &["lowerdir=/a,rw,dev,suid"]),
            ),
            (
                Name::FuseOverlayfs,
                &["-olowerdir=/a", "-o", "ro", "/m"],
                mount("/m", &["lowerdir=/a", "ro"]),
            ),
            (
                Name::FuseOverlayfs,
                &["-f", "-s", "--shiny", "-o", "lowerdir=/a", "/m"],
                Call {
                    foreground: true,
                    ignored: vec!["-s".into(), "--shiny".into()],
                    ..mount("/m", &["lowerdir=/a"])
                },
            ),
            (Name::FuseOverlayfs, &["-d", "/m"], mount("/m", &["debug"])),
            // mount(8)
            (
                Name::MountHelper,
                &["none", "/m", "-o", "rw,lowerdir=/a"],
                mount("/m", &["fsname=none", "rw,lowerdir=/a"]),
            ),
            (
                Name::MountHelper,
                &[
                    "none",
                    "/m",
                    "-sn",
                    "-v",
                    "-r",
                    "-o",
                    "lowerdir=/a",
                    "-t",
                    "fuse.vellum",
                ],
                mount("/m", &["fsname=none", "sloppy", "ro", "lowerdir=/a"]),
            ),
        ] {
            assert_eq!(call(name, words), Ok(Asked::Mount(expect)), "{words:?}");
        }
        assert_eq!(
            call(Name::MountHelper, &["none", "/m", "-f"]),
            Ok(Asked::Nothing)
        );
        assert_eq!(
            call(
                Name::MountHelper,
                &[
                    "none",
                    "/m",
                    "-o",
                    "rw,lowerdir=/a\\,remount",
                    "-o",
                    "remount,ro"
                ]
            ),
            Ok(Asked::Remount {
                target: "/m".into(),
                options: ["rw", "lowerdir=/a\\,remount", "remount", "ro"]
                    .map(String::from)
                    .to_vec(),
            })
        );
        for name in [Name::MountHelper, Name::FuseOverlayfs] {
            assert_eq!(call(name, &["--version"]), Ok(Asked::Version));
            assert_eq!(call(name, &["-o", "x", "-h"]), Ok(Asked::Help));
        }
    }

    #[test]
    fn calls_without_a_mount_are_refused() {
        for (name, words) in [
            (Name::FuseOverlayfs, &[][..]),
            (Name::FuseOverlayfs, &["-o"]),
            (Name::FuseOverlayfs, &["a", "b", "c"]),
            (Name::MountHelper, &["/m", "-o", "lowerdir=/a"]),
            (Name::MountHelper, &["none", "/m", "-x"]),
        ] {
            assert!(call(name, words).is_err(), "{words:?}");
        }
    }
}

//! The `-o` strings of union mounts, as the kernel, fuse-overlayfs (1.x and 2.0), mount(8) and Vellum spell them, made into
//! [`MountOptions`]. Pure: text in, values out; nothing is looked up.
//!
//! How a string is read:
//! * options are separated by commas; `\,` is a comma in a value, and a value that begins with `"` goes to the closing one;
//! * paths: `\:`, `\,` and `\\` mean the second character. In `upperdir`, `workdir`, `lowerdir+` and `datadir+` a backslash before anything else
//!   is dropped, in `lowerdir` it stays, as fuse-overlayfs has it;
//! * `lowerdir=A:B::C::D`: A over B, and C and D for data only;
//! * an option given twice counts as it was given last, `lowerdir+` and `datadir+` add up;
//! * what only the other engine needs is accepted where leaving it out changes nothing a program could see, else refused with the reason.
//!
//! In [`Manners::FuseOverlayfs`] options that are not understood are returned as [`Parsed::unknown`], to be told once; a value that can't be
//! meant is an error there too.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use crate::options::{
    Access, CACHE_FOR, DataMode, Manners, MountOptions, OpenMode, Redirects, Settle, Trust, WhFiles,
};
use crate::values::parse_size;

mod text;

pub use text::split;
use text::{id_runs, lower_list, name_and_value, nearest, number, on_off, path, toggle};

/// Options, and what of the text means nothing here.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What is asked for.
    pub options: MountOptions,
    /// Options that nobody knows, as given. Empty unless they are tolerated.
    pub unknown: Vec<OsString>,
}

/// Why options can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct BadOption {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl BadOption {
    fn new(what: impl Into<String>) -> BadOption {
        BadOption {
            what: what.into(),
            hint: None,
        }
    }

    fn hinting(what: impl Into<String>, hint: impl Into<String>) -> BadOption {
        BadOption {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }
}

/// Reads the values of all `-o`, in order.
///
/// Errors if one can't be understood (see [`Manners`]), if there is no lower layer, or if an upper has no work directory or the other way round.
pub fn parse(manners: Manners, texts: &[OsString]) -> Result<Parsed, BadOption> {
    let mut reading = Reading {
        manners,
        options: MountOptions::new(manners),
        unknown: Vec::new(),
        squash_root: false,
        tolerant: manners == Manners::FuseOverlayfs,
        follows_named: false,
    };
    for text in texts {
        for option in split(text.as_bytes())? {
            reading.option(&option)?;
        }
    }
    reading.finish()
}

/// Who owns what somebody unknown makes, as everywhere (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// Options on their way.
struct Reading {
    manners: Manners,
    options: MountOptions,
    unknown: Vec<OsString>,
    squash_root: bool,
    /// What isn't understood is told and left out.
    tolerant: bool,
    /// Somebody asked by name for marks of lower layers to be followed.
    follows_named: bool,
}

impl Reading {
    fn option(&mut self, option: &[u8]) -> Result<(), BadOption> {
        let (name, value) = name_and_value(option);
        if self.path_option(name, value)? {
            return Ok(());
        }
        let texts = std::str::from_utf8(name)
            .ok()
            .zip(value.map_or(Some(""), |value| std::str::from_utf8(value).ok()));
        let known = match texts {
            None => false,
            Some((name, text)) => {
                self.layer_option(name, text)?
                    || self.behaviour_option(name, text)?
                    || self.kernel_option(name, text)?
                    || self.mount_flag(name, text)?
            }
        };
        if known {
            return Ok(());
        }
        let shown = OsStr::from_bytes(option);
        match self.tolerant {
            true => self.unknown.push(shown.to_owned()),
            false => {
                return Err(BadOption::hinting(
                    format!("there is no mount option `{}`", shown.display()),
                    match nearest(name) {
                        Some(near) => {
                            format!("did you mean {near}? `vellum overlay --help` lists them")
                        }
                        None => {
                            "`vellum overlay --help` lists them; a comma in a path is written `\\,`"
                                .into()
                        }
                    },
                ));
            }
        }
        Ok(())
    }

    /// Layers: their values are bytes.
    fn path_option(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<bool, BadOption> {
        let options = &mut self.options;
        let needed = || {
            let name = String::from_utf8_lossy(name);
            value.filter(|value| !value.is_empty()).ok_or_else(|| {
                BadOption::hinting(
                    format!("{name} needs a directory"),
                    format!("write {name}=DIR"),
                )
            })
        };
        match name {
            b"lowerdir" => {
                (options.lowers, options.data_lowers) = lower_list(needed()?, self.manners)?;
            }
            b"lowerdir+" => options.lowers.push(path(needed()?)),
            b"datadir+" => options.data_lowers.push(path(needed()?)),
            b"upperdir" => options.upper = Some(path(needed()?)),
            b"workdir" => options.work = Some(path(needed()?)),
            b"context" | b"fscontext" | b"defcontext" | b"rootcontext" => {
                let label = value.unwrap_or_default();
                let has_label = name == b"context" && !label.is_empty();
                options.context = has_label
                    .then(|| OsString::from_vec(label.to_vec()))
                    .or(options.context.take());
            }
            b"fsname" | b"source" => {
                options.source = value.map(|value| OsString::from_vec(value.to_vec()));
            }
            // fuse-overlayfs reads the names of plugins and loads none.
            b"plugins" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whose marks, which marks, which owners.
    fn layer_option(&mut self, name: &str, value: &str) -> Result<bool, BadOption> {
        let options = &mut self.options;
        match name {
            "uidmapping" => options.ids.uids = id_runs(name, value)?,
            "gidmapping" => options.ids.gids = id_runs(name, value)?,
            "squash_to_root" => self.squash_root = on_off(name, value)?,
            "squash_to_uid" => options.ids.squash_uid = Some(number(name, value)?),
            "squash_to_gid" => options.ids.squash_gid = Some(number(name, value)?),
            "xattr_permissions" => {
                options.records = match value {
                    "0" => false,
                    // Both spellings are read; records are written as containers/storage reads them.
                    "1" | "2" => true,
                    _ => {
                        return Err(BadOption::new(format!("{name}={value}: write 0, 1 or 2")));
                    }
                };
            }
            "redirect_dir" => {
                options.redirects = match value {
                    "on" => Redirects::On,
                    "follow" => Redirects::Follow,
                    // The kernel's `off` follows what is there unless its module is told otherwise.
                    "off" => Redirects::Follow,
                    "nofollow" => Redirects::NoFollow,
                    _ => {
                        return Err(BadOption::new(format!(
                            "{name}={value}: write on, off, follow or nofollow"
                        )));
                    }
                };
                self.follows_named |= matches!(value, "on" | "follow");
            }
            "metacopy" => {
                options.metacopy = on_off(name, value)?;
                self.follows_named |= options.metacopy;
            }
            "index" => options.index = on_off(name, value)?,
            "xino" => options.xino = toggle(name, value)?,
            "userxattr" => options.user_xattr = Some(on_off(name, value)?),
            "trust" => {
                options.trust = match value {
                    "auto" => Trust::ByRecord,
                    "engine" => Trust::Engine,
                    "archive" => Trust::Archive,
                    _ => {
                        return Err(BadOption::new(format!(
                            "{name}={value}: write auto, engine or archive"
                        )));
                    }
                };
            }
            "trusted" => {
                options.trusted = value
                    .split(':')
                    .map(|part| number(name, part))
                    .collect::<Result<_, _>>()?;
            }
            "wh" => {
                options.wh_files = match value {
                    "auto" => WhFiles::Auto,
                    "plain" => WhFiles::Plain,
                    "whiteouts" => WhFiles::Whiteouts,
                    _ => {
                        return Err(BadOption::new(format!(
                            "{name}={value}: write auto, plain or whiteouts"
                        )));
                    }
                };
            }
            "static_nlink" => options.static_nlink = on_off(name, value)?,
            "ino32_t" => options.ino_32_bits = on_off(name, value)?,
            "noxattrs" => options.no_xattrs = on_off(name, value)?,
            "noacl" => options.no_acl = on_off(name, value)?,
            "acl" => options.no_acl = !on_off(name, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Caches, data, room, syncs.
    fn behaviour_option(&mut self, name: &str, value: &str) -> Result<bool, BadOption> {
        let options = &mut self.options;
        match name {
            "timeout" => {
                let seconds: f64 = number(name, value)?;
                options.cache_for = match seconds {
                    s if s >= CACHE_FOR.as_secs_f64() => CACHE_FOR,
                    s if s >= 0.0 => Duration::from_secs_f64(s),
                    _ => {
                        return Err(BadOption::new(format!(
                            "{name}={value}: it can't be negative"
                        )));
                    }
                };
            }
            "threaded" => {
                options.threads = match on_off(name, value)? {
                    true => None,
                    false => Some(1),
                };
            }
            "threads" => match number(name, value)? {
                0 => return Err(BadOption::new("threads=0: nobody would answer")),
                threads => options.threads = Some(threads),
            },
            "volatile" => options.is_volatile = on_off(name, value)?,
            "fsync" => {
                options.sync_copies = value == "strict";
                options.is_volatile = match value {
                    "auto" | "strict" => false,
                    "volatile" => true,
                    _ => !on_off(name, value)?,
                };
            }
            // mount(8) knows a flag of that name; fuse-overlayfs means its own by `sync=0`.
            "sync" if value.is_empty() => options.flags.sync = true,
            "sync" => options.is_volatile = !on_off(name, value)?,
            "writeback" => options.writeback = on_off(name, value)?,
            "io_uring" => {
                options.io_uring = match value {
                    "auto" => true,
                    "off" => false,
                    _ => {
                        return Err(BadOption::new(format!("{name}={value}: write auto or off")));
                    }
                };
            }
            "passthrough" => {
                options.data = match on_off(name, value)? {
                    true => DataMode::Passthrough,
                    false => DataMode::Coherent,
                };
            }
            "open" => {
                options.open = match value {
                    "checked" => OpenMode::Checked,
                    "deferred" => OpenMode::Free,
                    _ => {
                        return Err(BadOption::new(format!(
                            "{name}={value}: write deferred or checked"
                        )));
                    }
                };
            }
            "size" => options.limit.size_bytes = limit(name, parse_size(value))?,
            "inodes" => {
                options.limit.inodes = limit(name, number(name, value).map_err(|e| e.what))?;
            }
            "settle" => {
                options.settle = match value {
                    "manual" => Settle::Manual,
                    "unmount" => Settle::Unmount,
                    _ => {
                        return Err(BadOption::new(format!(
                            "{name}={value}: write manual or unmount"
                        )));
                    }
                };
            }
            "blocks" => {
                options.blocks_from_bytes = match value {
                    "off" => None,
                    _ => Some(
                        parse_size(value)
                            .map_err(|why| BadOption::new(format!("{name}={value}: {why}")))?,
                    ),
                };
            }
            "max_write" => options.max_write_bytes = Some(number(name, value)?),
            "debug" => options.debug = true,
            // Ways in which fuse-overlayfs is told to save calls that Vellum doesn't make.
            "fast_ino" | "fast_ino_check" => drop(on_off(name, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What the kernel's overlay takes and this engine has no choice in.
    fn kernel_option(&mut self, name: &str, value: &str) -> Result<bool, BadOption> {
        let refuse = |what: &str, hint: &str| {
            Err(BadOption::hinting(
                format!("{name}={value}: {what}"),
                hint.to_owned(),
            ))
        };
        match (name, value) {
            ("nfs_export", _) => match on_off(name, value)? {
                false => Ok(true),
                true => refuse(
                    "a mount of Vellum's engine can't be exported by NFS",
                    "export the upper's file system, or mount with the kernel's overlay: -t overlay -o nfs_export=on",
                ),
            },
            ("verity", "off") => Ok(true),
            ("verity", _) => refuse(
                "digests of data are not checked by Vellum's engine",
                "mount with the kernel's overlay: -t overlay -o verity=require",
            ),
            // It chooses the file system id that statfs gives; a FUSE mount always has one of its own.
            ("uuid", "off" | "null" | "on" | "auto") => Ok(true),
            ("uuid", _) => Err(BadOption::new(format!(
                "{name}={value}: write on, off, null or auto"
            ))),
            // Files are reached with the mounter's rights, and permissions are checked: there is no other way here.
            ("default_permissions" | "override_creds", "") => Ok(true),
            ("nooverride_creds", "") => refuse(
                "files are always reached with the rights of whoever mounted",
                "leave it out",
            ),
            _ => Ok(false),
        }
    }

    /// mount(8)'s and libfuse's.
    fn mount_flag(&mut self, name: &str, value: &str) -> Result<bool, BadOption> {
        let options = &mut self.options;
        let flags = &mut options.flags;
        let own = self.manners == Manners::Own;
        if name.starts_with("x-") || name.starts_with("X-") || name == "comment" {
            return Ok(true);
        }
        match (name, value) {
            ("ro", "") => flags.read_only = true,
            ("rw", "") => flags.read_only = false,
            ("suid", "") => flags.nosuid = false,
            ("nosuid", "") => flags.nosuid = true,
            ("dev", "") => flags.nodev = false,
            ("nodev", "") => flags.nodev = true,
            ("exec", "") => flags.noexec = false,
            ("noexec", "") => flags.noexec = true,
            ("noatime", "") => flags.noatime = true,
            ("atime" | "relatime" | "strictatime", "") => flags.noatime = false,
            ("nodiratime", "") => flags.nodiratime = true,
            ("diratime", "") => flags.nodiratime = false,
            ("async", "") => flags.sync = false,
            ("dirsync", "") => flags.sync = true,
            // As mount(8) says it with -s: from here on.
            ("sloppy", "") => self.tolerant = true,
            ("allow_other", "") => options.access = Some(Access::All),
            ("allow_root", "") => options.access = Some(Access::Root),
            // How libfuse moves bytes, or holds what is this engine's own choice.
            (
                "splice_write" | "splice_read" | "splice_move" | "no_splice_write"
                | "no_splice_read" | "no_splice_move" | "kernel_cache" | "auto_cache" | "clone_fd"
                | "big_writes" | "nonempty" | "auto_unmount",
                "",
            ) => {}
            ("max_read" | "max_background" | "congestion_threshold" | "subtype" | "blksize", _) => {
            }
            // For mount(8) itself; it may pass them on.
            (
                "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "owner" | "group"
                | "nofail" | "_netdev" | "silent" | "loud" | "lazytime" | "nolazytime" | "iversion"
                | "noiversion" | "mand" | "nomand" | "norelatime" | "nostrictatime",
                "",
            ) if own => {}
            ("user" | "uhelper" | "helper", _) if own => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(mut self) -> Result<Parsed, BadOption> {
        let options = &mut self.options;
        if self.squash_root {
            options.ids.squash_uid.get_or_insert(0);
            options.ids.squash_gid.get_or_insert(0);
        }
        if self.manners == Manners::FuseOverlayfs && !options.ids.are_plain() {
            // Podman makes files in a container's tree before it hands them to the container's users.
            options.ids.strangers = Some(NOBODY);
        }
        if let Some(at) = options
            .trusted
            .iter()
            .find(|&&at| at >= options.lowers.len())
        {
            return Err(BadOption::hinting(
                format!("trusted={at}: there is no such layer"),
                "lowerdir's first is 0",
            ));
        }
        // As with the kernel: who asks for marks of lower layers by name has said that he trusts them.
        if self.follows_named && options.trust == Trust::ByRecord {
            options.trust = Trust::Engine;
        }
        if options.redirects == Redirects::NoFollow && !options.metacopy {
            options.trust = Trust::Archive;
        }
        if options.lowers.is_empty() {
            return Err(BadOption::hinting(
                "no lower layer is given",
                "-o lowerdir=TOP:NEXT:... names them",
            ));
        }
        match (&options.upper, &options.work) {
            (Some(_), None) => {
                return Err(BadOption::hinting(
                    "upperdir is given without workdir",
                    "workdir names an empty directory on the upper's file system",
                ));
            }
            (None, Some(_)) => {
                return Err(BadOption::hinting(
                    "workdir is given without upperdir",
                    "name both, or neither for a read-only mount",
                ));
            }
            (None, None) => options.flags.read_only = true,
            (Some(_), Some(_)) => {}
        }
        Ok(Parsed {
            options: self.options,
            unknown: self.unknown,
        })
    }
}

/// A limit; 0 is none.
fn limit(name: &str, value: Result<u64, String>) -> Result<Option<u64>, BadOption> {
    match value {
        Ok(0) => Ok(None),
        Ok(most) => Ok(Some(most)),
        Err(why) => Err(BadOption::new(format!("{name}: {why}"))),
    }
}

#[cfg(test)]
mod tests;

//! The `-o` strings of union mounts, as the kernel, fuse-overlayfs (1.x and 2.0), mount(8) and
//! Vellum spell them, made into [`MountOptions`]. Pure: text in, values out; nothing is looked up.
//!
//! How a string is read:
//! * options are separated by commas; `\,` is a comma in a value, and a value that begins with `"`
//!   goes to the closing one;
//! * paths: `\:`, `\,` and `\\` mean the second character. In `upperdir`, `workdir`, `lowerdir+`
//!   and `datadir+` a backslash before anything else is dropped, in `lowerdir` it stays, as
//!   fuse-overlayfs has it;
//! * `lowerdir=A:B::C::D`: A over B, and C and D for data only;
//! * an option given twice counts as it was given last, `lowerdir+` and `datadir+` add up;
//! * what only the other engine needs is accepted where leaving it out changes nothing a program
//!   could see, else refused with the reason.
//!
//! In [`Manners::FuseOverlayfs`] options that are not understood are returned as
//! [`Parsed::unknown`], to be told once; a value that can't be meant is an error there too.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::options::{BadOption, Draft, Manners, MountOptions, Redirects, Trust, list};
use crate::values::near;

/// Options, and what of the text means nothing here.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What is asked for.
    pub options: MountOptions,
    /// Options that nobody knows, as given. Empty unless they are tolerated.
    pub unknown: Vec<OsString>,
}

/// Reads the values of all `-o`, in order.
///
/// Errors if one can't be understood (see [`Manners`]), if there is no lower layer, or if an upper
/// has no work directory or the other way round.
pub fn parse(manners: Manners, texts: &[OsString]) -> Result<Parsed, BadOption> {
    let mut draft = Draft::new(manners);
    let mut unknown = Vec::new();
    for text in texts {
        for option in split(text.as_bytes())? {
            if is_understood(&mut draft, &option)? {
                continue;
            }
            let shown = OsStr::from_bytes(&option).to_owned();
            match draft.tolerant {
                true => unknown.push(shown),
                false => return Err(no_such(&shown)),
            }
        }
    }
    Ok(Parsed {
        options: finished(draft)?,
        unknown,
    })
}

/// Does what one option says. Returns `false` if there is none of its name that takes its value.
fn is_understood(draft: &mut Draft, option: &[u8]) -> Result<bool, BadOption> {
    let (name, value) = name_and_value(option);
    let Ok(name) = std::str::from_utf8(name) else {
        return Ok(false);
    };
    match list::find(name) {
        Some(option) => option.apply(draft, name, value),
        // mount(8)'s, for programs and people who read fstab.
        None => Ok(name.starts_with("x-") || name.starts_with("X-") || name == "comment"),
    }
}

fn no_such(option: &OsStr) -> BadOption {
    let (name, _) = name_and_value(option.as_bytes());
    let known = list::all().flat_map(|option| option.names());
    BadOption::hinting(
        format!("there is no mount option `{}`", option.display()),
        match near(&String::from_utf8_lossy(name), known) {
            Some(near) => format!("did you mean {near}? `vellum overlay --help` lists them"),
            None => "`vellum overlay --help` lists them; a comma in a path is written `\\,`".into(),
        },
    )
}

/// Takes the options of one string apart. Escapes stay, for whoever knows what they mean there;
/// quotes go.
pub fn split(text: &[u8]) -> Result<Vec<Vec<u8>>, BadOption> {
    let mut options = Vec::new();
    let mut option = Vec::new();
    let mut bytes = text.iter().copied();
    let mut quoted = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                option.push(byte);
                option.extend(bytes.next());
            }
            b'"' if quoted => quoted = false,
            b'"' if option.last() == Some(&b'=') => quoted = true,
            b',' if !quoted => options.push(std::mem::take(&mut option)),
            _ => option.push(byte),
        }
    }
    if quoted {
        return Err(BadOption::new(format!(
            "a quote is not closed in `{}`",
            OsStr::from_bytes(text).display()
        )));
    }
    options.push(option);
    options.retain(|option| !option.is_empty());
    Ok(options)
}

/// What is before the first `=`, and what is behind it.
fn name_and_value(option: &[u8]) -> (&[u8], Option<&[u8]>) {
    match option.iter().position(|&byte| byte == b'=') {
        Some(at) => (&option[..at], Some(&option[at + 1..])),
        None => (option, None),
    }
}

/// Who owns what somebody unknown makes, as everywhere (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// Settles what depends on several options, and refuses what can't be a union.
fn finished(draft: Draft) -> Result<MountOptions, BadOption> {
    let mut options = draft.options;
    if draft.squash_root {
        options.ids.squash_uid.get_or_insert(0);
        options.ids.squash_gid.get_or_insert(0);
    }
    if draft.manners == Manners::FuseOverlayfs && !options.ids.are_plain() {
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
    if draft.follows_named && options.trust == Trust::ByRecord {
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
    Ok(options)
}

#[cfg(test)]
mod tests;

//! Parses the `-o` strings of union mounts, as the kernel, fuse-overlayfs (1.x and 2.0), mount(8)
//! and Vellum spell them, into [`MountOptions`]. Pure: text in, values out; nothing is looked up.
//!
//! How a string is read:
//! * options are separated by commas; `\,` is a comma in a value, and a value that begins with `"`
//!   extends to the closing one;
//! * in paths `\:`, `\,` and `\\` mean the second character. In `upperdir`, `workdir`, `lowerdir+`
//!   and `datadir+` a backslash before any other character is dropped; in `lowerdir` it stays, as
//!   in fuse-overlayfs;
//! * `lowerdir=A:B::C::D`: A over B, and the data-only layers C and D;
//! * if an option is given twice, the last one counts; `lowerdir+` and `datadir+` add up;
//! * an option that only the other engine needs is accepted if no program could see the difference,
//!   else refused with the reason.
//!
//! With [`Manners::FuseOverlayfs`], options that are not understood are returned as
//! [`Parsed::unknown`], to be reported once; a wrong value is an error there too.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::options::{BadOption, Draft, Manners, MountOptions, Redirects, Trust, list};
use crate::values::near;

/// Options, and the parts of the text that mean nothing here.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The options.
    pub options: MountOptions,
    /// Unknown options, as given. Empty unless they are tolerated.
    pub unknown: Vec<OsString>,
}

/// Parses the values of all `-o`, in order.
///
/// Errors: one can't be understood (see [`Manners`]), there is no lower layer, or there is only one
/// of upper and work directory.
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

/// Applies one option. Returns `false` if no option of its name takes its value.
fn is_understood(draft: &mut Draft, option: &[u8]) -> Result<bool, BadOption> {
    let (name, value) = name_and_value(option);
    let Ok(name) = std::str::from_utf8(name) else {
        return Ok(false);
    };
    match list::find(name) {
        Some(option) => option.apply(draft, name, value),
        // mount(8)'s, for programs and people that read fstab.
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

/// Splits one string into options. Escapes stay, because their meaning depends on the option;
/// quotes are removed.
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

/// Returns what is before the first `=`, and what is after it.
fn name_and_value(option: &[u8]) -> (&[u8], Option<&[u8]>) {
    match option.iter().position(|&byte| byte == b'=') {
        Some(at) => (&option[..at], Some(&option[at + 1..])),
        None => (option, None),
    }
}

/// The owner of files that an unmapped user creates, as elsewhere (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// Settles what depends on several options, and refuses what can't be mounted.
fn finished(draft: Draft) -> Result<MountOptions, BadOption> {
    let mut options = draft.options;
    if draft.squash_root {
        options.ids.squash_uid.get_or_insert(0);
        options.ids.squash_gid.get_or_insert(0);
    }
    if draft.manners == Manners::FuseOverlayfs && !options.ids.are_plain() {
        // Podman creates files in a container's tree before it gives them to the container's users.
        options.ids.strangers = Some(NOBODY);
    }
    if let Some(at) = options
        .trusted
        .iter()
        .find(|&&at| at >= options.lowers.len())
    {
        return Err(BadOption::hinting(
            format!("trusted={at}: there is no layer of this number"),
            "the first lowerdir is 0",
        ));
    }
    // As with the kernel: a caller that names these options trusts the marks of lower layers.
    if draft.follows_named && options.trust == Trust::ByRecord {
        options.trust = Trust::Engine;
    }
    if options.redirects == Redirects::NoFollow && !options.metacopy {
        options.trust = Trust::Archive;
    }
    if options.lowers.is_empty() {
        return Err(BadOption::hinting(
            "no lower layer is given",
            "name them with -o lowerdir=TOP:NEXT:...",
        ));
    }
    match (&options.upper, &options.work) {
        (Some(_), None) => {
            return Err(BadOption::hinting(
                "upperdir is given without workdir",
                "add workdir=DIR, an empty directory on the upper's file system",
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

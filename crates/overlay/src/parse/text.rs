//! Pieces of option strings: separators, escapes, paths, ids, numbers; and what somebody may have meant.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use vellum_format::IdRun;

use crate::options::Manners;
use crate::parse::BadOption;
use crate::values::Toggle;

/// Takes the options of one string apart. Escapes stay, for whoever knows what they mean there; quotes go.
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
pub(super) fn name_and_value(option: &[u8]) -> (&[u8], Option<&[u8]>) {
    match option.iter().position(|&byte| byte == b'=') {
        Some(at) => (&option[..at], Some(&option[at + 1..])),
        None => (option, None),
    }
}

/// A path: each backslash gives way to what follows it.
pub(super) fn path(value: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.push(bytes.next().unwrap_or(b'\\')),
            _ => out.push(byte),
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// The layers of `lowerdir`: ordinary ones, and those for data only.
pub(super) fn lower_list(
    value: &[u8],
    manners: Manners,
) -> Result<(Vec<PathBuf>, Vec<PathBuf>), BadOption> {
    let mut parts: Vec<(bool, Vec<u8>)> = vec![(false, Vec::new())];
    let mut bytes = value.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let last = parts.len() - 1;
        let part = &mut parts[last].1;
        match byte {
            b'\\' => match bytes.next() {
                Some(next @ (b':' | b',' | b'\\')) => part.push(next),
                Some(other) => part.extend([b'\\', other]),
                None => part.push(b'\\'),
            },
            b':' => {
                let data = bytes.next_if_eq(&b':').is_some();
                parts.push((data, Vec::new()));
            }
            _ => part.push(byte),
        }
    }
    let shown = || OsStr::from_bytes(value).display().to_string();
    let (mut lowers, mut data) = (Vec::new(), Vec::new());
    for (is_data, bytes) in parts {
        if bytes.is_empty() {
            match manners {
                Manners::FuseOverlayfs => continue,
                Manners::Own => {
                    return Err(BadOption::hinting(
                        format!("lowerdir={} names a layer without a name", shown()),
                        "write one colon between two directories, two before one for data only, and `\\:` for a colon in a name",
                    ));
                }
            }
        }
        if bytes.starts_with(b"//") {
            return Err(BadOption::hinting(
                format!(
                    "{} asks for a layer plugin, and Vellum has none",
                    OsStr::from_bytes(&bytes).display()
                ),
                "a directory's path begins with one slash",
            ));
        }
        let path = PathBuf::from(OsString::from_vec(bytes));
        match (is_data, data.is_empty()) {
            (true, _) => data.push(path),
            (false, true) => lowers.push(path),
            (false, false) => {
                return Err(BadOption::hinting(
                    format!(
                        "lowerdir={} has an ordinary layer below one for data only",
                        shown()
                    ),
                    "behind the first `::`, every layer is for data only and has `::` before it",
                ));
            }
        }
    }
    Ok((lowers, data))
}

/// `A:B:COUNT`, any number of them: id A on disk is shown as B, and so on for COUNT ids.
pub(super) fn id_runs(name: &str, text: &str) -> Result<Vec<IdRun>, BadOption> {
    let wrong = |why: &str| {
        BadOption::hinting(
            format!("{name}={text} can't be understood: {why}"),
            "write ON-DISK:SHOWN:COUNT, and the next three behind another colon",
        )
    };
    let numbers = text
        .split(':')
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse::<u32>()
                .map_err(|_| wrong(&format!("`{part}` is no id")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if numbers.is_empty() || numbers.len() % 3 != 0 {
        return Err(wrong("ids come in threes"));
    }
    numbers
        .chunks_exact(3)
        .map(|three| {
            let (outside, inside, count) = (three[0], three[1], three[2]);
            IdRun::new(inside, outside, count)
                .filter(|run| run.count > 0)
                .ok_or_else(|| wrong("there are not so many ids"))
        })
        .collect()
}

pub(super) fn toggle(name: &str, value: &str) -> Result<Toggle, BadOption> {
    value
        .parse()
        .map_err(|why: String| BadOption::new(format!("{name}={value}: {why}")))
}

pub(super) fn on_off(name: &str, value: &str) -> Result<bool, BadOption> {
    match value {
        "" | "on" | "1" | "true" | "yes" => Ok(true),
        "off" | "0" | "false" | "no" => Ok(false),
        _ => Err(BadOption::new(format!(
            "{name}={value}: write on or off, or 1 or 0"
        ))),
    }
}

pub(super) fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, BadOption> {
    value.parse().map_err(|_| {
        BadOption::new(format!(
            "{name}={value}: `{value}` is no number it can have"
        ))
    })
}

/// The options people mean to write.
const NAMES: [&str; 31] = [
    "lowerdir",
    "upperdir",
    "workdir",
    "uidmapping",
    "gidmapping",
    "squash_to_root",
    "squash_to_uid",
    "squash_to_gid",
    "xattr_permissions",
    "redirect_dir",
    "metacopy",
    "index",
    "xino",
    "userxattr",
    "volatile",
    "fsync",
    "timeout",
    "writeback",
    "io_uring",
    "passthrough",
    "open",
    "size",
    "inodes",
    "settle",
    "blocks",
    "wh",
    "trust",
    "threads",
    "context",
    "noxattrs",
    "static_nlink",
];

/// The known option nearest to a misspelled one, if it is near.
pub(super) fn nearest(name: &[u8]) -> Option<&'static str> {
    let name = String::from_utf8_lossy(name);
    let far = NAMES.map(|known| (strsim::levenshtein(&name, known), known));
    let near = far.into_iter().filter(|(distance, _)| *distance <= 2);
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

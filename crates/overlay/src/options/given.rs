//! The value of an option, and how it is read: as paths, ids, numbers or words; and why it is
//! refused.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use vellum_format::IdRun;

use super::Manners;
use crate::values::{Toggle, parse_size};

/// Why options are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct BadOption {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl BadOption {
    pub(crate) fn new(what: impl Into<String>) -> BadOption {
        BadOption {
            what: what.into(),
            hint: None,
        }
    }

    pub(crate) fn hinting(what: impl Into<String>, hint: impl Into<String>) -> BadOption {
        BadOption {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }
}

/// An option whose value is text; empty if it has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
}

impl Given<'_> {
    /// Returns the error for a wrong value.
    pub(super) fn wrong(self, why: impl std::fmt::Display) -> BadOption {
        BadOption::new(format!("{}={}: {why}", self.name, self.value))
    }

    /// Returns the error for a value that is understood but not available, with what to do instead.
    pub(super) fn refused(self, why: &str, hint: &str) -> BadOption {
        BadOption {
            hint: Some(hint.to_owned()),
            ..self.wrong(why)
        }
    }

    /// Returns the meaning of the given word.
    pub(super) fn one_of<T: Copy>(self, words: &[(&str, T)]) -> Result<T, BadOption> {
        let found = words.iter().find(|(word, _)| *word == self.value);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let (last, first) = words.split_last().unwrap_or((&"nothing", &[]));
            self.wrong(format!("write {} or {last}", first.join(", ")))
        })
    }

    pub(super) fn on_off(self) -> Result<bool, BadOption> {
        match self.value {
            "" | "on" | "1" | "true" | "yes" => Ok(true),
            "off" | "0" | "false" | "no" => Ok(false),
            _ => Err(self.wrong("write on or off, or 1 or 0")),
        }
    }

    pub(super) fn toggle(self) -> Result<Toggle, BadOption> {
        self.value.parse().map_err(|why: String| self.wrong(why))
    }

    pub(super) fn number<T: FromStr>(self) -> Result<T, BadOption> {
        let parsed = self.value.parse();
        parsed.map_err(|_| self.wrong(format!("`{}` is not a number in its range", self.value)))
    }

    /// Reads a number of bytes.
    pub(super) fn size(self) -> Result<u64, BadOption> {
        parse_size(self.value).map_err(|why| self.wrong(why))
    }

    /// Reads `A:B:COUNT`, any number of times: id A on disk is shown as B, and so on for COUNT ids.
    pub(super) fn id_runs(self) -> Result<Vec<IdRun>, BadOption> {
        let Given { name, value } = self;
        let wrong = |why: &str| {
            BadOption::hinting(
                format!("{name}={value} can't be understood: {why}"),
                "write ON-DISK:SHOWN:COUNT, then a colon and the next three numbers",
            )
        };
        let numbers = value
            .split(':')
            .filter(|part| !part.is_empty())
            .map(|part| {
                part.parse::<u32>()
                    .map_err(|_| wrong(&format!("`{part}` is not an id")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if numbers.is_empty() || numbers.len() % 3 != 0 {
            return Err(wrong("the numbers must come in threes"));
        }
        numbers
            .chunks_exact(3)
            .map(|three| {
                let (outside, inside, count) = (three[0], three[1], three[2]);
                IdRun::new(inside, outside, count)
                    .filter(|run| run.count > 0)
                    .ok_or_else(|| wrong("the range ends above the highest id"))
            })
            .collect()
    }
}

/// Returns the value of an option that names a directory.
pub(super) fn needed<'a>(name: &str, value: Option<&'a [u8]>) -> Result<&'a [u8], BadOption> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| {
        BadOption::hinting(
            format!("{name} needs a directory"),
            format!("write {name}=DIR"),
        )
    })
}

/// Reads a path: each backslash is replaced by the character after it.
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

/// Reads the layers of `lowerdir`: the ordinary ones, and the data-only ones.
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
                        format!("lowerdir={} has an empty layer name", shown()),
                        "write one colon between two directories, two before a data-only one, and `\\:` for a colon in a name",
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
                        "lowerdir={} has an ordinary layer below a data-only one",
                        shown()
                    ),
                    "after the first `::`, every layer is data-only and needs `::` before it",
                ));
            }
        }
    }
    Ok((lowers, data))
}

//! What differs between a layer's tree and what its tar says, in words.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use vellum_format::{Mark, Prefix};
use vellum_sys::{FileKind, Stat, Timespec};

/// What about an object differs. The names are stable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// Whether there is anything of that name.
    Entry,
    /// Its type.
    Kind,
    /// The twelve permission bits.
    Mode,
    /// The owner.
    Owner,
    /// The group.
    Group,
    /// The size of a file.
    Size,
    /// The content of a file.
    Content,
    /// The target of a symbolic link.
    Target,
    /// The numbers of a device.
    Device,
    /// The modification time.
    Time,
    /// Which names are the same file.
    HardLink,
    /// Whether a directory hides what lower layers have in it.
    Opaque,
    /// An extended attribute.
    Xattr(OsString),
    /// The whole layer's tar.
    Digest,
}

impl Aspect {
    /// Returns its name, without the attribute's.
    pub fn name(&self) -> &'static str {
        match self {
            Aspect::Entry => "entry",
            Aspect::Kind => "type",
            Aspect::Mode => "mode",
            Aspect::Owner => "owner",
            Aspect::Group => "group",
            Aspect::Size => "size",
            Aspect::Content => "content",
            Aspect::Target => "target",
            Aspect::Device => "device",
            Aspect::Time => "time",
            Aspect::HardLink => "hard link",
            Aspect::Opaque => "opaque",
            Aspect::Xattr(_) => "xattr",
            Aspect::Digest => "digest",
        }
    }

    /// Returns which aspect an attribute is.
    pub(super) fn of_xattr(name: &OsStr) -> Self {
        match Prefix::ALL
            .iter()
            .any(|prefix| name == prefix.xattr(Mark::Opaque))
        {
            true => Aspect::Opaque,
            false => Aspect::Xattr(name.to_owned()),
        }
    }
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where, relative to the tree's root; empty for the root itself.
    pub path: PathBuf,
    /// What.
    pub aspect: Aspect,
    /// What the tar says; `None`: nothing of the kind.
    pub expected: Option<String>,
    /// What is there; `None`: nothing of the kind.
    pub found: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = self.expected.as_deref().unwrap_or("absent");
        let found = self.found.as_deref().unwrap_or("absent");
        match &self.aspect {
            Aspect::Entry => match (&self.expected, &self.found) {
                (Some(expected), None) => write!(f, "is missing, should be {expected}"),
                (_, _) => write!(f, "is {found} that the layer does not list"),
            },
            Aspect::Kind | Aspect::HardLink | Aspect::Opaque => {
                write!(f, "is {found}, should be {expected}")
            }
            Aspect::Content => write!(f, "{found}"),
            Aspect::Target => write!(f, "leads to {found}, should lead to {expected}"),
            Aspect::Time => {
                write!(f, "modification time is {found}, should be {expected}")
            }
            Aspect::Xattr(name) => {
                let name = name.display();
                write!(
                    f,
                    "extended attribute {name} is {found}, should be {expected}"
                )
            }
            Aspect::Digest => write!(f, "its tar has digest {found}, should have {expected}"),
            other => write!(f, "{} is {found}, should be {expected}", other.name()),
        }
    }
}

/// Says what an object is.
pub(super) fn kind(stat: &Stat) -> &'static str {
    match stat.kind {
        FileKind::Char if stat.is_null_device() => {
            "a whiteout (it hides what lower layers have there)"
        }
        FileKind::File => "a regular file",
        FileKind::Dir => "a directory",
        FileKind::Symlink => "a symbolic link",
        FileKind::Char => "a character device",
        FileKind::Block => "a block device",
        FileKind::Fifo => "a named pipe",
        FileKind::Socket => "a socket",
    }
}

/// Returns a moment in UTC, with as many digits as it needs.
pub(super) fn time(time: Timespec) -> String {
    let exact = jiff::Timestamp::new(time.sec, i32::try_from(time.nsec).unwrap_or(0));
    match exact {
        Ok(moment) => moment.to_string(),
        // Beyond the years that people count.
        Err(_) => format!("{}.{:09} seconds after 1970", time.sec, time.nsec),
    }
}

/// Returns an attribute's value as text: as it is if it can be read, else in hexadecimal.
pub(super) fn value(bytes: &[u8]) -> String {
    const LONGEST: usize = 64;
    let shown = &bytes[..bytes.len().min(LONGEST)];
    let rest = match bytes.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more bytes"),
    };
    let readable = shown.iter().all(|byte| (b' '..=b'~').contains(byte));
    match readable {
        true => format!("'{}'{rest}", OsStr::from_bytes(shown).display()),
        false => format!("0x{}{rest}", hex::encode(shown)),
    }
}

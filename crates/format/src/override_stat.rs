//! Owner, mode and type in an xattr, for trees where they can't be set on the inode.
//!
//! containers/storage (`force_mask`), fuse-overlayfs (`xattr_permissions`) and Vellum without
//! privilege write `uid:gid:mode[:type]`: decimal, decimal, octal, and a word. A device is
//! `block-8-0` here; older writers said `block8:0`. The mark sits on regular files and directories
//! only, since nothing else takes `user.*` xattrs.

use crate::MarkError;

/// The xattr's name as written today.
pub const OVERRIDE_STAT: &str = "user.containers.override_stat";

/// Every spelling that is read, the preferred one first.
pub const OVERRIDE_STAT_NAMES: [&str; 3] = [
    OVERRIDE_STAT,
    "user.fuseoverlayfs.override_stat",
    "security.fuseoverlayfs.override_stat",
];

/// The type of object that the file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum OverrideKind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    Block { major: u32, minor: u32 },
    Character { major: u32, minor: u32 },
}

/// The attributes to show instead of the real ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits with setuid, setgid and sticky: 12 bits.
    pub mode: u32,
    /// The type; `None` if the writer left it out and the inode's own counts.
    pub kind: Option<OverrideKind>,
}

impl OverrideStat {
    /// Recognises the value.
    ///
    /// Errors on missing or surplus fields, numbers out of range (ids are 32 bits; mode is 12 bits,
    /// to which writers outside containers/storage add the type bits of a file or directory), and
    /// unknown types.
    pub fn parse(value: &[u8]) -> Result<OverrideStat, MarkError> {
        let malformed = |reason: String| MarkError::new("override_stat", reason);
        let text = std::str::from_utf8(value)
            .map_err(|_| malformed(format!("\"{}\" is not text", value.escape_ascii())))?;
        let mut fields = text.splitn(4, ':');
        let mut field = |name: &str, radix: u32| {
            let digits = fields
                .next()
                .ok_or_else(|| malformed(format!("\"{text}\" has no {name}")))?;
            number(digits, radix)
                .ok_or_else(|| malformed(format!("{name} \"{digits}\" in \"{text}\"")))
        };
        let (uid, gid, mode) = (field("uid", 10)?, field("gid", 10)?, field("mode", 8)?);
        let kind = match fields.next() {
            Some(word) => {
                Some(kind(word).ok_or_else(|| malformed(format!("unknown type \"{word}\"")))?)
            }
            None => match mode & !0o7777 {
                0o040000 => Some(OverrideKind::Directory),
                0o100000 => Some(OverrideKind::File),
                _ => None,
            },
        };
        match mode & !0o7777 {
            0 | 0o040000 | 0o100000 => Ok(OverrideStat {
                uid,
                gid,
                mode: mode & 0o7777,
                kind,
            }),
            _ => Err(malformed(format!("mode {mode:o} in \"{text}\""))),
        }
    }

    /// Returns the xattr's value, as containers/storage writes it.
    pub fn encode(&self) -> Vec<u8> {
        let OverrideStat {
            uid,
            gid,
            mode,
            kind,
        } = self;
        let kind = match kind {
            None => String::new(),
            Some(OverrideKind::Directory) => ":dir".into(),
            Some(OverrideKind::File) => ":file".into(),
            Some(OverrideKind::Symlink) => ":symlink".into(),
            Some(OverrideKind::Fifo) => ":pipe".into(),
            Some(OverrideKind::Socket) => ":socket".into(),
            Some(OverrideKind::Block { major, minor }) => format!(":block-{major}-{minor}"),
            Some(OverrideKind::Character { major, minor }) => format!(":char-{major}-{minor}"),
        };
        format!("{uid}:{gid}:{:04o}{kind}", mode & 0o7777).into_bytes()
    }
}

/// Digits only: `from_str_radix` alone would accept a sign.
fn number(digits: &str, radix: u32) -> Option<u32> {
    match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => u32::from_str_radix(digits, radix).ok(),
        false => None,
    }
}

fn kind(word: &str) -> Option<OverrideKind> {
    match word {
        "dir" => return Some(OverrideKind::Directory),
        "file" => return Some(OverrideKind::File),
        "symlink" => return Some(OverrideKind::Symlink),
        "pipe" => return Some(OverrideKind::Fifo),
        "socket" => return Some(OverrideKind::Socket),
        _ => {}
    }
    let numbers = |rest: &str| {
        let rest = rest.strip_prefix(['-', ':']).unwrap_or(rest);
        let (major, minor) = rest.split_once(['-', ':'])?;
        Some((number(major, 10)?, number(minor, 10)?))
    };
    if let Some(rest) = word.strip_prefix("block") {
        return numbers(rest).map(|(major, minor)| OverrideKind::Block { major, minor });
    }
    let rest = word.strip_prefix("char")?;
    numbers(rest).map(|(major, minor)| OverrideKind::Character { major, minor })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, uid: u32, gid: u32, mode: u32, kind: Option<OverrideKind>) {
        assert_eq!(
            OverrideStat::parse(text.as_bytes()),
            Ok(OverrideStat {
                uid,
                gid,
                mode,
                kind
            }),
            "{text}"
        );
    }

    #[test]
    fn every_spelling_is_read() {
        check("0:0:0755:dir", 0, 0, 0o755, Some(OverrideKind::Directory));
        check("1:2:4755:file", 1, 2, 0o4755, Some(OverrideKind::File));
        check("1:2:755", 1, 2, 0o755, None);
        check("0:0:0100755", 0, 0, 0o755, Some(OverrideKind::File));
        check(
            "0:0:600:block-8-1",
            0,
            0,
            0o600,
            Some(OverrideKind::Block { major: 8, minor: 1 }),
        );
        check(
            "0:0:600:block8:1",
            0,
            0,
            0o600,
            Some(OverrideKind::Block { major: 8, minor: 1 }),
        );
        check(
            "0:0:666:char:1:3",
            0,
            0,
            0o666,
            Some(OverrideKind::Character { major: 1, minor: 3 }),
        );
        check("0:0:0644:pipe", 0, 0, 0o644, Some(OverrideKind::Fifo));
        check(
            "4294967295:0:0644:socket",
            u32::MAX,
            0,
            0o644,
            Some(OverrideKind::Socket),
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "0",
            "0:0",
            "0:0:",
            "0:0:9",
            "-1:0:644",
            "+1:0:644",
            "0:0:644:",
            "0:0:644:door",
            "0:0:644:block",
            "0:0:644:char-1",
            "0:0:644:char-1-x",
            "0:0:644:file:x",
            "4294967296:0:644",
            "0:0:120777",
            " 0:0:644",
        ] {
            assert!(OverrideStat::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(OverrideStat::parse(b"0:0:644:\xff").is_err());
    }

    #[test]
    fn containers_storage_reads_what_is_written() {
        let device = OverrideKind::Character { major: 1, minor: 3 };
        let stat = OverrideStat {
            uid: 5,
            gid: 6,
            mode: 0o600,
            kind: Some(device),
        };
        assert_eq!(stat.encode(), b"5:6:0600:char-1-3");
    }
}

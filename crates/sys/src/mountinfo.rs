//! Who is mounted where, as `/proc/PID/mountinfo` tells it (see proc_pid_mountinfo(5)).
//!
//! The table is a tree: every mount names its parent mount and the place in it. One place can carry a stack of mounts,
//! and a mount high up can hide whole branches that are still in the table. So "is something mounted at this path?" is
//! answered by walking down from the root as a lookup would ([`Table::chain`]), never by comparing strings alone.
//!
//! Paths are bytes; the octal escapes of the file are undone. A table is a moment's picture: mounts may come and go the
//! moment after, so act on it and check again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number; used again after it is gone.
    pub id: u64,
    /// The number of the mount it sits on; the root's parent is not in the table.
    pub parent: u64,
    /// Major and minor number of the file system's device, as in `st_dev`.
    pub dev: (u32, u32),
    /// Which directory of the file system is shown; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where it shows, as seen from the reading process's root.
    pub mount_point: PathBuf,
    /// Options of this mount (`rw`, `nosuid`, ...), comma-separated.
    pub options: OsString,
    /// `shared:N`, `master:N`, `propagate_from:N`, `unbindable`; empty for a private mount.
    pub propagation: Vec<OsString>,
    /// File system type, perhaps with a subtype (`fuse.sshfs`).
    pub fs_type: OsString,
    /// What was given as source.
    pub source: OsString,
    /// Options of the file system itself, comma-separated, still escaped as the file system prints them.
    pub super_options: OsString,
}

impl Mount {
    /// True if the mount was made read-only (the file system may be, too).
    pub fn is_read_only(&self) -> bool {
        has_option(&self.options, "ro") || has_option(&self.super_options, "ro")
    }

    /// Returns the value of option `name` of the file system, unescaped: `Some("")` if it has no value, `None` if it is
    /// not there.
    pub fn super_option(&self, name: &str) -> Option<OsString> {
        self.super_options_named(name).next()
    }

    /// Returns every value of option `name` of the file system, in order (`lowerdir+` comes many times).
    pub fn super_options_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = OsString> + 'a {
        self.super_options
            .as_bytes()
            .split(|&b| b == b',')
            .filter_map(move |option| {
                let rest = option.strip_prefix(name.as_bytes())?;
                match rest.split_first() {
                    None => Some(OsString::new()),
                    Some((b'=', value)) => Some(OsString::from_vec(unescape(value))),
                    Some(_) => None,
                }
            })
    }

    /// True if changes in this mount's place spread to other mounts and namespaces.
    pub fn is_shared(&self) -> bool {
        self.propagation
            .iter()
            .any(|p| p.as_bytes().starts_with(b"shared:"))
    }
}

fn has_option(options: &OsStr, name: &str) -> bool {
    options
        .as_bytes()
        .split(|&b| b == b',')
        .any(|o| o == name.as_bytes())
}

/// All mounts of one mount namespace, in the kernel's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    mounts: Vec<Mount>,
}

/// Reads the mounts this process sees.
pub fn read() -> Result<Table> {
    read_file(Path::new("/proc/thread-self/mountinfo"))
}

/// Reads the mounts another process sees. Errors: not found if it is gone, denied if it is not ours to ask.
pub fn read_of(pid: u32) -> Result<Table> {
    read_file(Path::new(&format!("/proc/{pid}/mountinfo")))
}

fn read_file(path: &Path) -> Result<Table> {
    let bytes = std::fs::read(path).map_err(|e| Error::new("read the mount table", path, e))?;
    parse(&bytes).map_err(|e| Error::new("understand the mount table", path, e))
}

/// Parses the text of a mountinfo file. Errors: InvalidData naming the line.
pub fn parse(text: &[u8]) -> std::io::Result<Table> {
    let mut mounts = Vec::new();
    for (i, line) in text.split(|&b| b == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let mount = parse_line(line).ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("line {} is malformed", i + 1),
            )
        })?;
        mounts.push(mount);
    }
    Ok(Table { mounts })
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut dev = fields.next()?.split(|&b| b == b':');
    let dev = (number(dev.next()?)? as u32, number(dev.next()?)? as u32);
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = os(fields.next()?);
    let mut propagation = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => propagation.push(os(field)),
        }
    }
    let fs_type = os(fields.next()?);
    let source = OsString::from_vec(unescape(fields.next()?));
    // A source may be empty and old kernels leave the last field out then.
    let super_options = os(fields.next().unwrap_or_default());
    Some(Mount {
        id,
        parent,
        dev,
        root,
        mount_point,
        options,
        propagation,
        fs_type,
        source,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn os(field: &[u8]) -> OsString {
    OsStr::from_bytes(field).to_os_string()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes `\ooo`, the only escape the kernel writes. Anything else behind a backslash stays as it is.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\'
            && let [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] = tail
        {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

impl Table {
    /// Returns all mounts in the kernel's order.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Returns the mount numbered `id`.
    pub fn by_id(&self, id: u64) -> Option<&Mount> {
        self.mounts.iter().find(|m| m.id == id)
    }

    /// Returns every mount whose place is `path` or beneath it, hidden ones too, deepest and topmost first: the order in
    /// which to unmount them.
    pub fn beneath(&self, path: &Path) -> Vec<&Mount> {
        let mut found: Vec<(usize, &Mount)> = self
            .mounts
            .iter()
            .enumerate()
            .filter(|(_, m)| m.mount_point.starts_with(path))
            .collect();
        found.sort_by_key(|(i, m)| std::cmp::Reverse((m.mount_point.components().count(), *i)));
        found.into_iter().map(|(_, m)| m).collect()
    }

    /// Returns the mounts a lookup of `path` (absolute, without symbolic links or `..`) passes through, the root first;
    /// the last one is where `path` lives. Empty only if the table has no root.
    pub fn chain(&self, path: &Path) -> Vec<&Mount> {
        self.chain_without(path, &[])
    }

    /// As [`Table::chain`], as if the mounts numbered in `gone` were not there.
    fn chain_without(&self, path: &Path, gone: &[u64]) -> Vec<&Mount> {
        let mut chain = Vec::new();
        let Some(mut at) = self.root(gone) else {
            return chain;
        };
        chain.push(at);
        let mut prefix = PathBuf::from("/");
        for component in path.components() {
            prefix.push(component);
            // Several mounts can be stacked on one place: each is the child of the one it covers.
            while let Some(next) = self.child(at.id, &prefix, gone) {
                chain.push(next);
                at = next;
                if chain.len() > self.mounts.len() {
                    return chain;
                }
            }
        }
        chain
    }

    /// Returns what has to be unmounted, in this order, to bring back what `path` showed through mount `home`: the mounts
    /// that lie over it, topmost first, each preceded by those that hang on it. Empty if nothing hides it.
    ///
    /// `home` is the mount that `path` was on when it was last seen well. If that mount is no longer in the table, the
    /// answer is empty too: then nothing covers it, it was unmounted.
    pub fn covering(&self, path: &Path, home: u64) -> Vec<&Mount> {
        let mut expected = Vec::new();
        let mut at = self.by_id(home);
        while let Some(mount) = at {
            if expected.contains(&mount.id) {
                break;
            }
            expected.push(mount.id);
            at = self.by_id(mount.parent);
        }
        let mut gone = Vec::new();
        if expected.is_empty() {
            return Vec::new();
        }
        // Taking one away may show the next, which was hidden itself.
        while let Some(cover) = self
            .chain_without(path, &gone)
            .into_iter()
            .rev()
            .find(|m| !expected.contains(&m.id))
        {
            let mut hanging = vec![cover.id];
            let mut next = 0;
            while next < hanging.len() {
                let parent = hanging[next];
                let children = self
                    .mounts
                    .iter()
                    .filter(|m| m.parent == parent && m.id != parent);
                hanging.extend(children.map(|m| m.id).filter(|id| !expected.contains(id)));
                next += 1;
            }
            hanging.reverse();
            gone.extend(
                hanging
                    .into_iter()
                    .filter(|id| !gone.contains(id))
                    .collect::<Vec<_>>(),
            );
        }
        gone.into_iter().filter_map(|id| self.by_id(id)).collect()
    }

    fn root(&self, gone: &[u64]) -> Option<&Mount> {
        let known = |id: u64| self.mounts.iter().any(|m| m.id == id);
        let mut at = self
            .mounts
            .iter()
            .find(|m| m.mount_point == Path::new("/") && !known(m.parent))?;
        while let Some(over) = self.child(at.id, Path::new("/"), gone) {
            at = over;
        }
        Some(at)
    }

    fn child(&self, parent: u64, place: &Path, gone: &[u64]) -> Option<&Mount> {
        self.mounts.iter().find(|m| {
            m.parent == parent && m.id != parent && m.mount_point == place && !gone.contains(&m.id)
        })
    }
}

/// A process (or the first found of several that share its mount namespace) that has something mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process number in our pid namespace.
    pub pid: u32,
    /// What it calls itself.
    pub command: OsString,
    /// The inode number of its mount namespace (`/proc/PID/ns/mnt`), 0 if it is not ours to know.
    pub namespace: u64,
    /// Where the mount shows in that process's view.
    pub mount_point: PathBuf,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let command = self.command.to_string_lossy();
        write!(
            f,
            "process {} ({command}) has it mounted at {}",
            self.pid,
            self.mount_point.display()
        )
    }
}

/// Searches every process's mount table for mounts that `wanted` accepts, one answer per namespace and place.
///
/// Processes that end meanwhile or are not ours to ask are passed over, so an empty answer proves nothing to a plain user.
pub fn find_holders(mut wanted: impl FnMut(&Mount) -> bool) -> Result<Vec<Holder>> {
    let mut seen = Vec::new();
    let mut holders = Vec::new();
    let processes = std::fs::read_dir("/proc").map_err(|e| Error::new("list", "/proc", e))?;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let namespace = mount_namespace(pid);
        if namespace != 0 && seen.contains(&namespace) {
            continue;
        }
        let Ok(table) = read_of(pid) else { continue };
        seen.push(namespace);
        for mount in table.mounts().iter().filter(|m| wanted(m)) {
            let command = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            holders.push(Holder {
                pid,
                command: OsStr::from_bytes(command.trim_ascii_end()).to_os_string(),
                namespace,
                mount_point: mount.mount_point.clone(),
            });
        }
    }
    Ok(holders)
}

/// Searches every mount namespace for overlay mounts that use `upper` as upper or `work` as work directory.
///
/// This is who makes a mount of that upper fail with EBUSY while our own table shows nothing. Mounts made with relative
/// paths are recognised by the end of the path.
pub fn find_overlay_holders(upper: &Path, work: Option<&Path>) -> Result<Vec<Holder>> {
    find_holders(|mount| {
        mount.fs_type == "overlay"
            && (names(mount, "upperdir", upper)
                || work.is_some_and(|work| names(mount, "workdir", work)))
    })
}

fn names(mount: &Mount, option: &str, path: &Path) -> bool {
    mount.super_option(option).is_some_and(|value| {
        let value = PathBuf::from(value);
        !value.as_os_str().is_empty()
            && (value == path || value.is_relative() && path.ends_with(&value))
    })
}

fn mount_namespace(pid: u32) -> u64 {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap_or_default();
    let digits: String = link
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 0:25 / /var rw,nosuid shared:7 master:1 - tmpfs tmp rw,size=4k
29 28 254:0 /data /var/lib/v\\040x ro,relatime - ext4 /dev/vda rw
30 29 0:40 / /var/lib/v\\040x/m\\134n\\012l rw - overlay overlay rw,lowerdir+=/a\\054b,lowerdir+=/c,upperdir=/u\\134,userxattr
31 29 0:41 / /var/lib/v\\040x rw - tmpfs none rw
32 27 0:42 / /opt rw - tmpfs  rw
";

    #[test]
    fn every_field_is_read() {
        let table = parse(TABLE).unwrap();
        let m = &table.mounts()[3];
        assert_eq!((m.id, m.parent, m.dev), (30, 29, (0, 40)));
        assert_eq!(m.mount_point, Path::new("/var/lib/v x/m\\n\nl"));
        assert_eq!(
            m.super_options_named("lowerdir+").collect::<Vec<_>>(),
            ["/a,b", "/c"]
        );
        assert_eq!(m.super_option("upperdir").unwrap(), "/u\\");
        assert_eq!(m.super_option("userxattr").unwrap(), "");
        assert_eq!(m.super_option("user"), None);
        assert_eq!(table.mounts()[1].propagation, ["shared:7", "master:1"]);
        assert!(table.mounts()[1].is_shared() && !m.is_shared());
        assert!(table.mounts()[2].is_read_only() && !m.is_read_only());
        assert_eq!(table.mounts()[2].root, Path::new("/data"));
        assert_eq!(table.mounts()[5].source, "");
        assert!(parse(b"1 2 0:1 / / rw").is_err());
        assert!(parse(b"x 2 0:1 / / rw - a b c").is_err());
    }

    #[test]
    fn a_lookup_passes_the_mounts_it_would_really_pass() {
        let table = parse(TABLE).unwrap();
        let ids = |mounts: Vec<&Mount>| mounts.iter().map(|m| m.id).collect::<Vec<_>>();
        assert_eq!(
            ids(table.chain(Path::new("/var/lib/v x/store"))),
            [27, 28, 29, 31]
        );
        assert_eq!(ids(table.chain(Path::new("/varnish"))), [27]);
        assert_eq!(ids(table.covering(Path::new("/var/lib/v x"), 29)), [31]);
        assert_eq!(
            ids(table.covering(Path::new("/var/lib/v x"), 28)),
            [31, 30, 29]
        );
        assert_eq!(
            ids(table.covering(Path::new("/var/lib/v x"), 27)),
            [31, 30, 29, 28]
        );
        assert!(table.covering(Path::new("/var/lib/v x"), 31).is_empty());
        assert!(table.covering(Path::new("/var/lib/v x"), 99).is_empty());
        assert_eq!(ids(table.beneath(Path::new("/var/lib"))), [30, 31, 29]);
    }

    #[test]
    fn a_hidden_branch_is_not_walked() {
        let table = parse(
            b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv/store rw - xfs b rw\n3 1 0:9 / /srv rw - tmpfs c rw\n",
        )
        .unwrap();
        let ids = |mounts: Vec<&Mount>| mounts.iter().map(|m| m.id).collect::<Vec<_>>();
        assert_eq!(ids(table.chain(Path::new("/srv/store"))), [1, 3]);
        assert_eq!(ids(table.covering(Path::new("/srv/store"), 2)), [3]);
    }

    #[test]
    fn a_cover_hidden_by_another_and_what_hangs_on_it_are_in_the_order() {
        let table = parse(
            b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / /srv/store rw - tmpfs b rw\n3 1 0:10 / /srv rw - tmpfs c rw\n\
              4 3 0:11 / /srv/x rw - tmpfs d rw\n5 4 0:12 / /srv/x/y rw - tmpfs e rw\n6 2 0:13 / /srv/store/s rw - tmpfs f rw\n",
        )
        .unwrap();
        let order: Vec<_> = table
            .covering(Path::new("/srv/store"), 1)
            .iter()
            .map(|m| m.id)
            .collect();
        assert_eq!(order, [5, 4, 3, 6, 2]);
    }

    #[test]
    fn only_octal_is_an_escape() {
        assert_eq!(unescape(b"a\\040b\\x\\1\\"), b"a b\\x\\1\\");
        assert_eq!(unescape(b"\\134040"), b"\\040");
        assert_eq!(unescape(b"\\377"), b"\xff");
    }

    #[test]
    fn the_live_table_has_a_root() {
        let table = read().unwrap();
        assert_eq!(
            table.chain(Path::new("/proc/self"))[0].mount_point,
            Path::new("/")
        );
        let stat = crate::stat::stat_fd(std::fs::File::open("/").unwrap()).unwrap();
        let last = table.chain(Path::new("/")).last().unwrap().id;
        assert_eq!(last, stat.mnt_id);
    }
}

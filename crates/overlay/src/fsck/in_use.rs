//! Refuses an overlay that is mounted: by the kernel, by Vellum's engine, or by fuse-overlayfs.
//!
//! A directory may be a lower layer of any number of mounts, since nothing changes it. It may not
//! be an upper or a work directory of one. No single source knows all mounts:
//! * the mount tables of all processes name the kernel's overlays, but by paths that may mean
//!   something else here, and only of processes that this one may inspect;
//! * the kernel itself, if root asks, knows each upper, but not where it is mounted;
//! * Vellum's engine has locked its directories;
//! * fuse-overlayfs has its directories open, and names the upper in its arguments.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use vellum_format::workdir;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::mount;
use vellum_sys::mountinfo;
use vellum_sys::rooted::Dir;

use crate::error::Result;
use crate::fsck::{Directories, in_use};
use crate::layers::open_dir;
use crate::parse;

/// A directory as given, its real path, and the directory itself.
type Opened<'a> = (&'a PathBuf, PathBuf, Dir);

/// Refuses a mounted overlay. Returns locks that keep Vellum's engine out as long as they live.
pub(super) fn refuse(directories: &Directories) -> Result<Vec<Lock>> {
    let mut all: Vec<Opened<'_>> = Vec::new();
    for path in directories.all() {
        let dir = open_dir(path)?;
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        all.push((path, real, dir));
    }
    by_kernel(&all, directories)?;
    let mut locks = Vec::new();
    for (path, _, dir) in &all {
        locks.extend(by_engine(path, dir, directories)?);
    }
    by_fuse(&all)?;
    Ok(locks)
}

fn by_kernel(all: &[Opened<'_>], directories: &Directories) -> Result<()> {
    let mut used = None;
    let holders = mountinfo::find_holders(|mount, options| {
        if mount.fs_type != "overlay" || used.is_some() {
            return false;
        }
        let dirs = ["upperdir", "workdir"].map(|name| options.get(name).map(PathBuf::from));
        let is_used = |(_, real, _): &&Opened<'_>| {
            let is_it = |dir: &PathBuf| is_named(real, dir, &mount.mount_point);
            dirs.iter().flatten().any(is_it)
        };
        used = all.iter().find(is_used).map(|(path, ..)| *path);
        used.is_some()
    })?;
    if let (Some(path), Some(holder)) = (used, holders.first()) {
        return Err(in_use(path, &holder.to_string()));
    }
    // Only root may ask. Each question leaves a line in the kernel's log, so it is not about all
    // layers.
    let asked = |path: &Path| {
        let changed = [&directories.upper, &directories.work];
        changed.iter().any(|dir| dir.as_deref() == Some(path))
    };
    for (path, _, dir) in all.iter().filter(|(path, ..)| asked(path)) {
        if mount::overlay_holds(dir).unwrap_or(false) {
            let by = "the kernel has it in use for an overlay, in a mount namespace that can't be seen from here";
            return Err(in_use(path, by));
        }
    }
    Ok(())
}

/// Returns whether a mount's option names the directory `real`.
///
/// A relative path is relative to where its mount command was run, which no table tells. It counts
/// if the directory and the mount point are below one directory that makes it true: many overlays
/// on a machine have an `upper`. If that leaves one out, the kernel's own answer does not.
fn is_named(real: &Path, dir: &Path, mount_point: &Path) -> bool {
    if dir.is_absolute() {
        return dir == real;
    }
    let depth = dir.components().count();
    let base = real.ancestors().nth(depth);
    depth > 0 && real.ends_with(dir) && base.is_some_and(|base| mount_point.starts_with(base))
}

fn by_engine(path: &Path, dir: &Dir, directories: &Directories) -> Result<Option<Lock>> {
    match Lock::try_now(dir.dup()?, Sharing::Shared) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            let place = shown_at(directories);
            let place = place.map_or(String::new(), |at| format!(" at {}", at.display()));
            Err(in_use(path, &format!("Vellum's engine uses it{place}")))
        }
        // The file system has no locks.
        Err(error) => {
            tracing::debug!(layer = %path.display(), %error, "not locked");
            Ok(None)
        }
    }
}

/// Returns where the engine shows the upper, as the work directory notes.
fn shown_at(directories: &Directories) -> Option<PathBuf> {
    use vellum_sys::plain::{self, Links};
    let noted = directories.work.as_ref()?;
    let noted = noted.join(workdir::OWN).join(workdir::OWN_MOUNTED);
    let text = String::from_utf8(plain::read(&noted, 64, Links::InParents).ok()?).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    let dev = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
    let table = mountinfo::read().ok()?;
    let mount = table.mounts().iter().find(|mount| mount.dev == dev)?;
    Some(mount.mount_point.clone())
}

fn by_fuse(all: &[Opened<'_>]) -> Result<()> {
    let mut spots = Vec::new();
    for (path, real, dir) in all {
        spots.push((dir.stat_self()?.identity(), real, *path));
    }
    let wanted: Vec<_> = spots.iter().map(|(identity, ..)| *identity).collect();
    for server in mountinfo::find_fuse_servers(&wanted)? {
        let changed = changed_by(&server.arguments);
        let is_used = |identity: (u64, u64), real: &Path| match &changed {
            Changed::Unknown => {
                server.command.as_bytes().starts_with(b"fuse-overlayfs")
                    && server.holds.contains(&identity)
            }
            Changed::Named(dirs) => dirs.iter().any(|dir| match dir.is_absolute() {
                true => server.identity_of(dir) == Some(identity),
                // A daemon has left the directory it was started in.
                false => server.holds.contains(&identity) && real.ends_with(dir),
            }),
        };
        let used = spots
            .iter()
            .find(|(identity, real, _)| is_used(*identity, real));
        if let Some((.., path)) = used {
            let place = server.arguments.last();
            let place = place.filter(|last| !last.as_bytes().starts_with(b"-"));
            let place = place.map_or(String::new(), |at| format!(" at {}", at.display()));
            let command = server.command.display();
            let by = format!("process {} ({command}) serves it{place}", server.pid);
            return Err(in_use(path, &by));
        }
    }
    Ok(())
}

/// What a mount program changes.
#[derive(Debug, PartialEq, Eq)]
enum Changed {
    /// These directories; none, if the mount is read-only.
    Named(Vec<PathBuf>),
    /// Its arguments name no layers.
    Unknown,
}

/// Reads the arguments of a mount program.
///
/// Those of Vellum's own servers are not in them; they are known by their locks.
fn changed_by(arguments: &[OsString]) -> Changed {
    let options = arguments.iter().flat_map(|word| {
        let word = word.as_bytes();
        let word = word.strip_prefix(b"-o").unwrap_or(word);
        parse::split(word).unwrap_or_default()
    });
    let mut has_layers = false;
    let mut changed = Vec::new();
    for option in options {
        has_layers |= option.starts_with(b"lowerdir=");
        let value = [b"upperdir=".as_slice(), b"workdir="]
            .iter()
            .find_map(|name| option.strip_prefix(*name));
        changed.extend(value.map(|value| PathBuf::from(unescaped(value))));
    }
    match has_layers || !changed.is_empty() {
        true => Changed::Named(changed),
        false => Changed::Unknown,
    }
}

fn unescaped(value: &[u8]) -> OsString {
    let mut out = Vec::new();
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.extend(bytes.next()),
            byte => out.push(byte),
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_tell_what_a_mount_program_changes() {
        let check = |words: &[&str], expect: Changed| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            assert_eq!(changed_by(&words), expect, "{words:?}");
        };
        let named = |dirs: &[&str]| Changed::Named(dirs.iter().map(PathBuf::from).collect());
        check(
            &["-o", "lowerdir=/a:/b,upperdir=/u,workdir=/w", "/m"],
            named(&["/u", "/w"]),
        );
        check(&["-olowerdir=a,upperdir=u\\,1", "m"], named(&["u,1"]));
        check(&["-o", "lowerdir=/a", "/m"], named(&[]));
        check(&["-f", "/m"], Changed::Unknown);
    }

    #[test]
    fn relative_paths_count_below_a_common_directory() {
        let check = |real: &str, dir: &str, mount_point: &str, expect: bool| {
            let named = is_named(Path::new(real), Path::new(dir), Path::new(mount_point));
            assert_eq!(named, expect, "{real} {dir} {mount_point}");
        };
        check("/a/upper", "/a/upper", "/anywhere", true);
        check("/a/upper", "/b/upper", "/a/merged", false);
        check("/a/upper", "upper", "/a/merged", true);
        check("/a/upper", "upper", "/a/deep/merged", true);
        check("/a/upper", "upper", "/b/merged", false);
        check("/a/x/upper", "x/upper", "/a/merged", true);
        check("/a/x/upper", "y/upper", "/a/merged", false);
        check("/a/upper", "", "/a/merged", false);
    }
}

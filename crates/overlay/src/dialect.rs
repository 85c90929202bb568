//! The dialect that a mount writes: the namespace of its marks and, for an upper, the kernel's
//! marks or `.wh.` names.
//!
//! Deletions are written in one of two forms, and a reader of the other form shows what was
//! deleted. So an upper keeps the form that it began with: the one in the work directory's record
//! or, without a record, the one of the upper's own marks ([`Sign`]). An upper without marks gets
//! the kernel's form. Where the file system can't hold the kernel's marks, only names are left;
//! that is tried, not guessed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::{Mark, Prefix, wh, workdir};
use vellum_sys::rooted::Dir;
use vellum_sys::{FileKind, Process, probe, xattr};
use vellum_union::WhNames;

use crate::error::{Error, Result};
use crate::options::{MountOptions, WhFiles};
use crate::record::LayerRecord;

/// Returns the namespace of a mount's marks: what the options say, else what suits this process.
pub fn prefix(options: &MountOptions) -> Result<Prefix> {
    let process = Process::read();
    match options.user_xattr {
        None => Ok(process.prefix()),
        Some(true) => Ok(Prefix::User),
        Some(false) if process.is_root() => Ok(Prefix::Trusted),
        Some(false) => Err(Error::Unsupported {
            what:
                "only root outside a user namespace can read and write marks in trusted.overlay.*"
                    .into(),
            hint: "leave out userxattr=off".into(),
        }),
    }
}

/// Why an upper's deletions have the form that they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// The mount options or the record of an earlier mount say so.
    Known(WhNames),
    /// The upper has marks of its own that say so, or is not empty and has none.
    Seen(WhNames),
    /// The upper is empty.
    Empty,
    /// The file system has no extended attributes for marks.
    NoXattrs,
    /// The file system takes no devices 0:0, for example because it is an overlay itself.
    NoDevices,
}

impl Chosen {
    pub(super) fn wh_names(self) -> WhNames {
        match self {
            Self::Known(names) | Self::Seen(names) => names,
            Self::Empty => WhNames::Plain,
            Self::NoXattrs | Self::NoDevices => WhNames::Whiteouts,
        }
    }

    /// What the user should know about it. Not repeated for a choice that an earlier mount made.
    pub(super) fn told(self, upper: &Path) -> Option<String> {
        let upper = upper.display();
        match self {
            Self::Known(_) | Self::Empty | Self::Seen(WhNames::Plain) => None,
            Self::Seen(WhNames::Whiteouts) => Some(format!(
                "{upper} marks removed names with .wh. files, and continues to; the kernel's overlay would show what they hide \
                 (`vellum layer convert --marks` changes that)"
            )),
            Self::NoXattrs => Some(format!(
                "the file system of {upper} has no xattrs: removed names become .wh. files, and renamed directories, hard links of lower \
                 files and inode numbers last only until the unmount"
            )),
            Self::NoDevices => Some(format!(
                "the file system of {upper} takes no devices 0:0, so removed names become .wh. files there: names of more than 251 bytes \
                 can't be removed, directories of lower layers can't be renamed, and the kernel's overlay can't read it \
                 (`vellum layer convert --marks` changes that)"
            )),
        }
    }
}

/// What is known about an upper that is only read.
pub(super) fn of_upper(options: &MountOptions, upper: &Dir) -> Result<Chosen> {
    let work = options
        .work
        .as_deref()
        .and_then(|work| Dir::open(work).ok());
    known_or_seen(options, upper, work.as_ref())
}

/// Chooses the form for an upper that will be changed; tries what its file system takes.
pub(super) fn for_changes(options: &MountOptions, upper: &Dir, work: &Dir) -> Result<Chosen> {
    let chosen = known_or_seen(options, upper, Some(work))?;
    let forced = options.wh_files == WhFiles::Plain;
    if !forced && chosen.wh_names() == WhNames::Plain {
        if !takes_xattrs(options, upper)? {
            return Ok(Chosen::NoXattrs);
        }
        if !probe::takes_whiteouts(work)? {
            return Ok(Chosen::NoDevices);
        }
    }
    Ok(chosen)
}

fn known_or_seen(options: &MountOptions, upper: &Dir, work: Option<&Dir>) -> Result<Chosen> {
    let names = |whiteouts| match whiteouts {
        true => WhNames::Whiteouts,
        false => WhNames::Plain,
    };
    let recorded = || work.map_or(Ok(None), |work| LayerRecord::of(upper, work));
    Ok(match options.wh_files {
        WhFiles::Plain => Chosen::Known(WhNames::Plain),
        WhFiles::Whiteouts => Chosen::Known(WhNames::Whiteouts),
        WhFiles::Auto => match recorded()? {
            Some(record) => Chosen::Known(names(record.wh_whiteouts())),
            None if upper.entries()?.next().is_none() => Chosen::Empty,
            None => {
                let sign = sign_of(upper, work)?;
                tracing::info!(?sign, "the upper has no record");
                Chosen::Seen(names(sign == Sign::Names))
            }
        },
    })
}

/// What an upper's marks say about its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// An overlay that marks with devices 0:0 and `overlay.*` attributes.
    Kernel,
    /// A writer that hides names with `.wh.` files: fuse-overlayfs without privilege, or an
    /// unpacker of archives.
    Names,
    /// Nothing.
    None,
}

/// Looks for the marks of either dialect.
///
/// fuse-overlayfs may write both, so its own marks come first. A `.wh.` name next to the kernel's
/// marks is an ordinary name.
pub(super) fn sign_of(upper: &Dir, work: Option<&Dir>) -> Result<Sign> {
    let on_root = match xattr::list_fd(upper) {
        Ok(names) => names,
        // Then it has no marks that count.
        Err(error) if error.is_unsupported() || error.is_denied() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let any = |prefix: &str| {
        on_root
            .iter()
            .any(|name| name.as_bytes().starts_with(prefix.as_bytes()))
    };
    if any("user.fuseoverlayfs.") {
        return Ok(Sign::Names);
    }
    let mut kernel =
        any("trusted.overlay.") || any("user.overlay.") || work.is_some_and(is_kernels_work);
    let mut names = false;
    // Opened one by one: a wide tree would use up all descriptors.
    let mut left = vec![(Arc::new(upper.dup()?), None::<OsString>)];
    while let Some((above, name)) = left.pop() {
        let dir = match name.as_deref().map(|name| above.open_dir(name)) {
            None => above,
            Some(Ok(dir)) => Arc::new(dir),
            // A directory without permissions has nothing in it that a plain user could have
            // marked.
            Some(Err(error)) if error.is_denied() => continue,
            Some(Err(error)) => return Err(error.into()),
        };
        for entry in dir.entries()? {
            let entry = entry?;
            let name = entry.name.as_os_str();
            if name == wh::OPAQUE {
                return Ok(Sign::Names);
            }
            names |= name.as_bytes().starts_with(wh::PREFIX.as_bytes());
            match entry.kind {
                FileKind::Char => kernel |= dir.stat(name)?.is_null_device(),
                FileKind::Dir => left.push((Arc::clone(&dir), Some(entry.name))),
                _ => {}
            }
        }
    }
    Ok(match (kernel, names) {
        (true, _) => Sign::Kernel,
        (false, true) => Sign::Names,
        (false, false) => Sign::None,
    })
}

/// Returns the namespace in which an upper has marks; `None` if it has none.
///
/// If it has marks in both, those are the overlay's that users can't set.
pub(super) fn prefix_of(upper: &Dir, work: Option<&Dir>) -> Result<Option<Prefix>> {
    let mut found = None;
    let mut note = |names: vellum_sys::Result<Vec<OsString>>| {
        for name in names.unwrap_or_default() {
            for prefix in Prefix::ALL {
                if prefix.is_control(&name) {
                    found = match found {
                        Some(Prefix::Trusted) => found,
                        _ => Some(prefix),
                    };
                }
            }
        }
        found == Some(Prefix::Trusted)
    };
    if note(xattr::list_fd(upper)) {
        return Ok(found);
    }
    if let Some(index) = work.and_then(|work| work.open_dir(workdir::INDEX).ok())
        && note(xattr::list_fd(&index))
    {
        return Ok(found);
    }
    // By paths, so that neither depth nor width costs descriptors. What is too deep to be reached
    // this way is not where an overlay has its only mark.
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        // The check will report what can't be read.
        let Ok(dir) = upper.open_dir_quietly(&path) else {
            continue;
        };
        for entry in dir.entries()?.flatten() {
            if note(xattr::list(&dir, &entry.name)) {
                return Ok(found);
            }
            if entry.kind == FileKind::Dir {
                left.push(path.join(&entry.name));
            }
        }
    }
    Ok(found)
}

/// Tells whether the work directory was the kernel's overlay's: the kernel creates directories in
/// it that others don't, or without any permissions.
fn is_kernels_work(work: &Dir) -> bool {
    let has_index = work.stat(workdir::INDEX).is_ok_and(|stat| stat.is_dir());
    let shut = work
        .stat(workdir::STAGING)
        .is_ok_and(|stat| stat.is_dir() && stat.mode & 0o7777 == 0);
    has_index || shut
}

/// Tells whether the file system takes marks as xattrs. Tries one that means nothing, and removes
/// it.
fn takes_xattrs(options: &MountOptions, upper: &Dir) -> Result<bool> {
    let name = prefix(options)?.xattr(Mark::Probe);
    match xattr::set_fd(upper, name, b"", xattr::SetMode::Any) {
        Ok(()) => {
            xattr::remove_fd(upper, name)?;
            Ok(true)
        }
        Err(error) if error.is_unsupported() || error.is_denied() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

//! One end of a copy: a root, a path in it, and the file found there.
//!
//! A path that ends with `/` or `/.` means a directory; `/.` means its content. The host's root is
//! `/`, so both ends are resolved the same way.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use vellum_store::ContainerRecord;
use vellum_sys::error::fd_path;
use vellum_sys::in_root::{self, Last};
use vellum_sys::stat::stat_fd;
use vellum_sys::{Dir, FileKind, Stat};

use super::{CopyEnd, invalid};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::mount::mounted;
use crate::mount::umount;
use crate::{mount, names, run_dir};

/// A root and a path in it: the host's is `/`.
pub(super) struct Side {
    pub root: Dir,
    pub path: PathBuf,
    /// The root's own path on the host, for splitting the paths of descriptors.
    pub top: PathBuf,
    /// The container, and whether it was mounted only for the copy and will be unmounted
    /// afterwards.
    container: Option<(ContainerRecord, bool)>,
}

/// A file that was found: its directory's descriptor, and its name there. The root has no name.
pub(super) struct FoundFile {
    pub dir: Dir,
    pub name: Option<OsString>,
    pub stat: Stat,
    /// Its path below the side's root, without links.
    pub path: PathBuf,
}

/// Opens a side, mounting its container if it isn't, and unmounts it again afterwards.
pub(super) fn with<T>(
    ctx: &Context,
    end: &CopyEnd,
    work: impl FnOnce(&Side) -> Result<T>,
) -> Result<T> {
    let side = open(ctx, end)?;
    let done = work(&side);
    let Side {
        root, container, ..
    } = side;
    drop(root);
    let (Some((record, for_this)), CopyEnd::Container { name, .. }) = (container, end) else {
        return done;
    };
    let done = match done {
        Ok(done) => names::still_there(ctx, &record, name).map(|()| done),
        Err(error) => Err(names::unless_gone(ctx, &record, name, error)),
    };
    if for_this {
        let left = umount::umount_container(ctx, &record, true);
        // The copy's own failure is the one to report.
        if done.is_ok() {
            left?;
        }
    }
    done
}

fn open(ctx: &Context, end: &CopyEnd) -> Result<Side> {
    match end {
        CopyEnd::Host(path) => {
            let path = absolute(path)?;
            Ok(Side {
                root: Dir::open(Path::new("/"))?,
                path,
                top: "/".into(),
                container: None,
            })
        }
        CopyEnd::Container { name, path } => names::with_container(ctx, name, |record| {
            let _lock = run_dir::lock_container(ctx, &record.id)?;
            let shown = mounted::is_shown(ctx, record)?;
            let mounted = mount::mount_locked(ctx, record, None, false)?;
            let top =
                std::fs::canonicalize(&mounted.path).map_err(Error::io("find", &mounted.path))?;
            Ok(Side {
                root: Dir::open(&top)?,
                path: Path::new("/").join(path),
                top,
                container: Some((record.clone(), !shown)),
            })
        }),
        CopyEnd::Pipe => Err(invalid("a tar has no path")),
    }
}

/// Makes a path absolute, keeping a trailing `/` or `/.`, which have a meaning here.
fn absolute(path: &Path) -> Result<PathBuf> {
    let mut whole = match path.is_absolute() {
        true => OsString::new(),
        false => std::env::current_dir()
            .map_err(Error::io("find", "."))?
            .into_os_string(),
    };
    if !whole.is_empty() {
        whole.push("/");
    }
    whole.push(path);
    Ok(whole.into())
}

impl Side {
    /// Finds the file at this side's path; `None` if there is none.
    pub fn find(&self, last: Last) -> Result<Option<FoundFile>> {
        let Some(handle) = in_root::find(&self.root, &self.path, last)? else {
            return Ok(None);
        };
        let stat = stat_fd(&handle)?;
        let real = fd_path(handle.as_fd()).ok_or_else(|| self.missing())?;
        let path = real.strip_prefix(&self.top).map_err(|_| self.missing())?;
        let (dir, name) = match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) => (self.dir(above)?, Some(name.to_owned())),
            _ => (self.root.dup()?, None),
        };
        Ok(Some(FoundFile {
            dir,
            name,
            stat,
            path: path.to_owned(),
        }))
    }

    /// Finds the file to copy. A link itself is copied, unless links are followed or the path asks
    /// for its target.
    pub fn source(&self, follow: bool) -> Result<FoundFile> {
        let last = match follow || self.ends_as_directory() {
            true => Last::Follow,
            false => Last::Keep,
        };
        let found = self.find(last)?.ok_or_else(|| self.missing())?;
        if self.ends_as_directory() && !found.is_dir() {
            return Err(self.not_a_directory());
        }
        Ok(found)
    }

    /// Returns the directory and the name that this path would have if something were there. For a
    /// dangling link, that is the place it points to, unless the path asks for a directory.
    ///
    /// Errors: that directory is not there.
    pub fn vacant(&self) -> Result<(Dir, OsString)> {
        // `new/.` is in `new`, which is not there.
        if self.wants_content() {
            return Err(self.missing());
        }
        let path = match self.ends_as_directory() {
            // Joined from its components, which drops the slash.
            true => self.path.components().collect(),
            false => in_root::resolve(&self.root, &self.path)?,
        };
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(self.missing());
        };
        let dir = in_root::dir(&self.root, above)?.ok_or_else(|| self.missing())?;
        Ok((dir, name.to_owned()))
    }

    fn dir(&self, inside: &Path) -> Result<Dir> {
        if inside.as_os_str().is_empty() {
            Ok(self.root.dup()?)
        } else {
            Ok(self.root.open_dir(inside)?)
        }
    }

    pub fn missing(&self) -> Error {
        Error::Io {
            action: "find",
            path: self.shown(),
            source: rustix::io::Errno::NOENT.into(),
        }
    }

    pub fn not_a_directory(&self) -> Error {
        invalid(&format!("{} is not a directory", self.shown().display()))
    }

    /// Returns the path as the user writes it: `CONTAINER:PATH` in a container.
    pub fn shown(&self) -> PathBuf {
        match &self.container {
            None => self.path.clone(),
            Some((record, _)) => {
                let mut text = OsString::from(format!("{}:", record.name));
                text.push(&self.path);
                text.into()
            }
        }
    }

    /// Tells whether the path ends with `/` or `/.`: it means a directory, or a directory's
    /// content.
    pub fn ends_as_directory(&self) -> bool {
        self.path.as_os_str().as_bytes().ends_with(b"/") || self.wants_content()
    }

    /// Tells whether the path ends with `/.`.
    pub fn wants_content(&self) -> bool {
        self.path.as_os_str().as_bytes().ends_with(b"/.")
    }

    /// Returns the name that a copy gets if its destination is a directory.
    pub fn base_name(&self, found: &FoundFile) -> OsString {
        let typed = self.path.components().next_back();
        match (typed, &found.name) {
            (Some(Component::Normal(name)), _) => name.to_owned(),
            (_, Some(name)) => name.clone(),
            (_, None) => OsString::from("rootfs"),
        }
    }
}

impl FoundFile {
    pub fn is_dir(&self) -> bool {
        self.stat.kind == FileKind::Dir
    }

    pub fn open_dir(&self) -> Result<Dir> {
        match &self.name {
            Some(name) => Ok(self.dir.open_dir(name)?),
            None => Ok(self.dir.dup()?),
        }
    }

    /// Returns the name of a non-directory.
    pub fn file_name(&self) -> Result<&OsStr> {
        self.name
            .as_deref()
            .ok_or_else(|| invalid("the root is not a file"))
    }
}

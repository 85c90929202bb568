//! Who else can write to the store, and whether its directories are its own.
//!
//! The root is 0700 and everything in it belongs to one user. If a restored backup, a `chmod -R` or
//! an attacker changed that, others can change what containers run, or lead a deletion astray with
//! a link. There are two grades. A directory of the store that is a link, a file or another file
//! system *diverts*: every change of the store is refused with its name before it begins ([`own`]).
//! One that others may write to is *exposed*: that is reported when the store is opened and by
//! `check`, and fixed by `check --heal`. Deletion itself uses descriptors and follows nothing
//! (`tx.rs`), so a change after the check gains nothing.
//!
//! The checks are cheap: one statx(2) for each of the store's own few directories, none for its
//! trees. Access control lists need no check of their own: they can't grant more than the group
//! bits of the mode.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use vellum_sys::{FileKind, Stat, plain, rooted, xattr};

use crate::{
    driver::Finding,
    error::{Result, StoreError},
    layout::{self, Layout},
    located::{self, Shelf},
};

/// Those that must be on the same mount as the root.
const MADE_AND_DELETED_IN: [Shelf; 2] = [Shelf::Staging, Shelf::Trash];

/// The existing directories of a store, with what a look at each from the open root returned.
struct StoreDirs {
    root: Stat,
    /// Below the root, with what is there: not always a directory.
    below: Vec<(PathBuf, Stat)>,
}

impl StoreDirs {
    fn of(layout: &Layout) -> Result<Self> {
        let root = layout::dir(layout.root())?;
        let mut below = Vec::new();
        for path in located::own_dirs() {
            let found = match path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                None => root.stat_opt(&path)?,
                Some(dir) => match root.open_dir(dir) {
                    Ok(dir) => dir.stat_opt(path.file_name().unwrap_or_default())?,
                    // Missing, or reported separately.
                    Err(e) if e.is_not_found() || plain::is_wrong_kind(&e) => None,
                    Err(e) => return Err(e.into()),
                },
            };
            below.extend(found.map(|found| (layout.root().join(path), found)));
        }
        Ok(Self {
            root: root.stat_self()?,
            below,
        })
    }

    /// Fails with `Diverted` for the first that is not the store's own.
    fn all_own(&self) -> Result<()> {
        for (path, found) in &self.below {
            is_directory(path, found)?;
            if MADE_AND_DELETED_IN
                .iter()
                .any(|shelf| path.ends_with(shelf.dir()))
            {
                on_the_store(path, &self.root, found)?;
            }
        }
        Ok(())
    }
}

/// Fails with `Diverted` if a directory of the store is something else, or another file system is
/// mounted where things are deleted.
///
/// Call it before anything is changed.
pub(crate) fn own(layout: &Layout) -> Result<()> {
    StoreDirs::of(layout)?.all_own()
}

fn is_directory(path: &Path, found: &Stat) -> Result<()> {
    if found.is_dir() {
        return Ok(());
    }
    let error = plain::wrong_kind("open the directory", path, found.kind, FileKind::Dir);
    Err(StoreError::Diverted {
        path: path.to_owned(),
        why: error.source.to_string(),
    })
}

/// Fails with `Diverted` if `found` is on another mount than the store's root.
pub(crate) fn on_the_store(path: &Path, root: &Stat, found: &Stat) -> Result<()> {
    if found.same_mount(root) {
        return Ok(());
    }
    Err(StoreError::Diverted {
        path: path.to_owned(),
        why: "something else is mounted on it".into(),
    })
}

/// Who may own what is in a store besides root.
struct Owners {
    me: u32,
    /// The owner of the store's root.
    store: Option<u32>,
}

impl Owners {
    fn new(store: Option<u32>) -> Self {
        let me = rustix::process::geteuid().as_raw();
        Self { me, store }
    }

    /// Says in what way others may write to a directory.
    fn exposed(&self, path: &Path, found: &Stat, acl: impl Fn() -> bool) -> Option<String> {
        let uid = found.uid;
        if uid != 0 && uid != self.me && Some(uid) != self.store {
            return Some(format!(
                "it belongs to uid {uid}, so others may write to it: inspect its contents, then `chown {} {}`",
                self.me,
                path.display()
            ));
        }
        if found.mode & 0o022 == 0 {
            return None;
        }
        let by = match found.mode & 0o002 == 0 && acl() {
            true => ", by its access control list",
            false => "",
        };
        Some(format!(
            "others may write to it (mode {:04o}{by}): inspect its contents; `vellum check --heal` fixes the mode",
            found.mode
        ))
    }
}

/// Returns which of the store's own directories others may write to, or are not its own. With
/// `heal`, modes are repaired.
pub(crate) fn check(layout: &Layout, heal: bool) -> Result<Vec<Finding>> {
    let dirs = StoreDirs::of(layout)?;
    let root = exposure(&Owners::new(None), layout.root(), &dirs.root, heal)?;
    let mut found = Vec::from_iter(root);
    if let Err(StoreError::Diverted { path, why }) = dirs.all_own() {
        found.push(Finding {
            what: path.display().to_string(),
            why: format!(
                "{why}; put the store's own directory back: nothing is changed until then"
            ),
            healed: false,
        });
    }
    let owners = Owners::new(Some(dirs.root.uid));
    for (path, stat) in dirs.below.iter().filter(|(_, stat)| stat.is_dir()) {
        found.extend(exposure(&owners, path, stat, heal)?);
    }
    Ok(found)
}

/// Whether others may write to a directory inside the store that is not one of its own few: a
/// tree's, a volume's.
pub(crate) fn check_inner(layout: &Layout, path: &Path, heal: bool) -> Result<Option<Finding>> {
    match plain::stat(path).map_err(layout::damaged)? {
        Some(found) if found.is_dir() => {
            let store = layout::dir(layout.root())?.stat_self()?.uid;
            exposure(&Owners::new(Some(store)), path, &found, heal)
        }
        // Reported by the code that needs it.
        _ => Ok(None),
    }
}

fn exposure(owners: &Owners, path: &Path, found: &Stat, heal: bool) -> Result<Option<Finding>> {
    let acl = || {
        let name = OsStr::new("system.posix_acl_access");
        layout::dir(path).is_ok_and(|dir| matches!(xattr::get_fd(&dir, name), Ok(Some(_))))
    };
    let Some(why) = owners.exposed(path, found, acl) else {
        return Ok(None);
    };
    let open = found.mode & 0o022 != 0;
    let foreign = found.uid != 0 && found.uid != owners.me;
    let healed = heal && open && !foreign;
    if healed {
        // With an ACL the group bits are its mask: without them nobody that it names may write
        // either.
        rooted::set_mode_fd(layout::dir(path)?, found.mode & !0o022)?;
    }
    Ok(Some(Finding {
        what: path.display().to_string(),
        why,
        healed,
    }))
}

/// Logs each directory of the store that others may write to, or that is not the store's own, for
/// the process that opens the store. Returns whether all are its own.
pub(crate) fn warn(layout: &Layout) -> bool {
    match check(layout, false) {
        Ok(found) => found.iter().for_each(|finding| {
            tracing::warn!("the store is not safe: {}: {}", finding.what, finding.why);
        }),
        Err(error) => tracing::debug!(%error, "the store's directories were not checked"),
    }
    own(layout).is_ok()
}

/// Removes others' write permission from a directory that becomes a store's root, if this user owns
/// it: the store's own mode is 0700, and a directory that a plain user created has whatever the
/// umask left.
pub(crate) fn close_new_root(root: &Path) -> Result<()> {
    let dir = layout::dir(root)?;
    let found = dir.stat_self()?;
    if found.uid == rustix::process::geteuid().as_raw() && found.mode & 0o022 != 0 {
        rooted::set_mode_fd(&dir, found.mode & !0o022)?;
    }
    Ok(())
}

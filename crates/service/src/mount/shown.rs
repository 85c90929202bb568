//! A tree's own mount point: its states, and the only transitions between them.
//!
//! ```text
//!             show                      the engine's process ends
//!  Nothing ─────────▶ Live ───────────────────────────────────────▶ Dead
//!     ▲                 │ hide                                       │
//!     └─────────────────┴──────────────── hide, bury ────────────────┘
//! ```
//!
//! The state is read from the mount table each time and never remembered, so it can't get out of
//! date. A foreign mount in the way is not a state: it is refused as [`crate::Error::Covered`] and
//! never touched. The caller holds the lock of the container or layer that the tree belongs to.
//!
//! **Dead** is what the kernel keeps of a mount of Vellum's engine whose process was killed: every
//! access fails with ENOTCONN. It protects nothing: acknowledged writes are in the upper, others
//! are lost, and a process in it can do nothing but leave. So it is never a reason to refuse, and
//! is always detached. A living engine holds its upper's lock; one that is merely slow is neither
//! waited for nor taken for dead.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vellum_store::{Overlay, Shape, SnapshotKey, TreeParts};
use vellum_sys::Dir;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::mount::{self, BindOptions, Detach};
use vellum_sys::mountinfo::{self, Mount, Table};

use crate::context::Context;
use crate::error::{Error, Result};

use super::place::{self, ENGINE_TYPE};
use super::{MountRequest, execute};

/// The state of the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The bare directory, or nothing at all.
    Nothing,
    /// The tree.
    Live,
    /// A mount whose process has ended.
    Dead,
}

/// What happens to a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    /// It stays as it is.
    Respected,
    /// It is hidden, and its users may stay in it.
    Ignored,
}

/// How a tree can be accessed.
#[derive(Debug)]
pub(crate) enum Seen<'t> {
    /// As a plain directory that needs no mount.
    Directory(&'t Path),
    /// At its place, while it is mounted.
    AtPlace(Shown<'t>),
}

impl<'t> Seen<'t> {
    /// Looks up a tree. Errors: [`Error::Covered`] if something foreign is mounted at its place.
    pub(crate) fn look(parts: &'t TreeParts) -> Result<Self> {
        Self::look_in(parts, &mountinfo::read()?)
    }

    /// Like [`Seen::look`], for a caller that has just read the mount table.
    pub(crate) fn look_in(parts: &'t TreeParts, table: &Table) -> Result<Self> {
        match &parts.shape {
            Shape::Plain { root, .. } => Ok(Self::Directory(root)),
            Shape::Overlay(overlay) => Ok(Self::AtPlace(Shown::at(parts, overlay, table)?)),
        }
    }

    /// Returns its place, if it has one.
    pub(crate) fn at_place(self) -> Option<Shown<'t>> {
        match self {
            Self::Directory(_) => None,
            Self::AtPlace(shown) => Some(shown),
        }
    }
}

/// A tree's place and its state.
#[derive(Debug)]
pub(crate) struct Shown<'t> {
    parts: &'t TreeParts,
    overlay: &'t Overlay,
    state: State,
    by_engine: bool,
}

impl<'t> Shown<'t> {
    fn at(parts: &'t TreeParts, overlay: &'t Overlay, table: &Table) -> Result<Self> {
        let state = match place::is_shown(&overlay.home, &overlay.merged, table)? {
            false => State::Nothing,
            true if is_dead(overlay, table) => State::Dead,
            true => State::Live,
        };
        let by_engine =
            place::latest(&overlay.merged, table).is_some_and(|mount| mount.fs_type == ENGINE_TYPE);
        Ok(Self {
            parts,
            overlay,
            state,
            by_engine,
        })
    }

    /// Returns the state.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Tells whether Vellum's engine serves the mount.
    pub(crate) fn is_by_engine(&self) -> bool {
        self.by_engine
    }

    /// The place.
    pub(crate) fn place(&self) -> &'t Path {
        &self.overlay.merged
    }

    /// From nothing to live: mounts the tree of `snapshot`, and returns the method. The name is for
    /// messages.
    pub(crate) fn show(
        &mut self,
        ctx: &Context,
        snapshot: &SnapshotKey,
        name: &str,
        request: MountRequest,
    ) -> Result<&'static str> {
        debug_assert_eq!(self.state, State::Nothing);
        match fs::DirBuilder::new().mode(0o700).create(self.place()) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create", self.place())(e)),
        }
        let method = execute::tree(ctx, (snapshot, name), self.parts, self.place(), request)
            // The first error is the one to report.
            .inspect_err(|_| self.tidy())?;
        self.state = State::Live;
        Ok(method)
    }

    /// From live or dead to nothing. Returns whether no process was in it; with
    /// [`Users::Respected`], the mount otherwise stays.
    pub(crate) fn hide(&mut self, users: Users) -> Result<bool> {
        let unused = match (self.state, users) {
            (State::Nothing, _) => true,
            (State::Dead, _) | (State::Live, Users::Ignored) => {
                match mount::unmount(self.place(), Detach::No) {
                    Ok(_) => true,
                    Err(e) if e.is_busy() => {
                        mount::unmount(self.place(), Detach::Yes)?;
                        false
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            (State::Live, Users::Respected) => {
                if !unmount_unused(self.place())? {
                    return Ok(false);
                }
                true
            }
        };
        self.state = State::Nothing;
        self.tidy();
        Ok(unused)
    }

    /// From dead to nothing: removes the mount and its bind mounts, and returns the latter. Reports
    /// which processes are still in it.
    pub(crate) fn bury(&mut self, ctx: &Context, name: &str) -> Result<Vec<Copy>> {
        debug_assert_eq!(self.state, State::Dead);
        let copies = bury_at(ctx, self.place(), name)?;
        self.state = State::Nothing;
        Ok(copies)
    }

    /// Binds the new mount to the places of the buried one.
    pub(crate) fn restore(&self, copies: &[Copy]) -> Result<()> {
        for copy in copies {
            let options = BindOptions {
                read_only: copy.read_only,
                ..BindOptions::default()
            };
            mount::bind(self.place(), &copy.at, options)?;
        }
        Ok(())
    }

    /// Waits until the process that served the mount has written everything and released the upper,
    /// which the next mount needs.
    pub(crate) fn wait_for_engine(&self) {
        const PATIENCE: Duration = Duration::from_secs(30);
        let Some(upper) = &self.overlay.upper else {
            return;
        };
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if !is_held(&upper.dir) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        tracing::warn!(upper = %upper.dir.display(), "the engine is still writing");
    }

    /// Docker's overlay2 has the directory only while mounted, its overlay always. Removing it ends
    /// the mount in other mount namespaces.
    fn tidy(&self) {
        if self.parts.driver.keeps_mount_points() {
            return;
        }
        match fs::remove_dir(self.place()) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // An old one does no harm.
            Err(error) => tracing::debug!(%error, "the mount point stays"),
        }
    }
}

/// Tells whether a tree is mounted by a process that has ended.
pub(crate) fn is_tree_dead(parts: &TreeParts, table: &Table) -> bool {
    match &parts.shape {
        Shape::Overlay(overlay) => is_dead(overlay, table),
        Shape::Plain { .. } => false,
    }
}

/// If that is unknown, it counts as alive.
fn is_dead(overlay: &Overlay, table: &Table) -> bool {
    engines_mount(&overlay.merged, table).is_some()
        && !overlay
            .upper
            .as_ref()
            .is_some_and(|upper| is_held(&upper.dir))
        && matches!(mount::is_served(&overlay.merged), Ok(false))
}

/// Tells whether `path` is a mount point of the engine, of the store at `root`, whose process has
/// ended.
pub(super) fn is_dead_of(root: &Path, path: &Path) -> Result<bool> {
    let table = mountinfo::read()?;
    Ok(
        engines_mount(path, &table).is_some_and(|m| Path::new(&m.source) == root)
            && matches!(mount::is_served(path), Ok(false)),
    )
}

/// A bind mount of a dead mount, at another place than the tree's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    at: PathBuf,
    read_only: bool,
}

impl Copy {
    /// Tells whether it is at `path`, with the wanted access.
    pub(crate) fn is(&self, path: &Path, read_only: bool) -> bool {
        self.at == path && self.read_only == read_only
    }
}

/// Removes the dead mount at `place` and its bind mounts, and returns the latter. Reports which
/// processes are still in it.
pub(super) fn bury_at(ctx: &Context, place: &Path, name: &str) -> Result<Vec<Copy>> {
    let table = mountinfo::read()?;
    let Some(own) = engines_mount(place, &table) else {
        return Ok(Vec::new());
    };
    let inside = users(place);
    let mut copies = Vec::new();
    for found in table.mounts() {
        // A bind mount of only a part of the tree is not ours.
        let is_copy = found.dev == own.dev && found.root == own.root && found.id != own.id;
        if is_copy && mount::unmount_id(&found.mount_point, found.id)? {
            copies.push(Copy {
                at: found.mount_point.clone(),
                read_only: found.is_read_only(),
            });
        }
    }
    mount::unmount_id(place, own.id)?;
    let who = match inside {
        None => String::new(),
        Some(who) => format!("; restart {who}"),
    };
    ctx.progress.warn(&format!(
        "the process that served the mount of {name} had ended: completed writes are safe{who}"
    ));
    Ok(copies)
}

/// Returns the engine's mount at `place`.
fn engines_mount<'t>(place: &Path, table: &'t Table) -> Option<&'t Mount> {
    let mut latest = table.mounts().iter().rev();
    latest.find(|m| m.mount_point == place && m.fs_type == ENGINE_TYPE)
}

/// Tells whether an engine has the upper directory `upper`, or is still writing to it.
fn is_held(upper: &Path) -> bool {
    let lock = Dir::open(upper).and_then(|dir| Lock::try_now(dir, Sharing::Shared));
    matches!(lock, Ok(None))
}

/// Unmounts `place` unless it is in use; returns false if it is. Waits for a user that is just
/// leaving: a program between its last read and its exit, or a child that has not executed its
/// program yet and still has its parent's open files.
pub(crate) fn unmount_unused(place: &Path) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let until = Instant::now() + PATIENCE;
    loop {
        match mount::unmount(place, Detach::No) {
            Ok(_) => return Ok(true),
            Err(e) if e.is_busy() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) if e.is_busy() => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Names some processes whose working directory, root or open files are on the mount at `place`.
pub(crate) fn users(place: &Path) -> Option<String> {
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let base = process.path();
        let mut links = vec![base.join("cwd"), base.join("root")];
        links.extend(
            fs::read_dir(base.join("fd"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
        if links
            .iter()
            .any(|link| fs::read_link(link).is_ok_and(|to| to.starts_with(place)))
        {
            let command = fs::read_to_string(base.join("comm")).unwrap_or_default();
            found.insert(format!("process {pid} ({})", command.trim()));
        }
        if found.len() == 5 {
            break;
        }
    }
    (!found.is_empty()).then(|| {
        let all: Vec<_> = found.into_iter().collect();
        format!("{} in {}", all.join(", "), place.display())
    })
}

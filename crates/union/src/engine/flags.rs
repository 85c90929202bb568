//! The flags that `chattr` sets.
//!
//! An upper inode can't be immutable or append-only itself: the engine could no longer remove, move
//! or change it. As in the kernel's overlayfs, these two flags are kept in a mark (`protattr`) and
//! enforced by every operation; the others are the inode's own.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use vellum_format::{Mark, Protattr};
use vellum_sys::flags::{self, APPEND_ONLY, IMMUTABLE};
use vellum_sys::rooted::Access;
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, FileKind, Stat, quota};

use crate::at::At;
use crate::engine::action::{Action, Attrs};
use crate::engine::depth::Depth;
use crate::engine::nodes::gate::{Gate, Placed};
use crate::engine::nodes::{Body, LiveNode};
use crate::engine::request::NodeId;
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::{Error, Refusal, Result};

const PROTECTED: u32 = IMMUTABLE | APPEND_ONLY;

/// The values of a node's `protection`.
pub(crate) const UNKNOWN: u8 = 0;
pub(crate) const KNOWN: u8 = 1;
const IS_IMMUTABLE: u8 = 2;
const IS_APPEND_ONLY: u8 = 4;

/// Returns the protection of a lower inode, from its attributes.
pub(crate) fn below(stat: &Stat) -> u8 {
    bits(stat.immutable, stat.append_only)
}

fn bits(immutable: bool, append_only: bool) -> u8 {
    let immutable = if immutable { IS_IMMUTABLE } else { 0 };
    KNOWN | immutable | if append_only { IS_APPEND_ONLY } else { 0 }
}

/// A descriptor from which flags can be read.
enum Open {
    File(File),
    Dir(Arc<Dir>),
}

impl Engine {
    /// Returns the `FS_*_FL` flags of a regular file or directory.
    ///
    /// Errors: [`Refusal::Unsupported`] for other types, and if the file system has no flags.
    pub fn flags(&self, id: NodeId) -> Result<u32> {
        let node = self.flagged(id)?;
        self.flags_in(self.unmoved(&node).placed())
    }
}

impl Action<'_> {
    /// Sets the flags of a regular file or directory; those not given are cleared.
    ///
    /// Copies attributes up, not data. The caller has checked permissions. Errors: as
    /// [`Engine::flags`].
    pub fn set_flags(&self, id: NodeId, flags: u32) -> Result<()> {
        let upper = self.upper()?;
        let node = self.flagged(id)?;
        self.to_upper(&node, Depth::Meta)?;
        self.touch(node.id, Attrs::CTIME);
        let gate = self.shared();
        // For writing: no operation checks the flags while they change.
        let state = node.state_mut();
        let at = state.placed(&gate).at().on(upper)?.ok_or(Refusal::Stale)?;
        let open = open(&at).on(upper)?;
        let own = own_flags(&open).map_err(|error| unsupported_or(upper, error))?;
        let wanted = flags & !PROTECTED;
        let set = match &open {
            Open::File(file) => flags::set(file, wanted),
            Open::Dir(dir) => flags::set(&**dir, wanted),
        };
        // Also if they are unchanged: the ctime changes all the same. But then a refusal doesn't
        // matter.
        if own & !PROTECTED != wanted {
            set.map_err(|error| unsupported_or(upper, error))?;
        }
        let mark = upper.options.prefix.xattr(Mark::Protattr);
        let protattr = Protattr {
            append_only: flags & APPEND_ONLY != 0,
            immutable: flags & IMMUTABLE != 0,
        };
        let set = match protattr.encode() {
            Some(value) => at.set_xattr(mark, value, SetMode::Any),
            None => at.remove_xattr(mark).map(drop),
        };
        node.protection.store(UNKNOWN, Ordering::Relaxed);
        set.on(upper)?;
        self.files.forget(node.id);
        Ok(())
    }
}

impl Engine {
    /// Returns the project number of a regular file or directory; 0 by default, and if the file
    /// system has no projects.
    ///
    /// Errors: [`Refusal::Unsupported`] for other types.
    pub fn project(&self, id: NodeId) -> Result<u32> {
        let node = self.flagged(id)?;
        let state = self.unmoved(&node);
        let asked = match (state.placed().at().on(self.layer(0))?, &state.body) {
            (Some(at), _) => open(&at).and_then(|open| match &open {
                Open::File(file) => quota::project(file),
                Open::Dir(dir) => quota::project(&**dir),
            }),
            (None, Body::Dir(dir)) => {
                let top = dir.parts.first().ok_or(Refusal::Stale)?;
                top.dir.dir.open_path(None).and_then(quota::project)
            }
            (None, Body::File(file)) => {
                let lower = file.lower.as_ref().ok_or(Refusal::Stale)?;
                lower.dir.open_file(&lower.name).and_then(quota::project)
            }
        };
        match asked {
            Err(error) if error.is_unsupported() || error.is(Errno::NOTTY) => Ok(0),
            other => other.on(self.layer(0)),
        }
    }
}

impl Action<'_> {
    /// Sets the project number of a regular file or directory, on the upper layer's file system.
    ///
    /// Copies attributes up, not data. Errors: as [`Engine::flags`].
    pub fn set_project(&self, id: NodeId, project: u32) -> Result<()> {
        if self.project(id)? == project {
            return Ok(());
        }
        let upper = self.upper()?;
        let node = self.flagged(id)?;
        self.may_change(&node, &self.shared())?;
        self.to_upper(&node, Depth::Meta)?;
        self.touch(node.id, Attrs::CTIME);
        let gate = self.shared();
        let state = node.state_mut();
        let at = state.placed(&gate).at().on(upper)?.ok_or(Refusal::Stale)?;
        let given = open(&at).and_then(|open| match &open {
            Open::File(file) => quota::give_project(file, project),
            Open::Dir(dir) => quota::give_project(&**dir, project),
        });
        given.map_err(|error| match error.is(Errno::NOTTY) {
            true => Refusal::Unsupported.into(),
            false => unsupported_or(upper, error),
        })
    }
}

impl Engine {
    fn flagged(&self, id: NodeId) -> Result<Arc<LiveNode>> {
        let node = self.node(id)?;
        match node.kind {
            FileKind::File | FileKind::Dir => Ok(node),
            _ => Err(Refusal::Unsupported.into()),
        }
    }

    /// Returns whether no caller may change it: it is immutable, or (for writes at any offset)
    /// append-only.
    pub(crate) fn is_immutable(&self, node: &LiveNode) -> Result<bool> {
        if !matches!(node.kind, FileKind::File | FileKind::Dir) {
            return Ok(false);
        }
        let flags = match self.flags_in(self.unmoved(node).placed()) {
            Err(Error::Refused {
                refusal: Refusal::Unsupported,
            }) => 0,
            other => other?,
        };
        Ok(flags & IMMUTABLE != 0)
    }

    /// Refuses to change, move, remove or link an immutable or append-only node, for any caller.
    pub(crate) fn may_change(&self, node: &LiveNode, gate: &Gate<'_>) -> Result<()> {
        match self.protection(node, gate)? & (IS_IMMUTABLE | IS_APPEND_ONLY) {
            0 => Ok(()),
            _ => Err(Refusal::NotPermitted.into()),
        }
    }

    /// Refuses to add names to an immutable directory.
    pub(crate) fn may_add_to(&self, dir: &LiveNode, gate: &Gate<'_>) -> Result<()> {
        match self.protection(dir, gate)? & IS_IMMUTABLE {
            0 => Ok(()),
            _ => Err(Refusal::NotPermitted.into()),
        }
    }

    /// Returns whether a file that is still below is protected from all changes, without opening
    /// it.
    pub(crate) fn is_protected_below(&self, node: &LiveNode) -> Result<bool> {
        Ok(self.protection(node, &self.shared())? & IS_IMMUTABLE != 0)
    }

    /// Returns a node's protection, which is read once. The caller does not hold the node's state.
    fn protection(&self, node: &LiveNode, gate: &Gate<'_>) -> Result<u8> {
        if !matches!(node.kind, FileKind::File | FileKind::Dir) {
            return Ok(KNOWN);
        }
        match node.protection.load(Ordering::Relaxed) {
            UNKNOWN => {}
            known => return Ok(known),
        }
        let state = node.state();
        let at = state.placed(gate).at().on(self.layer(0))?;
        let found = match (at, &self.upper, &state.body) {
            (Some(at), Some(upper), _) => {
                let value = at.xattr(upper.options.prefix.xattr(Mark::Protattr));
                let value = value.on(upper)?;
                let flags = value.map_or(0, |value| protected(&value));
                bits(flags & IMMUTABLE != 0, flags & APPEND_ONLY != 0)
            }
            (_, _, Body::Dir(dir)) => below(&dir.parts.first().ok_or(Refusal::Stale)?.dir.stat),
            // Known since the lookup, except for a file taken over from another engine.
            (_, _, Body::File(file)) => {
                below(&self.stat_lower(file.lower.as_ref().ok_or(Refusal::Stale)?)?)
            }
        };
        // Stored while the state is held: setting flags holds it for writing.
        node.protection.store(found, Ordering::Relaxed);
        Ok(found)
    }

    fn flags_in(&self, state: Placed<'_>) -> Result<u32> {
        if let Some(upper) = &self.upper
            && let Some(at) = state.at().on(upper)?
        {
            let open = open(&at).on(upper)?;
            let own = own_flags(&open).map_err(|error| unsupported_or(upper, error))?;
            let value = at.xattr(upper.options.prefix.xattr(Mark::Protattr));
            let value = value.on(upper)?;
            return Ok(own & !PROTECTED | value.map_or(0, |value| protected(&value)));
        }
        let (layer, file) = match &state.body {
            Body::Dir(dir) => {
                let top = dir.parts.first().ok_or(Refusal::Stale)?;
                return match top.dir.dir.flags() {
                    Ok(flags) => Ok(flags),
                    Err(error) if error.is_unsupported() => Err(Refusal::Unsupported.into()),
                    Err(error) => Err(self.layer(top.layer).io(error)),
                };
            }
            Body::File(file) => {
                let lower = file.lower.as_ref().ok_or(Refusal::Stale)?;
                let open = lower.dir.open_file(&lower.name);
                (lower.layer, open.on(self.layer(lower.layer))?)
            }
        };
        match flags::get(&file) {
            Ok(flags) => Ok(flags),
            Err(error) if error.is_unsupported() => Err(Refusal::Unsupported.into()),
            Err(error) => Err(self.layer(layer).io(error)),
        }
    }
}

/// Returns the flags in a mark. A mark that can't be read protects nothing; it is reported
/// elsewhere.
fn protected(value: &[u8]) -> u32 {
    let protattr = Protattr::parse(value).unwrap_or_default();
    let append = if protattr.append_only { APPEND_ONLY } else { 0 };
    let immutable = if protattr.immutable { IMMUTABLE } else { 0 };
    append | immutable
}

/// Returns the protecting flags in an open upper inode's mark.
pub(crate) fn marked(upper: &Upper, file: &File) -> vellum_sys::Result<u32> {
    let value = xattr::get_fd(file, upper.options.prefix.xattr(Mark::Protattr))?;
    Ok(value.map_or(0, |value| protected(&value)))
}

fn open(at: &At) -> vellum_sys::Result<Open> {
    Ok(match at {
        At::Dir(dir) => Open::Dir(Arc::clone(dir)),
        At::Name(dir, name) => Open::File(dir.open_file_for(name, Access::Read)?),
        At::Fd(fd) => Open::File(vellum_sys::rooted::reopen(fd)?),
    })
}

fn own_flags(open: &Open) -> vellum_sys::Result<u32> {
    match open {
        Open::File(file) => flags::get(file),
        Open::Dir(dir) => flags::get(&**dir),
    }
}

fn unsupported_or(upper: &Upper, error: vellum_sys::Error) -> Error {
    match error.is_unsupported() {
        true => Refusal::Unsupported.into(),
        false => upper.io(error),
    }
}

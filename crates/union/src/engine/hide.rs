//! Removing names: unlink, rmdir, and the whiteouts that keep lower layers from showing through.
//!
//! A whiteout is created only if a lower layer has the name, and in the same step that removes the
//! name: the lower file never shows again, not for a moment. A directory that looks empty may hold
//! whiteouts: it is moved with them to the staging directory. Where it can't be moved, it is made
//! opaque first, so that they can be removed one by one while it looks empty throughout.
//!
//! A removed node that is still live is pinned by a descriptor first: it stays usable until it is
//! forgotten.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use rustix::io::Errno;

use vellum_format::{Mark, Opaque, wh};
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, FileKind, RenameFlags};

use crate::at::At;
use crate::dir_layer::DirHandle;
use crate::engine::action::{Action, Attrs};
use crate::engine::depth::Depth;
use crate::engine::lookup::{Below, Concluded, lower_shares};
use crate::engine::nodes::gate::{self, Gate, NamesHeld};
use crate::engine::nodes::table::HeldNode;
use crate::engine::nodes::{Body, DirBody, FileBody, LiveNode, State, UpperFile};
use crate::engine::request::NodeId;
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::layer::{Layer, WhNames};
use crate::marks::{DirAt, Reader};
use crate::resolve::Part;
use crate::{Refusal, Result};

/// What the upper layer has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Above {
    /// Nothing.
    Nothing,
    /// A whiteout in its place: a device, or a file with a mark. Possible even where whiteouts are
    /// names, if the upper was written elsewhere.
    Whiteout,
    /// A whiteout next to it, `.wh.NAME`; the name itself is free.
    WhiteoutName,
    /// An entry of this type.
    Entry(FileKind),
}

impl Above {
    /// Returns whether it is a whiteout of either form.
    pub fn hides(self) -> bool {
        matches!(self, Above::Whiteout | Above::WhiteoutName)
    }
}

/// The names that the lower layers would show in a directory if the upper had none. Read with no
/// lock held.
///
/// Lower layers don't change, so it is true as long as the directory keeps its shares in them.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The directory.
    of: NodeId,
    shares: usize,
    names: Vec<OsString>,
}

impl Inside {
    pub const NOTHING: &Inside = &Inside {
        of: NodeId(0),
        shares: 0,
        names: Vec::new(),
    };

    /// Returns the answer asked for beforehand, if it still counts; `None` if the layers must be
    /// asked. A directory with nothing below needs no answer.
    pub fn known<'a>(asked: Option<&'a Inside>, node: &LiveNode) -> Option<&'a Inside> {
        let shares = match &node.state().body {
            Body::Dir(body) => lower_shares(&body.parts).len(),
            Body::File(_) => 0,
        };
        match shares {
            0 => Some(Inside::NOTHING),
            _ => asked.filter(|asked| (asked.of, asked.shares) == (node.id, shares)),
        }
    }
}

/// The removal of a name, with its node's gate held.
#[derive(Clone, Copy)]
struct Removal<'a> {
    upper: &'a Upper,
    gate: &'a Gate<'a>,
    /// The directory that has the name, and where it is in the upper layer.
    dir: &'a Arc<LiveNode>,
    handle: &'a Arc<DirHandle>,
    name: &'a OsStr,
    node: &'a HeldNode<'a>,
    /// Whether a lower layer shows the name once the upper's is gone.
    below: bool,
    /// What the lower layers show in it, if it is a directory.
    inside: &'a Inside,
}

impl Action<'_> {
    /// Removes a name that is not a directory.
    ///
    /// One step on disk: afterwards the name is gone, or nothing has changed. Errors:
    /// [`Refusal::NotFound`], [`Refusal::IsADirectory`], [`Refusal::ReadOnly`], `Io`.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let done = self.remove(parent, name, FileKind::File);
        self.sweep();
        done
    }

    /// Removes a directory in which nothing shows. Errors: as `Action::unlink`,
    /// [`Refusal::NotADirectory`] and [`Refusal::NotEmpty`].
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let done = self.remove(parent, name, FileKind::Dir);
        self.sweep();
        done
    }

    fn remove(&self, parent: NodeId, name: &OsStr, kind: FileKind) -> Result<()> {
        let upper = self.upper()?;
        let dir = self.dir_node(parent)?;
        let mut asked = None;
        let mut asked_inside = None;
        loop {
            let sought = self.search(&dir, name)?;
            let gate = self.shared();
            let mut names = dir.names(&gate);
            let node = match self.conclude(sought, names.slot(name), None)? {
                Concluded::Found(node, _) => node,
                Concluded::Absent => return Err(Refusal::NotFound.into()),
                Concluded::Again => continue,
            };
            names.overtake(name);
            match (node.is_dir(), kind == FileKind::Dir) {
                (true, false) => return Err(Refusal::IsADirectory.into()),
                (false, true) => return Err(Refusal::NotADirectory.into()),
                _ => {}
            }
            self.may_change(&dir, &gate)?;
            self.may_change(&node, &gate)?;
            let below = match Below::known(asked, &dir) {
                // A node that is not in the upper layer shows from below.
                _ if !node.in_upper() => true,
                Some(below) => below.is_some(),
                None => {
                    drop(names);
                    drop(gate);
                    asked = Some(self.below(&dir, name)?);
                    continue;
                }
            };
            let Some(inside) = Inside::known(asked_inside.as_ref(), &node) else {
                drop(names);
                drop(gate);
                asked_inside = Some(self.inside(&node)?);
                continue;
            };
            let Some(handle) = dir.upper_dir() else {
                if let Body::Dir(body) = &node.state().body
                    && !self.is_empty(&body.parts, inside)?
                {
                    // A refused removal copies nothing up.
                    self.touch(node.id, Attrs::ATIME);
                    return Err(Refusal::NotEmpty.into());
                }
                drop(names);
                drop(gate);
                self.to_upper(&dir, Depth::Names)?;
                continue;
            };
            if self.needs_alias(&node, &handle, name, &gate)? {
                drop(names);
                drop(gate);
                self.to_upper_as(&node, &dir, name)?;
                continue;
            }
            let Some(_node_gate) = node.try_gate() else {
                drop(names);
                drop(gate);
                drop(node.gate());
                continue;
            };
            let removal = Removal {
                upper,
                gate: &gate,
                dir: &dir,
                handle: &handle,
                name,
                node: &node,
                below,
                inside,
            };
            return match kind {
                FileKind::Dir => self.remove_dir(&removal, &mut names),
                _ => self.remove_file(&removal, &mut names),
            };
        }
    }

    fn remove_file(&self, removal: &Removal<'_>, names: &mut NamesHeld<'_>) -> Result<()> {
        let Removal {
            upper,
            gate,
            dir,
            handle,
            name,
            node,
            below,
            inside: _,
        } = *removal;
        let at = handle.dir().on(upper)?;
        let mut state = node.state_mut();
        let own = is_own(&state, &at, handle, name).on(upper)?;
        let pinned = match own {
            true => Some(pin(&state, &at, handle, name).on(upper)?),
            false => None,
        };
        self.before_links_change(node, state.placed(gate))?;
        match (own, below) {
            (true, false) => at.unlink(name),
            (true, true) => upper.hide_over(&at, name, false),
            (false, true) => upper.hide(&at, name),
            (false, false) => return Err(Refusal::NotFound.into()),
        }
        .on(upper)?;
        if let (Some(pinned), Body::File(file)) = (pinned, &mut state.body) {
            file.upper = Some(pinned);
        }
        self.touch_unnamed(node, &state);
        self.touch(dir.id, Attrs::NAMES);
        drop(state);
        self.table.drop_name(names.slot(name));
        dir.changed();
        self.after_links_change(node, gate)
    }

    /// Notes that a file has lost a name.
    pub(crate) fn touch_unnamed(&self, node: &LiveNode, state: &State) {
        // A file in a lower layer only counts the names there, less the one removed here.
        let below = |file: &FileBody| {
            let lower = file.lower.as_ref();
            file.upper.is_none() && lower.is_some_and(|lower| lower.nlink > 1)
        };
        self.touch(
            node.id,
            match &state.body {
                Body::File(file) if below(file) => Attrs::NAME | Attrs::NLINK,
                // A removed directory has no size on some file systems.
                Body::Dir(_) => Attrs::NAME | Attrs::SIZE | Attrs::BLOCKS,
                Body::File(_) => Attrs::NAME,
            },
        );
    }

    fn remove_dir(&self, removal: &Removal<'_>, names: &mut NamesHeld<'_>) -> Result<()> {
        let Removal {
            upper,
            gate,
            dir,
            handle,
            name,
            node,
            below,
            inside,
        } = *removal;
        // From here on, nothing is created in it.
        let names_in_it = node.names(gate);
        let at = handle.dir().on(upper)?;
        let mut state = node.state_mut();
        let Body::Dir(body) = &mut state.body else {
            return Err(Refusal::NotADirectory.into());
        };
        if let Some(own) = &body.upper {
            own.pin().on(upper)?;
        }
        let took = upper.usage.of_dir(body.upper.as_deref());
        // Checking whether something shows in it reads it.
        self.touch(node.id, Attrs::ATIME);
        let removed = self.remove_dir_on_disk(upper, (&at, name), (body, inside), below);
        if let Err(error) = removed {
            if let Some(own) = &body.upper {
                own.unpin();
            }
            return Err(error);
        }
        if let Some(bytes) = took {
            upper.usage.give_back(bytes, 1);
        }
        self.touch_unnamed(node, &state);
        drop((state, names_in_it));
        self.touch(dir.id, Attrs::NAMES);
        self.table.drop_name(names.slot(name));
        dir.changed();
        Ok(())
    }
}

impl Engine {
    fn remove_dir_on_disk(
        &self,
        upper: &Upper,
        (at, name): (&Arc<Dir>, &OsStr),
        (body, inside): (&mut DirBody, &Inside),
        below: bool,
    ) -> Result<()> {
        if body.upper.is_none() {
            return match self.is_empty(&body.parts, inside)? {
                true => upper.hide(at, name).on(upper),
                false => Err(Refusal::NotEmpty.into()),
            };
        }
        if body.parts.len() == 1 && !below {
            match at.rmdir(name) {
                Ok(()) => {
                    upper.unhide_name(at, name);
                    return Ok(());
                }
                Err(error) if is_not_empty(&error) => {}
                Err(error) => return Err(upper.io(error)),
            }
        }
        if below && !upper.by_name() {
            // It is moved away with all its whiteouts, in one step.
            return match self.is_empty(&body.parts, inside)? {
                true => upper.hide_over(at, name, true).on(upper),
                false => Err(Refusal::NotEmpty.into()),
            };
        }
        self.make_empty(upper, (at, name), (body, inside))?;
        match below {
            true => upper.hide_over(at, name, true).on(upper),
            false => {
                at.rmdir(name).on(upper)?;
                upper.unhide_name(at, name);
                Ok(())
            }
        }
    }

    /// Empties the upper share of a directory in which nothing shows. Errors:
    /// [`Refusal::NotEmpty`].
    ///
    /// Nothing shows in it at any moment. The caller keeps other threads from creating names in it.
    pub(crate) fn make_empty(
        &self,
        upper: &Upper,
        (at, name): (&Arc<Dir>, &OsStr),
        (body, inside): (&mut DirBody, &Inside),
    ) -> Result<()> {
        if !self.is_empty(&body.parts, inside)? {
            return Err(Refusal::NotEmpty.into());
        }
        if upper.by_name() {
            // Next to it, so that it stays when the directory's content and opaque file go.
            let hidden = upper.hide_by_name(at, name);
            hidden.on(upper)?;
        } else if body.parts.len() > 1 {
            let opaque = upper.make_opaque(at, name);
            opaque.on(upper)?;
        }
        // Even if the removal fails, nothing below belongs to it any longer.
        body.parts = body.parts.iter().take(1).cloned().collect();
        let inside = at.open_dir(name).on(upper)?;
        let left = inside.entries().and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.name))
                .collect::<vellum_sys::Result<Vec<_>>>()
        });
        for name in left.on(upper)? {
            inside.unlink(&name).on(upper)?;
        }
        Ok(())
    }

    /// Returns whether nothing shows in a directory with these shares. `inside` is what the lower
    /// shares show; only the upper layer is read.
    pub(crate) fn is_empty(&self, parts: &[Part<DirAt>], inside: &Inside) -> Result<bool> {
        let mut hidden = HashSet::new();
        if let Some(top) = parts.first().filter(|top| top.layer == 0) {
            let mut own = Reader::new(&*self.stack.layers()[0]).names(&top.dir)?;
            // A layer may have both a name and its whiteout: the name shows and hides those below.
            own.sort();
            for (name, hides) in own {
                if !hides && !hidden.contains(&name) {
                    return Ok(false);
                }
                hidden.insert(name);
            }
        }
        Ok(inside.names.iter().all(|name| hidden.contains(name)))
    }

    /// Asks the lower layers what they show in a directory. Call it with no lock held.
    pub(crate) fn inside(&self, dir: &LiveNode) -> Result<Inside> {
        gate::assert_free();
        let parts = match &dir.state().body {
            Body::Dir(body) => Arc::clone(&body.parts),
            Body::File(_) => return Err(Refusal::NotADirectory.into()),
        };
        let lower = lower_shares(&parts);
        let mut known = HashSet::new();
        let mut names = Vec::new();
        for part in lower {
            let layer = &self.stack.layers()[part.layer];
            let mut own = Reader::new(&**layer).names(&part.dir)?;
            own.sort();
            for (name, hides) in own {
                if known.insert(name.clone()) && !hides {
                    names.push(name);
                }
            }
        }
        Ok(Inside {
            of: dir.id,
            shares: lower.len(),
            names,
        })
    }
}

impl Upper {
    /// Returns whether whiteouts are names (`.wh.NAME`).
    pub(crate) fn by_name(&self) -> bool {
        self.layer.dialect().wh_names == WhNames::Whiteouts
    }

    /// Returns what the upper layer itself has under a name.
    pub(crate) fn above(&self, at: &Dir, name: &OsStr) -> vellum_sys::Result<Above> {
        match at.stat_opt(name)? {
            Some(stat) if stat.is_null_device() => Ok(Above::Whiteout),
            Some(stat) if stat.is_file() && stat.size_bytes == 0 => {
                let mark = self.options.prefix.xattr(Mark::Whiteout);
                match xattr::get(at, name, mark)? {
                    Some(_) => Ok(Above::Whiteout),
                    None => Ok(Above::Entry(stat.kind)),
                }
            }
            Some(stat) => Ok(Above::Entry(stat.kind)),
            None if self.by_name() => match wh::whiteout(name) {
                Some(hiding) if at.stat_opt(&hiding)?.is_some() => Ok(Above::WhiteoutName),
                _ => Ok(Above::Nothing),
            },
            None => Ok(Above::Nothing),
        }
    }

    /// Hides a name that the upper layer does not have.
    pub(crate) fn hide(&self, at: &Dir, name: &OsStr) -> vellum_sys::Result<()> {
        match self.by_name() {
            true => self.hide_by_name(at, name),
            false => match self.staging.make_whiteout(at, name) {
                // Written by another program; it has the same meaning.
                Err(error) if error.is_exists() && self.above(at, name)? == Above::Whiteout => {
                    Ok(())
                }
                other => other,
            },
        }
    }

    /// Replaces a name of the upper layer with a whiteout. A directory is empty, or holds only
    /// whiteouts, which go with it.
    pub(crate) fn hide_over(&self, at: &Dir, name: &OsStr, is_dir: bool) -> vellum_sys::Result<()> {
        if self.by_name() {
            // Next to a file's name it hides nothing; an (empty) directory it makes opaque.
            self.hide_by_name(at, name)?;
            return match is_dir {
                true => at.rmdir(name),
                false => at.unlink(name),
            };
        }
        if let Some(old) = self.staging.whiteout_over(at, name, is_dir)? {
            self.staging.discard_dir(&old);
        }
        Ok(())
    }

    fn hide_by_name(&self, at: &Dir, name: &OsStr) -> vellum_sys::Result<()> {
        let Some(hiding) = wh::whiteout(name) else {
            let too_long = Errno::NAMETOOLONG;
            return Err(vellum_sys::Error::new("hide the name", name, too_long));
        };
        match at.mknod(&hiding, FileKind::File, 0o600, (0, 0)) {
            Err(error) if error.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Removes the whiteout file of a name that exists, or that no layer below has. Does nothing in
    /// other dialects.
    pub(crate) fn unhide_name(&self, at: &Dir, name: &OsStr) {
        if let (true, Some(hiding)) = (self.by_name(), wh::whiteout(name)) {
            // Next to a name it has no effect, and the names it hides below stay hidden anyway: if
            // this fails, it may stay.
            let _ = at.unlink(hiding);
        }
    }

    /// Marks the directory `name` opaque, before it gets another name or loses its whiteouts.
    pub(crate) fn make_opaque(&self, at: &Arc<Dir>, name: &OsStr) -> vellum_sys::Result<()> {
        if self.by_name() {
            let inside = at.open_dir(name)?;
            match inside.mknod(wh::OPAQUE, FileKind::File, 0o600, (0, 0)) {
                Err(error) if error.is_exists() => {}
                other => other?,
            }
        } else {
            let mark = self.options.prefix.xattr(Mark::Opaque);
            xattr::set(at, name, mark, Opaque::Opaque.encode(), SetMode::Any)?;
        }
        self.settle_inode(&At::Name(Arc::clone(at), name.to_owned()))
    }

    /// Moves the staged `temp` to a name that is free or hidden, in one step.
    ///
    /// Errors: EEXIST if the name is neither; then `temp` is still staged.
    pub(crate) fn publish(
        &self,
        temp: &OsStr,
        at: &Dir,
        name: &OsStr,
        is_dir: bool,
        over: Above,
    ) -> vellum_sys::Result<()> {
        let staging = self.staging.dir();
        match over {
            Above::Whiteout if is_dir => {
                staging.rename(temp, at, name, RenameFlags::EXCHANGE)?;
                self.staging.discard(temp);
                Ok(())
            }
            Above::Whiteout => staging.rename(temp, at, name, RenameFlags::empty()),
            _ => staging.rename(temp, at, name, RenameFlags::NOREPLACE),
        }
    }
}

/// Returns whether the upper layer's entry called `name` in `at` is this file.
pub(crate) fn is_own(
    state: &State,
    at: &Dir,
    handle: &Arc<DirHandle>,
    name: &OsStr,
) -> vellum_sys::Result<bool> {
    let Body::File(file) = &state.body else {
        return Ok(false);
    };
    match &file.upper {
        None => Ok(false),
        Some(UpperFile::Named { dir, name: own }) if Arc::ptr_eq(dir, handle) && own == name => {
            Ok(true)
        }
        // It is reached by another of its names, or in the index: check whether this name is in the
        // upper layer.
        Some(_) => {
            let found = at.stat_opt(name)?;
            Ok(found.is_some_and(|stat| !stat.is_null_device()))
        }
    }
}

/// Returns how to reach a file once `name` is gone: as before, by another name, or by a
/// descriptor.
pub(crate) fn pin(
    state: &State,
    at: &Dir,
    handle: &Arc<DirHandle>,
    name: &OsStr,
) -> vellum_sys::Result<UpperFile> {
    let Body::File(file) = &state.body else {
        unreachable!("asked of files only");
    };
    match &file.upper {
        Some(UpperFile::Named { dir, name: own }) if Arc::ptr_eq(dir, handle) && own == name => {}
        Some(other) => return Ok(other.clone()),
        None => {}
    }
    let fd = at.open_path(name)?;
    if state.places().nth(1).is_some() {
        let inode = vellum_sys::stat::stat_fd(&fd)?;
        for place in state.places() {
            let Some(dir) = place.parent.upper_dir() else {
                continue;
            };
            if Arc::ptr_eq(&dir, handle) && place.name == name {
                continue;
            }
            let found = dir.dir()?.stat_opt(&place.name)?;
            if found.is_some_and(|stat| stat.identity() == inode.identity()) {
                let name = place.name.clone();
                return Ok(UpperFile::Named { dir, name });
            }
        }
    }
    Ok(UpperFile::Pinned(Arc::new(fd)))
}

fn is_not_empty(error: &vellum_sys::Error) -> bool {
    error.is_not_empty() || error.is_exists()
}

//! Moving names: files and directories of any layer, also replacing and exchanging others.
//!
//! A rename is one rename(2) in the upper layer. All preparation comes before it, and changes
//! nothing that users see:
//! * what moves is copied up, a directory without its content; a redirect says where the layers
//!   below have the rest;
//! * a directory with nothing below is made opaque if something would show through at its new
//!   place;
//! * a replaced directory that looks empty is emptied of whiteouts.
//!
//! The same system call creates the whiteout at the old place (`RENAME_WHITEOUT`), or the directory
//! and a whiteout at the new place are exchanged.
//!
//! Locks: files within one directory move under the shared rename gate; every other move holds it
//! exclusively.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;

use vellum_sys::{Dir, FileKind, RenameFlags};

use crate::dir_layer::DirHandle;
use crate::engine::action::{Action, Attrs};
use crate::engine::create::check_name;
use crate::engine::depth::Depth;
use crate::engine::hide::{Above, Inside, is_own, pin};
use crate::engine::links::{has_data_below, is_merged};
use crate::engine::lookup::{Below, Concluded, Sought};
use crate::engine::nodes::gate::{Gate, NamesHeld};
use crate::engine::nodes::names::Names;
use crate::engine::nodes::table::HeldNode;
use crate::engine::nodes::{Body, LiveNode, NameInDir, State, UpperFile};
use crate::engine::request::{NodeId, RenameMode};
use crate::engine::{Engine, Upper};
use crate::error::On;
use crate::{Error, Refusal, Result};

/// One end of a rename: a directory and a name in it.
struct RenameEnd<'a> {
    dir: &'a Arc<LiveNode>,
    name: &'a OsStr,
    handle: Arc<DirHandle>,
    at: Arc<Dir>,
    /// What the lower layers have under the name.
    below: Option<FileKind>,
}

/// A rename that is ready to be done.
struct Move<'a> {
    upper: &'a Upper,
    gate: &'a Gate<'a>,
    source: RenameEnd<'a>,
    target: RenameEnd<'a>,
}

impl RenameEnd<'_> {
    fn place(&self) -> NameInDir {
        NameInDir {
            parent: Arc::clone(self.dir),
            name: self.name.to_owned(),
        }
    }
}

/// What is known of one end of a rename before the locks are taken.
type Known<'a> = (Sought<'a>, Below);

/// How an attempt at a rename ended: done, or what the caller must do without a lock before the
/// next attempt.
enum Attempt<'a> {
    Done,
    /// Look the names up again: what was known of them no longer counts.
    Again,
    /// Ask what lower layers show in the directory to be replaced.
    AskInside(Arc<LiveNode>),
    /// Take the rename gate exclusively.
    TakeGate,
    CopyUp(Arc<LiveNode>, Depth),
    CopyUpAlias(Arc<LiveNode>, &'a Arc<LiveNode>, &'a OsStr),
    /// Wait for the node's gate.
    WaitFor(Arc<LiveNode>),
}

impl Action<'_> {
    /// Moves `name` in `parent` to `new_name` in `new_parent`.
    ///
    /// One step on disk. Two names of one file stay as they are. Errors: [`Refusal::NotFound`];
    /// [`Refusal::Exists`] and [`Refusal::NotFound`] as the mode says; [`Refusal::NotADirectory`],
    /// [`Refusal::IsADirectory`], [`Refusal::NotEmpty`] for the replaced entry;
    /// [`Refusal::Invalid`] for moving a directory into itself, and for whiteouts;
    /// [`Refusal::CrossDevice`] for a directory with a lower share if redirects are off, or if the
    /// redirect would be over 4096 bytes or there is no space for it; `Io`.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        let done = self.rename_between(parent, name, new_parent, new_name, mode);
        self.sweep();
        done
    }

    fn rename_between(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        let upper = self.upper()?;
        if mode == RenameMode::Whiteout {
            return Err(Refusal::Invalid.into());
        }
        check_name(upper, new_name)?;
        let from = self.dir_node(parent)?;
        let to = self.dir_node(new_parent)?;
        let mut alone = !Arc::ptr_eq(&from, &to);
        let below = || Ok::<_, Error>((self.below(&from, name)?, self.below(&to, new_name)?));
        let mut beneath = below()?;
        let mut asked = None;
        loop {
            let known = (
                (self.search(&from, name)?, beneath.0),
                (self.search(&to, new_name)?, beneath.1),
            );
            let known = (known.0, known.1, asked.as_ref());
            match self.try_rename(upper, (&from, name), (&to, new_name), known, mode, alone)? {
                Attempt::Done => return Ok(()),
                Attempt::Again => beneath = below()?,
                Attempt::AskInside(node) => asked = Some(self.inside(&node)?),
                Attempt::TakeGate => alone = true,
                Attempt::CopyUp(node, what) => self.to_upper(&node, what)?,
                Attempt::CopyUpAlias(node, dir, name) => self.to_upper_as(&node, dir, name)?,
                Attempt::WaitFor(node) => drop(node.gate()),
            }
        }
    }

    fn try_rename<'a>(
        &self,
        upper: &Upper,
        (from, name): (&'a Arc<LiveNode>, &'a OsStr),
        (to, new_name): (&'a Arc<LiveNode>, &'a OsStr),
        (known, known_over, asked): (Known<'_>, Known<'_>, Option<&Inside>),
        mode: RenameMode,
        alone: bool,
    ) -> Result<Attempt<'a>> {
        let gate = match alone {
            true => self.alone(),
            false => self.shared(),
        };
        // With the gate held exclusively no other thread holds names; with it shared there is only
        // one directory.
        let mut from_names = from.names(&gate);
        let mut to_names = match Arc::ptr_eq(from, to) {
            true => None,
            false => Some(to.names(&gate)),
        };
        let moved = match self.conclude(known.0, from_names.slot(name), None)? {
            Concluded::Found(node, _) => node,
            Concluded::Absent => return Err(Refusal::NotFound.into()),
            Concluded::Again => return Ok(Attempt::Again),
        };
        let names = to_names.as_mut().unwrap_or(&mut from_names);
        let over = match self.conclude(known_over.0, names.slot(new_name), None)? {
            Concluded::Found(node, _) => Some(node),
            Concluded::Absent => None,
            Concluded::Again => return Ok(Attempt::Again),
        };
        names.overtake(new_name);
        from_names.overtake(name);
        if to.is_gone() {
            return Err(Refusal::NotFound.into());
        }
        if allowed(&moved, over.as_ref(), from, to, mode)? == Allowed::AlreadySo {
            return Ok(Attempt::Done);
        }
        self.may_change(&moved, &gate)?;
        self.may_change(from, &gate)?;
        match &over {
            Some(over) => {
                self.may_change(over, &gate)?;
                self.may_change(to, &gate)?;
            }
            None => self.may_add_to(to, &gate)?,
        }
        let exchange = mode == RenameMode::Exchange;
        let over_moves = over.as_ref().filter(|_| exchange);
        if !alone && (moved.is_dir() || over_moves.is_some_and(|over| over.is_dir())) {
            return Ok(Attempt::TakeGate);
        }
        for node in [Some(&moved), over_moves].into_iter().flatten() {
            if let Some(what) = self.missing(upper, node)? {
                return Ok(Attempt::CopyUp(Arc::clone(node), what));
            }
        }
        let Some(to_handle) = to.upper_dir() else {
            return Ok(Attempt::CopyUp(Arc::clone(to), Depth::Names));
        };
        // A file found through the index is in the upper layer before its directory is.
        let Some(from_handle) = from.upper_dir() else {
            return Ok(Attempt::CopyUp(Arc::clone(from), Depth::Names));
        };
        if self.needs_alias(&moved, &from_handle, name, &gate)? {
            return Ok(Attempt::CopyUpAlias(Arc::clone(&moved), from, name));
        }
        if let Some(over) = &over
            && self.needs_alias(over, &to_handle, new_name, &gate)?
        {
            return Ok(Attempt::CopyUpAlias(Arc::clone(over), to, new_name));
        }
        let Some(_moved_gate) = moved.try_gate() else {
            return Ok(Attempt::WaitFor(Arc::clone(&moved)));
        };
        let _over_gate = match &over {
            None => None,
            Some(over) => match over.try_gate() {
                Some(gate) => Some(gate),
                None => return Ok(Attempt::WaitFor(Arc::clone(over))),
            },
        };
        let below = |asked, dir| Below::known(Some(asked), dir);
        let (Some(below), Some(below_over)) = (below(known.1, from), below(known_over.1, to))
        else {
            return Ok(Attempt::Again);
        };
        let end = |dir, name, handle: Arc<DirHandle>, below| -> Result<RenameEnd<'_>> {
            Ok(RenameEnd {
                dir,
                name,
                at: handle.dir().on(upper)?,
                handle,
                below,
            })
        };
        let step = Move {
            upper,
            gate: &gate,
            source: end(from, name, from_handle, below)?,
            target: end(to, new_name, to_handle, below_over)?,
        };
        let mut dirs = DirPair {
            from: from_names,
            to: to_names,
        };
        let inside = match &over {
            Some(over) if !exchange => match Inside::known(asked, over) {
                Some(inside) => inside,
                None => return Ok(Attempt::AskInside(Arc::clone(over))),
            },
            _ => Inside::NOTHING,
        };
        if let Some(over) = over.as_ref().filter(|over| over.is_dir() && !exchange) {
            // Checking whether something shows in it reads it.
            self.touch(over.id, Attrs::ATIME);
        }
        match (&over, exchange) {
            (Some(over), true) => self.exchange(&step, &moved, over)?,
            _ => self.replace(&step, &moved, (over.as_ref(), inside))?,
        }
        let replaced = over.as_ref().map(|over| &***over);
        self.touch_moved(&step, &moved, replaced, exchange);
        self.note_moves(&mut dirs, &step, &moved, over.as_ref(), exchange);
        if let Some(over) = over.as_ref().filter(|_| !exchange) {
            self.after_links_change(over, &gate)?;
        }
        Ok(Attempt::Done)
    }

    /// Notes what a rename changed.
    fn touch_moved(
        &self,
        Move { source, target, .. }: &Move<'_>,
        moved: &LiveNode,
        over: Option<&LiveNode>,
        exchange: bool,
    ) {
        self.touch(source.dir.id, Attrs::NAMES);
        self.touch(target.dir.id, Attrs::NAMES);
        self.touch(moved.id, Attrs::NAME);
        match over {
            Some(over) if exchange => self.touch(over.id, Attrs::NAME),
            Some(over) => self.touch_unnamed(over, &over.state()),
            None => {}
        }
    }
}

impl Engine {
    /// Returns how much of a node must be copied up before it moves.
    fn missing(&self, upper: &Upper, node: &LiveNode) -> Result<Option<Depth>> {
        let state = node.state();
        Ok(match &state.body {
            Body::Dir(body) => {
                if is_merged(body) && (!upper.options.redirect_dir || upper.by_name()) {
                    return Err(Refusal::CrossDevice.into());
                }
                body.upper.is_none().then_some(Depth::Names)
            }
            // Data below is found by name or by a redirect.
            Body::File(file) => match upper.options.redirect_dir && !upper.by_name() {
                true => file.upper.is_none().then_some(Depth::Meta),
                false => (file.upper.is_none() || has_data_below(&state)).then_some(Depth::Data),
            },
        })
    }

    /// Writes the marks that a node needs at its new place. They change nothing at the old one.
    fn mark_for(
        &self,
        (upper, gate): (&Upper, &Gate<'_>),
        node: &LiveNode,
        from: &RenameEnd<'_>,
        to: &RenameEnd<'_>,
    ) -> Result<()> {
        let comes = !Arc::ptr_eq(from.dir, to.dir) && !self.is_impure(to.dir, gate)?;
        let (at, merged, has_origin) = {
            let state = node.state();
            let state = state.placed(gate);
            let at = state.at().on(upper)?;
            let merged = match &state.body {
                Body::Dir(body) => is_merged(body),
                Body::File(_) => has_data_below(&state),
            };
            (
                at.ok_or(Refusal::Stale)?,
                merged,
                comes && self.has_origin(state)?,
            )
        };
        if merged {
            let same_dir = Arc::ptr_eq(from.dir, to.dir);
            // A file may have names in other directories: only a path is valid for all.
            let several = !node.is_dir() && at.stat().on(upper)?.nlink > 1;
            self.set_redirect(&at, &from.place(), !same_dir || several, gate)?;
        } else if node.is_dir() && to.below == Some(FileKind::Dir) {
            upper.make_opaque(&from.at, from.name).on(upper)?;
        }
        if has_origin {
            self.make_impure(to.dir, gate)?;
        }
        Ok(())
    }

    fn exchange(
        &self,
        Move {
            upper,
            gate,
            source,
            target,
        }: &Move<'_>,
        moved: &LiveNode,
        over: &LiveNode,
    ) -> Result<()> {
        self.mark_for((upper, gate), moved, source, target)?;
        self.mark_for((upper, gate), over, target, source)?;
        let mut moved_state = moved.state_mut();
        let mut over_state = over.state_mut();
        source
            .at
            .rename(source.name, &target.at, target.name, RenameFlags::EXCHANGE)
            .on(upper)?;
        relocate(&mut moved_state, source, target);
        relocate(&mut over_state, target, source);
        Ok(())
    }

    fn replace(
        &self,
        Move {
            upper,
            gate,
            source,
            target,
        }: &Move<'_>,
        moved: &LiveNode,
        (over, inside): (Option<&HeldNode<'_>>, &Inside),
    ) -> Result<()> {
        let over_names = over.filter(|over| over.is_dir());
        let over_names = over_names.map(|over| over.names(gate));
        self.mark_for((upper, gate), moved, source, target)?;
        let mut moved_state = moved.state_mut();
        let Some(over) = over else {
            move_on_disk(upper, source, target, moved.is_dir())?;
            relocate(&mut moved_state, source, target);
            return Ok(());
        };
        let mut over_state = over.state_mut();
        let mut left = None;
        match &mut over_state.body {
            Body::Dir(body) => match body.upper.clone() {
                Some(own) => {
                    own.pin().on(upper)?;
                    let at = (&target.at, target.name);
                    let emptied = self.make_empty(upper, at, (body, inside));
                    emptied.inspect_err(|_| own.unpin())?;
                }
                None if !self.is_empty(&body.parts, inside)? => {
                    return Err(Refusal::NotEmpty.into());
                }
                None => {}
            },
            Body::File(_) => {
                let own = is_own(&over_state, &target.at, &target.handle, target.name);
                if own.on(upper)? {
                    let pinned = pin(&over_state, &target.at, &target.handle, target.name);
                    left = Some(pinned.on(upper)?);
                }
                self.before_links_change(over, over_state.placed(gate))?;
            }
        }
        let done = move_on_disk(upper, source, target, moved.is_dir());
        match (&done, &mut over_state.body) {
            (Ok(()), Body::File(file)) if left.is_some() => file.upper = left,
            (Err(_), Body::Dir(body)) => {
                if let Some(own) = &body.upper {
                    own.unpin();
                }
            }
            _ => {}
        }
        done?;
        relocate(&mut moved_state, source, target);
        drop((over_state, over_names));
        Ok(())
    }

    fn note_moves(
        &self,
        dirs: &mut DirPair<'_>,
        Move { source, target, .. }: &Move<'_>,
        moved: &Arc<LiveNode>,
        over: Option<&HeldNode<'_>>,
        exchange: bool,
    ) {
        if let (Some(over), false) = (over, exchange) {
            over.state_mut().remove_place(target.dir, target.name);
        }
        source.dir.changed();
        target.dir.changed();
        dirs.from.remove(source.name);
        dirs.to().insert(target.name, moved);
        moved
            .state_mut()
            .move_place((source.dir, source.name), target.place());
        if let (Some(over), true) = (over, exchange) {
            dirs.from.insert(source.name, over);
            over.state_mut()
                .move_place((target.dir, target.name), source.place());
        }
    }
}

/// The locked names of both directories, which may be the same one.
struct DirPair<'a> {
    from: NamesHeld<'a>,
    to: Option<NamesHeld<'a>>,
}

impl DirPair<'_> {
    fn to(&mut self) -> &mut Names {
        match &mut self.to {
            Some(to) => to,
            None => &mut self.from,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Allowed {
    Yes,
    /// Both are names of the same file.
    AlreadySo,
}

/// Refuses renames that no file system allows.
fn allowed(
    moved: &Arc<LiveNode>,
    over: Option<&HeldNode<'_>>,
    from: &Arc<LiveNode>,
    to: &Arc<LiveNode>,
    mode: RenameMode,
) -> Result<Allowed> {
    match (mode, over) {
        (RenameMode::NoReplace, Some(_)) => return Err(Refusal::Exists.into()),
        (RenameMode::Exchange, None) => return Err(Refusal::NotFound.into()),
        _ => {}
    }
    if over.is_some_and(|over| Arc::ptr_eq(over, moved)) {
        return Ok(Allowed::AlreadySo);
    }
    if moved.is_dir() && is_in(to, moved) {
        return Err(Refusal::Invalid.into());
    }
    if let Some(over) = over {
        if over.is_dir() && is_in(from, over) {
            return Err(match mode {
                RenameMode::Exchange => Refusal::Invalid.into(),
                _ => Refusal::NotEmpty.into(),
            });
        }
        match (mode, moved.is_dir(), over.is_dir()) {
            (RenameMode::Exchange, _, _) => {}
            (_, true, false) => return Err(Refusal::NotADirectory.into()),
            (_, false, true) => return Err(Refusal::IsADirectory.into()),
            _ => {}
        }
    }
    Ok(Allowed::Yes)
}

/// Returns whether `dir` is `above`, or beneath it.
fn is_in(dir: &Arc<LiveNode>, above: &Arc<LiveNode>) -> bool {
    let mut at = Arc::clone(dir);
    loop {
        if Arc::ptr_eq(&at, above) {
            return true;
        }
        let place = at.state().place.clone();
        match place {
            Some(place) => at = place.parent,
            None => return false,
        }
    }
}

/// The one step on disk.
fn move_on_disk(
    upper: &Upper,
    source: &RenameEnd<'_>,
    target: &RenameEnd<'_>,
    is_dir: bool,
) -> Result<()> {
    let hide = source.below.is_some();
    let whiteout_there =
        is_dir && upper.above(&target.at, target.name).on(upper)? == Above::Whiteout;
    if upper.by_name() {
        // Next to a file's name it hides nothing; it makes a directory opaque, which has nothing
        // below.
        if hide {
            upper.hide(&source.at, source.name).on(upper)?;
        }
        let flags = match whiteout_there {
            true => RenameFlags::EXCHANGE,
            false => RenameFlags::empty(),
        };
        let done = source
            .at
            .rename(source.name, &target.at, target.name, flags);
        done.on(upper)?;
        if whiteout_there {
            // If this fails, the whiteout hides nothing that shows.
            let _ = source.at.unlink(source.name);
        }
        upper.unhide_name(&target.at, target.name);
        return Ok(());
    }
    if whiteout_there {
        // A directory can't replace a whiteout, so exchange them: the whiteout stays at the old
        // name if that needs one.
        let flags = RenameFlags::EXCHANGE;
        let done = source
            .at
            .rename(source.name, &target.at, target.name, flags);
        done.on(upper)?;
        if !hide {
            // If this fails, the whiteout hides nothing.
            let _ = source.at.unlink(source.name);
        }
        return Ok(());
    }
    let flags = match hide {
        true => RenameFlags::WHITEOUT,
        false => RenameFlags::empty(),
    };
    match source
        .at
        .rename(source.name, &target.at, target.name, flags)
    {
        Err(error)
            if hide
                && (error.is(Errno::INVAL) || error.is(Errno::PERM) || error.is_unsupported()) =>
        {
            let flags = RenameFlags::empty();
            let done = source
                .at
                .rename(source.name, &target.at, target.name, flags);
            // The file system can't do both in one step, or the kernel (before 5.8) doesn't allow
            // a plain user to: a crash in between lets the lower file show again.
            done.and_then(|()| {
                let hidden = upper.hide(&source.at, source.name);
                hidden.inspect_err(|_| {
                    // Move it back to where the nodes say it is; a replaced file is lost.
                    let _ = target
                        .at
                        .rename(target.name, &source.at, source.name, flags);
                })
            })
            .on(upper)
        }
        other => other.on(upper),
    }
}

/// Updates the state of a node that was moved on disk.
fn relocate(state: &mut State, from: &RenameEnd<'_>, to: &RenameEnd<'_>) {
    match &mut state.body {
        Body::Dir(body) => {
            if let Some(own) = &body.upper {
                own.moved(&to.handle, to.name);
            }
        }
        Body::File(file) => {
            if let Some(UpperFile::Named { dir, name }) = &mut file.upper
                && Arc::ptr_eq(dir, &from.handle)
                && name == from.name
            {
                *dir = Arc::clone(&to.handle);
                *name = to.name.to_owned();
            }
        }
    }
}

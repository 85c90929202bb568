//! New names: files, directories, symbolic links, pipes, sockets, devices; files without a name;
//! hard links.
//!
//! A new inode has the right owner, mode and ACL from the first moment it is visible. If the name
//! is free in the upper layer, one system call creates it there, on a thread that takes the
//! caller's ids for it ([`vellum_sys::acting`]). Over a whiteout, and where owners are recorded, it
//! is staged and moved into place. A directory over a whiteout is opaque before it is visible.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vellum_format::OverrideStat;
use vellum_sys::acting::{self, Maker};
use vellum_sys::xattr::SetMode;
use vellum_sys::{Dir, FileKind, Stat};

use crate::at::At;
use crate::dir_layer::DirHandle;
use crate::engine::acl::{self, Acl};
use crate::engine::action::{Action, Attrs};
use crate::engine::depth::Depth;
use crate::engine::files::Opened;
use crate::engine::flags;
use crate::engine::hide::Above;
use crate::engine::links::is_merged;
use crate::engine::lookup::Below;
use crate::engine::nodes::gate::{Gate, NamesHeld, Placed, Slot};
use crate::engine::nodes::table::HeldNode;
use crate::engine::nodes::{Body, DataAt, FileBody, LiveNode, State, UpperFile};
use crate::engine::records;
use crate::engine::request::{Caller, Entry, NewNode, NodeId};
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::layer::Records;
use crate::{Layer, Refusal, Result};

/// An inode to be created.
struct New<'a> {
    what: &'a NewNode,
    /// 12 bits, before the umask is applied.
    mode: u32,
    /// With stored ids.
    maker: Maker,
}

/// Whether a name can be given to a new inode.
enum NameState {
    /// Nothing shows under it.
    Free(Above),
    /// Something shows under it.
    Taken,
    /// The caller must ask the lower layers first, with no lock held.
    Unknown,
}

impl Action<'_> {
    /// Creates an inode under a name. The caller owes the entry a [`Engine::forget`].
    ///
    /// One step on disk. Errors: [`Refusal::Exists`], [`Refusal::NotFound`] if the directory is
    /// removed, [`Refusal::NotPermitted`] for a device 0:0, [`Refusal::UnmappedId`],
    /// [`Refusal::NameTooLong`], [`Refusal::ReadOnly`], `Io`.
    pub fn create(
        &self,
        parent: NodeId,
        name: &OsStr,
        what: &NewNode,
        mode: u32,
        caller: &Caller,
    ) -> Result<Entry> {
        let upper = self.upper()?;
        check_name(upper, name)?;
        let new = self.new_thing(what, mode, caller)?;
        let dir = self.dir_node(parent)?;
        let taken = upper.usage.reserve(0, 1)?;
        let mut below = None;
        let done = loop {
            let done = self.in_dir(&dir, |handle, names, gate| {
                names.overtake(name);
                let at = handle.dir().on(upper)?;
                self.touch(dir.id, Attrs::NAMES);
                let made = self.make(upper, &names.slot(name), &at, below, &new, gate);
                let made = made.inspect_err(|_| {
                    // It may exist all the same, if it was created but could not be read back.
                    names.forget_absent();
                    dir.changed();
                })?;
                let Some((stored, file)) = made else {
                    return Ok(None);
                };
                taken.made(&stored);
                let kind = kind_of(what);
                let node = self.add_new(names.slot(name), &stored, kind)?;
                node.protection.store(flags::KNOWN, Ordering::Relaxed);
                if let Some(file) = file {
                    // It is about to be written to.
                    let opened = Opened::Upper(Arc::new(file));
                    self.files.put(node.id, opened, &node.state());
                }
                self.entry_made(node, stored, gate).map(Some)
            });
            match done.transpose() {
                Some(done) => break done,
                None => below = Some(self.below(&dir, name)?),
            }
        };
        self.sweep();
        done
    }

    /// Creates a regular file without a name, to be linked later or never. The caller owes the
    /// entry a [`Engine::forget`].
    ///
    /// The file inherits from `parent` like a file created in it. Errors: as `Action::create`;
    /// [`Refusal::Unsupported`] if the upper layer's file system can't do it.
    pub fn tmpfile(&self, parent: NodeId, mode: u32, caller: &Caller) -> Result<Entry> {
        let upper = self.upper()?;
        if !upper.unnamed {
            return Err(Refusal::Unsupported.into());
        }
        let new = self.new_thing(&NewNode::File, mode, caller)?;
        let dir = self.dir_node(parent)?;
        let taken = upper.usage.reserve(0, 1)?;
        let done = self.in_dir(&dir, |handle, _, gate| {
            let at = handle.dir().on(upper)?;
            let file = match direct(upper, &new)? {
                true => {
                    let acting = acting::act(new.maker).on(upper)?;
                    let file = at.create_unnamed(new.mode);
                    drop(acting);
                    file.on(upper)?
                }
                false => {
                    let initial = self.inherited(&dir, &new, gate)?;
                    let file = upper.staging.dir().create_unnamed(0o600);
                    let file = file.on(upper)?;
                    let fd = rustix::io::fcntl_dupfd_cloexec(&file, 3);
                    let fd = fd.map_err(|e| vellum_sys::Error::new("duplicate", "", e));
                    let fd = fd.on(upper)?;
                    initial.apply(upper, &At::Fd(Arc::new(fd)), &new, true)?;
                    file
                }
            };
            let stored = vellum_sys::stat::stat_fd(&file).on(upper)?;
            taken.made(&stored);
            let body = FileBody {
                upper: Some(UpperFile::Pinned(Arc::new(file.into()))),
                lower: None,
                data: DataAt::Upper,
            };
            let ino = self.numbers.show(stored.identity());
            let numbers = self.table.number(ino);
            let node = self
                .table
                .add_nameless(numbers, FileKind::File, Body::File(body));
            self.entry_made(node, stored, gate)
        });
        self.sweep();
        done
    }

    /// Gives a file another name. The caller owes the file's entry a [`Engine::forget`].
    ///
    /// One step on disk. Errors: as `Action::create`; [`Refusal::NotPermitted`] for a directory,
    /// [`Refusal::NotFound`] if the file has lost its last name, `Io` (EMLINK).
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let done = self.link_in(node, parent, name);
        self.sweep();
        done
    }

    fn link_in(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let upper = self.upper()?;
        check_name(upper, name)?;
        let node = self.node(node)?;
        let dir = self.dir_node(parent)?;
        if node.is_dir() {
            return Err(Refusal::NotPermitted.into());
        }
        let mut below = None;
        loop {
            // A removed file stays removed, even if a copy without a name could be linked; unless
            // its layer has another name for it, as on any file system.
            let was_last = |state: &State| match &state.body {
                Body::File(file) => file.lower.as_ref().is_some_and(|lower| lower.nlink <= 1),
                Body::Dir(_) => false,
            };
            if node.is_gone() && was_last(&node.state()) {
                return Err(Refusal::NotFound.into());
            }
            {
                let gate = self.shared();
                self.may_change(&node, &gate)?;
                self.may_add_to(&dir, &gate)?;
            }
            let depth = match upper.options.metacopy && upper.options.redirect_dir {
                true => Depth::Meta,
                // Data below is found by name: only a redirect lets a file have two.
                false => Depth::Data,
            };
            self.to_upper(&node, depth)?;
            self.to_upper(&dir, Depth::Names)?;
            let gate = self.shared();
            let mut names = dir.names(&gate);
            if dir.is_gone() {
                return Err(Refusal::NotFound.into());
            }
            let Some(node_gate) = node.try_gate() else {
                drop(names);
                drop(gate);
                drop(node.gate());
                continue;
            };
            names.overtake(name);
            let handle = dir.upper_dir().ok_or(Refusal::Stale)?;
            let at = handle.dir().on(upper)?;
            let over = match self.name_state(upper, &names.slot(name), &at, below, true)? {
                NameState::Free(over) => over,
                NameState::Taken => return Err(Refusal::Exists.into()),
                NameState::Unknown => {
                    drop((node_gate, names));
                    drop(gate);
                    below = Some(self.below(&dir, name)?);
                    continue;
                }
            };
            self.redirect_for_link(&node, &gate)?;
            let mut state = node.state_mut();
            self.before_links_change(&node, state.placed(&gate))?;
            let Some(from) = state.placed(&gate).at().on(upper)? else {
                return Err(Refusal::Stale.into());
            };
            if self.has_origin(state.placed(&gate))? {
                self.make_impure(&dir, &gate)?;
            }
            // It may exist all the same if a later step fails.
            names.forget_absent();
            dir.changed();
            self.touch(dir.id, Attrs::NAMES);
            self.touch(node.id, Attrs::NAME);
            let linked = link_from(&from, upper, &at, name, over);
            linked.map_err(|error| match error.is_not_found() {
                true => Refusal::NotFound.into(),
                false => upper.io(error),
            })?;
            upper.unhide_name(&at, name);
            let stored = at.stat(name).on(upper)?;
            if let Body::File(file) = &mut state.body
                && let Some(UpperFile::Pinned(_)) = file.upper
            {
                let (dir, name) = (Arc::clone(&handle), name.to_owned());
                file.upper = Some(UpperFile::Named { dir, name });
            }
            drop(state);
            self.table.link_inode(&node, stored.identity());
            let held = self.table.hold(&node);
            self.table.add_name(&node, names.slot(name));
            dir.changed();
            return self.entry(held, &gate);
        }
    }

    /// Calls `make` with a directory that is in the upper layer, and its names.
    fn in_dir<T>(
        &self,
        dir: &Arc<LiveNode>,
        make: impl FnOnce(&Arc<DirHandle>, &mut NamesHeld<'_>, &Gate<'_>) -> Result<T>,
    ) -> Result<T> {
        loop {
            if let Some(handle) = dir.upper_dir() {
                let gate = self.shared();
                let mut names = dir.names(&gate);
                if dir.is_gone() {
                    return Err(Refusal::NotFound.into());
                }
                self.may_add_to(dir, &gate)?;
                return make(&handle, &mut names, &gate);
            }
            self.may_add_to(dir, &self.shared())?;
            self.to_upper(dir, Depth::Names)?;
        }
    }
}

impl Engine {
    fn new_thing<'a>(&self, what: &'a NewNode, mode: u32, caller: &Caller) -> Result<New<'a>> {
        if let NewNode::Char(0, 0) = what {
            return Err(Refusal::NotPermitted.into());
        }
        let (uid, gid) = self.ids.maker_stored(caller.uid, caller.gid)?;
        Ok(New {
            what,
            mode: mode & 0o7777,
            maker: Maker {
                uid,
                gid,
                umask: caller.umask,
            },
        })
    }

    /// Returns whether `name` can be given to a new inode. With `ask`, asks the upper layer even
    /// where the system call that creates the name would find out by itself. `below` is what the
    /// lower layers have, if they were asked.
    fn name_state(
        &self,
        upper: &Upper,
        slot: &Slot<'_>,
        at: &Dir,
        below: Option<Below>,
        ask: bool,
    ) -> Result<NameState> {
        let Slot {
            parent: dir,
            names,
            name,
        } = slot;
        // A live node under the name takes it.
        if names.get(name).is_some() {
            return Ok(NameState::Taken);
        }
        if names.is_absent(name) || !ask && !self.is_merged(dir) && !upper.by_name() {
            return Ok(NameState::Free(Above::Nothing));
        }
        Ok(match upper.above(at, name).on(upper)? {
            Above::Entry(_) => NameState::Taken,
            whiteout @ (Above::Whiteout | Above::WhiteoutName) => NameState::Free(whiteout),
            Above::Nothing => match Below::known(below, dir) {
                Some(None) => NameState::Free(Above::Nothing),
                Some(Some(_)) => NameState::Taken,
                None => NameState::Unknown,
            },
        })
    }

    /// Creates the inode and returns its attributes as stored; `None` if the lower layers must be
    /// asked first.
    fn make(
        &self,
        upper: &Upper,
        slot: &Slot<'_>,
        at: &Dir,
        below: Option<Below>,
        new: &New<'_>,
        gate: &Gate<'_>,
    ) -> Result<Option<(Stat, Option<File>)>> {
        let name = slot.name;
        let direct = direct(upper, new)?;
        let mut over = match self.name_state(upper, slot, at, below, !direct)? {
            NameState::Free(over) => over,
            NameState::Taken => return Err(Refusal::Exists.into()),
            NameState::Unknown => return Ok(None),
        };
        if over == Above::Nothing && direct {
            let acting = acting::act(new.maker).on(upper)?;
            let made = make_plain(at, name, new.what, new.mode);
            drop(acting);
            match made {
                Ok(Some(file)) => {
                    let stored = vellum_sys::stat::stat_fd(&file);
                    let stored = stored.on(upper)?;
                    return Ok(Some((stored, Some(file))));
                }
                Ok(None) => {
                    let stored = at.stat(name).on(upper)?;
                    return Ok(Some((stored, None)));
                }
                Err(error) if !error.is_exists() => return Err(upper.io(error)),
                Err(_) => {}
            }
            // A whiteout, or an entry that was never looked up.
            over = match self.name_state(upper, slot, at, below, true)? {
                NameState::Free(Above::Nothing) | NameState::Taken => {
                    return Err(Refusal::Exists.into());
                }
                NameState::Free(over) => over,
                NameState::Unknown => return Ok(None),
            };
        }
        let temp = upper.staging.name();
        let is_dir = matches!(new.what, NewNode::Dir);
        let published = self
            .stage(upper, slot.parent, &temp, new, over, gate)
            .and_then(|made| {
                let published = upper.publish(&temp, at, name, is_dir, over);
                published
                    .map(|()| made)
                    .map_err(|error| match error.is_exists() {
                        true => Refusal::Exists.into(),
                        false => upper.io(error),
                    })
            });
        match published {
            Ok(made) => {
                upper.unhide_name(at, name);
                Ok(Some(made))
            }
            Err(error) => {
                match is_dir {
                    true => upper.staging.discard_dir(&temp),
                    false => upper.staging.discard(&temp),
                }
                Err(error)
            }
        }
    }

    /// Creates the complete inode in the staging directory.
    fn stage(
        &self,
        upper: &Upper,
        dir: &LiveNode,
        temp: &OsStr,
        new: &New<'_>,
        over: Above,
        gate: &Gate<'_>,
    ) -> Result<(Stat, Option<File>)> {
        let initial = self.inherited(dir, new, gate)?;
        let staging = upper.staging.dir();
        let at = At::Name(Arc::clone(staging), temp.to_owned());
        let foreign = !acting::possible(new.maker.uid, initial.gid).on(upper)?;
        let recorded = upper.options.records == Records::Read
            // A symbolic link of another owner becomes a file with a record; the caller's own stays
            // a link.
            && (foreign || !matches!(new.what, NewNode::Symlink(_)));
        let made = match (recorded, new.what) {
            (true, NewNode::Dir) => staging
                .mkdir(temp, records::BACKING_DIR_MODE)
                .map(|()| None),
            (true, NewNode::Symlink(target)) => {
                let file = staging.create_file(temp, records::BACKING_FILE_MODE);
                file.and_then(|mut file| {
                    file.write_all(target.as_encoded_bytes())
                        .map_err(|e| vellum_sys::Error::new("write", temp, e))?;
                    // A symbolic link must never be incomplete, and this one is a file's bytes.
                    upper.settle_data(&file)?;
                    Ok(None)
                })
            }
            (true, _) => staging
                .create_file(temp, records::BACKING_FILE_MODE)
                .map(Some),
            (false, what) if foreign => make_plain(staging, temp, what, 0o600),
            (false, what) => {
                let maker = Maker {
                    gid: initial.gid,
                    umask: 0,
                    ..new.maker
                };
                let acting = acting::act(maker).on(upper)?;
                let made = make_plain(staging, temp, what, initial.mode);
                drop(acting);
                made
            }
        };
        let file = made.on(upper)?;
        let stored = initial.apply(upper, &at, new, recorded)?;
        if over.hides() && matches!(new.what, NewNode::Dir) {
            upper.make_opaque(staging, temp).on(upper)?;
        }
        Ok((stored, file))
    }

    /// Returns the attributes of a new inode in a directory, as a file system would set them.
    fn inherited(&self, dir: &LiveNode, new: &New<'_>, gate: &Gate<'_>) -> Result<InitialAttrs> {
        let state = dir.state();
        let state = state.placed(gate);
        let stored = self.stat_in(state)?;
        let shown = self.shown_in(state, &stored)?;
        let default = self.stored_acl(state, OsStr::new(acl::DEFAULT))?;
        let is_dir = matches!(new.what, NewNode::Dir);
        let (mut mode, mut access) = (new.mode, None);
        match (&default, new.what) {
            (_, NewNode::Symlink(_)) => mode = 0o777,
            (None, _) => mode &= !new.maker.umask,
            (Some(default), _) => {
                let inherited = default.inherit(mode);
                (mode, access) = (inherited.mode, inherited.access);
            }
        }
        let mut gid = new.maker.gid;
        if shown.mode & 0o2000 != 0 {
            gid = shown.gid;
            if is_dir {
                mode |= 0o2000;
            }
        }
        Ok(InitialAttrs {
            uid: new.maker.uid,
            gid,
            mode,
            access,
            default: default.filter(|_| is_dir),
        })
    }

    /// Returns an ACL of an inode in the upper layer, ids as stored.
    fn stored_acl(&self, state: Placed<'_>, name: &OsStr) -> Result<Option<Acl>> {
        let upper = self.upper()?;
        let Some(at) = state.at().on(upper)? else {
            return Ok(None);
        };
        let value = match records::kept(&upper.layer.dialect(), name)?.record {
            Some(record) => at.xattr(&record),
            None => at.xattr(name),
        };
        let value = value.on(upper)?;
        value.map(|value| Acl::parse(&value)).transpose()
    }

    /// Returns whether a directory has a share in a lower layer.
    fn is_merged(&self, dir: &LiveNode) -> bool {
        match &dir.state().body {
            Body::Dir(body) => is_merged(body),
            Body::File(_) => false,
        }
    }

    /// Returns the entry of an inode just created.
    fn entry_made(&self, node: HeldNode<'_>, stored: Stat, gate: &Gate<'_>) -> Result<Entry> {
        let attr = self.attr_in(&node, node.state().placed(gate), Some(stored))?;
        Ok(Entry {
            node: node.keep(),
            generation: self.table.generation(),
            attr,
        })
    }
}

/// The owner, mode and ACLs of a new inode, after umask, setgid and default ACL.
struct InitialAttrs {
    uid: u32,
    gid: u32,
    mode: u32,
    access: Option<Acl>,
    default: Option<Acl>,
}

impl InitialAttrs {
    /// Sets what differs on a staged inode, and returns its attributes as stored.
    fn apply(&self, upper: &Upper, at: &At, new: &New<'_>, recorded: bool) -> Result<Stat> {
        let acls = [(acl::ACCESS, &self.access), (acl::DEFAULT, &self.default)];
        let acls = acls
            .iter()
            .filter_map(|(name, acl)| acl.as_ref().map(|acl| (OsStr::new(*name), acl.encode())));
        if recorded && upper.options.records == Records::Read {
            let record: OverrideStat = records::of_new(new.what, self.mode, self.uid, self.gid);
            at.set_xattr(records::stat_name(), &record.encode(), SetMode::Any)
                .on(upper)?;
            for (name, value) in acls {
                let name: OsString = records::kept(&upper.layer.dialect(), name)?
                    .record
                    .ok_or(Refusal::Unsupported)?;
                at.set_xattr(&name, &value, SetMode::Any).on(upper)?;
            }
            return at.stat().on(upper);
        }
        let mut stat = at.stat().on(upper)?;
        if (stat.uid, stat.gid) != (self.uid, self.gid) {
            at.set_owner(Some(self.uid), Some(self.gid)).on(upper)?;
            stat = at.stat().on(upper)?;
        }
        if !matches!(new.what, NewNode::Symlink(_)) {
            for (name, value) in acls {
                at.set_xattr(name, &value, SetMode::Any).on(upper)?;
                stat = at.stat().on(upper)?;
            }
            if stat.mode != self.mode {
                at.set_mode(self.mode).on(upper)?;
                stat = at.stat().on(upper)?;
            }
        }
        Ok(stat)
    }
}

/// Returns whether this thread can create the inode in its final place.
fn direct(upper: &Upper, new: &New<'_>) -> Result<bool> {
    let possible = acting::possible(new.maker.uid, new.maker.gid);
    Ok(upper.options.records == Records::None && possible.on(upper)?)
}

fn make_plain(
    dir: &Dir,
    name: &OsStr,
    what: &NewNode,
    mode: u32,
) -> vellum_sys::Result<Option<File>> {
    let (kind, rdev) = match what {
        NewNode::File => return dir.create_file(name, mode).map(Some),
        NewNode::Dir => return dir.mkdir(name, mode).map(|()| None),
        NewNode::Symlink(target) => return dir.symlink(target, name).map(|()| None),
        NewNode::Fifo => (FileKind::Fifo, (0, 0)),
        NewNode::Socket => (FileKind::Socket, (0, 0)),
        NewNode::Char(major, minor) => (FileKind::Char, (*major, *minor)),
        NewNode::Block(major, minor) => (FileKind::Block, (*major, *minor)),
    };
    dir.mknod(name, kind, mode, rdev).map(|()| None)
}

/// Links an inode of the upper layer to a name that is free or hidden, in one step.
fn link_from(
    from: &At,
    upper: &Upper,
    at: &Dir,
    name: &OsStr,
    over: Above,
) -> vellum_sys::Result<()> {
    let link = |to_dir: &Dir, to: &OsStr| match from {
        At::Name(dir, from) => to_dir.link(dir, from, to),
        At::Fd(fd) => to_dir.link_fd(fd, to),
        At::Dir(dir) => to_dir.link_fd(&**dir, to),
    };
    if over != Above::Whiteout {
        return link(at, name);
    }
    let temp = upper.staging.name();
    link(upper.staging.dir(), &temp)?;
    let published = upper.publish(&temp, at, name, false, over);
    if published.is_err() {
        upper.staging.discard(&temp);
    }
    published
}

/// Refuses names that can't be created in this upper.
pub(crate) fn check_name(upper: &Upper, name: &OsStr) -> Result<()> {
    if name.len() > vellum_format::NAME_MAX_BYTES {
        return Err(Refusal::NameTooLong.into());
    }
    let bytes = name.as_encoded_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(Refusal::Invalid.into());
    }
    // It would be read as a mark.
    if upper.by_name() && vellum_format::wh::parse(name) != vellum_format::wh::Name::Plain {
        return Err(Refusal::NotPermitted.into());
    }
    Ok(())
}

fn kind_of(what: &NewNode) -> FileKind {
    match what {
        NewNode::File => FileKind::File,
        NewNode::Dir => FileKind::Dir,
        NewNode::Symlink(_) => FileKind::Symlink,
        NewNode::Fifo => FileKind::Fifo,
        NewNode::Socket => FileKind::Socket,
        NewNode::Char(..) => FileKind::Char,
        NewNode::Block(..) => FileKind::Block,
    }
}

//! Copies from a lower layer to the upper: directories with all their attributes, files with their
//! attributes alone or with their data.
//!
//! The order is always: ancestors first; then the copy is staged out of sight, gets its data,
//! owner, xattrs, mode and times, is synced, and is published by a link or a rename; then the node
//! switches. Its inode number does not change, nor do the times of its parent.
//!
//! A copy's data is on disk before the copy can show (`Durability`). A copy without data (a
//! directory, a link, attributes alone) is published without a sync where one journal keeps inode
//! and name in order; where no such order is known, it is synced too (decision 0017).
//!
//! Locks: called with none. The node's gate is held all the way, so no other thread moves or
//! removes its names; the rename gate only while the place is looked up, so a long copy delays no
//! other request.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vellum_format::{Mark, Metacopy, Redirect};
use vellum_sys::rooted::{Access, NewTime};
use vellum_sys::xattr::SetMode;
use vellum_sys::{Dir, FileKind, RenameFlags, Stat, data, publish};

use crate::at::At;
use crate::dir_layer::DirHandle;
use crate::engine::action::{Action, Attrs};
use crate::engine::depth::Depth;
use crate::engine::files::Opened;
use crate::engine::inode_numbers::Origin;
use crate::engine::nodes::gate::{self, NodeGate};
use crate::engine::nodes::{Body, DataAt, LiveNode, LowerFile, NameInDir, State, UpperFile};
use crate::engine::options::Durability;
use crate::engine::place::open_lower;
use crate::engine::request::NodeId;
use crate::engine::shown::Source;
use crate::engine::{Engine, Upper, records};
use crate::error::On;
use crate::layer::Records;
use crate::marks::DirAt;
use crate::resolve::Part;
use crate::{Layer, Refusal, Result};

/// A copy-up in progress.
struct Copying<'a> {
    upper: &'a Upper,
    node: &'a Arc<LiveNode>,
    depth: Depth,
    /// Where it will be; `None` for a file that has lost its name.
    target: Option<Target>,
    source: Source,
    /// Attributes as shown: records applied.
    shown: Stat,
    /// The lower file, and where its bytes are.
    lower: Option<(Arc<LowerFile>, Arc<LowerFile>)>,
    origin: Origin,
    /// The lower inode's link count.
    stored_nlink: u32,
}

impl Copying<'_> {
    /// Returns which of the node's attributes change with the copy; the rest are preserved.
    fn changes(&self) -> Attrs {
        let more = match self.node.kind {
            // It has the size of another inode, and no longer counts its subdirectories.
            FileKind::Dir => Attrs::SIZE | Attrs::NLINK,
            // Without an index, the copy has only this name.
            _ if self.origin.index.is_none() && self.stored_nlink > 1 => Attrs::NLINK,
            _ => Attrs::NONE,
        };
        Attrs::BLOCKS | Attrs::CTIME | more
    }

    /// Returns the directory that the copy gets its name in. In the index, it gets none of its own.
    fn goes_into(&self) -> Option<NodeId> {
        match (&self.target, &self.origin.index) {
            (Some(target), None) => Some(target.parent.id),
            _ => None,
        }
    }
}

/// The directory in the upper layer, and the name in it.
struct Target {
    handle: Arc<DirHandle>,
    /// Stays open: the directory may be moved in between.
    dir: Arc<Dir>,
    parent: Arc<LiveNode>,
    name: OsString,
}

/// A staged inode.
enum Staged {
    /// It has no name yet.
    Unnamed(Arc<OwnedFd>),
    /// It has this name in the staging directory.
    Named(OsString),
}

impl Action<'_> {
    /// Makes sure that `depth` of a node is in the upper layer. Does nothing if it is.
    ///
    /// Call it with no lock held. A node in the upper layer stays there until its last name is
    /// removed, so the caller takes its locks afterwards.
    ///
    /// Errors: [`Refusal::ReadOnly`], [`Refusal::UnmappedId`], [`Refusal::LimitReached`], `Io`;
    /// then the node is unchanged.
    pub(crate) fn to_upper(&self, node: &Arc<LiveNode>, depth: Depth) -> Result<()> {
        gate::assert_free();
        let upper = self.upper()?;
        if depth.is_done(&node.state()) {
            return Ok(());
        }
        loop {
            let mut chain = Vec::new();
            let mut at = node.state().place.as_ref().map(|p| Arc::clone(&p.parent));
            while let Some(above) = at {
                let state = above.state();
                if state.in_upper() {
                    break;
                }
                at = state.place.as_ref().map(|place| Arc::clone(&place.parent));
                drop(state);
                chain.push(above);
            }
            let mut again = false;
            for above in chain.iter().rev() {
                again |= !self.copy_one(upper, above, Depth::Names)?;
            }
            if !again && self.copy_one(upper, node, depth)? {
                return Ok(());
            }
        }
    }

    /// Copies one node whose parent is in the upper layer; false if the parent is not there,
    /// perhaps because the node was moved.
    fn copy_one(&self, upper: &Upper, node: &Arc<LiveNode>, depth: Depth) -> Result<bool> {
        let (gate, node_gate) = self.still(node);
        let copying = {
            let state = node.state();
            if depth.is_done(&state) {
                return Ok(true);
            }
            if let (true, Body::File(file)) = (state.in_upper(), &state.body) {
                let at = state.placed(&gate).at().on(upper)?;
                let at = at.ok_or(Refusal::Stale)?;
                let DataAt::Lower(source) = &file.data else {
                    return Ok(true);
                };
                let source = Arc::clone(source);
                drop(state);
                drop(gate);
                let taken = self.reserve_data(upper, &source, depth, 0)?;
                self.touch(node.id, Attrs::BLOCKS | Attrs::CTIME);
                let (truncated, lower) = (depth == Depth::Truncated, (at.clone(), source));
                let done = self.data_up(upper, node, lower, truncated, &node_gate);
                taken.result(&done, || at.stat());
                drop(node_gate);
                return done.map(|()| true);
            }
            let target = match &state.place {
                Some(place) => match target(upper, place)? {
                    None => return Ok(false),
                    some => some,
                },
                None if node.is_dir() => return Err(Refusal::Stale.into()),
                None => None,
            };
            let lower_path = self.path_for_index(upper, &state, &gate)?;
            // The node's gate keeps it in place, and lower files never move: no other request waits
            // for a lower layer.
            drop(gate);
            self.begin(upper, node, &state, (target, lower_path), depth)?
        };
        if copying.origin.index.is_some() && upper.claim_index()? {
            self.touch(NodeId::ROOT, Attrs::CTIME);
        }
        let taken = match &copying.lower {
            Some((_, data)) if copying.node.kind == FileKind::File => {
                self.reserve_data(upper, data, depth, 1)?
            }
            _ => upper.usage.reserve(0, 1)?,
        };
        self.touch(node.id, copying.changes());
        if let Some(dir) = copying.goes_into() {
            self.touch_copied_into(dir);
        }
        let done = self.copy(&copying);
        taken.result(&done, || match self.unmoved(node).placed().at()? {
            Some(at) => at.stat(),
            None => Err(vellum_sys::Error::new("stat", "", rustix::io::Errno::NOENT)),
        });
        drop(node_gate);
        done.map(|()| true)
    }
}

impl Engine {
    fn begin<'a>(
        &self,
        upper: &'a Upper,
        node: &'a Arc<LiveNode>,
        state: &State,
        (target, lower_path): (Option<Target>, Option<PathBuf>),
        depth: Depth,
    ) -> Result<Copying<'a>> {
        let source = self.source(state.below())?;
        let stored = source.stat().on(self.layer(source.layer))?;
        let stored = stored.ok_or(Refusal::Stale)?;
        let shown = self.shown_in(state.below(), &stored)?;
        let lower = match &state.body {
            Body::Dir(_) => None,
            Body::File(file) => match (&file.lower, &file.data) {
                (Some(lower), DataAt::Lower(data)) => Some((Arc::clone(lower), Arc::clone(data))),
                _ => return Err(Refusal::Stale.into()),
            },
        };
        let origin = self.origin(node, lower_path, &source, stored.nlink)?;
        Ok(Copying {
            upper,
            node,
            depth,
            target,
            source,
            shown,
            lower,
            origin,
            stored_nlink: stored.nlink,
        })
    }

    fn copy(&self, copying: &Copying<'_>) -> Result<()> {
        match copying.node.kind {
            FileKind::Dir => self.copy_dir(copying),
            FileKind::File => self.copy_regular(copying),
            _ => self.copy_special(copying),
        }
    }

    fn copy_dir(&self, copying: &Copying<'_>) -> Result<()> {
        let Copying { upper, .. } = copying;
        let target = copying.target.as_ref().ok_or(Refusal::Stale)?;
        let staging = upper.staging.dir();
        let temp = upper.staging.name();
        let made = (|| {
            staging.mkdir(&temp, records::BACKING_DIR_MODE).on(upper)?;
            let at = At::Name(Arc::clone(staging), temp.clone());
            self.attributes(copying, None, &at)?;
            upper.settle_inode(&at).on(upper)?;
            let stat = at.stat().on(upper)?;
            self.publish_name(copying, target, &temp)?;
            Ok(stat)
        })();
        let stat = match made {
            Ok(stat) => stat,
            Err(error) => {
                upper.staging.discard_dir(&temp);
                return Err(error);
            }
        };
        let handle = target.handle.sub(&target.name);
        let dir = DirAt {
            dir: Arc::clone(&handle) as _,
            stat,
            xattr_whiteouts: false,
        };
        let mut state = copying.node.state_mut();
        if let Body::Dir(body) = &mut state.body {
            let top = std::iter::once(Part { layer: 0, dir });
            body.parts = top.chain(body.parts.iter().cloned()).collect();
            body.upper = Some(handle);
        }
        Ok(())
    }

    fn copy_special(&self, copying: &Copying<'_>) -> Result<()> {
        let Copying { upper, shown, .. } = copying;
        let staging = upper.staging.dir();
        let temp = upper.staging.name();
        let made = (|| {
            let recorded = upper.layer.dialect().records == Records::Read;
            if recorded {
                let file = staging
                    .create_file(&temp, records::BACKING_FILE_MODE)
                    .on(upper)?;
                if shown.kind == FileKind::Symlink {
                    let link = self.read_link_of(&copying.source)?;
                    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(link.as_os_str());
                    data::write_at(&file, bytes, 0).on(upper)?;
                    upper.settle_data(&file).on(upper)?;
                }
            } else if shown.kind == FileKind::Symlink {
                let link = self.read_link_of(&copying.source)?;
                staging.symlink(link, &temp).on(upper)?;
            } else {
                staging.mknod(&temp, shown.kind, 0, shown.rdev).on(upper)?;
            }
            let at = At::Name(Arc::clone(staging), temp.clone());
            self.attributes(copying, None, &at)?;
            upper.settle_inode(&at).on(upper)?;
            self.publish(copying, Staged::Named(temp.clone()))
        })();
        match made {
            Ok(place) => {
                self.switch(copying, place, DataAt::Upper, None);
                Ok(())
            }
            Err(error) => {
                upper.staging.discard(&temp);
                Err(error)
            }
        }
    }

    fn copy_regular(&self, copying: &Copying<'_>) -> Result<()> {
        let Copying { upper, shown, .. } = copying;
        let (lower, source) = copying.lower.as_ref().ok_or(Refusal::Stale)?;
        let staging = upper.staging.dir();
        let below = match copying.depth {
            Depth::Names | Depth::Meta => upper.options.metacopy && shown.size_bytes > 0,
            Depth::Data | Depth::Truncated => false,
        };
        let (file, staged) = match upper.unnamed {
            true => {
                let made = staging.create_unnamed(records::BACKING_FILE_MODE);
                let file = made.on(upper)?;
                let fd = file
                    .try_clone()
                    .map_err(|error| vellum_sys::Error::new("duplicate", "", error))
                    .on(upper)?;
                (file, Staged::Unnamed(Arc::new(OwnedFd::from(fd))))
            }
            false => {
                let temp = upper.staging.name();
                let made = staging.create_file(&temp, records::BACKING_FILE_MODE);
                (made.on(upper)?, Staged::Named(temp))
            }
        };
        let temp = match &staged {
            Staged::Named(temp) => Some(temp.clone()),
            Staged::Unnamed(_) => None,
        };
        let made = (|| {
            let mut open = None;
            let data = if copying.depth == Depth::Truncated {
                // It begins empty.
                DataAt::Upper
            } else if below {
                data::truncate(&file, shown.size_bytes).on(upper)?;
                DataAt::Lower(Arc::clone(source))
            } else {
                let from = open.insert(open_lower(source).on(self.layer(source.layer))?);
                self.take_bytes(upper, (source, from), &file, true)?
            };
            let at = match &staged {
                Staged::Unnamed(fd) => At::Fd(Arc::clone(fd)),
                Staged::Named(temp) => At::Name(Arc::clone(staging), temp.clone()),
            };
            if below {
                self.mark_metacopy(copying, &at)?;
            }
            // Usually the lower file that is shown is also the one that has the data.
            let same = Arc::ptr_eq(lower, source);
            self.attributes(copying, open.as_ref().filter(|_| same), &at)?;
            let has_data = !below && copying.depth != Depth::Truncated && shown.size_bytes > 0;
            match has_data {
                true => settle(upper, &file, &data)?,
                // A name on disk before its inode would lead to an empty file.
                false => upper.settle_open(&file).on(upper)?,
            }
            Ok((self.publish(copying, staged)?, data))
        })();
        match made {
            Ok((place, data)) => {
                // It is about to be written to, unless a mark forbids that.
                let keep = matches!(data, DataAt::Upper) && !shown.immutable && !shown.append_only;
                self.switch(copying, place, data, keep.then_some(file));
                Ok(())
            }
            Err(error) => {
                if let Some(temp) = temp {
                    upper.staging.discard(&temp);
                }
                Err(error)
            }
        }
    }

    /// Marks that the bytes are below, and where if not under the same name.
    fn mark_metacopy(&self, copying: &Copying<'_>, at: &At) -> Result<()> {
        let Copying { upper, .. } = copying;
        let prefix = upper.options.prefix;
        upper.beyond_the_kernel()?;
        let set = |mark: Mark, value: &[u8]| {
            at.set_xattr(prefix.xattr(mark), value, SetMode::Any)
                .on(upper)
        };
        // The inode in the index is found by any of its names, so its mark says where the data is.
        if let Some(indexed) = &copying.origin.index
            && let Ok(redirect) = Redirect::from_root(&indexed.lower_path)
        {
            set(Mark::Redirect, &redirect.encode())?;
        }
        set(Mark::Metacopy, &Metacopy::DataBelow(None).encode())
    }

    /// Gives a staged inode its metadata and the marks of a copy.
    fn attributes(&self, copying: &Copying<'_>, open: Option<&File>, at: &At) -> Result<()> {
        let Copying { upper, .. } = copying;
        self.mark_origin(upper, &copying.origin, at)?;
        self.carry(upper, (&copying.source, open), &copying.shown, at)
    }

    /// Makes a staged inode visible, or keeps it without a name.
    fn publish(&self, copying: &Copying<'_>, staged: Staged) -> Result<UpperFile> {
        let Copying { upper, .. } = copying;
        let staging = upper.staging.dir();
        if let (Some(indexed), Some(index)) = (&copying.origin.index, &upper.index) {
            let name = &indexed.name;
            upper.beyond_the_kernel()?;
            let dir = index.dir().on(upper)?;
            let placed = match &staged {
                Staged::Unnamed(fd) => dir.link_fd(fd, name),
                Staged::Named(temp) => staging.rename(temp, &dir, name, RenameFlags::NOREPLACE),
            };
            placed.on(upper)?;
            let place = UpperFile::Named {
                dir: Arc::clone(index),
                name: name.clone(),
            };
            return Ok(place);
        }
        let Some(target) = &copying.target else {
            return match staged {
                Staged::Unnamed(fd) => Ok(UpperFile::Pinned(fd)),
                Staged::Named(temp) => {
                    let fd = staging.open_path(&temp).on(upper)?;
                    upper.staging.discard(&temp);
                    Ok(UpperFile::Pinned(Arc::new(fd)))
                }
            };
        };
        match &staged {
            Staged::Named(temp) => self.publish_name(copying, target, temp)?,
            Staged::Unnamed(fd) => {
                self.mark_impure(upper, &target.parent, &target.dir)?;
                let times = target.dir.stat_self().on(upper)?;
                target.dir.link_fd(fd, &target.name).on(upper)?;
                restore_times(&target.dir, &times);
            }
        }
        Ok(UpperFile::Named {
            dir: Arc::clone(&target.handle),
            name: target.name.clone(),
        })
    }

    fn publish_name(&self, copying: &Copying<'_>, target: &Target, temp: &OsStr) -> Result<()> {
        let Copying { upper, .. } = copying;
        self.mark_impure(upper, &target.parent, &target.dir)?;
        let times = target.dir.stat_self().on(upper)?;
        let staging = upper.staging.dir();
        staging
            .rename(temp, &target.dir, &target.name, RenameFlags::NOREPLACE)
            .on(upper)?;
        restore_times(&target.dir, &times);
        Ok(())
    }

    /// Switches the node to the upper layer; keeps `open` for the next read or write.
    fn switch(&self, copying: &Copying<'_>, place: UpperFile, data: DataAt, open: Option<File>) {
        let mut state = copying.node.state_mut();
        if let Some(file) = open {
            let opened = Opened::Upper(Arc::new(file));
            self.files.put(copying.node.id, opened, &state);
        }
        if let Body::File(file) = &mut state.body {
            file.upper = Some(place);
            file.data = data;
        }
        self.copied();
    }

    /// Copies up the data of a file that has only attributes in the upper layer.
    fn data_up(
        &self,
        upper: &Upper,
        node: &Arc<LiveNode>,
        (at, source): (At, Arc<LowerFile>),
        truncated: bool,
        _gate: &NodeGate<'_>,
    ) -> Result<()> {
        let file = match &at {
            At::Name(dir, name) => dir.open_known_file(name, Access::ReadWrite),
            At::Fd(fd) => vellum_sys::rooted::reopen_for(fd, Access::ReadWrite),
            At::Dir(_) => return Err(Refusal::IsADirectory.into()),
        };
        let file = file.on(upper)?;
        let before = at.stat().on(upper)?;
        let mut data_at = DataAt::Upper;
        if truncated {
            // First the size: while the mark is still there, the file is empty above and below.
            data::truncate(&file, 0).on(upper)?;
            upper.settle_open(&file).on(upper)?;
        } else {
            let privileges = at.xattr(OsStr::new(CAPABILITY)).on(upper)?;
            let from = open_lower(&source).on(self.layer(source.layer))?;
            data_at = self.take_bytes(upper, (&source, &from), &file, false)?;
            // The lower file may have another size; the metacopy was never resized, or the mark
            // would be gone.
            data::truncate(&file, before.size_bytes).on(upper)?;
            // Writing cleared privileges that must stay: no user of the union has written.
            if let Some(value) = privileges {
                at.set_xattr(OsStr::new(CAPABILITY), &value, SetMode::Any)
                    .on(upper)?;
            }
            if before.mode & 0o6000 != 0 {
                at.set_mode(before.mode).on(upper)?;
            }
            let (atime, mtime) = (NewTime::To(before.atime), NewTime::To(before.mtime));
            at.set_times(atime, mtime).on(upper)?;
            settle(upper, &file, &data_at)?;
        }
        if let DataAt::Blocks(_) = data_at {
            // It already has its marks, in place of the metacopy's.
            if let Body::File(file) = &mut node.state_mut().body {
                file.data = data_at;
            }
            self.copied();
            return Ok(());
        }
        // The commit point.
        let mark = upper.options.prefix.xattr(Mark::Metacopy);
        at.remove_xattr(mark).on(upper)?;
        // Without the other mark this one has no effect, so it may stay.
        let redirect = upper.options.prefix.xattr(Mark::Redirect);
        let _ = at.remove_xattr(redirect);
        let mut state = node.state_mut();
        if let Body::File(file) = &mut state.body {
            file.data = DataAt::Upper;
        }
        self.copied();
        Ok(())
    }

    /// Counts that a file, or its bytes, moved to the upper layer. Called while its node is alive,
    /// so that a lookup that no longer finds the node sees the count.
    pub(crate) fn copied(&self) {
        self.copies.fetch_add(1, Ordering::SeqCst);
    }
}

/// The xattr that any write removes.
const CAPABILITY: &str = "security.capability";

/// Returns where a name is in the upper layer, or `None` if its directory is not there.
fn target(upper: &Upper, place: &NameInDir) -> Result<Option<Target>> {
    let Some(handle) = place.parent.upper_dir() else {
        return Ok(None);
    };
    let dir = handle.dir().on(upper)?;
    Ok(Some(Target {
        handle,
        dir,
        parent: Arc::clone(&place.parent),
        name: place.name.clone(),
    }))
}

/// Makes sure that data copied into `file` reaches the disk before it shows.
fn settle(upper: &Upper, file: &File, data: &DataAt) -> Result<()> {
    let done = match (data, upper.options.durability) {
        (_, Durability::Volatile) => Ok(()),
        // The map that says where its bytes are is a separate file.
        (DataAt::Blocks(_), _) => publish::sync_file(file),
        _ => upper.settle_data(file),
    };
    done.on(upper)
}

/// Restores the times of a directory after a copy was put into it: its users see no change.
fn restore_times(dir: &Arc<Dir>, times: &Stat) {
    let at = At::Dir(Arc::clone(dir));
    // The copy is published and can't be undone; times that are a little late are no reason to
    // report a failure.
    let _ = at.set_times(NewTime::To(times.atime), NewTime::To(times.mtime));
}

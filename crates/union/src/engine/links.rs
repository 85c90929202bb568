//! What else changes when a name changes: the link count, where a file's lower data is found, and
//! the mark of directories with entries from elsewhere.
//!
//! The rules are the kernel's (`fs/overlayfs/util.c`, `ovl_nlink_start` and `ovl_set_redirect`). A
//! copied-up lower file with several names has one inode in the upper layer, kept alive by its
//! entry in the index; its untouched names stay in the lower layers only. So no inode has the right
//! link count: a mark on the upper inode has the difference. It is written before a name is added
//! or removed, relative to the count that changes with the name, so it is always right.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use vellum_format::{Handle, Mark, Nlink, NlinkBase, Redirect};
use vellum_sys::Stat;
use vellum_sys::xattr::SetMode;

use crate::at::At;
use crate::dir_layer::DirHandle;
use crate::engine::action::{Action, Attrs};
use crate::engine::depth::Depth;
use crate::engine::nodes::gate::{Gate, Placed};
use crate::engine::nodes::{Body, DataAt, DirBody, LiveNode, NameInDir, State, UpperFile};
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::{Error, Layer, Refusal, Result};

impl Engine {
    /// Returns whether the file needs this name in the upper layer before the name may change: it
    /// is one of several names of a lower file whose link count is kept.
    pub(crate) fn needs_alias(
        &self,
        node: &LiveNode,
        handle: &Arc<DirHandle>,
        name: &OsStr,
        _gate: &Gate<'_>,
    ) -> Result<bool> {
        let upper = self.upper()?;
        let state = node.state();
        let Body::File(file) = &state.body else {
            return Ok(false);
        };
        let several = file.lower.as_ref().is_some_and(|lower| lower.nlink > 1);
        if upper.index.is_none() || !several {
            return Ok(false);
        }
        if file.upper.is_none() {
            return Ok(true);
        }
        let at = handle.dir().on(upper)?;
        let own = crate::engine::hide::is_own(&state, &at, handle, name);
        own.map(|own| !own).on(upper)
    }
}

impl Action<'_> {
    /// Copies a file up and adds this name of it to the upper layer. Call it with no lock held.
    pub(crate) fn to_upper_as(
        &self,
        node: &Arc<LiveNode>,
        dir: &Arc<LiveNode>,
        name: &OsStr,
    ) -> Result<()> {
        self.to_upper(node, Depth::Meta)?;
        self.to_upper(dir, Depth::Names)?;
        let upper = self.upper()?;
        loop {
            let gate = self.shared();
            let names = dir.names(&gate);
            let Some(_node_gate) = node.try_gate() else {
                drop(names);
                drop(gate);
                drop(node.gate());
                continue;
            };
            let listed = names.get(name);
            if !listed.is_some_and(|listed| Arc::ptr_eq(&listed, node)) {
                // Removed or moved in between: the caller looks it up again.
                return Ok(());
            }
            let handle = dir.upper_dir().ok_or(Refusal::Stale)?;
            let at = handle.dir().on(upper)?;
            if at.stat_opt(name).on(upper)?.is_some() {
                return Ok(());
            }
            let state = node.state_mut();
            let from = state.placed(&gate).at().on(upper)?;
            let Some(from) = from else {
                return Err(Refusal::Stale.into());
            };
            let stored = from.stat().on(upper)?;
            let count = self.nlink(state.placed(&gate), &stored)?;
            // The lower count does not change with the name, so the mark is right before and after.
            let lower = match &state.body {
                Body::File(file) => file.lower.as_ref().map(|lower| lower.nlink),
                Body::Dir(_) => None,
            };
            if let Some(lower) = lower {
                upper.set_nlink(&from, NlinkBase::Lower, count, lower)?;
            }
            self.touch(node.id, Attrs::CTIME);
            self.touch_copied_into(dir.id);
            self.mark_impure(upper, dir, &at)?;
            let times = at.stat_self().on(upper)?;
            match &from {
                At::Name(dir, from) => at.link(dir, from, name),
                At::Fd(fd) => at.link_fd(fd, name),
                At::Dir(_) => return Err(Refusal::IsADirectory.into()),
            }
            .on(upper)?;
            // Count from the upper inode again: the lower one may be unreachable when the union is
            // next opened.
            upper.set_nlink(&from, NlinkBase::Upper, count, stored.nlink + 1)?;
            // Users of the directory see no change.
            vellum_sys::rooted::set_times_fd(&*at, Some(times.atime), Some(times.mtime))
                .on(upper)?;
            return Ok(());
        }
    }
}

impl Engine {
    /// Marks how many names a file has, relative to the upper inode's own count, so that the number
    /// is right before and after a name of that inode is added or removed. Does nothing for files
    /// whose count is not kept.
    pub(crate) fn before_links_change(&self, node: &LiveNode, state: Placed<'_>) -> Result<()> {
        let Some((upper, at, stored)) = self.counted(node, state)? else {
            return Ok(());
        };
        let count = self.nlink(state, &stored)?;
        upper.set_nlink(&at, NlinkBase::Upper, count, stored.nlink)
    }

    /// Removes a file from the index if it has lost its last name, and frees what is no longer
    /// needed.
    pub(crate) fn after_links_change(&self, node: &LiveNode, gate: &Gate<'_>) -> Result<()> {
        if !node.is_dir() {
            self.drop_from_index(node, gate)?;
        }
        self.name_gone(node)
    }

    fn drop_from_index(&self, node: &LiveNode, gate: &Gate<'_>) -> Result<()> {
        let mut state = node.state_mut();
        let Some((upper, at, stored)) = self.counted(node, state.placed(gate))? else {
            return Ok(());
        };
        let Some(index) = &upper.index else {
            return Ok(());
        };
        if self.nlink(state.placed(gate), &stored)? > 0 {
            return Ok(());
        }
        let origin = at.xattr(upper.options.prefix.xattr(Mark::Origin));
        let Some(origin) = origin.on(upper)? else {
            return Ok(());
        };
        // Without a handle there is no entry.
        let Ok(Some(handle)) = Handle::parse(&origin) else {
            return Ok(());
        };
        let (Ok(name), index) = (handle.index_name(), index.dir()) else {
            return Ok(());
        };
        if let At::Name(dir, name) = &at {
            // The file may be reached through this entry.
            let fd = dir.open_path(name).on(upper)?;
            if let Body::File(file) = &mut state.body {
                file.upper = Some(UpperFile::Pinned(Arc::new(fd)));
            }
        }
        match index.and_then(|index| index.unlink(&name)) {
            Err(error) if !error.is_not_found() => Err(upper.io(error)),
            _ => Ok(()),
        }
    }

    /// Returns the upper inode of a file whose names are counted by a mark.
    fn counted(&self, node: &LiveNode, state: Placed<'_>) -> Result<Option<(&Upper, At, Stat)>> {
        let upper = self.upper()?;
        if node.is_dir() || upper.index.is_none() || state.links.is_none() || !state.in_upper() {
            return Ok(None);
        }
        let Some(at) = state.at().on(upper)? else {
            return Ok(None);
        };
        if upper.nlink_mark(&at)?.is_none() {
            return Ok(None);
        }
        let stored = at.stat().on(upper)?;
        Ok(Some((upper, at, stored)))
    }

    /// Marks a file whose data is below so that the data is found under any name of the file.
    pub(crate) fn redirect_for_link(&self, node: &Arc<LiveNode>, gate: &Gate<'_>) -> Result<()> {
        let state = node.state();
        match (has_data_below(&state), state.place.clone()) {
            (true, Some(place)) => {
                let at = state.placed(gate).at().on(self.layer(0))?;
                drop(state);
                self.set_redirect(&at.ok_or(Refusal::Stale)?, &place, true, gate)
            }
            _ => Ok(()),
        }
    }

    /// Marks the inode `at`, whose name is still `place`, with where the layers below have it. An
    /// `absolute` mark is valid wherever the inode is moved; another only within its directory. A
    /// sufficient mark stays.
    ///
    /// Errors: [`Refusal::CrossDevice`] if the mark would be too long, or the file system has no
    /// space for it.
    pub(crate) fn set_redirect(
        &self,
        at: &At,
        place: &NameInDir,
        absolute: bool,
        gate: &Gate<'_>,
    ) -> Result<()> {
        let upper = self.upper()?;
        let present = upper.redirect(at)?;
        let lower_name = match present {
            Some(Redirect::FromRoot(_)) => return Ok(()),
            Some(Redirect::Sibling(_)) if !absolute => return Ok(()),
            Some(Redirect::Sibling(name)) => name,
            None => place.name.clone(),
        };
        let redirect = match absolute {
            false => Redirect::sibling(&lower_name),
            true => Redirect::from_root(&self.lower_path(&place.parent, lower_name, gate)?),
        };
        let value = redirect.map_err(|_| Refusal::CrossDevice)?.encode();
        let mark = upper.options.prefix.xattr(Mark::Redirect);
        upper.beyond_the_kernel()?;
        match at.set_xattr(mark, &value, SetMode::Any) {
            Err(error) if error.is_no_space() || error.is(rustix::io::Errno::RANGE) => {
                Err(Refusal::CrossDevice.into())
            }
            other => other.and_then(|()| upper.settle_inode(at)).on(upper),
        }
    }

    /// Returns the path from the root at which the layers below have `name` of a directory.
    pub(super) fn lower_path(
        &self,
        dir: &Arc<LiveNode>,
        name: OsString,
        gate: &Gate<'_>,
    ) -> Result<PathBuf> {
        let upper = self.upper()?;
        let mut names = vec![name];
        let mut at = Arc::clone(dir);
        loop {
            let (place, inode) = {
                let state = at.state();
                (
                    state.place.clone(),
                    state.placed(gate).at().on(self.layer(0))?,
                )
            };
            let Some(place) = place else {
                break;
            };
            let redirect = match &inode {
                Some(inode) => upper.redirect(inode)?,
                None => None,
            };
            match redirect {
                Some(Redirect::FromRoot(path)) => {
                    let below: PathBuf = names.iter().rev().collect();
                    return Ok(path.join(below));
                }
                Some(Redirect::Sibling(name)) => names.push(name),
                None => names.push(place.name),
            }
            at = place.parent;
        }
        Ok(names.iter().rev().collect())
    }

    /// Returns whether the upper inode was copied from a lower layer, according to its marks.
    pub(crate) fn has_origin(&self, state: Placed<'_>) -> Result<bool> {
        let upper = self.upper()?;
        let Some(at) = state.at().on(upper)? else {
            return Ok(false);
        };
        let origin = at.xattr(upper.options.prefix.xattr(Mark::Origin));
        Ok(origin.on(upper)?.is_some())
    }

    /// Marks a directory as holding an entry that was copied up elsewhere, so that other engines
    /// look up its inode number when they list it.
    pub(crate) fn make_impure(&self, dir: &LiveNode, _gate: &Gate<'_>) -> Result<()> {
        let upper = self.upper()?;
        match dir.upper_dir() {
            Some(handle) => {
                let open = handle.dir().on(upper)?;
                self.mark_impure(upper, dir, &open)
            }
            None => Ok(()),
        }
    }
}

impl Upper {
    fn set_nlink(&self, at: &At, base: NlinkBase, count: u32, relative_to: u32) -> Result<()> {
        let delta = i64::from(count) - i64::from(relative_to);
        let delta = i32::try_from(delta).map_err(|_| Refusal::Invalid)?;
        let mark = self.options.prefix.xattr(Mark::Nlink);
        let value = Nlink { base, delta }.encode();
        at.set_xattr(mark, &value, SetMode::Any)
            .and_then(|()| self.settle_inode(at))
            .on(self)
    }

    /// Returns where an inode's mark says that the layers below have it.
    pub(crate) fn redirect(&self, at: &At) -> Result<Option<Redirect>> {
        let value = at.xattr(self.options.prefix.xattr(Mark::Redirect));
        let Some(value) = value.on(self)? else {
            return Ok(None);
        };
        Redirect::parse(&value).map(Some).map_err(|source| {
            let path = match at {
                At::Name(_, name) => PathBuf::from(name),
                At::Dir(_) | At::Fd(_) => PathBuf::new(),
            };
            Error::Mark {
                layer: self.layer.name(),
                path,
                source,
            }
        })
    }
}

/// Returns whether a file's inode is in the upper layer and its bytes are in a lower one, found by
/// name or redirect. (The map of a file copied up block by block names the lower file itself.)
pub(crate) fn has_data_below(state: &State) -> bool {
    match &state.body {
        Body::File(file) => file.upper.is_some() && matches!(file.data, DataAt::Lower(_)),
        Body::Dir(_) => false,
    }
}

/// Returns whether a directory has a share in a lower layer.
pub(crate) fn is_merged(body: &DirBody) -> bool {
    body.parts.iter().any(|part| part.layer > 0)
}

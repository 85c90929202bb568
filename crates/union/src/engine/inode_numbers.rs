//! Inode numbers: one for each file over all layers, which never changes.
//!
//! It is the number of the inode under which the file was first seen, with the index of its file
//! system in the high bits: 0 for the upper layer's file system, so a union on one file system
//! shows its numbers unchanged.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use vellum_format::{Handle, HandleFlags, Mark, Nlink, NlinkBase, Number};
use vellum_sys::xattr::SetMode;
use vellum_sys::{Dir, handle};

use crate::at::At;
use crate::dir_layer::DirHandle;
use crate::engine::nodes::gate::Gate;
use crate::engine::nodes::{Body, LiveNode, State};
use crate::engine::shown::{Inode, Source};
use crate::engine::{Engine, Upper};
use crate::error::On;
use crate::layer::{Layer, LayerDir};
use crate::marks::{DirAt, FileAt};
use crate::resolve::Part;
use crate::{Error, Result};

/// What a copy records about its source.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The value of the origin mark: a handle, or empty if there is none.
    handle: Vec<u8>,
    /// The inode number shown, if it must be recorded.
    number: Option<Number>,
    /// Set if other names of the lower inode must lead to the same copy.
    pub index: Option<Indexed>,
}

/// A copy that is reached through the index.
#[derive(Debug)]
pub(crate) struct Indexed {
    /// The name in the index.
    pub name: OsString,
    /// Where the data is in the lower layers, as one union.
    pub lower_path: PathBuf,
    /// How many names the lower inode has.
    pub nlink: u32,
}

/// How inode numbers of the layers become those of the union.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// The file systems of the layers by their `st_dev`; the first is the upper layer's, or that of
    /// the top one.
    devs: Vec<u64>,
    /// How many high bits identify the file system.
    bits: u32,
    /// Shorten numbers to 32 bits.
    short: bool,
    /// The UUID of each layer's file system, as handles have it.
    uuids: Vec<[u8; 16]>,
    /// The device of each layer.
    layer_devs: Vec<u64>,
}

impl Numbers {
    /// Takes the device of each layer, the top one first. Equal ones may be repeated.
    pub fn new(layers: impl IntoIterator<Item = (u64, [u8; 16])>, short: bool) -> Numbers {
        let mut devs = Vec::new();
        let (layer_devs, uuids): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        for &dev in &layer_devs {
            if !devs.contains(&dev) {
                devs.push(dev);
            }
        }
        // One value more than there are file systems: for numbers that don't fit, and file systems
        // mounted within a layer.
        let bits = usize::BITS - devs.len().leading_zeros();
        Numbers {
            devs,
            bits,
            short,
            uuids,
            layer_devs,
        }
    }

    /// Returns the UUID that handles of a layer have.
    pub fn uuid(&self, layer: usize) -> [u8; 16] {
        self.uuids.get(layer).copied().unwrap_or_default()
    }

    /// Returns the number to show for a handle's inode, if the handle's layout is known.
    fn of_handle(&self, handle: &Handle) -> Option<u64> {
        let layer = self.uuids.iter().position(|uuid| *uuid == handle.uuid)?;
        let u32_at = |at: usize| {
            let bytes = handle.bytes.get(at..at + 4)?;
            Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
        };
        if handle.flags.big_endian {
            return None;
        }
        let ino = match (handle.kind, handle.bytes.len()) {
            // FILEID_INO32_GEN: ext4, and others with 32-bit numbers.
            (0x01, 8) => u32_at(0)?,
            // tmpfs uses the same type: generation, then the number in two halves.
            (0x01, 12) => u32_at(4)? | u32_at(8)? << 32,
            // XFS with 64-bit numbers; btrfs.
            (0x81, 12) | (0x4d, 20) => u32_at(0)? | u32_at(4)? << 32,
            _ => return None,
        };
        Some(self.show((self.layer_devs[layer], ino)))
    }

    /// Returns the number to show for an inode of a layer.
    pub fn show(&self, (dev, ino): (u64, u64)) -> u64 {
        let low = u64::MAX >> self.bits;
        let fs = self.devs.iter().position(|&known| known == dev);
        let long = match fs {
            // On one file system alone nothing can collide.
            Some(0) if self.devs.len() == 1 => ino,
            Some(fs) if ino <= low => (fs as u64).rotate_right(self.bits) | ino,
            _ => {
                let spare = (self.devs.len() as u64).rotate_right(self.bits);
                spare | (mix(mix(dev) ^ ino) & low)
            }
        };
        match self.short {
            false => long,
            true => match long >> 32 {
                0 => long,
                // 0 is not an inode number.
                _ => (mix(long) & 0xffff_ffff).max(2),
            },
        }
    }
}

impl Engine {
    /// Returns the inode number of a directory with these shares: that of the topmost lower one, if
    /// there is one.
    pub(crate) fn number_of_dir(&self, parts: &[Part<DirAt>]) -> u64 {
        let lowest = match (&self.upper, parts) {
            (Some(_), [top, lower, ..]) if top.layer == 0 => lower,
            _ => &parts[0],
        };
        self.numbers.show(lowest.dir.stat.identity())
    }

    /// Returns the inode number of a file. `impure` says whether it may be a copy of another.
    pub(crate) fn number_of_file(&self, impure: bool, file: &FileAt) -> Result<u64> {
        let own = self.numbers.show(file.stat.identity());
        let (true, Some(upper)) = (impure, &self.upper) else {
            return Ok(own);
        };
        let prefix = upper.options.prefix;
        let read = |name: &OsStr| {
            let value = file.dir.xattr(Some(&file.name), name);
            value.on(upper)
        };
        let bad = |source| Error::Mark {
            layer: upper.layer.name(),
            path: file.dir.path().join(&file.name),
            source,
        };
        if let Some(value) = read(prefix.xattr(Mark::Number))? {
            let number = Number::parse(&value).map_err(bad)?;
            // A number of a file system that is not here may belong to another file.
            let known = self.numbers.uuids.contains(&number.uuid);
            return Ok(if known { number.ino } else { own });
        }
        let Some(value) = read(prefix.xattr(Mark::Origin))? else {
            return Ok(own);
        };
        let handle = Handle::parse(&value).map_err(bad)?;
        let found = handle.and_then(|handle| self.numbers.of_handle(&handle));
        Ok(found.unwrap_or(own))
    }
}

impl Engine {
    /// Returns where the layers below have a file that is about to be copied up, if its copy goes
    /// into the index because it has several names.
    pub(super) fn path_for_index(
        &self,
        upper: &Upper,
        state: &State,
        gate: &Gate<'_>,
    ) -> Result<Option<PathBuf>> {
        match (&state.body, &state.place) {
            (Body::File(file), Some(place)) if upper.index.is_some() => {
                let several = file.lower.as_ref().is_some_and(|lower| lower.nlink > 1);
                let path = || self.lower_path(&place.parent, place.name.clone(), gate);
                several.then(path).transpose()
            }
            _ => Ok(None),
        }
    }

    /// Returns what a copy of the inode in `source` must record. `nlink` is the inode's link count,
    /// `lower_path` the result of [`Engine::path_for_index`].
    pub(super) fn origin(
        &self,
        node: &LiveNode,
        lower_path: Option<PathBuf>,
        source: &Source,
        nlink: u32,
    ) -> Result<Origin> {
        let handle = match &source.inode {
            Inode::Lower(dir, name) => self.handle_of(source.layer, &**dir, name.as_deref())?,
            Inode::Upper(_) => None,
        };
        let linked = nlink > 1 && !node.is_dir();
        let index = match (&handle, lower_path) {
            (Some(handle), Some(lower_path)) if linked => {
                match handle.index_name() {
                    Ok(name) => Some(Indexed {
                        name,
                        lower_path,
                        nlink,
                    }),
                    // Longer than a name can be: copy it as a separate file.
                    Err(_) => None,
                }
            }
            _ => None,
        };
        let value = handle.and_then(|handle| handle.encode().ok());
        Ok(Origin {
            handle: value.unwrap_or_default(),
            // If names of one lower inode become several files, they can't all keep its number.
            number: (!linked || index.is_some()).then(|| Number {
                ino: node.ino,
                uuid: self.numbers.uuid(source.layer),
            }),
            index,
        })
    }

    /// Returns the handle of an inode in a layer as overlayfs stores it, or `None` if its file
    /// system has none.
    pub(super) fn handle_of(
        &self,
        layer: usize,
        dir: &dyn LayerDir,
        name: Option<&OsStr>,
    ) -> Result<Option<Handle>> {
        let found = dir.handle(name).on(self.layer(layer))?;
        Ok(found.and_then(|found| stored(found, self.numbers.uuid(layer), false)))
    }

    /// Writes the marks of a copy on its staged inode, if the file system supports them.
    pub(super) fn mark_origin(&self, upper: &Upper, origin: &Origin, at: &At) -> Result<()> {
        let prefix = upper.options.prefix;
        let set = |name: &OsStr, value: &[u8]| match at.set_xattr(name, value, SetMode::Any) {
            // Symbolic links and devices take no `user.` xattrs, some file systems none at all: the
            // number then lasts until the union is closed.
            Err(error) if error.is_unsupported() || error.is_denied() => Ok(()),
            other => other.on(upper),
        };
        set(prefix.xattr(Mark::Origin), &origin.handle)?;
        if let Some(number) = origin.number {
            set(prefix.xattr(Mark::Number), &number.encode())?;
        }
        if let Some(indexed) = &origin.index {
            // The copy's only name is that in the index, which doesn't count.
            let mark = Nlink {
                base: NlinkBase::Upper,
                delta: i32::try_from(indexed.nlink).unwrap_or(i32::MAX) - 1,
            };
            set(prefix.xattr(Mark::Nlink), &mark.encode())?;
        }
        Ok(())
    }

    /// Marks a directory in the upper layer as holding names whose numbers come from elsewhere.
    /// Call it before the first of them is added.
    pub(crate) fn mark_impure(&self, upper: &Upper, dir: &LiveNode, open: &Arc<Dir>) -> Result<()> {
        let known = |body: &Body| matches!(body, Body::Dir(dir) if dir.impure == Some(true));
        if known(&dir.state().body) {
            return Ok(());
        }
        let mark = upper.options.prefix.xattr(Mark::Impure);
        match vellum_sys::xattr::set_fd(&**open, mark, b"y", SetMode::Any) {
            // Its entries have no marks either.
            Err(error) if error.is_unsupported() => {}
            other => other.on(upper)?,
        }
        if let Body::Dir(body) = &mut dir.state_mut().body {
            body.impure = Some(true);
        }
        Ok(())
    }

    /// Returns whether a directory in the upper layer may hold names whose numbers come from
    /// elsewhere.
    pub(crate) fn is_impure(&self, dir: &LiveNode, _gate: &Gate<'_>) -> Result<bool> {
        match dir.upper_dir() {
            Some(upper) => self.is_impure_by(dir, &upper),
            None => Ok(false),
        }
    }

    /// As [`Engine::is_impure`], by a handle of the directory's share in the upper layer that can't
    /// become stale: under the rename gate, or one that follows the directory.
    pub(crate) fn is_impure_by(&self, dir: &LiveNode, upper: &DirHandle) -> Result<bool> {
        if let Body::Dir(body) = &dir.state().body
            && let Some(known) = body.impure
        {
            return Ok(known);
        }
        let mark = self.upper()?.options.prefix.xattr(Mark::Impure);
        let open = upper.dir().on(self.layer(0))?;
        let impure = vellum_sys::xattr::get_fd(&*open, mark)
            .on(self.layer(0))?
            .is_some();
        if let Body::Dir(body) = &mut dir.state_mut().body {
            // Another thread may have marked it in between.
            return Ok(*body.impure.get_or_insert(impure));
        }
        Ok(impure)
    }
}

/// Returns the handle of an open file as overlayfs stores it, or `None` if its file system has
/// none.
pub(super) fn stored_handle(
    fd: impl AsFd,
    uuid: [u8; 16],
    path_upper: bool,
) -> vellum_sys::Result<Option<Handle>> {
    Ok(handle::of(fd)?.and_then(|found| stored(found, uuid, path_upper)))
}

fn stored(found: handle::FileHandle, uuid: [u8; 16], path_upper: bool) -> Option<Handle> {
    let kind = u8::try_from(found.kind).ok()?;
    let flags = HandleFlags {
        big_endian: cfg!(target_endian = "big"),
        any_endian: false,
        path_upper,
    };
    Some(Handle {
        flags,
        kind,
        uuid,
        bytes: found.bytes,
    })
}

/// Mixes a number over all its bits (the finalizer of SplitMix64). Changing it changes the shown
/// numbers that don't fit otherwise.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(devs: &[u64], short: bool) -> Numbers {
        Numbers::new(devs.iter().map(|&dev| (dev, [0; 16])), short)
    }

    #[test]
    fn one_file_system_keeps_its_numbers() {
        let numbers = new(&[7, 7, 7], false);
        for ino in [1, 2, u64::MAX >> 1, u64::MAX] {
            assert_eq!(numbers.show((7, ino)), ino);
        }
    }

    #[test]
    fn numbers_of_several_file_systems_never_collide() {
        let numbers = new(&[7, 8, 7, 9], false);
        assert_eq!(numbers.show((7, 5)), 5);
        let mut shown: Vec<_> = [7, 8, 9, 10]
            .iter()
            .flat_map(|&dev| [1, 5, 1 << 61, u64::MAX].map(|ino| numbers.show((dev, ino))))
            .collect();
        let all = shown.len();
        shown.sort_unstable();
        shown.dedup();
        assert_eq!(shown.len(), all);
    }

    #[test]
    fn short_numbers_fit() {
        let numbers = new(&[7, 8], true);
        assert_eq!(numbers.show((7, 5)), 5);
        assert!(numbers.show((8, 5)) < 1 << 32);
        assert_ne!(numbers.show((8, 5)), 5);
    }
}

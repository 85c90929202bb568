//! How much space a file system has.

use std::os::fd::AsFd;

use crate::{Error, Result};

/// A file system's space, counted in blocks of `block_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes in a block.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks available to users other than root.
    pub blocks_available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// The longest name in bytes.
    pub name_max_bytes: u32,
}

/// Returns the space of the file system that holds an open file.
pub fn of(fd: impl AsFd) -> Result<Room> {
    let fd = fd.as_fd();
    let room = rustix::fs::fstatvfs(fd)
        .map_err(|e| Error::at("read the free space of the file system of", fd, "", e))?;
    let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(Room {
        block_bytes: short(room.f_frsize),
        blocks: room.f_blocks,
        blocks_free: room.f_bfree,
        blocks_available: room.f_bavail,
        inodes: room.f_files,
        inodes_free: room.f_ffree,
        name_max_bytes: short(room.f_namemax),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_room_for_names() {
        let tmp = tempfile::tempdir().unwrap();
        let room = super::of(crate::Dir::open(tmp.path()).unwrap()).unwrap();
        assert!(room.block_bytes > 0 && room.blocks >= room.blocks_free);
        assert!(room.name_max_bytes >= 143, "{room:?}");
    }
}

//! Names inside an overlay's work directory that carry meaning between mounts.

/// The index of hard links, directly in the work directory. Entries are named by [`Handle`](crate::Handle).
pub const INDEX: &str = "index";

/// Where the kernel stages its temporary files, directly in the work directory.
pub const STAGING: &str = "work";

/// Any entry in this directory that a kernel does not know makes it refuse to mount this work directory.
///
/// It is two levels down: `incompat` directly in the work directory is ignored. The refusal belongs to the work
/// directory, not to the upper: the same upper mounts with a fresh one, so this mark alone protects nothing.
pub const INCOMPAT: &str = "work/incompat";

/// The entry of [`INCOMPAT`] left by a volatile mount that was not unmounted cleanly: the upper can't be trusted.
pub const INCOMPAT_VOLATILE_DIRTY: &str = "work/incompat/volatile/dirty";

/// The maps of files copied up block by block ([`crate::block_map`]), one file each. As long as there is one, the upper
/// layer is unsettled: nobody without this directory can read all of it.
pub const BLOCK_MAPS: &str = "vellum/blocks";

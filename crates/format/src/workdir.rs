//! Names inside an overlay's work directory that carry meaning between mounts. Each is on disk:
//! another name here is another layout. Who writes what, and when, stands in `docs/format.md`, "The
//! work directory".

/// The index of hard links, directly in the work directory. Entries are named by
/// [`Handle`](crate::Handle).
pub const INDEX: &str = "index";

/// Where the kernel and the engine stage their temporary files, directly in the work directory.
pub const STAGING: &str = "work";

/// What is Vellum's alone, directly in the work directory.
pub const OWN: &str = "vellum";

/// In [`OWN`]: what is recorded of the upper, so that it can be believed where it is a lower layer
/// later.
pub const OWN_LAYER: &str = "layer";

/// In [`OWN`]: the device number of the mount that last showed the upper.
pub const OWN_MOUNTED: &str = "mounted";

/// In [`OWN`]: what a limited upper holds.
pub const OWN_USAGE: &str = "usage";

/// The maps of files copied up block by block ([`crate::block_map`]), one file each. As long as
/// there is one, the upper layer is unsettled: nobody without this directory can read all of it.
pub const BLOCK_MAPS: &str = "vellum/blocks";

/// The directory whose entries keep away who does not know them.
///
/// Any entry in it that a kernel does not know makes it refuse to mount this work directory. The
/// refusal belongs to the work directory, not to the upper: the same upper mounts with a fresh one,
/// so these marks alone protect nothing.
pub mod incompat {
    /// Where it is, from the work directory. It is two levels down: `incompat` directly in the work
    /// directory is ignored.
    pub const PATH: &str = "work/incompat";

    /// Its name in [`STAGING`](super::STAGING).
    pub const NAME: &str = "incompat";

    /// What the entries begin with that keep kernels away and mean nothing to an engine beyond
    /// that.
    pub const OWN_PREFIX: &str = "vellum-";

    /// Stands there while an engine has the work directory, and after one was killed.
    pub const OPEN: &str = "vellum-open";

    /// Files of the upper are copied up only in part.
    pub const BLOCKS: &str = "vellum-blocks";

    /// A plain user's upper has marks that the kernel refuses, or passes over, in `user.overlay.*`.
    pub const MARKS: &str = "vellum-marks";

    /// The upper has hidden names with `.wh.` files.
    pub const NAMES: &str = "vellum-names";

    /// The upper is being replaced by a conversion. Engines keep away, too.
    pub const CONVERTING: &str = "layer-convert";

    /// The directory of a volatile union: the kernel's and the engine's.
    pub const VOLATILE: &str = "volatile";

    /// In [`VOLATILE`]: the union was not unmounted cleanly, so the upper can't be trusted.
    pub const DIRTY: &str = "dirty";

    /// Returns the name in [`VOLATILE`] that says since which start of the machine the union was
    /// open. `boot_id` is the kernel's.
    pub fn boot(boot_id: &[u8; 16]) -> String {
        let digits: String = boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{OWN_PREFIX}boot-{digits}")
    }
}

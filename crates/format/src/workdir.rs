//! Names inside an overlay's work directory that have a meaning from one mount to the next. All are
//! on disk: changing a name here changes the layout. `docs/format.md`, "The work directory", says
//! which program writes what, and when.

/// The index of hard links, directly in the work directory. Entries are named by
/// [`Handle`](crate::Handle).
pub const INDEX: &str = "index";

/// Where the kernel and the engine stage their temporary files, directly in the work directory.
pub const STAGING: &str = "work";

/// Vellum's own directory, directly in the work directory.
pub const OWN: &str = "vellum";

/// In [`OWN`]: the record about the upper that lets it be trusted when it is a lower layer later.
pub const OWN_LAYER: &str = "layer";

/// In [`OWN`]: the device number of the mount that last showed the upper.
pub const OWN_MOUNTED: &str = "mounted";

/// In [`OWN`]: how much a limited upper holds.
pub const OWN_USAGE: &str = "usage";

/// The maps of files copied up block by block ([`crate::block_map`]), one file each. As long as
/// there is one, the upper layer is unsettled: it can't be read in full without this directory.
pub const BLOCK_MAPS: &str = "vellum/blocks";

/// The directory whose entries keep out kernels and engines that don't know them.
///
/// A kernel refuses to mount a work directory that has an entry here it does not know. The refusal
/// belongs to the work directory, not to the upper: the same upper mounts with a fresh one, so
/// these marks alone protect nothing.
pub mod incompat {
    /// Where it is, from the work directory. It is two levels down: `incompat` directly in the work
    /// directory is ignored.
    pub const PATH: &str = "work/incompat";

    /// Its name in [`STAGING`](super::STAGING).
    pub const NAME: &str = "incompat";

    /// The prefix of entries that keep kernels out and mean nothing else to an engine.
    pub const OWN_PREFIX: &str = "vellum-";

    /// Exists while an engine uses the work directory, and after one was killed.
    pub const OPEN: &str = "vellum-open";

    /// Files of the upper are copied up only in part.
    pub const BLOCKS: &str = "vellum-blocks";

    /// A plain user's upper has marks that the kernel refuses or ignores in `user.overlay.*`.
    pub const MARKS: &str = "vellum-marks";

    /// The upper hides names with `.wh.` files.
    pub const NAMES: &str = "vellum-names";

    /// A conversion is replacing the upper. This keeps engines out, too.
    pub const CONVERTING: &str = "layer-convert";

    /// The directory of a volatile union: the kernel's and the engine's.
    pub const VOLATILE: &str = "volatile";

    /// In [`VOLATILE`]: the union was not unmounted cleanly, so the upper can't be trusted.
    pub const DIRTY: &str = "dirty";

    /// Returns the name in [`VOLATILE`] that says during which boot the union was open. `boot_id`
    /// is the kernel's.
    pub fn boot(boot_id: &[u8; 16]) -> String {
        let digits: String = boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{OWN_PREFIX}boot-{digits}")
    }
}

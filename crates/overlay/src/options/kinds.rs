//! The choices that a mount option leaves: one small type each, so that no choice is a pair of
//! booleans.

/// On whose terms the mount is made: how strictly options are read, and what holds where none is
/// given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// Vellum's own: an option that isn't understood is an error.
    Own,
    /// fuse-overlayfs's: an option that isn't understood is told once and left out. Its callers
    /// hand an upper to other programs without knowing of marks, so nothing is written that the
    /// kernel's default mount can't read, and unmounting settles.
    FuseOverlayfs,
}

/// Whether directories of lower layers can be renamed, and marks of such renames are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirects {
    /// Written and followed.
    On,
    /// Followed where they are, none is written.
    Follow,
    /// Neither: a lower layer with one is refused.
    NoFollow,
}

/// Whose marks are followed in lower layers that are named on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Those of layers whose work directory says that an engine made them; of all others none: they
    /// may come from an archive.
    ByRecord,
    /// Everybody's: the caller knows that an overlay engine wrote every layer.
    Engine,
    /// Nobody's.
    Archive,
}

/// Whether names such as `.wh.x` hide other names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhFiles {
    /// In layers that may have been written that way.
    Auto,
    /// Nowhere: they are names like any other.
    Plain,
    /// In every layer.
    Whiteouts,
}

/// When files that are partly in lower layers are made whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// By `vellum settle`.
    Manual,
    /// At the unmount.
    Unmount,
}

/// Who may use the mount besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody.
    Owner,
    /// Root.
    Root,
    /// Everybody, as permissions say.
    All,
}

//! The values of options that leave a choice: one small type each, so that no choice is a pair of
//! booleans.

/// Whose manners a mount has: how strictly options are read, and what the defaults are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// Vellum's own: an option that isn't understood is an error.
    Own,
    /// fuse-overlayfs's: an option that isn't understood is reported once and ignored. Its callers
    /// pass an upper to other programs that don't know the marks. So nothing is written that the
    /// kernel's default mount can't read, and unmounting settles the upper.
    FuseOverlayfs,
}

/// Whether directories of lower layers can be renamed, and the marks of such renames are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirects {
    /// Written and followed.
    On,
    /// Existing ones are followed, none is written.
    Follow,
    /// Neither: a lower layer with one is refused.
    NoFollow,
}

/// Whose marks are followed in lower layers that are named on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Those of layers whose work directory says that an engine wrote them. All other layers may
    /// come from an archive, so theirs are not followed.
    ByRecord,
    /// All: the caller knows that an overlay engine wrote every layer.
    Engine,
    /// None.
    Archive,
}

/// Whether names such as `.wh.x` hide other names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhFiles {
    /// In layers that may have been written that way.
    Auto,
    /// Nowhere: they are ordinary names.
    Plain,
    /// In every layer.
    Whiteouts,
}

/// When files that are partly in lower layers are completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// By `vellum settle`.
    Manual,
    /// At the unmount.
    Unmount,
}

/// Which users may use the mount in addition to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No other user.
    Owner,
    /// Root.
    Root,
    /// All users, as permissions allow.
    All,
}

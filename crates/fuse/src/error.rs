//! The one error of this room: why there is no mount, or why it ended badly. What a request is
//! answered is in `errno.rs`.

use std::path::PathBuf;

/// The result of everything in this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] vellum_sys::Error),
    /// There is no device, or it may not be used.
    #[error("FUSE can't be used here{}", hint(*missing))]
    NoDevice {
        /// It is not there at all.
        missing: bool,
        /// What failed.
        #[source]
        source: vellum_sys::Error,
    },
    /// The kernel's offer can't be taken.
    #[error(transparent)]
    Refused(#[from] crate::negotiate::Refused),
    /// The first message was no INIT, or could not be read.
    #[error("the kernel's first message makes no sense")]
    Handshake {
        /// What was wrong with it, if it could not be parsed.
        #[source]
        source: Option<crate::wire::Malformed>,
    },
    /// The device was closed or failed before INIT.
    #[error("the connection ended before it began")]
    Closed,
    /// The helper that mounts for plain users could not.
    #[error("fusermount3 can't mount on {}: {said}", target.display())]
    Fusermount {
        /// Where.
        target: PathBuf,
        /// What it said.
        said: String,
    },
    /// A mount can't go from one server to the next.
    #[error("the mount can't be handed over: {why}")]
    Handover {
        /// Why, as a clause.
        why: String,
    },
    /// The engine can't be handed over, or not taken over.
    #[error("the union can't be handed over")]
    Successor {
        /// Why.
        #[source]
        source: vellum_union::Error,
    },
    /// What was written could not be brought to disk at the end.
    #[error("the union could not be closed")]
    Close {
        /// Why.
        #[source]
        source: vellum_union::Error,
    },
}

fn hint(missing: bool) -> &'static str {
    match missing {
        true => " (load the module fuse, or pass the device /dev/fuse into this container)",
        false => "",
    }
}

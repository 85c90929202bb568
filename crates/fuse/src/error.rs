//! This crate's one error type: why there is no mount, or why it ended badly. The errno that
//! answers a request is decided in `errno.rs`.

use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] vellum_sys::Error),
    /// The device is missing or may not be used.
    #[error("FUSE is not available here{}", hint(*missing))]
    NoDevice {
        /// The device does not exist.
        missing: bool,
        /// What failed.
        #[source]
        source: vellum_sys::Error,
    },
    /// The kernel's offer in INIT can't be accepted.
    #[error(transparent)]
    Refused(#[from] crate::negotiate::Refused),
    /// The first message was not INIT, or could not be read.
    #[error("the kernel's first FUSE message is not a valid INIT request")]
    Handshake {
        /// What was wrong with it, if it could not be parsed.
        #[source]
        source: Option<crate::wire::Malformed>,
    },
    /// The device was closed or failed before INIT.
    #[error("the FUSE connection closed before INIT")]
    Closed,
    /// The helper that mounts for plain users failed.
    #[error("fusermount3 can't mount on {}: {said}", target.display())]
    Fusermount {
        /// Where.
        target: PathBuf,
        /// What it said.
        said: String,
    },
    /// A mount can't be handed from one server to the next.
    #[error("the mount can't be handed over: {why}")]
    Handover {
        /// Why, as a clause.
        why: String,
    },
    /// The engine can't be handed over, or can't be taken over.
    #[error("the union can't be handed over")]
    Successor {
        /// Why.
        #[source]
        source: vellum_union::Error,
    },
    /// Written data could not be brought to disk at the end.
    #[error("the union could not be closed")]
    Close {
        /// Why.
        #[source]
        source: vellum_union::Error,
    },
}

fn hint(missing: bool) -> &'static str {
    match missing {
        true => " (load the fuse module, or pass the device /dev/fuse into this container)",
        false => "",
    }
}

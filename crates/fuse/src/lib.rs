//! The front end: the FUSE protocol, spoken for a union engine.
//!
//! This crate decodes the kernel's requests, calls [`vellum_union::engine::Engine`] and encodes its
//! answers. It must not know which layer anything is on. Begin reading at `ops.rs`.
//!
//! * [`wire`]: the protocol's bytes, pure; `channel.rs`: the device; `workers.rs`: the threads;
//! * [`negotiate`]: what a connection will be like, pure;
//! * `ops.rs`: each request; `errno.rs`: each error; `notify.rs`: notifications;
//! * `session.rs`: from mount to unmount; [`counters`]: how often each request came.
//!
//! Invariants: hostile bytes from the device are errors, never panics; a panic while answering is
//! one EIO; no lock is held while a reply is written; what the kernel may cache was true when it
//! was sent, and the kernel is notified when that changes (`ops/known.rs`); only this process
//! changes the tree.
#![forbid(unsafe_code)]

mod channel;
pub mod counters;
mod errno;
mod error;
pub mod negotiate;
mod notify;
mod ops;
mod options;
mod passthrough;
mod session;
mod tidy;
pub mod wire;
mod workers;

pub use error::{Error, Result};
pub use negotiate::Agreed;
pub use options::{DataMode, MountFlags, MountOptions, Mounter, OpenMode};
pub use session::{Caught, Handover, NotHandedOver, Session, Unmounter, mount, take_over};

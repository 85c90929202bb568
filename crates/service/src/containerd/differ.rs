//! Layers into and out of trees that the caller names by their mounts: what containerd asks of a
//! differ.
//!
//! [`apply`](apply()) unpacks a layer's blob with Vellum's own unpacker; [`diff`](diff()) writes
//! the layer that leads from one tree to another. Neither mounts anything: mounts are read as the
//! directories they consist of ([`tree`]), layers and an upper in the kernel's format, and the work
//! is done there. Trees of the store are looked up in it, so that no layer is written twice at once
//! and each tree is read by its writer's rules; directories of other snapshotters are taken as
//! described, as containerd's own differ does.
//!
//! A tree that directories can't represent (a disk image, an id-mapped overlay, a mount by another
//! program) is [`Error::Unsupported`](crate::Error::Unsupported): the caller has other differs to
//! ask. Where blobs come from and go to is the front's concern.

mod apply;
mod diff;
mod tree;

pub use apply::{ApplyRequest, Done, apply};
pub use diff::{DiffRequest, Written, diff};

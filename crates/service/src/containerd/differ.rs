//! Layers into and out of trees that somebody else names by their mounts: what containerd asks of a
//! differ.
//!
//! [`apply`](apply()) unpacks a layer's blob with Vellum's own unpacker; [`diff`](diff()) writes
//! the layer that leads from one tree to another. Nothing is mounted for either: mounts are read as
//! what they are made of ([`tree`]), layers and an upper directory in the kernel's format, and the
//! work is done there. Trees of the store are looked up in it, so that a layer is never written
//! into twice and each tree is read by the rules of whoever wrote it; directories of other
//! snapshotters are taken at their word, as containerd's own differ takes them.
//!
//! What no directory can stand for (a disk image, an id-mapped overlay, a mount by another program)
//! is [`Error::Unsupported`](crate::Error::Unsupported): the caller has other differs to ask. Where
//! blobs come from and go to is the front's business.

mod apply;
mod diff;
mod tree;

pub use apply::{ApplyRequest, Done, apply};
pub use diff::{DiffRequest, Written, diff};

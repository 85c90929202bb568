//! The merge: several trees, stacked on each other, read as one.
//!
//! This crate decides what a user of the union sees: which names exist, whose attributes and data
//! they have, and what the top layer changed. It knows marks through `vellum-format` and files
//! through `vellum-sys`. It must not know FUSE, invent errnos, or know sockets, databases, tar, or
//! where layers are kept.
//!
//! Start reading at [`resolve`]: one pure function, [`resolve::merge`], decides about one name,
//! asking each layer only when its answer matters. [`Stack`] asks real layers through it, for
//! lookup, listing and walks; [`changes()`] reads the top layer alone and asks below; [`compare`]
//! reads two whole unions; [`fsck`] checks every mark of an overlay.
//!
//! Invariants:
//! * A tree is untrusted data: a mark that can't be true (or may not be followed there) is an
//!   [`Error`] that names the mark, the layer and the path. It is never read as zeros or as empty,
//!   and never in an endless loop.
//! * A redirect is followed only in layers below the one that has it, so a chain of redirects can't
//!   loop.
//! * Names are bytes; paths in errors and results are relative to the union's root.
#![forbid(unsafe_code)]

mod at;
mod changes;
mod dir_layer;
pub mod engine;
mod error;
mod explain;
mod fold;
pub mod fsck;
mod layer;
mod left_behind;
mod link_groups;
mod marks;
mod node;
pub mod resolve;
mod same;
mod stack;

pub use changes::{Change, ChangeKind, Changes, Form, changes, compare};
pub use dir_layer::DirLayer;
pub use error::{Error, Refusal, Result};
pub use explain::{Explanation, Statement};
pub use fold::{Folded, folded};
pub use layer::blocks::{BlockMaps, Data};
pub use layer::{Dialect, Layer, LayerDir, LayerTrust, RawEntry, Records, WhNames};
pub use node::Node;
pub use stack::{Stack, Walk};

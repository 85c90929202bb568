//! Reading tar: headers of every dialect that layers come in, as Go's `archive/tar` reads them.
//!
//! `number.rs` reads numeric fields, `header.rs` takes a header block apart, `pax.rs` reads
//! extended records, `reader.rs` walks the archive, `sparse.rs` finds out about holes. Layers,
//! image archives and tar-splits are all read by this one reader: two that see different trees in
//! one layer are a way past every scanner. Go's is the measure, because scanners, Docker, Podman
//! and containerd use it; where this one differs is listed with the reasons in
//! `docs/semantics/layers.md`, "Archives".
//!
//! It knows nothing of trees and whiteouts: names are as the archive spells them.

pub(crate) mod header;
pub(crate) mod number;
pub(crate) mod pax;
pub mod reader;
mod sparse;

pub use header::BLOCK;
pub(crate) use header::is_header;
pub use reader::{Ending, Entry, EntryKind, Range, SliceSource, TarReader, TarSource};

//! Reading tar: headers of every dialect that layers come in, as Go's `archive/tar` reads them.
//!
//! `number.rs` reads numeric fields, `header.rs` parses a header block, `pax.rs` reads extended
//! records, `reader.rs` walks the archive, `sparse.rs` handles holes. This one reader reads layers,
//! image archives and tar-splits: two readers that see different trees in one layer would be a way
//! around every scanner. Go's is the reference, because scanners, Docker, Podman and containerd use
//! it; the differences are listed with the reasons in `docs/semantics/layers.md`, "Archives".
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

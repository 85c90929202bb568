//! Reading tar: headers of every dialect that layers come in, strictly.
//!
//! `number.rs` reads numeric fields, `pax.rs` extended records, `reader.rs` walks the archive, `sparse.rs` finds
//! out about holes. Header layouts and checksums are those of
//! the `tar-core` crate. Its parser is not used, since it is too forgiving for bytes that come from strangers and too narrow for some
//! that come from friends: a PAX record with a malformed length ends its list silently, base-256 numbers wrap, a PAX `size` is
//! applied to a sparse 1.0 file after the map was subtracted, negative times and keys that are not UTF-8 are refused. Where readers in
//! the wild disagree about an archive, this one refuses it, because two readers that see different trees in one layer are a way
//! past every scanner.
//!
//! It knows nothing of trees and whiteouts: names are as the archive spells them.

pub(crate) mod number;
pub(crate) mod pax;
pub mod reader;
mod sparse;

pub use reader::{Entry, EntryKind, Range, SliceSource, TarReader, TarSource};

//! What Docker and containers/storage keep of a layer's tar next to its tree (`tar-split`):
//! together they reproduce the tar byte for byte.
//!
//! The format is that of github.com/vbatts/tar-split: JSON lines in gzip. Raw stretches of the tar
//! (headers, padding) alternate with one line for each entry, whose content is left out and named.
//! [`split()`] writes it, for containers/storage; `Joined` reads it, from Docker's data root.

mod join;
mod split;

pub(crate) use join::Joined;
pub use split::split;

/// The line of an entry: its name, and the size of its content.
const FILE: u32 = 1;

/// The line of a stretch of the tar.
const PIECE: u32 = 2;

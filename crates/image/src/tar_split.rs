//! What Docker and containers/storage keep of a layer's tar beside its tree (`tar-split`): with
//! both the tar comes back byte for byte.
//!
//! The form is that of github.com/vbatts/tar-split: JSON lines in gzip. Stretches of the tar as
//! they are (headers, padding) stand in turn with one line for each entry, whose content is left
//! out and named. [`split()`] writes it, for containers/storage; `Joined` reads it, out of Docker's
//! data root.

mod join;
mod split;

pub(crate) use join::Joined;
pub use split::split;

/// The line of an entry: its name, and the size of its content.
const FILE: u32 = 1;

/// The line of a stretch of the tar.
const PIECE: u32 = 2;

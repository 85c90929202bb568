//! The FUSE protocol, version 7.45, as bytes: the kernel's requests and their replies.
//!
//! Pure. Requests are parsed in place, from a slice the kernel filled, into [`Request`]. Nothing is
//! copied and nothing is trusted: a length that does not fit, a name without its NUL and an unknown
//! operation are values or errors, never a panic. Replies are written into a buffer by
//! [`reply::Reply`]. This module must not know an engine, a device or an errno's meaning.
//!
//! The layouts are the kernel's ABI (`include/uapi/linux/fuse.h`), in the machine's byte order.

pub mod flags;
pub mod notify;
mod read;
pub mod reply;
pub mod request;

pub use read::Malformed;
pub use reply::Reply;
pub use request::{Dialect, Header, Op, Opcode, Request};

/// The protocol's major version.
pub const MAJOR: u32 = 7;
/// The newest supported minor version.
pub const MINOR: u32 = 45;
/// The oldest supported minor version: Linux 5.1. Older requests have other lengths.
pub const OLDEST_MINOR: u32 = 29;
/// The node number of the root directory.
pub const ROOT: u64 = 1;

#[cfg(test)]
mod tests;

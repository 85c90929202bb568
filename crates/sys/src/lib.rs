//! The hands: all of Vellum's system calls on trees, mounts and namespaces go through here.
//!
//! This crate knows files, directories, attributes, mounts and processes. It must not know what a
//! layer, a mark, an image or a snapshot is: it decides nothing, does only what it is asked to, and
//! reports exactly what happened. It is the only crate with `unsafe`; each block names the fact
//! that makes it sound.
//!
//! Invariants every module keeps:
//! * names inside a tree are single components given to a directory descriptor and are never
//!   followed;
//! * longer paths inside a tree are resolved by `openat2` beneath a descriptor, without symbolic
//!   links;
//! * every descriptor is close-on-exec;
//! * an error carries the operation and its path; outcomes a caller expects are values.

pub mod acting;
pub mod activation;
pub mod cancel;
pub mod copy;
pub mod credentials;
pub mod data;
mod dress;
pub mod epoch;
pub mod error;
pub mod flags;
pub mod fuse_dev;
pub mod fuse_ring;
pub mod handle;
pub mod in_root;
pub mod lock;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod own_files;
pub mod plain;
pub mod probe;
pub mod process;
pub mod publish;
pub mod quota;
pub mod random;
pub mod room;
pub mod rooted;
pub mod socket;
pub mod stat;
pub mod sync;
#[cfg(test)]
mod testing;
pub mod userns;
pub mod xattr;

pub use cancel::Cancel;
pub use dress::dress;
pub use error::{Error, Result, causes, with_causes};
pub use process::Process;
pub use rooted::{Dir, RenameFlags};
pub use stat::{FileKind, Stat, Timespec};

//! The vocabulary of layered trees: every mark that says "hidden", "opaque", "renamed from", "data
//! is below", in every dialect in use, encoded and recognised; the names in a work directory; and
//! types that every other crate uses: digests and runs of ids.
//!
//! This crate is pure: bytes in, values out. It knows no files, clocks, logs or policy: whether a
//! mark may be *followed* in a given layer is decided in `vellum-union`. Parsers are strict and
//! total: any input is either a value or a [`MarkError`] that names the mark and what is wrong with
//! it; they never panic. Changing how anything here is encoded breaks every tree on disk and the
//! exchange with the kernel.
//!
//! # Table of marks
//!
//! `P` is the prefix of the dialect: `trusted.overlay.` ([`Prefix::Trusted`]) or `user.overlay.`
//! ([`Prefix::User`]).
//!
//! | meaning | on disk | here |
//! |---|---|---|
//! | name is hidden (whiteout) | character device 0:0 | [`WHITEOUT_RDEV`] |
//! | the same, without devices | empty regular file with `P` + `whiteout`, in a directory with `P` + `opaque` = `x` | [`Mark::Whiteout`], [`Opaque::XattrWhiteouts`] |
//! | the same, in archives and AUFS trees | regular file `.wh.NAME` | [`wh::Name::Whiteout`] |
//! | directory hides all below it | `P` + `opaque` = `y` | [`Opaque::Opaque`] |
//! | the same, in archives and AUFS trees | file `.wh..wh..opq` in it | [`wh::Name::Opaque`] |
//! | the same, of fuse-overlayfs | `user.fuseoverlayfs.opaque` = `y` | [`FUSE_OVERLAYFS_OPAQUE`] |
//! | AUFS's own bookkeeping | `.wh..wh.*` | [`wh::Name::Reserved`] |
//! | directory was renamed; file's data lives elsewhere | `P` + `redirect` = name, or absolute path from the union's root | [`Redirect`] |
//! | file has only metadata here, data below | `P` + `metacopy`, empty or 4 to 68 bytes | [`Metacopy::DataBelow`] |
//! | file is half-written; no reader but Vellum may open it | `P` + `metacopy`, 1 byte | [`Metacopy::Unsettled`] |
//! | the map of such a file's blocks, in the work directory | `P` + `vellum.blocks`, the map's name: 32 hex digits | [`block_map`] |
//! | the inode number to show for a copy | `P` + `vellum.ino`, 24 bytes | [`Number`] |
//! | nothing: set and removed, to see whether marks can be xattrs | `P` + `vellum.probe`, empty | [`Mark::Probe`] |
//! | which lower inode this was copied from | `P` + `origin`, a file handle, or empty | [`Handle`] |
//! | directory may hold entries with an origin | `P` + `impure` = `y` | [`Mark::Impure`] |
//! | link count of a hard link whose names are spread over layers | `P` + `nlink` = `L+1`, `U-2` ... | [`Nlink`] |
//! | upper directory of an index entry | `P` + `upper`, a file handle | [`Handle`] |
//! | immutable and append-only flags, shown but not set | `P` + `protattr` = `a`, `i`, `ai` | [`Protattr`] |
//! | identity of the upper | `P` + `uuid`, 16 bytes | [`Mark::Uuid`] |
//! | someone else's mark, stored by an outer union for an inner one | `P` + `overlay.` + anything | [`Prefix::escape`] |
//! | owner, mode and type that the file system could not be given | `user.containers.override_stat` and two older spellings | [`OverrideStat`] |
//! | an xattr that the file system could not be given | `user.vellum.xattr.` + full name | [`record`] |
//!
//! Where the encodings come from: the kernel's `Documentation/filesystems/overlayfs.rst` and
//! `fs/overlayfs`, the OCI image specification (layer.md), AUFS, fuse-overlayfs and
//! containers/storage.
#![forbid(unsafe_code)]

pub mod block_map;
mod digest;
mod error;
mod handle;
pub mod ids;
mod mark;
mod override_stat;
mod prefix;
pub mod record;
mod redirect;
pub mod wh;
pub mod workdir;

pub use digest::{BadDigest, Digest};
pub use error::MarkError;
pub use handle::{Handle, HandleFlags};
pub use ids::IdRun;
pub use mark::{Metacopy, Nlink, NlinkBase, Number, Opaque, Protattr, Verity, impure, uuid};
pub use override_stat::{OVERRIDE_STAT, OVERRIDE_STAT_NAMES, OverrideKind, OverrideStat};
pub use prefix::{Mark, Prefix, XattrName};
pub use redirect::{REDIRECT_MAX_BYTES, Redirect};

/// The device number of the character device that hides a name: major 0, minor 0.
///
/// The kernel, fuse-overlayfs, Docker and Podman all read it. Its mode, owner and times mean
/// nothing.
pub const WHITEOUT_RDEV: (u32, u32) = (0, 0);

/// The xattr with which fuse-overlayfs marks a directory opaque if it may not set the kernel's.
/// Its value is `y`.
pub const FUSE_OVERLAYFS_OPAQUE: &str = "user.fuseoverlayfs.opaque";

/// The longest file name Linux stores, in bytes.
pub const NAME_MAX_BYTES: usize = 255;

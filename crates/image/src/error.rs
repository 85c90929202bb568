//! What can go wrong in this crate, in its own terms.
//!
//! Every variant names the thing it is about: an entry's path as the archive spells it, a digest, a
//! limit. Texts never repeat their `#[source]`. Names are bytes; messages show them lossily.

use std::io;
use std::path::PathBuf;

use vellum_format::Digest;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a layer or an image could not be read, applied or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,

    /// Reading the incoming bytes failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),

    /// Writing the outgoing bytes failed.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),

    /// The bytes ended in the middle of something.
    #[error("the archive is cut short at byte {offset}: {expected} is missing")]
    Truncated {
        /// Where the bytes ended, counted in the uncompressed tar.
        offset: u64,
        /// What should have followed.
        expected: &'static str,
    },

    /// A compressed stream does not decode.
    #[error("cannot decompress the {packing} stream")]
    Decompress {
        /// The compression that was recognised.
        packing: crate::packing::Packing,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },

    /// Bytes don't have the digest that was promised for them.
    #[error("{what} has digest {found}, expected {expected}")]
    DigestMismatch {
        /// What was hashed, for people.
        what: String,
        /// The digest promised.
        expected: Digest,
        /// The digest of the bytes that came.
        found: Digest,
    },

    /// Bytes don't have the length that was promised for them.
    #[error("{what} has {found} bytes, expected {expected}")]
    SizeMismatch {
        /// What was counted, for people.
        what: String,
        /// The length promised.
        expected: u64,
        /// The length found; when reading stopped early, at least this much.
        found: u64,
    },

    /// A header of the tar is malformed or contradicts itself.
    #[error("bad tar header at byte {offset}: {why}")]
    BadHeader {
        /// Where the header starts in the uncompressed tar.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },

    /// A limit was exceeded; nothing after it was looked at.
    #[error("{limit} exceeds the limit of {max}{}", at(path))]
    Limit {
        /// Which limit, in words.
        limit: &'static str,
        /// Its value.
        max: u64,
        /// The entry it happened at, if it was at one.
        path: Option<PathBuf>,
    },

    /// A name, or a link on the path to it, leads out of the tree.
    #[error("'{path}' leads out of the tree: {why}", path = path.display())]
    Escapes {
        /// The name as the archive spells it.
        path: PathBuf,
        /// How.
        why: &'static str,
    },

    /// A name that can't be created or that the format reserves.
    #[error("'{path}' is not a usable name: {why}", path = path.display())]
    BadName {
        /// The name as the archive spells it.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },

    /// A hard link to something that is not in this layer.
    #[error("hard link '{path}' names '{target}', which is not in the tree it is applied to", path = path.display(), target = target.display())]
    LinkTargetMissing {
        /// The link.
        path: PathBuf,
        /// What it should be a link to.
        target: PathBuf,
    },

    /// An owner that the user namespace does not map.
    #[error("'{path}' belongs to {uid}:{gid}, which this user namespace does not map", path = path.display())]
    UnmappedOwner {
        /// The entry's name.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },

    /// The file system refused something while a layer was applied.
    #[error("cannot {action} '{path}'", path = path.display())]
    Apply {
        /// A verb: "create", "write", "set the owner of", ...
        action: &'static str,
        /// The entry's name in the tree.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// An extended attribute of the archive could not be stored, though the file system supports
    /// its type.
    #[error("cannot set extended attribute {name} of '{path}'", path = path.display())]
    Xattr {
        /// The attribute's name in the archive.
        name: String,
        /// The entry's name.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A recipe is damaged, or of a version that this program does not know.
    #[error("the layer's recipe can't be used: {why}")]
    BadRecipe {
        /// What is wrong.
        why: String,
    },

    /// Something in a layer's tree can't be read.
    #[error("cannot {action} '{path}' in the layer's tree", path = path.display())]
    Verify {
        /// What was tried.
        action: &'static str,
        /// On what, relative to the tree.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },

    /// The layer's tree is no longer the one that the recipe was written for.
    #[error("'{path}' in the layer's tree has changed since the layer was applied: {why}", path = path.display())]
    TreeChanged {
        /// The file, relative to the tree.
        path: PathBuf,
        /// How it differs.
        why: String,
    },

    /// Something that can't be written into a layer tar.
    #[error("'{path}' can't be written to a layer: {why}", path = path.display())]
    BadEntry {
        /// The entry's name.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref()
        .map(|path| format!(" at '{}'", path.display()))
        .unwrap_or_default()
}

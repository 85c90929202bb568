//! This crate's error type. Each error names the layer (counted from the top, 0 first) and the path
//! it is about.

use std::path::PathBuf;

use vellum_format::{Mark, MarkError};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a union could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed. The source has the path.
    #[error("layer {layer} can't be read")]
    Io {
        /// The layer's name, usually its directory.
        layer: String,
        /// What failed.
        #[source]
        source: vellum_sys::Error,
    },
    /// A mark whose bytes no engine writes.
    #[error("/{path} in layer {layer} has a mark that can't be read", path = path.display())]
    Mark {
        /// The layer's name.
        layer: String,
        /// The path inside that layer.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MarkError,
    },
    /// A mark that points elsewhere, in a layer that came from an archive: anyone could have
    /// written it.
    #[error("/{path} in layer {layer} has a {mark} mark, but the layer is from an archive: such marks are not followed", path = path.display())]
    Untrusted {
        /// The layer's name.
        layer: String,
        /// The path inside that layer.
        path: PathBuf,
        /// The mark.
        mark: Mark,
    },
    /// The file's data is incomplete: the engine that was writing it has not settled it.
    #[error("/{path} in layer {layer} is unsettled: only the engine that wrote it can read it", path = path.display())]
    Unsettled {
        /// The layer's name.
        layer: String,
        /// The path inside that layer.
        path: PathBuf,
    },
    /// The file was copied up block by block, and its map or its lower file can't be used.
    #[error("/{path} in layer {layer} is unsettled, and {why}", path = path.display())]
    Blocks {
        /// The upper layer's name.
        layer: String,
        /// The path inside that layer.
        path: PathBuf,
        /// What is missing or wrong, as a clause.
        why: String,
    },
    /// A metacopy mark says the data is below, but it is not.
    #[error("/{path} in layer {layer} has a metacopy mark, but no layer below has its data{}", reason(*obstructed))]
    NoData {
        /// The layer's name.
        layer: String,
        /// The path in the union.
        path: PathBuf,
        /// A whiteout, or something other than a regular file, is where the data should be.
        obstructed: bool,
    },
    /// A directory's redirect mark points where there is no directory.
    #[error("/{path} in layer {layer} has a redirect mark to {to:?}, where no layer below has a directory", path = path.display())]
    Dangling {
        /// The layer's name.
        layer: String,
        /// The path in the union.
        path: PathBuf,
        /// Where the mark points.
        to: PathBuf,
    },
    /// A path leads through something that is not a directory, or such a thing was listed.
    #[error("/{path} is not a directory", path = path.display())]
    NotADirectory {
        /// The path in the union.
        path: PathBuf,
    },
    /// Data was read from something that is not a regular file, or a link target from something
    /// that is not a symbolic link.
    #[error("/{path} is not a {expected}", path = path.display())]
    WrongKind {
        /// The path in the union.
        path: PathBuf,
        /// The type it was read as.
        expected: &'static str,
    },
    /// The path is so long that walking the tree would need unbounded memory.
    #[error("a path of {length_bytes} bytes is too deep to read: /{start}...", start = start.display())]
    TooDeep {
        /// The first components.
        start: PathBuf,
        /// The path's length.
        length_bytes: usize,
    },
    /// A path with `..` in it.
    #[error("{path:?} is not a plain path")]
    BadPath {
        /// The path as given.
        path: PathBuf,
    },
    /// A union without layers.
    #[error("a union needs at least one layer")]
    NoLayers,
    /// A live union refused a request, as any file system would.
    #[error("{refusal}")]
    Refused {
        /// The rule.
        refusal: Refusal,
    },
    /// An engine can't continue where another stopped.
    #[error("can't resume from the previous engine's state: {why}")]
    Successor {
        /// Why, as a clause.
        why: String,
    },
    /// The upper or the work directory can't be used.
    #[error("{path} can't be used: {why}", path = path.display())]
    BadUpper {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
}

/// Why a live union refuses a request: the answers a program expects from any file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such name.
    #[error("there is no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name is taken")]
    Exists,
    /// It is not a directory.
    #[error("it is not a directory")]
    NotADirectory,
    /// It is a directory.
    #[error("it is a directory")]
    IsADirectory,
    /// The directory is not empty.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The union has no upper layer, or it is on a read-only mount.
    #[error("the union is read-only")]
    ReadOnly,
    /// No caller may do this.
    #[error("that is not permitted")]
    NotPermitted,
    /// The move needs a mark that this union may not write.
    #[error("it can't be moved without redirect_dir")]
    CrossDevice,
    /// An argument no file system accepts.
    #[error("the argument is not valid")]
    Invalid,
    /// There is no such xattr.
    #[error("there is no such attribute")]
    NoAttribute,
    /// An id has no counterpart on the other side of the mapping.
    #[error("an owner can't be mapped")]
    UnmappedId,
    /// The union has reached its limit.
    #[error("the union has reached its limit")]
    LimitReached,
    /// The name is longer than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// SEEK_DATA found nothing after the offset.
    #[error("there is no data after that offset")]
    NoData,
    /// The layers' file system can't do this.
    #[error("the layers' file system does not support that")]
    Unsupported,
    /// The engine doesn't know the node, or no longer does.
    #[error("the node is gone")]
    Stale,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused { refusal }
    }
}

impl Error {
    /// Returns whether something in the layer called `layer` was gone when it was read again.
    pub(crate) fn is_gone_from(&self, layer: &str) -> bool {
        use rustix::io::Errno;
        match self {
            Error::Io {
                layer: failed,
                source,
            } => {
                let went = [Errno::NOENT, Errno::NOTDIR, Errno::STALE, Errno::LOOP];
                failed == layer && went.iter().any(|&errno| source.is(errno))
            }
            _ => false,
        }
    }
}

/// A thing that system calls act on: a layer, or a part of one.
pub(crate) trait Site {
    /// Returns its name in errors.
    fn site(&self) -> String;

    /// Turns a failed system call on it into an [`Error::Io`] that names it.
    fn io(&self, source: vellum_sys::Error) -> Error {
        Error::Io {
            layer: self.site(),
            source,
        }
    }
}

/// A layer's name.
impl Site for str {
    fn site(&self) -> String {
        self.to_owned()
    }
}

impl<S: Site + ?Sized> Site for &S {
    fn site(&self) -> String {
        (**self).site()
    }
}

/// Adds the layer to the error of a failed system call.
pub(crate) trait On<T> {
    /// Turns the error into one of this crate, for a call that acted on `site`.
    fn on(self, site: impl Site) -> Result<T>;
}

impl<T> On<T> for vellum_sys::Result<T> {
    fn on(self, site: impl Site) -> Result<T> {
        self.map_err(|source| site.io(source))
    }
}

fn reason(obstructed: bool) -> &'static str {
    match obstructed {
        true => " (something else is in its place)",
        false => "",
    }
}

//! The one error of this room. Each says which layer (counted from the top, 0 first) and which path
//! it is about.

use std::path::PathBuf;

use vellum_format::{Mark, MarkError};

/// The result of everything in this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a union could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed. The source has the path.
    #[error("layer {layer} can't be read")]
    Io {
        /// The layer's name: its directory, as a rule.
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
    #[error("/{path} in layer {layer} has a {mark} mark, but the layer is from an archive, where none is followed", path = path.display())]
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
    /// The file is copied up block by block, and its map, its lower file or both can't be used.
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
        /// Something that is no regular file stands, or a whiteout lies, where the data should be.
        obstructed: bool,
    },
    /// A redirect mark of a directory points at no directory.
    #[error("/{path} in layer {layer} has a redirect mark to {to:?}, where no layer below has a directory", path = path.display())]
    Dangling {
        /// The layer's name.
        layer: String,
        /// The path in the union.
        path: PathBuf,
        /// Where the mark points.
        to: PathBuf,
    },
    /// A path was walked through something that is no directory, or one was to be listed.
    #[error("/{path} is no directory", path = path.display())]
    NotADirectory {
        /// The path in the union.
        path: PathBuf,
    },
    /// Data was asked of something that is no regular file, or a link target of something that is
    /// no symbolic link.
    #[error("/{path} is no {expected}", path = path.display())]
    WrongKind {
        /// The path in the union.
        path: PathBuf,
        /// What it was taken for.
        expected: &'static str,
    },
    /// A path so long that walking the tree would need memory without bound.
    #[error("a path of {length_bytes} bytes is deeper than a union is read: /{start}...", start = start.display())]
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
    /// A union of no layers.
    #[error("a union needs at least one layer")]
    NoLayers,
    /// Something was asked of a live union that its rules refuse, as any file system would.
    #[error("{refusal}")]
    Refused {
        /// The rule.
        refusal: Refusal,
    },
    /// An engine can't go on where another stopped.
    #[error("what the engine before left can't be taken over: {why}")]
    Successor {
        /// Why, as a clause.
        why: String,
    },
    /// The upper or the work directory can't be used.
    #[error("{path:?} can't be used: {why}")]
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
    /// It is no directory.
    #[error("it is no directory")]
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
    /// Not allowed, whoever asks.
    #[error("that is not permitted here")]
    NotPermitted,
    /// The move would need a mark this union is told not to write.
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
    /// The limit of the union is reached.
    #[error("the limit of the union is reached")]
    LimitReached,
    /// The name is longer than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// There is nothing that way (SEEK_DATA behind the end).
    #[error("there is no data from there on")]
    NoData,
    /// What is asked for can't be had from the layers' file system.
    #[error("that is not supported here")]
    Unsupported,
    /// The node is not known (any more).
    #[error("the node is gone")]
    Stale,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused { refusal }
    }
}

impl Error {
    /// True if something in the layer called `layer` was not there any more when it was looked at
    /// again.
    pub(crate) fn went_from(&self, layer: &str) -> bool {
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

/// Something that system calls are made on: a layer, or what belongs to one.
pub(crate) trait Site {
    /// Returns what errors call it.
    fn site(&self) -> String;

    /// Turns a failure here into an error that says so.
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

/// The one way in which a failed system call gains its place.
pub(crate) trait On<T> {
    /// Returns the error as one of this room: the call was made on `site`.
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

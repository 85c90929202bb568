//! Why a union could not be mounted or read, with a hint where one helps.
//!
//! The text never repeats its source. The caller prints [`Error::hint`] on a line of its own.

use std::path::PathBuf;

use crate::options::BadOption;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request contradicts itself or names something impossible.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// What to write instead.
        hint: Option<String>,
    },

    /// The machine, kernel or file system can't do it.
    #[error("{what}")]
    Unsupported {
        /// What can't be done and why.
        what: String,
        /// What to do about it.
        hint: String,
    },

    /// A system call on a path failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb ("read", "create").
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },

    /// A system call failed; the source says which and where.
    #[error(transparent)]
    Sys(#[from] vellum_sys::Error),

    /// The layers could not be read as one tree.
    #[error(transparent)]
    Union(#[from] vellum_union::Error),

    /// The mount failed, or ended badly.
    #[error(transparent)]
    Fuse(#[from] vellum_fuse::Error),

    /// Flags of a mount could not be changed.
    #[error(transparent)]
    Mount(#[from] vellum_sys::mount::MountError),

    /// This program could not be executed again to serve a mount.
    #[error("cannot run {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },

    /// The process that should serve the mount failed.
    #[error("Vellum's engine could not mount the layers: {said}")]
    Engine {
        /// What it wrote to standard error.
        said: String,
    },

    /// A mount was created but does not answer. Its process has been told to unmount it.
    #[error("the mount on {} does not answer", target.display())]
    Silent {
        /// The mount point.
        target: PathBuf,
        /// What asking it returned.
        #[source]
        source: std::io::Error,
    },
}

impl From<BadOption> for Error {
    fn from(bad: BadOption) -> Error {
        Error::Invalid {
            what: bad.what,
            hint: bad.hint,
        }
    }
}

impl Error {
    /// Returns a function that wraps an I/O error, for `map_err`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// What the user can do next, if anything.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Invalid { hint, .. } => hint.as_deref(),
            Self::Unsupported { hint, .. } => Some(hint),
            Self::Io { .. }
            | Self::Sys(_)
            | Self::Union(_)
            | Self::Fuse(_)
            | Self::Mount(_)
            | Self::Program { .. }
            | Self::Engine { .. }
            | Self::Silent { .. } => None,
        }
    }

    /// Tells whether the request can't be understood, rather than failed.
    pub fn is_misuse(&self) -> bool {
        matches!(self, Self::Invalid { .. })
    }
}

//! The errors of the verbs, in the user's words, with a hint where one helps.
//!
//! Each crate's own error arrives here as a source and is reported once: the text never repeats its
//! source. Fronts turn [`Error::class`] into an exit code or a status, and print [`Error::hint`] on
//! a line of its own.

use std::path::PathBuf;

use crate::config::ConfigError;

/// A verb's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of object that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// An image, by reference or id.
    Image,
    /// A container, by name or id.
    Container,
    /// A named volume.
    Volume,
    /// A layer, by chain id.
    Layer,
}

impl std::fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Container => "container",
            Self::Volume => "volume",
            Self::Layer => "layer",
        })
    }
}

/// The class of a failure, for exit codes and statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request can't be understood.
    Misused,
    /// It was understood and failed.
    Failed,
    /// The user stopped it.
    Cancelled,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// No object has that name.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// What was looked for.
        kind: ObjectKind,
        /// As the user wrote it.
        name: String,
        /// What the user may have meant, as a hint; see [`crate::names`].
        meant: Option<String>,
    },

    /// A shortened id or name that matches several.
    #[error("`{name}` matches several {kind}s: {}", matches.join(", "))]
    Ambiguous {
        /// What was looked for.
        kind: ObjectKind,
        /// As the user wrote it.
        name: String,
        /// Some of the matches.
        matches: Vec<String>,
    },

    /// Another object has the name.
    #[error("the name `{name}` is taken by another {kind}")]
    NameTaken {
        /// The kind of the object that has the name.
        kind: ObjectKind,
        /// The name.
        name: String,
    },

    /// Something still needs it.
    #[error("{kind} `{name}` is in use: {by}")]
    InUse {
        /// What is in use.
        kind: ObjectKind,
        /// Its name.
        name: String,
        /// What uses it.
        by: String,
        /// How to proceed anyway.
        hint: String,
    },

    /// The request contradicts itself or names something impossible.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// What to write instead.
        hint: Option<String>,
    },

    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] vellum_store::StoreError),

    /// A system call failed; the source says which and where.
    #[error(transparent)]
    Sys(#[from] vellum_sys::Error),

    /// No plan can mount it.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanRefusal),

    /// The mount failed.
    #[error(transparent)]
    Mount(#[from] vellum_sys::mount::MountError),

    /// A record can't be true.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// What it is.
        what: String,
        /// What is wrong with it.
        why: String,
    },

    /// The layers could not be read as one tree.
    #[error(transparent)]
    Union(#[from] vellum_union::Error),

    /// A mount by our own engine failed, or its layers can't be read.
    #[error(transparent)]
    Overlay(#[from] vellum_overlay::Error),

    /// An image's bytes could not be read or written.
    #[error(transparent)]
    Image(#[from] vellum_image::Error),

    /// An image could not be read from its source, or written to its target.
    #[error(transparent)]
    Source(#[from] vellum_image::source::SourceError),

    /// The machine, kernel, file system or driver can't do it.
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

    /// A server's socket could not be created.
    #[error("cannot {action} {}", path.display())]
    Socket {
        /// What was tried, as a verb ("listen on", "create").
        action: &'static str,
        /// The socket, or its directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },

    /// Something is mounted over the store or over a part of it.
    #[error("{} is covered by another mount: {}", path.display(), listed(covers))]
    Covered {
        /// The hidden directory.
        path: PathBuf,
        /// The mounts over it, topmost first.
        covers: Vec<crate::cover::Cover>,
        /// The file with the note of what was there, if the store itself is covered.
        note: Option<PathBuf>,
    },

    /// The file system with the store is not mounted any more.
    #[error("the store {} is gone: {was} is not mounted any more", path.display())]
    Unmounted {
        /// The store's directory.
        path: PathBuf,
        /// What was mounted, and where.
        was: Box<crate::cover::Cover>,
        /// The file with the note of what was there.
        note: PathBuf,
    },

    /// Another directory is now where this process opened the store.
    #[error("{} is no longer the store that was opened there", path.display())]
    Replaced {
        /// The store's directory.
        path: PathBuf,
    },

    /// The user's namespaces can't be set up.
    #[error("cannot set up the user namespace that is needed to work without root")]
    Namespace(#[source] vellum_sys::Error),

    /// A program that Vellum started failed before it did its work.
    #[error("cannot run {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },

    /// There is no store, and the command doesn't create one.
    #[error("there is no vellum store in {}", root.display())]
    NoStore {
        /// The root.
        root: PathBuf,
    },

    /// The user asked to stop.
    #[error("stopped")]
    Cancelled,
}

const NO_SPACE: &str = "the disk is full, or out of inodes (`df -i`): `vellum gc --dry-run` shows what can be removed, `vellum df` what uses the space";

const REBUILD: &str = "`vellum check --rebuild` makes a new database from the record files";

const DIVERTED: &str = "nothing was changed; put the store's own directory back (docs/security.md), then let `vellum check` show what else is wrong";

const READ_ONLY: &str =
    "its file system is read-only, perhaps after an error (see `dmesg`): remount it writable";

fn store_hint(error: &vellum_store::StoreError) -> Option<String> {
    use vellum_store::{Class, StoreError, Subject};
    match error.class() {
        Class::NoSpace => Some(NO_SPACE.into()),
        Class::Busy => Some(
            "another vellum process is writing: try again in a moment; a server of an older version keeps the store locked until it is stopped"
                .into(),
        ),
        _ if matches!(error, StoreError::RolledBack { .. }) => Some(format!(
            "if there is a newer copy of it, restore that; else {REBUILD}"
        )),
        _ if matches!(error, StoreError::BrokenParents { .. }) => Some(REBUILD.into()),
        _ if matches!(error, StoreError::Diverted { .. }) => Some(DIVERTED.into()),
        _ if error.lost_its_database() => Some(format!("restore it, or: {REBUILD}")),
        _ if matches!(error, StoreError::NewerStore { .. }) => Some(format!(
            "to keep using this version, stop the store's servers; then {REBUILD}"
        )),
        _ if matches!(error, StoreError::NotAStore { .. }) => Some(format!(
            "choose another directory with --root; or, if there is a store in this one, {REBUILD}"
        )),
        _ if matches!(error, StoreError::NotFound { subject: Subject::Path, .. }) => Some(
            "`vellum inspect NAME` shows the directories of an image or a container".into(),
        ),
        _ if error.is_read_only() => Some(READ_ONLY.into()),
        _ if is_denied_to_a_user(error) => Some(DENIED.into()),
        Class::Damaged => Some("`vellum check` shows what else is wrong".into()),
        _ => None,
    }
}

const DENIED: &str = "you lack a permission that root has for this path; if it is a store's, your own is in ~/.local/share/vellum (--root)";

/// Tells whether a full disk is among the error's causes.
pub(crate) fn lacks_space(error: &(dyn std::error::Error + 'static)) -> bool {
    comes_from(error, std::io::ErrorKind::StorageFull)
}

/// Tells whether a missing file is among the error's causes.
pub(crate) fn is_not_found(error: &(dyn std::error::Error + 'static)) -> bool {
    comes_from(error, std::io::ErrorKind::NotFound)
}

/// Tells whether a permission that root would have is among the error's causes.
fn is_denied_to_a_user(error: &(dyn std::error::Error + 'static)) -> bool {
    is_plain_user() && comes_from(error, std::io::ErrorKind::PermissionDenied)
}

/// Root in its own user namespace counts as a plain user.
fn is_plain_user() -> bool {
    !vellum_sys::Process::read().is_root()
}

fn comes_from(error: &(dyn std::error::Error + 'static), kind: std::io::ErrorKind) -> bool {
    std::iter::successors(Some(error), |e| e.source()).any(|e| {
        e.downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == kind)
    })
}

/// What to do about a socket that can't be created.
fn socket_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::InvalidFilename => {
            "a socket's path has at most 107 bytes: choose a shorter one"
        }
        _ => "choose another path for the socket, in a directory that can be written",
    }
}

/// What to do about an image that can't be read or sent.
fn source_hint(error: &vellum_image::source::SourceError) -> Option<String> {
    use vellum_image::source::SourceError;

    match error {
        SourceError::NotAnImage(_) => {
            Some("`vellum import` creates an image from a plain tar or directory; if it is empty, the command that wrote it has failed".into())
        }
        SourceError::NotADataRoot { .. } => Some(
            "`docker info` calls it Docker Root Dir; images of other drivers, and those Docker keeps in containerd, are copied by \
             `docker save IMAGE | vellum load`"
                .into(),
        ),
        SourceError::Missing { .. } => Some(
            "the archive or layout is incomplete; `vellum import` takes a plain tar or directory".into(),
        ),
        SourceError::NoPlatform { .. } => Some("choose one of them with --platform".into()),
        #[cfg(feature = "registry")]
        SourceError::Registry(error) => registry_hint(error),
        _ => None,
    }
}

/// What to do about a registry's answer.
#[cfg(feature = "registry")]
fn registry_hint(error: &vellum_image::registry::RegistryError) -> Option<String> {
    use vellum_image::registry::RegistryError;

    match error {
        RegistryError::Denied { registry, .. } => Some(format!(
            "`docker login {registry}` or `podman login {registry}` stores a login that Vellum uses"
        )),
        RegistryError::Unresolved { .. } => Some(
            "check the name; if it is right, DNS fails on this machine, or a proxy is needed (HTTPS_PROXY)"
                .into(),
        ),
        RegistryError::Unreachable { .. } => Some(
            "check that a registry runs there; if it speaks plain HTTP, use --insecure; if its certificate is your own, set ca-file for it (docs/registries.md)"
                .into(),
        ),
        _ => None,
    }
}

impl From<vellum_image::manifest::ManifestError> for Error {
    fn from(source: vellum_image::manifest::ManifestError) -> Self {
        Self::Source(source.into())
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

    /// Returns what the user can do next, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(e) => e.hint(),
            Self::Plan(e) => Some(e.hint()),
            Self::Damaged { .. } => Some("`vellum check` shows what else is wrong".into()),
            Self::Store(e) => store_hint(e),
            Self::Sys(e) if e.is_no_space() => Some(NO_SPACE.into()),
            Self::Sys(e) if e.is_denied() && is_plain_user() => Some(DENIED.into()),
            Self::NotFound {
                meant: Some(meant), ..
            } => Some(meant.as_str().into()),
            Self::NotFound { kind, .. } => Some(
                match kind {
                    ObjectKind::Image => "`vellum images` lists them; `vellum pull` or `vellum load` gets one",
                    ObjectKind::Container => "`vellum ls` lists them",
                    ObjectKind::Volume => "`vellum volume ls` lists them",
                    ObjectKind::Layer => "`vellum check` shows what is missing",
                }
                .into(),
            ),
            Self::Ambiguous { .. } => Some("write more of the id, or a whole name".into()),
            Self::NameTaken { .. } => Some("choose another name, or remove or rename that one".into()),
            Self::Covered { covers, note, .. } => {
                let way: Vec<_> =
                    covers.iter().map(|cover| format!("umount {}", shell_word(&cover.mount_point))).collect();
                let way = way.join(" && ");
                Some(match note {
                    None => way,
                    Some(note) => format!(
                        "{way}: running containers continue, and the next command finds the store again; if the mount is intended, \
                         remove {}",
                        note.display()
                    ),
                })
            }
            Self::Unmounted { was, note, .. } => Some(format!(
                "mount it on {} again; to start with a new store instead, remove {}",
                was.mount_point.display(),
                note.display()
            )),
            Self::Replaced { .. } => Some(
                "put the old directory back, or restart the server (or the command) to use what is there now".into(),
            ),
            Self::Namespace(_) => Some(
                "newuidmap and newgidmap (Debian: uidmap) and a range for the user in /etc/subuid and /etc/subgid are needed; \
                 some systems forbid it: see `sysctl kernel.unprivileged_userns_clone user.max_user_namespaces`"
                    .into(),
            ),
            Self::NoStore { .. } => Some(
                "check --root and VELLUM_ROOT, and that its disk is mounted; `vellum load`, `pull`, `import` and `create` make a new one"
                    .into(),
            ),
            Self::InUse { hint, .. } | Self::Unsupported { hint, .. } => Some(hint.clone()),
            Self::Invalid { hint, .. } => hint.clone(),
            Self::Overlay(e) if e.hint().is_some() => e.hint().map(str::to_owned),
            e if lacks_space(e) => Some(NO_SPACE.into()),
            Self::Io { .. }
            | Self::Source(_)
            | Self::Overlay(vellum_overlay::Error::Sys(_) | vellum_overlay::Error::Io { .. })
                if is_denied_to_a_user(self) =>
            {
                Some(DENIED.into())
            }
            Self::Source(e) => source_hint(e),
            Self::Socket { source, .. } => Some(socket_hint(source).into()),
            Self::Io { .. }
            | Self::Program { .. }
            | Self::Sys(_)
            | Self::Mount(_)
            | Self::Union(_)
            | Self::Overlay(_)
            | Self::Image(_)
            | Self::Cancelled => None,
        }
    }

    /// Returns the class of the failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Config(_) | Self::Invalid { .. } => Class::Misused,
            Self::Overlay(e) if e.is_misuse() => Class::Misused,
            Self::Cancelled => Class::Cancelled,
            Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::NameTaken { .. }
            | Self::InUse { .. }
            | Self::Store(_)
            | Self::Sys(_)
            | Self::Plan(_)
            | Self::Mount(_)
            | Self::Damaged { .. }
            | Self::Union(_)
            | Self::Overlay(_)
            | Self::Image(_)
            | Self::Source(_)
            | Self::Unsupported { .. }
            | Self::Io { .. }
            | Self::Socket { .. }
            | Self::Covered { .. }
            | Self::Unmounted { .. }
            | Self::Replaced { .. }
            | Self::Namespace(_)
            | Self::Program { .. }
            | Self::NoStore { .. } => Class::Failed,
        }
    }
}

fn listed(covers: &[crate::cover::Cover]) -> String {
    covers
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", then ")
}

/// A path as a word for the shell.
fn shell_word(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

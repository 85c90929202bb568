//! Which errno a program sees for an engine's error. One match; no other place decides it.

use rustix::io::Errno;
use vellum_union::{Error, Refusal};

/// Returns the errno a program sees.
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::Io { source, .. } => match source.errno() {
            Some(errno) => Errno::from_raw_os_error(errno),
            None => Errno::IO,
        },
        // A tree that can't be understood is never shown as something else.
        Error::Mark { .. }
        | Error::Untrusted { .. }
        | Error::Unsettled { .. }
        | Error::Blocks { .. }
        | Error::NoData { .. }
        | Error::Dangling { .. } => Errno::IO,
        Error::NotADirectory { .. } => Errno::NOTDIR,
        Error::WrongKind { .. } | Error::BadPath { .. } | Error::NoLayers => Errno::INVAL,
        Error::TooDeep { .. } => Errno::NAMETOOLONG,
        Error::BadUpper { .. } | Error::Successor { .. } => Errno::IO,
        Error::Refused { refusal } => of_refusal(*refusal),
    }
}

/// True for an error that any file system may return, which an operator need not hear of.
pub fn is_everyday(error: &Error) -> bool {
    match error {
        Error::Refused { .. } | Error::NotADirectory { .. } | Error::WrongKind { .. } => true,
        Error::Io { source, .. } => [
            Errno::NOENT,
            Errno::EXIST,
            Errno::NOTEMPTY,
            Errno::PERM,
            Errno::ACCESS,
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::TXTBSY,
            Errno::INVAL,
            Errno::NXIO,
            Errno::FBIG,
            Errno::RANGE,
            Errno::NODATA,
            Errno::OPNOTSUPP,
            Errno::NOTTY,
            Errno::MLINK,
            Errno::NAMETOOLONG,
        ]
        .iter()
        .any(|&errno| source.is(errno)),
        Error::Mark { .. }
        | Error::Untrusted { .. }
        | Error::Unsettled { .. }
        | Error::Blocks { .. }
        | Error::NoData { .. }
        | Error::Dangling { .. }
        | Error::BadPath { .. }
        | Error::NoLayers
        | Error::TooDeep { .. }
        | Error::BadUpper { .. }
        | Error::Successor { .. } => false,
    }
}

/// True if the upper's file system is out of space; false for a limit of the mount's own and for
/// any other error.
pub fn is_no_room(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.is(Errno::NOSPC) || source.is(Errno::DQUOT))
}

fn of_refusal(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NotFound => Errno::NOENT,
        Refusal::Exists => Errno::EXIST,
        Refusal::NotADirectory => Errno::NOTDIR,
        Refusal::IsADirectory => Errno::ISDIR,
        Refusal::NotEmpty => Errno::NOTEMPTY,
        Refusal::ReadOnly => Errno::ROFS,
        Refusal::NotPermitted => Errno::PERM,
        Refusal::CrossDevice => Errno::XDEV,
        Refusal::Invalid => Errno::INVAL,
        Refusal::NoAttribute => Errno::NODATA,
        Refusal::UnmappedId => Errno::OVERFLOW,
        Refusal::LimitReached => Errno::NOSPC,
        Refusal::NameTooLong => Errno::NAMETOOLONG,
        Refusal::NoData => Errno::NXIO,
        Refusal::Unsupported => Errno::OPNOTSUPP,
        Refusal::Stale => Errno::STALE,
    }
}

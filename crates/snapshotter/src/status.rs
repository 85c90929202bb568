//! The one place that chooses gRPC codes for errors of verbs. Errors in a message itself are
//! answered where it is read.
//!
//! containerd turns codes back into its own errors, and its decisions depend on them: a removal
//! that fails with anything but FAILED_PRECONDITION ends its whole garbage collection, and after
//! NOT_FOUND it tries something else. A store that is not accessible is UNAVAILABLE: containerd
//! concludes nothing from that, and a later retry succeeds once the store is back. The text has all
//! causes, and the hint on its own line.

use tonic::{Code, Status};
use vellum_service::Error;
use vellum_store::{Class, StoreError};
use vellum_sys::with_causes;

use crate::convert::Unchangeable;

/// Returns the status for a verb's error.
pub fn of(error: &Error) -> Status {
    Status::new(code(error), text(error))
}

fn code(error: &Error) -> Code {
    match error {
        Error::Store(error) => store_code(error),
        Error::NotFound { .. } => Code::NotFound,
        Error::NameTaken { .. } => Code::AlreadyExists,
        Error::Ambiguous { .. } | Error::Invalid { .. } | Error::Config(_) => Code::InvalidArgument,
        Error::InUse { .. }
        | Error::Plan(_)
        | Error::Unsupported { .. }
        // A mount covers one tree; for the whole store see below.
        | Error::Covered { note: None, .. } => Code::FailedPrecondition,
        Error::Covered { .. }
        | Error::Unmounted { .. }
        | Error::Replaced { .. }
        | Error::NoStore { .. } => Code::Unavailable,
        Error::Sys(error) if error.is_no_space() => Code::ResourceExhausted,
        Error::Damaged { .. } => Code::DataLoss,
        Error::Cancelled => Code::Aborted,
        Error::Sys(_)
        | Error::Mount(_)
        | Error::Union(_)
        | Error::Overlay(_)
        | Error::Image(_)
        | Error::Source(_)
        | Error::Io { .. }
        | Error::Socket { .. }
        | Error::Namespace(_)
        | Error::Program { .. } => Code::Unknown,
    }
}

fn store_code(error: &StoreError) -> Code {
    match error.class() {
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::FailedPrecondition => Code::FailedPrecondition,
        Class::InvalidArgument => Code::InvalidArgument,
        // Not UNIMPLEMENTED, which would mean that the call itself doesn't exist.
        Class::Unsupported => Code::FailedPrecondition,
        Class::Busy => Code::Unavailable,
        Class::NoSpace => Code::ResourceExhausted,
        Class::Damaged => Code::DataLoss,
        Class::Internal => Code::Unknown,
    }
}

/// Tells whether the operator has to act. Most refusals are a client's mistake or the answer to its
/// question.
pub fn is_trouble(error: &Error) -> bool {
    match error {
        Error::Plan(_) | Error::Unsupported { .. } | Error::Covered { .. } => true,
        Error::Store(error) if error.class() == Class::Unsupported => true,
        other => {
            use Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
            !matches!(
                code(other),
                AlreadyExists | NotFound | FailedPrecondition | InvalidArgument
            )
        }
    }
}

fn text(error: &Error) -> String {
    told(error, error.hint())
}

/// Returns an error with its causes and, on its own line, the hint.
pub fn told(error: &dyn std::error::Error, hint: Option<String>) -> String {
    let mut text = with_causes(error);
    if let Some(hint) = hint {
        text.push_str("\nhint: ");
        text.push_str(&hint);
    }
    text
}

impl From<Unchangeable> for Status {
    fn from(error: Unchangeable) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

/// Logs a verb's failure and returns its status.
pub(crate) fn refused(call: &'static str, key: &str, error: &Error) -> Status {
    let status = of(error);
    if is_trouble(error) {
        tracing::error!(call, key, code = ?status.code(), error = status.message(), "failed");
    } else {
        // A client's question or mistake.
        tracing::debug!(call, key, code = ?status.code(), error = status.message(), "refused");
    }
    status
}

//! Exit codes: the one place where failures become numbers.

use std::io;

use vellum_service::error::Class;

/// Done.
pub const DONE: i32 = 0;
/// Understood, tried, failed.
pub const FAILED: i32 = 1;
/// Not understood.
pub const MISUSED: i32 = 2;
/// `run` failed before its command started: a code of its own, so that it isn't mistaken for the
/// command's. For a command that is not found or can't be executed, `run` itself returns 127 or
/// 126.
pub const NOT_RUN: i32 = 125;
/// Stopped by Ctrl-C; the code that shells use.
pub const INTERRUPTED: i32 = 130;

/// Why the command ends without its result.
#[derive(Debug)]
pub enum Failure {
    /// A verb failed.
    Verb(Box<vellum_service::Error>),
    /// The arguments contradict themselves or the world.
    Misused(String),
    /// Results could not be written.
    Output(io::Error),
    /// Something else, described in one line.
    Other(String),
    /// The failure has already been reported.
    Said(i32),
}

impl Failure {
    /// Tells whether the user stopped it.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Verb(e) if e.class() == Class::Cancelled)
    }

    /// A misuse, described in one line.
    pub fn misused(text: impl Into<String>) -> Self {
        Self::Misused(text.into())
    }

    /// The failure of a verb that writes its result to stdout. A broken pipe becomes
    /// [`Failure::Output`].
    pub fn of_output(error: vellum_service::Error) -> Self {
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(e) = source {
            let io = e.downcast_ref::<io::Error>();
            if io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
                return Self::Output(io::ErrorKind::BrokenPipe.into());
            }
            source = e.source();
        }
        error.into()
    }

    /// A failure, described in one line.
    pub fn other(text: impl Into<String>) -> Self {
        Self::Other(text.into())
    }
}

impl<E: Into<vellum_service::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Verb(Box::new(error.into()))
    }
}

/// Returns the exit code of a failure of `run`.
pub fn of_run(failure: &Failure) -> i32 {
    match of(failure) {
        FAILED | MISUSED => NOT_RUN,
        other => other,
    }
}

/// Returns the exit code of a failure.
pub fn of(failure: &Failure) -> i32 {
    match failure {
        Failure::Verb(e) => match e.class() {
            Class::Misused => MISUSED,
            Class::Failed => FAILED,
            Class::Cancelled => INTERRUPTED,
        },
        Failure::Misused(_) => MISUSED,
        // The reader closed the pipe: it has what it wanted.
        Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => DONE,
        Failure::Output(_) | Failure::Other(_) => FAILED,
        Failure::Said(code) => *code,
    }
}

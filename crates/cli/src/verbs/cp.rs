//! `cp`: copies files into and out of a container.

use std::ffi::OsString;

use clap::Args;
use vellum_service::container::cp::{CopyEnd, Options, copy};

use super::{Examples, Group, Outcome, Verb};
use crate::exit_code::{DONE, Failure};
use crate::out;
use crate::start::Start;

/// Copy files between a container and the host
#[derive(Debug, Args)]
pub struct Cp {
    /// CONTAINER:PATH, a path on the host, or - for a tar on stdin
    pub source: OsString,
    /// CONTAINER:PATH, a path on the host, or - for a tar on stdout
    pub destination: OsString,
    /// Keep all attributes, including owners when copying out of a container
    #[arg(long, short)]
    pub archive: bool,
    /// Follow the source if it is a symbolic link
    #[arg(long, short = 'L')]
    pub follow_link: bool,
}

impl Verb for Cp {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum cp app.conf box:/etc/
  vellum cp box:/var/log ./logs
  vellum cp box:/etc - | tar -tv",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let (from, to) = (
            CopyEnd::parse(&self.source),
            CopyEnd::parse(&self.destination),
        );
        if to == CopyEnd::Pipe {
            out::refuse_terminal("a tar")?;
        }
        let options = Options {
            archive: self.archive,
            follow: self.follow_link,
        };
        match copy(
            ctx,
            &from,
            &to,
            options,
            std::io::stdin(),
            std::io::stdout().lock(),
        ) {
            Ok(()) => Ok(DONE),
            Err(e) if to == CopyEnd::Pipe => Err(Failure::of_output(e)),
            Err(e) => Err(e.into()),
        }
    }
}

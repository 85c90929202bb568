//! `version`: prints the version.

use clap::Args;

use super::{Examples, Group, Outcome, Verb};
use crate::exit_code::DONE;
use crate::start::Start;

/// Print the version
#[derive(Debug, Args)]
pub struct Version {}

impl Verb for Version {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[("", "  vellum version")];

    fn run(self, _: Start<'_>) -> Outcome {
        let mut out = crate::out::stdout();
        out.line(concat!("vellum ", env!("CARGO_PKG_VERSION")))?;
        out.done()?;
        Ok(DONE)
    }
}

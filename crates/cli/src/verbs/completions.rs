//! `completions`: prints the completion script for a shell.

use clap::Args;

use super::{Examples, Group, Outcome, Verb};
use crate::complete;
use crate::exit_code::{DONE, Failure};
use crate::start::Start;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub struct Completions {
    /// Shell to complete for
    pub shell: clap_complete::Shell,
}

impl Verb for Completions {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum completions bash > /etc/bash_completion.d/vellum
  vellum completions fish > ~/.config/fish/completions/vellum.fish",
    )];

    fn run(self, _: Start<'_>) -> Outcome {
        let script = complete::script(&self.shell.to_string())
            .ok_or_else(|| {
                Failure::other(format!("completions for {} are not available", self.shell))
            })?
            .map_err(|e| Failure::other(format!("cannot write completions: {e}")))?;
        let mut out = crate::out::stdout();
        out.bytes(&script)?;
        out.done()?;
        Ok(DONE)
    }
}

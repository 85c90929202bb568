//! `cat`: prints a file from a tree that is not mounted.

use clap::Args;
use vellum_service::layer::look;

use super::{Examples, Group, Outcome, Verb};
use crate::args::tree::{Look, find};
use crate::exit_code::{DONE, Failure};
use crate::start::Start;

/// Print a file from a tree without mounting it
#[derive(Debug, Args)]
pub struct Cat {
    #[command(flatten)]
    /// What to read
    pub look: Look,
}

impl Verb for Cat {
    const GROUP: Group = Group::Unions;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum cat box:/etc/passwd
  vellum cat --image debian:12 /etc/os-release
  vellum cat -o lowerdir=/layers/top:/layers/base /etc/passwd",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.needs_store = self.look.tree.options.is_empty();
        let ctx = &start.context()?;
        let (tree, path) = find(&self.look.path, &self.look.tree)?;
        let union = look::stack(ctx, &tree)?;
        look::cat(&union, &path, &mut std::io::stdout().lock()).map_err(Failure::of_output)?;
        Ok(DONE)
    }
}

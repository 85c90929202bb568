//! `rename`: gives a container another name.

use clap::Args;
use vellum_service::container::rename;

use super::{Examples, Group, Outcome, Verb};
use crate::complete;
use crate::exit_code::DONE;
use crate::start::Start;

/// Give a container another name
#[derive(Debug, Args)]
pub struct Rename {
    /// Container to rename
    #[arg(add = complete::containers())]
    pub container: String,
    /// The new name
    pub name: String,
}

impl Verb for Rename {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[("", "  vellum rename box webserver")];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        rename::rename(ctx, &self.container, &self.name)?;
        Ok(DONE)
    }
}

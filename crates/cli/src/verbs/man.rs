//! `man`: writes the man pages.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::{Examples, Group, Outcome, Verb};
use crate::exit_code::{DONE, Failure};
use crate::help;
use crate::start::Start;

/// Write man pages into a directory
#[derive(Debug, Args)]
pub struct Man {
    /// Directory for the pages; created if missing
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

impl Verb for Man {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[("", "  vellum man /usr/local/share/man/man1")];

    fn run(self, _: Start<'_>) -> Outcome {
        let failed = |e: std::io::Error| {
            Failure::other(format!(
                "cannot write man pages to {}: {e}",
                self.dir.display()
            ))
        };
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(help::man_command(), &self.dir).map_err(failed)?;
        Ok(DONE)
    }
}

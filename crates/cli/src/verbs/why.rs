//! `why`: explains what a path in the store is.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_service::store::why;

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;

/// Explain what a path in the store is, and what keeps it
#[derive(Debug, Args)]
pub struct Why {
    /// Path in the store, absolute or relative to its root, or a tree's directory name
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Why {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[("", "  vellum why /var/lib/vellum/overlay2/3f2a...")];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let why = why::why(ctx, &self.path)?;
        let mut out = stdout();
        if self.output.json {
            out.json(&why)?;
        } else {
            out.line(&why.what)?;
            for reason in &why.kept_by {
                out.line(format!("  kept by {reason}"))?;
            }
            if why.kept_by.is_empty() {
                out.line("  nothing keeps it: the next `vellum gc` removes it")?;
            }
        }
        out.done()?;
        Ok(DONE)
    }
}

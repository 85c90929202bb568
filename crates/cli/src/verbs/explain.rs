//! `explain`: shows what each layer says about a path.

use std::path::Path;

use clap::Args;
use vellum_service::layer::look;

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::args::tree::{Look, find};
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;

/// Show which layer a path, its attributes and its data come from, and why others are hidden
#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    /// What to explain
    pub look: Look,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Explain {
    const GROUP: Group = Group::Unions;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum explain box:/etc/passwd
  vellum explain -o lowerdir=/layers/top:/layers/base,upperdir=/up,workdir=/work /etc/passwd",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.needs_store = self.look.tree.options.is_empty();
        let ctx = &start.context()?;
        let (tree, path) = find(&self.look.path, &self.look.tree)?;
        let explained = look::explain(ctx, &tree, &path)?;
        let mut out = stdout();
        if self.output.json {
            out.json(&explained)?;
            out.done()?;
            return Ok(DONE);
        }
        out.line(format!(
            "/{}: {}",
            explained.path.display(),
            explained.outcome
        ))?;
        if let Some(layer) = &explained.attributes_from {
            out.line(format!("attributes: {layer}"))?;
        }
        for layer in &explained.data_from {
            out.line(format!("content:    {layer}"))?;
        }
        for said in &explained.layers {
            let mark = if said.counts { "" } else { " (has no effect)" };
            out.line(format!(
                "layer {}: {}: {}{mark}",
                said.layer,
                Path::new(&said.name).join(&said.path).display(),
                said.says
            ))?;
        }
        if let Some(form) = explained.upper_hides_with {
            out.line(format!("whiteouts in the upper are {form}"))?;
        }
        out.done()?;
        Ok(DONE)
    }
}

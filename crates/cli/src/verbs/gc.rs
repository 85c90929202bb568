//! `gc`: removes what nothing needs.

use std::sync::Arc;

use clap::Args;
use vellum_service::progress::Silent;
use vellum_service::store::gc;
use vellum_service::{Cancel, Context};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::{DONE, Failure, INTERRUPTED};
use crate::out::{self, stdout};
use crate::report;
use crate::start::Start;

/// Remove data that nothing needs
#[derive(Debug, Args)]
pub struct Gc {
    /// Print what would be removed and why, and remove nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Also remove what `check --rebuild` found and nothing needs
    #[arg(long)]
    pub rebuilt: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Gc {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum gc --dry-run
  vellum gc
  vellum gc --rebuilt --dry-run           after `check --rebuild`: what nothing needs
  vellum gc --rebuilt                     once you have looked",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let all = match self.rebuilt {
            true => gc::gc_rebuilt(ctx, self.dry_run)?,
            false => gc::gc(ctx, self.dry_run)?,
        };
        let mut out = stdout();
        if self.output.json {
            out.json(&all)?;
        } else {
            for item in &all {
                let size = item
                    .size
                    .map_or_else(String::new, |s| format!(", {}", out::bytes(s.bytes)));
                let cause = item
                    .cause
                    .as_ref()
                    .map_or_else(String::new, |c| format!(": {c}"));
                out.line(format!(
                    "{} {} {}{cause} ({}{size})",
                    item.fate, item.kind, item.what, item.why
                ))?;
            }
        }
        out.done()?;
        if !quiet && all.is_empty() {
            ctx.progress.say("nothing to remove");
        }
        Ok(DONE)
    }
}

/// If a verb that adds to the store was stopped, reports what it leaves for `vellum gc` to remove.
pub(super) fn or_tell_what_is_left(ctx: &Context, outcome: Outcome) -> Outcome {
    match outcome {
        Err(failure) if failure.is_cancelled() => {
            report::failure(&Failure::other(format!("stopped; {}", left(ctx))));
            Err(Failure::Said(INTERRUPTED))
        }
        _ => outcome,
    }
}

/// Describes what a stopped command left in the store, as `gc --dry-run` finds it.
fn left(ctx: &Context) -> String {
    // The command's own context is cancelled, and would cancel this call too.
    let ctx = Context::new(ctx.config.clone(), Cancel::new(), Arc::new(Silent));
    let Ok(all) = gc::gc(&ctx, true) else {
        return "`vellum gc --dry-run` shows what is left".to_owned();
    };
    let bytes: u64 = all
        .iter()
        .filter_map(|item| item.size)
        .map(|size| size.bytes)
        .sum();
    match all.len() {
        0 => "nothing is left for `vellum gc` to remove".to_owned(),
        count => format!(
            "complete parts are kept for the next try; `vellum gc` would now remove {count} {} ({})",
            if count == 1 { "item" } else { "items" },
            out::bytes(bytes),
        ),
    }
}

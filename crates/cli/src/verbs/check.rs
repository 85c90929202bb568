//! `check`: compares records and trees. The exit code is 1 if a problem was found and not repaired.

use clap::Args;
use vellum_service::Context;
use vellum_service::store::check as checks;
use vellum_service::store::rebuild;

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::{DONE, FAILED, Failure};
use crate::out::{self, stdout};
use crate::start::Start;

/// Verify the store: its database against what is on disk
#[derive(Debug, Args)]
pub struct Check {
    /// Repair what holds no data: short links, lists of lower layers, record files, modes
    #[arg(long)]
    pub heal: bool,
    /// Read every blob and layer, and compare it with its digest
    #[arg(long)]
    pub deep: bool,
    /// Make a new database from the record files in the store; the old one is kept
    #[arg(long, conflicts_with_all = ["heal", "deep"])]
    pub rebuild: bool,
    /// Rebuild without asking
    #[arg(long, short, requires = "rebuild")]
    pub force: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Check {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum check
  vellum check --heal --deep
  vellum check --rebuild                  when the database is lost",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        if self.rebuild {
            return rebuild(ctx, &self, quiet);
        }
        let wrong = checks::check(ctx, self.heal, self.deep)?;
        let mut out = stdout();
        if self.output.json {
            out.json(&wrong)?;
        } else {
            for item in &wrong {
                let healed = if item.healed { " (repaired)" } else { "" };
                out.line(format!("{}: {}{healed}", item.what, item.why))?;
            }
        }
        out.done()?;
        let left = wrong.iter().filter(|w| !w.healed).count();
        if !quiet {
            match (wrong.len(), left) {
                (0, _) => ctx.progress.say("no problems found"),
                (_, 0) => ctx.progress.say("all problems were repaired"),
                _ if self.heal => ctx.progress.say(&format!(
                    "problems left: {left}; docs/operations.md says what to do"
                )),
                _ => ctx.progress.say(&format!(
                    "problems found: {left}; `vellum check --heal` repairs what holds no data"
                )),
            }
        }
        Ok(if left == 0 { DONE } else { FAILED })
    }
}

fn rebuild(ctx: &Context, args: &Check, quiet: bool) -> Outcome {
    if !args.force
        && !out::confirm("make a new database from the record files? The old one is kept.")
    {
        return Err(Failure::misused(
            "without a terminal to ask on, --rebuild needs --force",
        ));
    }
    let rebuilt = rebuild::rebuild(ctx)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&rebuilt)?;
    } else {
        out.line(format!(
            "{}, {}, {}, {}",
            out::counted(rebuilt.snapshots, "snapshot"),
            out::counted(rebuilt.images, "image"),
            out::counted(rebuilt.containers, "container"),
            out::counted(rebuilt.volumes, "volume")
        ))?;
        for lost in &rebuilt.lost {
            out.line(format!("lost: {}: {}", lost.what, lost.why))?;
        }
    }
    out.done()?;
    if let (false, Some(old)) = (quiet, &rebuilt.old_database) {
        ctx.progress
            .say(&format!("the old database is {}", old.display()));
    }
    if !quiet {
        ctx.progress
            .say("everything found is kept: look at it (`vellum df --verbose`), then let `vellum gc --rebuilt` remove what nothing needs");
    }
    Ok(if rebuilt.lost.is_empty() {
        DONE
    } else {
        FAILED
    })
}

//! `check`: compares records and trees. The exit code is 1 if a problem was found and not repaired.
//! With `--layers`, in `check/layers.rs`, it is about an overlay's directories, and needs no store.

use std::collections::BTreeMap;

use clap::{ArgGroup, Args};
use vellum_service::Context;
use vellum_service::store::check::{
    self as checks, CheckRequest, RepairRequest, Unverified, Wrong,
};
use vellum_service::store::rebuild;

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::complete;
use crate::exit_code::{DONE, FAILED, Failure};
use crate::out::{self, stdout};
use crate::report;
use crate::start::Start;

mod layers;

/// Verify the store, or an overlay's directories
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("of_trees").args(["trees", "repair"]).multiple(true)))]
pub struct Check {
    /// Repair what holds no data: short links, lists of lower layers, record files, modes
    #[arg(long)]
    pub heal: bool,
    /// Read every blob and layer, and compare it with its digest; includes --trees
    #[arg(long)]
    pub deep: bool,
    /// Compare everything in the trees of layers with what their images say
    #[arg(long)]
    pub trees: bool,
    /// Verify only the trees of this image's layers
    #[arg(add = complete::images(), long, value_name = "IMAGE", requires = "of_trees", conflicts_with_all = ["heal", "deep"])]
    pub image: Option<String>,
    /// Repair the trees of layers, and what --heal does; includes --trees
    #[arg(long)]
    pub repair: bool,
    /// Look here too for content to repair with: an archive, an OCI layout, a Docker data root, or
    /// an image in a registry; can be repeated
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    pub from: Vec<String>,
    /// Say what --repair would do, and change nothing
    #[arg(long, requires = "repair")]
    pub dry_run: bool,
    /// Make a new database from the record files in the store; the old one is kept
    #[arg(long, conflicts_with_all = ["heal", "deep", "trees", "repair"])]
    pub rebuild: bool,
    /// Rebuild without asking
    #[arg(long, short, requires = "rebuild")]
    pub force: bool,
    #[command(flatten)]
    /// Directories to check in place of the store
    pub overlay: layers::Overlay,
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
  vellum check --trees                    is every file as its image says?
  vellum check --trees --image debian:12
  vellum check --repair --dry-run         what would be repaired, and from where
  vellum check --repair --from debian.tar
  vellum check --rebuild                  when the database is lost
  vellum check --layers /layers/top:/layers/base --upper /up --work /work",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        if let Some(lowers) = &self.overlay.layers {
            start.needs_store = false;
            return layers::run(lowers, &self.overlay, self.output, &start);
        }
        let ctx = &start.context()?;
        let quiet = start.quiet;
        if self.rebuild {
            return rebuild(ctx, &self, quiet);
        }
        let checked = checks::check(
            ctx,
            &CheckRequest {
                heal: self.heal || self.repair && !self.dry_run,
                deep: self.deep,
                trees: self.trees || self.repair,
                image: self.image.clone(),
                repair: self.repair.then(|| RepairRequest {
                    dry_run: self.dry_run,
                    from: self.from.clone(),
                }),
            },
        )?;
        let wrong = &checked.wrong;
        let mut out = stdout();
        if self.output.json {
            out.json(wrong)?;
        } else {
            for item in wrong {
                out.line(format!("{}: {}{}", item.what, item.why, remark(item)))?;
            }
        }
        out.done()?;
        let left = wrong.iter().filter(|w| !w.healed).count();
        // A part of the result, so --quiet does not hide it.
        for line in unverified(&checked.unverified) {
            report::line(&format!("warning: {line}"));
        }
        if !quiet {
            if let Some(verified) = checked.verified {
                ctx.progress.say(&format!("layers verified: {verified}"));
            }
            match (wrong.len(), left) {
                (0, _) => ctx.progress.say("no problems found"),
                (_, 0) => ctx.progress.say("all problems were repaired"),
                _ if self.dry_run => ctx
                    .progress
                    .say(&format!("problems found: {left}; nothing was changed")),
                _ if self.heal || self.repair => ctx.progress.say(&format!(
                    "problems left: {left}; docs/operations.md says what to do"
                )),
                _ if wrong.iter().all(|w| w.in_tree.is_some()) => ctx.progress.say(&format!(
                    "problems found: {left}; `vellum check --repair` repairs layers"
                )),
                _ => ctx.progress.say(&format!(
                    "problems found: {left}; `vellum check --heal` repairs what holds no data"
                )),
            }
        }
        Ok(if left == 0 { DONE } else { FAILED })
    }
}

/// Says what was done about a finding.
fn remark(item: &Wrong) -> String {
    let Some(outcome) = &item.outcome else {
        return if item.healed { " (repaired)" } else { "" }.to_owned();
    };
    let mut remark = match (outcome.repaired, outcome.would_repair, &outcome.left) {
        (true, ..) => "repaired".to_owned(),
        (_, true, _) => "would be repaired".to_owned(),
        (.., Some(left)) => format!("left: {left}"),
        _ => "left".to_owned(),
    };
    if let Some(from) = &outcome.from {
        remark = format!("{remark} from {from}");
    }
    if let Some(moved_to) = &outcome.moved_to {
        remark = format!("{remark}; what was there is {moved_to}");
    }
    format!(" ({remark})")
}

/// Says which layers were not verified, and why.
fn unverified(layers: &[Unverified]) -> Vec<String> {
    const NAMED: usize = 5;
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for layer in layers {
        by_reason.entry(&layer.why).or_default().push(&layer.layer);
    }
    let line = |(why, layers): (&str, Vec<&str>)| {
        let named = layers[..layers.len().min(NAMED)].join(", ");
        let more = match layers.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "layers not verified: {} ({why}): {named}{more}",
            layers.len()
        )
    };
    by_reason.into_iter().map(line).collect()
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

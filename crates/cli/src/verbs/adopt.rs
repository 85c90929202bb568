//! `adopt`: the images that were adopted, and what Docker left behind. The exit code is 1 if an
//! image could not be adopted.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_service::Context;
use vellum_service::image::{AdoptHow, AdoptRequest, AdoptedOutcome, adopt as verb};
use vellum_service::names::short;

use super::{Examples, Group, Outcome, Verb, gc};
use crate::args::Output;
use crate::exit_code::{DONE, FAILED};
use crate::out::{counted, stdout};
use crate::start::Start;

/// Adopt images from a Docker data root into the store
#[derive(Debug, Args)]
pub struct Adopt {
    /// Data root of a Docker daemon with the storage driver overlay2. It is read, never changed
    #[arg(value_name = "DATA-ROOT", value_hint = ValueHint::DirPath)]
    pub data_root: PathBuf,
    /// Images to adopt, by name or id [default: all that have a name]
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Include images without a name
    #[arg(long, conflicts_with = "images")]
    pub all: bool,
    /// Check every layer in place against its digest, and store nothing. `whole` means that file
    /// contents match: owners, modes, xattrs and extra names in the tree are not checked
    #[arg(long)]
    pub in_place: bool,
    /// List what would be adopted, and what is orphaned, without reading layers
    #[arg(long, conflicts_with = "in_place")]
    pub dry_run: bool,
    /// How results are printed
    #[command(flatten)]
    pub output: Output,
}

impl Verb for Adopt {
    const GROUP: Group = Group::Images;
    const CREATES_A_STORE: bool = true;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum adopt /var/lib/docker --dry-run      list what is there and what is orphaned
  vellum adopt /var/lib/docker
  vellum adopt /data/docker debian:12 --json
  vellum adopt /var/lib/docker --all --in-place",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        gc::or_tell_what_is_left(ctx, adopt(ctx, self, start.quiet))
    }
}

fn adopt(ctx: &Context, args: Adopt, quiet: bool) -> Outcome {
    let how = match (args.in_place, args.dry_run) {
        (true, _) => AdoptHow::InPlace,
        (false, true) => AdoptHow::List,
        (false, false) => AdoptHow::Store,
    };
    let request = AdoptRequest {
        root: args.data_root,
        images: args.images,
        all: args.all,
        how,
    };
    let adopted = verb(ctx, &request)?;
    let damaged = adopted
        .images
        .iter()
        .any(|image| image.outcome == AdoptedOutcome::Damaged);
    let mut out = stdout();
    if args.output.json {
        out.json(&adopted)?;
        out.done()?;
        return Ok(if damaged { FAILED } else { DONE });
    }
    for image in &adopted.images {
        let name = match image.names.as_slice() {
            [] => short(&image.id).to_owned(),
            names => names.join(", "),
        };
        let layers = image.layers;
        out.line(match image.outcome {
            AdoptedOutcome::Adopted => {
                format!(
                    "{name}: adopted, {} of {} new",
                    image.new_layers,
                    counted(layers, "layer")
                )
            }
            AdoptedOutcome::Whole => format!("{name}: whole, {}", counted(layers, "layer")),
            AdoptedOutcome::Planned => {
                format!("{name}: would be adopted, {}", counted(layers, "layer"))
            }
            AdoptedOutcome::Damaged => {
                format!(
                    "{name}: damaged: {}",
                    image.why.as_deref().unwrap_or_default()
                )
            }
        })?;
    }
    for container in &adopted.containers {
        out.line(format!(
            "container {} ({}): not adopted",
            container.name,
            short(&container.id)
        ))?;
    }
    for orphan in &adopted.orphans {
        out.line(format!("orphan {}: {}", orphan.path.display(), orphan.why))?;
    }
    out.done()?;
    if !quiet {
        if adopted.unnamed > 0 {
            ctx.progress.say(&format!(
                "{} images without a name were left out: --all includes them",
                adopted.unnamed
            ));
        }
        if !adopted.containers.is_empty() {
            ctx.progress
                .say("to adopt a container's changes, first make an image of it: docker commit NAME IMAGE");
        }
    }
    Ok(if damaged { FAILED } else { DONE })
}

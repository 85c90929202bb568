//! `adopt`: what was taken over, and what Docker left lying about.

use vellum_service::Context;
use vellum_service::image::{AdoptHow, AdoptRequest, AdoptedOutcome, adopt as verb};
use vellum_service::names::short;

use super::Outcome;
use crate::args;
use crate::exit_code::{DONE, FAILED};
use crate::out::stdout;

/// `adopt`: code 1 if an image could not be had.
pub fn adopt(ctx: &Context, args: args::Adopt, quiet: bool) -> Outcome {
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
                    "{name}: adopted, {} of {layers} layers new",
                    image.new_layers
                )
            }
            AdoptedOutcome::Whole => format!("{name}: whole, {layers} layers"),
            AdoptedOutcome::Planned => format!("{name}: would be adopted, {layers} layers"),
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
                "{} images have no name and were left out: --all takes them too",
                adopted.unnamed
            ));
        }
        if !adopted.containers.is_empty() {
            ctx.progress
                .say("what a container changed comes along if Docker makes an image of it first: docker commit NAME IMAGE");
        }
    }
    Ok(if damaged { FAILED } else { DONE })
}

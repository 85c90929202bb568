//! `export`: images in the forms of other programs' stores.

use vellum_service::Context;
use vellum_service::export::{self, ExportRequest};

use super::Outcome;
use crate::args;
use crate::exit_code::DONE;
use crate::out::stdout;

/// `export`
pub fn export(ctx: &Context, args: args::Export, quiet: bool) -> Outcome {
    let args::Export::ContainersStorage(args) = args;
    if args.remove {
        export::remove(ctx, &args.dir)?;
        return Ok(DONE);
    }
    let request = ExportRequest {
        dir: args.dir,
        images: args.images,
        dry_run: args.dry_run,
    };
    let done = export::containers_storage(ctx, &request)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&done)?;
    } else {
        for image in &done.images {
            out.line(image.names.first().unwrap_or(&image.id))?;
        }
    }
    out.done()?;
    if !(quiet || args.output.json) {
        let verb = if request.dry_run { "would be" } else { "are" };
        ctx.progress.say(&format!(
            "{0} images of {1} layers {verb} in {2}; podman --storage-opt additionalimagestore={2} reads them",
            done.images.len(),
            done.layers,
            done.dir,
        ));
    }
    Ok(DONE)
}

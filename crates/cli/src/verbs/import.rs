//! `import`: creates a single-layer image from a directory or tar.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use vellum_service::image::{ImportRequest, ImportSource};
use vellum_service::{Context, image};

use super::load::{print_one, tell_layers};
use super::{Examples, Group, Outcome, Verb, gc};
use crate::args::Output;
use crate::start::Start;

/// Create a single-layer image from a directory or tar
#[derive(Debug, Args)]
pub struct Import {
    /// Directory, tar (compressed or not), or - for a tar on stdin
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// Name for the new image [default: none, only an id]
    pub image: Option<String>,
    /// Change the image's configuration with a Dockerfile instruction: CMD, ENTRYPOINT, ENV,
    /// EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(long, short, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Comment for the image's history
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    /// Platform of the image [default: the machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Import {
    const GROUP: Group = Group::Images;
    const CREATES_A_STORE: bool = true;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum import ./rootfs base:1 --change 'CMD [\"/bin/sh\"]'
  tar -C rootfs -c . | vellum import - base:1",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        gc::or_tell_what_is_left(ctx, import(ctx, self, start.quiet))
    }
}

fn import(ctx: &Context, args: Import, quiet: bool) -> Outcome {
    let source = if args.source == Path::new("-") {
        ImportSource::Stdin
    } else {
        ImportSource::Path(args.source)
    };
    let request = ImportRequest {
        source,
        name: args.image,
        changes: args.change,
        message: args.message,
        platform: args.platform,
    };
    let imported = image::import(ctx, &request)?;
    tell_layers(
        ctx,
        std::slice::from_ref(&imported),
        quiet || args.output.json,
    );
    print_one(&imported, args.output.json)
}

//! `load`: loads images from an archive or layout. `pull` and `import` use its reports about new
//! images, too.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use vellum_service::image::{BroughtIn, LoadRequest, LoadSource};
use vellum_service::{Context, image, names};

use super::{Examples, Group, Outcome, Verb, gc};
use crate::args::Output;
use crate::exit_code::DONE;
use crate::out::{counted, stdout};
use crate::start::Start;

/// Load images from an archive or OCI layout
#[derive(Debug, Args)]
pub struct Load {
    /// Archive (docker save's or OCI, compressed or not) or OCI layout directory; - is stdin
    #[arg(value_hint = ValueHint::AnyPath, default_value = "-")]
    pub archive: PathBuf,
    /// Same as ARCHIVE, spelled as in `docker load`
    #[arg(long, short, value_name = "FILE", conflicts_with = "archive", value_hint = ValueHint::AnyPath)]
    pub input: Option<PathBuf>,
    /// Name for the image, if the archive holds just one
    #[arg(long, short, value_name = "NAME")]
    pub tag: Option<String>,
    /// Platform to take from a multi-platform image [default: the machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Also keep the compressed layers, so that they can be pushed unchanged
    #[arg(long)]
    pub keep_blobs: bool,
    /// Number of layers to unpack at once [default: one per CPU, at most 8]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Load {
    const GROUP: Group = Group::Images;
    const CREATES_A_STORE: bool = true;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum load debian.tar
  docker save debian:12 | vellum load
  vellum load ./oci-layout --tag debian:12",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.settings.keep_blobs = self.keep_blobs.then_some(true);
        start.settings.jobs = self.jobs;
        let ctx = &start.context()?;
        gc::or_tell_what_is_left(ctx, load(ctx, self, start.quiet))
    }
}

fn load(ctx: &Context, args: Load, quiet: bool) -> Outcome {
    let from = args.input.unwrap_or(args.archive);
    let source = if from == Path::new("-") {
        LoadSource::Stdin
    } else {
        LoadSource::Path(from)
    };
    let request = LoadRequest {
        source,
        name: args.tag,
        platform: args.platform,
    };
    let loaded = image::load(ctx, &request)?;
    tell_layers(ctx, &loaded, quiet || args.output.json);
    let mut out = stdout();
    if args.output.json {
        out.json(&loaded)?;
    } else {
        for image in &loaded {
            out.line(called(image))?;
        }
    }
    out.done()?;
    Ok(DONE)
}

pub(super) fn print_one(image: &BroughtIn, json: bool) -> Outcome {
    let mut out = stdout();
    if json {
        out.json(image)?;
    } else {
        out.line(called(image))?;
    }
    out.done()?;
    Ok(DONE)
}

/// Returns what a user types to name the image.
fn called(image: &BroughtIn) -> String {
    match image.names.as_slice() {
        [] => image.id.clone(),
        names => names.join("\n"),
    }
}

pub(super) fn tell_layers(ctx: &Context, images: &[BroughtIn], quiet: bool) {
    for image in images {
        for (name, from) in &image.moved_names {
            ctx.progress.warn(&format!(
                "{name} was the name of image {from}, which now has only its id"
            ));
        }
        if !quiet {
            let id = names::short(&image.id);
            let (new, present) = (image.new_layers, image.present_layers);
            ctx.progress.say(&match present {
                0 => format!("image {id}: {}", counted(new, "layer")),
                _ => format!(
                    "image {id}: {}, {present} already present",
                    counted(new, "new layer")
                ),
            });
        }
    }
}

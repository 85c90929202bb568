//! `export`: shows images in the format of another program's store.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use vellum_service::image::export::{self, ExportRequest};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::complete;
use crate::exit_code::DONE;
use crate::out::{counted, stdout};
use crate::start::Start;

/// Share the store's images with Podman, Buildah and CRI-O, without copies
#[derive(Debug, Subcommand)]
pub enum Export {
    /// Create a directory that Podman, Buildah and CRI-O read as an additional image store; its
    /// layers are the store's own
    #[command(name = "containers-storage")]
    ContainersStorage(ContainersStorage),
}

/// `export containers-storage`
#[derive(Debug, Args)]
pub struct ContainersStorage {
    /// Directory to create; replaced if it is already such an export
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Images to export [default: all that have a name]
    #[arg(add = complete::images())]
    pub images: Vec<String>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Remove the export
    #[arg(long, conflicts_with_all = ["images", "dry_run", "json"])]
    pub remove: bool,
    #[command(flatten)]
    pub output: Output,
}

impl Verb for Export {
    const GROUP: Group = Group::OtherPrograms;
    const EXAMPLES: Examples = &[
        (
            "",
            "  vellum export containers-storage /var/lib/vellum-images
  podman --storage-opt additionalimagestore=/var/lib/vellum-images run debian:12
  vellum export containers-storage /var/lib/vellum-images --remove",
        ),
        (
            "containers-storage",
            "  vellum export containers-storage /var/lib/vellum-images
  vellum export containers-storage /var/lib/vellum-images debian:12 mine:1 --dry-run",
        ),
    ];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let Export::ContainersStorage(args) = self;
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
                "{0} with {1} {verb} in {2}; podman --storage-opt additionalimagestore={2} reads them",
                counted(done.images.len(), "image"),
                counted(done.layers, "layer"),
                done.dir,
            ));
        }
        Ok(DONE)
    }
}

//! `save`: writes images to an archive or layout.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use vellum_service::image::{SaveRequest, SaveTarget};
use vellum_service::{image, names};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Compression;
use crate::exit_code::{DONE, Failure};
use crate::start::Start;
use crate::{complete, out};

/// Write images to an archive or OCI layout
#[derive(Debug, Args)]
pub struct Save {
    /// Images to write
    #[arg(add = complete::images(), required = true)]
    pub images: Vec<String>,
    /// File or directory to write [default: stdout]
    #[arg(long, short, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub output: Option<PathBuf>,
    /// Format to write
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "docker-archive"
    )]
    pub format: SaveFormat,
    /// How to compress layers [default: none for docker-archive, gzip for OCI]
    #[arg(long, value_name = "HOW", value_enum)]
    pub compress: Option<Compression>,
}

/// The format that `save` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SaveFormat {
    /// One tar, like that of `docker save`, also readable as OCI
    DockerArchive,
    /// One tar with an OCI layout
    OciArchive,
    /// A directory with an OCI layout
    OciDir,
}

impl Verb for Save {
    const GROUP: Group = Group::Images;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum save debian:12 -o debian.tar
  vellum save debian:12 | docker load
  vellum save debian:12 mine:1 --format oci-dir --compress zstd -o ./layout",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let format = match self.format {
            SaveFormat::DockerArchive => image::SaveFormat::DockerArchive,
            SaveFormat::OciArchive => image::SaveFormat::OciArchive,
            SaveFormat::OciDir => image::SaveFormat::OciDirectory,
        };
        let target = match self.output {
            Some(path) if path != Path::new("-") => SaveTarget::Path(path),
            _ => {
                out::refuse_terminal("the archive")?;
                SaveTarget::Stdout
            }
        };
        let request = SaveRequest {
            images: self.images,
            target,
            format,
            compression: self.compress.map(Into::into),
        };
        let to_stdout = request.target == SaveTarget::Stdout;
        let saved = match image::save(ctx, &request) {
            Err(e) if to_stdout => return Err(Failure::of_output(e)),
            other => other?,
        };
        if !quiet {
            for image in saved {
                let name = image
                    .names
                    .first()
                    .cloned()
                    .unwrap_or_else(|| names::short(&image.id).to_owned());
                ctx.progress
                    .say(&format!("saved {name} with manifest {}", image.manifest));
            }
        }
        Ok(DONE)
    }
}

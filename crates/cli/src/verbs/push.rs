//! `push`: sends an image to a registry.

use clap::Args;
use vellum_service::image;
use vellum_service::image::PushRequest;

use super::{Examples, Group, Outcome, Verb};
use crate::args::registry::Registry;
use crate::args::{Compression, Output};
use crate::complete;
use crate::exit_code::DONE;
use crate::out::{counted, stdout};
use crate::start::Start;

/// Send an image to a registry
#[derive(Debug, Args)]
pub struct Push {
    /// Image in the store
    #[arg(add = complete::images())]
    pub image: String,
    /// Where to push it, if not to the place in its name: [HOST[:PORT]/]NAME[:TAG]
    pub destination: Option<String>,
    /// How to compress layers that the store doesn't keep compressed
    #[arg(long, value_name = "HOW", value_enum, default_value = "gzip")]
    pub compress: Compression,
    #[command(flatten)]
    /// How to reach the registry.
    pub registry: Registry,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Push {
    const GROUP: Group = Group::Images;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum push registry.example/app:1
  vellum push mine:1 localhost:5000/mine:1 --insecure --compress zstd",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.settings.auth_file = self.registry.auth_file()?;
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let request = PushRequest {
            image: self.image,
            destination: self.destination,
            compression: self.compress.into(),
            insecure: self.registry.insecure,
            auth_file: None,
        };
        let pushed = image::push(ctx, &request)?;
        if !quiet && !self.output.json {
            ctx.progress.say(&format!(
                "pushed {}: {} sent, {} already there",
                pushed.name,
                counted(pushed.sent_layers, "layer"),
                pushed.present_layers
            ));
        }
        let mut out = stdout();
        if self.output.json {
            out.json(&pushed)?;
        } else {
            out.line(&pushed.manifest)?;
        }
        out.done()?;
        Ok(DONE)
    }
}

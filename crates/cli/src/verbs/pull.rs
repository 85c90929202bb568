//! `pull`: fetches an image from a registry.

use clap::Args;
use vellum_service::image::PullRequest;
use vellum_service::{Context, image};

use super::load::{print_one, tell_layers};
use super::{Examples, Group, Outcome, Verb, gc};
use crate::args::Output;
use crate::args::registry::Registry;
use crate::start::Start;

/// Fetch an image from a registry
#[derive(Debug, Args)]
pub struct Pull {
    /// Image to fetch: [HOST[:PORT]/]NAME[:TAG][@DIGEST]
    pub image: String,
    /// Platform to take from a multi-platform image [default: the machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Also keep the compressed layers, so that they can be pushed unchanged
    #[arg(long)]
    pub keep_blobs: bool,
    /// Number of layers to fetch and unpack at once [default: one per CPU, at most 8]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    #[command(flatten)]
    /// How to reach the registry.
    pub registry: Registry,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Pull {
    const GROUP: Group = Group::Images;
    const CREATES_A_STORE: bool = true;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum pull debian:12
  vellum pull --insecure localhost:5000/mine:1
  vellum pull registry.example/app@sha256:0123...",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.settings.keep_blobs = self.keep_blobs.then_some(true);
        start.settings.jobs = self.jobs;
        start.settings.auth_file = self.registry.auth_file()?;
        let ctx = &start.context()?;
        gc::or_tell_what_is_left(ctx, pull(ctx, self, start.quiet))
    }
}

fn pull(ctx: &Context, args: Pull, quiet: bool) -> Outcome {
    let request = PullRequest {
        image: args.image,
        platform: args.platform,
        insecure: args.registry.insecure,
        auth_file: None,
    };
    let pulled = image::pull(ctx, &request)?;
    tell_layers(
        ctx,
        std::slice::from_ref(&pulled),
        quiet || args.output.json,
    );
    print_one(&pulled, args.output.json)
}

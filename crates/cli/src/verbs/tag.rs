//! `tag`: gives an image another name.

use clap::Args;
use vellum_service::image;

use super::{Examples, Group, Outcome, Verb};
use crate::complete;
use crate::exit_code::DONE;
use crate::start::Start;

/// Give an image another name
#[derive(Debug, Args)]
pub struct Tag {
    /// Image that gets the name
    #[arg(add = complete::images())]
    pub image: String,
    /// Its additional name
    pub name: String,
}

impl Verb for Tag {
    const GROUP: Group = Group::Images;
    const EXAMPLES: Examples = &[("", "  vellum tag debian:12 registry.example/debian:12")];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        if let Some(before) = image::tag(ctx, &self.image, &self.name)? {
            ctx.progress.warn(&format!(
                "{} was the name of image {before}, which now lacks it but keeps its id",
                self.name
            ));
        }
        Ok(DONE)
    }
}

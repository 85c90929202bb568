//! `rmi`: removes names and images, and then what nothing needs any more.

use clap::Args;
use vellum_service::store::gc;
use vellum_service::{image, names};

use super::{Examples, Group, Outcome, Verb, for_all};
use crate::exit_code::Failure;
use crate::start::Start;
use crate::{complete, out};

/// Remove images, and layers that nothing else needs
#[derive(Debug, Args)]
pub struct Rmi {
    /// Images to remove
    #[arg(add = complete::images(), required = true)]
    pub images: Vec<String>,
    /// Remove an image with all its names. An image that a container was created from is never
    /// removed
    #[arg(long, short)]
    pub force: bool,
}

impl Verb for Rmi {
    const GROUP: Group = Group::Images;
    const EXAMPLES: Examples = &[("", "  vellum rmi mine:1")];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let mut image_gone = false;
        let code = for_all(&self.images, |image| -> Result<(), Failure> {
            let removed = image::rmi(ctx, image, self.force)?;
            image_gone |= removed.image.is_some();
            if !quiet {
                for name in &removed.names {
                    ctx.progress.say(&format!("untagged {name}"));
                }
                if let Some(id) = &removed.image {
                    ctx.progress
                        .say(&format!("removed image {}", names::short(id)));
                }
            }
            Ok(())
        })?;
        if image_gone {
            // Users remove images to free space, so collect at once what nothing needs any more.
            let gone = gc::gc(ctx, false)?;
            let layers = gone.iter().filter(|g| g.kind == "snapshot");
            let count = layers.clone().count();
            if !quiet && count > 0 {
                let freed = layers.filter_map(|g| g.size).map(|size| size.bytes).sum();
                ctx.progress.say(&format!(
                    "freed {} in {}",
                    out::bytes(freed),
                    out::counted(count, "layer")
                ));
            }
        }
        Ok(code)
    }
}

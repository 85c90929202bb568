//! `images`: lists images. `--quiet` after the verb prints ids, as in Docker and Podman.

use clap::Args;
use jiff::Timestamp;
use vellum_service::{image, names};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;
use crate::{complete, out};

/// List images
#[derive(Debug, Args)]
pub struct Images {
    /// List only images whose name contains this, or matches a pattern such as 'debian:1?'
    #[arg(add = complete::images())]
    pub filter: Option<String>,
    /// Print only ids, one per line
    #[arg(long, conflicts_with = "json")]
    pub ids: bool,
    /// Print full ids
    #[arg(long)]
    pub no_trunc: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Images {
    const GROUP: Group = Group::Images;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum images
  vellum images 'debian:1?'
  vellum images debian --json
  vellum images --ids 'old-*' | xargs vellum rmi
  vellum images --ids '<none>' | xargs vellum rmi     images without a name",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.lists_ids;
        let found = image::images(ctx, self.filter.as_deref())?;
        let mut out = stdout();
        let id = |full: &str| {
            if self.no_trunc {
                full.to_owned()
            } else {
                names::short(full).to_owned()
            }
        };
        if self.output.json {
            out.json(&found)?;
        } else if self.ids || quiet {
            for image in &found {
                out.line(id(&image.id))?;
            }
        } else {
            let mut rows = Vec::new();
            for image in &found {
                let mut shown = image.names.clone();
                if shown.is_empty() {
                    shown.push(image::NO_NAME.to_owned());
                }
                for name in shown {
                    let created = image
                        .created
                        .as_deref()
                        .and_then(|c| c.parse::<Timestamp>().ok());
                    rows.push(vec![
                        name,
                        id(&image.id),
                        image.layers.to_string(),
                        created.map_or_else(String::new, out::ago),
                        out::bytes(image.size_bytes),
                    ]);
                }
            }
            out.table(&["IMAGE", "ID", "LAYERS", "CREATED", "SIZE"], &rows)?;
        }
        out.done()?;
        Ok(DONE)
    }
}

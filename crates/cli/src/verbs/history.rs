//! `history`: shows which build step created which layer.

use clap::Args;
use jiff::Timestamp;
use vellum_service::{image, names};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;
use crate::{complete, out};

/// Show which build step created each layer of an image
#[derive(Debug, Args)]
pub struct History {
    /// Image to show
    #[arg(add = complete::images())]
    pub image: String,
    /// Print ids and commands in full
    #[arg(long)]
    pub no_trunc: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for History {
    const GROUP: Group = Group::Images;
    const EXAMPLES: Examples = &[("", "  vellum history debian:12")];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let steps = image::history(ctx, &self.image)?;
        let mut out = stdout();
        if self.output.json {
            out.json(&steps)?;
            out.done()?;
            return Ok(DONE);
        }
        let short = |text: &str, length: usize| {
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            if self.no_trunc || flat.chars().count() <= length {
                return flat;
            }
            flat.chars().take(length - 1).chain(['…']).collect()
        };
        let rows: Vec<_> = steps
            .iter()
            .map(|step| {
                let created = step
                    .created
                    .as_deref()
                    .and_then(|c| c.parse::<Timestamp>().ok());
                vec![
                    step.diff_id.as_deref().map_or_else(
                        || "-".to_owned(),
                        |id| {
                            if self.no_trunc {
                                id.to_owned()
                            } else {
                                names::short(id).to_owned()
                            }
                        },
                    ),
                    created.map_or_else(String::new, out::ago),
                    if step.diff_id.is_some() {
                        out::bytes(step.size_bytes)
                    } else {
                        "-".to_owned()
                    },
                    short(
                        step.created_by
                            .as_deref()
                            .or(step.comment.as_deref())
                            .unwrap_or(""),
                        60,
                    ),
                ]
            })
            .collect();
        out.table(&["LAYER", "CREATED", "SIZE", "BY"], &rows)?;
        out.done()?;
        Ok(DONE)
    }
}

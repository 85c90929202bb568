//! `df`: shows what uses the disk.

use clap::Args;
use vellum_service::names::short_key;
use vellum_service::store::df::{self, Size};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::DONE;
use crate::out::{self, stdout};
use crate::start::Start;

/// Show disk use, shared and exclusive, by image, layer and container
#[derive(Debug, Args)]
pub struct Df {
    /// Print one line for each image, layer, container and volume
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Df {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum df
  vellum df --verbose",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let disk = df::df(ctx)?;
        let mut out = stdout();
        if self.output.json {
            out.json(&disk)?;
            out.done()?;
            return Ok(DONE);
        }
        let size = |s: &Size| vec![out::bytes(s.bytes), s.inodes.to_string()];
        if self.verbose {
            let rows: Vec<_> = disk
                .items
                .iter()
                .map(|item| {
                    let name = match item.names.first() {
                        Some(name) if item.kind == "image" => vellum_service::names::familiar(name),
                        Some(name) => name.clone(),
                        None => short_key(&item.id),
                    };
                    let mut row = vec![item.kind.to_owned(), name];
                    row.extend(size(&item.exclusive));
                    row.extend(size(&item.shared));
                    row.push(item.users.to_string());
                    row
                })
                .collect();
            out.table(
                &[
                    "KIND", "NAME", "OWN", "INODES", "SHARED", "INODES", "USED BY",
                ],
                &rows,
            )?;
            out.line("")?;
        }
        let mut rows = Vec::new();
        for (kind, title) in [
            ("layer", "layers"),
            ("container", "containers"),
            ("workspace", "workspaces"),
            ("volume", "volumes"),
        ] {
            let of: Vec<_> = disk.items.iter().filter(|i| i.kind == kind).collect();
            let sum = of.iter().fold(Size::default(), |sum, item| {
                // A layer counts once, however many images use it.
                let extra = if kind == "layer" {
                    item.shared
                } else {
                    Size::default()
                };
                Size {
                    bytes: sum.bytes + item.exclusive.bytes + extra.bytes,
                    inodes: sum.inodes + item.exclusive.inodes + extra.inodes,
                }
            });
            if kind == "workspace" && of.is_empty() {
                continue;
            }
            let mut row = vec![title.to_owned(), of.len().to_string()];
            row.extend(size(&sum));
            rows.push(row);
        }
        for (title, part) in [("blobs", &disk.content), ("recipes", &disk.recipes)] {
            let mut row = vec![title.to_owned(), part.inodes.to_string()];
            row.extend(size(part));
            rows.push(row);
        }
        // Most stores have none.
        if disk.lost_found.inodes > 0 {
            let mut row = vec!["lost+found".to_owned(), disk.lost_found.inodes.to_string()];
            row.extend(size(&disk.lost_found));
            rows.push(row);
        }
        let mut row = vec!["total".to_owned(), String::new()];
        row.extend(size(&disk.total));
        rows.push(row);
        out.table(&["WHAT", "COUNT", "SIZE", "INODES"], &rows)?;
        out.done()?;
        if disk.unused_layers.inodes > 0 {
            ctx.progress.say(&format!(
                "{} in layers that no image uses: `vellum gc` frees it",
                out::bytes(disk.unused_layers.bytes)
            ));
        }
        Ok(DONE)
    }
}

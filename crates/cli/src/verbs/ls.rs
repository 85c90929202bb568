//! `ls`: lists containers, or a directory in a tree. `--quiet` after the verb prints ids, as in
//! Docker and Podman.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use vellum_service::container::list;
use vellum_service::layer::look;
use vellum_service::{Context, names};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::args::tree::{Tree, find};
use crate::exit_code::{DONE, Failure};
use crate::out::stdout;
use crate::start::Start;
use crate::{complete, out};

/// List containers
#[derive(Debug, Args)]
pub struct Ls {
    /// List only containers whose name contains this, or matches a pattern such as 'web-*'.
    /// CONTAINER:PATH lists a directory of a container instead, as does any path with --image or -o
    #[arg(add = complete::containers(), value_name = "FILTER")]
    pub filter: Option<OsString>,
    #[command(flatten)]
    /// A tree other than a container's
    pub tree: Tree,
    /// Print only ids, one per line
    #[arg(long, conflicts_with = "json")]
    pub ids: bool,
    /// No effect, since all are listed anyway; accepted because Docker's `ps` has it
    #[arg(long, short, hide = true)]
    pub all: bool,
    /// Print full ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Show the size of each container's own layer; for a directory, show layer, mode, owner and
    /// size
    #[arg(long, short)]
    pub size: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Ls {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum ls
  vellum ls --size --json
  vellum ls box:/etc --size
  vellum ls -o lowerdir=/layers/top:/layers/base /etc",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.needs_store = self.tree.options.is_empty();
        let ctx = &start.context()?;
        let quiet = start.lists_ids;
        let path = self.filter.as_deref().unwrap_or_default();
        if self.tree.is_named() || path.as_bytes().contains(&b':') {
            return list_directory(ctx, path, &self);
        }
        let Some(filter) = self
            .filter
            .as_deref()
            .map_or(Some(None), |f| f.to_str().map(Some))
        else {
            return Err(Failure::misused("a container's name must be UTF-8"));
        };
        let all = list::list(ctx, filter, self.size)?;
        let mut out = stdout();
        if self.output.json {
            out.json(&all)?;
        } else if self.ids || quiet {
            for container in &all {
                let whole = self.ids || self.no_trunc;
                out.line(if whole {
                    &container.id
                } else {
                    names::short(&container.id)
                })?;
            }
        } else {
            let mut head = vec!["NAME", "ID", "FROM", "CREATED", "STATE"];
            if self.size {
                head.push("SIZE");
            }
            let rows: Vec<_> = all
                .iter()
                .map(|c| {
                    let from = match (&c.image, &c.from) {
                        (Some(image), _) => image.clone(),
                        (None, Some(dir)) => dir.display().to_string(),
                        (None, None) => "-".to_owned(),
                    };
                    let id = if self.no_trunc {
                        c.id.clone()
                    } else {
                        names::short(&c.id).to_owned()
                    };
                    let mut row = vec![
                        c.name.clone(),
                        id,
                        from,
                        out::ago(c.created),
                        c.state.to_owned(),
                    ];
                    if let Some(size) = c.size_bytes {
                        row.push(out::bytes(size));
                    }
                    row
                })
                .collect();
            out.table(&head, &rows)?;
        }
        out.done()?;
        Ok(DONE)
    }
}

fn list_directory(ctx: &Context, path: &OsStr, args: &Ls) -> Outcome {
    let (tree, path) = find(path, &args.tree)?;
    let lines = look::list(&look::stack(ctx, &tree)?, &path)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&lines)?;
    } else if args.size {
        let rows: Vec<_> = lines
            .iter()
            .map(|line| {
                vec![
                    line.layer.to_string(),
                    format!("{} {:04o}", line.kind, line.mode),
                    format!("{}:{}", line.uid, line.gid),
                    out::bytes(line.size_bytes),
                    line.name.display().to_string(),
                ]
            })
            .collect();
        out.table(&["LAYER", "MODE", "OWNER", "SIZE", "NAME"], &rows)?;
    } else {
        for line in &lines {
            out.line(line.name.as_os_str().as_bytes())?;
        }
    }
    out.done()?;
    Ok(DONE)
}

//! `mount`: mounts a tree at a directory, prints the plan for that, or lists mounts.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_service::Context;
use vellum_service::mount as mounts;
use vellum_service::mount::mounted::{self, Mounted};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::complete;
use crate::exit_code::{DONE, Failure};
use crate::out::stdout;
use crate::start::Start;

/// Mount a container or an image at a directory, or list mounts
#[derive(Debug, Args)]
pub struct Mount {
    /// Container to mount; without one, current mounts are listed
    #[arg(add = complete::containers())]
    pub container: Option<String>,
    /// Where to mount it [default: a directory in the store, printed]
    #[arg(value_hint = ValueHint::DirPath)]
    pub target: Option<PathBuf>,
    /// Mount this image instead of a container, read-only; the directory is then required
    #[arg(add = complete::images(), long, value_name = "IMAGE", conflicts_with = "target")]
    pub image: Option<String>,
    /// Where to mount the image: the same as the directory alone
    #[arg(long, value_name = "DIR", requires = "image", conflicts_with = "container", value_hint = ValueHint::DirPath)]
    pub at: Option<PathBuf>,
    /// Mount read-only
    #[arg(long)]
    pub read_only: bool,
    /// Print the plan (method, layers, options) and mount nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Mount {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  cd \"$(vellum mount box)\"
  vellum mount box /mnt
  vellum mount --image debian:12 /mnt            read-only
  vellum mount box --dry-run                     what would be mounted, and how",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let mut out = stdout();
        // With --image, the one word is the directory.
        let at = self
            .at
            .or_else(|| self.container.clone().map(PathBuf::from));
        let tree = match (self.container, self.image) {
            (None, None) => return list(ctx, self.output),
            (Some(container), None) => Tree::Container(container),
            (_, Some(image)) => Tree::Image(image),
        };
        if self.dry_run {
            let plan = match &tree {
                Tree::Image(image) => mounts::plan_image(ctx, image)?,
                Tree::Container(name) => mounts::plan_container(ctx, name, self.read_only)?,
            };
            let printed = plan.printed();
            if self.output.json {
                out.json(&printed)?;
            } else {
                out.bytes(printed.to_string().as_bytes())?;
            }
            out.done()?;
            return Ok(DONE);
        }
        let mounted = match (&tree, &at) {
            (Tree::Image(image), Some(at)) => mounts::mount_image(ctx, image, at)?,
            (Tree::Image(image), None) => {
                return Err(Failure::misused(format!(
                    "name the directory to mount it at\nhint: vellum mount --image {image} DIR"
                )));
            }
            (Tree::Container(name), _) => {
                mounts::mount_container(ctx, name, self.target.as_deref(), self.read_only)?
            }
        };
        if self.output.json {
            out.json(&mounted)?;
        } else {
            out.line(mounted.path.as_os_str().as_bytes())?;
        }
        out.done()?;
        if !quiet && !ctx.process.in_first_namespace && !self.output.json {
            ctx.progress.say(
                "(the mount is visible only in your user namespace: `vellum unshare` enters it)",
            );
        }
        Ok(DONE)
    }
}

/// What is mounted.
enum Tree {
    Container(String),
    Image(String),
}

fn list(ctx: &Context, output: Output) -> Outcome {
    let mut out = stdout();
    let all = mounted::list(ctx)?;
    if output.json {
        out.json(&all)?;
    } else {
        let row = |mounted: &Mounted| {
            let state = if mounted.dead { " (dead)" } else { "" };
            let path = mounted.path.display();
            let engine = mounted.engine.unwrap_or_default().to_owned();
            vec![mounted.name.clone(), engine, format!("{path}{state}")]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        out.table(&["CONTAINER", "ENGINE", "MOUNTED AT"], &rows)?;
    }
    out.done()?;
    Ok(DONE)
}

//! `mount`: mounts a tree at a directory, prints the plan for that, or lists mounts.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_service::mount::{self as mounts, mounted};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::complete;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;

/// Mount a container or an image at a directory, or list mounts
#[derive(Debug, Args)]
pub struct Mount {
    /// Container to mount; without one, current mounts are listed
    #[arg(add = complete::containers(), conflicts_with = "image")]
    pub container: Option<String>,
    /// Where to mount it [default: a directory in the store, printed]
    #[arg(value_hint = ValueHint::DirPath)]
    pub target: Option<PathBuf>,
    /// Mount this image instead, read-only, at the directory given by --at
    #[arg(add = complete::images(), long, value_name = "IMAGE", requires = "at")]
    pub image: Option<String>,
    /// Where to mount the image
    #[arg(long, value_name = "DIR", requires = "image", value_hint = ValueHint::DirPath)]
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
  vellum mount --image debian:12 --at /mnt       read-only
  vellum mount box --dry-run                     what would be mounted, and how",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let mut out = stdout();
        let name = match (&self.container, &self.image) {
            (None, None) => {
                let all = mounted::list(ctx)?;
                if self.output.json {
                    out.json(&all)?;
                } else {
                    let rows: Vec<_> = all
                        .iter()
                        .map(|m| {
                            let state = if m.dead { " (dead)" } else { "" };
                            vec![m.name.clone(), format!("{}{state}", m.path.display())]
                        })
                        .collect();
                    out.table(&["CONTAINER", "MOUNTED AT"], &rows)?;
                }
                out.done()?;
                return Ok(DONE);
            }
            (Some(container), _) => container,
            (None, Some(image)) => image,
        };
        if self.dry_run {
            let plan = match &self.image {
                Some(image) => mounts::plan_image(ctx, image)?,
                None => mounts::plan_container(ctx, name, self.read_only)?,
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
        let mounted = match (&self.image, &self.at) {
            (Some(image), Some(at)) => mounts::mount_image(ctx, image, at)?,
            _ => mounts::mount_container(ctx, name, self.target.as_deref(), self.read_only)?,
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

//! `create`: creates a container.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_service::config::Size;
use vellum_service::container::create::{CreateRequest, Origin, create as make};
use vellum_service::mount as mounts;
use vellum_service::mount::mounted::Mounted;

use super::{Examples, Group, Outcome, Verb};
use crate::args::{Output, labels, size};
use crate::complete;
use crate::exit_code::{DONE, Failure};
use crate::out::stdout;
use crate::start::Start;

/// Create a container: a writable layer over an image or a directory
#[derive(Debug, Args)]
pub struct Create {
    /// Image to start from
    #[arg(add = complete::images(), conflicts_with = "from")]
    pub image: Option<String>,
    /// Start from this directory instead of an image. Nothing is copied, so the directory must not
    /// change while the container exists
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
    /// Name for the container [default: derived from the image's]
    #[arg(long, short, value_name = "NAME")]
    pub name: Option<String>,
    /// Also mount it, and print the directory instead of the name
    #[arg(long)]
    pub mount: bool,
    /// Size limit for the container's own layer, such as 512M or 10G, enforced by a project quota
    /// or else by Vellum's engine; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Limit on the number of files, directories and others in the container's own layer, enforced
    /// by Vellum's engine; 0 for no limit
    #[arg(long, value_name = "N")]
    pub inodes: Option<u64>,
    /// Store a label with the container (repeatable)
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Create {
    const GROUP: Group = Group::Containers;
    const CREATES_A_STORE: bool = true;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum create debian:12 --name box
  vellum create --from ./src --name scratch      a writable copy of a directory, nothing copied
  cd \"$(vellum create --mount debian:12)\"        create and mount in one step
  vellum create debian:12 --size 2G",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.settings.size = self.size.map(Size::from);
        let ctx = &start.context()?;
        let origin = match (self.image, self.from) {
            (Some(image), None) => Origin::Image(image),
            (None, Some(dir)) => Origin::Directory(dir),
            _ => {
                return Err(Failure::misused(
                    "name an image, or a directory with --from",
                ));
            }
        };
        let request = CreateRequest {
            origin,
            name: self.name,
            size_bytes: None,
            inodes: self.inodes.filter(|&inodes| inodes != 0),
            labels: labels(&self.label),
            volumes: Vec::new(),
        };
        let created = make(ctx, &request)?;
        let mounted = if self.mount {
            Some(mounts::mount_container(ctx, &created.name, None, false)?)
        } else {
            None
        };
        let mut out = stdout();
        match (&mounted, self.output.json) {
            (Some(mounted), true) => out.json(&CreatedAndMounted { created, mounted })?,
            (None, true) => out.json(&created)?,
            (Some(mounted), false) => out.line(mounted.path.as_os_str().as_bytes())?,
            (None, false) => out.line(&created.name)?,
        }
        out.done()?;
        Ok(DONE)
    }
}

/// What `create --mount --json` prints: the container's fields and its mount.
#[derive(serde::Serialize)]
struct CreatedAndMounted<'a, C> {
    #[serde(flatten)]
    created: C,
    mounted: &'a Mounted,
}

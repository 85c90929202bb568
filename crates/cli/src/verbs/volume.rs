//! `volume`: manages directories that outlive containers.

use clap::{Args, Subcommand};
use vellum_service::Context;
use vellum_service::container::volumes;

use super::{Examples, Group, Outcome, Verb, for_all};
use crate::args::{Output, labels};
use crate::exit_code::{DONE, Failure};
use crate::out::stdout;
use crate::start::Start;
use crate::{complete, out};

/// Manage volumes: directories that outlive containers
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Create a volume
    Create(VolumeCreate),
    /// List volumes
    Ls(VolumeLs),
    /// Remove volumes and what is in them
    Rm(VolumeRm),
}

/// `volume create`
#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Name for the volume [default: a random one, printed]
    pub name: Option<String>,
    /// Store a label with the volume (repeatable)
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `volume ls`
#[derive(Debug, Args)]
pub struct VolumeLs {
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `volume rm`
#[derive(Debug, Args)]
pub struct VolumeRm {
    /// Volumes to remove
    #[arg(add = complete::volumes(), required = true)]
    pub names: Vec<String>,
    /// Don't ask before removing volumes that hold data
    #[arg(long, short)]
    pub force: bool,
}

impl Verb for Volume {
    const GROUP: Group = Group::Containers;
    const CREATES_A_STORE: bool = true;
    const EXAMPLES: Examples = &[
        (
            "",
            "  vellum volume create cache
  vellum run -v cache:/var/cache debian:12 ...",
        ),
        ("create", "  vellum volume create cache"),
        ("ls", "  vellum volume ls --json"),
        ("rm", "  vellum volume rm cache"),
    ];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.lists_ids;
        match self {
            Volume::Create(a) => create(ctx, a),
            Volume::Ls(a) => ls(ctx, a, quiet),
            Volume::Rm(a) => rm(ctx, a),
        }
    }
}

fn create(ctx: &Context, args: VolumeCreate) -> Outcome {
    let made = volumes::create(ctx, args.name.as_deref(), &labels(&args.label))?;
    let mut out = stdout();
    if args.output.json {
        out.json(&made)?;
    } else {
        out.line(&made.name)?;
    }
    out.done()?;
    Ok(DONE)
}

/// `--quiet` after the verb prints only names.
fn ls(ctx: &Context, args: VolumeLs, quiet: bool) -> Outcome {
    let all = volumes::list(ctx)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&all)?;
    } else if quiet {
        for volume in &all {
            out.line(&volume.name)?;
        }
    } else {
        let rows: Vec<_> = all
            .iter()
            .map(|v| {
                let users = if v.containers.is_empty() {
                    "-".to_owned()
                } else {
                    v.containers.join(", ")
                };
                vec![
                    v.name.clone(),
                    out::ago(v.created),
                    users,
                    v.path.display().to_string(),
                ]
            })
            .collect();
        out.table(&["NAME", "CREATED", "CONTAINERS", "DIRECTORY"], &rows)?;
    }
    out.done()?;
    Ok(DONE)
}

/// A volume holds the user's own data, so it is removed only if the user confirms.
fn rm(ctx: &Context, args: VolumeRm) -> Outcome {
    for_all(&args.names, |name| {
        let found = volumes::find(ctx, name)?;
        let holds =
            std::fs::read_dir(&found.path).is_ok_and(|mut entries| entries.next().is_some());
        if holds && !args.force && !out::confirm(&format!("volume `{name}` holds data; remove it?"))
        {
            return Err(Failure::other(format!(
                "volume `{name}` holds data\nhint: --force removes it with what is in it"
            )));
        }
        volumes::remove(ctx, name)?;
        let mut out = stdout();
        out.line(name)?;
        out.done()
    })
}

//! `run`: runs a command in a container. Exit codes are Docker's: the command's own, and special
//! ones if it didn't start.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_service::config::Size;
use vellum_service::container::create::{CreateRequest, Origin, create};
use vellum_service::container::remove;
use vellum_service::container::run::{RunRequest, run as begin};

use super::{Examples, Group, Outcome, Verb};
use crate::args::process::{Process, process};
use crate::args::size;
use crate::exit_code::{DONE, Failure};
use crate::start::Start;
use crate::{complete, exit_code, other_words, report};

/// Run a command in a container, without network unless it asks for the host's
#[derive(Debug, Args)]
#[command(override_usage = "vellum run [OPTIONS] IMAGE [COMMAND]...
       vellum run [OPTIONS] --container <NAME> COMMAND...")]
pub struct Run {
    /// Image to create a new container from, then a command and its arguments [default: the
    /// image's]; with --container, the command alone. Whatever follows belongs to the command
    // One list: of two positional arguments, the second would begin after any options of `run`
    // that follow the first.
    #[arg(
        add = complete::images(),
        value_name = "IMAGE|COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub words: Vec<OsString>,
    /// Run in an existing container
    #[arg(add = complete::containers(), long, value_name = "NAME")]
    pub container: Option<String>,
    /// Name for the new container [default: derived from the image's]
    #[arg(long, short, value_name = "NAME", conflicts_with = "container")]
    pub name: Option<String>,
    /// Remove the container when the command ends
    #[arg(long)]
    pub rm: bool,
    /// Not supported; accepted so that the error can say so
    #[arg(long, short, hide = true)]
    pub detach: bool,
    /// Connect the command's input to this terminal or pipe
    #[arg(long, short)]
    pub interactive: bool,
    /// OCI runtime to use [default: runc, else crun]
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    pub runtime: Option<PathBuf>,
    /// Size limit for the new container's own layer, such as 512M or 10G, enforced by a project
    /// quota or else by Vellum's engine; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Limit on the number of files, directories and others in the new container's own layer,
    /// enforced by Vellum's engine; 0 for no limit
    #[arg(long, value_name = "N")]
    pub inodes: Option<u64>,
    #[command(flatten)]
    /// The process.
    pub process: Process,
}

impl Verb for Run {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum run --rm debian:12 cat /etc/os-release
  vellum run --rm -it debian:12 bash
  vellum run --rm --network host debian:12 apt-get update
  vellum run --rm -v ./src:/src:ro -v cache:/var/cache -e MODE=fast debian:12 make -C /src
  vellum run --container box ls /",
    )];

    const CODES: &'static str = "Exit codes: the command's own; 127 if the command is not found, 126 if it can't be executed, 125 if
vellum or the runtime fails before it starts.";

    fn run(self, start: Start<'_>) -> Outcome {
        run(self, start).or_else(|failure| {
            report::failure(&failure);
            Ok(exit_code::of_run(&failure))
        })
    }
}

fn run(args: Run, mut start: Start<'_>) -> Outcome {
    if let Some(word) = args.words.first().and_then(|word| word.to_str())
        && word.starts_with('-')
    {
        return Err(Failure::misused(other_words::option("run", word)));
    }
    start.settings.runtime = args.runtime.clone().map(Some);
    start.settings.size = args.size.map(Size::from);
    start.leaves_ctrl_c = true;
    let ctx = &start.context()?;
    if args.process.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::misused("--tty needs a terminal as input"));
    }
    if args.detach {
        return Err(Failure::misused(
            "`run` waits for its command and returns its exit code\nhint: start it in the background (`vellum run ... &`, `systemd-run --user vellum run ...`), \
             or use `vellum bundle` and `runc run --detach`",
        ));
    }
    let process = |command| process(ctx, args.process, command);
    let mut words = args.words;
    let (name, process, fresh) = match args.container {
        Some(name) => (name, process(words)?, false),
        None if words.is_empty() => {
            return Err(Failure::misused(
                "name an image, or a container with --container",
            ));
        }
        None => {
            let image = words.remove(0);
            let image = image.into_string().map_err(|image| {
                Failure::misused(format!("{} is not an image name", image.display()))
            })?;
            let process = process(words)?;
            let request = CreateRequest {
                origin: Origin::Image(image),
                name: args.name,
                size_bytes: None,
                inodes: args.inodes.filter(|&inodes| inodes != 0),
                labels: Default::default(),
                volumes: process
                    .binds
                    .iter()
                    .filter_map(|b| b.volume.clone())
                    .collect(),
            };
            (create(ctx, &request)?.id, process, true)
        }
    };
    let outcome = begin(
        ctx,
        &RunRequest {
            container: name.clone(),
            process,
            interactive: args.interactive,
        },
    );
    if args.rm && (fresh || outcome.is_ok()) {
        match (&outcome, remove::remove(ctx, &name, true)) {
            // The command's exit code takes precedence.
            (Ok(code), Err(e)) if *code != DONE => report::failure(&e.into()),
            (Ok(_), removed) => drop(removed?),
            // The failure of the run takes precedence.
            (Err(_), _) => {}
        }
    }
    Ok(outcome?)
}

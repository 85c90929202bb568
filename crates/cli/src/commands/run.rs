//! `run` and `bundle`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;

use vellum_service::bundle::{self as bundles, Network, ProcessRequest};
use vellum_service::create::{CreateRequest, Origin, create};
use vellum_service::run::{RunRequest, run as start};
use vellum_service::{Context, containers};

use super::Outcome;
use crate::exit_code::{DONE, Failure};
use crate::out::stdout;
use crate::{args, report};

/// Resolves what the arguments say about the process. A bare `-e NAME` takes the value from here;
/// if there is none, the container has no such variable either.
fn process(
    ctx: &Context,
    args: args::Process,
    command: Vec<OsString>,
) -> Result<ProcessRequest, Failure> {
    let env = args.env.into_iter().map(|variable| {
        if variable.is_empty() {
            return Err(Failure::misused("--env wants NAME=VALUE, or a NAME"));
        }
        let value = match variable.as_bytes().contains(&b'=') {
            true => None,
            false => std::env::var_os(&variable),
        };
        let mut pair = variable;
        if let Some(value) = value {
            pair.push("=");
            pair.push(value);
        }
        Ok(pair)
    });
    let env = env.collect::<Result<_, _>>()?;
    let binds = args
        .volume
        .iter()
        .map(|text| bundles::bind(ctx, text))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ProcessRequest {
        command,
        entrypoint: args.entrypoint,
        env,
        workdir: args.workdir.map(Into::into),
        user: args.user,
        binds,
        hostname: args.hostname,
        network: match args.network {
            args::Network::None => Network::None,
            args::Network::Host => Network::Host,
        },
        tty: args.tty,
        read_only: args.read_only,
        cap_add: args.cap_add,
        cap_drop: args.cap_drop,
    })
}

/// `run`
pub fn run(ctx: &Context, args: args::Run) -> Outcome {
    if args.process.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::misused("--tty needs a terminal as input"));
    }
    if args.detach {
        return Err(Failure::misused(
            "`run` stays with its command and passes on its exit code\nhint: let the shell send it to the background (`vellum run ... &`, `systemd-run --user vellum run ...`), \
             or `vellum bundle` and `runc run --detach`",
        ));
    }
    // With --container the first word is the command's.
    let mut command = args.command;
    let process = |command| process(ctx, args.process, command);
    let (name, process, fresh) = match (args.container, args.image) {
        (Some(name), image) => {
            if let Some(word) = image {
                command.insert(0, word.into());
            }
            (name, process(command)?, false)
        }
        (None, Some(image)) => {
            let process = process(command)?;
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
        (None, None) => {
            return Err(Failure::misused(
                "name an image, or a container with --container",
            ));
        }
    };
    let outcome = start(
        ctx,
        &RunRequest {
            container: name.clone(),
            process,
            interactive: args.interactive,
        },
    );
    if args.rm && (fresh || outcome.is_ok()) {
        match (&outcome, containers::remove(ctx, &name, true)) {
            // What the command ended with comes first.
            (Ok(code), Err(e)) if *code != DONE => report::failure(&e.into()),
            (Ok(_), removed) => drop(removed?),
            // The failure that is told already comes first.
            (Err(_), _) => {}
        }
    }
    Ok(outcome?)
}

/// `bundle`
pub fn bundle(ctx: &Context, args: args::Bundle) -> Outcome {
    let request = process(ctx, args.process, args.command)?;
    let config = bundles::bundle(ctx, &args.container, &args.dir, &request)?;
    let mut out = stdout();
    out.line(config.as_os_str().as_bytes())?;
    out.done()?;
    Ok(DONE)
}

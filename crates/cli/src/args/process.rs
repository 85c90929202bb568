//! The process in a container: the arguments of `run` and `bundle`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::{Args, ValueEnum};
use vellum_service::Context;
use vellum_service::container::bundle::{self as bundles, ProcessRequest};

use crate::exit_code::Failure;

/// The network that a container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Its own, with only a loopback device
    None,
    /// The host's
    Host,
}

/// The arguments that `run` and `bundle` share.
#[derive(Debug, Args)]
pub struct Process {
    /// Set an environment variable; a bare NAME copies yours, or unsets it if you have none
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,
    /// Bind-mount a host directory or named volume: SOURCE:PATH[:ro]
    #[arg(long, short, value_name = "SOURCE:PATH")]
    pub volume: Vec<OsString>,
    /// Directory the command starts in; created if missing
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Run as USER[:GROUP], by name or number; a number is always an id
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Replace the image's entrypoint; an empty one drops it
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<OsString>,
    /// Host name of the container [default: the beginning of its id]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Network that the container sees
    #[arg(long, value_name = "WHICH", value_enum, default_value = "none")]
    pub network: Network,
    /// Give the command a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Make the container's root read-only
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability, or ALL
    #[arg(long, value_name = "NAME")]
    pub cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "NAME")]
    pub cap_drop: Vec<String>,
}

/// Resolves the arguments about the process. A bare `-e NAME` copies this process's variable; if it
/// isn't set here, the container doesn't have it either.
pub fn process(
    ctx: &Context,
    args: Process,
    command: Vec<OsString>,
) -> Result<ProcessRequest, Failure> {
    let env = args.env.into_iter().map(|variable| {
        if variable.is_empty() {
            return Err(Failure::misused("--env needs NAME=VALUE or NAME"));
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
            Network::None => bundles::Network::None,
            Network::Host => bundles::Network::Host,
        },
        tty: args.tty,
        read_only: args.read_only,
        cap_add: args.cap_add,
        cap_drop: args.cap_drop,
    })
}

//! `serve`: servers, which run until they are told to end. All their output is a log on stderr.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueHint};
use vellum_overlay::program::logging;
use vellum_service::config::Config;
use vellum_service::progress::Silent;
use vellum_service::serve::ServeError;
use vellum_service::{Cancel, Context};
use vellum_sys::with_causes;
#[cfg(feature = "containerd")]
use {
    clap::ValueEnum, vellum_service::containerd::snapshots::ClientSettings,
    vellum_snapshotter::metrics::Address, vellum_snapshotter::server::ServeOptions,
};

use super::{Examples, Group, Outcome, Verb};
#[cfg(feature = "containerd")]
use crate::args::parse;
use crate::exit_code::{DONE, Failure};
use crate::start::Start;

/// Run a server for containerd or Docker
#[derive(Debug, Subcommand)]
pub enum Serve {
    #[cfg(feature = "containerd")]
    /// Run as containerd's snapshotter and differ: proxy plugins of type `snapshot` and `diff`
    Containerd(ServeContainerd),
    #[cfg(feature = "docker")]
    /// Run as the graph driver plugin of a Docker daemon, up to Docker 27
    Docker(ServeDocker),
}

/// The format of a server's log.
#[cfg(feature = "containerd")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line per event: level, message, key=value
    Text,
    /// One JSON object per event, with its time
    Json,
}

/// `serve containerd`
#[cfg(feature = "containerd")]
#[derive(Debug, Args)]
pub struct ServeContainerd {
    /// Socket to listen on, a path of at most 107 bytes. Ignored if systemd passes one
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, default_value = "/run/vellum/containerd.sock")]
    pub socket: PathBuf,

    /// containerd's own socket, where the differ fetches layers and stores new ones
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, default_value = "/run/containerd/containerd.sock")]
    pub containerd: PathBuf,
    /// Serve Prometheus metrics at a unix socket or a loopback port
    #[arg(long, value_name = "unix:PATH|127.0.0.1:PORT", value_parser = parse::<Address>)]
    pub metrics: Option<Address>,
    /// Format of the log on stderr
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    pub log_format: LogFormat,
    /// Map ids for user namespaces with the kernel's id-mapped mounts; containerd's configuration
    /// needs capabilities = ["remap-ids"]
    #[arg(long)]
    pub remap_ids: bool,
    /// Report each snapshot's upper directory in the label containerd.io/snapshot/overlay.upperdir
    #[arg(long)]
    pub upperdir_label: bool,
    /// Delete a removed snapshot's files before answering, not when containerd asks for a cleanup
    #[arg(long)]
    pub sync_remove: bool,
    /// Answer a parallel unpack with a read-only mount if the layer is already there. Every client
    /// must be containerd 2.4 or later
    #[arg(long)]
    pub staged_layers: bool,
}

/// `serve docker`
#[cfg(feature = "docker")]
#[derive(Debug, Args)]
pub struct ServeDocker {
    /// Socket to listen on; its name without .sock is the driver's name. Ignored if systemd passes
    /// one
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, default_value = "/run/docker/plugins/vellum.sock")]
    pub socket: PathBuf,
}

impl Verb for Serve {
    const GROUP: Group = Group::OtherPrograms;
    const EXAMPLES: Examples = &[
        (
            "",
            "  vellum serve containerd
  vellum serve docker
  vellum serve docker --root /data/vellum",
        ),
        (
            "containerd",
            "  vellum serve containerd                 and in /etc/containerd/config.toml:

      [proxy_plugins.vellum]
        type = \"snapshot\"
        address = \"/run/vellum/containerd.sock\"
      [proxy_plugins.vellum-diff]             # containerd 2 and late 1.7
        type = \"diff\"
        address = \"/run/vellum/containerd.sock\"

  vellum serve containerd --root /data/vellum --engine vellum
  VELLUM_LOG=debug vellum serve containerd --socket /tmp/v.sock",
        ),
        (
            "docker",
            "  vellum serve docker                     then: dockerd --experimental --storage-driver=vellum
  vellum serve docker --root /data/vellum --storage-driver native
  vellum serve docker --socket /run/docker/plugins/fast.sock --engine vellum",
        ),
    ];

    fn run(self, start: Start<'_>) -> Outcome {
        match self {
            #[cfg(feature = "containerd")]
            Serve::Containerd(args) => args.run(&start),
            #[cfg(feature = "docker")]
            Serve::Docker(args) => args.run(&start),
        }
    }
}

#[cfg(feature = "containerd")]
impl ServeContainerd {
    fn run(self, start: &Start<'_>) -> Outcome {
        // This order matters: settings are looked up as the calling user.
        let reload = start.reload()?;
        let config = start.config()?;
        match self.log_format {
            LogFormat::Text => logging("info"),
            LogFormat::Json => logging_json("info"),
        }
        let options = ServeOptions {
            client: ClientSettings {
                upperdir_label: self.upperdir_label,
                remap_ids: self.remap_ids,
                sync_remove: self.sync_remove,
                staged_layers: self.staged_layers,
            },
            metrics: self.metrics,
            socket: self.socket,
            containerd: self.containerd,
            reload,
        };
        ended(vellum_snapshotter::server::serve(served(config), options))
    }
}

#[cfg(feature = "docker")]
impl ServeDocker {
    fn run(self, start: &Start<'_>) -> Outcome {
        let config = start.config()?;
        logging("info");
        ended(vellum_graphdriver::serve(served(config), &self.socket))
    }
}

/// Returns a context with its own `Cancel`, since servers handle signals themselves.
fn served(config: Config) -> Context {
    Context::new(config, Cancel::new(), Arc::new(Silent))
}

fn ended(served: Result<(), ServeError>) -> Outcome {
    match served {
        Ok(()) => Ok(DONE),
        Err(ServeError::Verb(error)) => Err(error.into()),
        Err(error) => Err(Failure::other(with_causes(&error))),
    }
}

/// Like [`logging`], but as JSON for programs to read.
#[cfg(feature = "containerd")]
fn logging_json(usual: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VELLUM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    // It fails if a logger is already set, which is fine.
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}

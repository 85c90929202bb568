//! Arguments of `serve`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use vellum_snapshotter::metrics::Address;

use super::parse;

/// `serve`
#[derive(Debug, Subcommand)]
pub enum Serve {
    /// Be containerd's snapshotter and differ: proxy plugins of type `snapshot` and `diff`
    Containerd(ServeContainerd),
    /// Be the graph driver plugin of a Docker daemon, up to Docker 27
    Docker(ServeDocker),
}

/// How a server writes its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line each: level, message, key=value
    Text,
    /// A JSON object each, with its time
    Json,
}

/// `serve containerd`
#[derive(Debug, Args)]
pub struct ServeContainerd {
    /// The socket, at most 107 bytes. Not used if systemd hands one over
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, default_value = "/run/vellum/containerd.sock")]
    pub socket: PathBuf,

    /// containerd's own socket: the differ fetches layers there, and brings new ones
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, default_value = "/run/containerd/containerd.sock")]
    pub containerd: PathBuf,
    /// Tell numbers in Prometheus's form: at a unix socket or a loopback port
    #[arg(long, value_name = "unix:PATH|127.0.0.1:PORT", value_parser = parse::<Address>)]
    pub metrics: Option<Address>,
    /// How the log on stderr is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    pub log_format: LogFormat,
    /// Map ids of user namespaces by the kernel's id-mapped mounts; goes with capabilities = ["remap-ids"]
    #[arg(long)]
    pub remap_ids: bool,
    /// Tell with every snapshot where its own files are, in the label containerd.io/snapshot/overlay.upperdir
    #[arg(long)]
    pub upperdir_label: bool,
    /// Delete removed snapshots before answering, not when containerd asks for a cleanup
    #[arg(long)]
    pub sync_remove: bool,
    /// Answer a parallel unpacking with a read-only mount where the layer is there. Every client must be containerd 2.4 or later
    #[arg(long)]
    pub staged_layers: bool,
}

/// `serve docker`
#[derive(Debug, Args)]
pub struct ServeDocker {
    /// The socket; its name without .sock is the driver's. Not used if systemd hands one over
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, default_value = "/run/docker/plugins/vellum.sock")]
    pub socket: PathBuf,
}

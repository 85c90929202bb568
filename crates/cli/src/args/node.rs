//! Arguments of `node`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::Output;

/// `node`
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Put this program on a node, with units and containerd's configuration; again is an upgrade
    Install(NodeInstall),
    /// Undo an install; images and layers stay
    Uninstall(NodeUninstall),
    /// Show what is installed, and whether it is as this program would install it
    Status(NodeStatus),
}

/// Where a node is.
#[derive(Debug, Args)]
pub struct NodePlace {
    /// Where the node's root file system is mounted
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "/")]
    pub host_root: PathBuf,
}

/// Whether something is done, and who is told.
#[derive(Debug, Args)]
pub struct NodeDoing {
    /// Tell the node's systemd, too: units, and a restart of containerd if its configuration changed. Containers go on
    #[arg(long)]
    pub activate: bool,
    /// Show what would change, and change nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
}

/// Where things go on a node.
#[derive(Debug, Args)]
pub struct NodeFiles {
    /// The node's directory for the program
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    pub bin_dir: PathBuf,
    /// The node's directory for systemd units
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub unit_dir: PathBuf,
    /// The node's containerd configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    pub containerd_config: PathBuf,
    /// Leave containerd's configuration alone
    #[arg(long, conflicts_with = "containerd_config")]
    pub no_containerd: bool,
}

/// `node install`
#[derive(Debug, Args)]
pub struct NodeInstall {
    #[command(flatten)]
    /// Where the node is
    pub place: NodePlace,
    #[command(flatten)]
    /// Where things go
    pub files: NodeFiles,
    /// Add the snapshotter, but leave the kubelet's images and containers where they are
    #[arg(long)]
    pub no_cri: bool,
    /// Whether Vellum unpacks and diffs, too [default: from version 3 of the configuration on]
    #[arg(long, value_name = "BOOL")]
    pub differ: Option<bool>,
    /// Take the place of another snapshotter than containerd's own
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    /// Whether it is done
    pub doing: NodeDoing,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `node uninstall`
#[derive(Debug, Args)]
pub struct NodeUninstall {
    #[command(flatten)]
    /// Where the node is
    pub place: NodePlace,
    #[command(flatten)]
    /// Whether it is done
    pub doing: NodeDoing,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `node status`
#[derive(Debug, Args)]
pub struct NodeStatus {
    #[command(flatten)]
    /// Where the node is
    pub place: NodePlace,
    #[command(flatten)]
    /// Where things go
    pub files: NodeFiles,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

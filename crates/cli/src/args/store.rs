//! Arguments of the verbs on the store as a whole.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::Output;

/// `info`
#[derive(Debug, Args)]
pub struct Info {
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `df`
#[derive(Debug, Args)]
pub struct Df {
    /// One line for each image, layer, container and volume
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `gc`
#[derive(Debug, Args)]
pub struct Gc {
    /// Say what would go and why, and remove nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Also what `check --rebuild` found and holds until somebody has looked
    #[arg(long, conflicts_with = "dry_run")]
    pub rebuilt: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `check`
#[derive(Debug, Args)]
pub struct Check {
    /// Put right what follows from the records: short names, lists of lower layers
    #[arg(long)]
    pub heal: bool,
    /// Read every blob and layer, and compare their digests
    #[arg(long)]
    pub deep: bool,
    /// Make the database anew from what lies beside it; the old one is kept
    #[arg(long, conflicts_with_all = ["heal", "deep"])]
    pub rebuild: bool,
    /// Rebuild without asking
    #[arg(long, short, requires = "rebuild")]
    pub force: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `why`
#[derive(Debug, Args)]
pub struct Why {
    /// A path in the store, absolute or from its root, or a tree's directory name
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `config`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Show every setting and who gave it
    Show(ConfigShow),
    /// Turn Docker's storage settings into Vellum's
    Import(ConfigImport),
}

/// `config show`
#[derive(Debug, Args)]
pub struct ConfigShow {
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `config import`
#[derive(Debug, Args)]
pub struct ConfigImport {
    /// A daemon.json, a docker-storage file, or - for stdin [default: /etc/docker/daemon.json]
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Docker's storage options themselves: "--storage-driver overlay2 --storage-opt overlay2.size=10G"
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "file",
        allow_hyphen_values = true
    )]
    pub options: Option<String>,
    /// Write this file [default: print it]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long, short)]
    pub force: bool,
}

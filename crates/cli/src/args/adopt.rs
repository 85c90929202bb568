//! Arguments of `adopt`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::Output;

/// `adopt`
#[derive(Debug, Args)]
pub struct Adopt {
    /// The data root of a Docker daemon with the storage driver overlay2. It is read and never changed
    #[arg(value_name = "DATA-ROOT", value_hint = ValueHint::DirPath)]
    pub data_root: PathBuf,
    /// Images, by name or id [default: all with a name]
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Images without a name too
    #[arg(long, conflicts_with = "images")]
    pub all: bool,
    /// Read every layer where it lies, compare it with its digest, and store nothing. `whole` speaks of contents: owners, modes, xattrs
    /// and further names in the tree are not looked at
    #[arg(long)]
    pub in_place: bool,
    /// Say what would be adopted, and what is orphaned, without reading layers
    #[arg(long, conflicts_with = "in_place")]
    pub dry_run: bool,
    /// How the answer is printed
    #[command(flatten)]
    pub output: Output,
}

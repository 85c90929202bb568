//! Arguments that several verbs share: the global ones, how results are printed, and parsers for
//! values.
//!
//! A verb's own arguments are in its file in `verbs/`. Each help text is one short line.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts: [:TAG] is not a link"
)]

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use vellum_service::config::{Driver, Engine, MountMethod, parse_size};

use crate::exit_code::Failure;

pub mod process;
#[cfg(feature = "registry")]
pub mod registry;
pub mod tree;

/// Options of every command. Settings that they leave open come from the environment and from
/// files; see docs/configuration.md.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Store directory, created by the first image or container [default: /var/lib/vellum, or
    /// ~/.local/share/vellum for a plain user]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,
    /// Directory for runtime state, which a reboot clears [default: /run/vellum]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run_dir: Option<PathBuf>,
    /// Read settings from this file instead of the system's and your own
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Storage driver for new images: overlay2, overlay or native. A container has its image's
    #[arg(long, global = true, value_name = "NAME", value_parser = parse::<Driver>)]
    pub storage_driver: Option<Driver>,
    /// Engine that mounts layers: auto (the kernel where it can), kernel or vellum
    #[arg(long, global = true, value_name = "NAME", value_parser = parse::<Engine>)]
    pub engine: Option<Engine>,
    /// Mount new containers without redirect_dir, metacopy and xino, whose marks in layers Docker's
    /// and containerd's own diff misread
    #[arg(long, global = true)]
    pub docker_compatible: bool,
    /// How to pass layers to the kernel: auto, layer-fds, lowerdir-plus or option-page
    #[arg(long, global = true, value_name = "METHOD", value_parser = parse::<MountMethod>)]
    pub mount_method: Option<MountMethod>,
    /// Kernel mount option (repeatable): redirect_dir=, metacopy= or xino= with on, off or auto; or
    /// volatile
    #[arg(long = "mount-opt", global = true, value_name = "NAME=VALUE")]
    pub mount_options: Vec<String>,
    /// Print results and errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print JSON; its fields are stable
    #[arg(long)]
    pub json: bool,
}

/// Compression of the layers of a saved or pushed image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// No compression
    None,
    /// gzip, which every client understands
    Gzip,
    /// Zstandard, faster and smaller
    Zstd,
}

impl From<Compression> for vellum_image::Compression {
    fn from(how: Compression) -> Self {
        match how {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip,
            Compression::Zstd => Self::Zstd,
        }
    }
}

/// Parses a value with its own `FromStr`.
pub fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|why: T::Err| why.to_string())
}

/// Reads a number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size(text)
}

/// Splits `KEY=VALUE`; a bare key gets an empty value.
pub fn labels(texts: &[String]) -> std::collections::BTreeMap<String, String> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        })
        .collect()
}

/// Returns the absolute path. Links are not resolved.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|e| Failure::other(format!("cannot find {}: {e}", path.display())))
}

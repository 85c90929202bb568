//! The whole command line, defined once: parsing, help, man pages and completions all come from these types.
//!
//! Nothing here does anything. Each `commands/*.rs` file turns its arguments into a request of the service room. Texts are short first
//! lines; the examples that open each help page are in [`crate::help`].

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts: [:TAG] is no link"
)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use vellum_service::config::{Driver, Engine, MountMethod, parse_size};

mod adopt;
mod container;
mod image;
mod node;
mod overlay;
mod serve;
mod store;

pub use adopt::*;
pub use container::*;
pub use image::*;
pub use node::*;
pub use overlay::*;
pub use serve::*;
pub use store::*;

/// Layered storage for containers: images in, writable root file systems out.
#[derive(Debug, Parser)]
#[command(
    name = "vellum",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command. What they don't say, environment and files do; see docs/configuration.md.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Directory of the store [default: /var/lib/vellum, or ~/.local/share/vellum for a plain user]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,
    /// Directory of what lives until the next boot [default: /run/vellum]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run_dir: Option<PathBuf>,
    /// Configuration file, instead of the system's and your own
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Driver of new layers and containers: overlay2, overlay or native
    #[arg(long, global = true, value_name = "NAME", value_parser = parse::<Driver>)]
    pub storage_driver: Option<Driver>,
    /// Who mounts: auto (the kernel where it can), kernel or vellum
    #[arg(long, global = true, value_name = "NAME", value_parser = parse::<Engine>)]
    pub engine: Option<Engine>,
    /// Leave off the kernel marks that Docker's and containerd's own diff would misread
    #[arg(long, global = true)]
    pub docker_compatible: bool,
    /// How layers reach the kernel: auto, layer-fds, lowerdir-plus or option-page
    #[arg(long, global = true, value_name = "METHOD", value_parser = parse::<MountMethod>)]
    pub mount_method: Option<MountMethod>,
    /// Kernel mount option: redirect_dir=, metacopy= or xino= on, off or auto; or volatile
    #[arg(long = "mount-opt", global = true, value_name = "NAME=VALUE")]
    pub mount_options: Vec<String>,
    /// Print results and errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|why: T::Err| why.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text)
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring in images from an archive or OCI layout
    Load(Load),
    /// Write images to an archive or OCI layout
    Save(Save),
    /// Let Podman, Buildah and CRI-O use images where they are
    #[command(subcommand)]
    Export(Export),
    /// Fetch an image from a registry
    Pull(Pull),
    /// Send an image to a registry
    Push(Push),
    /// Make an image of one layer from a directory or tar
    Import(Import),
    /// Take over the images of a Docker data root
    Adopt(Adopt),
    /// Give an image another name
    Tag(Tag),
    /// List images
    Images(Images),
    /// Show everything known about images, containers or volumes, as JSON
    Inspect(Inspect),
    /// Show which step of its build made each layer of an image
    History(History),
    /// Remove images, and layers that nothing else needs
    Rmi(Rmi),

    /// Make a container: a writable layer over an image or a directory
    Create(Create),
    /// Show a container's or an image's tree at a directory
    Mount(Mount),
    /// Take mounts away
    Umount(Umount),
    /// List what a container changed: A added, C changed, D deleted
    Diff(Diff),
    /// Make an image from a container's changes
    Commit(Commit),
    /// Copy files between a container and the host
    Cp(Cp),
    /// Give a container another name
    Rename(Rename),
    /// Remove containers
    Rm(Rm),
    /// List containers
    #[command(visible_alias = "ps")]
    Ls(Ls),
    /// Run a command in a container
    Run(Run),
    /// Write an OCI runtime bundle for runc, crun or others
    Bundle(Bundle),
    /// Directories that outlive containers
    #[command(subcommand)]
    Volume(Volume),

    /// Mount a union of directories with Vellum's own engine
    Overlay(Overlay),
    /// Make an upper plain: copy into it what its files still have in lower layers
    Settle(Settle),
    /// Print a file of a tree, without mounting it
    Cat(Cat),
    /// Say which layer a path, its attributes and its data come from, and why others are hidden
    Explain(Explain),
    /// Make layers of layers: merge, squash, convert
    #[command(subcommand)]
    Layer(Layer),

    /// Serve other programs: containerd, Docker
    #[command(subcommand)]
    Serve(Serve),
    /// Put Vellum on a node of a fleet, or take it off
    #[command(subcommand)]
    Node(Node),

    /// Show driver, file system, kernel features, limits and settings
    Info(Info),
    /// Show what uses the disk: shared and exclusive, by image, layer and container
    Df(Df),
    /// Remove what nothing needs
    #[command(visible_alias = "prune")]
    Gc(Gc),
    /// Verify that records and trees agree
    Check(Check),
    /// Say what a path in the store is, and what keeps it
    Why(Why),
    /// Show settings, or take over Docker's
    #[command(subcommand)]
    Config(Config),
    /// Run a command in the user namespace of the rootless store
    Unshare(Unshare),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write man pages into a directory
    Man(Man),
    /// Show the help of a command
    Help(Help),
    /// Print the version
    Version,
    /// A word that is none of these.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// `help`
#[derive(Debug, Args)]
pub struct Help {
    /// The command, and the one below it [default: all of them]
    #[arg(value_name = "COMMAND")]
    pub words: Vec<String>,
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print JSON; its fields are stable
    #[arg(long)]
    pub json: bool,
}

/// `unshare`
#[derive(Debug, Args)]
pub struct Unshare {
    /// The command and its arguments [default: your shell]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// `completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Debug, Args)]
pub struct Man {
    /// Where the pages go; made if it isn't there
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// How layers of a saved or pushed image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Not at all
    None,
    /// gzip, understood by everyone
    Gzip,
    /// Zstandard, faster and smaller
    Zstd,
}

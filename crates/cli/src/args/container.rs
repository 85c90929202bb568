//! Arguments of the verbs on containers and volumes.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::{Output, size};
use crate::complete;

/// `create`
#[derive(Debug, Args)]
pub struct Create {
    /// The image
    #[arg(add = complete::images(), required_unless_present = "from", conflicts_with = "from")]
    pub image: Option<String>,
    /// A writable copy of this directory instead of an image; nothing is copied, and the directory must stay unchanged meanwhile
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
    /// The container's name [default: made from the image's]
    #[arg(long, short, value_name = "NAME")]
    pub name: Option<String>,
    /// Mount it too, and print the directory instead of the name
    #[arg(long)]
    pub mount: bool,
    /// Limit of the container's own layer, kept by a project quota or else by Vellum's engine: 512M, 10G; 0 for none
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Limit of files, directories and others in the container's own layer, kept by Vellum's engine; 0 for none
    #[arg(long, value_name = "N")]
    pub inodes: Option<u64>,
    /// Keep a label with the container
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `mount`
#[derive(Debug, Args)]
pub struct Mount {
    /// The container; without one, what is mounted is listed
    #[arg(add = complete::containers(), conflicts_with = "image")]
    pub container: Option<String>,
    /// Where [default: a directory in the store, printed]
    #[arg(value_hint = ValueHint::DirPath)]
    pub target: Option<PathBuf>,
    /// Mount an image itself, read-only, at --at
    #[arg(add = complete::images(), long, value_name = "IMAGE", requires = "at")]
    pub image: Option<String>,
    /// Where the image is mounted
    #[arg(long, value_name = "DIR", requires = "image", value_hint = ValueHint::DirPath)]
    pub at: Option<PathBuf>,
    /// Mount read-only
    #[arg(long)]
    pub read_only: bool,
    /// Print the plan (method, layers, options) and mount nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `umount`
#[derive(Debug, Args)]
pub struct Umount {
    /// Containers, or directories where something of Vellum's is mounted
    #[arg(add = complete::containers(), required_unless_present = "all")]
    pub names: Vec<OsString>,
    /// Everything of this store
    #[arg(long, short, conflicts_with = "names")]
    pub all: bool,
    /// Detach also while somebody uses it
    #[arg(long, short)]
    pub force: bool,
}

/// `diff`
#[derive(Debug, Args)]
pub struct Diff {
    /// The container
    #[arg(add = complete::containers())]
    pub container: String,
    /// Write the changes as a layer tar to stdout
    #[arg(long, conflicts_with = "json")]
    pub tar: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `commit`
#[derive(Debug, Args)]
pub struct Commit {
    /// The container
    #[arg(add = complete::containers())]
    pub container: String,
    /// The new image's name
    pub image: Option<String>,
    /// Set a field of the configuration, as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(long, short, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Who made it
    #[arg(long, short, value_name = "TEXT")]
    pub author: Option<String>,
    /// What the history says
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `cp`
#[derive(Debug, Args)]
pub struct Cp {
    /// CONTAINER:PATH, a path on the host, or - for a tar on stdin
    pub source: OsString,
    /// CONTAINER:PATH, a path on the host, or - for a tar on stdout
    pub destination: OsString,
    /// Keep all attributes, and owners on the way out of a container too
    #[arg(long, short)]
    pub archive: bool,
    /// Follow the source if it is a symbolic link
    #[arg(long, short = 'L')]
    pub follow_link: bool,
}

/// `rename`
#[derive(Debug, Args)]
pub struct Rename {
    /// The container
    #[arg(add = complete::containers())]
    pub container: String,
    /// Its new name
    pub name: String,
}

/// `rm`
#[derive(Debug, Args)]
pub struct Rm {
    /// The containers
    #[arg(add = complete::containers(), required = true)]
    pub containers: Vec<String>,
    /// Also those that are mounted, with what they changed, and without asking
    #[arg(long, short)]
    pub force: bool,
}

/// `ls`
#[derive(Debug, Args)]
pub struct Ls {
    /// Only those whose name holds this, or fits a pattern such as 'web-*'; CONTAINER:PATH lists a directory in one, as does any path with --image or -o
    #[arg(add = complete::containers(), value_name = "FILTER")]
    pub filter: Option<OsString>,
    #[command(flatten)]
    /// Another tree than a container's
    pub tree: super::Tree,
    /// Print ids only, one a line
    #[arg(long, conflicts_with = "json")]
    pub ids: bool,
    /// All are listed anyhow; taken since Docker's `ps` has it
    #[arg(long, short, hide = true)]
    pub all: bool,
    /// Print full ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Measure what each container holds of its own; of paths, tell layer, mode, owner and size
    #[arg(long, short)]
    pub size: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// Which network a container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Its own, with a loopback device alone
    None,
    /// The host's
    Host,
}

/// What `run` and `bundle` have in common.
#[derive(Debug, Args)]
pub struct Process {
    /// Set a variable; a bare NAME takes the value from here, or the variable away
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,
    /// Bind a directory or named volume: SOURCE:PATH[:ro]
    #[arg(long, short, value_name = "SOURCE:PATH")]
    pub volume: Vec<OsString>,
    /// Directory the command starts in; made if it isn't there
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Run as USER[:GROUP], names or numbers; a number is always an id
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Use this instead of the image's entrypoint; an empty one drops it
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<OsString>,
    /// The container's host name [default: the beginning of its id]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Which network it sees
    #[arg(long, value_name = "WHICH", value_enum, default_value = "none")]
    pub network: Network,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Its root can't be written
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability (ALL for all)
    #[arg(long, value_name = "NAME")]
    pub cap_add: Vec<String>,
    /// Drop a capability (ALL for all)
    #[arg(long, value_name = "NAME")]
    pub cap_drop: Vec<String>,
}

/// `run`
#[derive(Debug, Args)]
pub struct Run {
    /// Make a new container from this image; with --container, the command begins here
    #[arg(add = complete::images(), required_unless_present = "container")]
    pub image: Option<String>,
    /// The command and its arguments [default: the image's]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<OsString>,
    /// Run in a container that is already there
    #[arg(add = complete::containers(), long, value_name = "NAME")]
    pub container: Option<String>,
    /// The new container's name [default: made from the image's]
    #[arg(long, short, value_name = "NAME", conflicts_with = "container")]
    pub name: Option<String>,
    /// Remove the container when the command ends
    #[arg(long)]
    pub rm: bool,
    /// Not to be had; taken to say so
    #[arg(long, short, hide = true)]
    pub detach: bool,
    /// Give the command this terminal or pipe as its input
    #[arg(long, short)]
    pub interactive: bool,
    /// OCI runtime program [default: runc, else crun]
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    pub runtime: Option<PathBuf>,
    /// Limit of the new container's own layer, kept by a project quota or else by Vellum's engine: 512M, 10G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// Limit of files, directories and others in the new container's own layer, kept by Vellum's engine
    #[arg(long, value_name = "N")]
    pub inodes: Option<u64>,
    #[command(flatten)]
    /// The process.
    pub process: Process,
}

/// `bundle`
#[derive(Debug, Args)]
pub struct Bundle {
    /// The container; it is mounted as the bundle's rootfs
    #[arg(add = complete::containers())]
    pub container: String,
    /// Directory of the bundle; made if it isn't there
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The command and its arguments [default: the image's]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<OsString>,
    #[command(flatten)]
    /// The process.
    pub process: Process,
}

/// `volume`
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume
    Create(VolumeCreate),
    /// List volumes
    Ls(VolumeLs),
    /// Remove volumes and what is in them
    Rm(VolumeRm),
}

/// `volume create`
#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Its name [default: a random one, printed]
    pub name: Option<String>,
    /// Keep a label with it
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `volume ls`
#[derive(Debug, Args)]
pub struct VolumeLs {
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `volume rm`
#[derive(Debug, Args)]
pub struct VolumeRm {
    /// The volumes
    #[arg(add = complete::volumes(), required = true)]
    pub names: Vec<String>,
    /// Without asking
    #[arg(long, short)]
    pub force: bool,
}

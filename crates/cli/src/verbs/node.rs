//! `node`: installs Vellum on this machine or on one whose root is mounted here, uninstalls it, and
//! shows the state. It needs neither store nor settings.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use vellum_node::containerd::Wanted;
use vellum_node::{self as node, Action, InstallOptions, Report, State};

use super::{Examples, Group, Outcome, Verb};
use crate::args::{Output, absolute};
use crate::exit_code::{DONE, FAILED, Failure};
use crate::out::stdout;
use crate::start::Start;

/// Install Vellum on a node of a fleet, or uninstall it
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Install or upgrade this program on a node, with systemd units and containerd's configuration
    Install(NodeInstall),
    /// Undo an install; images and layers stay
    Uninstall(NodeUninstall),
    /// Show what is installed, and whether it matches what this program would install
    Status(NodeStatus),
}

/// Where a node is.
#[derive(Debug, Args)]
pub struct NodePlace {
    /// Where the node's root file system is mounted
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "/")]
    pub host_root: PathBuf,
}

/// Whether changes are made, and whether systemd applies them.
#[derive(Debug, Args)]
pub struct NodeDoing {
    /// Also have the node's systemd apply the new units, and restart containerd if its
    /// configuration changed. Containers keep running
    #[arg(long)]
    pub activate: bool,
    /// Show what would change, and change nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
}

/// Where things go on a node.
#[derive(Debug, Args)]
pub struct NodeFiles {
    /// Directory on the node for the program
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    pub bin_dir: PathBuf,
    /// Directory on the node for systemd units
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub unit_dir: PathBuf,
    /// containerd's configuration file on the node
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
    /// Whether Vellum also unpacks and diffs layers [default: true if containerd's configuration
    /// has version 3 or later]
    #[arg(long, value_name = "BOOL")]
    pub differ: Option<bool>,
    /// Replace the configured snapshotter even if it is not containerd's own
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    /// Whether changes are made
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
    /// Whether changes are made
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

impl Verb for Node {
    const GROUP: Group = Group::OtherPrograms;
    const EXAMPLES: Examples = &[
        (
            "",
            "  vellum node install --dry-run
  vellum node install --activate
  vellum node status
  vellum node uninstall --activate",
        ),
        (
            "install",
            "  vellum node install --dry-run           what would change, line by line
  vellum node install --activate
  vellum node install --host-root /host --activate
  vellum node install --no-cri --bin-dir /opt/bin",
        ),
        (
            "uninstall",
            "  vellum node uninstall --dry-run
  vellum node uninstall --host-root /host --activate",
        ),
        (
            "status",
            "  vellum node status
  vellum node status --host-root /host --json",
        ),
    ];

    fn run(self, _: Start<'_>) -> Outcome {
        match self {
            Node::Install(a) => install(a),
            Node::Uninstall(a) => {
                let host_root = absolute(&a.place.host_root)?;
                let report = node::uninstall(&host_root, a.doing.activate, a.doing.dry_run)?;
                show(&report, a.output)
            }
            Node::Status(a) => status(a),
        }
    }
}

/// The socket on which the units make the server listen.
const SOCKET: &str = "/run/vellum/containerd.sock";

fn options(place: NodePlace, files: NodeFiles) -> Result<InstallOptions, Failure> {
    let config = (!files.no_containerd).then_some(files.containerd_config);
    let inside = [&files.bin_dir, &files.unit_dir].into_iter().chain(&config);
    if let Some(path) = inside.into_iter().find(|path| !path.is_absolute()) {
        return Err(Failure::misused(format!(
            "{} is not an absolute path on the node",
            path.display()
        )));
    }
    Ok(InstallOptions {
        host_root: absolute(&place.host_root)?,
        bin_dir: files.bin_dir,
        unit_dir: files.unit_dir,
        config,
        wanted: Wanted {
            socket: SOCKET.into(),
            root: None,
            cri: true,
            differ: None,
            replace: false,
        },
        activate: false,
        dry_run: false,
    })
}

fn install(args: NodeInstall) -> Outcome {
    let mut options = options(args.place, args.files)?;
    options.wanted.cri = !args.no_cri;
    options.wanted.differ = args.differ;
    options.wanted.replace = args.replace;
    options.activate = args.doing.activate;
    options.dry_run = args.doing.dry_run;
    let report = node::install(&options)?;
    show(&report, args.output)
}

fn show(report: &Report, output: Output) -> Outcome {
    let mut out = stdout();
    if output.json {
        out.json(report)?;
        out.done()?;
        return Ok(DONE);
    }
    for step in &report.files {
        let action = match (step.action, report.dry_run) {
            (Action::Create, false) => "created",
            (Action::Create, true) => "would create",
            (Action::Replace, false) => "replaced",
            (Action::Replace, true) => "would replace",
            (Action::Remove, false) => "removed",
            (Action::Remove, true) => "would remove",
            (Action::Keep, _) => "unchanged",
        };
        out.line(format!("{action:<13}  {}", step.path.display()))?;
        for line in step.changes.lines() {
            out.line(format!("    {line}"))?;
        }
    }
    for note in &report.notes {
        out.line(format!("note: {note}"))?;
    }
    if !report.commands.is_empty() {
        out.line(match report.activated {
            true => "done on the node:",
            false => "to be done on the node (--activate does it):",
        })?;
        for command in &report.commands {
            out.line(format!("    {command}"))?;
        }
    }
    out.done()?;
    Ok(DONE)
}

fn status(args: NodeStatus) -> Outcome {
    let status = node::status(&options(args.place, args.files)?)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&status)?;
    } else {
        let rows: Vec<_> = status
            .parts
            .iter()
            .map(|part| {
                let state = match part.state {
                    State::Current => "current",
                    State::Different => "different",
                    State::Missing => "missing",
                };
                vec![state.to_owned(), part.path.display().to_string()]
            })
            .collect();
        out.table(&["STATE", "FILE"], &rows)?;
    }
    out.done()?;
    let current = status.parts.iter().all(|part| part.state == State::Current);
    // For scripts: a difference is a failure, and it has been printed already.
    if current {
        Ok(DONE)
    } else {
        Err(Failure::Said(FAILED))
    }
}

//! `node`: put on a machine, or on one whose root is mounted here, taken off it, looked at.

use std::path::PathBuf;

use vellum_service::node::containerd::Wanted;
use vellum_service::node::{self, Action, InstallOptions, Report, State};

use super::Outcome;
use crate::args;
use crate::exit_code::{DONE, FAILED, Failure};
use crate::out::stdout;

/// Where the units have the server listen.
const SOCKET: &str = "/run/vellum/containerd.sock";

/// `node ...`
pub fn node(args: args::Node) -> Outcome {
    match args {
        args::Node::Install(a) => install(a),
        args::Node::Uninstall(a) => {
            let host_root = absolute(a.place.host_root)?;
            let report = node::uninstall(&host_root, a.doing.activate, a.doing.dry_run)?;
            show(&report, a.output)
        }
        args::Node::Status(a) => status(a),
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path)
        .map_err(|e| Failure::other(format!("cannot find {}: {e}", path.display())))
}

fn options(place: args::NodePlace, files: args::NodeFiles) -> Result<InstallOptions, Failure> {
    let config = (!files.no_containerd).then_some(files.containerd_config);
    let inside = [&files.bin_dir, &files.unit_dir].into_iter().chain(&config);
    if let Some(path) = inside.into_iter().find(|path| !path.is_absolute()) {
        return Err(Failure::misused(format!(
            "{} is no absolute path of the node",
            path.display()
        )));
    }
    Ok(InstallOptions {
        host_root: absolute(place.host_root)?,
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

fn install(args: args::NodeInstall) -> Outcome {
    let mut options = options(args.place, args.files)?;
    options.wanted.cri = !args.no_cri;
    options.wanted.differ = args.differ;
    options.wanted.replace = args.replace;
    options.activate = args.doing.activate;
    options.dry_run = args.doing.dry_run;
    let report = node::install(&options)?;
    show(&report, args.output)
}

fn show(report: &Report, output: args::Output) -> Outcome {
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

fn status(args: args::NodeStatus) -> Outcome {
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
    // For scripts: what is not as it should be is a failure that has been told.
    if current {
        Ok(DONE)
    } else {
        Err(Failure::Said(FAILED))
    }
}

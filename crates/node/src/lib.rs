//! Installs Vellum on a node of a fleet, uninstalls it, and shows its state.
//!
//! Installing copies the running program, writes the systemd units and edits containerd's
//! configuration. Everything is planned first, from the present state ([`Step`]s, which a dry run
//! shows), then done, each step by one rename: a file is never half written, and processes that run
//! the old program keep it, so containers survive an upgrade. Installing again is upgrading;
//! installing the same version again does nothing.
//!
//! For the undo, the configuration before and after the edit is kept in [`RECORD_DIR`], written
//! before the edit. If the file has not changed since, the undo restores it byte for byte; else it
//! removes only Vellum's own settings.
//!
//! This crate must not know how containerd is started or what a cluster is. [`containerd`] has the
//! edit, [`tree`] the files of a node that is mounted elsewhere.
#![forbid(unsafe_code)]

pub mod compare;
pub mod containerd;
mod record;
mod systemd;
pub mod tree;

use std::path::{Path, PathBuf};

use serde::Serialize;

use containerd::Wanted;
use record::Record;
use tree::Tree;
use vellum_service::config::{Partial, Surroundings};
use vellum_service::error::{Error, Result};

/// Where the record of an installation is, on the node.
pub const RECORD_DIR: &str = "/etc/vellum/node";
/// The name of our file in a directory of imported files.
const DROP_IN: &str = "vellum.toml";

/// What to install, and where.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// Where the node's root is mounted; `/` for this machine.
    pub host_root: PathBuf,
    /// The node's directory for the program.
    pub bin_dir: PathBuf,
    /// The node's directory for units.
    pub unit_dir: PathBuf,
    /// The node's containerd configuration; `None` leaves containerd alone.
    pub config: Option<PathBuf>,
    /// What containerd uses it for.
    pub wanted: Wanted,
    /// Whether to call systemd: units are enabled and started, containerd is restarted if its
    /// configuration changed.
    pub activate: bool,
    /// Only show what would be done.
    pub dry_run: bool,
}

/// What happens to one file of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was not there.
    Create,
    /// It is replaced.
    Replace,
    /// It is removed.
    Remove,
    /// It is already as it should be.
    Keep,
}

/// One file of the node and what happens to it.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The file, as the node sees it.
    pub path: PathBuf,
    /// What happens to it.
    pub action: Action,
    /// The changed lines of a text; empty for a program.
    pub changes: String,
    #[serde(skip)]
    write: Option<(Vec<u8>, u32)>,
}

/// What was done, or would be done.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The files.
    pub files: Vec<Step>,
    /// The commands that were given to systemd or, without `activate`, that the user must give.
    pub commands: Vec<String>,
    /// Whether the commands were run.
    pub activated: bool,
    /// Further notes for the user.
    pub notes: Vec<String>,
}

/// The state of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As this program would install it.
    Current,
    /// There, but different.
    Different,
    /// Not there.
    Missing,
}

/// One part of the installation.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// The file, as the node sees it.
    pub path: PathBuf,
    /// How it is.
    pub state: State,
}

/// What is installed on a node.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Whether an installation is recorded.
    pub installed: bool,
    /// Its parts.
    pub parts: Vec<Part>,
}

/// Installs Vellum on a node, or upgrades it.
///
/// Errors: `Invalid` if the configuration is not understood or names another snapshotter (then
/// nothing has been touched), `Io`. What was done before an error is recorded and can be undone.
pub fn install(options: &InstallOptions) -> Result<Report> {
    let tree = Tree::at(&options.host_root)?;
    let old = Record::read(&tree)?;
    let mut steps = Vec::new();
    let program = options.bin_dir.join("vellum");
    steps.push(wanted_file(&tree, &program, tree::own_program()?, 0o755)?);
    let units = systemd::units(&program);
    for (name, text) in units {
        steps.push(wanted_file(
            &tree,
            &options.unit_dir.join(name),
            text.into(),
            0o644,
        )?);
    }
    let mut notes = Vec::new();
    let mut record = Record {
        program,
        unit_dir: options.unit_dir.clone(),
        config: None,
        pending: Vec::new(),
    };
    // Commands that an earlier install could not or should not run are still pending.
    let untold = old.as_ref().map_or(Vec::new(), |old| old.pending.clone());
    let mut restart = false;
    if let Some(path) = &options.config {
        let wanted = Wanted {
            root: Some(store_root(&tree)?),
            ..options.wanted.clone()
        };
        let edit = record::plan_edit(&tree, path, &wanted, old.as_ref())?;
        let step = text_step(&tree, &edit.file, edit.written.clone().into_bytes())?;
        restart = step.action != Action::Keep;
        if edit.disables_cri && options.wanted.cri {
            notes.push(format!(
                "{} disables the plugin cri: the kubelet can't use this containerd, with or without Vellum",
                path.display()
            ));
        }
        if edit.may_be_overruled {
            notes.push(format!(
                "{} imports other files, and containerd 1.x takes a plugin's whole section from the last one: `containerd config dump` shows the result",
                path.display()
            ));
        }
        if let Some(version) = edit.unknown_version {
            notes.push(unknown_version(path, version));
        }
        steps.push(step);
        record.config = Some(edit);
    } else {
        record.config = old.and_then(|old| old.config);
    }
    if restart {
        notes.push("existing containers keep their snapshotter; new ones get Vellum's".into());
    }
    let changed = steps.iter().any(|step| step.action != Action::Keep);
    record.pending = match changed || !untold.is_empty() {
        true => systemd::after_install(restart || systemd::restarts_containerd(&untold)),
        false => Vec::new(),
    };
    // A user who was told before what to do by hand is not told again.
    let commands = match changed || options.activate {
        true => record.pending.clone(),
        false => Vec::new(),
    };
    if !options.dry_run {
        // The record that undoes the edit is written before the edit.
        record.write(&tree)?;
        perform(&tree, &steps)?;
    }
    let report = finish(
        options.activate,
        options.dry_run,
        &tree,
        steps,
        commands,
        notes,
    )?;
    if report.activated && !record.pending.is_empty() {
        record.pending.clear();
        record.write(&tree)?;
    }
    Ok(report)
}

/// Returns the path of the node's store: from the unit's environment or the settings, else the
/// usual one.
///
/// Errors: `Invalid` if the settings can't be understood; the server would not start with them
/// either.
fn store_root(tree: &Tree) -> Result<String> {
    let text = |path: &Path| -> Result<String> {
        let bytes = tree.read(path)?.unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| unreadable(path, &"it is not UTF-8"))
    };
    let environment = text(Path::new(systemd::ENVIRONMENT_FILE))?;
    let named = environment
        .lines()
        .filter_map(|line| line.trim().strip_prefix("VELLUM_ROOT="))
        .next_back();
    if let Some(root) = named {
        return Ok(root.trim_matches(['"', '\'']).into());
    }
    let path = Path::new(Surroundings::SYSTEM_FILE);
    let settings: Partial = toml::from_str(&text(path)?).map_err(|e| unreadable(path, &e))?;
    let root = settings.root.unwrap_or(Surroundings::SYSTEM_ROOT.into());
    match root.to_str() {
        Some(text) => Ok(text.into()),
        None => Err(unreadable(path, &"the store's path is not UTF-8")),
    }
}

/// Returns the note about a configuration whose version is newer than this program.
fn unknown_version(path: &Path, version: i64) -> String {
    format!(
        "{} has version {version}, which is newer than this Vellum: only settings known from version 4 were changed; `containerd config dump` shows what containerd makes of them",
        path.display()
    )
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Invalid {
        what: format!("{} of the node: {why}", path.display()),
        hint: Some("the server can't start with it: repair it first".into()),
    }
}

/// Removes from a node what [`install`] put there. Images and layers in the store stay.
///
/// Errors: `Invalid` if nothing is recorded, or the configuration can't be read any more.
pub fn uninstall(host_root: &Path, activate: bool, dry_run: bool) -> Result<Report> {
    let tree = Tree::at(host_root)?;
    let Some(record) = Record::read(&tree)? else {
        return Err(Error::Invalid {
            what: format!("{RECORD_DIR} has no record: nothing is installed here"),
            hint: Some("`vellum node status` shows what is there".into()),
        });
    };
    let mut steps = Vec::new();
    let mut notes = Vec::new();
    let mut restart = false;
    if let Some(edit) = &record.config {
        let step = match record::plan_undo(&tree, edit)? {
            Some(text) => text_step(&tree, &edit.file, text.into_bytes())?,
            None => removal(&tree, &edit.file)?,
        };
        restart = step.action != Action::Keep;
        steps.push(step);
        if let Some(text) = record::plan_undo_taken_over(&tree, edit)? {
            steps.push(text_step(&tree, &edit.config, text.into_bytes())?);
            restart = true;
        }
        if let Some(version) = record::unknown_version(&tree, edit)? {
            notes.push(unknown_version(&edit.config, version));
        }
        notes.push("containerd's images and layers stay in Vellum's store, and are used again after the next install".into());
    }
    for (name, text) in systemd::units(&record.program) {
        let path = record.unit_dir.join(name);
        match tree.read(&path)? {
            Some(found) if found != text.as_bytes() => {
                notes.push(format!(
                    "{} was changed, or belongs to another version",
                    path.display()
                ));
                steps.push(removal(&tree, &path)?);
            }
            _ => steps.push(removal(&tree, &path)?),
        }
    }
    steps.push(removal(&tree, &record.program)?);
    let commands = systemd::around_uninstall(restart);
    let mut run = Vec::new();
    if activate && !dry_run {
        // A unit can only be stopped while its file exists.
        run = systemd::run(&tree, &commands[..1])?;
    }
    if !dry_run {
        perform(&tree, &steps)?;
        Record::remove(&tree)?;
    }
    let report = finish(
        activate,
        dry_run,
        &tree,
        steps,
        commands[1..].to_vec(),
        notes,
    )?;
    run.extend(report.commands);
    if !activate || dry_run {
        run.insert(0, commands[0].clone());
    }
    Ok(Report {
        commands: run,
        ..report
    })
}

/// Compares what is installed on a node with what this program would install.
pub fn status(options: &InstallOptions) -> Result<Status> {
    let tree = Tree::at(&options.host_root)?;
    let record = Record::read(&tree)?;
    let (program, unit_dir) = match &record {
        Some(record) => (record.program.clone(), record.unit_dir.clone()),
        None => (options.bin_dir.join("vellum"), options.unit_dir.clone()),
    };
    let part = |path: PathBuf, wanted: &[u8]| -> Result<Part> {
        let state = match tree.read(&path)? {
            None => State::Missing,
            Some(found) if found == wanted => State::Current,
            Some(_) => State::Different,
        };
        Ok(Part { path, state })
    };
    let mut parts = vec![part(program.clone(), &tree::own_program()?)?];
    for (name, text) in systemd::units(&program) {
        parts.push(part(unit_dir.join(name), text.as_bytes())?);
    }
    if let Some(edit) = record.as_ref().and_then(|record| record.config.as_ref()) {
        parts.push(Part {
            path: edit.file.clone(),
            state: record::state(&tree, edit)?,
        });
    } else if let Some(path) = &options.config {
        parts.push(Part {
            path: path.clone(),
            state: match tree.read(path)? {
                None => State::Missing,
                Some(_) => State::Different,
            },
        });
    }
    Ok(Status {
        installed: record.is_some(),
        parts,
    })
}

fn finish(
    activate: bool,
    dry_run: bool,
    tree: &Tree,
    files: Vec<Step>,
    commands: Vec<String>,
    notes: Vec<String>,
) -> Result<Report> {
    let activated = activate && !dry_run;
    let commands = match activated {
        true => systemd::run(tree, &commands)?,
        false => commands,
    };
    Ok(Report {
        dry_run,
        files,
        commands,
        activated,
        notes,
    })
}

fn wanted_file(tree: &Tree, path: &Path, bytes: Vec<u8>, mode: u32) -> Result<Step> {
    let found = tree.read(path)?;
    let action = match &found {
        None => Action::Create,
        Some(old) if *old == bytes => Action::Keep,
        Some(_) => Action::Replace,
    };
    Ok(Step {
        path: path.into(),
        action,
        changes: String::new(),
        write: (action != Action::Keep).then_some((bytes, mode)),
    })
}

fn text_step(tree: &Tree, path: &Path, bytes: Vec<u8>) -> Result<Step> {
    let old = tree.read(path)?.unwrap_or_default();
    let changes = compare::changes(
        &String::from_utf8_lossy(&old),
        &String::from_utf8_lossy(&bytes),
    );
    Ok(Step {
        changes,
        ..wanted_file(tree, path, bytes, 0o644)?
    })
}

fn removal(tree: &Tree, path: &Path) -> Result<Step> {
    let action = match tree.read(path)? {
        Some(_) => Action::Remove,
        None => Action::Keep,
    };
    Ok(Step {
        path: path.into(),
        action,
        changes: String::new(),
        write: None,
    })
}

fn perform(tree: &Tree, steps: &[Step]) -> Result<()> {
    for step in steps {
        match (&step.write, step.action) {
            (Some((bytes, mode)), _) => tree.write(&step.path, bytes, *mode)?,
            (None, Action::Remove) => drop(tree.remove(&step.path)?),
            (None, _) => {}
        }
    }
    Ok(())
}

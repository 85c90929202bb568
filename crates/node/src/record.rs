//! The record of what was done to a node's configuration, and how it is undone.
//!
//! Three files in [`crate::RECORD_DIR`]: `node.json`, `config.before` (absent if there was no file)
//! and `config.written`. The undo compares the file with what was written. If they are the same, it
//! restores the earlier file; else it removes only Vellum's settings.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::containerd::{self, Wanted};
use crate::tree::Tree;
use crate::{DROP_IN, RECORD_DIR, State};
use vellum_service::error::{Error, Result};

/// The record of an installation.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The program's path on the node.
    pub program: PathBuf,
    /// The units' directory on the node.
    pub unit_dir: PathBuf,
    /// The edit of containerd's configuration.
    pub config: Option<Edit>,
    /// The systemd commands that are still to be run; this program has not run them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
}

/// An edit of one file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Edit {
    /// The configuration.
    pub config: PathBuf,
    /// The file that is written: the configuration, or one that it imports.
    pub file: PathBuf,
    /// The settings.
    pub wanted: Wanted,
    /// The file's text before the edit. `None`: there was no file.
    #[serde(skip)]
    pub before: Option<String>,
    /// The file's text as it was written.
    #[serde(skip)]
    pub written: String,
    /// Whether the configuration disables the kubelet's interface.
    #[serde(skip)]
    pub disables_cri: bool,
    /// Whether a file that it imports may replace the settings.
    #[serde(skip)]
    pub may_be_overruled: bool,
    /// The configuration's version, if it is later than those that this program knows.
    #[serde(skip)]
    pub unknown_version: Option<i64>,
}

fn place(name: &str) -> PathBuf {
    Path::new(RECORD_DIR).join(name)
}

fn text(tree: &Tree, path: &Path) -> Result<Option<String>> {
    let Some(bytes) = tree.read(path)? else {
        return Ok(None);
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Error::Invalid {
            what: format!("{} is not UTF-8", path.display()),
            hint: Some("containerd can't start with it either; repair it first".into()),
        })
}

impl Record {
    /// Reads the record of a node, `None` if there is none.
    pub fn read(tree: &Tree) -> Result<Option<Self>> {
        let path = place("node.json");
        let Some(json) = text(tree, &path)? else {
            return Ok(None);
        };
        let mut record: Self = serde_json::from_str(&json).map_err(|e| Error::Invalid {
            what: format!("{} can't be read: {e}", path.display()),
            hint: Some("perhaps a newer Vellum wrote it: use that one".into()),
        })?;
        if let Some(edit) = &mut record.config {
            edit.before = text(tree, &place("config.before"))?;
            edit.written = text(tree, &place("config.written"))?.unwrap_or_default();
        }
        Ok(Some(record))
    }

    /// Writes it, after the files it refers to.
    pub fn write(&self, tree: &Tree) -> Result<()> {
        if let Some(edit) = &self.config {
            match &edit.before {
                Some(before) => tree.write(&place("config.before"), before.as_bytes(), 0o600)?,
                None => drop(tree.remove(&place("config.before"))?),
            }
            tree.write(&place("config.written"), edit.written.as_bytes(), 0o600)?;
        }
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::io("write", place("node.json"))(e.into()))?;
        tree.write(&place("node.json"), &json, 0o600)
    }

    /// Removes it; Vellum's settings next to it stay.
    pub fn remove(tree: &Tree) -> Result<()> {
        for name in ["node.json", "config.written", "config.before"] {
            tree.remove(&place(name))?;
        }
        // The second may hold the administrator's settings.
        for dir in Path::new(RECORD_DIR).ancestors().take(2) {
            tree.remove_empty_dir(dir)?;
        }
        Ok(())
    }
}

/// Plans the edit of the configuration at `config`. An earlier edit is reverted first, so that the
/// record of an upgrade still leads back to the original.
pub fn plan_edit(
    tree: &Tree,
    config: &Path,
    wanted: &Wanted,
    old: Option<&Record>,
) -> Result<Edit> {
    let old = old.and_then(|old| old.config.as_ref());
    if let Some(old) = old
        && old.config != config
    {
        return Err(Error::Invalid {
            what: format!("Vellum is already installed for {}", old.config.display()),
            hint: Some("run `vellum node uninstall` first".into()),
        });
    }
    let found = text(tree, config)?;
    let main = match old {
        Some(old) if old.file == config => plan_undo(tree, old)?,
        _ => found,
    };
    let main_text = main.clone().unwrap_or_default();
    let parsed = containerd::parse(&main_text, config)?;
    let disables_cri = parsed.disables_cri();
    let may_be_overruled = parsed.may_be_overruled();
    let unknown_version = parsed.is_unknown_to_us();
    let edit = |file: PathBuf, before: Option<String>, written: String| Edit {
        config: config.into(),
        file,
        wanted: wanted.clone(),
        before,
        written,
        disables_cri,
        may_be_overruled,
        unknown_version,
    };
    if let Some(dir) = containerd::imported_dir(&parsed) {
        let file = dir.join(DROP_IN);
        let before = match old {
            Some(old) if old.file == file => old.before.clone(),
            _ => text(tree, &file)?,
        };
        let written = containerd::drop_in(&main_text, config, wanted)?;
        return Ok(edit(file, before, written));
    }
    if main_text.contains("DO NOT EDIT") {
        return Err(Error::Invalid {
            what: format!("{} is written by another program, which would overwrite the edit", config.display()),
            hint: Some("add the lines of contrib/containerd to that program's template, and use --no-containerd here".into()),
        });
    }
    let written = containerd::apply(&main_text, config, wanted)?;
    Ok(edit(config.into(), main, written))
}

/// Returns the text that the undo leaves in the file; `None` if the file is removed.
pub fn plan_undo(tree: &Tree, edit: &Edit) -> Result<Option<String>> {
    let now = text(tree, &edit.file)?;
    let Some(now) = now else {
        return Ok(None);
    };
    if now == edit.written {
        return Ok(edit.before.clone());
    }
    // A file of ours that others added to: our settings go, theirs stay.
    let before = edit.before.clone().unwrap_or_default();
    containerd::revert(&now, &before, &edit.file, &edit.wanted).map(Some)
}

/// Returns the configuration's text without the settings it took over from our file, which it
/// imports. `None`: it has none, or another program will rewrite it.
pub fn plan_undo_taken_over(tree: &Tree, edit: &Edit) -> Result<Option<String>> {
    if edit.file == edit.config {
        return Ok(None);
    }
    match text(tree, &edit.config)? {
        Some(now) if !now.contains("DO NOT EDIT") => {
            containerd::takes_over(&now, &edit.config, &edit.wanted)
        }
        _ => Ok(None),
    }
}

/// Returns the version of the configuration, if the file can be read and the version is later than
/// those that this program knows.
pub fn unknown_version(tree: &Tree, edit: &Edit) -> Result<Option<i64>> {
    let found = text(tree, &edit.config)?.map(|now| containerd::parse(&now, &edit.config));
    Ok(found.and_then(|found| found.ok()?.is_unknown_to_us()))
}

/// Compares the file with what the edit makes of it.
pub fn state(tree: &Tree, edit: &Edit) -> Result<State> {
    Ok(match text(tree, &edit.file)? {
        None => State::Missing,
        Some(now) if now == edit.written => State::Current,
        Some(now) if containerd::is_applied(&now, &edit.file, &edit.wanted) => State::Current,
        Some(_) => State::Different,
    })
}

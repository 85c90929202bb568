//! Checks that every error has a documented remedy: compares the variants of the crates' error
//! enums with the rows of `docs/errors.md`.
//!
//! Sources are read as text: an error is a variant below `#[error("...")]` in a `pub enum` whose
//! name ends in `Error` or `Refusal`. A transparent variant passes on another error, which has its
//! own row.

use anyhow::Context;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Crates whose errors users see.
const ROOMS: [&str; 9] = [
    "sys",
    "union",
    "fuse",
    "image",
    "store",
    "overlay",
    "service",
    "snapshotter",
    "graphdriver",
];

/// Returns what is missing on either side. `files` are the tree's, relative to `root`.
pub fn check(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let page = "docs/errors.md";
    let text = std::fs::read_to_string(root.join(page)).context(page)?;
    let rows = rows_in(&text);
    let mut errors = BTreeSet::new();
    for file in files {
        let room = ROOMS
            .iter()
            .find(|room| file.starts_with(format!("crates/{room}/src")));
        let (Some(room), Some("rs")) = (room, file.extension().and_then(|e| e.to_str())) else {
            continue;
        };
        let Ok(source) = std::fs::read_to_string(root.join(file)) else {
            continue; // deleted, but the deletion is not committed yet
        };
        let names = errors_in(&source).into_iter();
        errors.extend(names.map(|name| format!("{room}::{name}")));
    }
    let missing = errors
        .difference(&rows)
        .map(|e| format!("{page}: no row for {e}"));
    let stale = rows
        .difference(&errors)
        .map(|e| format!("{page}: there is no error {e}"));
    Ok(missing.chain(stale).collect())
}

/// Returns the text in backticks in the first cell of each table row.
fn rows_in(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Returns `Enum::Variant` for each error with its own text.
fn errors_in(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    let mut described = false;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for line in source.lines() {
        let word = |rest: &str| -> String { rest.chars().take_while(|&c| is_word(c)).collect() };
        if let Some(rest) = line.strip_prefix("pub enum ") {
            let name = word(rest);
            open = (name.ends_with("Error") || name.ends_with("Refusal")).then_some(name);
        } else if line == "}" {
            open = None;
        } else if let (Some(name), Some(inner)) = (&open, line.strip_prefix("    ")) {
            if inner.starts_with("#[error(") {
                described = !inner.contains("transparent");
            } else if inner.starts_with(char::is_uppercase) && std::mem::take(&mut described) {
                found.push(format!("{name}::{}", word(inner)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_variants_with_a_text_of_their_own() {
        let source = "pub enum Error {\n    /// One.\n    #[error(\n        \"a {b}\"\n    )]\n    One {\n        /// Field.\n        b: u8,\n    },\n    \
                      #[error(transparent)]\n    Two(#[from] X),\n    #[error(\"c\")]\n    Three,\n}\npub enum Kind {\n    #[error(\"no\")]\n    Four,\n}\n";
        assert_eq!(errors_in(source), ["Error::One", "Error::Three"]);
        let rows = rows_in("| `a::Error::One` | x |\n|---|\n| b | `c` |\n");
        assert_eq!(rows.into_iter().collect::<Vec<_>>(), ["a::Error::One"]);
    }
}

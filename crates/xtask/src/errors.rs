//! Checks that every error has a documented remedy and is provoked by a test: compares the errors
//! of the crates with the rows of `docs/errors.md`, and the tests that its last table names with
//! those that exist.
//!
//! Sources are read as text. An error is a variant below `#[error("...")]` in a `pub enum`, or a
//! `pub struct` below one, or a type with an `impl std::error::Error`. A transparent variant passes
//! on another error, which has its own row.

use anyhow::Context;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::promises::{Claims, row_of};

/// Crates whose errors users see.
const ROOMS: [&str; 11] = [
    "format",
    "sys",
    "union",
    "fuse",
    "image",
    "store",
    "overlay",
    "service",
    "node",
    "snapshotter",
    "graphdriver",
];

/// The heading above the table of tests, the page's last.
const TESTS: &str = "\n## Tests\n";

/// The errors on the page.
pub struct Errors {
    /// How many have a row.
    pub count: usize,
    /// The problems found.
    pub wrong: Vec<String>,
}

/// Compares page, sources and the names of all tests. `files` are the tree's, relative to `root`.
pub fn check(root: &Path, files: &[PathBuf], tests: &BTreeSet<String>) -> anyhow::Result<Errors> {
    let page = "docs/errors.md";
    let text = std::fs::read_to_string(root.join(page)).context(page)?;
    let rows = page_of(&text);
    let documented: BTreeSet<String> = rows.claims.iter().cloned().collect();
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
        .difference(&documented)
        .map(|e| format!("{page}: no row for {e}"));
    let stale = documented
        .difference(&errors)
        .map(|e| format!("{page}: there is no error {e}"));
    let untested = rows.wrong("error", tests).into_iter();
    let untested = untested.map(|what| format!("{page}: {what}"));
    Ok(Errors {
        count: documented.len(),
        wrong: missing.chain(stale).chain(untested).collect(),
    })
}

/// Returns the errors that have a row with a remedy, and those in the table of tests.
fn page_of(text: &str) -> Claims<String> {
    let (remedies, tests) = text.split_once(TESTS).unwrap_or((text, ""));
    let tests = tests.lines().filter_map(row_of);
    let tests = tests.filter_map(|(error, names)| Some((name_in(error)?.to_owned(), names)));
    Claims {
        claims: remedies
            .lines()
            .filter_map(|line| name_in(line.strip_prefix("| ")?))
            .map(str::to_owned)
            .collect(),
        rows: tests.collect(),
    }
}

/// Returns what is in the backticks at the start of `cell`.
fn name_in(cell: &str) -> Option<&str> {
    let (name, _) = cell.strip_prefix('`')?.split_once('`')?;
    Some(name)
}

/// Returns `Enum::Variant` or `Struct` for each error with its own text.
fn errors_in(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    let mut described = false;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for line in source.lines() {
        let word = |rest: &str| -> String { rest.chars().take_while(|&c| is_word(c)).collect() };
        if let Some(rest) = line.strip_prefix("pub enum ") {
            open = Some(word(rest));
            described = false;
        } else if let Some(rest) = line.strip_prefix("impl std::error::Error for ") {
            found.push(word(rest));
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            if std::mem::take(&mut described) {
                found.push(word(rest));
            }
        } else if line == "}" {
            open = None;
        } else if line.starts_with("#[error(") {
            described = !line.contains("transparent");
        } else if line.starts_with("struct ") {
            described = false;
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
    fn errors_are_variants_and_structs_with_a_text_of_their_own() {
        let source = "pub enum Error {\n    /// One.\n    #[error(\n        \"a {b}\"\n    )]\n    One {\n        /// Field.\n        b: u8,\n    },\n    \
                      #[error(transparent)]\n    Two(#[from] X),\n    #[error(\"c\")]\n    Three,\n}\npub enum Kind {\n    Four,\n}\n\
                      #[error(\"d\")]\npub struct Bad(u8);\n#[error(\"e\")]\nstruct Own;\npub struct Good;\n\
                      impl std::error::Error for Manual {}\n";
        assert_eq!(
            errors_in(source),
            ["Error::One", "Error::Three", "Bad", "Manual"]
        );
    }

    #[test]
    fn an_error_needs_a_remedy_and_a_test_that_exists() {
        let page = |rows: &str| {
            let text = format!(
                "| `a::Error::One` | x | y |\n|---|\n| b | `c` |\n| `a::Two` | x | y |\n{TESTS}{rows}"
            );
            let tests = BTreeSet::from(["one".to_owned(), "two".to_owned()]);
            page_of(&text).wrong("error", &tests)
        };
        let right = "\n| error | tests |\n|---|---|\n| `a::Error::One` | `m::one` |\n| `a::Two` | `one`, `two` |\n";
        assert_eq!(page(right), [""; 0]);
        let named = [
            "error a::Error::One: no test is called three",
            "error a::Two has no test",
            "a row of tests for error a::Four, which doesn't exist",
        ];
        assert_eq!(
            page("| `a::Error::One` | `three` |\n| `a::Four` | `one` |\n"),
            named
        );
    }
}

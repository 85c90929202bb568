//! Checks the claims of the documents against the tree.
//!
//! * Every promise in `docs/semantics/` and every rule of `docs/security.md` names tests that exist
//!   ([`crate::promises`]).
//! * Every relative link in every Markdown file leads to a file.
//! * Every path in backticks that begins with one of the tree's top directories exists. With `*` at
//!   its end, a path with that beginning exists.
//! * Every error has a row in `docs/errors.md` and a test there that exists, and every row has an
//!   error ([`crate::errors`]).
//! * No file names a place outside the repository.
//! * Documents and comments end by column 100 ([`crate::columns`]).
//! * No text has words that make a reader stumble ([`crate::words`]).
//!
//! Sources are not parsed: a test is `fn NAME(` somewhere under `crates/`, with `#[test]` (or a
//! test macro that lists the name) above it.

use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Checks everything, and lists all problems before it fails.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let files = tracked_files(root)?;
    let mut wrong = Vec::new();
    let mut tests = BTreeSet::new();
    for file in &files {
        let Ok(bytes) = std::fs::read(root.join(file)) else {
            continue; // deleted, but the deletion is not committed yet
        };
        let text = String::from_utf8_lossy(&bytes);
        for place in outside_places(&text) {
            wrong.push(format!("{}: names {place:?}", file.display()));
        }
        for line in crate::columns::long_lines(file, &text) {
            wrong.push(format!("{}:{line}: ends beyond column 100", file.display()));
        }
        for (line, what) in crate::words::stumbles(file, &text) {
            wrong.push(format!("{}:{line}: {what}", file.display()));
        }
        if file.extension().is_some_and(|extension| extension == "rs") {
            tests.extend(tests_in(&text));
        }
        if file.extension().is_some_and(|extension| extension == "md") {
            for path in paths_in(&text) {
                let there = match path.strip_suffix('*') {
                    Some(start) => files
                        .iter()
                        .any(|file| file.to_string_lossy().starts_with(start)),
                    None => root.join(&path).exists(),
                };
                if !there {
                    wrong.push(format!("{}: there is no {path}", file.display()));
                }
            }
            for link in links_in(&text) {
                let target = link.split('#').next().unwrap_or_default();
                let dir = file.parent().unwrap_or(Path::new(""));
                if !target.is_empty() && !root.join(dir).join(target).exists() {
                    wrong.push(format!("{}: the link {link} leads nowhere", file.display()));
                }
            }
        }
    }
    let promises = crate::promises::check(root, &files, &tests)?;
    wrong.extend(promises.wrong);
    let errors = crate::errors::check(root, &files, &tests)?;
    wrong.extend(errors.wrong);
    for line in &wrong {
        eprintln!("{line}");
    }
    if !wrong.is_empty() {
        bail!("{} claims in the documents are false", wrong.len());
    }
    println!(
        "documents: {} promises and {} errors with tests, {} tests, {} files",
        promises.count,
        errors.count,
        tests.len(),
        files.len()
    );
    Ok(())
}

fn tracked_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .current_dir(root)
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .output()
        .context("cannot start git")?;
    if !output.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect())
}

/// Places that exist only on a developer's machine. Each is written in two parts, so that this file
/// passes.
fn outside_places(text: &str) -> Vec<&'static str> {
    const PLACES: [&str; 4] = [
        concat!("/wo", "rk/"),
        concat!("../sha", "red"),
        concat!(".lib", "rary/"),
        concat!("/ho", "me/user/"),
    ];
    PLACES
        .into_iter()
        .filter(|place| text.contains(place))
        .collect()
}

/// Returns the names of functions that follow a `#[test]` attribute, with only other attributes and
/// comments in between. In a file with its own `main` (tests without the usual harness), returns
/// the functions whose names it has in quotes.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        }
        let declaration = line.trim_start_matches("#[test]").trim_start();
        let declaration = declaration.strip_prefix("pub ").unwrap_or(declaration);
        let declaration = declaration.strip_prefix("async ").unwrap_or(declaration);
        if let Some(rest) = declaration.strip_prefix("fn ") {
            if marked {
                let end = rest
                    .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .unwrap_or(rest.len());
                names.push(rest[..end].to_owned());
            }
            marked = false;
        }
    }
    if text.contains("\nfn main() {") {
        let quoted = text.split('"').skip(1).step_by(2);
        let own =
            quoted.filter(|name| !name.is_empty() && text.contains(&format!("\nfn {name}()")));
        names.extend(own.map(str::to_string));
    }
    names
}

/// Returns the targets of `[text](target)` outside code, except those with a scheme.
fn links_in(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second part is between backticks.
        for prose in line.split('`').step_by(2) {
            for part in prose.split("](").skip(1) {
                if let Some((target, _)) = part.split_once(')')
                    && !target.contains("://")
                    && !target.starts_with("mailto:")
                {
                    links.push(target.to_owned());
                }
            }
        }
    }
    links
}

/// Returns the paths in backticks that begin with a top directory of the tree and are only a path.
fn paths_in(text: &str) -> Vec<String> {
    const TOP: [&str; 6] = [
        "contrib/", "crates/", "docs/", "scripts/", "bench/", "demo/",
    ];
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|code| TOP.iter().any(|top| code.starts_with(top)))
        .filter(|code| !code.contains([' ', '<', '{']))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_below_their_attribute_only() {
        let own_main =
            "\nfn main() {\n    run(\"one\", one); say(\"two\");\n}\nfn one() {}\nfn three() {}\n";
        assert_eq!(tests_in(own_main), ["one"]);
        let text = "fn helper() {}\n#[test]\n#[cfg(unix)]\nfn real() {}\nfn other() {}\n#[test] fn short() {}\n";
        assert_eq!(tests_in(text), ["real", "short"]);
    }

    #[test]
    fn paths_begin_with_a_top_directory() {
        let text = "`crates/a/b.rs` `docs/x*` `crates/<room>` `demo/run.sh IMAGE` crates/plain `other/x`\n";
        assert_eq!(paths_in(text), ["crates/a/b.rs", "docs/x*"]);
    }

    #[test]
    fn links_in_code_and_to_the_web_are_left_alone() {
        let text = "[a](b.md#c) `[x](y)` [w](https://e.org)\n```\n[in](fence)\n```\n";
        assert_eq!(links_in(text), ["b.md#c"]);
    }
}

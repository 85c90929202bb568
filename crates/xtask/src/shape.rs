//! The shape of the tree in numbers: files and lines of each crate, and import cycles inside it.
//!
//! A cycle is a set of sibling modules (the files of one directory, each with its own folder) that
//! need each other: none of them can be read, moved or tested alone. A module and its own folder
//! count as one. Sources are read as text: an import is a path that begins with `crate::` or
//! `super::`, anywhere but in a comment. Text after `#[cfg(test)]` is ignored.

use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A crate, and what was read of it.
struct Room {
    name: String,
    /// By module path (`overlay::parse`): the non-test text.
    modules: BTreeMap<Vec<String>, String>,
    lines: usize,
    tests: usize,
}

/// Prints one row for each crate, and its cycles.
pub fn run(root: &Path) -> anyhow::Result<()> {
    println!("| room | files | lines | lines of tests | cycles |\n|---|---:|---:|---:|---:|");
    let mut told = Vec::new();
    let mut dirs: Vec<_> = std::fs::read_dir(root.join("crates"))?
        .collect::<Result<_, _>>()
        .context("crates")?;
    dirs.sort_by_key(std::fs::DirEntry::file_name);
    for dir in dirs {
        let name = dir.file_name().to_string_lossy().into_owned();
        let room = read(name, &dir.path())?;
        let cycles = cycles(&room.modules);
        println!(
            "| {} | {} | {} | {} | {} |",
            room.name,
            room.modules.len(),
            room.lines,
            room.tests,
            cycles.len()
        );
        told.extend(
            cycles
                .iter()
                .map(|cycle| format!("{}: {}", room.name, cycle.join(", "))),
        );
    }
    println!("\ncycles: {}", told.len());
    for cycle in told {
        println!("* {cycle}");
    }
    Ok(())
}

fn read(name: String, dir: &Path) -> anyhow::Result<Room> {
    let mut room = Room {
        name,
        modules: BTreeMap::new(),
        lines: 0,
        tests: 0,
    };
    let mut todo = vec![(dir.join("src"), Vec::new())];
    while let Some((dir, path)) = todo.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let mut path = path.clone();
            if entry.file_type()?.is_dir() {
                path.push(file);
                todo.push((entry.path(), path));
                continue;
            }
            let Some(stem) = file.strip_suffix(".rs") else {
                continue;
            };
            let text = std::fs::read_to_string(entry.path())?;
            let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
            let all = text.lines().count();
            if stem == "tests" || stem.ends_with("_tests") {
                room.tests += all;
                continue;
            }
            let lines = text[..end].lines().count();
            room.lines += lines;
            room.tests += all - lines;
            if !["lib", "main"].contains(&stem) {
                path.push(stem.to_owned());
                let code = text[..end].lines();
                let code = code.filter(|line| !line.trim_start().starts_with("//"));
                room.modules
                    .insert(path, code.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    Ok(room)
}

/// Returns the cycles among sibling modules, for every directory.
fn cycles(modules: &BTreeMap<Vec<String>, String>) -> Vec<Vec<String>> {
    let folders: BTreeSet<&[String]> = modules.keys().map(|path| &path[..path.len() - 1]).collect();
    let mut found = Vec::new();
    for folder in folders {
        let mut needs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (path, text) in modules.iter().filter(|(path, _)| path.starts_with(folder)) {
            let Some(from) = path.get(folder.len()) else {
                continue; // the folder's own file
            };
            let to = needs.entry(from).or_default();
            let imported = imports(text, path).filter(|target| target.starts_with(folder));
            for target in imported {
                let neighbour = target.get(folder.len()).and_then(|name| {
                    let mut whole = folder.to_vec();
                    whole.push(name.clone());
                    modules.get_key_value(&whole)
                });
                if let Some((whole, _)) = neighbour
                    && let Some(name) = whole.last()
                    && name != from
                {
                    to.insert(name);
                }
            }
        }
        found.extend(connected(&needs).into_iter().map(|cycle| {
            let prefix = folder.join("::");
            let named = cycle.iter().map(|name| match prefix.as_str() {
                "" => (*name).to_owned(),
                prefix => format!("{prefix}::{name}"),
            });
            named.collect()
        }));
    }
    found
}

/// Returns the paths in its own crate that `text`, the source of the module `path`, names.
fn imports<'a>(text: &'a str, path: &'a [String]) -> impl Iterator<Item = Vec<String>> + 'a {
    let starts = text
        .match_indices("crate::")
        .chain(text.match_indices("super::"));
    starts.flat_map(move |(at, word)| {
        let before = text[..at].chars().next_back();
        // `vellum_x::crate::` is not a path, and `super::super::` is found at its first word.
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            return Vec::new();
        }
        let mut base: Vec<String> = Vec::new();
        let mut rest = &text[at..];
        if word == "super::" {
            base = path[..path.len() - 1].to_vec();
            rest = &rest["super::".len()..];
            while let Some(higher) = rest.strip_prefix("super::") {
                base.pop();
                rest = higher;
            }
        } else {
            rest = &rest["crate::".len()..];
        }
        expand(&base, rest)
    })
}

/// Expands `a::{b, c::d}` after `base` to the paths it stands for. The depth below a module does
/// not matter.
fn expand(base: &[String], rest: &str) -> Vec<Vec<String>> {
    let word_end = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(rest.len());
    let (word, behind) = rest.split_at(word_end);
    if word.is_empty() {
        let Some(inner) = behind.strip_prefix('{') else {
            return vec![base.to_vec()];
        };
        return parts(inner)
            .into_iter()
            .flat_map(|part| expand(base, part.trim()))
            .collect();
    }
    let mut path = base.to_vec();
    path.push(word.to_owned());
    match behind.strip_prefix("::") {
        Some(more) => expand(&path, more),
        None => vec![path],
    }
}

/// Returns the parts between the commas of a list, up to its closing brace.
fn parts(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&list[start..at]);
                return parts;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// Returns the sets of two or more that reach each other.
fn connected<'a>(needs: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reach = |from: &'a str| {
        let mut seen = BTreeSet::new();
        let mut todo = vec![from];
        while let Some(at) = todo.pop() {
            for next in needs.get(at).into_iter().flatten() {
                if seen.insert(*next) {
                    todo.push(next);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        needs.keys().map(|name| (*name, reach(name))).collect();
    let mut done = BTreeSet::new();
    let mut found = Vec::new();
    for (name, there) in &reached {
        if !there.contains(name) || done.contains(name) {
            continue;
        }
        let back = |other: &&&str| reached.get(**other).is_some_and(|all| all.contains(name));
        let cycle: Vec<&str> = there.iter().filter(back).copied().collect();
        done.extend(cycle.iter().copied());
        found.push(cycle);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> BTreeMap<Vec<String>, String> {
        let path = |name: &str| name.split("::").map(str::to_owned).collect();
        let files = files.iter();
        files
            .map(|(name, text)| (path(name), (*text).to_owned()))
            .collect()
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expect: &[&[&str]]) {
        assert_eq!(cycles(&tree(files)), expect);
    }

    #[test]
    fn cycles_are_found_among_siblings() {
        check(&[("a", "use crate::b::X;"), ("b", "use std::fs;")], &[]);
        let three = [
            ("a", "use crate::{b::{self, Y}, d};"),
            ("b", "fn f() { super::c::g() }"),
            ("c", "crate::a::h()"),
            ("d", ""),
        ];
        check(&three, &[&["a", "b", "c"]]);
        // What a folder needs, its module needs; a module and its folder are one.
        check(
            &[
                ("a", ""),
                ("a::x", "use crate::b;"),
                ("b", "crate::a::x::f()"),
            ],
            &[&["a", "b"]],
        );
        check(&[("a", "use x::Y;"), ("a::x", "use super::Z;")], &[]);
        check(
            &[
                ("a", ""),
                ("a::x", "super::y::f()"),
                ("a::y", "use super::x::G;"),
            ],
            &[&["a::x", "a::y"]],
        );
    }
}

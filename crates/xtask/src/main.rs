//! Development tasks: `cargo run -p vellum-xtask -- TASK`.
//!
//! * `check-docs`: checks that the documents agree with the tree.
//! * `shape`: prints files, lines and import cycles of each crate.
//! * `man DIR`: writes the man pages with the command itself, since help, man pages and completions
//!   have one definition.
//!
//! A task belongs here if it must know the tree. A task that only starts programs is a script.
#![forbid(unsafe_code)]

mod check_docs;
mod columns;
mod errors;
mod promises;
mod shape;
mod words;

use anyhow::{Context, bail};
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match chore(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(arguments: &[String]) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    match arguments {
        [name] if name == "check-docs" => check_docs::run(&root),
        [name] if name == "shape" => shape::run(&root),
        [name, dir] if name == "man" => man(&root, dir),
        _ => bail!("usage: vellum-xtask check-docs | shape | man DIR"),
    }
}

fn man(root: &Path, dir: &str) -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args([
            "run",
            "--quiet",
            "--locked",
            "--package",
            "vellum-cli",
            "--",
            "man",
            dir,
        ])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the man pages were not written: {status}");
    }
    Ok(())
}

//! The vellum command on its own store, so that tests do what users do.

use super::{Home, run};
use crate::Tree;
use anyhow::Context;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The vellum command with its own store, run directory and configuration.
#[derive(Debug)]
pub struct Vellum {
    program: PathBuf,
    root: PathBuf,
    run_dir: PathBuf,
    config: PathBuf,
}

impl Vellum {
    /// Uses the command at `program`, with a store called `name` in `home`.
    ///
    /// Tests of the command's crate pass `env!("CARGO_BIN_EXE_vellum")`.
    pub fn new(program: &str, home: &Home, name: &str) -> anyhow::Result<Self> {
        let dir = home.dir(name)?;
        let config = dir.join("vellum.toml");
        std::fs::write(&config, "")?;
        Ok(Self {
            program: program.into(),
            root: dir.join("root"),
            run_dir: dir.join("run"),
            config,
        })
    }

    /// A command on this store; the caller adds the verb and its arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_remove("VELLUM_ROOT")
            .arg("--root")
            .arg(&self.root)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .arg("--config")
            .arg(&self.config);
        command
    }

    /// Runs a verb and returns its standard output; anything but success is an error with all its
    /// output.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<String> {
        run(self.command().args(arguments))
    }

    /// Loads an archive or layout under the name `tag`.
    pub fn load_as(&self, archive: &Path, tag: &str) -> anyhow::Result<()> {
        run(self
            .command()
            .args(["load", "--quiet", "--tag", tag])
            .arg(archive))?;
        Ok(())
    }

    /// Mounts a container and returns where its tree is.
    pub fn mount(&self, container: &str) -> anyhow::Result<PathBuf> {
        let printed = self.run(&["mount", container])?;
        Ok(printed
            .lines()
            .last()
            .context("mount printed no directory")?
            .into())
    }

    /// Takes a picture of an image's tree, which it mounts read-only below `home`.
    pub fn image_tree(&self, image: &str, home: &Home) -> anyhow::Result<Tree> {
        let at = home.dir("vellum-image-tree")?;
        run(self
            .command()
            .args(["mount", "--image", image, "--at"])
            .arg(&at))?;
        let tree = Tree::read(&at).with_context(|| format!("cannot read {}", at.display()));
        run(self.command().arg("umount").arg(&at))?;
        tree
    }
}

//! Real container tools, each with a store of its own: dockerd, podman, buildah, skopeo, umoci.
//!
//! Tests use them as the judges of what Vellum reads and writes. Nothing here touches the
//! machine's own stores, services or configuration: every tool gets its roots, sockets and
//! policy inside one [`Home`], which unmounts, stops and removes all of it when dropped,
//! also when the test fails. No tool is given a network.
//!
//! For a tool that is not installed the result is `None`, and the caller reports that through
//! [`crate::untested()`]. A tool that is there and fails is an error.

mod containerd;
mod dockerd;
mod home;
mod image;
mod newer;
mod odd_registry;
mod plugin;
mod registry;
mod storage;
mod vellum;

pub use containerd::{Containerd, Daemon, SNAPSHOTTER, SnapshotServer};
pub use dockerd::Dockerd;
pub use home::Home;
pub use image::small_image;
pub use newer::Newer;
pub use odd_registry::{Body, Call, Hook, OddRegistry, Reply};
pub use plugin::Plugin;
pub use registry::{Access, CuttingProxy, Registry, TokenGate};
pub use storage::{Buildah, Podman, Skopeo, Umoci};
pub use vellum::Vellum;

use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::{Command, Output};

/// Returns where `program` is on the search path, with the directories of system programs added.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Returns whether all of `programs` can be used, and if not reports so through
/// [`crate::untested()`].
#[track_caller]
pub fn available(programs: &[&str]) -> bool {
    if !crate::is_root() {
        crate::untested("real clients", "the test does not run as root");
        return false;
    }
    for program in programs {
        if find(program).is_none() {
            crate::untested(program, "not installed");
            return false;
        }
    }
    true
}

/// Runs `command` and returns its standard output without the last newline.
///
/// Errors: the program can't be started, or exits with a status other than 0; the text then
/// contains the command line, the status and both outputs.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let line = format!("{command:?}");
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("cannot start {line}"))?;
    if !status.success() {
        bail!(
            "{line} ended with {status}\n-- stdout\n{}\n-- stderr\n{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    }
    let mut text = String::from_utf8_lossy(&stdout).into_owned();
    text.truncate(text.trim_end_matches('\n').len());
    Ok(text)
}

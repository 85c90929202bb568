//! The image that tests give to the tools.

use super::{Home, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Creates the small image (busybox and the unusual layers) as a docker-archive called
/// `vellum-demo-small:latest` and returns its path.
///
/// Written by `scripts/demo-image.py` without any container tool; the same on every call.
pub fn small_image(home: &Home) -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/demo-image.py");
    let output = home.join("small.tar");
    run(Command::new(script)
        .args(["--profile", "small"])
        .arg(&output))?;
    Ok(output)
}

//! Packs a file or directory into a tar under its own name, or a followed link under its target's.
//! Names have no special meaning: a file called `.wh.x` keeps that name.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::side::Side;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::layer_tar::NodeWriter;
use crate::stack;

/// Writes the file or directory at `from` to `output`.
pub(super) fn pack(ctx: &Context, from: &Side, follow: bool, output: impl Write) -> Result<()> {
    let found = from.source(follow)?;
    let mut writer = NodeWriter::of_files(output);
    let name = match &found.name {
        Some(real) if follow && !from.ends_as_directory() => real.clone(),
        _ => from.base_name(&found),
    };
    let name = PathBuf::from(name);
    if found.is_dir() {
        let union = stack::of_dir(ctx.process, found.open_dir()?, &from.path)?;
        for node in union.walk() {
            ctx.go_on()?;
            let node = node?;
            let root = node.path().as_os_str().is_empty();
            let path = match (from.wants_content() || found.name.is_none(), root) {
                (true, true) => continue,
                (true, false) => node.path().to_path_buf(),
                (false, true) => name.clone(),
                (false, false) => name.join(node.path()),
            };
            writer.node(&node, &path)?;
        }
    } else {
        let union = stack::of_dir(ctx.process, found.dir.dup()?, &from.path)?;
        let node = union
            .lookup(Path::new(found.file_name()?))?
            .ok_or_else(|| from.missing())?;
        writer.node(&node, &name)?;
    }
    writer
        .finish()?
        .flush()
        .map_err(Error::io("write", "the tar"))
}

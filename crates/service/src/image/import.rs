//! `import`: a tree becomes an image of one layer.

use std::io::Read;
use std::path::PathBuf;

use serde_json::json;
use vellum_image::manifest::LayerBlob;
use vellum_image::{Compression, ImageConfig, Manifest};

use super::change::apply_changes;
use super::load::{LoadSource, open};
use super::record::{BroughtIn, record};
use super::unpack::unpack_single;
use super::{chosen_name, platform};
use crate::context::Context;
use crate::error::Result;

/// Where [`import`] reads the tree from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportSource {
    /// A tar on standard input.
    Stdin,
    /// A directory, or a tar file; gzip, zstd, bzip2 and xz are recognised.
    Path(PathBuf),
}

/// What to import.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// The source.
    pub source: ImportSource,
    /// The image's name; `None`: it gets no name.
    pub name: Option<String>,
    /// Instructions that set fields of the configuration, as in a Dockerfile.
    pub changes: Vec<String>,
    /// The comment in the history; `None`: it names the source.
    pub message: Option<String>,
    /// The image's platform; `None`: this machine's.
    pub platform: Option<String>,
}

/// Creates an image of one layer from a tree.
pub fn import(context: &Context, request: &ImportRequest) -> Result<BroughtIn> {
    super::or_cancelled(context, run(context, request))
}

fn run(context: &Context, request: &ImportRequest) -> Result<BroughtIn> {
    let platform = platform(request.platform.as_deref())?;
    let name = request.name.as_deref().map(chosen_name).transpose()?;
    let mut configuration = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
    });
    if let Some(variant) = &platform.variant {
        configuration["variant"] = variant.clone().into();
    }
    // Before anything is read: a mistake in an instruction is found at once.
    apply_changes(&mut configuration, &request.changes)?;
    let (tar, from) = tar(&request.source)?;
    let store = context.store()?;
    let lease = store.lease(&format!("importing {from}"))?;
    let layer = unpack_single(context, store, &lease, None, tar)?;
    let now = jiff::Timestamp::now().to_string();
    configuration["created"] = now.clone().into();
    configuration["rootfs"] = json!({"type": "layers", "diff_ids": [layer.diff_id.to_string()]});
    let comment = request
        .message
        .clone()
        .unwrap_or_else(|| format!("imported from {from}"));
    configuration["history"] = json!([{"created": now, "comment": comment}]);
    let config = ImageConfig::parse(configuration.to_string().into_bytes())?;
    let blob = LayerBlob::compose(layer.diff_id, layer.tar_bytes, Compression::None);
    let manifest = Manifest::compose(&config.id, config.raw.len() as u64, &[blob]);
    record(store, lease, &config, &manifest, &[layer], name.as_slice())
}

fn tar(source: &ImportSource) -> Result<(Box<dyn Read + Send>, String)> {
    let source = match source {
        ImportSource::Path(path) if path.is_dir() => return super::pack::directory(path),
        ImportSource::Path(path) => LoadSource::Path(path.clone()),
        ImportSource::Stdin => LoadSource::Stdin,
    };
    let (file, name) = open(&source)?;
    Ok((Box::new(file), name))
}

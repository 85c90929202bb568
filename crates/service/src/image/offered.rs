//! Layers that a repair is offered: an archive, a layout, a Docker data root or a registry.
//!
//! A source is opened once and asked by diff ID. What it returns proves itself: the digest of the
//! whole tar is the diff ID, or nothing of it counts.

use std::io::{Read, Write};
use std::path::Path;

use vellum_format::Digest;
use vellum_image::source::docker_root::DockerRoot;
use vellum_image::source::{ImageSource, oci_layout::OciLayout, open_archive, open_seekable};
use vellum_image::{LayerStream, Limits, Platform};
use vellum_sys::Cancel;

use crate::context::Context;
use crate::error::{Error, Result};

use super::load::{self, LoadSource};

/// A source of layers.
pub(crate) struct Offered {
    name: String,
    source: Box<dyn ImageSource>,
}

impl Offered {
    /// Opens what `text` names: the path of an archive, an OCI layout or a Docker data root, or
    /// else an image in a registry.
    pub(crate) fn open(context: &Context, text: &str) -> Result<Self> {
        let wanted = Platform::host();
        let path = Path::new(text);
        let source: Box<dyn ImageSource> = match path.symlink_metadata() {
            Ok(_) if path.join("image/overlay2").is_dir() => Box::new(DockerRoot::open(path)?),
            Ok(_) if path.is_dir() => Box::new(OciLayout::from_directory(path, &wanted)?),
            Ok(_) => {
                let (file, name) = load::open(&LoadSource::Path(path.to_owned()))?;
                let spool = context.store()?.root().join("staging");
                let file = open_seekable(file, &name, &spool, &context.cancel)?;
                open_archive(file, name, &wanted)?
            }
            Err(error) if text.starts_with(['/', '.']) => {
                return Err(Error::io("open", path)(error));
            }
            Err(_) => in_registry(context, text, &wanted)?,
        };
        Ok(Self {
            name: text.to_owned(),
            source,
        })
    }

    /// Returns what the user calls it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Opens the layer with this diff ID, as it is stored; `None` if there is none.
    pub(crate) fn layer(&self, diff_id: &Digest) -> Result<Option<Box<dyn Read + Send>>> {
        for (at, image) in self.source.images().iter().enumerate() {
            let layer = image.layers.iter().position(|l| l.diff_id == *diff_id);
            if let Some(layer) = layer {
                return Ok(Some(self.source.open_layer(at, layer)?));
            }
        }
        Ok(None)
    }
}

#[cfg(feature = "registry")]
fn in_registry(context: &Context, text: &str, wanted: &Platform) -> Result<Box<dyn ImageSource>> {
    let name = super::reference(text)?;
    let options = super::pull::registry_options(context, name.registry(), false, None);
    let source =
        vellum_image::registry::RegistrySource::open(&name, wanted, &options, &context.cancel)?;
    Ok(Box::new(source))
}

#[cfg(not(feature = "registry"))]
fn in_registry(_: &Context, text: &str, _: &Platform) -> Result<Box<dyn ImageSource>> {
    Err(Error::Unsupported {
        what: format!("there is no file or directory {text}"),
        hint: "this program is built without a registry client: give a path".to_owned(),
    })
}

/// Passes the tar of a blob, perhaps compressed, to `out`. Returns whether it has this diff ID.
///
/// Errors: what is wrong with the blob; `Write` if `out` fails.
pub(crate) fn pass_tar(
    blob: Box<dyn Read + Send>,
    diff_id: &Digest,
    out: &mut dyn Write,
    cancel: &Cancel,
) -> vellum_image::Result<bool> {
    let mut stream = LayerStream::open(blob, &Limits::default(), cancel)?;
    loop {
        let chunk = stream.chunk()?;
        let n = chunk.len();
        if n == 0 {
            return Ok(stream.finish()?.diff_id == *diff_id);
        }
        out.write_all(chunk).map_err(vellum_image::Error::Write)?;
        std::io::BufRead::consume(&mut stream, n);
    }
}

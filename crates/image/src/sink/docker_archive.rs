//! Writes what `docker load`, `podman load` and every OCI tool can read.
//!
//! Like Docker since version 25, the archive is two things at once: an OCI layout (`index.json`,
//! `blobs/`) and a docker-archive (`manifest.json`) whose files are that layout's blobs. Layers are
//! plain tars, so every digest and size is known before the first byte of a layer, and the archive
//! can go straight into a pipe.

use std::collections::HashSet;
use std::io::Write;

use super::archive_writer::ArchiveWriter;
use super::{
    LAYOUT_VERSION, LayerSupply, OutImage, layout_entries, layout_index, manifest_for,
    manifest_json, write_checked,
};
use crate::manifest::{LayerBlob, Manifest};
use crate::packing::Compression;
use crate::source::SourceError;
use crate::source::oci_layout::blob_path;

/// Writes `images` to `out`, called `out_name` in messages; returns their manifests in order.
///
/// After an error `out` holds part of an archive. Nothing is synced.
pub fn write(
    images: &[OutImage],
    supply: &dyn LayerSupply,
    out: &mut dyn Write,
    out_name: &str,
) -> Result<Vec<Manifest>, SourceError> {
    let failed = |e| SourceError::io(out_name, e);
    let described: Vec<(&OutImage, Manifest)> = images
        .iter()
        .map(|image| {
            let layers: Vec<LayerBlob> = image
                .layers
                .iter()
                .map(|l| LayerBlob::compose(l.diff_id, l.tar_bytes, Compression::None))
                .collect();
            (image, manifest_for(image, &layers))
        })
        .collect();
    let mut archive = ArchiveWriter::new(out);
    archive.file("oci-layout", LAYOUT_VERSION).map_err(failed)?;
    archive
        .file("index.json", &layout_index(layout_entries(&described)))
        .map_err(failed)?;
    archive
        .file("manifest.json", &manifest_json(&described))
        .map_err(failed)?;
    archive.directory("blobs/").map_err(failed)?;
    archive.directory("blobs/sha256/").map_err(failed)?;
    let mut written = HashSet::new();
    for (image, manifest) in &described {
        for (digest, bytes) in [
            (manifest.digest, &manifest.raw),
            (image.config.id, &image.config.raw),
        ] {
            if written.insert(digest) {
                archive.file(&blob_path(&digest), bytes).map_err(failed)?;
            }
        }
        for layer in &image.layers {
            if written.insert(layer.diff_id) {
                archive
                    .begin(&blob_path(&layer.diff_id), layer.tar_bytes)
                    .map_err(failed)?;
                write_checked(layer, supply, archive.body())?;
                archive.end(layer.tar_bytes).map_err(failed)?;
            }
        }
    }
    archive.finish().map_err(failed)?;
    Ok(described
        .into_iter()
        .map(|(_, manifest)| manifest)
        .collect())
}

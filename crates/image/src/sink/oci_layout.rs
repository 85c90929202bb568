//! Writes OCI layouts: a directory, or a tar archive of one.
//!
//! In a directory, blobs are written first and `index.json` last, each under a temporary name
//! first, so a layout never points to a missing blob; an existing layout keeps its other images.
//! For an archive each blob is spooled first, since its size precedes it.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use vellum_format::Digest;

use super::archive_writer::ArchiveWriter;
use super::{
    LAYOUT_VERSION, LayerSupply, OutImage, SinkOptions, copy, layout_entries, layout_index,
    make_blobs, manifest_for, manifest_json, shown,
};
use crate::json;
use crate::manifest::{LayerBlob, MAX_MANIFEST_BYTES, Manifest, check_size, read_first};
use crate::source::SourceError;
use crate::source::oci_layout::blob_path;

/// Writes `images` into the layout in directory `to`, which is created if it doesn't exist.
///
/// Images with the same names are replaced in an existing layout; no blob is ever removed. Returns
/// the manifests in the order of `images`. Nothing is synced.
pub fn write_directory(
    images: &[OutImage],
    supply: &dyn LayerSupply,
    to: &Path,
    options: &SinkOptions,
) -> Result<Vec<Manifest>, SourceError> {
    fs::create_dir_all(to.join("blobs/sha256")).map_err(|e| SourceError::io(shown(to), e))?;
    let kept = existing_entries(to)?;
    // Blobs are spooled where they will be renamed from.
    let options = SinkOptions {
        spool_dir: to.to_owned(),
        ..options.clone()
    };
    let mut described = Vec::new();
    for image in images {
        let mut layers: Vec<Option<LayerBlob>> = vec![None; image.layers.len()];
        let mut wanted = Vec::new();
        for (at, slot) in layers.iter_mut().enumerate() {
            let promised = image.manifest.as_ref().map(|m| &m.layers[at]);
            match promised.filter(|p| to.join(blob_path(&p.blob.digest)).is_file()) {
                Some(there) => *slot = Some(there.clone()),
                None => wanted.push(at),
            }
        }
        make_blobs(image, &wanted, supply, &options, |at, ready| {
            layers[at] = Some(ready.layer.clone());
            let path = to.join(blob_path(&ready.layer.blob.digest));
            let mut reader = ready.into_reader()?;
            publish(&path, |file| copy(&mut reader, file, &shown(&path), supply))
        })?;
        let layers: Vec<LayerBlob> = layers.into_iter().flatten().collect();
        let manifest = manifest_for(image, &layers);
        put_bytes(to, &image.config.id, &image.config.raw)?;
        put_bytes(to, &manifest.digest, &manifest.raw)?;
        described.push((image, manifest));
    }
    let mut entries = layout_entries(&described);
    let replaced: HashSet<String> = entries.iter().filter_map(identity).collect();
    let mut all: Vec<_> = kept
        .into_iter()
        .filter(|e| identity(e).is_none_or(|id| !replaced.contains(&id)))
        .collect();
    all.append(&mut entries);
    put_file(&to.join("oci-layout"), LAYOUT_VERSION)?;
    put_file(&to.join("index.json"), &layout_index(all))?;
    Ok(described
        .into_iter()
        .map(|(_, manifest)| manifest)
        .collect())
}

/// Writes `images` as a tar archive of a layout to `out`, called `out_name` in messages.
///
/// Returns the manifests in order. After an error `out` holds part of an archive.
pub fn write_archive(
    images: &[OutImage],
    supply: &dyn LayerSupply,
    out: &mut dyn Write,
    out_name: &str,
    options: &SinkOptions,
) -> Result<Vec<Manifest>, SourceError> {
    let failed = |e| SourceError::io(out_name, e);
    let mut archive = ArchiveWriter::new(out);
    archive.file("oci-layout", LAYOUT_VERSION).map_err(failed)?;
    archive.directory("blobs/").map_err(failed)?;
    archive.directory("blobs/sha256/").map_err(failed)?;
    let mut written = HashSet::new();
    let mut described = Vec::new();
    for image in images {
        let mut layers = Vec::new();
        let all: Vec<usize> = (0..image.layers.len()).collect();
        make_blobs(image, &all, supply, options, |_, ready| {
            let blob = ready.layer.blob.clone();
            layers.push(ready.layer.clone());
            if !written.insert(blob.digest) {
                return Ok(());
            }
            archive
                .begin(&blob_path(&blob.digest), blob.size_bytes)
                .map_err(failed)?;
            copy(&mut ready.into_reader()?, archive.body(), out_name, supply)?;
            archive.end(blob.size_bytes).map_err(failed)
        })?;
        let manifest = manifest_for(image, &layers);
        for (digest, bytes) in [
            (manifest.digest, &manifest.raw),
            (image.config.id, &image.config.raw),
        ] {
            if written.insert(digest) {
                archive.file(&blob_path(&digest), bytes).map_err(failed)?;
            }
        }
        described.push((image, manifest));
    }
    archive
        .file("index.json", &layout_index(layout_entries(&described)))
        .map_err(failed)?;
    // So that `docker load` accepts it too: without its containerd store Docker looks at nothing
    // else.
    archive
        .file("manifest.json", &manifest_json(&described))
        .map_err(failed)?;
    archive.finish().map_err(failed)?;
    Ok(described
        .into_iter()
        .map(|(_, manifest)| manifest)
        .collect())
}

/// Two index entries are the same image if this is equal: the name, or without one the digest.
fn identity(entry: &serde_json::Value) -> Option<String> {
    let annotations = &entry["annotations"];
    [
        "io.containerd.image.name",
        "org.opencontainers.image.ref.name",
    ]
    .iter()
    .find_map(|key| annotations[*key].as_str())
    .or_else(|| entry["digest"].as_str())
    .map(str::to_owned)
}

fn existing_entries(to: &Path) -> Result<Vec<serde_json::Value>, SourceError> {
    let path = to.join("index.json");
    let raw = match fs::metadata(&path) {
        Ok(metadata) => {
            check_size("index.json", metadata.len(), MAX_MANIFEST_BYTES)?;
            fs::read(&path).map_err(|e| SourceError::io(shown(&path), e))?
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(SourceError::io(shown(&path), e)),
    };
    let mut index: serde_json::Value = read_first("the layout's index.json", &raw)?;
    if let Some(fields) = index.as_object_mut() {
        json::usual_names(fields, &["manifests"]);
    }
    match &index["manifests"] {
        serde_json::Value::Array(entries) => Ok(entries.clone()),
        serde_json::Value::Null => Ok(Vec::new()),
        _ => Err(SourceError::Malformed(format!(
            "{} is not an index",
            path.display()
        ))),
    }
}

fn put_bytes(to: &Path, digest: &Digest, bytes: &[u8]) -> Result<(), SourceError> {
    put_file(&to.join(blob_path(digest)), bytes)
}

fn put_file(path: &Path, bytes: &[u8]) -> Result<(), SourceError> {
    publish(path, |file| {
        file.write_all(bytes)
            .map_err(|e| SourceError::io(shown(path), e))
    })
}

/// Writes a temporary file next to `path` and renames it.
fn publish(
    path: &Path,
    write: impl FnOnce(&mut fs::File) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    use std::os::unix::fs::PermissionsExt;

    let failed = |e| SourceError::io(shown(path), e);
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".vellum-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(failed)?;
    write(temporary.as_file_mut())?;
    temporary.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

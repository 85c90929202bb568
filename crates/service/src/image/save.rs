//! `save`: writes images into an archive or a layout.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vellum_image::sink::{self, OutImage, SinkOptions};
use vellum_image::{Compression, Manifest, Reference};

use super::parse_name;
use super::supply::{StoreSupply, out_image};
use crate::context::Context;
use crate::error::{Error, Result};

/// The formats of [`save`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFormat {
    /// One tar that is docker-archive and OCI layout at once; layers are plain.
    DockerArchive,
    /// One tar with an OCI layout.
    OciArchive,
    /// A directory with an OCI layout.
    OciDirectory,
}

/// The targets of [`save`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaveTarget {
    /// Standard output.
    Stdout,
    /// A file, or the directory of a layout.
    Path(PathBuf),
}

/// What to save.
#[derive(Clone, Debug)]
pub struct SaveRequest {
    /// The images, by name or id; at least one.
    pub images: Vec<String>,
    /// The target.
    pub target: SaveTarget,
    /// The format.
    pub format: SaveFormat,
    /// The compression of layers; `None`: plain for a docker-archive, else gzip unless the manifest
    /// specifies another.
    pub compression: Option<Compression>,
}

/// A saved image.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SavedImage {
    /// Its id.
    pub id: String,
    /// The names it was written with, in their short form.
    pub names: Vec<String>,
    /// The digest of the manifest it was written with.
    pub manifest: String,
    /// Whether that is the manifest the store has, byte for byte.
    pub same_manifest: bool,
}

/// Writes images. An image named by a name is written with that name only, one named by id with all
/// its names.
///
/// A file appears complete under its name or not at all; on standard output, an error leaves a
/// partial archive.
pub fn save(context: &Context, request: &SaveRequest) -> Result<Vec<SavedImage>> {
    let saved = crate::names::with_images(context, &request.images, || run(context, request));
    super::or_cancelled(context, saved)
}

fn run(context: &Context, request: &SaveRequest) -> Result<Vec<SavedImage>> {
    let store = context.store()?;
    let images = collect(context, &request.images)?;
    let supply = StoreSupply::new(context, store, &images)?;
    let mut images: Vec<OutImage> = images;
    if request.format == SaveFormat::DockerArchive {
        if request.compression.is_some_and(|c| c != Compression::None) {
            return Err(Error::Invalid {
                what: "layers of a docker-archive are not compressed".to_owned(),
                hint: Some(
                    "compress the whole archive (`vellum save NAME | gzip`), or use --format oci-archive"
                        .to_owned(),
                ),
            });
        }
    } else if let Some(wanted) = request.compression {
        // A manifest with another compression is not what was asked for.
        for image in &mut images {
            image.manifest = image
                .manifest
                .take()
                .filter(|m| m.layers.iter().all(|l| l.compression == wanted));
        }
    } else {
        // Layers that are plain in their manifest, because they came in an archive or the manifest
        // was composed, are compressed here.
        for image in &mut images {
            let plain = |m: &Manifest| m.layers.iter().any(|l| l.compression == Compression::None);
            image.manifest = image.manifest.take().filter(|m| !plain(m));
        }
    }
    let options = SinkOptions {
        compression: request.compression.unwrap_or(Compression::Gzip),
        spool_dir: store.root().join("staging"),
        jobs: context.config.jobs.value,
    };
    let originals: Vec<_> = images
        .iter()
        .map(|i| i.manifest.as_ref().map(|m| m.digest))
        .collect();
    let manifests = match (&request.target, request.format) {
        (SaveTarget::Path(path), SaveFormat::OciDirectory) => {
            sink::oci_layout::write_directory(&images, &supply, path, &options)?
        }
        (SaveTarget::Stdout, SaveFormat::OciDirectory) => {
            return Err(Error::Invalid {
                what: "a directory can't go to standard output".to_owned(),
                hint: Some("name one with --output, or use --format oci-archive".to_owned()),
            });
        }
        (SaveTarget::Stdout, format) => {
            let mut out = BufWriter::with_capacity(256 << 10, io::stdout().lock());
            write(
                &images,
                &supply,
                &mut out,
                "standard output",
                format,
                &options,
            )?
        }
        (SaveTarget::Path(path), format) => to_file(path, |out| {
            write(
                &images,
                &supply,
                out,
                &path.display().to_string(),
                format,
                &options,
            )
        })?,
    };
    Ok(images
        .iter()
        .zip(manifests)
        .zip(originals)
        .map(|((image, manifest), original)| SavedImage {
            id: image.config.id.to_string(),
            names: image.names.iter().map(Reference::familiar).collect(),
            same_manifest: original == Some(manifest.digest),
            manifest: manifest.digest.to_string(),
        })
        .collect())
}

/// Finds the images; one that is named several times is written once, with all those names.
pub(super) fn collect(context: &Context, wanted: &[String]) -> Result<Vec<OutImage>> {
    let store = context.store()?;
    let mut images: Vec<OutImage> = Vec::new();
    for text in wanted {
        let record = crate::names::image(context, text)?;
        let by_name = parse_name(text).filter(|name| record.tags.contains(&name.to_string()));
        let names = match by_name {
            Some(name) => vec![name],
            None => record
                .tags
                .iter()
                .filter_map(|tag| Reference::parse(tag).ok())
                .collect(),
        };
        let id = record.id;
        match images.iter_mut().find(|i| i.config.id == id) {
            Some(known) => {
                for name in names {
                    if !known.names.contains(&name) {
                        known.names.push(name);
                    }
                }
            }
            None => images.push(out_image(store, &record, names)?),
        }
    }
    Ok(images)
}

fn write(
    images: &[OutImage],
    supply: &StoreSupply<'_>,
    out: &mut dyn Write,
    out_name: &str,
    format: SaveFormat,
    options: &SinkOptions,
) -> Result<Vec<Manifest>> {
    Ok(match format {
        SaveFormat::DockerArchive => sink::docker_archive::write(images, supply, out, out_name)?,
        _ => sink::oci_layout::write_archive(images, supply, out, out_name, options)?,
    })
}

/// Writes a file next to its final name and renames it; a pipe or device is written to directly.
fn to_file<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let special = std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
    if special {
        let mut file = File::options()
            .write(true)
            .open(path)
            .map_err(Error::io("open", path))?;
        return write(&mut file);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::Builder::new()
        .prefix(".vellum-save-")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(Error::io("create a file in", directory))?;
    let outcome = {
        let mut buffered = BufWriter::with_capacity(256 << 10, temporary.as_file_mut());
        let outcome = write(&mut buffered)?;
        buffered.flush().map_err(Error::io("write", path))?;
        outcome
    };
    temporary
        .persist(path)
        .map_err(|e| Error::io("create", path)(e.error))?;
    Ok(outcome)
}

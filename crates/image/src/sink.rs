//! Where images go: archives, layouts and registries.
//!
//! A sink gets images and a [`LayerSupply`] that can produce each layer's tar. It decides how
//! layers are compressed, what is written in which order, and which manifest describes the result.
//! It hashes everything that it reports as written. An image's manifest is reused byte for byte if
//! every blob came out as that manifest says, and composed again otherwise. The configuration is
//! never changed, so the image keeps its ID either way.
//!
//! This module must not know where layers are kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use vellum_format::Digest;

use crate::compression::Encoder;
use crate::config::{ChainId, ImageConfig};
use crate::error::Error;
use crate::hash::{HashWrite, VerifyRead};
use crate::manifest::{LayerBlob, Manifest};
use crate::packing::Compression;
use crate::reference::Reference;
use crate::source::SourceError;
use crate::source::oci_layout::blob_path;

mod archive_writer;
pub mod docker_archive;
pub mod oci_layout;

/// An error from the supply of layers, in its own terms.
pub type SupplyError = Box<dyn std::error::Error + Send + Sync>;

/// A layer to be written.
#[derive(Clone, Debug)]
pub struct OutLayer {
    /// Its name in the store it comes from.
    pub chain_id: ChainId,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// The length of its tar.
    pub tar_bytes: u64,
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct OutImage {
    /// Its configuration.
    pub config: ImageConfig,
    /// The manifest it came with or was last given.
    pub manifest: Option<Manifest>,
    /// The names to write with it; may be empty.
    pub names: Vec<Reference>,
    /// Its layers, bottom first, as many as the configuration has diff IDs.
    pub layers: Vec<OutLayer>,
}

/// Produces the bytes of layers for sinks.
pub trait LayerSupply: Sync {
    /// Writes the layer's tar to `out`, byte for byte as it originally came.
    ///
    /// The sink checks the diff ID; the supply need not.
    fn write_tar(&self, layer: &OutLayer, out: &mut dyn Write) -> Result<(), SupplyError>;

    /// Returns the blob of this digest if it was kept, `None` if it must be produced.
    fn kept_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, SupplyError>;

    /// Fails once the user cancels; called between two chunks.
    fn go_on(&self) -> Result<(), SupplyError>;
}

/// The options of a sink.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// The compression of layers for which no manifest prescribes one.
    pub compression: Compression,
    /// A directory with space for the largest layers, one more than `jobs`.
    pub spool_dir: PathBuf,
    /// How many layers are compressed at once, at least 1.
    pub jobs: usize,
}

/// A layer's blob, ready to be read: its description and its bytes.
pub(crate) struct ReadyBlob {
    pub(crate) layer: LayerBlob,
    file: BlobBytes,
}

enum BlobBytes {
    Kept(Box<dyn Read + Send>),
    Spooled(File),
}

impl ReadyBlob {
    /// Returns the bytes from the start; reading fails at the end if they are not those described.
    pub(crate) fn into_reader(self) -> Result<Box<dyn Read + Send>, SourceError> {
        let blob = self.layer.blob;
        let inner = match self.file {
            BlobBytes::Kept(reader) => reader,
            BlobBytes::Spooled(mut file) => {
                file.seek(SeekFrom::Start(0))
                    .map_err(|e| SourceError::io("temporary file", e))?;
                Box::new(file)
            }
        };
        let what = format!("layer blob {}", blob.digest);
        Ok(Box::new(VerifyRead::new(
            inner,
            what,
            blob.digest,
            Some(blob.size_bytes),
        )))
    }
}

/// Returns the blob of the image's layer at `at`: the kept one, or one produced now in a spool
/// file.
pub(crate) fn make_blob(
    image: &OutImage,
    at: usize,
    supply: &dyn LayerSupply,
    options: &SinkOptions,
) -> Result<ReadyBlob, SourceError> {
    let layer = &image.layers[at];
    let promised = image.manifest.as_ref().and_then(|m| m.layers.get(at));
    if let Some(promised) = promised
        && let Some(kept) = supply
            .kept_blob(&promised.blob.digest)
            .map_err(|e| supply_error(layer, e))?
    {
        return Ok(ReadyBlob {
            layer: promised.clone(),
            file: BlobBytes::Kept(kept),
        });
    }
    let compression = promised.map_or(options.compression, |p| p.compression);
    let spool = tempfile::tempfile_in(&options.spool_dir)
        .map_err(|e| SourceError::io(options.spool_dir.display().to_string(), e))?;
    let (file, made) = compress_into(spool, layer, compression, supply)?;
    // Our own compressor may well have produced the exact blob that the manifest names.
    let layer = match promised {
        Some(promised) if promised.blob.digest == made.blob.digest => promised.clone(),
        _ => made,
    };
    Ok(ReadyBlob {
        layer,
        file: BlobBytes::Spooled(file),
    })
}

/// Produces the blobs of the image's layers at the positions `wanted`, several at once, and passes
/// them to `each` in that order.
///
/// At most `jobs` are in production and one is waiting at any time, so spool files stay few. The
/// first error ends it.
pub(crate) fn make_blobs(
    image: &OutImage,
    wanted: &[usize],
    supply: &dyn LayerSupply,
    options: &SinkOptions,
    mut each: impl FnMut(usize, ReadyBlob) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let workers = options.jobs.clamp(1, wanted.len().max(1));
    let next = AtomicUsize::new(0);
    // Positions are started in order and each needs a permit, so the one waited for always has one.
    let (permit, permits) = crossbeam_channel::bounded(workers + 1);
    let slots: Vec<_> = wanted
        .iter()
        .map(|_| crossbeam_channel::bounded(1))
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (permits, next, slots) = (permits.clone(), &next, &slots);
            scope.spawn(move || {
                while permits.recv().is_ok() {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&at) = wanted.get(turn) else { break };
                    // The receiver lives as long as this scope.
                    let _ = slots[turn].0.send(make_blob(image, at, supply, options));
                }
            });
        }
        for _ in 0..=workers {
            // The channel has space for as many, and the receiver is alive.
            let _ = permit.send(());
        }
        for (turn, &at) in wanted.iter().enumerate() {
            let made = slots[turn].1.recv().map_err(|_| {
                SourceError::io(
                    "layer blob",
                    io::Error::other("the thread that produces it died"),
                )
            });
            each(at, made??)?;
            // The receiver is gone when all positions are given out.
            let _ = permit.try_send(());
        }
        drop(permit);
        Ok(())
    })
}

fn compress_into(
    file: File,
    layer: &OutLayer,
    compression: Compression,
    supply: &dyn LayerSupply,
) -> Result<(File, LayerBlob), SourceError> {
    let failed = |e| SourceError::io("temporary file", e);
    let buffered = io::BufWriter::with_capacity(256 << 10, file);
    let mut encoder = Encoder::new(compression, HashWrite::new(buffered)).map_err(failed)?;
    write_checked(layer, supply, &mut encoder)?;
    let written = encoder.finish().map_err(failed)?;
    let size_bytes = written.bytes();
    let (buffered, digest) = written.finish();
    let file = buffered.into_inner().map_err(|e| failed(e.into_error()))?;
    Ok((file, LayerBlob::compose(digest, size_bytes, compression)))
}

/// Writes the layer's tar to `out` and fails unless it was exactly that tar.
pub(crate) fn write_checked(
    layer: &OutLayer,
    supply: &dyn LayerSupply,
    out: &mut dyn Write,
) -> Result<(), SourceError> {
    let mut guarded = Guarded {
        inner: HashWrite::new(out),
        supply,
        failure: None,
    };
    let outcome = supply.write_tar(layer, &mut guarded);
    if let Some(failure) = guarded.failure.take() {
        return Err(supply_error(layer, failure));
    }
    outcome.map_err(|e| supply_error(layer, e))?;
    let what = || format!("uncompressed layer {}", layer.diff_id);
    let found_bytes = guarded.inner.bytes();
    let (_, found) = guarded.inner.finish();
    if found != layer.diff_id {
        let expected = layer.diff_id;
        return Err(Error::DigestMismatch {
            what: what(),
            expected,
            found,
        }
        .into());
    }
    if found_bytes != layer.tar_bytes {
        let expected = layer.tar_bytes;
        return Err(Error::SizeMismatch {
            what: what(),
            expected,
            found: found_bytes,
        }
        .into());
    }
    Ok(())
}

/// Checks for cancellation between two writes.
struct Guarded<'a, W> {
    inner: W,
    supply: &'a dyn LayerSupply,
    failure: Option<SupplyError>,
}

impl<W: Write> Write for Guarded<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Err(stop) = self.supply.go_on() {
            self.failure = Some(stop);
            return Err(io::Error::other("stopped"));
        }
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

pub(crate) fn supply_error(layer: &OutLayer, source: SupplyError) -> SourceError {
    SourceError::Supply {
        diff_id: layer.diff_id,
        source,
    }
}

/// Returns the manifest that describes `layers` of `image`: its own if that is correct.
pub(crate) fn manifest_for(image: &OutImage, layers: &[LayerBlob]) -> Manifest {
    match &image.manifest {
        Some(manifest) if manifest.layers == layers => manifest.clone(),
        _ => Manifest::compose(&image.config.id, image.config.raw.len() as u64, layers),
    }
}

/// Copies `from` to `to`, checking for cancellation between two chunks.
pub(crate) fn copy(
    from: &mut dyn Read,
    to: &mut dyn Write,
    to_name: &str,
    supply: &dyn LayerSupply,
) -> Result<(), SourceError> {
    let mut buffer = vec![0u8; 256 << 10];
    loop {
        supply.go_on().map_err(SourceError::Stopped)?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(got) => to
                .write_all(&buffer[..got])
                .map_err(|e| SourceError::io(to_name, e))?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(SourceError::io("layer blob", e)),
        }
    }
}

/// The `index.json` of a layout: one entry for each image and name.
///
/// `ref.name` is the bare tag, as skopeo and umoci look it up, unless two images have the same tag;
/// the full name goes into containerd's annotation, as with Docker.
pub(crate) fn layout_entries(images: &[(&OutImage, Manifest)]) -> Vec<serde_json::Value> {
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    for tag in images
        .iter()
        .flat_map(|(image, _)| image.names.iter().filter_map(Reference::tag))
    {
        *tags.entry(tag).or_default() += 1;
    }
    let mut entries = Vec::new();
    for (image, manifest) in images {
        let platform = image.config.platform();
        let mut entry = serde_json::json!({
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": manifest.raw.len(),
            "platform": {"architecture": platform.architecture, "os": platform.os},
        });
        if let Some(variant) = platform.variant {
            entry["platform"]["variant"] = variant.into();
        }
        for name in &image.names {
            let short = name.tag().filter(|tag| tags.get(tag) == Some(&1));
            entry["annotations"] = serde_json::json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": short.map_or_else(|| name.to_string(), str::to_owned),
            });
            entries.push(entry.clone());
        }
        if image.names.is_empty() {
            entries.push(entry);
        }
    }
    entries
}

/// The `manifest.json` by which Docker finds images in an archive: files and names. Layers may be
/// compressed.
pub(crate) fn manifest_json(images: &[(&OutImage, Manifest)]) -> Vec<u8> {
    let entries: Vec<_> = images
        .iter()
        .map(|(image, manifest)| {
            let tagged = image.names.iter().filter(|name| name.tag().is_some());
            let tags: Vec<_> = tagged.map(Reference::familiar).collect();
            let layers: Vec<_> = manifest.layers.iter().map(|l| blob_path(&l.blob.digest)).collect();
            serde_json::json!({"Config": blob_path(&image.config.id), "RepoTags": tags, "Layers": layers})
        })
        .collect();
    serde_json::Value::Array(entries).to_string().into_bytes()
}

/// The contents of a layout's `oci-layout` file.
pub(crate) const LAYOUT_VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Returns the bytes of an `index.json` with these entries.
pub(crate) fn layout_index(entries: Vec<serde_json::Value>) -> Vec<u8> {
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": crate::manifest::OCI_INDEX,
        "manifests": entries,
    });
    index.to_string().into_bytes()
}

/// Returns a name for `path` in messages.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

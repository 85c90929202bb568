//! Pushing an image: its layers, its configuration, and last its manifest.
//!
//! A blob that the registry has is not sent, and not even compressed; one that another repository of
//! the same registry is known to have is mounted from there. Everything else is streamed from a spool
//! file. The manifest goes last, so the registry never shows an image whose blobs are missing.

use std::io::Read;

use bytes::Bytes;
use oci_client::{Reference as Address, RegistryOperation};
use vellum_sys::Cancel;

use super::endpoint::{self, Endpoint};
use super::runtime::Runtime;
use super::{RegistryError, RegistryOptions};
use crate::digest::Digest;
use crate::manifest::{LayerBlob, Manifest};
use crate::reference::Reference;
use crate::sink::{LayerSupply, OutImage, SinkOptions, make_blob, make_blobs, manifest_for};
use crate::source::SourceError;

/// Bytes of a blob that go to the network at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What a push did.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The manifest that the tag now names.
    pub manifest: Manifest,
    /// Layers that were sent.
    pub sent: usize,
    /// Layers that were there already, or mounted from another repository.
    pub present: usize,
}

/// Pushes `image` to where `to` says, which must have a tag.
///
/// `progress` is told about each layer: its position, and whether it had to be sent.
pub fn push(
    image: &OutImage,
    to: &Reference,
    supply: &dyn LayerSupply,
    registry: &RegistryOptions,
    options: &SinkOptions,
    cancel: &Cancel,
    progress: &dyn Fn(usize, bool),
) -> Result<Pushed, SourceError> {
    if to.tag().is_none() || to.digest().is_some() {
        return Err(RegistryError::NoTag(to.to_string()).into());
    }
    let runtime = Runtime::start(cancel.clone())?;
    let endpoint = endpoint::for_push(to, registry, &runtime)?;
    runtime.run_patiently(endpoint.retry, || {
        let endpoint = endpoint.clone();
        async move { endpoint.log_in(RegistryOperation::Push).await.map(drop) }
    })?;
    // Repositories of the same registry that should have the blobs, since the image has a name there.
    let relatives: Vec<Address> = image
        .names
        .iter()
        .filter(|name| endpoint::same_registry(name, to) && name.repository() != to.repository())
        .map(|name| {
            let registry = endpoint.address.registry().to_owned();
            Address::with_tag(registry, name.repository().to_owned(), "latest".to_owned())
        })
        .collect();
    let mut layers: Vec<Option<LayerBlob>> = vec![None; image.layers.len()];
    let mut missing = Vec::new();
    for (at, slot) in layers.iter_mut().enumerate() {
        let promised = image.manifest.as_ref().map(|m| &m.layers[at]);
        match promised {
            Some(promised)
                if is_present(&endpoint, &promised.blob.digest, &relatives, &runtime)? =>
            {
                *slot = Some(promised.clone());
                progress(at, false);
            }
            _ => missing.push(at),
        }
    }
    let mut sent = 0;
    make_blobs(image, &missing, supply, options, |at, ready| {
        let layer = ready.layer.clone();
        let promised = image.manifest.as_ref().map(|m| &m.layers[at]);
        let made_anew = promised.is_none_or(|p| p.blob.digest != layer.blob.digest);
        if made_anew && is_present(&endpoint, &layer.blob.digest, &relatives, &runtime)? {
            progress(at, false);
        } else {
            let mut first = Some(ready);
            send_patiently(
                &endpoint,
                &layer.blob.digest,
                layer.blob.size_bytes,
                &runtime,
                || match first.take() {
                    Some(ready) => ready.into_reader(),
                    None => make_blob(image, at, supply, options)?.into_reader(),
                },
            )?;
            sent += 1;
            progress(at, true);
        }
        layers[at] = Some(layer);
        Ok(())
    })?;
    let layers: Vec<LayerBlob> = layers.into_iter().flatten().collect();
    let config = &image.config;
    if !is_present(&endpoint, &config.id, &[], &runtime)? {
        let bytes = Bytes::from(config.raw.clone());
        send_patiently(&endpoint, &config.id, bytes.len() as u64, &runtime, || {
            Ok(Box::new(std::io::Cursor::new(bytes.clone())) as Box<dyn Read + Send>)
        })?;
    }
    let manifest = manifest_for(image, &layers);
    put_manifest(&endpoint, &manifest, &runtime)?;
    let present = layers.len() - sent;
    Ok(Pushed {
        manifest,
        sent,
        present,
    })
}

/// Returns whether the registry has the blob in this repository, after trying to mount it there.
fn is_present(
    endpoint: &Endpoint,
    digest: &Digest,
    relatives: &[Address],
    runtime: &Runtime,
) -> Result<bool, RegistryError> {
    runtime.run_patiently(endpoint.retry, || {
        let endpoint = endpoint.clone();
        let digest = digest.to_string();
        let relatives = relatives.to_vec();
        async move {
            let there = endpoint
                .client
                .blob_exists(&endpoint.address, &digest)
                .await
                .map_err(|e| endpoint.failed(format!("look for blob {digest}"), e))?;
            if there {
                return Ok(true);
            }
            for relative in &relatives {
                // A registry that can't or won't mount answers with an upload session instead, which
                // the client takes for an error; the blob is then sent the ordinary way.
                let mounted = endpoint
                    .client
                    .mount_blob(&endpoint.address, relative, &digest);
                if mounted.await.is_ok() {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    })
}

/// Sends a blob, from the start again if the connection breaks.
fn send_patiently(
    endpoint: &Endpoint,
    digest: &Digest,
    size_bytes: u64,
    runtime: &Runtime,
    mut open: impl FnMut() -> Result<Box<dyn Read + Send>, SourceError>,
) -> Result<(), SourceError> {
    let mut failures = 0;
    loop {
        let error = match send(endpoint, digest, size_bytes, open()?, runtime) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        failures += 1;
        let Some(pause) = endpoint
            .retry
            .pause(failures)
            .filter(|_| error.is_passing())
        else {
            return Err(error.into());
        };
        runtime.run(async move {
            tokio::time::sleep(pause).await;
            Ok(())
        })?;
    }
}

fn send(
    endpoint: &Endpoint,
    digest: &Digest,
    size_bytes: u64,
    reader: Box<dyn Read + Send>,
    runtime: &Runtime,
) -> Result<(), RegistryError> {
    let endpoint = endpoint.clone();
    let digest = digest.to_string();
    // Reading a spool file on the client's thread is a copy from the page cache.
    let chunks = futures_util::stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let mut chunk = vec![0u8; CHUNK_BYTES];
        match reader.read(&mut chunk) {
            Ok(0) => None,
            Ok(got) => {
                chunk.truncate(got);
                Some((Ok(Bytes::from(chunk)), Some(reader)))
            }
            Err(e) => Some((Err(e.into()), None)),
        }
    });
    runtime.run(async move {
        endpoint
            .client
            .push_blob_stream(&endpoint.address, chunks, &digest, Some(size_bytes))
            .await
            .map(drop)
            .map_err(|e| endpoint.failed(format!("take blob {digest}"), e))
    })
}

fn put_manifest(
    endpoint: &Endpoint,
    manifest: &Manifest,
    runtime: &Runtime,
) -> Result<(), RegistryError> {
    runtime.run_patiently(endpoint.retry, || {
        let endpoint = endpoint.clone();
        let raw = manifest.raw.clone();
        let media_type = manifest.media_type.clone();
        async move {
            let content_type = media_type.parse().map_err(|e| RegistryError::Failed {
                registry: endpoint.name().to_owned(),
                action: format!("take a manifest of kind {media_type:?}"),
                source: Box::new(e),
            })?;
            endpoint
                .client
                .push_manifest_raw(&endpoint.address, raw, content_type)
                .await
                .map(drop)
                .map_err(|e| endpoint.failed("take the manifest", e))
        }
    })
}

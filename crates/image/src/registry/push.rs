//! Pushes an image: its layers, its configuration, and last its manifest.
//!
//! A blob that the registry has is not sent, and not even compressed. One that another repository
//! of the same registry is known to have is mounted from there. Everything else is streamed from a
//! spool file. The manifest goes last, so the registry never shows an image whose blobs are
//! missing.

use std::io::Read;

use bytes::Bytes;
use futures_util::Stream;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use vellum_format::Digest;
use vellum_sys::Cancel;

use super::endpoint::{self, Endpoint};
use super::exchange::{Answer, Body, ExchangeError, Request, SupplyError, Upload};
use super::login::Operation;
use super::runtime::Runtime;
use super::{RegistryError, RegistryOptions};
use crate::manifest::{LayerBlob, Manifest};
use crate::reference::Reference;
use crate::sink::{LayerSupply, OutImage, SinkOptions, make_blob, make_blobs, manifest_for};
use crate::source::SourceError;

/// The chunk size of an upload.
const CHUNK_BYTES: usize = 256 << 10;

/// What a push did.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The manifest that the tag now names.
    pub manifest: Manifest,
    /// Layers that were sent.
    pub sent: usize,
    /// Layers that were present already, or mounted from another repository.
    pub present: usize,
}

/// Pushes `image` to `to`, which must have a tag.
///
/// `progress` is called for each layer with its position, and whether it had to be sent.
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
    let mut endpoint = endpoint::for_push(to, registry, &runtime)?;
    // Repositories of the same registry that should have the blobs, since the image has a name
    // there.
    let relatives: Vec<String> = image
        .names
        .iter()
        .filter(|name| endpoint::same_registry(name, to) && name.repository() != to.repository())
        .map(|name| name.repository().to_owned())
        .collect();
    endpoint.mounting_from(relatives.clone());
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
        let is_new = promised.is_none_or(|p| p.blob.digest != layer.blob.digest);
        if is_new && is_present(&endpoint, &layer.blob.digest, &relatives, &runtime)? {
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
    relatives: &[String],
    runtime: &Runtime,
) -> Result<bool, RegistryError> {
    runtime.run_patiently(endpoint.retry, || {
        let endpoint = endpoint.clone();
        let digest = *digest;
        let relatives = relatives.to_vec();
        async move {
            let failed = |e| endpoint.failed(format!("look for blob {digest}"), e);
            if has_blob(&endpoint, &digest).await.map_err(failed)? {
                return Ok(true);
            }
            for relative in &relatives {
                // A registry that can't or won't mount opens an upload session instead, which is
                // left to expire. The blob is then sent the ordinary way, as it also is if mounting
                // fails.
                if mount(&endpoint, &digest, relative)
                    .await
                    .is_ok_and(|mounted| mounted)
                {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    })
}

async fn has_blob(endpoint: &Endpoint, digest: &Digest) -> Result<bool, ExchangeError> {
    let path = format!("blobs/{digest}");
    let answer = endpoint
        .ask(Operation::Push, Method::HEAD, &path, |r| r)
        .await?;
    match answer.status() {
        status if status.is_success() => Ok(true),
        // Sending it will show the reason: a response to HEAD has no message.
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(false),
        _ => Err(answer.error_response().await.into()),
    }
}

async fn mount(endpoint: &Endpoint, digest: &Digest, from: &str) -> Result<bool, ExchangeError> {
    let path = format!("blobs/uploads/?mount={digest}&from={from}");
    let answer = endpoint
        .ask(Operation::Push, Method::POST, &path, |r| r)
        .await?;
    Ok(answer.status() == StatusCode::CREATED)
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
        let Some(pause) = endpoint.retry.pause_after(failures, &error) else {
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
    let digest = *digest;
    runtime.run(async move {
        upload(&endpoint, &digest, size_bytes, reader)
            .await
            .map_err(|e| endpoint.failed(format!("take blob {digest}"), e))
    })
}

/// Opens an upload session and sends the blob in one piece.
async fn upload(
    endpoint: &Endpoint,
    digest: &Digest,
    size_bytes: u64,
    reader: Box<dyn Read + Send>,
) -> Result<(), ExchangeError> {
    let session = endpoint
        .ask(Operation::Push, Method::POST, "blobs/uploads/", |r| r)
        .await?
        .accepted()
        .await?;
    let mut address = session_address(endpoint, &session)?;
    address
        .query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    let request = Request::new(Method::PUT, address)
        .header(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        )
        .body(Body::Stream(Upload::new(chunks(reader), size_bytes)));
    let access = endpoint.access();
    let answer = access
        .send_once(endpoint.http(), Operation::Push, request)
        .await?;
    // A token may expire during a long upload.
    if answer.status() == StatusCode::UNAUTHORIZED
        && access
            .satisfy(endpoint.http(), Operation::Push, &answer)
            .await?
    {
        return Err(ExchangeError::Outdated);
    }
    // Any success status counts; some servers leave out the blob's new location.
    answer.accepted().await.map(drop)
}

/// The URL that the session uploads to.
fn session_address(endpoint: &Endpoint, session: &Answer) -> Result<Url, ExchangeError> {
    const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
    let mut address = match (session.location()?, session.header(UPLOAD_ID)) {
        (Some(address), _) => address,
        (None, Some(id)) => endpoint.url(&format!("blobs/uploads/{id}"))?,
        (None, None) => return Err(ExchangeError::odd("an upload session without a Location")),
    };
    // Behind a proxy that terminates TLS, a registry may think that it is accessed over plain HTTP.
    if session.url.scheme() == "https"
        && address.scheme() == "http"
        && address.host() == session.url.host()
        && address.set_scheme("https").is_err()
    {
        return Err(ExchangeError::odd("an upload session over plain HTTP"));
    }
    Ok(address)
}

/// The reader's bytes as a stream. Reading a spool file on the client's thread is a copy from the
/// page cache.
fn chunks(reader: Box<dyn Read + Send>) -> impl Stream<Item = Result<Bytes, SupplyError>> + Send {
    futures_util::stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let mut chunk = vec![0u8; CHUNK_BYTES];
        match reader.read(&mut chunk) {
            Ok(0) => None,
            Ok(got) => {
                chunk.truncate(got);
                Some((Ok(Bytes::from(chunk)), Some(reader)))
            }
            Err(e) => Some((Err(SupplyError(e)), None)),
        }
    })
}

fn put_manifest(
    endpoint: &Endpoint,
    manifest: &Manifest,
    runtime: &Runtime,
) -> Result<(), RegistryError> {
    runtime.run_patiently(endpoint.retry, || {
        let endpoint = endpoint.clone();
        let raw = Bytes::from(manifest.raw.clone());
        let media_type = manifest.media_type.clone();
        async move {
            let failed = |e| endpoint.failed("take the manifest", e);
            let media_type = HeaderValue::try_from(media_type).map_err(|_| {
                failed(ExchangeError::odd(
                    "a media type that is not valid in a header",
                ))
            })?;
            let path = format!("manifests/{}", endpoint.what());
            endpoint
                .ask(Operation::Push, Method::PUT, &path, |request| {
                    request
                        .header(CONTENT_TYPE, media_type.clone())
                        .body(Body::Bytes(raw.clone()))
                })
                .await
                .map_err(failed)?
                .accepted()
                .await
                .map(drop)
                .map_err(failed)
        }
    })
}

//! A registry as an image source.
//!
//! Opening one fetches the manifest (through an index, if there is one) and the configuration;
//! layers are fetched when they are opened. Every endpoint is tried in turn; the error returned at
//! the end is the registry's own, since mirrors are a convenience. A reference with a digest gets
//! exactly the manifest with that digest, whichever server delivers it.

use std::io::Read;

use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use vellum_format::Digest;
use vellum_sys::Cancel;

use super::download::BlobReader;
use super::endpoint::{self, Endpoint};
use super::exchange::ExchangeError;
use super::login::Operation;
use super::runtime::Runtime;
use super::{RegistryError, RegistryOptions};
use crate::config::ImageConfig;
use crate::error::Error;
use crate::hash::VerifyRead;
use crate::manifest::{
    ACCEPTED, Descriptor, Document, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest, check_size,
};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::source::oci_layout::no_platform;
use crate::source::{ImageSource, SourceError, SourceImage};

/// One image of a registry.
pub struct RegistrySource {
    reference: Reference,
    images: Vec<SourceImage>,
    endpoints: Vec<Endpoint>,
    runtime: Runtime,
}

impl RegistrySource {
    /// Asks the registry (and its mirrors first) for the image that `reference` names, for
    /// `wanted`.
    ///
    /// Errors: `Registry` if it can't be fetched, `NoPlatform`, or anything wrong with what came.
    pub fn open(
        reference: &Reference,
        wanted: &Platform,
        options: &RegistryOptions,
        cancel: &Cancel,
    ) -> Result<Self, SourceError> {
        let runtime = Runtime::start(cancel.clone())?;
        let mut endpoints = endpoint::for_pull(reference, options, &runtime)?;
        let mut found = None;
        let mut last_error = None;
        for (at, endpoint) in endpoints.iter().enumerate() {
            match fetch_manifest(endpoint, reference, wanted, &runtime) {
                Ok(manifest) => {
                    found = Some((at, manifest));
                    break;
                }
                Err(SourceError::Registry(RegistryError::Stopped)) => {
                    return Err(RegistryError::Stopped.into());
                }
                Err(e) => {
                    tracing::debug!(endpoint = endpoint.name(), error = %e, "no manifest from this endpoint");
                    last_error = Some(e);
                }
            }
        }
        let Some((at, manifest)) = found else {
            return Err(
                last_error.unwrap_or_else(|| RegistryError::NoTag(reference.to_string()).into())
            );
        };
        // The endpoint that had the manifest is asked first for the blobs too.
        endpoints.rotate_left(at);
        let config = read_blob(
            &endpoints,
            &manifest.config,
            "the image configuration",
            &runtime,
        )?;
        let image = SourceImage::new(
            ImageConfig::parse(config)?,
            Some(manifest),
            vec![reference.clone()],
        )?;
        Ok(Self {
            reference: reference.clone(),
            images: vec![image],
            endpoints,
            runtime,
        })
    }
}

impl ImageSource for RegistrySource {
    fn describe(&self) -> String {
        self.reference.to_string()
    }

    fn images(&self) -> &[SourceImage] {
        &self.images
    }

    fn open_layer(&self, image: usize, layer: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let layer = &self.images[image].layers[layer];
        let layer = layer.described()?;
        // Like Docker, ask the registry first: if it has the layer, no other server learns of the
        // pull.
        let mut endpoints = self.endpoints.clone();
        if let Some(registry) = endpoints.first() {
            endpoints.extend(endpoint::elsewhere(&layer.urls, registry.retry)?);
        }
        Ok(Box::new(BlobReader::start(
            &endpoints,
            &layer.blob,
            &self.runtime,
        )))
    }
}

/// Fetches the manifest for `wanted` from one endpoint, through indexes.
fn fetch_manifest(
    endpoint: &Endpoint,
    reference: &Reference,
    wanted: &Platform,
    runtime: &Runtime,
) -> Result<Manifest, SourceError> {
    let top = fetch_document(endpoint, reference.digest(), None, runtime)?;
    let mut document = top;
    // An index that points to an index that points to a manifest is the deepest that occurs.
    for _ in 0..4 {
        match document {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(index) => {
                let entry = index.choose(wanted).ok_or_else(|| {
                    let offers = index.images().filter_map(|e| e.platform.as_ref());
                    no_platform(reference.familiar(), wanted, offers)
                })?;
                check_size(
                    "the manifest",
                    entry.manifest.size_bytes,
                    MAX_MANIFEST_BYTES,
                )?;
                let below = endpoint.at_digest(&entry.manifest.digest);
                let announced = Some(entry.manifest.media_type.as_str());
                document =
                    fetch_document(&below, Some(&entry.manifest.digest), announced, runtime)?;
            }
        }
    }
    Err(SourceError::Malformed(format!(
        "{reference} nests indexes too deeply"
    )))
}

fn fetch_document(
    endpoint: &Endpoint,
    expected: Option<&Digest>,
    announced: Option<&str>,
    runtime: &Runtime,
) -> Result<Document, SourceError> {
    let (raw, media_type) = runtime.run_patiently(endpoint.retry, || {
        let endpoint = endpoint.clone();
        async move { get_manifest(&endpoint).await }
    })?;
    check_size("the manifest", raw.len() as u64, MAX_MANIFEST_BYTES)?;
    let found = Digest::of(&raw);
    if let Some(&expected) = expected
        && found != expected
    {
        let what = format!("the manifest from {}", endpoint.name());
        return Err(Error::DigestMismatch {
            what,
            expected,
            found,
        }
        .into());
    }
    Ok(Document::parse(raw, announced.or(media_type.as_deref()))?)
}

/// Requests the manifest or index that the endpoint names, and returns it with the media type in
/// the response.
async fn get_manifest(endpoint: &Endpoint) -> Result<(Vec<u8>, Option<String>), RegistryError> {
    let what = endpoint.what();
    let action = format!("give image {}:{what}", endpoint.repository());
    let failed = |e| endpoint.failed(action.clone(), e);
    let accepted = HeaderValue::try_from(ACCEPTED.join(", "))
        .map_err(|e| failed(ExchangeError::odd(e.to_string())))?;
    let path = format!("manifests/{what}");
    let answer = endpoint
        .ask(Operation::Pull, Method::GET, &path, |r| {
            r.header(ACCEPT, accepted.clone())
        })
        .await
        .map_err(failed)?
        .accepted()
        .await
        .map_err(failed)?;
    let media_type = answer
        .header(CONTENT_TYPE)
        .map(|v| v.split(';').next().unwrap_or_default().trim().to_owned());
    let raw = answer.whole(MAX_MANIFEST_BYTES).await.map_err(failed)?;
    Ok((raw, media_type))
}

/// Reads all of a small blob and checks it.
fn read_blob(
    endpoints: &[Endpoint],
    blob: &Descriptor,
    what: &'static str,
    runtime: &Runtime,
) -> Result<Vec<u8>, SourceError> {
    check_size(what, blob.size_bytes, MAX_CONFIG_BYTES)?;
    let reader = BlobReader::start(endpoints, blob, runtime);
    let mut bytes = Vec::new();
    VerifyRead::new(reader, what, blob.digest, Some(blob.size_bytes))
        .read_to_end(&mut bytes)
        .map_err(|e| super::download::surfaced(e, what))?;
    Ok(bytes)
}

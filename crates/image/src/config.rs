//! Image configurations: what an image runs, and which layers it consists of.
//!
//! Like a manifest, a configuration is kept as the bytes that came: their digest is the image's ID.
//! Its diff IDs (digests of the uncompressed layers) are what a layer *is*, whatever compressed it;
//! a chain ID names a layer together with everything below it and is the name of a layer in a store.
//!
//! This module must not read from anywhere, and knows nothing of what running means.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use oci_spec::image as oci;

use crate::digest::Digest;
use crate::manifest::{MAX_CONFIG_BYTES, MAX_LAYERS, ManifestError, check_size, parse_digest};
use crate::platform::Platform;
use crate::run_config::RunConfig;

/// The name of a layer on top of particular other layers.
///
/// Equal chain IDs mean equal trees: it covers the diff IDs of the layer and of all below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(Digest);

impl ChainId {
    /// Returns the chain ID of `diff_id` on top of `parent`, or on nothing.
    pub fn extend(parent: Option<&ChainId>, diff_id: &Digest) -> Self {
        Self(diff_id.chained_on(parent.map(|p| &p.0)))
    }

    /// Returns the digest that the chain ID is.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ChainId {
    type Err = <Digest as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Returns the chain IDs of layers given bottom first; as many as there are diff IDs.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<ChainId> {
    let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(ChainId::extend(chain.last(), diff_id));
    }
    chain
}

/// The configuration of an image, with the bytes it was read from.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// The bytes as they came.
    pub raw: Vec<u8>,
    /// The digest of `raw`: the image's ID.
    pub id: Digest,
    /// The diff IDs of the layers, bottom first; may be empty.
    pub diff_ids: Vec<Digest>,
    /// The fields, but for those of `run`.
    pub parsed: oci::ImageConfiguration,
    /// How it runs.
    pub run: RunConfig,
}

impl ImageConfig {
    /// Returns the configuration that `raw` is.
    ///
    /// Bytes that are not UTF-8 are read as U+FFFD, as Docker does; `raw` keeps them.
    ///
    /// Errors if the JSON isn't one, a field has the wrong shape, a diff ID isn't a digest, or
    /// there are absurdly many layers.
    pub fn parse(raw: Vec<u8>) -> Result<Self, ManifestError> {
        check_size(
            "the image configuration",
            raw.len() as u64,
            MAX_CONFIG_BYTES,
        )?;
        let json = |source| ManifestError::Json {
            what: "the image configuration",
            source,
        };
        let mut fields = serde_json::from_str(&String::from_utf8_lossy(&raw)).map_err(json)?;
        let run = RunConfig::take(&mut fields)?;
        let parsed: oci::ImageConfiguration = serde_json::from_value(fields).map_err(json)?;
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(diff_ids.len()));
        }
        let diff_ids = diff_ids
            .iter()
            .map(|d| parse_digest(d))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: Digest::of(&raw),
            raw,
            diff_ids,
            parsed,
            run,
        })
    }

    /// Returns the JSON; bytes that are not UTF-8 are U+FFFD in it, as Docker reads them.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.raw)
    }

    /// Returns the chain IDs of the layers, bottom first.
    pub fn chain_ids(&self) -> Vec<ChainId> {
        chain_ids(&self.diff_ids)
    }

    /// Returns the platform the image was built for.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.parsed.os().to_string(),
            architecture: self.parsed.architecture().to_string(),
            variant: self.parsed.variant().clone(),
        }
    }
}

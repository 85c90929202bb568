//! Image configurations: what an image runs, and which layers it consists of.
//!
//! Like a manifest, a configuration is kept as the bytes that came: their digest is the image's ID.
//! Its diff IDs (digests of the uncompressed layers) identify the layers, however they are
//! compressed. A chain ID identifies a layer together with everything below it, and is the name of
//! a layer in a store.
//!
//! This module must not read from anywhere, and knows nothing about running images.

use std::fmt;
use std::str::FromStr;

use crate::json::{self, List};
use crate::manifest::{
    MAX_CONFIG_BYTES, MAX_LAYERS, ManifestError, check_size, parse_digest, read,
};
use crate::platform::Platform;
use crate::run_config::{RunConfig, RunFields};
use serde_json::{Map, Value};
use vellum_format::Digest;

/// The name of a layer on top of particular other layers.
///
/// Equal chain IDs mean equal trees: it covers the diff IDs of the layer and of all layers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(Digest);

impl ChainId {
    /// Returns the chain ID of `diff_id` on top of `parent`, or on nothing.
    pub fn extend(parent: Option<&ChainId>, diff_id: &Digest) -> Self {
        Self(diff_id.chained_on(parent.map(|p| &p.0)))
    }

    /// Returns the digest.
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

/// Returns the chain IDs of layers given bottom first, one for each diff ID.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<ChainId> {
    let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(ChainId::extend(chain.last(), diff_id));
    }
    chain
}

/// The configuration of an image, with the bytes it was read from.
///
/// Texts may be empty, which is the same as absent, as for Go's reader.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// The bytes as they came.
    pub raw: Vec<u8>,
    /// The digest of `raw`: the image's ID.
    pub id: Digest,
    /// The diff IDs of the layers, bottom first; may be empty.
    pub diff_ids: Vec<Digest>,
    /// When it was built (RFC 3339), if it says so.
    pub created: Option<String>,
    /// How it was built, first step first; it may have too few or too many steps.
    pub history: Vec<Step>,
    /// How it runs.
    pub run: RunConfig,
    os: String,
    architecture: String,
    variant: String,
}

/// A step of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// When (RFC 3339), if it says so.
    pub created: Option<String>,
    /// The command or instruction.
    pub created_by: String,
    /// A remark.
    pub comment: String,
    /// Whether it created no layer.
    pub empty_layer: bool,
}

json::fields!(Step {
    "created" => created,
    "created_by" => created_by,
    "comment" => comment,
    "empty_layer" => empty_layer,
});

#[derive(Default)]
struct Fields {
    created: Option<String>,
    os: String,
    architecture: String,
    variant: String,
    config: Option<RunFields>,
    rootfs: Option<RootFs>,
    history: List<Step>,
}

json::fields!(Fields {
    "created" => created,
    "os" => os,
    "architecture" => architecture,
    "variant" => variant,
    "config" => config,
    "rootfs" => rootfs,
    "history" => history,
});

#[derive(Default)]
struct RootFs {
    diff_ids: List<String>,
}

json::fields!(RootFs { "diff_ids" => diff_ids });

impl ImageConfig {
    /// Parses `raw` as a configuration, as [`crate::json`] reads JSON; `raw` is kept unchanged.
    ///
    /// Without a root file system, or diff IDs in it, the image has no layers. Errors if it isn't
    /// JSON, a field has the wrong type, a diff ID isn't a digest, or there are absurdly many
    /// layers.
    pub fn parse(raw: Vec<u8>) -> Result<Self, ManifestError> {
        const WHAT: &str = "the image configuration";
        check_size(WHAT, raw.len() as u64, MAX_CONFIG_BYTES)?;
        let fields: Fields = read(WHAT, &raw)?;
        let diff_ids = fields.rootfs.unwrap_or_default().diff_ids.into_vec();
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
            created: fields.created,
            history: fields.history.into_vec(),
            run: fields.config.unwrap_or_default().into(),
            os: fields.os,
            architecture: fields.architecture,
            variant: fields.variant,
        })
    }

    /// Returns the whole configuration, including fields unknown to Vellum.
    pub fn value(&self) -> Result<Value, ManifestError> {
        read("the image configuration", &self.raw)
    }

    /// Returns the whole configuration with its fields under their usual names, for changing it.
    ///
    /// In the document a name may be spelt differently or occur twice: a field added under the
    /// usual name would then be one of several.
    pub fn tidy_value(&self) -> Result<Map<String, Value>, ManifestError> {
        let Value::Object(mut all) = self.value()? else {
            return Ok(Map::new());
        };
        json::usual_names(&mut all, Fields::NAMES);
        let mut section = match all.remove("config") {
            Some(Value::Object(section)) => section,
            _ => Map::new(),
        };
        self.run.tidy(&mut section);
        all.insert("config".to_owned(), section.into());
        Ok(all)
    }

    /// Returns the chain IDs of the layers, bottom first.
    pub fn chain_ids(&self) -> Vec<ChainId> {
        chain_ids(&self.diff_ids)
    }

    /// Returns the platform the image was built for; if it names none, this machine's, like Docker.
    pub fn platform(&self) -> Platform {
        let host = Platform::host();
        let or = |said: &String, host: String| match said.is_empty() {
            true => host,
            false => said.clone(),
        };
        Platform {
            os: or(&self.os, host.os),
            architecture: or(&self.architecture, host.architecture),
            variant: Some(self.variant.clone()).filter(|variant| !variant.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_in_unusual_spelling_are_changed_and_not_duplicated() {
        let raw = r#"{"OS": "linux", "CONFIG": {"ENV": ["A=1"], "cmd": "x", "Healthcheck": {"Test": ["NONE"]}, "User": "a"}, "config": {"User": "b"},
            "History": [{"created_by": "y"}], "Rootfs": {"diff_ids": []}, "x": [1e400]}"#;
        let config = ImageConfig::parse(raw.into()).unwrap();
        let expect = json::read::<Value>(
            br#"{"os": "linux", "config": {"Env": ["A=1"], "Cmd": ["x"], "Healthcheck": {"Test": ["NONE"]}, "User": "b"},
            "history": [{"created_by": "y"}], "rootfs": {"diff_ids": []}, "x": ["1e400"]}"#,
        );
        assert_eq!(Value::Object(config.tidy_value().unwrap()), expect.unwrap());
        let null = ImageConfig::parse(r#"{"config": null}"#.into()).unwrap();
        assert_eq!(null.tidy_value().unwrap()["config"], serde_json::json!({}));
    }

    #[test]
    fn a_missing_platform_is_this_machines() {
        let host = Platform::host();
        for raw in [r#"{}"#, r#"{"os": null, "architecture": ""}"#] {
            let found = ImageConfig::parse(raw.into()).unwrap().platform();
            let host = (&host.os, &host.architecture);
            assert_eq!((&found.os, &found.architecture), host, "{raw}");
        }
        let other = r#"{"os": "plan9", "architecture": "mips", "variant": "v1"}"#;
        let other = ImageConfig::parse(other.into()).unwrap().platform();
        assert_eq!(other.to_string(), "plan9/mips/v1");
    }
}

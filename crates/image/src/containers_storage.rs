//! The documents of a containers/storage graph root, as Podman, Buildah and CRI-O read them:
//! `layers.json`, `images.json` and the names of the files next to them. Pure: the caller decides
//! where they are stored and what the layers' trees are.
//!
//! Layer ids are derived like those programs derive them, so that an image they pull finds the
//! layers that exist already.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use vellum_format::Digest;

use crate::Compression;
use crate::config::ImageConfig;
use crate::manifest::{LayerBlob, Manifest};
use crate::reference::Reference;

/// The id of a layer: 64 hexadecimal digits, derived from the id of the layer below and the diff
/// ID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(String);

impl LayerId {
    /// Returns the id of the layer with `diff_id` on `parent`.
    pub fn of(parent: Option<&LayerId>, diff_id: &Digest) -> Self {
        match parent {
            None => Self(diff_id.hex()),
            Some(parent) => {
                Self(Digest::of(format!("{}+{}", parent.0, diff_id.hex()).as_bytes()).hex())
            }
        }
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The layer's name under `overlay/l`: 26 letters and digits, as short as mount options need
    /// it. It is always the same, since containers on the layer remember it.
    pub fn link(&self) -> String {
        let mut link = self.0.to_ascii_uppercase();
        link.truncate(26);
        link
    }
}

/// A layer's record.
#[derive(Clone, Debug)]
pub struct LayerEntry {
    /// Its id.
    pub id: LayerId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Digest of its tar.
    pub diff_id: Digest,
    /// Size of its tar.
    pub tar_bytes: u64,
    /// The blob that manifests refer to.
    pub blob: LayerBlob,
}

impl LayerEntry {
    fn json(&self) -> Value {
        // Values of archive.Compression.
        let compression = match self.blob.compression {
            Compression::None => 0,
            Compression::Gzip => 2,
            Compression::Zstd => 4,
        };
        let mut entry = json!({
            "id": self.id.as_str(),
            "created": EPOCH,
            "compressed-diff-digest": self.blob.blob.digest.to_string(),
            "compressed-size": self.blob.blob.size_bytes,
            "diff-digest": self.diff_id.to_string(),
            "diff-size": self.tar_bytes,
        });
        if let Some(parent) = &self.parent {
            entry["parent"] = json!(parent.as_str());
        }
        if compression != 0 {
            entry["compression"] = json!(compression);
        }
        entry
    }
}

/// Nothing needs the time when a layer was unpacked; a constant one gives identical files.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Returns `overlay-layers/layers.json`.
pub fn layers_json(layers: &[LayerEntry]) -> Value {
    layers.iter().map(LayerEntry::json).collect()
}

/// An image's record.
#[derive(Clone, Debug)]
pub struct ImageEntry<'a> {
    /// Its configuration.
    pub config: &'a ImageConfig,
    /// Its manifest. The blobs of its layers are those of the layers' entries.
    pub manifest: &'a Manifest,
    /// Its full names.
    pub names: &'a [Reference],
    /// Its top layer.
    pub top: Option<&'a LayerId>,
}

impl ImageEntry<'_> {
    /// Returns the entry for `overlay-images/images.json`.
    pub fn json(&self) -> Value {
        let id = self.config.id.hex();
        let config = self.config.id.to_string();
        let manifest = self.manifest.digest.to_string();
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let (of_config, of_manifest) = (self.config.raw.len(), self.manifest.raw.len());
        let by_digest = by_digest(&self.manifest.digest);
        // Podman rejects the whole store if this is anything else in one image.
        let created = self.config.created.as_deref();
        let created = created.and_then(|at| at.parse::<jiff::Timestamp>().ok());
        let mut entry = json!({
            "id": id,
            "digest": manifest,
            "names": names,
            "metadata": "{}",
            "big-data-names": [config, by_digest, "manifest"],
            "big-data-sizes": { config.clone(): of_config, by_digest.clone(): of_manifest, "manifest": of_manifest },
            "big-data-digests": { config.clone(): config, by_digest: manifest, "manifest": manifest },
            "created": created.map_or_else(|| EPOCH.to_owned(), |at| at.to_string()),
        });
        if let Some(top) = self.top {
            entry["layer"] = json!(top.as_str());
        }
        entry
    }

    /// Returns the files in the image's own directory, by name, with their content.
    pub fn files(&self) -> Vec<(String, &[u8])> {
        let config = self.config.id.to_string();
        vec![
            (file_name(&config), &self.config.raw),
            (
                file_name(&by_digest(&self.manifest.digest)),
                &self.manifest.raw,
            ),
            (file_name("manifest"), &self.manifest.raw),
        ]
    }
}

fn by_digest(manifest: &Digest) -> String {
    format!("manifest-{manifest}")
}

/// The file name for data of this name: the name itself if it has only lower-case letters, digits
/// and dots.
fn file_name(key: &str) -> String {
    match key
        .chars()
        .all(|c| c == '.' || c.is_ascii_digit() || c.is_ascii_lowercase())
    {
        true => key.to_owned(),
        false => format!("={}", STANDARD.encode(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen in a store of Podman 4.3.
    #[test]
    fn ids_and_names_are_those_podman_makes() {
        let digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>().unwrap();
        let base = "a46b875fff351988c1783ef4363e41120cc1d7635a5b8cbf1d89a46c0bc4b982";
        let next = digest("c7128c74b0ca0c6fc35a6ec2bf4330a8e2dc0a8379d90a309ccbc07f4c262062");
        let parent = LayerId::of(None, &digest(base));
        assert_eq!(parent.as_str(), base);
        let child = LayerId::of(Some(&parent), &next);
        assert_eq!(
            child.as_str(),
            "21b73ed0f9567e338e6844b9be5915b6cd61cf5f9874111801d86c65879777c5"
        );
        assert_eq!(child.link(), "21B73ED0F9567E338E6844B9BE");
        assert_eq!(file_name("manifest"), "manifest");
        assert_eq!(
            file_name("sha256:824a7d6a5b02140ce652efcaa709a32ee1825d0d5978808e486b35198e380278"),
            "=c2hhMjU2OjgyNGE3ZDZhNWIwMjE0MGNlNjUyZWZjYWE3MDlhMzJlZTE4MjVkMGQ1OTc4ODA4ZTQ4NmIzNTE5OGUzODAyNzg="
        );
    }
}

//! Manifests and indexes: what an image is made of, in OCI's words and in Docker's.
//!
//! A manifest is kept as the very bytes that came ([`Manifest::raw`]): its digest is its identity,
//! and writing it again from parsed fields would change it. Parsing proves what the rest relies on:
//! every digest is a [`Digest`], every layer has a form we can read, no layer lives elsewhere.
//!
//! This module must not read from anywhere; it turns bytes into types. Docker's schema 1 is refused
//! by name. The dialects differ in media types only (image-spec `manifest.md`, distribution
//! `manifest-v2-2.md`).

use std::collections::HashMap;

use oci_spec::image as oci;
use serde::Deserialize;

use crate::compression::Compression;
use crate::digest::Digest;
use crate::platform::Platform;

/// The largest manifest or index that is read, in bytes (registries refuse larger ones too).
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// The largest image configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The most layers an image may have. Far above any builder's limit; it bounds memory.
pub const MAX_LAYERS: usize = 2000;

/// OCI's media type of a manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's media type of an index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI's media type of an image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's media type of a manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's media type of an index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's media type of an image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The media types of everything that [`Document::parse`] understands, to ask a registry for.
pub const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Why bytes are not a manifest that Vellum can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not the JSON they should be.
    #[error("{what} can't be read")]
    Json {
        /// Which document.
        what: &'static str,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A field of the image configuration has another shape than it must have.
    #[error("the image configuration's {field} is not {expected}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The document is larger than Vellum reads.
    #[error("{what} of {size_bytes} bytes is larger than the {limit_bytes} that are allowed")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Docker's schema 1, which has neither a configuration nor diff IDs.
    #[error("the manifest is Docker's schema 1, which nobody writes any more")]
    Schema1,
    /// Some other kind of document.
    #[error("{0:?} is not a kind of manifest that Vellum knows")]
    UnknownKind(String),
    /// A layer's media type is unknown.
    #[error("layer {digest} is of the unknown kind {media_type:?}")]
    UnknownLayer {
        /// The layer's digest.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A layer that is not part of the image but lives at some URL (Windows base layers).
    #[error("layer {0} is a foreign layer, kept outside of the image; such images can't be used")]
    ForeignLayer(Digest),
    /// A digest that is malformed or of an algorithm that isn't known.
    #[error("{0:?} is not a digest that Vellum knows")]
    Digest(String),
    /// More layers than any image has.
    #[error("{0} layers are more than the {MAX_LAYERS} that are allowed")]
    TooManyLayers(usize),
}

/// Returns an error if `size_bytes` is beyond `limit_bytes`, naming `what` is too large.
pub fn check_size(
    what: &'static str,
    size_bytes: u64,
    limit_bytes: u64,
) -> Result<(), ManifestError> {
    if size_bytes > limit_bytes {
        return Err(ManifestError::TooLarge {
            what,
            size_bytes,
            limit_bytes,
        });
    }
    Ok(())
}

/// A blob that a manifest or an index points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What the blob says it is.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Their number.
    pub size_bytes: u64,
}

impl Descriptor {
    fn parse(raw: &oci::Descriptor) -> Result<Self, ManifestError> {
        Ok(Self {
            media_type: raw.media_type().to_string(),
            digest: parse_digest(raw.digest().as_ref())?,
            size_bytes: raw.size(),
        })
    }

    fn to_oci(&self) -> oci::Descriptor {
        let digest = self
            .digest
            .to_string()
            .parse::<oci::Digest>()
            .expect("every digest that Vellum knows is one by the specification's grammar");
        oci::Descriptor::new(
            oci::MediaType::from(self.media_type.as_str()),
            self.size_bytes,
            digest,
        )
    }
}

/// One layer as a manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The compressed blob.
    pub blob: Descriptor,
    /// How the media type says it is compressed.
    pub compression: Compression,
}

/// A manifest: a configuration and layers, bottom first.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The bytes as they came, which `digest` is of.
    pub raw: Vec<u8>,
    /// The digest of `raw`.
    pub digest: Digest,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`].
    pub media_type: String,
    /// The image's configuration; its digest is the image's ID.
    pub config: Descriptor,
    /// The layers, bottom first; may be empty.
    pub layers: Vec<LayerBlob>,
}

/// One entry of an index.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    /// The manifest or index that it points at.
    pub manifest: Descriptor,
    /// The platform it says it is for.
    pub platform: Option<Platform>,
    /// Its annotations, which name images in an OCI layout.
    pub annotations: HashMap<String, String>,
}

impl IndexEntry {
    /// Returns whether this is no image but a statement about one (a signature, an SBOM).
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
            || self
                .platform
                .as_ref()
                .is_some_and(|p| p.os == "unknown" || p.architecture == "unknown")
    }
}

/// An index: the same image for several platforms, or the several images of a layout.
#[derive(Clone, Debug)]
pub struct Index {
    /// The bytes as they came.
    pub raw: Vec<u8>,
    /// The digest of `raw`.
    pub digest: Digest,
    /// The entries in the order of the document.
    pub entries: Vec<IndexEntry>,
}

/// What the bytes at a manifest's address turn out to be.
#[derive(Clone, Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// The fields that tell documents apart, whatever their kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u32>,
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Returns the document that `raw` is.
    ///
    /// `announced` is the media type that whoever pointed here announced; the document's own
    /// `mediaType` wins if it has one, its fields decide if neither is known. A document with both
    /// `layers` and `manifests` is refused: two readers could take it for two different images.
    pub fn parse(raw: Vec<u8>, announced: Option<&str>) -> Result<Self, ManifestError> {
        check_size("the manifest", raw.len() as u64, MAX_MANIFEST_BYTES)?;
        let json = |source| ManifestError::Json {
            what: "the manifest",
            source,
        };
        let kind: Kind = serde_json::from_slice(&raw).map_err(json)?;
        if kind.schema_version == Some(1) {
            return Err(ManifestError::Schema1);
        }
        if kind.manifests.is_some() && kind.layers.is_some() {
            return Err(ManifestError::UnknownKind(
                "manifest and index in one".to_owned(),
            ));
        }
        let media_type = kind
            .media_type
            .as_deref()
            .or(announced)
            .map(|t| t.trim().to_owned());
        match media_type.as_deref() {
            Some(OCI_INDEX | DOCKER_LIST) => Ok(Self::Index(Index::parse(raw)?)),
            Some(kind @ (OCI_MANIFEST | DOCKER_MANIFEST)) => {
                Ok(Self::Manifest(Manifest::parse(raw, kind)?))
            }
            None | Some("" | "application/json" | "application/octet-stream" | "text/plain") => {
                if kind.manifests.is_some() {
                    Ok(Self::Index(Index::parse(raw)?))
                } else {
                    Ok(Self::Manifest(Manifest::parse(raw, OCI_MANIFEST)?))
                }
            }
            Some(other) if other.starts_with("application/vnd.docker.distribution.manifest.v1") => {
                Err(ManifestError::Schema1)
            }
            Some(other) => Err(ManifestError::UnknownKind(other.to_owned())),
        }
    }
}

impl Index {
    fn parse(raw: Vec<u8>) -> Result<Self, ManifestError> {
        let json = |source| ManifestError::Json {
            what: "the index",
            source,
        };
        let parsed: oci::ImageIndex = serde_json::from_slice(&raw).map_err(json)?;
        let entries = parsed
            .manifests()
            .iter()
            .map(|entry| {
                Ok(IndexEntry {
                    manifest: Descriptor::parse(entry)?,
                    platform: entry.platform().as_ref().map(|p| Platform {
                        os: p.os().to_string(),
                        architecture: p.architecture().to_string(),
                        variant: p.variant().clone(),
                    }),
                    annotations: entry.annotations().clone().unwrap_or_default(),
                })
            })
            .collect::<Result<_, ManifestError>>()?;
        Ok(Self {
            digest: Digest::of(&raw),
            raw,
            entries,
        })
    }

    /// Returns the entry for `wanted`, statements about images left aside; `None` if none fits.
    pub fn choose(&self, wanted: &Platform) -> Option<&IndexEntry> {
        let images: Vec<&IndexEntry> = self
            .entries
            .iter()
            .filter(|e| !e.is_attestation())
            .collect();
        let offers: Vec<_> = images.iter().map(|e| e.platform.clone()).collect();
        crate::platform::choose(wanted, &offers).map(|at| images[at])
    }
}

impl Manifest {
    fn parse(raw: Vec<u8>, media_type: &str) -> Result<Self, ManifestError> {
        let json = |source| ManifestError::Json {
            what: "the manifest",
            source,
        };
        let parsed: oci::ImageManifest = serde_json::from_slice(&raw).map_err(json)?;
        if parsed.layers().len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(parsed.layers().len()));
        }
        let config = Descriptor::parse(parsed.config())?;
        check_size(
            "the image configuration",
            config.size_bytes,
            MAX_CONFIG_BYTES,
        )?;
        let layers = parsed
            .layers()
            .iter()
            .map(parse_layer)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            digest: Digest::of(&raw),
            raw,
            media_type: media_type.to_owned(),
            config,
            layers,
        })
    }

    /// Returns an OCI manifest of our own making.
    ///
    /// The bytes depend on the arguments alone, so the same image gets the same manifest each time.
    pub fn compose(config: &Digest, config_size_bytes: u64, layers: &[LayerBlob]) -> Self {
        let config = Descriptor {
            media_type: OCI_CONFIG.to_owned(),
            digest: *config,
            size_bytes: config_size_bytes,
        };
        let document = oci::ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(oci::MediaType::ImageManifest)
            .config(config.to_oci())
            .layers(layers.iter().map(|l| l.blob.to_oci()).collect::<Vec<_>>())
            .build()
            .expect("every required field of a manifest is given");
        let raw = serde_json::to_vec(&document).expect("a manifest of strings and numbers is JSON");
        Self {
            digest: Digest::of(&raw),
            raw,
            media_type: OCI_MANIFEST.to_owned(),
            config,
            layers: layers.to_vec(),
        }
    }

    /// Returns the descriptor by which an index points at this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest,
            size_bytes: self.raw.len() as u64,
        }
    }
}

impl LayerBlob {
    /// Returns the description of a layer blob of our own making.
    pub fn compose(digest: Digest, size_bytes: u64, compression: Compression) -> Self {
        let media_type = match compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        Self {
            blob: Descriptor {
                media_type: media_type.to_owned(),
                digest,
                size_bytes,
            },
            compression,
        }
    }
}

fn parse_layer(raw: &oci::Descriptor) -> Result<LayerBlob, ManifestError> {
    let blob = Descriptor::parse(raw)?;
    let media_type = blob.media_type.as_str();
    if media_type.contains("nondistributable") || media_type.contains("rootfs.foreign") {
        return Err(ManifestError::ForeignLayer(blob.digest));
    }
    let compression = match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar+gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.docker.image.rootfs.diff.tar+zstd" => Compression::Zstd,
        _ => {
            return Err(ManifestError::UnknownLayer {
                media_type: media_type.to_owned(),
                digest: blob.digest,
            });
        }
    };
    Ok(LayerBlob { blob, compression })
}

/// Returns the digest that `text` is, with an error that quotes it.
pub(crate) fn parse_digest(text: &str) -> Result<Digest, ManifestError> {
    text.parse()
        .map_err(|_| ManifestError::Digest(text.to_owned()))
}

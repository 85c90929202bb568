//! Manifests and indexes: what an image consists of, in OCI's format and in Docker's.
//!
//! A manifest is kept as the exact bytes that came ([`Manifest::raw`]): its digest is its identity,
//! and writing it again from parsed fields would change it. Parsing ensures what the rest relies
//! on: every digest is a [`Digest`].
//!
//! This module must not read from anywhere; it turns bytes into types. Docker's schema 1 is refused
//! by name. The dialects differ only in media types (image-spec `manifest.md`, distribution
//! `manifest-v2-2.md`).

use std::collections::BTreeMap;

use oci_spec::image as oci;
use vellum_format::Digest;

use crate::json::{self, Any, JsonError, List, Unmarshal};
use crate::packing::Compression;
use crate::platform::Platform;

/// The largest manifest or index that is accepted, in bytes (registries refuse larger ones too).
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// The largest image configuration that is accepted, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The maximum number of layers of an image. Far above any builder's limit; it bounds memory.
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

/// The media types of everything that [`Document::parse`] understands, for requests to a registry.
pub const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Why bytes are not a manifest that Vellum can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not the JSON they should be.
    #[error("{what} can't be read")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where, and why.
        #[source]
        source: JsonError,
    },
    /// The document is larger than Vellum reads.
    #[error("{what} of {size_bytes} bytes is larger than the maximum of {limit_bytes}")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Docker's schema 1, which has neither a configuration nor diff IDs.
    #[error("the manifest is Docker's schema 1, which is obsolete")]
    Schema1,
    /// Another type of document.
    #[error("{0:?} is not a manifest type that Vellum knows")]
    UnknownKind(String),
    /// An artifact that is stored like an image: a chart, a signature.
    #[error("it is an artifact ({0}), not an image")]
    Artifact(String),
    /// A layer that is not part of the image but is at some URL (Windows base layers).
    #[error(
        "layer {0} is a foreign layer and not included; only a pull fetches layers from an image's URLs"
    )]
    ForeignLayer(Digest),
    /// A digest that is malformed or uses an unknown algorithm.
    #[error("{0:?} is not a digest that Vellum knows")]
    Digest(String),
    /// More layers than any image has.
    #[error("{0} layers are more than the maximum of {MAX_LAYERS}")]
    TooManyLayers(usize),
}

/// Returns an error that names `what` if `size_bytes` is above `limit_bytes`.
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

/// Parses the document `what`.
pub(crate) fn read<T: Unmarshal + Default>(
    what: &'static str,
    raw: &[u8],
) -> Result<T, ManifestError> {
    json::read(raw).map_err(|source| ManifestError::Json { what, source })
}

/// The same for a file that no digest protects: what follows its first value is ignored, as by
/// Docker and containerd.
pub(crate) fn read_first<T: Unmarshal + Default>(
    what: &'static str,
    raw: &[u8],
) -> Result<T, ManifestError> {
    let first = json::first(raw).and_then(json::read);
    first.map_err(|source| ManifestError::Json { what, source })
}

/// A blob that a manifest or an index points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type that the descriptor states.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// The size that it states; where the blob itself is available ([`crate::source`]), the actual
    /// size.
    pub size_bytes: u64,
}

impl Descriptor {
    /// An impossible size counts as none: the digest protects the bytes.
    fn parse(fields: DescriptorFields) -> Result<Self, ManifestError> {
        Ok(Self {
            digest: parse_digest(&fields.digest)?,
            size_bytes: u64::try_from(fields.size).unwrap_or(0),
            media_type: fields.media_type,
        })
    }

    /// Returns whether it may be a manifest or an index, by its media type.
    pub fn is_document(&self) -> bool {
        let media_type = bare(&self.media_type);
        ACCEPTED.contains(&media_type) || is_vague(media_type)
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

/// Returns a media type without its parameters.
fn bare(media_type: &str) -> &str {
    let end = media_type.find(';').unwrap_or(media_type.len());
    media_type[..end].trim()
}

/// Returns whether a media type says nothing about what a document is.
fn is_vague(media_type: &str) -> bool {
    [
        "",
        "application/json",
        "application/octet-stream",
        "text/plain",
    ]
    .contains(&media_type)
}

/// One layer as a manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The compressed blob.
    pub blob: Descriptor,
    /// The compression that the media type states.
    pub compression: Compression,
    /// Where else the blob is available, if the manifest says so. Untrusted.
    pub urls: Vec<String>,
}

/// A manifest: a configuration and layers, bottom first.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The bytes as they came; `digest` is theirs.
    pub raw: Vec<u8>,
    /// The digest of `raw`.
    pub digest: Digest,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`].
    pub media_type: String,
    /// The image's configuration; its digest is the image's ID.
    pub config: Descriptor,
    /// The layers, bottom first; may be empty.
    pub layers: Vec<LayerBlob>,
    /// The artifact type that it states (a chart, a signature). It may be an image all the same.
    pub artifact: Option<String>,
}

/// One entry of an index.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    /// The manifest or index that it points to.
    pub manifest: Descriptor,
    /// The platform that it states.
    pub platform: Option<Platform>,
    /// Its annotations, which name images in an OCI layout.
    pub annotations: BTreeMap<String, String>,
}

impl IndexEntry {
    /// Returns whether this is not an image but a statement about one (a signature, an SBOM).
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

/// What the bytes at a manifest's address are.
#[derive(Clone, Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// The fields of a manifest and of an index.
///
/// They are read together, since they also tell the two apart.
#[derive(Default)]
struct Fields {
    schema_version: i64,
    media_type: String,
    artifact_type: String,
    config: Option<DescriptorFields>,
    layers: Option<List<DescriptorFields>>,
    manifests: Option<List<DescriptorFields>>,
    /// Of schema 1.
    fs_layers: Any,
}

json::fields!(Fields {
    "schemaVersion" => schema_version,
    "mediaType" => media_type,
    "artifactType" => artifact_type,
    "config" => config,
    "layers" => layers,
    "manifests" => manifests,
    "fsLayers" => fs_layers,
});

#[derive(Default)]
struct DescriptorFields {
    media_type: String,
    digest: String,
    size: i64,
    annotations: BTreeMap<String, String>,
    platform: Option<PlatformFields>,
    urls: List<String>,
}

json::fields!(DescriptorFields {
    "mediaType" => media_type,
    "digest" => digest,
    "size" => size,
    "annotations" => annotations,
    "platform" => platform,
    "urls" => urls,
});

#[derive(Default)]
struct PlatformFields {
    os: String,
    architecture: String,
    variant: String,
}

json::fields!(PlatformFields {
    "os" => os,
    "architecture" => architecture,
    "variant" => variant,
});

impl Document {
    /// Parses `raw` as a document, as [`crate::json`] reads JSON.
    ///
    /// `announced` is the media type that the reference to the document stated. The document's own
    /// `mediaType` takes precedence if it is a known one; if neither is known, its fields decide. A
    /// document with fields of both types is refused: two readers could take it for two different
    /// images.
    pub fn parse(raw: Vec<u8>, announced: Option<&str>) -> Result<Self, ManifestError> {
        let fields = Fields::of(&raw)?;
        let said = [fields.media_type.as_str(), announced.unwrap_or_default()].map(bare);
        let is_index = |kind: &&str| [OCI_INDEX, DOCKER_LIST].contains(kind);
        if said.iter().all(|kind| ACCEPTED.contains(kind))
            && is_index(&said[0]) != is_index(&said[1])
        {
            let what = "a manifest announced as an index, or the other way round,".to_owned();
            return Err(ManifestError::UnknownKind(what));
        }
        let media_type = said.iter().find(|kind| ACCEPTED.contains(kind));
        let media_type = media_type.or_else(|| said.iter().find(|kind| !is_vague(kind)));
        let media_type = media_type.map_or("", |kind| *kind).to_owned();
        match media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => Ok(Self::Index(Index::new(raw, fields)?)),
            OCI_MANIFEST | DOCKER_MANIFEST => {
                Ok(Self::Manifest(Manifest::new(raw, fields, media_type)?))
            }
            "" if fields.manifests.is_some() => Ok(Self::Index(Index::new(raw, fields)?)),
            "" => {
                let media_type = OCI_MANIFEST.to_owned();
                Ok(Self::Manifest(Manifest::new(raw, fields, media_type)?))
            }
            other if other.starts_with("application/vnd.docker.distribution.manifest.v1") => {
                Err(ManifestError::Schema1)
            }
            _ => Err(ManifestError::UnknownKind(media_type)),
        }
    }
}

impl Fields {
    fn of(raw: &[u8]) -> Result<Self, ManifestError> {
        check_size("the manifest", raw.len() as u64, MAX_MANIFEST_BYTES)?;
        let fields: Self = read("the manifest", raw)?;
        let of_manifest = fields.layers.is_some() || fields.config.is_some();
        if fields.fs_layers.0
            || (fields.schema_version == 1 && !of_manifest && fields.manifests.is_none())
        {
            return Err(ManifestError::Schema1);
        }
        if fields.manifests.is_some() && of_manifest {
            let both = "manifest and index in one".to_owned();
            return Err(ManifestError::UnknownKind(both));
        }
        Ok(fields)
    }
}

impl Index {
    /// Parses `raw` as an index whatever its media type: an `index.json`.
    pub fn parse(raw: Vec<u8>) -> Result<Self, ManifestError> {
        let fields = Fields::of(&raw)?;
        Self::new(raw, fields)
    }

    fn new(raw: Vec<u8>, fields: Fields) -> Result<Self, ManifestError> {
        if fields.layers.is_some() || fields.config.is_some() {
            let what = "a manifest in the place of an index".to_owned();
            return Err(ManifestError::UnknownKind(what));
        }
        let mut entries = Vec::new();
        let mut unreadable = None;
        for mut entry in fields.manifests.unwrap_or_default().into_vec() {
            let platform = entry.platform.take().and_then(PlatformFields::platform);
            let annotations = std::mem::take(&mut entry.annotations);
            match Descriptor::parse(entry) {
                Ok(manifest) => entries.push(IndexEntry {
                    manifest,
                    platform,
                    annotations,
                }),
                // One useless entry is no reason to reject the others.
                Err(e) => unreadable = unreadable.or(Some(e)),
            }
        }
        match unreadable {
            Some(unreadable) if entries.is_empty() => Err(unreadable),
            _ => Ok(Self {
                digest: Digest::of(&raw),
                raw,
                entries,
            }),
        }
    }

    /// Returns the entries that may be images: no statements about others, nothing of another type.
    pub fn images(&self) -> impl Iterator<Item = &IndexEntry> {
        let images = self.entries.iter();
        images.filter(|entry| !entry.is_attestation() && entry.manifest.is_document())
    }

    /// Returns the entry for `wanted`, ignoring statements about images; `None` if none fits.
    pub fn choose(&self, wanted: &Platform) -> Option<&IndexEntry> {
        let images: Vec<&IndexEntry> = self.images().collect();
        let offers: Vec<_> = images.iter().map(|e| e.platform.clone()).collect();
        crate::platform::choose(wanted, &offers).map(|at| images[at])
    }
}

impl Manifest {
    fn new(raw: Vec<u8>, fields: Fields, media_type: String) -> Result<Self, ManifestError> {
        if fields.manifests.is_some() {
            let what = "an index in the place of a manifest".to_owned();
            return Err(ManifestError::UnknownKind(what));
        }
        let layers = fields.layers.unwrap_or_default().into_vec();
        if layers.len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(layers.len()));
        }
        let config = Descriptor::parse(fields.config.unwrap_or_default())?;
        let of_config = bare(&config.media_type);
        let of_image = is_vague(of_config) || [OCI_CONFIG, DOCKER_CONFIG].contains(&of_config);
        let artifact = match fields.artifact_type.as_str() {
            "" if of_image => None,
            "" => Some(of_config.to_owned()),
            kind => Some(kind.to_owned()),
        };
        Ok(Self {
            digest: Digest::of(&raw),
            raw,
            media_type,
            config,
            layers: layers
                .into_iter()
                .map(parse_layer)
                .collect::<Result<_, _>>()?,
            artifact,
        })
    }

    /// Creates an OCI manifest.
    ///
    /// The bytes depend only on the arguments, so the same image always gets the same manifest.
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
            artifact: None,
        }
    }

    /// Returns the descriptor by which an index points to this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest,
            size_bytes: self.raw.len() as u64,
        }
    }
}

impl PlatformFields {
    fn platform(self) -> Option<Platform> {
        (!self.os.is_empty() || !self.architecture.is_empty()).then(|| Platform {
            os: self.os,
            architecture: self.architecture,
            variant: Some(self.variant).filter(|variant| !variant.is_empty()),
        })
    }
}

impl LayerBlob {
    /// Returns whether it may be stored elsewhere, at URLs that the manifest names.
    pub fn is_foreign(&self) -> bool {
        let media_type = &self.blob.media_type;
        media_type.contains("nondistributable") || media_type.contains("rootfs.foreign")
    }

    /// Creates the description of a layer blob that Vellum wrote.
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
            urls: Vec::new(),
        }
    }
}

/// The bytes of a layer decide what it is; an unknown media type only means that its compression is
/// not stated.
fn parse_layer(mut fields: DescriptorFields) -> Result<LayerBlob, ManifestError> {
    let urls = std::mem::take(&mut fields.urls).into_vec();
    let blob = Descriptor::parse(fields)?;
    let media_type = bare(&blob.media_type);
    let compression = if media_type.ends_with("gzip") {
        Compression::Gzip
    } else if media_type.ends_with("zstd") {
        Compression::Zstd
    } else {
        Compression::None
    };
    Ok(LayerBlob {
        blob,
        compression,
        urls,
    })
}

/// Parses `text` as a digest; the error quotes it.
pub(crate) fn parse_digest(text: &str) -> Result<Digest, ManifestError> {
    text.parse()
        .map_err(|_| ManifestError::Digest(text.to_owned()))
}

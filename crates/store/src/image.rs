//! What is recorded about an image. The calls are in `images.rs`.

use jiff::Timestamp;
use vellum_format::Digest;

use crate::snapshot::SnapshotKey;

/// The blob that a layer came as or was written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Media type of its descriptor.
    pub media_type: String,
    /// Digest of the blob (compressed or not).
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayer {
    /// The committed snapshot that holds its tree.
    pub snapshot: SnapshotKey,
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The blob it came as, where known. The store may not have it: see [`crate::Store::blob`].
    pub blob: Option<LayerBlob>,
}

/// An image to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Digest of its configuration, which must be a blob of the store.
    pub id: Digest,
    /// Digest of its manifest, which must be a blob of the store.
    pub manifest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Its layers, base first; all committed.
    pub layers: Vec<ImageLayer>,
    /// Names it gets. A name that another image has moves to this one.
    pub tags: Vec<String>,
}

/// A recorded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of its configuration.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Its layers, base first.
    pub layers: Vec<ImageLayer>,
    /// Its names, sorted; may be empty.
    pub tags: Vec<String>,
    /// When it came into this store.
    pub added: Timestamp,
}

impl ImageRecord {
    /// Returns the snapshot that a container of this image is based on; `None` for an image without
    /// layers.
    pub fn top(&self) -> Option<&SnapshotKey> {
        self.layers.last().map(|layer| &layer.snapshot)
    }
}

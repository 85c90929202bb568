//! Record files of images and containers, next to those of trees: with them a lost database can be
//! restored completely.
//!
//! This module has their content. `records.rs` writes and reads them, `following.rs` decides when.

use std::{collections::BTreeSet, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vellum_format::Digest;

use crate::{
    container::{ContainerRecord, NewContainer},
    image::{ImageLayer, ImageRecord, LayerBlob},
    layout::Layout,
    located::SidecarKind,
    records::VERSION,
    snapshot::SnapshotKey,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageFile {
    version: u32,
    pub id: Digest,
    pub manifest: Digest,
    pub media_type: String,
    pub layers: Vec<LayerFile>,
    pub tags: Vec<String>,
    pub added: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerFile {
    pub snapshot: SnapshotKey,
    pub diff_id: Digest,
    pub blob: Option<BlobFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlobFile {
    pub media_type: String,
    pub digest: Digest,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerFile {
    version: u32,
    pub id: String,
    pub name: String,
    pub snapshot: SnapshotKey,
    pub image: Option<Digest>,
    pub image_name: Option<String>,
    pub created: Timestamp,
    pub config: String,
    pub volumes: Vec<String>,
}

impl From<&ImageRecord> for ImageFile {
    fn from(image: &ImageRecord) -> Self {
        let layer = |layer: &ImageLayer| LayerFile {
            snapshot: layer.snapshot.clone(),
            diff_id: layer.diff_id,
            blob: layer.blob.as_ref().map(|blob| BlobFile {
                media_type: blob.media_type.clone(),
                digest: blob.digest,
                size_bytes: blob.size_bytes,
            }),
        };
        Self {
            version: VERSION,
            id: image.id,
            manifest: image.manifest,
            media_type: image.media_type.clone(),
            layers: image.layers.iter().map(layer).collect(),
            tags: image.tags.clone(),
            added: image.added,
        }
    }
}

impl LayerFile {
    pub fn layer(self) -> ImageLayer {
        ImageLayer {
            snapshot: self.snapshot,
            diff_id: self.diff_id,
            blob: self.blob.map(|blob| LayerBlob {
                media_type: blob.media_type,
                digest: blob.digest,
                size_bytes: blob.size_bytes,
            }),
        }
    }
}

impl From<&ContainerRecord> for ContainerFile {
    fn from(container: &ContainerRecord) -> Self {
        let ContainerRecord {
            id,
            name,
            snapshot,
            image,
            image_name,
            created,
            config,
            volumes,
        } = container.clone();
        Self {
            version: VERSION,
            id,
            name,
            snapshot,
            image,
            image_name,
            created,
            config,
            volumes,
        }
    }
}

impl ContainerFile {
    /// The file of a container that is about to be recorded.
    pub fn of_new(container: &NewContainer, snapshot: &SnapshotKey, created: Timestamp) -> Self {
        let NewContainer {
            id,
            name,
            image,
            image_name,
            config,
            volumes,
        } = container.clone();
        let volumes: BTreeSet<String> = volumes.into_iter().collect();
        Self {
            version: VERSION,
            id,
            name,
            snapshot: snapshot.clone(),
            image,
            image_name,
            created,
            config,
            // As the database returns them: sorted, without duplicates.
            volumes: volumes.into_iter().collect(),
        }
    }
}

/// The content of a record file of an image or container.
pub(crate) trait Sidecar: Serialize + serde::de::DeserializeOwned + PartialEq {
    /// Returns the file's name.
    fn name(&self) -> String;
}

impl Sidecar for ImageFile {
    fn name(&self) -> String {
        image_name(&self.id)
    }
}

impl Sidecar for ContainerFile {
    fn name(&self) -> String {
        container_name(&self.id)
    }
}

pub(crate) fn image_name(id: &Digest) -> String {
    SidecarKind::Image.file_name(id)
}

pub(crate) fn container_name(id: &str) -> String {
    SidecarKind::Container.file_name(&Digest::of(id.as_bytes()))
}

/// Returns the path of a record file.
pub(crate) fn path<T: Sidecar>(layout: &Layout, value: &T) -> PathBuf {
    layout.records().join(value.name())
}

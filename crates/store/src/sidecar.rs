//! Record files of images and containers, beside those of trees: with them a lost database comes back whole.
//!
//! They follow the database: written right after its transaction, durable with the next sync of anything. `check`
//! compares, `rebuild` reads.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    containers::ContainerRecord,
    digest::Digest,
    driver::TreeId,
    error::{IoContext, Result, StoreError},
    images::{ImageLayer, ImageRecord, LayerBlob},
    layout::Layout,
    snapshot::SnapshotKey,
    tx::Staged,
};

/// Version of both forms.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageFile {
    version: u32,
    pub id: Digest,
    pub manifest: Digest,
    pub media_type: String,
    pub layers: Vec<LayerFile>,
    pub tags: Vec<String>,
    pub added: jiff::Timestamp,
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
    pub created: jiff::Timestamp,
    pub config: String,
    pub volumes: Vec<String>,
}

impl From<&ImageRecord> for ImageFile {
    fn from(image: &ImageRecord) -> Self {
        let layer = |layer: &ImageLayer| LayerFile {
            snapshot: layer.snapshot.clone(),
            diff_id: layer.diff_id.clone(),
            blob: layer.blob.as_ref().map(|blob| BlobFile {
                media_type: blob.media_type.clone(),
                digest: blob.digest.clone(),
                size_bytes: blob.size_bytes,
            }),
        };
        Self {
            version: VERSION,
            id: image.id.clone(),
            manifest: image.manifest.clone(),
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

/// A kind of record file.
pub(crate) trait Sidecar: Serialize + serde::de::DeserializeOwned + PartialEq {
    /// What its file name begins with.
    const PREFIX: &'static str;
    fn version(&self) -> u32;
    /// What makes its file name unique and harmless.
    fn name(&self) -> String;
}

impl Sidecar for ImageFile {
    const PREFIX: &'static str = "image-";
    fn version(&self) -> u32 {
        self.version
    }
    fn name(&self) -> String {
        image_name(&self.id)
    }
}

impl Sidecar for ContainerFile {
    const PREFIX: &'static str = "container-";
    fn version(&self) -> u32 {
        self.version
    }
    fn name(&self) -> String {
        container_name(&self.id)
    }
}

pub(crate) fn image_name(id: &Digest) -> String {
    format!("image-{}.json", id.hex())
}

/// Container ids are the caller's, so the file is named by a digest of them.
pub(crate) fn container_name(id: &str) -> String {
    format!("container-{}.json", Digest::of(id.as_bytes()).hex())
}

/// Writes a record file after the records it follows have changed. Failing is no failure of the change: `check` mends it.
pub(crate) fn follow<T: Sidecar>(layout: &Layout, value: &T) {
    if let Err(error) = write(layout, value) {
        tracing::warn!(
            error = crate::error::chain(&error),
            "record file not written; check puts it right"
        );
    }
}

/// Writes a record file, replacing what is there. Not synced.
pub(crate) fn write<T: Sidecar>(layout: &Layout, value: &T) -> Result<()> {
    let path = layout.records().join(value.name());
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| StoreError::Invalid(e.to_string()))?;
    let (mut staged, mut file) = Staged::file(layout, &format!("record-{}", TreeId::random()))?;
    file.write_all(&bytes).on("write", staged.path())?;
    staged.publish_shared(&path)
}

/// Removes a record file; one that is not there is no error.
pub(crate) fn remove(layout: &Layout, name: &str) -> Result<()> {
    let path = layout.records().join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", path),
    }
}

/// Reads a record file; `None` if there is none.
pub(crate) fn read<T: Sidecar>(path: &PathBuf) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).on("read", path),
    };
    let damaged = |why: String| StoreError::Damaged {
        what: path.display().to_string(),
        why,
    };
    let value: T = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if value.version() > VERSION {
        return Err(damaged(format!(
            "written by a newer vellum (form {})",
            value.version()
        )));
    }
    Ok(Some(value))
}

//! What is recorded about a container. The calls are in `containers.rs`.

use jiff::Timestamp;
use vellum_format::Digest;

use crate::snapshot::SnapshotKey;

/// A container to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewContainer {
    /// Its id: unique, chosen by the caller, usually 64 hexadecimal digits.
    pub id: String,
    /// Its name: unique.
    pub name: String,
    /// The image it is created from, if any; the container keeps the image.
    pub image: Option<Digest>,
    /// The image's name as the user wrote it.
    pub image_name: Option<String>,
    /// JSON that belongs to the caller.
    pub config: String,
    /// Named volumes it uses; they must exist, and stay while the container does.
    pub volumes: Vec<String>,
}

/// A recorded container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The active snapshot it owns.
    pub snapshot: SnapshotKey,
    /// The image it was created from.
    pub image: Option<Digest>,
    /// The image's name as the user wrote it.
    pub image_name: Option<String>,
    /// When it was created.
    pub created: Timestamp,
    /// JSON that belongs to the caller.
    pub config: String,
    /// Named volumes it uses, sorted.
    pub volumes: Vec<String>,
}

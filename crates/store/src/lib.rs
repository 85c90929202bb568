//! The store: snapshots, content and records, joined by transactions that a crash can't tear.
//!
//! This crate keeps trees and what is known about them. It never mounts (it hands out
//! [`TreeParts`]), knows neither tar nor any wire format, and about images it decides only which
//! records belong together. Start reading at `tx.rs`, which holds the central idea: *a record never
//! points at a missing or unsynced tree*.
//!
//! Layers, writable trees and views are [snapshots](snapshot); layers are committed ones, named by
//! the text of their chain id. Metadata is an SQLite database that many processes use at once; the
//! trees are next to it in the layout of their [driver]. `docs/format.md` describes what is where
//! on disk.
#![forbid(unsafe_code)]

mod attic;
pub mod check;
mod clone;
mod container;
pub mod containers;
pub mod content;
mod database;
pub mod df;
pub mod driver;
pub mod error;
pub mod filter;
mod following;
pub mod gc;
mod generation;
mod hands;
mod image;
pub mod images;
pub mod layers;
mod layout;
pub mod lease;
mod located;
mod parents;
mod process;
mod quota;
mod rebuild;
mod record;
mod record_lock;
mod records;
mod rows;
mod schema;
mod sidecar;
pub mod snapshot;
mod snapshots;
mod stamp;
mod store;
mod tx;
mod walk;
mod why;

pub use attic::Attic;
pub use check::CheckOptions;
pub use container::{ContainerRecord, NewContainer};
pub use containers::VolumeRecord;
pub use content::{Blob, BlobWriter};
pub use df::{ContainerUse, DiskUse, ImageUse, LayerUse};
pub use driver::{DriverKind, Finding, LayerDir, LayerMarks, Overlay, Shape, TreeId, TreeParts};
pub use error::{Class, Result, StoreError, Subject};
pub use filter::Filter;
pub use gc::{Garbage, Thing};
pub use image::{ImageLayer, ImageRecord, LayerBlob, NewImage};
pub use images::MovedTag;
pub use layers::{LayerCommit, Registered, StagedFile, StagedLayer};
pub use lease::{Lease, LeaseId, LeaseResource, Life};
pub use located::directories;
pub use rebuild::Rebuilt;
pub use snapshot::{
    Info, Keep, LabelChange, Labels, MountFeatures, SnapshotKey, SnapshotKind, Usage,
};
pub use snapshots::{Commit, Count, PrepareOptions, Settle, Sweep};
pub use store::{Store, StoreOptions};
pub use tx::Fate;
pub use why::{Reason, Why};
